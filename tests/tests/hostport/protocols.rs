//! Each protocol from each place: who is asked, and whom the container sees. SCTP by its first packets, as in sctp.rs.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use weft_tests::sctp::{Chunk, Endpoint, Packet};
use weft_tests::{Host, Mirror, NetNs, Network, Outside, Place, Pod, answered_as, ips};

use crate::sctp::{OWN, PUBLISHED, begin};
use crate::{addr, network, with};

const PATIENCE: Duration = Duration::from_secs(3);
const GATEWAY: [&str; 2] = ["10.88.0.1", "fd00:88::1"];
/// 127.0.0.1 is translated; from ::1 the kernel routes nothing.
const LOCALHOST: [&str; 2] = ["127.0.0.1", "::1"];

/// Somebody who asks at one of the host's addresses.
struct Asking<'a> {
    who: &'static str,
    from: &'a NetNs,
    own: IpAddr,
    at: IpAddr,
    /// The client that the container sees.
    seen: IpAddr,
}

/// Everybody who asks, in one family. A client whose answer would not come back by the host is seen as the gateway.
fn everybody<'a>(
    family: usize,
    host: &'a Host,
    outside: &'a Outside,
    containers: &[(&'static str, &'a Pod, Vec<IpAddr>)],
) -> Vec<Asking<'a>> {
    let [at, peer, gateway, localhost] =
        [Outside::HOST[family], Outside::PEER[family], GATEWAY[family], LOCALHOST[family]].map(addr);
    let asking = |who, from, own, at, seen| Asking { who, from, own, at, seen };
    let mut everybody = vec![
        asking("outside", outside.netns(), peer, at, peer),
        asking("the host by its address", host.netns(), at, at, at),
        asking("the host by its gateway address", host.netns(), gateway, gateway, gateway),
    ];
    if localhost.is_ipv4() {
        everybody.push(asking("the host by localhost", host.netns(), localhost, localhost, gateway));
    }
    for (who, pod, addresses) in containers {
        everybody.extend([at, gateway].map(|at| asking(who, pod.netns(), addresses[family], at, gateway)));
    }
    everybody
}

/// One port of all protocols.
fn published() -> Network {
    let mapping = |protocol| json!({ "hostPort": PUBLISHED, "containerPort": OWN, "protocol": protocol });
    with(&network(), &["tcp", "udp", "sctp"].map(mapping))
}

#[test]
fn each_protocol_from_everywhere_in_both_families() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        let (web, neighbour, stranger) = (Pod::new(), Pod::new(), Pod::new());
        let own = ips(&published().add(&web));
        let other = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
            .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }));
        let containers = [
            ("one of its network", &neighbour, ips(&network().add(&neighbour))),
            ("one of another network", &stranger, ips(&other.add(&stranger))),
            ("itself", &web, own.clone()),
        ];
        let by_tcp = Mirror::on(&web, OWN);
        let by_udp = web.inside(|| UdpSocket::bind(("::", OWN)).expect("a socket"));
        by_udp.set_read_timeout(Some(PATIENCE)).expect("a limit");
        for (family, own) in own.into_iter().enumerate() {
            let by_sctp = web.inside(|| Endpoint::at(own));
            for Asking { who, from, own, at, seen } in everybody(family, &host, &outside, &containers) {
                let target = (at, PUBLISHED);
                assert_eq!(
                    by_tcp.seen(from, target),
                    Some(seen),
                    "{who} at {at} by TCP, br_netfilter: {br_netfilter}"
                );
                assert_eq!(answered_as(from, &by_udp, target), Some(seen), "{who} at {at} by UDP");
                assert_eq!(begin(&by_sctp, from, own, at), seen, "{who} at {at} by SCTP");
            }
        }
    }
}

/// Whatever has the port of ::1 keeps it.
#[test]
fn the_loopback_address_of_ipv6_is_the_hosts_in_each_protocol() {
    let host = Host::new();
    let web = Pod::new();
    published().add(&web);
    let at = addr(LOCALHOST[1]);
    let by_tcp = Mirror::on(host.netns(), PUBLISHED);
    let by_udp = UdpSocket::bind((at, PUBLISHED)).expect("a socket");
    by_udp.set_read_timeout(Some(PATIENCE)).expect("a limit");
    assert_eq!(by_tcp.seen(host.netns(), (at, PUBLISHED)), Some(at));
    assert_eq!(answered_as(host.netns(), &by_udp, (at, PUBLISHED)), Some(at));
    let by_sctp = host.netns().there(|| Endpoint::at(at));
    let first = Packet { from: 40_000, to: PUBLISHED, tag: 0, chunk: Chunk::Init(0x11) };
    by_sctp.send(at, &first);
    assert_eq!(by_sctp.receive(PATIENCE), Some((at, first)));
}
