//! A lease that has ended: other hosts have dropped this one, and its subnet may be another host's.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::eventually;

use super::super::{Fleet, SUBNETS, V4, addresses};

/// As after a boot: where no container lives in the subnet, another one will do, and etcd is to say which.
#[test]
fn after_it_a_host_without_containers_waits_for_etcd() {
    let fleet = Fleet::new(1, V4);
    let short = json!({ "timeout": 4, "ipam": { "leaseTTL": 2, "peerRefresh": 0 } });
    let first = fleet.ipam("ADD", 0, &short);
    first.clone().run().result();
    let (key, _) = fleet.record();
    let subnet = key.trim_end_matches("0-24");
    eventually(Duration::from_secs(15), "the lease ends", || fleet.keys().is_empty().then_some(()));
    let theirs = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}}"#;
    fleet.etcd.put(&format!("{SUBNETS}{key}"), theirs);
    fleet.etcd.stop();
    // A host with containers goes on: one more makes nothing worse.
    let second = fleet.ipam("ADD", 0, &short);
    assert!(addresses(&second.clone().run().result())[0].starts_with(subnet));
    for add in [first, second] {
        add.env("CNI_COMMAND", "DEL").run().done();
    }
    // The first one notes that it has asked, and the next one is not let through for that.
    for _ in 0..2 {
        fleet.fails(0, &short, 11).assert_names(&["refuses the connection"]);
        fleet.ipam("STATUS", 0, &short).run().error_code(51).assert_names(&[&key, "has ended"]);
    }
    fleet.etcd.restart();
    fleet.ipam("STATUS", 0, &short).run().done();
    let address = addresses(&fleet.add(0, &short).result()).remove(0);
    assert!(!address.starts_with(subnet), "{address} {key}");
    fleet.ipam("STATUS", 0, &short).run().done();
    assert_eq!(fleet.etcd.get(&format!("{SUBNETS}{key}")).as_deref(), Some(theirs));
}

#[test]
fn a_lease_that_ended_is_told_and_taken_again() {
    let fleet = Fleet::new(1, V4);
    let short = json!({ "ipam": { "leaseTTL": 2, "peerRefresh": 0 } });
    fleet.add(0, &short).result();
    let (key, value) = fleet.record();
    eventually(Duration::from_secs(15), "the lease ends", || fleet.keys().is_empty().then_some(()));
    fleet.ipam("STATUS", 0, &short).run().error_code(51).assert_names(&[&key, "weftd"]);
    let longer = json!({ "ipam": { "leaseTTL": 60, "peerRefresh": 0 } });
    fleet.add(0, &longer).result();
    assert_eq!(fleet.record(), (key, value));
    fleet.ipam("STATUS", 0, &longer).run().done();
}

/// Its clock was ahead then, so that nobody knows how long the lease lasts.
#[test]
fn a_lease_renewed_at_a_time_to_come_is_renewed_again() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let file = fleet.node(0).data_dir().join("pods/lease.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON") };
    let now = read()["renewed"].as_u64().expect("a time");
    let put_ahead = || {
        let mut lease = read();
        lease["renewed"] = json!(now + 86_400);
        fs::write(&file, lease.to_string()).expect("put the lease ahead");
    };
    put_ahead();
    fleet.ipam("STATUS", 0, &json!({})).run().done();
    fleet.add(0, &json!({})).result();
    assert!(read()["renewed"].as_u64().is_some_and(|renewed| renewed < now + 3600), "{}", read());
    // Without containers another host may have the subnet.
    fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
    put_ahead();
    fleet.etcd.freeze();
    let short = json!({ "timeout": 4 });
    fleet.fails(0, &short, 11).assert_names(&["172.30.0.2:2379"]);
    fleet.ipam("STATUS", 0, &short).run().error_code(51).assert_names(&["has ended"]);
    fleet.etcd.thaw();
    fleet.add(0, &json!({})).result();
}
