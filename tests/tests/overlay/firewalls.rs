//! Firewalls of others between the bridge and the other hosts.

use serde_json::json;
use weft_tests::{Firewalld, Network, Node, Reply};

use crate::{DUAL, Fleet, V4};

const HOST_GW: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#;

fn status(network: &Network, node: &Node) -> Reply {
    network.call("STATUS").on(node).run()
}

/// Carries out what STATUS names, word by word: then it names nothing any more.
fn follow(network: &Network, node: &Node, words: &[&str]) {
    let error = status(network, node).error_code(51);
    error.assert_names(words);
    for line in error.msg.lines().chain(error.details.lines()) {
        if let Some((_, remedy)) = line.rsplit_once(" pass: ") {
            remedy.split(" && ").for_each(|line| drop(node.command(line)));
        }
    }
    status(network, node).done();
}

#[test]
fn a_policy_that_drops_what_hosts_send_each_other_is_told() {
    for (config, families) in [(DUAL, 2), (HOST_GW, 1)] {
        let fleet = Fleet::new(&[2], config);
        let pods = fleet.all_reach(families);
        let (node, [(near, near_addresses), (far, addresses)]) = (fleet.node(0), &pods[..]) else {
            panic!("two hosts")
        };
        status(&fleet.network, node).done();
        for program in ["iptables", "ip6tables"] {
            node.command(&format!("{program} -P FORWARD DROP"));
        }
        for address in addresses {
            assert!(!near.ping(*address).status.success(), "{address} is behind the firewall");
        }
        // What others than hosts need is let through, and those begin connections, too.
        for program in ["iptables", "ip6tables"] {
            node.command(&format!("{program} -A FORWARD -i weft0 -j ACCEPT"));
            node.command(&format!(
                "{program} -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
            ));
        }
        follow(&fleet.network, node, &["what other hosts' containers send", "iptables -I FORWARD"]);
        for (from, to) in [(near, addresses), (far, near_addresses)] {
            to.iter().for_each(|address| from.assert_reaches(*address));
        }
    }
}

/// Plain routes lead by the interface that has this host's address, wherever the default route leads; where a device is beside them, they
/// count when a host is reached by one.
#[test]
fn plain_routes_are_judged_by_the_interface_to_other_hosts() {
    let direct = V4.replace("\"vxlan\"", "\"vxlan\", \"DirectRouting\": true");
    for (config, segments, is_single, expected) in [
        (HOST_GW, &[2][..], false, true),
        (HOST_GW, &[2], true, true),
        (&direct, &[2], false, true),
        (&direct, &[1, 1], false, false),
    ] {
        let mut fleet = Fleet::new(segments, config);
        fleet.network = fleet.network.with(&json!({ "ipam": { "iface": "eth0" } }));
        if is_single {
            fleet.cluster.nodes().iter().for_each(Node::single_address);
        }
        fleet.all_reach(1);
        let node = fleet.node(0);
        let accepts = |interface: &str| {
            node.command(&format!("iptables -I FORWARD -i {interface} -o weft0 -j ACCEPT"));
        };
        node.command("iptables -P FORWARD DROP");
        node.command("iptables -A FORWARD -i weft0 -j ACCEPT");
        node.command("iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
        accepts("weft.1");
        // Somewhere else than the other hosts.
        node.command("ip link add mgmt0 up type bridge");
        node.command("ip addr add 198.18.0.1/24 dev mgmt0");
        node.command("ip route replace default via 198.18.0.2 dev mgmt0");
        accepts("mgmt0");
        let reply = status(&fleet.network, node);
        assert_eq!(reply.succeeded(), !expected, "{config} {}", reply.stderr);
        if expected {
            reply.error_code(51).assert_names(&["what other hosts' containers send"]);
            accepts("eth0");
            status(&fleet.network, node).done();
        }
    }
}

/// Its containers reach nobody else, whatever firewalls let pass.
#[test]
fn of_an_internal_network_only_what_hosts_send_each_other_is_told() {
    let mut fleet = Fleet::new(&[2], DUAL);
    fleet.network = fleet.network.with(&json!({ "internal": true }));
    let pods = fleet.all_reach(2);
    let node = fleet.node(0);
    for program in ["iptables", "ip6tables"] {
        node.command(&format!("{program} -P FORWARD DROP"));
    }
    for (program, device) in [("iptables", "weft.1"), ("ip6tables", "weft6.1")] {
        let insert = format!("{program} -I FORWARD");
        for (way, passes) in [
            ("what containers send to those of other hosts", format!("-i weft0 -o {device}")),
            ("what other hosts' containers send to those of this host", format!("-i {device} -o weft0")),
        ] {
            status(&fleet.network, node).error_code(51).assert_names(&[way, &insert]);
            node.command(&format!("{insert} {passes} -j ACCEPT"));
        }
    }
    status(&fleet.network, node).done();
    for (from, to) in [(0, 1), (1, 0)] {
        pods[to].1.iter().for_each(|address| pods[from].0.assert_reaches(*address));
    }
}

/// Its zones are for what comes by an interface: the device to the other hosts is one, too.
#[test]
fn firewalld_lets_other_hosts_begin_when_their_device_has_a_zone() {
    let fleet = Fleet::new(&[2], DUAL);
    let pods = fleet.all_reach(2);
    let node = fleet.node(0);
    let _firewalld = node.inside(Firewalld::new);
    // Between hosts is what docs/operations.md says.
    node.command("firewall-cmd --permanent --add-port=8472/udp");
    node.command("firewall-cmd --reload");
    follow(
        &fleet.network,
        node,
        &[
            "firewalld",
            "--zone=trusted --add-interface=weft0",
            "--add-interface=weft.1",
            "--add-interface=weft6.1",
        ],
    );
    for (from, to) in [(0, 1), (1, 0)] {
        pods[to].1.iter().for_each(|address| pods[from].0.assert_reaches(*address));
    }
}
