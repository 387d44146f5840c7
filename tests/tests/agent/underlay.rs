//! A network that has addresses of the link to other hosts.

use super::*;

/// A network that has the link's addresses, cut so, and the record that would take them.
const OVER_THE_LINK: [(u8, &str, u8, &str); 3] = [
    (24, "172.30.0.0-24", 64, "fd30::-64"),
    (20, "172.30.0.0-20", 56, "fd30::-56"),
    (26, "172.30.0.64-26", 72, "fd30:0:0:0:100::-72"),
];

/// Whoever puts it, by mistake or not: hosts keep the link to each other and to etcd.
#[test]
fn a_record_takes_nothing_of_the_link() {
    for (length, v4, length_v6, v6) in OVER_THE_LINK {
        let config = format!(
            r#"{{"Network": "172.16.0.0/12", "SubnetLen": {length}, "EnableIPv6": true, "IPv6Network": "fd30::/48",
                "IPv6SubnetLen": {length_v6}, "Backend": {{"Type": "vxlan"}}}}"#
        );
        let fleet = Fleet::of(1, &config, &json!({}));
        let (node, agent) = (fleet.node(0), &fleet.agents[0]);
        let ways = ["172.30.0.0/24 dev eth0 proto kernel", "fd30::/64 dev eth0 proto kernel"];
        let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#;
        let record = format!(
            r#"{{"PublicIP":"172.30.0.99","PublicIPv6":"fd30::99","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
        );
        fleet.etcd.put(&format!("{SUBNETS}{v4}&{v6}"), record);
        eventually(REPAIR, "it is passed over", || {
            let state = r#"weft_peers{network="pods",state="has addresses of the link"}"#;
            (agent.metric(state)? > 0.0).then_some(())
        });
        for (family, way) in ["-4", "-6"].iter().zip(ways) {
            let routes = node.command(&format!("ip {family} route"));
            let by_device = routes.lines().any(|line| line.contains(" via ") && line.contains(" weft"));
            assert!(routes.contains(way) && !by_device, "{routes}");
        }
        assert_eq!(forwarding_entries(node, DEVICE), 0);
        agent.ready();
        let log = agent.daemon().log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("has addresses of the link")).collect();
        assert!(!told.is_empty() && told.iter().all(|line| line.contains("eth0 has ")), "{log}");
    }
}

/// A part of the link's addresses that no host has: their routes go before the link's.
#[test]
fn a_network_that_is_carved_out_of_the_link_is_none_of_it() {
    let config = r#"{"Network": "172.30.0.128/25", "SubnetLen": 28, "Backend": {"Type": "vxlan"}}"#;
    let fleet = Fleet::of(2, config, &json!({}));
    fleet.acquainted();
    let ((one, _), (_other, address)) = (fleet.pod(0), fleet.pod(1));
    one.assert_reaches(address);
    fleet.agents[0].ready();
}
