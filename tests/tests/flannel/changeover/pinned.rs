//! A subnet that somebody has pinned for the host. flanneld (v0.28) puts the record under a lease of its own, so that it is pinned no
//! more, and says nothing of who has its address.

use serde_json::json;
use weft_tests::{Flanneld, Weftd};

use super::{Fleet, V4};
use crate::flannel::peers::SUBNETS;

/// What Weft has said of the address still stands while flanneld has it, and when Weft comes back. No lease is left behind.
#[test]
fn a_host_with_a_pinned_subnet_changes_over_and_back() {
    let fleet = Fleet::new(V4);
    let node = fleet.node(0);
    let key = format!("{SUBNETS}10.240.7.0-24");
    let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:0b"}"#;
    let address = node.ipv4;
    let value =
        format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#);
    fleet.etcd.put(&key, value);
    let weft = |hanging: &[&str]| {
        let weftd = Weftd::start(node, &fleet.etcd, &json!({ "name": "cbr0" }));
        weftd.ready();
        let own = fleet.etcd.get(&key).expect("the pinned record");
        let keys: Vec<_> = fleet.etcd.leases().into_iter().map(|lease| lease.keys).collect();
        assert_eq!(keys, [hanging]);
        weftd.daemon().stop();
        node.command("ip link delete weft.1");
        own
    };
    let host = format!("{}/weft/hosts/{address}", Weftd::PREFIX);
    let own = weft(&[&host]);
    let flanneld = Flanneld::up(node, &fleet.etcd);
    assert_eq!(fleet.subnets(), [&*key]);
    assert_ne!(fleet.etcd.get(&key).as_ref(), Some(&own), "the device is flanneld's");
    flanneld.stop();
    node.command("ip link delete flannel.1");
    assert_eq!(weft(&[&key, &host]), own);
    assert_eq!(fleet.subnets(), [&*key]);
}
