//! Many calls at once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Call, Host, Network, Pod, Reply, Running, World, ips, masqueraded as network};

/// How many calls run at once.
const STORM: usize = 50;

/// Starts all calls, then waits for all.
fn at_once(calls: impl Iterator<Item = Call>) -> Vec<Reply> {
    let running: Vec<Running> = calls.map(Call::start).collect();
    running.into_iter().map(Running::finish).collect()
}

fn assert_distinct(results: &[Value]) {
    let addresses: Vec<IpAddr> = results.iter().flat_map(ips).collect();
    let distinct: BTreeSet<&IpAddr> = addresses.iter().collect();
    assert_eq!(distinct.len(), addresses.len(), "an address was given twice: {addresses:?}");
    let veths: BTreeSet<&str> =
        results.iter().map(|result| result["interfaces"][1]["name"].as_str().unwrap()).collect();
    assert_eq!(veths.len(), results.len());
}

/// The very first ADDs of a host make the bridge, the table and the directories, all at the same time.
#[test]
fn adds_and_dels_on_a_fresh_host() {
    let host = Host::new();
    let pods: Vec<Pod> = (0..STORM).map(|_| Pod::new()).collect();
    let everyone: Vec<&Pod> = pods.iter().collect();
    let results: Vec<Value> =
        at_once(pods.iter().map(|pod| network().add_call(pod))).iter().map(Reply::result).collect();
    assert_distinct(&results);
    assert_eq!(host.ports("weft0").len(), STORM);
    for (pod, result) in pods.iter().zip(&results) {
        network().check(pod, result).done();
    }
    for address in ips(&results[STORM - 1]) {
        pods[0].assert_reaches(address);
    }

    at_once(pods.iter().map(|pod| network().del_call(pod))).iter().for_each(Reply::done);
    assert_eq!(host.ports("weft0"), Vec::<String>::new());
    let left = World::of(&host, &everyone);
    network().add(&pods[0]);
    network().del(&pods[0]);
    left.assert_unchanged(&host, &everyone, "one more ADD and DEL after a storm");
    assert_eq!(left.matching("attachments/"), Vec::<&str>::new());
    assert_eq!(left.matching("/ipam/"), Vec::<&str>::new());
}

/// A pool with room for the half of those who want an address: as many get one as it has, the rest is told.
#[test]
fn more_than_the_pool_has() {
    let host = Host::new();
    let network = Network::new("small", &["10.88.0.0/27"]);
    let pods: Vec<Pod> = (0..STORM).map(|_| Pod::new()).collect();
    let replies = at_once(pods.iter().map(|pod| network.add_call(pod)));
    let (given, refused): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.succeeded());
    assert_eq!(given.len(), 29, "a /27 has 32 addresses less network, gateway and broadcast");
    refused.iter().for_each(|reply| drop(reply.error_code(104)));
    assert_distinct(&given.iter().map(|reply| reply.result()).collect::<Vec<_>>());
    assert_eq!(host.ports("weft0").len(), 29);
    at_once(pods.iter().map(|pod| network.del_call(pod))).iter().for_each(Reply::done);
    assert_eq!(host.ports("weft0"), Vec::<String>::new());
    network.status().done();
}

/// Half of the containers come while the other half goes, round after round, in two networks.
#[test]
fn coming_and_going() {
    let host = Host::new();
    let other = Network::new("other", &["10.2.0.0/24"]).with(&json!({ "bridge": "other0" }));
    let networks = [network(), other];
    let of = |number: usize| &networks[number % networks.len()];
    let (first, second): (Vec<Pod>, Vec<Pod>) = (0..STORM / 2).map(|_| (Pod::new(), Pod::new())).unzip();
    let everyone: Vec<&Pod> = first.iter().chain(&second).collect();
    let mut results: Vec<Value> = Vec::new();
    let (mut present, mut absent) = (&first, &second);
    at_once(absent.iter().enumerate().map(|(number, pod)| of(number).add_call(pod)))
        .iter()
        .for_each(|reply| drop(reply.result()));
    at_once(absent.iter().enumerate().map(|(number, pod)| of(number).del_call(pod)))
        .iter()
        .for_each(Reply::done);
    let before = World::of(&host, &everyone);
    at_once(present.iter().enumerate().map(|(number, pod)| of(number).add_call(pod)))
        .iter()
        .for_each(|reply| drop(reply.result()));
    for _ in 0..4 {
        let pairs = present.iter().zip(absent).enumerate();
        let calls =
            pairs.flat_map(|(number, (go, come))| [of(number).del_call(go), of(number).add_call(come)]);
        let replies = at_once(calls);
        replies.iter().step_by(2).for_each(Reply::done);
        results = replies.iter().skip(1).step_by(2).map(Reply::result).collect();
        assert_distinct(&results);
        (present, absent) = (absent, present);
        assert!(absent.iter().all(|pod| pod.link("eth0").is_none()));
    }
    for (number, (pod, result)) in present.iter().zip(&results).enumerate() {
        of(number).check(pod, result).done();
    }
    at_once(present.iter().enumerate().map(|(number, pod)| of(number).del_call(pod)))
        .iter()
        .for_each(Reply::done);
    // Addresses, links and records are gone; what containers share is as it was.
    let lo = |line: &String| !line.contains(" link lo ");
    let differences: Vec<String> =
        before.differences(&World::of(&host, &everyone)).into_iter().filter(lo).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Several ADDs of one attachment at the same time: one has it, the others are told.
#[test]
fn adds_of_one_attachment() {
    let host = Host::new();
    let network = network();
    for _ in 0..5 {
        let pod = Pod::new();
        let replies = at_once((0..8).map(|_| network.add_call(&pod)));
        let (given, refused): (Vec<&Reply>, Vec<&Reply>) =
            replies.iter().partition(|reply| reply.succeeded());
        assert_eq!(given.len(), 1, "{refused:?}");
        refused.iter().for_each(|reply| drop(reply.error_code(103)));
        network.check(&pod, &given[0].result()).done();
        assert_eq!(host.ports("weft0").len(), 1);
        network.del(&pod);
    }
}

/// What is at work at the same time is left alone by whoever gives up, and whoever comes again finds nothing of the last time.
#[test]
fn containers_that_come_and_go_at_once() {
    let host = Host::new();
    let pods: Vec<Pod> = (0..16).map(|_| Pod::new()).collect();
    let everyone: Vec<&Pod> = pods.iter().collect();
    let come_and_go = |pod: &Pod, times: usize| {
        for _ in 0..times {
            let result = network().add(pod);
            network().check(pod, &result).done();
            network().del(pod);
        }
    };
    // The first one leaves the bridge, and `lo` of each container up.
    pods.iter().for_each(|pod| come_and_go(pod, 1));
    let before = World::of(&host, &everyone);
    thread::scope(|scope| pods.iter().for_each(|pod| drop(scope.spawn(move || come_and_go(pod, 4)))));
    before.assert_unchanged(&host, &everyone, "a crowd");
}

/// The kernel joins the group in which an IPv6 address is asked for in its own time. A question that comes before that is lost,
/// and repeated after a second.
fn assert_answers(address: IpAddr) {
    const REPEATED: Duration = Duration::from_secs(1);
    let answer = TcpStream::connect_timeout(&SocketAddr::new(address, 9), REPEATED);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
}

#[test]
fn ipv6_answers_from_the_first_question_on() {
    let _host = Host::new();
    let pods: Vec<Pod> = (0..STORM).map(|_| Pod::new()).collect();
    let ask = |pod: &Pod| ips(&network().add(pod)).into_iter().for_each(assert_answers);
    thread::scope(|scope| pods.iter().for_each(|pod| drop(scope.spawn(move || ask(pod)))));
}

/// Those that come first, all at once, find the gateway at once, whoever of them made its address.
#[test]
fn a_new_gateway_answers_from_the_first_question_on() {
    for _ in 0..STORM / 5 {
        let _host = Host::new();
        let pods: [Pod; 5] = std::array::from_fn(|_| Pod::new());
        let ask = |pod: &Pod| {
            network().add(pod);
            for gateway in ["fd00:88::1", "10.88.0.1"] {
                pod.inside(|| assert_answers(gateway.parse().unwrap()));
            }
        };
        thread::scope(|scope| pods.iter().for_each(|pod| drop(scope.spawn(move || ask(pod)))));
    }
}
