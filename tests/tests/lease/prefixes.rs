//! A network's configuration that names another place in etcd than the one at which this host has its subnet.

use std::fs;

use serde_json::{Value, json};

use super::super::{Fleet, SUBNETS, V4, addresses};
use super::duplicates::{HOSTS, everything};

const OTHERS: &str = "/other/subnets/";

fn other() -> Value {
    json!({ "ipam": { "etcd": { "prefix": "/other" } } })
}

#[test]
fn another_prefix_is_refused_while_containers_live_and_gives_up_the_former_subnet_without() {
    let fleet = Fleet::new(1, V4);
    fleet.etcd.put("/other/config", r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan", "VNI": 2}}"#);
    let call = fleet.ipam("ADD", 0, &json!({}));
    let result = call.clone().run().result();
    let (key, _) = fleet.record();
    let file = fleet.node(0).data_dir().join("pods/lease.json");
    let before = (everything(&fleet), fs::read(&file).expect("a lease"));
    // What it was given is as it was.
    let asked = fleet.conf(&other()).with(&json!({ "prevResult": result }));
    call.clone().env("CNI_COMMAND", "CHECK").stdin(asked.conf.to_string()).run().done();
    let parts =
        ["/coreos.com/network", "/other", &key, "put the former prefix back", "remove these containers"];
    for is_away in [false, true] {
        if is_away {
            fleet.etcd.stop();
        }
        fleet.fails(0, &other(), 7).assert_names(&parts);
        fleet.ipam("STATUS", 0, &other()).run().error_code(50).assert_names(&parts);
    }
    fleet.etcd.restart();
    assert_eq!((everything(&fleet), fs::read(&file).expect("a lease")), before);
    assert!(fleet.etcd.keys(OTHERS).is_empty());
    fleet.add(0, &json!({})).result();

    fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
    fleet.ipam("STATUS", 0, &other()).run().done();
    let result = fleet.add(0, &other()).result();
    assert!(!addresses(&result)[0].starts_with("10.24"), "{result}");
    assert!(fleet.etcd.keys(SUBNETS).is_empty() && fleet.etcd.keys(HOSTS).is_empty());
    assert_eq!((fleet.etcd.keys(OTHERS).len(), fleet.etcd.leases().len()), (1, 1));
    // What somebody has pinned is theirs, and what etcd does not say of the former place keeps nobody from the other.
    let back = fleet.etcd.keys(OTHERS).remove(0);
    let value = fleet.etcd.get(&back).expect("the record");
    fleet.etcd.put(&back, value);
    let due = json!({ "ipam": { "peerRefresh": 0, "etcd": { "prefix": "/other" } } });
    fleet.add(0, &due).result();
    fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
    fleet.add(0, &json!({})).result();
    assert_eq!(fleet.etcd.keys(OTHERS), [back]);
}
