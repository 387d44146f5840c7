//! etcd has lost its data: hosts that live stay in the network.

use super::outage::{Pings, pair};
use super::*;

const KEY: &str = "/coreos.com/network/config";

/// Until what a host has seen of the empty store is on file.
fn noticed(fleet: &Fleet) {
    for node in fleet.cluster.nodes() {
        let file = node.data_dir().join(Weftd::NETWORK).join("peers.json");
        eventually(PATIENCE, "the loss is on file", || {
            let peers: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            // Its own record is not in the store, and the other's is kept.
            (peers["created"] == json!({}) && peers["records"] != json!({})).then_some(())
        });
    }
}

fn assert_leased_again(fleet: &Fleet, subnets: &[String]) {
    for (index, subnet) in subnets.iter().enumerate() {
        eventually(PATIENCE, &format!("{subnet} is leased again"), || {
            fleet.etcd.get(&format!("{SUBNETS}{subnet}"))
        });
        assert_eq!(super::subnet(fleet.node(index)), *subnet);
    }
    fleet.agents.iter().for_each(Weftd::ready);
    fleet.acquainted();
}

fn assert_all_answered(pings: Pings) {
    let (sent, received) = pings.end();
    assert!(sent > 0 && sent == received, "{received} of {sent}");
}

/// All data are lost: every host takes the subnet that it had.
#[test]
fn etcd_comes_back_empty() {
    let (fleet, (one, _), (_other, address)) = pair(&json!({}));
    let pings = Pings::start(&one, address);
    let subnets = [subnet(fleet.node(0)), subnet(fleet.node(1))];
    fleet.etcd.restart_empty();
    // The configuration is the operator's to restore.
    for agent in &fleet.agents {
        eventually(PATIENCE, "the agents ask for a configuration", || {
            agent.daemon().log().contains("etcdctl put").then_some(())
        });
    }
    fleet.etcd.put("/coreos.com/network/config", CONFIG);
    assert_leased_again(&fleet, &subnets);
    assert_all_answered(pings);
    assert_eq!(fleet.etcd.keys(SUBNETS).len(), 2);
}

/// Agents that end and begin again before anybody has put the configuration back know of the others still.
#[test]
fn agents_restart_before_the_configuration_is_back() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let subnets = [subnet(fleet.node(0)), subnet(fleet.node(1))];
    let pings = Pings::start(&one, address);
    fleet.etcd.restart_empty();
    noticed(&fleet);
    fleet.agents[0].daemon().kill();
    assert!(fleet.agents[1].daemon().stop().success());
    for index in [0, 1] {
        fleet.agents[index] = Weftd::start(fleet.node(index), &fleet.etcd, &json!({}));
    }
    for agent in &fleet.agents {
        eventually(PATIENCE, "the new agents have looked into etcd", || {
            agent.daemon().log().contains("etcdctl put").then_some(())
        });
    }
    let peers = r#"weft_peers{network="pods",state="valid"}"#;
    for agent in &fleet.agents {
        eventually(PATIENCE, "they lead to each other", || (agent.metric(peers)? > 0.5).then_some(()));
    }
    fleet.etcd.put(KEY, CONFIG);
    assert_leased_again(&fleet, &subnets);
    assert_all_answered(pings);
}

/// By the time that the agents look again others have written so much that the revision is not smaller.
fn others_write_first() -> (Fleet, [String; 2], Pings, [Pod; 2]) {
    let (fleet, (one, _), (other, address)) = pair(&json!({}));
    let subnets = [subnet(fleet.node(0)), subnet(fleet.node(1))];
    let pings = Pings::start(&one, address);
    fleet.agents.iter().for_each(|agent| agent.daemon().freeze());
    fleet.etcd.restart_empty();
    (0..20).for_each(|number| fleet.etcd.put("/of/others", number.to_string()));
    (fleet, subnets, pings, [one, other])
}

/// … and the configuration is there: who comes first does not find the other.
#[test]
fn others_have_written_and_the_configuration_is_back() {
    let (fleet, subnets, pings, _pods) = others_write_first();
    fleet.etcd.put(KEY, CONFIG);
    let [first, second] = [0, 1].map(|index| fleet.agents[index].daemon());
    first.thaw();
    eventually(PATIENCE, "the first one tells of the loss", || {
        first.log().contains("etcd has lost data").then_some(())
    });
    second.thaw();
    assert_leased_again(&fleet, &subnets);
    assert_all_answered(pings);
}

/// … and the configuration is not.
#[test]
fn others_have_written_and_the_configuration_is_away() {
    let (fleet, subnets, pings, _pods) = others_write_first();
    fleet.agents.iter().for_each(|agent| agent.daemon().thaw());
    noticed(&fleet);
    fleet.etcd.put(KEY, CONFIG);
    assert_leased_again(&fleet, &subnets);
    assert_all_answered(pings);
}

/// Somebody who deletes the records of all hosts takes none out of the network that lives.
#[test]
fn all_records_are_deleted() {
    let (fleet, (one, _), (_other, address)) = pair(&json!({}));
    let subnets = [subnet(fleet.node(0)), subnet(fleet.node(1))];
    let pings = Pings::start(&one, address);
    assert_eq!(fleet.etcd.ctl(&["del", "--prefix", SUBNETS]).trim(), "2");
    assert_leased_again(&fleet, &subnets);
    assert_all_answered(pings);
}
