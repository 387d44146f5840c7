//! Two networks of one host with the same place in etcd, which would have one subnet.

use std::fs;

use serde_json::{Value, json};
use weft_tests::{Etcd, Running};

use super::super::{CONFIG, DUAL, Fleet, PREFIX, SUBNETS, V4, V6, addresses};

/// The second network's configuration.
fn other() -> Value {
    json!({ "name": "other", "ipam": { "peerRefresh": 0 } })
}

#[test]
fn the_second_network_at_one_place_in_etcd_is_refused() {
    for config in [V4, V6, DUAL] {
        let fleet = Fleet::new(2, config);
        let first = addresses(&fleet.add(0, &json!({})).result());
        let (key, _) = fleet.record();
        let dir = fleet.node(0).data_dir().join("pods");
        let revision = fleet.etcd.revision();
        let parts =
            ["network pods", PREFIX, &key, "ipam.etcd.prefix", dir.to_str().expect("a path"), "remove"];
        for _ in 0..2 {
            fleet.fails(0, &other(), 103).assert_names(&parts);
            fleet.ipam("STATUS", 0, &other()).run().error_code(50).assert_names(&parts);
        }
        assert_eq!(fleet.etcd.revision(), revision, "nothing was written");
        // It is no other network on another host, and none of its own is refused.
        fleet.add(1, &other()).result();
        fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
        fleet.ipam("STATUS", 0, &json!({})).run().done();
        // Renamed, say: what is said to do helps.
        fs::remove_dir_all(&dir).expect("forget the first network");
        assert_eq!(addresses(&fleet.add(0, &other()).result()), first);
        assert!(fleet.keys().contains(&key));
        fleet.fails(0, &json!({}), 103).assert_names(&["network other", &key]);
    }
}

/// What has another network's lease on file is another etcd, a copy of another host's disk, or of former times.
#[test]
fn a_network_that_has_no_part_in_this_etcd_is_nobodys_loss() {
    let config = r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.241.7.0", "SubnetMax": "10.241.7.0", "Backend": {"Type": "vxlan"}}"#;
    let fleet = Fleet::new(2, config);
    fleet.add(0, &json!({})).result();
    let etcd = fleet.node(0).inside(Etcd::new);
    etcd.put(CONFIG, config);
    let mut elsewhere = other();
    elsewhere["ipam"]["etcd"] = json!({ "endpoints": etcd.endpoints() });
    fleet.add(0, &elsewhere).result();
    assert_eq!(etcd.keys(SUBNETS), fleet.etcd.keys(SUBNETS), "there is one subnet");
    let [from, to] = [0, 1].map(|node| fleet.node(node).data_dir().join("pods"));
    fs::create_dir_all(&to).expect("make a directory");
    fs::copy(from.join("lease.json"), to.join("lease.json")).expect("clone a disk");
    fleet.fails(1, &other(), 104);
    fleet.etcd.revoke(&fleet.etcd.leases()[0].id);
    fs::remove_dir_all(fleet.node(0).data_dir().join("other")).expect("forget the second network");
    fleet.add(0, &other()).result();
}

/// Neither has been there before the other.
#[test]
fn two_networks_at_one_place_that_start_at_once() {
    let fleet = Fleet::new(1, V4);
    for round in 0..10 {
        let running = [json!({}), other()].map(|changes| fleet.ipam("ADD", 0, &changes).start());
        let replies = running.map(Running::finish);
        let refused: Vec<_> = replies.iter().filter(|reply| !reply.succeeded()).collect();
        assert_eq!(refused.len(), 1, "round {round}");
        refused[0].error_code(103).assert_names(&["of this host", PREFIX]);
        fleet.etcd.revoke(&fleet.etcd.leases()[0].id);
        fs::remove_dir_all(fleet.node(0).directory()).expect("start anew");
    }
}

/// Whatever their places are. The first one goes on; when it is gone, or has other addresses, the second one has its turn.
#[test]
fn a_network_with_addresses_of_another_one_gets_no_subnet() {
    let fleet = Fleet::new(1, DUAL);
    fleet.add(0, &json!({})).result();
    let second = json!({ "name": "other", "ipam": { "peerRefresh": 0, "etcd": { "prefix": "/other" } } });
    let dir = fleet.node(0).data_dir().join("pods");
    let wide = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
    for (config, own, theirs) in [
        (
            r#"{"Network": "10.244.128.0/17", "Backend": {"Type": "host-gw"}}"#,
            "10.244.128.0/17",
            "10.244.0.0/16",
        ),
        (wide, "fd00::/16", "fd00:42::/48"),
    ] {
        fleet.etcd.put("/other/config", config);
        let parts =
            [own, theirs, "network pods", PREFIX, "/other", dir.to_str().expect("a path"), "weftctl leave"];
        fleet.fails(0, &second, 103).assert_names(&parts);
        fleet.ipam("STATUS", 0, &second).run().error_code(50).assert_names(&parts);
        assert!(fleet.etcd.keys("/other/subnets/").is_empty());
    }
    fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
    fleet.etcd.put("/other/config", V4.replace("10.240.0.0/12", "10.96.0.0/12"));
    fleet.add(0, &second).result();
    // Whoever has a subnet keeps it.
    fleet.etcd.put("/other/config", V4.replace("10.240.0.0/12", "10.0.0.0/8"));
    fleet.add(0, &second).result();
    fs::remove_dir_all(fleet.node(0).data_dir().join("other")).expect("forget the second network");
    fleet.fails(0, &second, 103);
    fs::remove_dir_all(&dir).expect("forget the first network");
    fleet.add(0, &second).result();
}
