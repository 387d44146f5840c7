//! A network that has addresses of the link to other hosts.

use serde_json::json;

use super::super::{Fleet, SUBNETS, addresses};

/// Of its subnets two have addresses of the interface's links, whose routes a host would lose to its own bridge; the others have
/// other hosts' records, and then one has none.
#[test]
fn no_host_takes_a_subnet_of_the_link() {
    for (config, link, free, own) in [
        (
            r#"{"Network": "172.30.0.0/21", "SubnetLen": 23, "SubnetMin": "172.30.0.0", "Backend": {"Type": "host-gw"}}"#,
            "172.30.5.7/24",
            ["172.30.2.0-23", "172.30.6.0-23"],
            "172.30.6.",
        ),
        (
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd30::/62", "Backend": {"Type": "host-gw"}}"#,
            "fd30:0:0:2::7/64",
            ["0.0.0.0-0&fd30:0:0:1::-64", "0.0.0.0-0&fd30:0:0:3::-64"],
            "fd30:0:0:3:",
        ),
    ] {
        let fleet = Fleet::new(1, config);
        fleet.node(0).command(&format!("ip addr add {link} dev eth0"));
        let other = r#"{"PublicIP":"172.30.0.99","PublicIPv6":"fd30::99","BackendType":"host-gw"}"#;
        for key in free {
            fleet.etcd.put(&format!("{SUBNETS}{key}"), other);
        }
        let why = ["are taken", "the link to other hosts", "widen"];
        fleet.ipam("STATUS", 0, &json!({})).run().error_code(50).assert_names(&why);
        fleet.fails(0, &json!({}), 104).assert_names(&why);
        fleet.etcd.del(&format!("{SUBNETS}{}", free[1]));
        let given = addresses(&fleet.add(0, &json!({})).result());
        assert!(given[0].starts_with(own), "{given:?}");
    }
}
