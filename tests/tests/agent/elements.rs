//! What somebody takes out of a set of the rules that stays.

use std::collections::{BTreeMap, BTreeSet};

use super::layouts::{Attached, attach};
use super::*;

/// The elements of all sets and maps, by what the `nft` command calls these.
fn sets(node: &Node) -> BTreeMap<String, BTreeSet<String>> {
    let ruleset: Value = serde_json::from_str(&node.command("nft -j list ruleset")).expect("JSON of nft");
    let objects = ruleset["nftables"].as_array().expect("objects");
    let kinds =
        ["set", "map"].map(|kind| objects.iter().filter_map(move |object| Some((kind, object.get(kind)?))));
    let all = kinds.into_iter().flatten().map(|(kind, set)| {
        let text = |key: &str| set[key].as_str().expect("a text").to_owned();
        let elements = set["elem"].as_array().into_iter().flatten().map(Value::to_string);
        (format!("{kind} {} weft {}", text("family"), text("name")), elements.collect())
    });
    all.collect()
}

/// How often rules were put back, if ever.
fn heals(agent: &Weftd) -> Option<f64> {
    agent.metric(r#"weft_heals_total{network="",object="rules"}"#).filter(|heals| *heals > 0.0)
}

fn check((pod, network, result): &Attached, node: &Node) -> bool {
    network.check_call(pod, result).on(node).run().succeeded()
}

#[test]
fn elements_come_back() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let attached = attach(|network, pod| network.add_call(pod).on(node).run().result());
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let made = sets(node);
    let mut of_features: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for set in made.iter().filter(|(_, elements)| !elements.is_empty()).map(|(set, _)| set) {
        let name = set.rsplit(' ').next().expect("a name");
        let feature = name.split('-').next().expect("a feature");
        of_features.entry(feature).or_default().push(format!("flush {set};"));
    }
    assert!(of_features.values().flatten().count() >= 20, "{of_features:?}");
    for (feature, flush) in of_features {
        node.command(&format!("nft {}", flush.concat()));
        eventually(REPAIR, feature, || (sets(node) == made).then_some(()));
    }
    let one_by_one =
        ["inet weft hostport-v4 { tcp . 8080 }", "inet weft inside-v4 { 10.88.0.0/24 . 10.88.0.0/24 }"];
    for element in one_by_one {
        node.command(&format!("nft delete element {element}"));
        eventually(REPAIR, element, || (sets(node) == made).then_some(()));
    }
    node.command(
        "nft delete element inet weft hostport-v4 { tcp . 8080 }; add element inet weft hostport-v4 { tcp . 8080 : 10.88.0.99 . 99 }",
    );
    eventually(REPAIR, "where a port leads to", || (sets(node) == made).then_some(()));
    assert!(attached.iter().all(|attached| check(attached, node)));

    // With nobody there to see it.
    assert!(agent.daemon().stop().success());
    node.command("nft delete element inet weft hostport-v4 { tcp . 8080 }");
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    eventually(REPAIR, "it looks when it starts", || (sets(node) == made).then_some(()));
    eventually(REPAIR, "once", || (heals(&agent) == Some(1.0)).then_some(()));
}

/// What the agent knows of the network covers what its containers have on file.
#[test]
fn a_network_of_hosts_is_whole_with_a_container_that_knows_its_hosts_subnet_alone() {
    let mut fleet = Fleet::new(1);
    let network = Network::leased(fleet.node(0), "weft");
    let (_pod, _) = fleet.node(0).attach(&network);
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let made = sets(node);
    node.command("nft flush set bridge weft guard-v4");
    eventually(REPAIR, "the guard", || (sets(node) == made).then_some(()));
    eventually(REPAIR, "it is counted", || heals(agent));
    assert_eq!(heals(agent), Some(1.0), "{}", agent.daemon().log());
}

#[test]
fn what_a_del_takes_out_stays_out() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let before = heals(&agent);
    let [(web, of_web, _), stays] = attach(|network, pod| network.add_call(pod).on(node).run().result());
    of_web.call("DEL").pod(&web).on(node).run().done();
    let left = sets(node);
    // What comes later has been looked at when it is back.
    node.command("nft delete element inet weft hostport-v4 { tcp . 9080 }");
    eventually(REPAIR, "the other's port", || (sets(node) == left).then_some(()));
    assert!(check(&stays, node));
    eventually(REPAIR, "once", || (heals(&agent) == Some(before.unwrap_or_default() + 1.0)).then_some(()));
}

/// What a network says is what its last container came with, whoever's elements are put back.
#[test]
fn one_of_before_a_change_brings_back_its_own_elements_alone() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let before = Network::dual().with(&json!({ "icc": false, "runtimeConfig": { "portMappings": [port] } }));
    let (_first, _) = node.attach(&before);
    let (_second, _) = node.attach(&Network::dual());
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let made = sets(node);
    node.command("nft delete element inet weft hostport-v4 { tcp . 8080 }");
    eventually(REPAIR, "the port", || heals(&agent));
    assert_eq!(sets(node), made, "and nothing else");
}
