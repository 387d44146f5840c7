//! Whom a container sees as its client: the client itself, unless every client is masqueraded.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Outside, Place, Pod, ips};

use crate::{addr, mapping, network, with};

const GATEWAY: [&str; 2] = ["10.88.0.1", "fd00:88::1"];

/// Whom a container of this network sees as the client from outside, for IPv4 and IPv6.
fn clients_seen(network: &Network, outside: &Outside) -> [String; 2] {
    let web = Pod::new();
    let published = with(network, &[mapping(8080, 80)]);
    published.add(&web);
    let mirror = Mirror::on(&web, 80);
    let seen = Outside::HOST.map(|at| {
        let client = mirror.seen(outside, (addr(at), 8080));
        client.unwrap_or_else(|| panic!("the port at {at} answers")).to_string()
    });
    published.del(&web);
    seen
}

#[test]
fn with_masq_all_the_client_is_the_gateway() {
    let host = Host::new();
    let outside = host.outside();
    let all = network().with(&json!({ "masqAll": true }));
    assert_eq!(clients_seen(&network(), &outside), Outside::PEER);
    assert_eq!(clients_seen(&all, &outside), GATEWAY);
    // It was that container's alone.
    assert_eq!(clients_seen(&network(), &outside), Outside::PEER);
    // As with portmap, where nobody is to be masqueraded this says nothing.
    assert_eq!(clients_seen(&all.with(&json!({ "snat": false })), &outside), Outside::PEER);
}

/// A container without a default route could not answer a client that is not in its own subnet.
#[test]
fn a_family_without_a_default_route_sees_the_gateway() {
    let host = Host::new();
    let outside = host.outside();
    let without = |routes: Value| {
        network().with(&json!({ "isDefaultGateway": null, "isGateway": true, "routes": routes }))
    };
    let v4 = json!({ "dst": "0.0.0.0/0" });
    let v6 = json!({ "dst": "::/0" });
    assert_eq!(clients_seen(&without(json!([])), &outside), GATEWAY);
    assert_eq!(clients_seen(&without(json!([v4])), &outside), [Outside::PEER[0], GATEWAY[1]]);
    assert_eq!(clients_seen(&without(json!([v6])), &outside), [GATEWAY[0], Outside::PEER[1]]);
    assert_eq!(clients_seen(&without(json!([v4, v6])), &outside), Outside::PEER);
}

/// Whom a container sees where the client is one of another network: the gateway, if that network is masqueraded towards it.
#[test]
fn a_client_of_another_network_is_seen_as_its_network_says() {
    let host = Host::new();
    let _outside = host.outside();
    let web = Pod::new();
    with(&network(), &[mapping(8080, 80)]).add(&web);
    let mirror = Mirror::on(&web, 80);
    let other = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true }));
    let own_ways = json!({ "ipMasq": true, "noMasquerade": ["10.88.0.0/24", "fd00:88::/64"] });
    for (keys, is_kept) in [(json!({}), true), (json!({ "ipMasq": true }), false), (own_ways, true)] {
        let (client, other) = (Pod::new(), other.clone().with(&keys));
        let own = ips(&other.add(&client));
        for (at, (own, gateway)) in Outside::HOST.iter().zip(own.into_iter().zip(GATEWAY)) {
            let expected = if is_kept { own } else { addr(gateway) };
            assert_eq!(mirror.seen(&client, (addr(at), 8080)), Some(expected), "{keys}");
        }
        other.del(&client);
        other.gc(&[]);
    }
}

/// Whom a server sees as the sender of a datagram.
fn sender_seen(server: &UdpSocket, from: &Pod, target: (IpAddr, u16)) -> IpAddr {
    let any = if target.0.is_ipv4() { "0.0.0.0" } else { "::" };
    let client = from.there(|| UdpSocket::bind((any, 0)).expect("a socket"));
    client.send_to(b"hello", target).expect("send");
    let (_, seen) = server.recv_from(&mut [0; 8]).unwrap_or_else(|error| panic!("at {target:?}: {error}"));
    seen.ip().to_canonical()
}

/// Each container's clients are masqueraded as its network said when it came. Of clients that are answered directly, as
/// without `snat`, a datagram arrives.
#[test]
fn whom_a_neighbour_is_seen_as_is_for_snat_to_say() {
    let host = Host::new();
    let _outside = host.outside();
    let (neighbour, former, later) = (Pod::new(), Pod::new(), Pod::new());
    let own = ips(&network().add(&neighbour));
    let udp = |port: u16| json!({ "hostPort": port, "containerPort": 53, "protocol": "udp" });
    let with_snat = with(&network(), &[udp(5353)]);
    let without = with(&network().with(&json!({ "snat": false })), &[udp(5354)]);
    let server = |pod: &Pod| {
        let server = pod.inside(|| UdpSocket::bind("[::]:53").expect("a socket"));
        server.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
        server
    };
    with_snat.add(&former);
    without.add(&later);
    let (of_former, of_later) = (server(&former), server(&later));
    let assert_seen_itself = |when: &str| {
        for (at, own) in Outside::HOST.map(addr).into_iter().zip(&own) {
            assert_eq!(sender_seen(&of_later, &neighbour, (at, 5354)), *own, "at {at}, {when}");
        }
    };
    for (at, gateway) in Outside::HOST.map(addr).into_iter().zip(GATEWAY) {
        assert_eq!(sender_seen(&of_former, &neighbour, (at, 5353)), addr(gateway), "at {at}");
    }
    assert_seen_itself("while one of before is there");
    with_snat.del(&former);
    assert_seen_itself("when it is gone");
}
