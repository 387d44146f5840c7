//! Whom a container sees as its client: the client itself, unless every client is masqueraded.

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Outside, Pod, ips};

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
