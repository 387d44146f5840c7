//! A port of the host is one container's: whoever comes second hears who has it.

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, Reply, Running};

use crate::{mapping, network, with};

#[test]
fn a_second_claimant_hears_who_has_the_port() {
    let _host = Host::new();
    let holder = Pod::new();
    let at = |ip: &str, port: u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": ip });
    let range: Vec<Value> = (9000..9100).map(|port| mapping(port, port)).collect();
    let mut held = vec![mapping(8080, 80), at("10.88.0.1", 8081)];
    held.extend(range);
    with(&network(), &held).add(&holder);
    for wanted in [
        mapping(8080, 81),
        at("10.88.0.1", 8080),
        at("10.88.0.1", 8081),
        mapping(8081, 80),
        mapping(9050, 80),
        at("127.0.0.1", 9099),
    ] {
        let pod = Pod::new();
        let error = with(&network(), std::slice::from_ref(&wanted)).add_call(&pod).run().error_code(103);
        error.assert_names(&[&holder.id, &wanted["hostPort"].to_string()]);
    }
    // A range meets single ports of every address and of one, and other ranges that it is in or that are in it.
    let from_to =
        |first: u16, last: u16| -> Vec<Value> { (first..=last).map(|port| mapping(port, port)).collect() };
    let of_one = |first: u16, last: u16| -> Vec<Value> {
        let at_one = |port| json!({ "hostPort": port, "containerPort": port, "hostIP": "10.88.0.1", "protocol": "tcp" });
        (first..=last).map(at_one).collect()
    };
    let at_one = Pod::new();
    with(&network(), &of_one(9200, 9299)).add(&at_one);
    for (wanted, held_by) in [
        (from_to(8075, 8085), &holder),
        (from_to(8081, 8090), &holder),
        (from_to(8000, 8100), &holder),
        (of_one(8075, 8085), &holder),
        (of_one(8000, 8200), &holder),
        (of_one(9050, 9300), &holder),
        (from_to(8990, 9110), &holder),
        (from_to(9020, 9030), &holder),
        (from_to(9190, 9310), &at_one),
        (from_to(9290, 9310), &at_one),
        (of_one(9290, 9310), &at_one),
        (vec![mapping(9250, 80)], &at_one),
        (vec![at("10.88.0.1", 9299)], &at_one),
    ] {
        let error = with(&network(), &wanted).add_call(&Pod::new()).run().error_code(103);
        error.assert_names(&[&held_by.id]);
    }
    // What does not meet, and what is free again.
    let pod = Pod::new();
    let udp = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "udp" });
    let free = [udp, at("127.0.0.1", 8081), mapping(8999, 80), mapping(9100, 80), at("127.0.0.1", 9250)];
    with(&network(), &free).add(&pod);
    with(&network(), &from_to(9101, 9199)).add(&Pod::new());
    with(&network(), &held).del(&holder);
    with(&network(), &from_to(9000, 9099)).add(&Pod::new());
    let next = Pod::new();
    with(&network(), &[mapping(8080, 80)]).add(&next);
}

/// A port of one address, or of every one of a family.
fn at(ip: &str, protocol: &str, port: u16) -> Value {
    json!({ "hostPort": port, "containerPort": port, "protocol": protocol, "hostIP": ip })
}

fn range(ip: &str, protocol: &str, first: u16, last: u16) -> Vec<Value> {
    (first..=last).map(|port| at(ip, protocol, port)).collect()
}

/// Another family's or protocol's ports of the same numbers are free.
#[test]
fn each_family_and_protocol_has_its_own_conflicts() {
    let _host = Host::new();
    let families = [("10.88.0.1", "0.0.0.0", "::"), ("fd00:88::1", "::", "0.0.0.0")];
    for (own, any, other) in families {
        for (protocol, another) in [("tcp", "udp"), ("udp", "sctp"), ("sctp", "tcp")] {
            let (holder, free) = (Pod::new(), Pod::new());
            let of = |ip, first, last| range(ip, protocol, first, last);
            let one = |ip, port| vec![at(ip, protocol, port)];
            let held = [one(any, 8080), one(own, 8081), of(any, 9000, 9099), of(own, 9200, 9299)].concat();
            with(&network(), &held).add(&holder);
            let everywhere =
                |port: u16| vec![json!({ "hostPort": port, "containerPort": 80, "protocol": protocol })];
            for wanted in [
                one(any, 8080),
                one(own, 8080),
                everywhere(8080),
                one(any, 8081),
                one(own, 8081),
                everywhere(8081),
                one(own, 9050),
                one(any, 9250),
                everywhere(9250),
                of(own, 8075, 8085),
                of(any, 8081, 8090),
                of(own, 9050, 9060),
                of(any, 9290, 9310),
                of(own, 9190, 9310),
            ] {
                let what = format!("{protocol} {} of {}", wanted[0]["hostPort"], wanted[0]["hostIP"]);
                let reply = with(&network(), &wanted).add_call(&Pod::new()).run();
                assert!(!reply.succeeded(), "{what} is {own}'s already");
                reply.error_code(103).assert_names(&[&holder.id, protocol]);
            }
            let of_another =
                [one(other, 8080), of(other, 9000, 9099), range(any, another, 8075, 8085)].concat();
            with(&network(), &of_another).add(&free);
            with(&network(), &held).del(&holder);
            with(&network(), &of_another).del(&free);
        }
    }
}

/// A network of IPv6 alone has ports of IPv6 alone.
#[test]
fn a_network_of_ipv6_alone_shares_the_hosts_ports() {
    let _host = Host::new();
    let six =
        Network::new("six", &["fd00:89::/64"]).with(&json!({ "bridge": "weft1", "isDefaultGateway": true }));
    let (holder, other) = (Pod::new(), Pod::new());
    let held = [vec![mapping(8080, 80)], range("fd00:89::1", "tcp", 9000, 9009)].concat();
    with(&six, &held).add(&holder);
    for wanted in
        [mapping(8080, 80), at("::", "tcp", 8080), at("fd00:88::1", "tcp", 8080), at("::", "tcp", 9005)]
    {
        with(&network(), &[wanted]).add_call(&Pod::new()).run().error_code(103).assert_names(&[&holder.id]);
    }
    with(&network(), &[at("0.0.0.0", "tcp", 8080), mapping(8081, 80)]).add(&other);
    for wanted in [mapping(8081, 80), at("fd00:89::1", "tcp", 8081)] {
        with(&six, &[wanted]).add_call(&Pod::new()).run().error_code(103).assert_names(&[&other.id]);
    }
}

#[test]
fn of_two_that_come_at_once_one_has_the_port() {
    let _host = Host::new();
    let single = (vec![mapping(8080, 80)], vec![at("10.88.0.1", "tcp", 8080)]);
    let several = ((8000..=8100).map(|port| mapping(port, port)).collect(), vec![mapping(8050, 80)]);
    for (one, other) in [single, several] {
        let networks = [with(&network(), &one), with(&network(), &other)];
        for round in 0..20 {
            let pods = [Pod::new(), Pod::new()];
            let calls = [0, 1].map(|at| networks[at].add_call(&pods[at]).start());
            let replies = calls.map(Running::finish);
            let winner = match replies.each_ref().map(Reply::succeeded) {
                [true, false] => 0,
                [false, true] => 1,
                both => panic!("round {round}: {both:?} {}{}", replies[0].stderr, replies[1].stderr),
            };
            replies[1 - winner].error_code(103).assert_names(&[&pods[winner].id]);
            networks[winner].del(&pods[winner]);
        }
    }
}
