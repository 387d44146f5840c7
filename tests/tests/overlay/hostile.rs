//! Records that are no hosts, in networks of either family and both, where no agent reads them.

use weft_tests::records::{apart, of_a_host, of_none};

use super::*;

const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#;

/// The first ADD finds them there, and tells of each in one way or the other; the next one says nothing any more. Half a host is none.
#[test]
fn whatever_is_wrong_with_a_record_harms_nobody() {
    for (config, families) in
        [(V4, &[Family::V4][..]), (V6, &[Family::V6]), (DUAL, &[Family::V4, Family::V6])]
    {
        let fleet = Fleet::new(&[1], &apart(config));
        let node = fleet.node(0);
        let (good, bad) = (of_a_host(families), of_none(families));
        for (key, value) in bad.iter().chain([&good]) {
            fleet.etcd.put(&format!("{SUBNETS}{key}"), value);
        }
        let add = || {
            let pod = Pod::new();
            let reply = fleet.network.add_call(&pod).on(node).run();
            assert_eq!(ips(&reply.result()).len(), families.len());
            reply.stderr
        };
        let said = add();
        let named = said.matches(" is passed over: ").count();
        assert!(
            named > 0 && said.contains(&format!(": {} more records are passed over", bad.len() - named)),
            "{said}"
        );
        assert!(!add().contains("passed over"));
        for family in families {
            let device = family.device();
            let forwards = node.command(&format!("bridge fdb show dev {device}"));
            let to_good = format!("8e:00:00:00:00:99 dst {} ", family.neighbour(99));
            assert!(forwards.contains(&to_good) && forwards.matches(" dst ").count() == 1, "{forwards}");
            let routes = node.command(&format!("ip {} route show dev {device}", family.flag()));
            assert_eq!(routes.matches(" via ").count(), 1, "{routes}");
        }
    }
}
