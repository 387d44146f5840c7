//! A process of the host that has the port already: whoever attaches the container is told.

use std::net::{TcpListener, UdpSocket};

use serde_json::{Value, json};
use weft_tests::{Host, Outside, Pod};

use crate::{network, with};

/// What ADD with these mappings says on standard error; DEL follows.
fn told(mappings: &[Value]) -> String {
    let pod = Pod::new();
    let published = with(&network(), mappings);
    let reply = published.add_call(&pod).run();
    reply.result();
    published.del(&pod);
    reply.stderr
}

fn port(protocol: &str, number: u16) -> Value {
    json!({ "hostPort": number, "containerPort": number, "protocol": protocol })
}

/// No rule can redirect what goes to it: whoever asks for it is told, and gets the other ports.
#[test]
fn loopback_and_link_local_addresses_of_ipv6_serve_nobody() {
    let _host = Host::new();
    let at = |ip: &str| json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip });
    for ip in ["::1", "fe80::1"] {
        let told = told(&[at(ip), at("127.0.0.1")]);
        assert_eq!(told.lines().count(), 1, "{told}");
        let parts = [&format!("tcp host port 8080 of {ip}"), "127.0.0.1"];
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
}

#[track_caller]
fn assert_warned(told: &str, protocol: &str, number: u16) {
    let what = format!("listens on {protocol} port {number};");
    assert_eq!(told.lines().filter(|line| line.contains(&what)).count(), 1, "one line: {told}");
    assert_eq!(told.lines().count(), 1, "and no other: {told}");
}

#[test]
fn a_listener_of_the_host_is_told_of() {
    let host = Host::new();
    let _outside = host.outside();
    assert_eq!(told(&[port("tcp", 8080), port("udp", 8080)]), "", "nobody listens");
    for at in ["0.0.0.0", "::", "127.0.0.1", "::1", Outside::HOST[0], Outside::HOST[1]] {
        let listener = TcpListener::bind((at, 8080)).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_warned(&told(&[port("tcp", 8080)]), "tcp", 8080);
        assert_eq!(told(&[port("udp", 8080), port("tcp", 8081)]), "", "not of what it does not have: {at}");
        drop(listener);
        let socket = UdpSocket::bind((at, 8080)).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_warned(&told(&[port("udp", 8080)]), "udp", 8080);
        assert_eq!(told(&[port("tcp", 8080), port("udp", 8081)]), "", "not of what it does not have: {at}");
        drop(socket);
    }
    assert_eq!(told(&[port("tcp", 8080), port("udp", 8080)]), "", "nobody listens any more");
}

/// One that listens at another address than the mapping's keeps what comes there.
#[test]
fn a_listener_at_another_address_is_no_matter() {
    let host = Host::new();
    let _outside = host.outside();
    for (own, other) in [(Outside::HOST[0], "127.0.0.1"), (Outside::HOST[1], "::1")] {
        let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": own });
        let elsewhere = TcpListener::bind((other, 8080)).expect("a listener elsewhere");
        assert_eq!(told(std::slice::from_ref(&mapping)), "");
        drop(elsewhere);
        let _there = TcpListener::bind((own, 8080)).expect("a listener there");
        assert_warned(&told(&[mapping]), "tcp", 8080);
    }
}

/// A thousand ports are not a thousand sockets.
#[test]
fn the_first_64_ports_are_tried() {
    let _host = Host::new();
    let range: Vec<Value> = (9000..9100).map(|number| port("tcp", number)).collect();
    let _beyond = TcpListener::bind(("0.0.0.0", 9064)).expect("a listener on the 65th");
    assert_eq!(told(&range), "");
    let _last = TcpListener::bind(("0.0.0.0", 9063)).expect("a listener on the 64th");
    assert_warned(&told(&range), "tcp", 9063);
}
