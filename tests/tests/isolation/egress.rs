//! `egress`: where containers may go, by the address that they ask for and by where that leads.

use std::net::IpAddr;

use serde_json::json;
use weft_tests::{Host, Mirror, Network, Outside, Pod, assert_way, ips};

use crate::{PORT, one, other};

/// Addresses that only a rule of the host's administrator leads anywhere.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd00:88::1"];

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

/// The network with a port of the host for its container.
fn publish(network: Network, port: u16) -> Network {
    let mapping = json!({ "hostPort": port, "containerPort": port, "protocol": "tcp" });
    network.with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }))
}

#[test]
fn containers_go_where_egress_allows() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        let client = Pod::new();
        let way_out = Mirror::on(&outside, PORT);
        let [v4, v6] = Outside::PEER.map(|peer| peer.parse::<IpAddr>().expect("an address"));
        let everywhere = ["0.0.0.0/0", "::/0"];
        for (egress, v4_passes, v6_passes) in [
            (json!({}), true, true),
            (json!({ "deny": [v4] }), false, true),
            (json!({ "deny": everywhere }), false, false),
            (json!({ "allow": [v6] }), false, true),
            (json!({ "allow": [] }), false, false),
            (json!({ "allow": everywhere, "deny": [v6, format!("{v6}/64")] }), true, false),
        ] {
            let network = one().with(&json!({ "egress": egress, "ipMasq": true }));
            network.add(&client);
            for (peer, passes) in [(v4, v4_passes), (v6, v6_passes)] {
                assert_way(passes, &way_out, &client, peer, &egress.to_string());
            }
            network.del(&client);
        }
    }
}

/// A metadata proxy on another machine, on the host and in a container of the same network.
#[test]
fn what_is_denied_is_denied_also_where_the_host_leads_it_elsewhere() {
    let [out, here, within] = [80, 81, 82];
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        let (client, server) = (Pod::new(), Pod::new());
        let network = |deny: &[&str]| one().with(&json!({ "egress": { "deny": deny }, "ipMasq": true }));
        let inside = ips(&network(&[]).add(&server));
        let mirrors =
            [Mirror::on(&outside, out), Mirror::on(host.netns(), here), Mirror::on(&server, within)];
        let led = |at: usize, ip: &str| {
            let (address, peer, own) = (METADATA[at], Outside::PEER[at], inside[at]);
            format!(
                "{ip} daddr {address} tcp dport {out} dnat {ip} to {peer}
                 {ip} daddr {address} tcp dport {here} redirect
                 {ip} daddr {address} tcp dport {within} dnat {ip} to {own}\n"
            )
        };
        host.nft(&format!(
            "table inet proxy {{
                 chain to {{ type nat hook prerouting priority dstnat\n {} {} }}
                 chain from {{ type nat hook postrouting priority srcnat\n ct status dnat masquerade\n }}
             }}\n",
            led(0, "ip"),
            led(1, "ip6")
        ));
        for is_denied in [true, false] {
            let network = network(if is_denied { &METADATA } else { &[] });
            network.add(&client);
            for (mirror, where_to) in mirrors.iter().zip(["outside", "the host", "a container inside"]) {
                for at in addresses(METADATA) {
                    let what = format!("denied: {is_denied}, {where_to}, br_netfilter: {br_netfilter}");
                    assert_way(!is_denied, mirror, &client, at, &what);
                }
            }
            network.del(&client);
        }
    }
}

/// Its services, and ports of it that lead to containers of the same and of another network.
#[test]
fn the_hosts_addresses_can_be_denied() {
    let [own_port, others_port] = [8080, 8081];
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let _outside = host.outside();
        let (client, server, stranger) = (Pod::new(), Pod::new(), Pod::new());
        let network = |deny: &[&str]| one().with(&json!({ "egress": { "deny": deny } }));
        let own = ips(&publish(network(&[]), own_port).add(&server));
        publish(other("weft1"), others_port).add(&stranger);
        let inside = Mirror::on(&server, own_port);
        let mirrors = [&Mirror::on(host.netns(), PORT), &inside, &Mirror::on(&stranger, others_port)];
        for denied in [&Outside::HOST, &GATEWAYS] {
            let network = network(denied);
            network.add(&client);
            for at in [Outside::HOST, GATEWAYS] {
                for (mirror, service) in mirrors.iter().zip(["the host's", "an own", "another network's"]) {
                    let what = format!("denied: {denied:?}, {service} port, br_netfilter: {br_netfilter}");
                    for to in addresses(at) {
                        assert_way(*denied != at, mirror, &client, to, &what);
                    }
                }
            }
            for address in &own {
                assert_way(true, &inside, &client, *address, "within the network");
            }
            // Reachability is no service.
            client.assert_reaches(addresses(*denied)[0]);
            network.del(&client);
        }
    }
}

#[test]
fn a_port_of_another_network_is_allowed_by_the_hosts_address_or_by_where_it_leads() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let _outside = host.outside();
        let (client, server) = (Pod::new(), Pod::new());
        publish(other("weft1"), PORT).add(&server);
        let mirror = Mirror::on(&server, PORT);
        for (says, by_host, by_gateway) in [
            (json!({ "egress": { "allow": Outside::HOST } }), true, false),
            (json!({ "egress": { "allow": ["10.99.0.0/24", "fd00:99::/64"] } }), true, true),
            (
                json!({ "egress": { "allow": ["10.99.0.0/24", "fd00:99::/64"], "deny": Outside::HOST } }),
                false,
                true,
            ),
            (
                json!({ "egress": { "allow": Outside::HOST, "deny": ["10.99.0.0/24", "fd00:99::/64"] } }),
                false,
                false,
            ),
            (json!({ "egress": { "allow": [] } }), false, false),
            (json!({ "internal": true }), false, false),
            (json!({}), true, true),
        ] {
            let network = one().with(&says);
            network.add(&client);
            let what = format!("{says}, br_netfilter: {br_netfilter}");
            for (places, is_open) in [(Outside::HOST, by_host), (GATEWAYS, by_gateway)] {
                for at in addresses(places) {
                    assert_way(is_open, &mirror, &client, at, &what);
                }
            }
            network.del(&client);
        }
    }
}
