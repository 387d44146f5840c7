//! What the agent puts back for interfaces of other plugins, behind which Weft came.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};

use weft_tests::Call;

use super::*;

/// All networks of the host are its own, and no other of Weft's holds anything of the rules.
#[test]
fn rules_of_a_chained_attachment_come_back() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let pod = Pod::new();
    let bridge = json!({
        "cniVersion": "1.1.0", "name": "chain", "type": "bridge", "bridge": "br0", "isGateway": true,
        "isDefaultGateway": true, "ipam": { "type": "host-local", "subnet": "10.97.0.0/24" },
    });
    let previous = Call::any("bridge", "ADD", bridge.to_string()).pod(&pod).on(node).run().result();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let network = Network::new("chain", &[]).previous(&previous).with(&json!({
        "bridge": null, "chained": true, "egress": { "deny": ["198.51.100.0/24"] },
        "runtimeConfig": { "portMappings": [mapping] },
    }));
    let result = network.add_call(&pod).on(node).run().result();
    let server = pod.inside(|| TcpListener::bind(("0.0.0.0", 80)).expect("a server"));
    let from_outside = SocketAddr::new(node.ipv4.into(), 8080);
    let serves = || {
        let client = TcpStream::connect_timeout(&from_outside, PATIENCE).expect("a connection from outside");
        let (served, _) = server.accept().expect("a client");
        drop(served);
        assert_eq!((&client).read(&mut [0]).expect("the end"), 0);
    };
    let check = || network.check_call(&pod, &result).on(node).run().succeeded();
    assert!(check());
    serves();
    for damage in [
        "nft flush ruleset",
        "nft delete table bridge weft",
        "nft delete table inet weft",
        "nft flush chain inet weft hostport-in",
        "nft flush chain bridge weft guard",
        "nft insert rule bridge weft guard accept",
    ] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
        serves();
    }
    let heals = || agent.metric(r#"weft_heals_total{network="",object="rules"}"#);
    eventually(REPAIR, "all are counted", || heals().filter(|heals| *heals >= 6.0));
}

/// Also where the agent says what is the network's: the ports of containers that are gone are nobody's.
#[test]
fn ports_that_are_gone_leave_the_rules_with_the_next_container() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let bridge = json!({
        "cniVersion": "1.1.0", "name": Weftd::NETWORK, "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": { "type": "host-local", "subnet": "10.97.0.0/24" },
    });
    for _ in 0..3 {
        let pod = Pod::new();
        let previous = Call::any("bridge", "ADD", bridge.to_string()).pod(&pod).on(node).run().result();
        let network = Network::new(Weftd::NETWORK, &[])
            .previous(&previous)
            .with(&json!({ "bridge": null, "chained": true, "icc": false }));
        let result = network.add_call(&pod).on(node).run().result();
        network.check_call(&pod, &result).on(node).run().done();
        let host_end = result["interfaces"][1]["name"].as_str().expect("the host end");
        let links = node.command("nft list set bridge weft private-links");
        assert!(links.contains(host_end) && links.matches("veth").count() == 1, "{links}");
        network.del_call(&pod).on(node).run().done();
        pod.command("ip link del eth0");
    }
}
