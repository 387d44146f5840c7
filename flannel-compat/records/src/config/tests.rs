use super::*;
use crate::Vxlan;

fn parse(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

fn error(text: &str) -> String {
    NetworkConfig::parse(text).unwrap_err().to_string()
}

#[test]
fn flannels_defaults() {
    let config = parse(r#"{"Network":"10.240.0.0/12","Backend":{"Type":"vxlan"}}"#);
    assert_eq!(config.backend, Backend::Vxlan(Vxlan::default()));
    let [pool] = config.pools() else { panic!("one pool") };
    assert_eq!((pool.subnet_len(), pool.count()), (24, 4095));
    assert_eq!(pool.at(0).to_string(), "10.240.1.0/24");
    assert_eq!(pool.at(4094).to_string(), "10.255.255.0/24");
    assert_eq!(pool.at(4095), pool.at(0));
}

#[test]
fn a_link_keeps_its_addresses_unless_the_network_was_carved_out_of_them() {
    let kept = |network: &str, address: &str| {
        kept_by_link(network.parse().unwrap(), address.parse().unwrap()).to_string()
    };
    assert_eq!(kept("10.0.0.0/8", "10.0.5.2/24"), "10.0.5.2/24");
    assert_eq!(kept("10.0.5.0/24", "10.0.5.2/24"), "10.0.5.2/24");
    assert_eq!(kept("10.244.0.0/16", "10.0.5.2/8"), "10.0.5.2/32");
    assert_eq!(kept("10.244.0.0/16", "192.0.2.2/8"), "192.0.2.2/8");
    assert_eq!(kept("fd00:42::/48", "fd00::2/16"), "fd00::2/128");
    for (one, other, expected) in [
        ("10.0.5.2/24", "10.0.4.0/22", true),
        ("10.0.5.2/24", "10.0.5.128/25", true),
        ("10.0.5.2/24", "10.0.6.0/24", false),
        ("fd30::2/64", "10.0.5.0/24", false),
    ] {
        let [one, other] = [one, other].map(|text| text.parse().unwrap());
        assert_eq!([overlap(one, other), overlap(other, one)], [expected; 2], "{one} {other}");
    }
}

#[test]
fn small_networks_are_cut_in_four() {
    let config = parse(r#"{"Network":"10.1.2.0/23","Backend":{"Type":"host-gw"}}"#);
    assert_eq!(config.pools()[0].subnet_len(), 25);
    assert_eq!(config.pools()[0].count(), 3);
    let v6 =
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/63","Backend":{"Type":"vxlan"}}"#;
    assert_eq!(parse(v6).pools()[0].subnet_len(), 65);
}

#[test]
fn both_families_and_bounds() {
    let config = parse(
        r#"{"EnableIPv6":true,"Network":"10.240.0.0/12","SubnetLen":24,"SubnetMin":"10.240.1.0","SubnetMax":"10.240.200.0",
            "IPv6Network":"fd00:42::/48","IPv6SubnetMin":"fd00:42:0:5::",
            "Backend":{"Type":"VXLAN","VNI":7,"Port":4789,"DirectRouting":true,"MTU":1400,"MacPrefix":"0E-2A"}}"#,
    );
    assert_eq!(config.pools()[0].count(), 200);
    assert_eq!(config.pools()[1].at(0).to_string(), "fd00:42:0:5::/64");
    let Backend::Vxlan(vxlan) = config.backend else { panic!("vxlan") };
    assert_eq!((vxlan.vni.number(), vxlan.port, vxlan.mtu), (7, 4789, Some(1400)));
    assert_eq!(vxlan.mac_prefix, Some([0x0e, 0x2a]));
}

#[test]
fn the_places_of_other_networks_in_a_pool() {
    let config = parse(
        r#"{"EnableIPv6":true,"Network":"10.240.0.0/12","SubnetMin":"10.240.4.0","SubnetMax":"10.240.200.0",
            "IPv6Network":"fd00::/16","Backend":{"Type":"vxlan"}}"#,
    );
    let [v4, v6] = config.pools() else { panic!("two pools") };
    for (pool, other, places) in [
        (v4, "10.240.5.0/24", Some(1..=1)),
        (v4, "10.240.5.128/25", Some(1..=1)),
        (v4, "10.240.0.0/21", Some(0..=3)),
        (v4, "10.0.0.0/8", Some(0..=196)),
        (v4, "0.0.0.0/0", Some(0..=196)),
        (v4, "10.240.0.0/22", None),
        (v4, "10.241.0.0/16", None),
        (v4, "172.16.0.0/12", None),
        (v4, "fd00::/16", None),
        (v6, "fd00:0:0:8000::/49", Some(0x7fff..=0xfffe)),
        (v6, "fc00::/7", Some(0..=(1 << 48) - 2)),
        (v6, "fe80::/10", None),
    ] {
        assert_eq!(pool.places(other.parse().unwrap()), places, "{other}");
    }
}

/// As Go's encoding/json reads them, so as flanneld does.
#[test]
fn keys_are_read_in_any_case() {
    let canonical = parse(
        r#"{"EnableIPv4":true,"EnableIPv6":true,"Network":"10.240.0.0/12","SubnetLen":25,"SubnetMin":"10.240.1.0",
            "SubnetMax":"10.240.200.0","IPv6Network":"fd00:42::/48","IPv6SubnetLen":65,"IPv6SubnetMin":"fd00:42:0:5::",
            "IPv6SubnetMax":"fd00:42:0:9::","Backend":{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,
            "Learning":true,"DirectRouting":true,"MacPrefix":"0E-2A"}}"#,
    );
    let lower = parse(
        r#"{"enableipv4":true,"enableipv6":true,"network":"10.240.0.0/12","subnetlen":25,"subnetmin":"10.240.1.0",
            "subnetmax":"10.240.200.0","ipv6network":"fd00:42::/48","ipv6subnetlen":65,"ipv6subnetmin":"fd00:42:0:5::",
            "ipv6subnetmax":"fd00:42:0:9::","backend":{"type":"vxlan","vni":7,"port":4789,"mtu":1400,
            "learning":true,"directRouting":true,"macprefix":"0E-2A"}}"#,
    );
    assert_eq!(lower, canonical);
    let Backend::Vxlan(vxlan) = lower.backend else { panic!("vxlan") };
    assert_eq!((vxlan.vni.number(), vxlan.learning, vxlan.direct_routing), (7, true, true));
    let off = parse(
        r#"{"ENABLEIPV4":false,"enableIPv6":true,"ipv6network":"fd00:42::/48","backend":{"TYPE":"host-gw"}}"#,
    );
    assert_eq!((off.pools().len(), &off.backend), (1, &Backend::HostGw));
}

#[test]
fn of_a_key_in_two_spellings_the_right_one_counts() {
    let config = parse(
        r#"{"network":"10.0.0.0/8","Network":"10.240.0.0/12","NETWORK":7,
            "Backend":{"VNI":7,"vni":8,"Type":"vxlan","type":"host-gw"},"backend":{"Type":"host-gw"}}"#,
    );
    assert_eq!(config.pools()[0].network().to_string(), "10.240.0.0/12");
    let Backend::Vxlan(vxlan) = config.backend else { panic!("vxlan") };
    assert_eq!(vxlan.vni.number(), 7);
}

#[test]
fn what_is_wrong_is_named() {
    for (text, part) in [
        ("", "no JSON"),
        ("// the pods\n{}", "comments"),
        (
            r#"{"Network":"10.0.0.0/8" # all of it
            }"#,
            "comments",
        ),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}} trailing"#, "no JSON"),
        ("{}", "Network: is missing"),
        (r#"{"Network":"10.0.0.0/40"}"#, "Network"),
        (r#"{"Network":"10.0.0.0/29","Backend":{"Type":"vxlan"}}"#, "four subnets"),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#, "SubnetLen"),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#, "use 18 to 30"),
        (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#, "SubnetMin"),
        (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.0.5"}"#, "SubnetMin"),
        (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}"#, "behind"),
        (r#"{"EnableIPv4":false}"#, "no addresses"),
        (r#"{"EnableIPv6":true,"Network":"10.0.0.0/16"}"#, "IPv6Network: is missing"),
        (r#"{"Network":"10.0.0.0/16"}"#, "Backend: is missing"),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"extension","PreStartupCommand":"x"}}"#,
            "use vxlan or host-gw",
        ),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","GBP":true}}"#, "Backend.GBP"),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "Backend.VNI"),
        (r#"{"Network":"10.0.0.0/16","backend":{"type":"vxlan","gbp":true}}"#, "Backend.GBP"),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","vni":0}}"#, "Backend.VNI"),
        (r#"{"network":"10.0.0.0/16","subnetlen":31}"#, "SubnetLen"),
        (r#"{"network":"10.0.0.0/40"}"#, "Network"),
        (
            r#"{"Network":"127.0.0.0/8","Backend":{"Type":"vxlan"}}"#,
            "Network: 127.0.0.0/8 overlaps 127.0.0.0/8 (loopback): use a network of unicast addresses",
        ),
        (r#"{"Network":"0.0.0.0/0","Backend":{"Type":"vxlan"}}"#, "Network: 0.0.0.0/0 overlaps 0.0.0.0/8"),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/16","Backend":{"Type":"vxlan"}}"#,
            "IPv6Network: fe80::/16 overlaps fe80::/10",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MTU":117}}"#,
            "Backend.MTU: 117 is out of range",
        ),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MTU":65536}}"#, "use 118 to 65535"),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{"Type":"vxlan","MTU":1349}}"#,
            "use 1350 to 65535",
        ),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MacPrefix":"01-02"}}"#, "Backend.MacPrefix"),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#, "Port"),
    ] {
        let error = error(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}
