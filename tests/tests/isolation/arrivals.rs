//! There is no moment in which a container that comes is reached by somebody who may not reach it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};
use weft_tests::frames::{Flood, Frame, Mac, UDP, Wire, packet, udp};
use weft_tests::{Host, NetNs, Network, Outside, Pod, command, eventually, ips};

use crate::{PATIENCE, one, other};

const ROUNDS: usize = 20;
static NEXT_PORT: AtomicU16 = AtomicU16::new(7000);
const MAC: Mac = [2, 0, 0, 0, 0, 0x42];

/// Somebody who sends a container datagrams, one of each family, to ports of their own.
struct Sender {
    name: &'static str,
    netns: NetNs,
    frames: Vec<Frame>,
    ports: [u16; 2],
}

impl Sender {
    /// From addresses in a namespace to those of the container, by whoever has a MAC address on the sender's link.
    fn new(name: &'static str, netns: &NetNs, from: &[IpAddr], to: [&str; 2], by: Mac) -> Self {
        let mac = Wire::open(netns, "eth0").mac;
        // A port of its own each, so that a socket has only what is for it.
        let ports = [(); 2].map(|()| NEXT_PORT.fetch_add(1, Ordering::Relaxed));
        let frame = |(from, (to, port)): (&IpAddr, (&str, u16))| {
            let to: IpAddr = to.parse().expect("an address");
            let datagram = udp(*from, to, (9, port), name.as_bytes());
            Frame::ip(by, mac, &packet(*from, to, UDP, 0, &datagram))
        };
        let frames = from.iter().zip(to.into_iter().zip(ports)).map(frame).collect();
        Self { name, netns: netns.clone(), frames, ports }
    }

    fn flood(&self) -> Flood {
        Flood::begin(&self.netns, "eth0", self.frames.clone())
    }

    /// Where its datagrams arrive in a container, which may have no address yet.
    fn ears(&self, pod: &Pod) -> [UdpSocket; 2] {
        self.ports.map(|port| {
            let socket = pod.inside(|| UdpSocket::bind(("::", port)).expect("a socket"));
            socket.set_nonblocking(true).expect("do not wait");
            socket
        })
    }
}

fn has_heard(ear: &UdpSocket) -> bool {
    ear.recv(&mut [0; 8]).is_ok()
}

/// The outside, to which networks are open.
fn open_sender(outside: &Outside, to: [&str; 2]) -> Sender {
    let host = Wire::open(&NetNs::current(), "up0").mac;
    let from = Outside::PEER.map(|peer| peer.parse().expect("an address"));
    Sender::new("the outside", outside.netns(), &from, to, host)
}

/// Attaches a container while all send to it, and sees who is heard.
fn assert_arrivals(network: &Network, senders: &[(Sender, bool)], to: [&str; 2], bridge: &str, what: &str) {
    let pod = Pod::new();
    let ears: Vec<_> = senders.iter().map(|(sender, _)| sender.ears(&pod)).collect();
    // Nothing waits until it is known where the container is.
    for address in to {
        command(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:42 nud permanent dev {bridge}"));
    }
    let floods: Vec<_> = senders.iter().map(|(sender, _)| sender.flood()).collect();
    network.add(&pod);
    for ((sender, _), ears) in senders.iter().zip(&ears).filter(|((_, is_open), _)| *is_open) {
        for ear in ears {
            let what = format!("{}, {what}", sender.name);
            eventually(PATIENCE, &what, || has_heard(ear).then_some(()));
        }
    }
    assert!(floods.into_iter().all(|flood| flood.end() > 0), "{what}");
    let closed = senders.iter().zip(&ears).filter(|((_, is_open), _)| !is_open);
    let heard = closed.filter(|(_, ears)| ears.iter().any(has_heard)).map(|((sender, _), _)| sender.name);
    let heard: BTreeSet<&str> = heard.collect();
    assert!(heard.is_empty(), "{what}: {heard:?}");
    network.del(&pod);
}

/// Whoever may not reach a container does not reach it from the moment on in which it can hear, also where the rules are lost when it comes.
#[test]
fn not_one_forbidden_packet_reaches_a_container_that_comes() {
    let to = ["10.88.0.77", "fd00:88::77"];
    for is_open in [false, true] {
        let host = Host::new();
        let outside = host.outside();
        let isolation = json!({ "isolation": if is_open { "none" } else { "network" } });
        let network = one().with(&isolation).with(&json!({ "icc": is_open }));
        let shared = Network::new("shared", &["10.77.0.0/24", "fd00:77::/64"])
            .with(&json!({ "isDefaultGateway": true }))
            .with(&isolation);
        let (neighbour, stranger, beside) = (Pod::new(), Pod::new(), Pod::new());
        let add = |network: &Network, pod: &Pod| ips(&network.add(pod));
        let of_neighbour = add(&network, &neighbour);
        let of_stranger = add(&other("weft1").with(&isolation), &stranger);
        let of_beside = add(&shared, &beside);
        let bridge = |name: &str| Wire::open(host.netns(), name).mac;
        let (weft0, weft1) = (bridge("weft0"), bridge("weft1"));
        let closed = [
            Sender::new("a neighbour by the host", neighbour.netns(), &of_neighbour, to, weft0),
            Sender::new("a neighbour on the link", neighbour.netns(), &of_neighbour, to, MAC),
            Sender::new("a stranger", stranger.netns(), &of_stranger, to, weft1),
            Sender::new("a stranger of the bridge by the host", beside.netns(), &of_beside, to, weft0),
            Sender::new("a stranger on the link", beside.netns(), &of_beside, to, MAC),
        ];
        let mut senders: Vec<_> = closed.into_iter().map(|sender| (sender, is_open)).collect();
        senders.push((open_sender(&outside, to), true));
        let asked = json!({ "runtimeConfig": { "ips": to, "mac": "02:00:00:00:00:42" } });
        let network = network.with(&asked);
        for round in 0..if is_open { 1 } else { ROUNDS } {
            if round % 2 == 1 {
                command("nft flush ruleset");
            }
            assert_arrivals(&network, &senders, to, "weft0", &format!("round {round}, open: {is_open}"));
        }
    }
}

/// On a host with one network there is nothing that keeps it from others; this comes with the first container of a second one.
#[test]
fn the_first_container_of_a_second_network_is_closed_from_the_first_moment_on() {
    let to = ["10.99.0.77", "fd00:99::77"];
    for (isolation, is_open) in [("none", true), ("network", false)] {
        for round in 0..if is_open { 1 } else { ROUNDS / 2 } {
            let host = Host::new();
            let outside = host.outside();
            let says = |network: Network| network.with(&json!({ "isolation": isolation }));
            let stranger = Pod::new();
            let from = ips(&says(one()).add(&stranger));
            // As it was left by a network that was here before.
            command("ip link add weft1 type bridge");
            command("ip link set weft1 up");
            command("ip addr add 10.99.0.1/24 dev weft1");
            command("ip addr add fd00:99::1/64 dev weft1 nodad");
            assert!(!host.ruleset().contains("chain isolation"), "{}", host.ruleset());
            let weft0 = Wire::open(host.netns(), "weft0").mac;
            let sender = Sender::new("a stranger", stranger.netns(), &from, to, weft0);
            let asked: Value = json!({ "runtimeConfig": { "ips": to, "mac": "02:00:00:00:00:42" } });
            let senders = [(sender, is_open), (open_sender(&outside, to), true)];
            let what = format!("round {round}, open: {is_open}");
            assert_arrivals(&says(other("weft1")).with(&asked), &senders, to, "weft1", &what);
        }
    }
}
