//! A packet that only passes the host is none of its ports' (CVE-2025-67499).

use std::net::UdpSocket;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Outside, Place, Pod, answered_as, command, ips};

use crate::{PATIENCE, addr, network, with};

/// Of every address, of one, and of a range.
const BY_TCP: [u16; 3] = [8080, 8081, 9005];
const BY_UDP: [u16; 3] = [5353, 5354, 9005];

fn published() -> Vec<Value> {
    let mapping =
        |protocol: &str, port: u16| json!({ "hostPort": port, "containerPort": port, "protocol": protocol });
    let of = |protocol: &str, [any, one, _]: [u16; 3]| {
        let at = |ip: &&str| {
            let mut mapping = mapping(protocol, one);
            mapping["hostIP"] = json!(ip);
            mapping
        };
        let mut all = vec![mapping(protocol, any)];
        all.extend(Outside::HOST.iter().map(at));
        all.extend((9000..9010).map(|port| mapping(protocol, port)));
        all
    };
    [of("tcp", BY_TCP), of("udp", BY_UDP)].concat()
}

/// Servers at all these ports of somebody else's.
struct Servers {
    by_tcp: [Mirror; 3],
    by_udp: [UdpSocket; 3],
}

impl Servers {
    fn on(place: &impl Place) -> Self {
        let udp = |port| {
            let socket = place.there(|| UdpSocket::bind(("::", port)).expect("a socket"));
            socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
            socket
        };
        Self { by_tcp: BY_TCP.map(|port| Mirror::on(place, port)), by_udp: BY_UDP.map(udp) }
    }

    /// They are asked at their own address, by whom they see.
    fn assert_asked(&self, from: &impl Place, at: &str, seen: &str) {
        for (server, port) in self.by_tcp.iter().zip(BY_TCP) {
            assert_eq!(server.seen(from, (addr(at), port)), Some(addr(seen)), "TCP port {port} of {at}");
        }
        for (server, port) in self.by_udp.iter().zip(BY_UDP) {
            let heard = answered_as(from, server, (addr(at), port));
            assert_eq!(heard, Some(addr(seen)), "UDP port {port} of {at}");
        }
    }
}

#[test]
fn ports_of_other_machines_pass() {
    let host = Host::new();
    let outside = host.outside();
    let (web, client) = (Pod::new(), Pod::new());
    with(&network(), &published()).add(&web);
    let own = ips(&network().add(&client));
    // The container's own, to which no packet here goes.
    let _published = Servers::on(&web);
    let theirs = Servers::on(&outside);
    for (at, host) in Outside::PEER.iter().zip(Outside::HOST) {
        theirs.assert_asked(&client, at, host);
    }
    // From another machine to a container that is no port's.
    outside.inside(|| {
        command(&format!("ip route add 10.88.0.0/24 via {}", Outside::HOST[0]));
        command(&format!("ip route add fd00:88::/64 via {}", Outside::HOST[1]));
    });
    let plain = Servers::on(&client);
    for (at, peer) in own.iter().zip(Outside::PEER) {
        plain.assert_asked(&outside, &at.to_string(), peer);
    }
}
