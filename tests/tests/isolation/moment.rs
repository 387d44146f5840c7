//! There is no moment in which a container's link is open and what its network forbids is not yet forbidden.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};

use serde_json::{Value, json};
use weft_tests::frames::{Flood, Frame, Mac, UDP, Wire, packet, udp};
use weft_tests::{Host, Network, Outside, Place, Pod, command, eventually, ips};

use crate::{PATIENCE, one, other};

const ROUNDS: usize = 20;
const SERVICE: u16 = 9;
const MAC: Mac = [2, 0, 0, 0, 0, 0x42];
const ADDRESSES: [&str; 2] = ["10.88.0.77", "fd00:88::77"];
/// More addresses of the outside, to which the way is never closed.
const ALLOWED: [&str; 2] = ["198.51.100.3", "2001:db8:ffff::3"];

/// Datagrams to somebody, and where they arrive.
struct Target {
    name: String,
    frame: Frame,
    socket: UdpSocket,
}

impl Target {
    /// For an address of a place, by whoever has a MAC address on the container's link.
    fn new(what: &str, place: &impl Place, address: IpAddr, by: Mac) -> Self {
        let own: IpAddr = ADDRESSES[usize::from(address.is_ipv6())].parse().expect("an address");
        let name = format!("{what} at {address}");
        // A port of its own each, so that a socket has only what is for it.
        let socket = place.there(|| UdpSocket::bind((address, 0)).expect("a socket"));
        socket.set_nonblocking(true).expect("do not wait");
        let port = socket.local_addr().expect("its port").port();
        let datagram = udp(own, address, (SERVICE, port), name.as_bytes());
        let frame = Frame::ip(by, MAC, &packet(own, address, UDP, 0, &datagram));
        Self { name, frame, socket }
    }

    /// Whether anything came since the last time.
    fn has_heard(&self) -> bool {
        let has_heard = self.socket.recv(&mut [0; 8]).is_ok();
        self.forget();
        has_heard
    }

    fn forget(&self) {
        while self.socket.recv(&mut [0; 8]).is_ok() {}
    }
}

/// Everybody to whom the way is closed where all keys say so, and then the one to whom it never is, for each family.
fn targets(
    host: &Host,
    outside: &Outside,
    neighbour: (&Pod, &Value),
    stranger: (&Pod, &Value),
) -> (Vec<Target>, Vec<Target>) {
    let bridge: Mac = Wire::open(host.netns(), "weft0").mac;
    let beside: Mac = Wire::of(neighbour.0).mac;
    let (mut closed, mut open) = (Vec::new(), Vec::new());
    for family in [0, 1] {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let gateway = address(["10.88.0.1", "fd00:88::1"][family]);
        let (of_neighbour, of_stranger) = (ips(neighbour.1)[family], ips(stranger.1)[family]);
        closed.extend([
            Target::new("a container of another network", stranger.0, of_stranger, bridge),
            Target::new("a neighbour on the link", neighbour.0, of_neighbour, beside),
            Target::new("a neighbour by the host", neighbour.0, of_neighbour, bridge),
            Target::new("the host", host.netns(), gateway, bridge),
            Target::new("the outside that is denied", outside, address(Outside::PEER[family]), bridge),
        ]);
        open.push(Target::new("the outside", outside, address(ALLOWED[family]), bridge));
    }
    (closed, open)
}

/// A container floods everybody from the moment on in which its link is up, also where the rules are lost when it comes. Nobody
/// to whom the way is closed is reached, and all are where it is not.
#[test]
fn not_one_forbidden_packet_passes_while_a_container_comes() {
    for is_open in [false, true] {
        let host = Host::new();
        let outside = host.outside();
        for address in [format!("{}/24", ALLOWED[0]), format!("{}/64 nodad", ALLOWED[1])] {
            outside.inside(|| command(&format!("ip addr add dev eth0 {address}")));
        }
        let isolation = json!({ "isolation": if is_open { "none" } else { "network" } });
        let deny = if is_open { json!([]) } else { json!(Outside::PEER) };
        let keys =
            json!({ "icc": is_open, "hostAccess": is_open, "egress": { "deny": deny }, "ipMasq": true });
        let network = one().with(&isolation).with(&keys);
        let (neighbour, stranger) = (Pod::new(), Pod::new());
        let results = (network.add(&neighbour), other("weft1").with(&isolation).add(&stranger));
        let (closed, open) = targets(&host, &outside, (&neighbour, &results.0), (&stranger, &results.1));
        let asked = json!({ "runtimeConfig": { "ips": ADDRESSES, "mac": "02:00:00:00:00:42" } });
        let network: Network = network.with(&asked);
        for round in 0..if is_open { 1 } else { ROUNDS } {
            let pod = Pod::new();
            if round % 2 == 1 {
                command("nft flush ruleset");
            }
            let frames = closed.iter().chain(&open).map(|target| target.frame.clone()).collect();
            let flood = Flood::begin(pod.netns(), "eth0", frames);
            network.add(&pod);
            let expected =
                if is_open { closed.iter().chain(&open).collect() } else { open.iter().collect::<Vec<_>>() };
            for target in expected {
                eventually(PATIENCE, &target.name, || target.has_heard().then_some(()));
            }
            assert!(flood.end() > 0);
            let reached: BTreeSet<&str> = closed
                .iter()
                .filter(|target| target.has_heard())
                .map(|target| target.name.as_str())
                .collect();
            assert!(is_open || reached.is_empty(), "round {round}: {reached:?}");
            network.del(&pod);
            open.iter().for_each(Target::forget);
        }
    }
}
