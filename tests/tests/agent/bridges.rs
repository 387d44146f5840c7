//! What containers are attached by on the host, also where it shares no network.

use super::*;

/// Two containers on one host that its agent looks after.
struct Attached {
    agent: Weftd,
    pods: [(Network, Pod, Value); 2],
    cluster: Cluster,
}

impl Attached {
    /// What they ask for beyond addresses.
    fn new(changes: [Value; 2]) -> Self {
        let cluster = Cluster::new(1);
        let node = cluster.node(0);
        let agent = Weftd::with(node, &json!({ "networks": [] }));
        agent.ready();
        let pods = changes.map(|changes| {
            let network = Network::dual().with(&changes);
            let (pod, result) = node.attach(&network);
            (network, pod, result)
        });
        Self { agent, pods, cluster }
    }

    fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// The host end of the first one.
    fn port(&self) -> String {
        let name = self.pods[0].2["interfaces"][1]["name"].as_str();
        name.expect("the host end").to_owned()
    }

    /// Does damage, and sees it repaired: all is as it was, and traffic flows.
    fn survives(&self, damage: &str, object: &str) {
        let heals = || self.agent.metric(&format!(r#"weft_heals_total{{network="",object="{object}"}}"#));
        let before = heals().unwrap_or_default();
        self.node().command(damage);
        eventually(REPAIR, damage, || self.is_whole().then_some(()));
        let [(_, one, _), (_, _, of_other)] = &self.pods;
        for ip in ips(of_other) {
            one.assert_reaches(ip);
        }
        for gateway in of_other["ips"].as_array().expect("addresses") {
            one.assert_reaches(
                gateway["gateway"].as_str().expect("a gateway").parse::<IpAddr>().expect("an address"),
            );
        }
        eventually(REPAIR, "it is counted", || heals().filter(|now| *now > before));
    }

    fn is_whole(&self) -> bool {
        let check = |(network, pod, result): &(Network, Pod, Value)| {
            network.check_call(pod, result).on(self.node()).run()
        };
        self.pods.iter().all(|attached| check(attached).succeeded())
    }
}

#[test]
fn a_bridge_comes_back() {
    let attached = Attached::new([json!({ "ipMasq": true, "promiscMode": true }), json!({ "ipMasq": true })]);
    // The host gives new links no IPv6.
    attached.node().command("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    for damage in [
        "ip link delete weft0",
        "ip link set weft0 down",
        "ip link set weft0 promisc off",
        "ip address flush dev weft0 scope global",
        "ip address delete 10.88.0.1/24 dev weft0",
    ] {
        attached.survives(damage, "bridge");
    }
}

#[test]
fn a_port_comes_back() {
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1" });
    let attached = Attached::new([json!({ "runtimeConfig": { "portMappings": [mapping] } }), json!({})]);
    let (node, port) = (attached.node(), attached.port());
    node.command("ip link add other0 type bridge");
    for damage in ["nomaster", "master other0", "down", "type bridge_slave hairpin off isolated on"] {
        attached.survives(&format!("ip link set {port} {damage}"), "port");
    }
    // That is set for the bridge, as for all its ports.
    attached.survives("ip link delete weft0", "bridge");
}

/// An address that somebody gave the bridge instead is for CHECK to tell, and a bridge that nobody is on is nobody's.
#[test]
fn what_nobody_asks_for_stays_as_it_is() {
    let attached = Attached::new([json!({}), json!({})]);
    let node = attached.node();
    node.command("ip address add fd00:88::fe/64 dev weft0");
    node.command("ip address delete fd00:88::1/64 dev weft0");
    // It comes last.
    let later = Network::new("later", &["10.89.0.0/24"]).with(&json!({ "bridge": "zeft0" }));
    let (_pod, _) = node.attach(&later);
    let flushed = || {
        node.command("ip address flush dev zeft0");
        let addresses = || node.command("ip address show dev zeft0");
        eventually(REPAIR, "the other bridge", || addresses().contains("10.89.0.1/24").then_some(()));
    };
    flushed();
    let (network, pod, result) = &attached.pods[0];
    network.check_call(pod, result).on(node).run().error_code(105);
    assert!(!node.command("ip address show dev weft0").contains("fd00:88::1/64"));
    for (network, pod, _) in &attached.pods {
        network.call("DEL").pod(pod).on(node).run().done();
    }
    node.command("ip link delete weft0");
    flushed();
    assert_eq!(node.link("weft0"), None);
}
