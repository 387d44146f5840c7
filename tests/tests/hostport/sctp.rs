//! Host ports of SCTP: an association begins, with real packets. The kernel of the test has no SCTP sockets.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use weft_tests::sctp::{Chunk, Endpoint, Packet};
use weft_tests::{Host, Outside, Place, Pod, ips};

use crate::{addr, network, with};

const PATIENCE: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(200);
pub(crate) const PUBLISHED: u16 = 5000;
pub(crate) const OWN: u16 = 6000;

/// The next packet to a port. An end that asks itself gets at one address what is for both ends.
fn next(endpoint: &Endpoint, port: u16) -> Option<(IpAddr, Packet)> {
    std::iter::from_fn(|| endpoint.receive(PATIENCE)).find(|(_, packet)| packet.to == port)
}

/// An association from a place to a published port, as far as both ends see each other. Returns the client's address as the
/// server saw it.
pub(crate) fn begin(server: &Endpoint, from: &impl Place, own: IpAddr, at: IpAddr) -> IpAddr {
    let client = from.there(|| Endpoint::at(own));
    let first = Packet { from: 40_000, to: PUBLISHED, tag: 0, chunk: Chunk::Init(0x11) };
    client.send(at, &first);
    let (seen, arrived) = next(server, OWN).expect("the first packet arrives in the container");
    assert_eq!((arrived.tag, arrived.chunk), (0, Chunk::Init(0x11)));
    let answer = Packet { from: OWN, to: arrived.from, tag: 0x11, chunk: Chunk::InitAck(0x22) };
    server.send(seen, &answer);
    let (by, back) = next(&client, first.from).expect("the answer arrives at the client");
    assert_eq!(by, at, "it comes from where the client sent to");
    assert_eq!(back, Packet { from: PUBLISHED, to: 40_000, ..answer });
    seen
}

#[test]
fn from_outside_and_from_a_neighbour_in_both_families() {
    let host = Host::new();
    let outside = host.outside();
    let (web, neighbour) = (Pod::new(), Pod::new());
    let mapping = json!({ "hostPort": PUBLISHED, "containerPort": OWN, "protocol": "sctp" });
    let published = with(&network(), &[mapping]);
    let servers = ips(&published.add(&web));
    let clients = ips(&network().add(&neighbour));
    for (family, to) in servers.iter().enumerate() {
        let (at, peer) = (addr(Outside::HOST[family]), addr(Outside::PEER[family]));
        let server = web.inside(|| Endpoint::at(*to));
        assert_eq!(begin(&server, &outside, peer, at), peer, "the client's address is kept");
        let masqueraded = begin(&server, &neighbour, clients[family], at);
        assert_ne!(masqueraded, clients[family], "its answer has to come by the host");
        // Another port is none of the container's.
        let client = outside.inside(|| Endpoint::at(peer));
        let other = Packet { from: 40_001, to: PUBLISHED + 1, tag: 0, chunk: Chunk::Init(0x33) };
        client.send(at, &other);
        assert_eq!(server.receive(SILENCE), None);
    }
    published.del(&web);
    assert!(!host.ruleset().contains("5000"), "{}", host.ruleset());
}
