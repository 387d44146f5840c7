//! Directories that both configurations name, the agent's and the network's, and no environment does.

use std::process::Command;

use weft_tests::{dist, merge};

use super::*;

/// The agent and `weftctl leave` count the containers whose reservations are there.
#[test]
fn reservations_are_in_the_state_directory_of_both_configurations() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let node = cluster.node(0);
    let named = |name: &str| node.directory().join("named").join(name);
    let directories = json!({ "stateDir": named("run"), "dataDir": named("lib") });
    let mut conf = json!({ "networks": [Weftd::conf(node, &etcd)] });
    merge(&mut conf, &directories);
    let agent = Weftd::with(node, &conf);
    agent.ready();

    let (network, pod) = (Weftd::network(&etcd).with(&directories), Pod::new());
    let plain = |call: Call| call.on(node).unset("WEFT_STATE_DIR").unset("WEFT_DATA_DIR");
    let result = plain(network.add_call(&pod)).run().result();
    let used = r#"weft_addresses{network="pods",family="ipv4",state="used"}"#;
    eventually(REPAIR, "the agent counts the address", || (agent.metric(used) == Some(1.0)).then_some(()));

    agent.daemon().stop();
    let weftctl = |words: &[&str]| {
        let mut command = Command::new(dist().join("weftctl"));
        command.arg("--config").arg(node.directory().join("weftd.json")).args(words);
        node.inside(|| command.output().expect("run weftctl"))
    };
    let refused = weftctl(&["leave"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let holder = format!("containers have addresses of it: {} ({})", pod.id, ips(&result)[0]);
    assert!(!refused.status.success() && said.contains(&holder), "{said}");
    plain(network.del_call(&pod)).run().done();
    let left = weftctl(&["leave"]);
    assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
    assert!(etcd.keys(SUBNETS).is_empty());
}
