//! A host that others reach by an address that none of its interfaces has, as in a cloud or behind NAT. flanneld says nothing of who
//! has it, but its subnet.env names the record.

use serde_json::json;
use weft_tests::{Flanneld, Weftd, eventually};

use super::{Fleet, PATIENCE, V4};

const PUBLIC: &str = "198.51.100.7";

#[test]
fn a_host_with_a_public_ip_changes_over_and_back() {
    let fleet = Fleet::new(V4);
    let node = fleet.node(0);
    let weft =
        |index| Weftd::start(fleet.node(index), &fleet.etcd, &json!({ "name": "cbr0", "publicIP": PUBLIC }));
    let mut known = None;
    for _ in 0..2 {
        let flanneld =
            Flanneld::start(node, &fleet.etcd, Flanneld::PREFIX, &[&format!("--public-ip={PUBLIC}")]);
        flanneld.ready();
        let own = fleet.subnets();
        assert_eq!(*known.get_or_insert_with(|| own.clone()), own);
        flanneld.stop();
        node.command("ip link delete flannel.1");
        // Whoever cannot show that it has the record does not get it by the address alone.
        let stranger = weft(1);
        eventually(PATIENCE, "the stranger is refused", || {
            let answer = stranger.ask("/readyz")?;
            (answer.status == 503 && answer.body.contains("is that of another host")).then_some(())
        });
        let weftd = weft(0);
        weftd.ready();
        assert_eq!(fleet.subnets(), own);
        assert!(fleet.etcd.get(&own[0]).is_some_and(|record| record.contains(PUBLIC)));
        weftd.daemon().stop();
        node.command("ip link delete weft.1");
        // As on a host that Weft never was on.
        std::fs::remove_dir_all(node.data_dir()).expect("forget the lease");
        fleet.etcd.del(&format!("{}/weft/hosts/{PUBLIC}", Weftd::PREFIX));
    }
}
