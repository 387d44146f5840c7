//! Host ports: who reaches a container by a port of its host, from where, and who does not. Real connections.

#[path = "hostport/addresses.rs"]
mod addresses;
#[path = "hostport/conflicts.rs"]
mod conflicts;
#[path = "hostport/listeners.rs"]
mod listeners;
#[path = "hostport/loopback.rs"]
mod loopback;
#[path = "hostport/masquerade.rs"]
mod masquerade;
#[path = "hostport/protocols.rs"]
mod protocols;
#[path = "hostport/renumbered.rs"]
mod renumbered;
#[path = "hostport/sctp.rs"]
mod sctp;
#[path = "hostport/services.rs"]
mod services;
#[path = "hostport/several.rs"]
mod several;
#[path = "hostport/sources.rs"]
mod sources;
#[path = "hostport/status.rs"]
mod status;
#[path = "hostport/transit.rs"]
mod transit;
#[path = "hostport/udp.rs"]
mod udp;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use renumbered::elements;
use serde_json::{Value, json};
use weft_tests::{
    Host, Injection, Mirror, Network, Outside, Pod, answered_as, command, ips, masqueraded as network,
};

const PATIENCE: Duration = Duration::from_secs(3);

fn mapping(host: u16, container: u16) -> Value {
    json!({ "hostPort": host, "containerPort": container, "protocol": "tcp" })
}

fn with(network: &Network, mappings: &[Value]) -> Network {
    network.clone().with(&json!({ "runtimeConfig": { "portMappings": mappings } }))
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn from_everywhere_in_both_families() {
    let host = Host::new();
    let outside = host.outside();
    let (web, neighbour, stranger) = (Pod::new(), Pod::new(), Pod::new());
    let network = network();
    let result = with(&network, &[mapping(8080, 80)]).add(&web);
    let own = ips(&result);
    network.add(&neighbour);
    let other = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }));
    other.add(&stranger);
    let mirror = Mirror::on(&web, 80);
    for (at, peer) in Outside::HOST.iter().zip(Outside::PEER) {
        let at = addr(at);
        assert_eq!(mirror.seen(&outside, (at, 8080)), Some(addr(peer)), "the client's address is kept");
        assert!(mirror.seen(host.netns(), (at, 8080)).is_some(), "from the host to its own address");
        assert!(mirror.seen(&neighbour, (at, 8080)).is_some(), "from the same network");
        assert!(mirror.seen(&stranger, (at, 8080)).is_some(), "from another network");
        assert!(mirror.seen(&web, (at, 8080)).is_some(), "from the container itself");
    }
    assert!(mirror.seen(host.netns(), (addr("127.0.0.1"), 8080)).is_some(), "by the host's loopback address");
    assert!(mirror.seen(&neighbour, (addr("10.88.0.1"), 8080)).is_some(), "by the gateway's address");
    assert!(mirror.seen(&neighbour, (own[0], 80)).is_some(), "its own address is there as before");
    with(&network, &[mapping(8080, 80)]).del(&web);
    for at in Outside::HOST {
        let gone =
            outside.inside(|| TcpStream::connect_timeout(&SocketAddr::from((addr(at), 8080)), PATIENCE));
        assert!(gone.is_err(), "after DEL nobody answers at {at}");
    }
}

/// Rules that the host has for its own services come first (CVE-2019-9946).
#[test]
fn the_hosts_own_services_come_first() {
    let host = Host::new();
    let outside = host.outside();
    let (web, service) = (Pod::new(), Pod::new());
    with(&network(), &[mapping(8080, 80)]).add(&web);
    let result = network().add(&service);
    let theirs = Mirror::on(&service, 9000);
    for (family, to) in ["ip", "ip6"].into_iter().zip(ips(&result)) {
        let to = SocketAddr::new(to, 9000);
        // nft has the name `dstnat` for -100 at the first of the hooks only.
        let chain = |hook: &str| {
            format!("chain {hook} {{ type nat hook {hook} priority -100\n tcp dport 8080 dnat to {to}\n }}\n")
        };
        host.nft(&format!("table {family} services {{ {} {} }}\n", chain("prerouting"), chain("output")));
    }
    for (at, peer) in Outside::HOST.iter().zip(Outside::PEER) {
        assert_eq!(theirs.seen(&outside, (addr(at), 8080)), Some(addr(peer)), "from outside at {at}");
        assert!(theirs.seen(host.netns(), (addr(at), 8080)).is_some(), "from the host itself at {at}");
    }
}

/// Whether others with ports are 3 or 100.
#[test]
fn a_port_costs_the_same_however_many_others_have_one() {
    let _host = Host::new();
    let at = |port: u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": "10.88.0.1" });
    let wanted = with(&network(), &[mapping(7000, 80), at(7001)]);
    let attach = |numbers: std::ops::Range<u16>| -> Vec<Pod> {
        let one = |number: u16| {
            let range = (0..10).map(|more| mapping(20_000 + 10 * number + more, 20_000 + 10 * number + more));
            let mappings: Vec<Value> =
                [mapping(8000 + number, 80), at(9000 + number)].into_iter().chain(range).collect();
            let pod = Pod::new();
            with(&network(), &mappings).add(&pod);
            pod
        };
        numbers.map(one).collect()
    };
    let pod = Pod::new();
    let count = || Injection::work(&|| wanted.add_call(&pod), &|| wanted.del(&pod));
    let _few = attach(0..3);
    // What is made once was made.
    count();
    let before = count();
    assert!(before["sendto"] > 10, "{before:?}");
    let _many = attach(3..100);
    assert_eq!(count(), before);
}

/// A thousand ports of a protocol are one element of the map, in each family.
#[test]
fn a_range_is_one_element() {
    let host = Host::new();
    let outside = host.outside();
    let pod = Pod::new();
    let of = |protocol: &str| -> Vec<Value> {
        let one = |port| json!({ "hostPort": port, "containerPort": port, "protocol": protocol });
        (20_000..21_000).map(one).collect()
    };
    with(&network(), &[of("tcp"), of("udp")].concat()).add(&pod);
    for map in ["hostport-range-v4", "hostport-range-v6"] {
        let elements = command(&format!("nft list map inet weft {map}"));
        assert_eq!(elements.matches("comment").count(), 2, "{elements}");
    }
    for port in [20_000, 20_500, 20_999] {
        let by_tcp = Mirror::on(&pod, port);
        let by_udp = pod.inside(|| UdpSocket::bind(("::", port)).expect("a socket"));
        by_udp.set_read_timeout(Some(PATIENCE)).expect("a limit");
        for (at, peer) in Outside::HOST.map(addr).into_iter().zip(Outside::PEER.map(addr)) {
            assert_eq!(by_tcp.seen(&outside, (at, port)), Some(peer), "TCP at {at}, port {port}");
            assert_eq!(answered_as(&outside, &by_udp, (at, port)), Some(peer), "UDP at {at}, port {port}");
        }
    }
}

/// What DEL, GC and CHECK have to know of it.
#[test]
fn nothing_is_left_and_what_is_flushed_comes_back() {
    let host = Host::new();
    let outside = host.outside();
    let network = network();
    let (first, second, third) = (Pod::new(), Pod::new(), Pod::new());
    let one = with(&network, &[mapping(8080, 80)]);
    let result = one.add(&first);
    let check = one.clone().with(&json!({ "prevResult": result })).call("CHECK").pod(&first);
    check.clone().run().done();
    command("nft flush ruleset");
    check.clone().run().error_code(105).assert_names(&["hostport"]);
    // One without ports puts back everybody's.
    network.add(&third);
    check.clone().run().done();
    with(&network, &[mapping(8081, 80)]).add(&second);
    let mirror = Mirror::on(&first, 80);
    assert!(mirror.seen(&outside, (addr(Outside::HOST[0]), 8080)).is_some(), "the next ADD restored it");
    // One element altered by hand.
    command("nft delete element inet weft hostport-v4 { tcp . 8080 }");
    check.run().error_code(105).assert_names(&["hostport-v4", "8080"]);
    // The record is lost: what names the attachment is found all the same.
    with(&network, &[mapping(8081, 80)]).del(&second);
    assert!(!elements().iter().any(|element| element.contains("8081")), "{:?}", elements());
    network.gc(&[]);
    assert_eq!(elements(), Vec::<String>::new());
}

/// Nobody knows any more what a container whose record was cut had.
#[test]
fn what_a_flush_took_for_good_is_told() {
    let _host = Host::new();
    let network = network();
    let (cut, emptied, whole) = (Pod::new(), Pod::new(), Pod::new());
    let publish = |port: u16| with(&network, &[mapping(port, 80)]);
    let results = [(8080, &cut), (8081, &emptied), (8082, &whole)].map(|(port, pod)| publish(port).add(pod));
    let record = |pod: &Pod| {
        let files = command(&format!("grep -rl {} /run/weft", pod.id));
        files.lines().find(|path| path.contains("/attachments/")).expect("a record").to_owned()
    };
    let lost = [(&cut, 200), (&emptied, 0)].map(|(pod, length)| {
        let path = record(pod);
        command(&format!("truncate -s {length} {path}"));
        path
    });
    for ((port, pod), (result, path)) in
        [(8080, &cut), (8081, &emptied)].iter().zip(results.iter().zip(&lost))
    {
        publish(*port)
            .check(pod, result)
            .error_code(105)
            .assert_names(&["record", path, "is damaged", "DEL and ADD"]);
    }
    publish(8082).check(&whole, &results[2]).done();
    command("nft flush ruleset");
    let reply = network.add_call(&Pod::new()).run();
    reply.result();
    assert!(reply.stderr.contains(&format!("{} is damaged", lost[0])), "{}", reply.stderr);
    assert!(reply.stderr.contains("DEL and ADD the container again"), "{}", reply.stderr);
    let mapped = command("nft list map inet weft hostport-v4");
    assert!(mapped.contains("8082") && !mapped.contains("8080"), "what is known is back: {mapped}");
    publish(8080).del(&cut);
    publish(8080).add(&cut);
}

#[test]
fn what_cannot_be_meant() {
    let _host = Host::new();
    let pod = Pod::new();
    for (wanted, code, parts) in [
        (json!({ "hostPort": 70000, "containerPort": 80, "protocol": "tcp" }), 7, vec!["hostPort", "70000"]),
        (mapping(0, 80), 7, vec!["hostPort", "0"]),
        (json!({ "hostPort": 80, "containerPort": 0, "protocol": "tcp" }), 7, vec!["containerPort"]),
        (
            json!({ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }),
            7,
            vec!["protocol", "icmp", "sctp"],
        ),
        (
            json!({ "hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "here" }),
            7,
            vec!["hostIP", "here"],
        ),
    ] {
        with(&network(), &[wanted]).add_call(&pod).run().error_code(code).assert_names(&parts);
    }
    for (key, value, parts) in [
        ("conditionsV4", json!(["-s", "192.0.2.0/24"]), vec!["conditionsV4", "sources"]),
        ("conditionsV6", json!(["-s", "2001:db8::/32"]), vec!["conditionsV6", "sources"]),
        ("source", json!([]), vec!["source", "sources"]),
    ] {
        let wrong = network().with(&json!({ key: value }));
        with(&wrong, &[mapping(8080, 80)]).add_call(&pod).run().error_code(2).assert_names(&parts);
    }
    let of_other_family =
        json!({ "hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8::1" });
    let only_v4 = with(&Network::v4(), &[of_other_family]);
    only_v4.add_call(&pod).run().error_code(7).assert_names(&["hostIP", "give the network an IPv6 range"]);
    let flat = Network::new("flat", &[]);
    with(&flat, &[mapping(8080, 80)])
        .add_call(&pod)
        .run()
        .error_code(7)
        .assert_names(&["portMappings", "isGateway"]);
}

/// Nobody hears that a set that no rule uses is gone, until something is to be put into it.
#[test]
fn a_set_that_was_deleted_comes_back_with_what_was_in_it() {
    let _host = Host::new();
    let at = |port: u16| {
        let mapping =
            json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1" });
        with(&network(), &[mapping])
    };
    let (one, two) = (Pod::new(), Pod::new());
    at(8080).add(&one);
    let set = "inet weft hostport-addresses-v4";
    let before = command(&format!("nft list set {set}"));
    assert!(before.contains("127.0.0.1"), "{before}");
    command(&format!("nft delete set {set}"));
    let result = at(8081).add(&two);
    assert_eq!(command(&format!("nft list set {set}")), before);
    at(8081).check(&two, &result).done();
}
