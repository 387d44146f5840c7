//! Whom others see, where the agent masquerades.

use weft_tests::{Mirror, NetNs};

use super::*;

const PORT: u16 = 8080;
/// Addresses of the machine outside of the network for which nobody's address is changed.
const EXEMPT: [&str; 2] = ["203.0.113.1", "2001:db8:77::1"];

#[test]
fn what_leaves_the_network_has_the_hosts_address_unless_it_is_exempt() {
    let exempt = json!(["203.0.113.0/24", "2001:db8:77::/48"]);
    let fleet = Fleet::of(2, DUAL, &json!({ "ipMasq": true, "noMasquerade": exempt }));
    fleet.acquainted();
    let (one, own) = fleet.pod_of_all(0);
    let (other, theirs) = fleet.pod_of_all(1);
    let (inside, outside) = (Mirror::on(&other, PORT), Mirror::on(&NetNs::current(), PORT));
    let node = fleet.node(0);
    for (index, family) in fleet.families.iter().enumerate() {
        let (flag, host) = (family.flag(), family.address(node));
        command(&format!("ip addr add {}/{} dev lo", EXEMPT[index], family.alone()));
        // An address that is not changed needs a way back.
        command(&format!("ip {flag} route add {} via {host}", family.subnet(node)));
        assert_eq!(outside.seen(&one, (family.neighbour(1), PORT)), Some(host));
        let exempt = EXEMPT[index].parse().expect("an address");
        assert_eq!(outside.seen(&one, (exempt, PORT)), Some(own[index]));
        assert_eq!(inside.seen(&one, (theirs[index], PORT)), Some(own[index]), "within the network");
    }
}

/// Whose record is read first is by chance: those from before know nothing of it. Once it has ended, nothing comes back of it.
#[test]
fn what_one_of_several_containers_has_masqueraded_comes_back() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let network = |masquerade: bool| Network::dual().with(&json!({ "ipMasq": masquerade }));
    let attached = [false, true].map(|masquerade| node.attach(&network(masquerade)));
    let (pod, result) = &attached[1];
    let check = || network(true).check_call(pod, result).on(node).run().succeeded();
    assert!(check());
    for damage in ["nft delete chain inet weft masq-dual", "nft flush set inet weft masq-dual-v4"] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
    }
    let (last, result) = node.attach(&network(false));
    node.command("nft flush ruleset");
    let is_back = || network(false).check_call(&last, &result).on(node).run().succeeded();
    eventually(REPAIR, "the rest is back", || is_back().then_some(()));
    assert!(!node.command("nft list ruleset").contains("masq"));
}

/// What a former configuration had masqueraded, by which some container may still leave: of its own, and of another network.
#[test]
fn masquerade_ends_with_the_configuration_that_asked_for_it() {
    let mut fleet = Fleet::of(1, CONFIG, &json!({ "ipMasq": true }));
    let agent = fleet.agents.remove(0);
    let node = fleet.node(0);
    // With the chain's number: one that was made anew has another.
    let chain = |network: &str| {
        let rules = node.command("nft -a list ruleset");
        let chain = format!("chain masq-{network} ");
        rules.lines().find(|line| line.contains(&chain)).map(str::to_owned)
    };
    let is_there = |network: &str| chain(network).is_some();
    let _other = node.attach(&Network::dual().with(&json!({ "ipMasq": true })));
    let network = fleet.network(0).with(&json!({ "ipMasq": true }));
    let (pod, _result) = node.attach(&network);
    agent.daemon().stop();
    let before = chain("pods");
    assert!(before.is_some() && is_there("dual"));
    Weftd::up(node, &fleet.etcd).daemon().stop();
    assert_eq!(chain("pods"), before, "a container has it");
    let record = node.command(&format!("find {} -path */pods/*/attachments/*", node.state_dir().display()));
    let record = record.trim();
    let content = fs::read(record).expect("the record of the container");
    fs::write(record, "{").expect("damage the record");
    Weftd::up(node, &fleet.etcd).daemon().stop();
    assert_eq!(chain("pods"), before, "nobody knows whether its container has it");
    fs::write(record, content).expect("put the record back");
    network.del_call(&pod).on(node).run().done();
    assert!(is_there("pods"), "it stays for the next container");
    Weftd::up(node, &fleet.etcd).daemon().stop();
    assert!(!is_there("pods") && is_there("dual"));
    let again = Weftd::start(node, &fleet.etcd, &json!({ "ipMasq": true }));
    again.ready();
    // An agent of other networks lets it be while this one lives.
    let other = json!({ "networks": [], "listen": "127.0.0.1:9455" });
    let refused = Weftd::with(node, &other);
    eventually(PATIENCE, "the other agent has begun", || {
        node.inside(|| std::net::TcpStream::connect("127.0.0.1:9455").ok())
    });
    assert!(is_there("pods"));
    refused.daemon().stop();
    again.daemon().stop();
    let none = Weftd::with(node, &json!({ "networks": [] }));
    none.ready();
    assert!(!is_there("pods") && is_there("dual"));
}
