//! firewalld's reload, and a flush of everything, where the agent runs: what Weft keeps apart or lets through is as before.

use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{ARP, BROADCAST, Frame, Wire, arp};
use weft_tests::{
    Cluster, Family, Firewalld, Mirror, Network, Node, Pod, Weftd, assert_way, eventually, ips,
};

/// How long a repair may take.
const REPAIR: Duration = Duration::from_secs(2);
const PORT: u16 = 80;
const GATEWAY: [u8; 4] = [10, 88, 0, 1];
const TABLES: [&str; 2] = ["inet weft", "bridge weft"];

/// Two networks of a host, the first with a port of the host.
struct Networks<'a> {
    node: &'a Node,
    outside: &'a Cluster,
    networks: [Network; 2],
    /// Two containers of the first, one of the second.
    web: (Pod, Value),
    neighbour: (Pod, Value),
    stranger: (Pod, Value),
    mirror: Mirror,
    way_out: Mirror,
}

impl<'a> Networks<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let node = cluster.node(0);
        let mapping = json!({ "hostPort": 8080, "containerPort": PORT, "protocol": "tcp" });
        let first = Network::dual().with(&json!({ "ipMasq": true }));
        let published = first.clone().with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
        let second = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
            .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }));
        let web = node.attach(&published);
        let (neighbour, stranger) = (node.attach(&first), node.attach(&second));
        let mirror = Mirror::on(&web.0, PORT);
        let way_out = Mirror::on(cluster.router().netns(), PORT);
        Self {
            node,
            outside: cluster,
            networks: [published, second],
            web,
            neighbour,
            stranger,
            mirror,
            way_out,
        }
    }

    /// Whether CHECK finds everything of both networks.
    fn are_whole(&self) -> bool {
        self.networks
            .iter()
            .zip([&self.web, &self.stranger])
            .all(|(network, (pod, result))| network.check_call(pod, result).on(self.node).run().succeeded())
    }

    /// Everything by what passes: masquerade, the host's port, isolation, the guard.
    fn assert_in_force(&self, what: &str) {
        for (of, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let host = family.address(self.node);
            for pod in [&self.web.0, &self.stranger.0] {
                let seen = self.way_out.seen(pod, (family.neighbour(1), PORT));
                assert_eq!(seen, Some(host), "masquerade {what}");
            }
            let outside = self.outside.router().netns();
            assert!(self.mirror.seen(outside, (host, 8080)).is_some(), "the port at {host} {what}");
            let own = ips(&self.web.1)[of];
            assert_way(true, &self.mirror, &self.neighbour.0, own, what);
            assert_way(false, &self.mirror, &self.stranger.0, own, what);
        }
        let (wire, mut seen) = (Wire::of(&self.neighbour.0), Wire::of(&self.web.0));
        let claim = |of: [u8; 4]| {
            let of = of.into();
            Frame::new(BROADCAST, wire.mac, ARP, &arp(1, (wire.mac, of), ([0; 6], of)))
        };
        let std::net::IpAddr::V4(own) = ips(&self.neighbour.1)[0] else { panic!("{}", self.neighbour.1) };
        let (honest, forged) = (claim(own.octets()), claim(GATEWAY));
        wire.send(&forged);
        wire.send(&honest);
        seen.wait_for(&honest, "a claim of its own address");
        assert!(!seen.has_seen(&forged), "the gateway's address is claimed {what}");
    }

    /// A table with the numbers that the kernel gave: not even deleted and made again it is the same.
    fn table(&self, table: &str) -> String {
        self.node.command(&format!("nft -a -s list table {table}"))
    }
}

#[test]
fn all_is_in_force_after_reloads_and_flushes() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let _firewalld = node.inside(Firewalld::new);
    node.command("firewall-cmd --permanent --zone=trusted --add-interface=weft0 --add-interface=weft1");
    node.command("firewall-cmd --reload");
    let networks = Networks::new(&cluster);
    networks.assert_in_force("at first");
    let firewalld = || networks.table("inet firewalld");
    for reload in ["firewall-cmd --reload", "firewall-cmd --complete-reload"] {
        let (theirs, ours) = (firewalld(), TABLES.map(|table| networks.table(table)));
        node.command(reload);
        assert_ne!(firewalld(), theirs, "{reload} makes firewalld's rules anew");
        assert_eq!(TABLES.map(|table| networks.table(table)), ours, "and touches none of Weft's");
        networks.assert_in_force(reload);
    }
    // After the last one firewalld has no rules either.
    for damage in ["nft delete table inet weft", "nft delete table bridge weft", "nft flush ruleset"] {
        node.command(damage);
        eventually(REPAIR, damage, || networks.are_whole().then_some(()));
        networks.assert_in_force(damage);
    }
}
