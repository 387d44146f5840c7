//! `sources`: who may use the ports of a container.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Outside, Place, Pod, assert_way, command, eventually, ips};

use crate::{addr, mapping, network, with};

const PATIENCE: Duration = Duration::from_secs(3);
/// The outside's second addresses.
const STRANGER: [&str; 2] = ["198.51.100.3", "2001:db8:ffff::3"];

fn second_addresses() {
    command(&format!("ip addr add {}/24 dev eth0", STRANGER[0]));
    command(&format!("ip addr add {}/64 dev eth0 nodad", STRANGER[1]));
}

/// Has the outside use these of its addresses towards the host.
fn speak_as(own: [&str; 2]) {
    for (at, source) in Outside::HOST.iter().zip(own) {
        command(&format!("ip route replace {at} dev eth0 src {source}"));
    }
}

#[test]
fn of_a_network_and_of_one_container() {
    let host = Host::new();
    let outside = host.outside();
    outside.inside(|| {
        second_addresses();
        speak_as(Outside::PEER);
    });
    let (web, second) = (Pod::new(), Pod::new());
    let limited = network().with(&json!({ "sources": ["198.51.100.2/32", "2001:db8:ffff::2"] }));
    with(&limited, &[mapping(8080, 80)]).add(&web);
    // A container's own list takes the place of the network's.
    let own =
        with(&limited, &[mapping(8081, 80)]).with(&json!({ "args": { "weft": { "sources": STRANGER } } }));
    own.add(&second);
    let (one, two) = (Mirror::on(&web, 80), Mirror::on(&second, 80));
    for (at, peer) in Outside::HOST.map(addr).into_iter().zip(Outside::PEER) {
        assert_eq!(one.seen(&outside, (at, 8080)), Some(addr(peer)));
        assert!(two.is_closed_to(&outside, (at, 8081)), "{peer} is none of the container's own list");
    }
    outside.inside(|| speak_as(STRANGER));
    for (at, stranger) in Outside::HOST.map(addr).into_iter().zip(STRANGER) {
        assert!(one.is_closed_to(&outside, (at, 8080)), "{stranger} is not served");
        assert_eq!(two.seen(&outside, (at, 8081)), Some(addr(stranger)));
    }
    outside.inside(|| speak_as(Outside::PEER));
    for at in Outside::HOST.map(addr) {
        assert!(one.seen(&outside, (at, 8080)).is_some(), "it was the address");
    }
}

/// A prefix within another one adds nothing, nor does one that is there twice.
#[test]
fn prefixes_may_cover_each_other() {
    let host = Host::new();
    let outside = host.outside();
    outside.inside(second_addresses);
    let sources = json!([
        "10.0.0.0/8", "10.1.0.0/16", "198.51.100.2", "198.51.100.2/32", "fd00::/8", "fd00:1::/32",
        "2001:db8:ffff::2", "2001:db8:ffff::2/128",
    ]);
    for keys in [json!({ "sources": sources }), json!({ "args": { "weft": { "sources": sources } } })] {
        let web = Pod::new();
        let limited = with(&network().with(&keys), &[mapping(8080, 80)]);
        let result = limited.add(&web);
        limited.check(&web, &result).done();
        let mirror = Mirror::on(&web, 80);
        for (own, is_named) in [(Outside::PEER, true), (STRANGER, false)] {
            outside.inside(|| speak_as(own));
            for at in Outside::HOST.map(addr) {
                match is_named {
                    true => assert!(mirror.seen(&outside, (at, 8080)).is_some(), "{own:?} at {at}, {keys}"),
                    false => assert!(mirror.is_closed_to(&outside, (at, 8080)), "{own:?} at {at}, {keys}"),
                }
            }
        }
        limited.del(&web);
    }
}

#[test]
fn a_neighbour_is_served_where_it_is_named() {
    let host = Host::new();
    let outside = host.outside();
    let (web, second, neighbour) = (Pod::new(), Pod::new(), Pod::new());
    let named = ips(&network().add(&neighbour));
    let limited = |sources: &[IpAddr]| network().with(&json!({ "sources": sources }));
    let others = Outside::PEER.map(addr);
    let own = ips(&with(&limited(&others), &[mapping(8080, 80)]).add(&web));
    with(&limited(&named), &[mapping(8081, 80)]).add(&second);
    let (one, two) = (Mirror::on(&web, 80), Mirror::on(&second, 80));
    for (family, gateway) in ["10.88.0.1", "fd00:88::1"].map(addr).into_iter().enumerate() {
        for at in [addr(Outside::HOST[family]), gateway] {
            assert!(one.is_closed_to(&neighbour, (at, 8080)), "the neighbour is not named, at {at}");
            assert!(two.seen(&neighbour, (at, 8081)).is_some(), "the neighbour is named, at {at}");
        }
        let at = addr(Outside::HOST[family]);
        assert!(one.seen(&outside, (at, 8080)).is_some(), "the outside is named, at {at}");
        assert!(two.is_closed_to(&outside, (at, 8081)), "the outside is not named, at {at}");
        // It is about ports of the host: within their network they talk as before.
        assert!(one.seen(&neighbour, (own[family], 80)).is_some(), "to {}", own[family]);
    }
}

/// Somebody outside who routes to the network by this host asks the container itself.
#[test]
fn who_asks_the_container_itself_is_held_to_the_same() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        outside.inside(second_addresses);
        let (web, neighbour) = (Pod::new(), Pod::new());
        network().add(&neighbour);
        let several: Vec<Value> = (8000..8100).map(|port| mapping(port, port)).collect();
        // One port twice, one next to it, many.
        let mappings = [vec![mapping(9080, 80), mapping(9081, 80), mapping(9082, 81)], several].concat();
        let limited = network().with(&json!({ "sources": Outside::PEER }));
        let result = with(&limited, &mappings).add(&web);
        let published = [80, 81, 8000, 8099].map(|port| Mirror::on(&web, port));
        let unpublished = Mirror::on(&web, 82);
        for (family, own) in ips(&result).into_iter().enumerate() {
            let route = |source: &str| {
                let (prefix, at) = (["10.88.0.0/24", "fd00:88::/64"][family], Outside::HOST[family]);
                outside.inside(|| command(&format!("ip route replace {prefix} via {at} src {source}")));
            };
            for (source, is_named) in [(Outside::PEER[family], true), (STRANGER[family], false)] {
                route(source);
                let what = format!("{source} asks itself, br_netfilter: {br_netfilter}");
                for mirror in &published {
                    assert_way(is_named, mirror, &outside, own, &what);
                    assert_way(true, mirror, &neighbour, own, "within the network");
                }
                assert_way(true, &unpublished, &outside, own, "a port that is not published");
            }
        }
        with(&limited, &mappings).check(&web, &result).done();
        with(&limited, &mappings).del(&web);
        assert!(!host.ruleset().contains("8000-8099"), "nothing of it is left");
    }
}

#[test]
fn datagrams_of_others_do_not_arrive() {
    let host = Host::new();
    let outside = host.outside();
    outside.inside(second_addresses);
    let (server, neighbour) = (Pod::new(), Pod::new());
    let own = ips(&network().add(&neighbour));
    let udp = json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" });
    with(&network().with(&json!({ "sources": Outside::PEER })), &[udp]).add(&server);
    let socket = server.there(|| UdpSocket::bind("[::]:53").expect("a socket"));
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    for (family, at) in Outside::HOST.map(addr).into_iter().enumerate() {
        let named = outside.udp(addr(Outside::PEER[family]));
        let stranger = outside.udp(addr(STRANGER[family]));
        let inside = neighbour.there(|| UdpSocket::bind((own[family], 0)).expect("a socket"));
        // What is sent first would arrive first.
        for client in [&stranger, &inside] {
            client.send_to(b"no", (at, 5353)).expect("send");
        }
        named.send_to(b"yes", (at, 5353)).expect("send");
        let mut buffer = [0; 8];
        let (length, from) =
            eventually(PATIENCE, "a datagram arrives", || socket.recv_from(&mut buffer).ok());
        assert_eq!(&buffer[..length], b"yes", "from {from}");
        assert_eq!(from.ip().to_canonical(), addr(Outside::PEER[family]));
        // Not later either: it only gets what it was sent since.
        named.send_to(b"again", (at, 5353)).expect("send");
        let (length, _) = socket.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..length], b"again");
    }
}
