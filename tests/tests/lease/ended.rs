//! A lease that has ended: other hosts have dropped this one, and its subnet may be another host's.

use serde_json::json;
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
    eventually(std::time::Duration::from_secs(15), "the lease ends", || {
        fleet.keys().is_empty().then_some(())
    });
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
