//! Who a host is, and what is whose.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::json;
use weft_tests::{Weftd, eventually};

use super::super::{CONFIG, DUAL, Fleet, SUBNETS, V4, V6, addresses};

pub(super) fn record(public: &str) -> String {
    let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#;
    format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#)
}

/// Network namespaces of one machine, as here, have one machine-id, as have hosts that were cloned.
#[test]
fn hosts_are_told_apart_by_their_addresses() {
    for config in [V4, V6, DUAL] {
        let fleet = Fleet::new(3, config);
        for node in 0..3 {
            fleet.add(node, &json!({})).result();
        }
        assert_eq!(fleet.keys().len(), 3, "{config}");
        assert_eq!(fleet.etcd.leases().len(), 3);
    }
}

/// A host whose disk is a copy of another's has that one's lease on file.
#[test]
fn a_cloned_disk_is_no_lease() {
    for ipam in [json!({}), json!({ "iface": "eth0" })] {
        let changes = json!({ "ipam": ipam });
        let fleet = Fleet::new(2, V4);
        let first = addresses(&fleet.add(0, &changes).result());
        let [from, to] = [0, 1].map(|node| fleet.node(node).data_dir().join("pods"));
        fs::create_dir_all(&to).expect("make a directory");
        fs::copy(from.join("lease.json"), to.join("lease.json")).expect("clone a disk");
        // An agent that has not had its lease yet says nothing of whose it is.
        fleet.etcd.freeze();
        let agent = Weftd::start(fleet.node(1), &fleet.etcd, &ipam);
        eventually(Duration::from_secs(10), "it lives", || agent.ask("/readyz"));
        fleet.fails(1, &json!({ "ipam": ipam, "timeout": 4 }), 11);
        assert!(agent.daemon().stop().success());
        fleet.etcd.thaw();
        let second = addresses(&fleet.add(1, &changes).result());
        assert_ne!(
            first[0].rsplit_once('.').map(|(subnet, _)| subnet),
            second[0].rsplit_once('.').map(|(subnet, _)| subnet)
        );
        assert_eq!(fleet.keys().len(), 2);
    }
}

/// A key without a lease is flannel's way to pin a host's subnet.
#[test]
fn a_reservation_is_honoured_and_stays_one() {
    let fleet = Fleet::new(1, V4);
    let key = format!("{SUBNETS}10.241.7.0-24");
    fleet.etcd.put(&key, record("172.30.0.11"));
    let result = fleet.add(0, &json!({})).result();
    assert_eq!(addresses(&result), ["10.241.7.2/24"]);
    let leases = fleet.etcd.leases();
    assert!(leases.iter().all(|lease| !lease.keys.contains(&key)), "{leases:?}");
    let value = fleet.etcd.get(&key).expect("the reservation");
    assert!(value.contains("172.30.0.11") && !value.contains("8e:00:00:00:00:01"), "{value}");
}

/// Other programs read it as one; what would be put in its place, or compared with it, is not what is there.
#[test]
fn a_record_that_is_no_text_is_no_hosts() {
    let fleet = Fleet::new(1, V4);
    let key = format!("{SUBNETS}10.241.7.0-24");
    let (start, end) = (r#"{"Note":""#, record("172.30.0.11").replacen('{', r#"","#, 1));
    fleet.etcd.put(&key, [start.as_bytes(), b"\xff", end.as_bytes()].concat());
    let before = fleet.etcd.get(&key);
    assert_ne!(addresses(&fleet.add(0, &json!({})).result()), ["10.241.7.2/24"]);
    assert_eq!((fleet.keys().len(), fleet.etcd.get(&key)), (2, before), "it stays, and its subnet is taken");
    assert_eq!(fleet.etcd.leases().len(), 1);
}

/// Records with this host's address, which anybody may have put: one of the network and one that is not, before the
/// own one in the order of the keys. Containers live in the subnet on file.
#[test]
fn the_record_of_the_lease_on_file_is_this_hosts_whatever_others_are_put() {
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    for other in ["10.240.0.0-24", "10.2.0.0-24"] {
        let fleet = Fleet::new(1, V4);
        let other = format!("{SUBNETS}{other}");
        fleet.add(0, &due).result();
        let key = format!("{SUBNETS}{}", fleet.record().0);
        let own = fleet.etcd.get(&key).expect("the own record");
        fleet.etcd.put(&other, record("172.30.0.11"));
        // Looked for again, as the record is not as it was.
        fleet.etcd.put_leased(&key, record("172.30.0.11"), &fleet.etcd.leases()[0].id);
        let said = fleet.add(0, &due);
        assert_eq!(fleet.etcd.get(&key), Some(own), "{}", said.stderr);
        assert!(said.stderr.contains(&format!("{other} is ignored")), "{}", said.stderr);
        let subnet = key.trim_start_matches(SUBNETS).replace(".0-24", ".");
        assert!(addresses(&said.result())[0].starts_with(&subnet));
        assert_eq!(fleet.etcd.get(&other), Some(record("172.30.0.11")), "it is left to who has put it");
    }
}

/// Without a lease on file, wherever the others' keys stand.
#[test]
fn of_several_records_with_its_address_a_host_has_that_which_was_there_first() {
    let fleet = Fleet::new(1, V4);
    for key in ["10.241.7.0-24", "10.241.1.0-24", "10.241.9.0-24"] {
        fleet.etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.11"));
    }
    let said = fleet.add(0, &json!({}));
    assert!(said.stderr.contains(&format!("{SUBNETS}10.241.1.0-24 is ignored")), "{}", said.stderr);
    assert_eq!(addresses(&said.result()), ["10.241.7.2/24"]);
}

#[test]
fn the_subnet_on_file_is_preferred_while_it_is_free() {
    let fleet = Fleet::new(1, V4);
    let before = addresses(&fleet.add(0, &json!({})).result());
    let (key, _) = fleet.record();
    fleet.etcd.del(&format!("{SUBNETS}{key}"));
    fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
    assert_eq!(fleet.record().0, key);
    // Another one has it meanwhile, and a container lives in it.
    fleet.etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.99"));
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    fleet.ipam("STATUS", 0, &due).run().error_code(51).assert_names(&["172.30.0.99"]);
    let error = fleet.fails(0, &due, 103);
    error.assert_names(&[&key, "172.30.0.99", "weftctl leave"]);
    fleet.ipam("STATUS", 0, &json!({})).run().error_code(51).assert_names(&["172.30.0.99"]);
    assert!(
        fleet.etcd.get(&format!("{SUBNETS}{key}")).is_some_and(|value| value.contains("172.30.0.99")),
        "{before:?}"
    );
}

/// The record of the host that has it names another subnet of the other family, and so has another key.
#[test]
fn a_subnet_of_two_is_another_hosts_meanwhile() {
    for family in [0, 1] {
        let fleet = Fleet::new(1, DUAL);
        fleet.add(0, &json!({})).result();
        let (key, _) = fleet.record();
        let mut subnets: Vec<&str> = key.split('&').collect();
        subnets[1 - family] = ["10.244.250.0-24", "fd00:42:0:ffff::-64"][1 - family];
        let other = format!("{SUBNETS}{}", subnets.join("&"));
        fleet.etcd.del(&format!("{SUBNETS}{key}"));
        let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#;
        let both = format!(r#""fd30::99","BackendV6Data":{data}"#);
        fleet.etcd.put(&other, record("172.30.0.99").replace("null", &both));
        fleet
            .fails(0, &json!({ "ipam": { "peerRefresh": 0 } }), 103)
            .assert_names(&[&key, "172.30.0.99", "weftctl leave"]);
        assert_eq!(fleet.etcd.keys(SUBNETS), [other]);
    }
}

/// An address that was configured on two hosts by mistake.
#[test]
fn a_public_address_of_another_host_is_refused() {
    let fleet = Fleet::new(2, V4);
    fleet.add(0, &json!({})).result();
    let (key, value) = fleet.record();
    let error = fleet.fails(1, &json!({ "ipam": { "publicIP": "172.30.0.11" } }), 103);
    error.assert_names(&["172.30.0.11", &key, "ipam.publicIP", "etcdctl del"]);
    assert_eq!(fleet.record(), (key, value));
}

/// An address in front of this host, which no interface of it has.
#[test]
fn a_public_address_of_a_router_in_front_is_this_hosts() {
    let fleet = Fleet::new(1, V4);
    let nat = json!({ "ipam": { "publicIP": "198.51.100.7", "peerRefresh": 0 } });
    fleet.add(0, &nat).result();
    let (key, value) = fleet.record();
    assert!(value.contains(r#""PublicIP":"198.51.100.7""#), "{value}");
    fleet.add(0, &nat).result();
    assert_eq!(fleet.record(), (key, value));
    let lease = fs::read_to_string(fleet.node(0).data_dir().join("pods/lease.json")).expect("a lease");
    assert!(lease.contains(r#""local":["172.30.0.11"]"#), "{lease}");
}

#[test]
fn the_underlay_is_chosen_by_name_expression_address_or_way() {
    for choice in [
        json!({ "iface": "eth0" }),
        json!({ "iface": "172.30.0.11" }),
        json!({ "ifaceRegex": "^eth" }),
        json!({ "ifaceRegex": r"172\.30\..*" }),
        json!({ "ifaceCanReach": "172.30.0.1" }),
    ] {
        let fleet = Fleet::new(1, V4);
        fleet.node(0).command("ip route del default");
        fleet.fails(0, &json!({}), 7).assert_names(&["IPv4", "ipam.iface"]);
        fleet.add(0, &json!({ "ipam": choice })).result();
        assert!(fleet.record().1.contains("172.30.0.11"));
    }
}

#[test]
fn a_network_that_was_configured_anew() {
    let fleet = Fleet::new(1, V4);
    let add = fleet.ipam("ADD", 0, &json!({}));
    add.clone().run().result();
    let (key, _) = fleet.record();
    // A configuration that still has the subnet changes nothing for it.
    fleet.etcd.put(
        CONFIG,
        r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.250.0.0", "Backend": {"Type": "vxlan", "VNI": 7}}"#,
    );
    fs::remove_file(fleet.node(0).data_dir().join("pods/lease.json")).expect("forget the lease");
    fleet.add(0, &json!({})).result();
    let (same, value) = fleet.record();
    assert_eq!(same, key);
    assert!(value.contains(r#""VNI":7"#), "{value}");
    // One that has not, while containers live in it, does.
    fleet.etcd.put(CONFIG, r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    fs::remove_file(fleet.node(0).data_dir().join("pods/lease.json")).expect("forget the lease");
    fleet
        .fails(0, &json!({}), 7)
        .assert_names(&["config was changed", &key, "10.96.0.0/12", "weftctl leave"]);
    // And without containers the host moves.
    fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
    let result = fleet.add(0, &json!({})).result();
    assert!(!addresses(&result)[0].starts_with("10.24"), "{result}");
    assert_eq!(fleet.keys().len(), 1, "the former record is gone");
}

/// A host with a lease on file learns of it when it looks for news of others, and not at all while etcd is away.
#[test]
fn a_network_that_is_configured_anew_under_its_hosts() {
    let fleet = Fleet::new(1, V4);
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    fleet.add(0, &due).result();
    let (key, _) = fleet.record();
    let lease = || fs::read_to_string(fleet.node(0).data_dir().join("pods/lease.json")).expect("a lease");
    // It still has the subnet: what it says otherwise is followed.
    fleet.etcd.put(CONFIG, r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan", "VNI": 7}}"#);
    fleet.add(0, &due).result();
    assert_eq!(fleet.record().0, key);
    assert!(fleet.record().1.contains(r#""VNI":7"#) && lease().contains("7"), "{}", lease());
    // It has not, and containers have addresses of it: each ADD says so, whatever was tried last.
    let other = r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#;
    fleet.etcd.put(CONFIG, other);
    let parts = ["config was changed", key.as_str(), "10.96.0.0/12", "weftctl leave"];
    let status = || fleet.ipam("STATUS", 0, &due).run();
    for _ in 0..2 {
        fleet.fails(0, &due, 7).assert_names(&parts);
        status().error_code(50).assert_names(&parts);
        // An ADD that gets no answer, or is killed before, says nothing else.
        fleet.etcd.freeze();
        fleet.add(0, &due).result();
        fleet.etcd.thaw();
        status().error_code(50).assert_names(&parts);
    }
    assert_eq!(fleet.record().0, key, "nothing is moved");
    // What ADD said is no more so once its cause is gone.
    fleet.etcd.put(CONFIG, V4);
    status().done();
    fleet.etcd.put(CONFIG, other);
    status().error_code(50).assert_names(&parts);
    // A broken configuration, and an etcd that is away or does not answer, are no reason to fail.
    fleet.etcd.put(CONFIG, "{");
    status().done();
    fleet.add(0, &due).result();
    fleet.etcd.del(CONFIG);
    fleet.add(0, &due).result();
    fleet.etcd.put(CONFIG, other);
    fleet.etcd.freeze();
    fleet.add(0, &due).result();
    fleet.etcd.thaw();
    fleet.etcd.kill();
    fleet.add(0, &due).result();
    fleet.etcd.restart();
    fleet.fails(0, &due, 7).assert_names(&parts);
    fleet.etcd.freeze();
    status().done();
    fleet.etcd.thaw();
    status().error_code(50).assert_names(&parts);
    // Without containers the host moves.
    fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
    let result = fleet.add(0, &due).result();
    assert!(!addresses(&result)[0].starts_with("10.24"), "{result}");
    assert_ne!(fleet.record().0, key);
    status().done();
}

#[test]
fn a_configuration_that_is_none_is_told_with_the_line_that_puts_what_was_meant() {
    let fleet = Fleet::new(1, V4);
    let meant = r#"{"Backend":{"Type":"vxlan"},"EnableIPv6":true,"IPv6Network":"fd00:42::/48","Network":"10.240.0.0/12","mine":"\u0027"}"#;
    let line = |config: &str| format!("etcdctl put {CONFIG} '{config}'");
    for (config, line, parts) in [
        ("", Some(line(V4).replace("10.240.0.0/12", "10.244.0.0/16")), vec!["JSON"]),
        ("{", None, vec!["JSON", "correct it there"]),
        (
            "{\"Network\": \"10.240.0.0/12\", # all\n \"EnableIPv6\": true, \"IPv6Network\": \"fd00:42::/48\", \"mine\": \"'\"}",
            Some(line(meant)),
            vec!["comments", "#"],
        ),
        (
            r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan", "GBP": true}}"#,
            Some(line(r#"{"Backend":{"Type":"vxlan"},"Network":"10.240.0.0/12"}"#)),
            vec!["GBP"],
        ),
        (
            r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "udp"}}"#,
            None,
            vec!["Backend.Type", "udp", "vxlan"],
        ),
        (
            r#"{"Network": "224.0.0.0/8", "Backend": {"Type": "vxlan"}}"#,
            None,
            vec!["Network", "224.0.0.0/4 (multicast)"],
        ),
        (
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fe80::/16", "Backend": {"Type": "vxlan"}}"#,
            None,
            vec!["IPv6Network", "fe80::/10 (link-local"],
        ),
        (r#"{"Network": "10.240.0.0/33", "Backend": {"Type": "vxlan"}}"#, None, vec!["Network"]),
        (
            r#"{"Network": "10.240.0.0/12", "SubnetLen": 8, "Backend": {"Type": "vxlan"}}"#,
            None,
            vec!["SubnetLen", "8"],
        ),
    ] {
        fleet.etcd.put(CONFIG, config);
        let error = fleet.fails(0, &json!({}), 7);
        error.assert_names(&[CONFIG]);
        error.assert_names(&parts);
        let found = error.msg.find("etcdctl put").map(|at| &error.msg[at..]);
        assert_eq!(found, line.as_deref(), "{config}");
    }
    fleet.etcd.del(CONFIG);
    fleet.fails(0, &json!({}), 7).assert_names(&["/coreos.com/network/config is not in etcd", "etcdctl put"]);
    assert!(fleet.keys().is_empty());
    fleet.etcd.put(CONFIG, meant);
    assert_eq!(addresses(&fleet.add(0, &json!({})).result()).len(), 2);
}

#[test]
fn a_network_without_a_free_subnet() {
    let fleet = Fleet::new(1, r#"{"Network": "10.240.0.0/22", "Backend": {"Type": "vxlan"}}"#);
    for number in 0..4 {
        fleet.etcd.put(&format!("{SUBNETS}10.240.{number}.0-24"), record(&format!("172.31.0.{number}")));
    }
    fleet.fails(0, &json!({}), 104).assert_names(&["10.240.0.0/22", "all 3", "10.240.3.0-24"]);
    fleet.ipam("STATUS", 0, &json!({})).run().error_code(50).assert_names(&["10.240.0.0/22", "all 3"]);
    assert!(fleet.etcd.leases().is_empty());
}

/// Anybody can put a key that names more than a host ever has.
#[test]
fn a_key_of_another_size_counts_when_a_host_has_it() {
    let v6 = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/16", "Backend": {"Type": "vxlan"}}"#;
    let host = record("172.30.0.99")
        .replace("null", r#""fd30::99","BackendV6Data":{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#);
    for (config, keys) in
        [(V4, ["0.0.0.0-0", "10.240.0.0-12"]), (v6, ["0.0.0.0-0&fd00::-16", "0.0.0.0-0&fc00::-7"])]
    {
        let fleet = Fleet::new(1, config);
        for key in keys {
            fleet.etcd.put(&format!("{SUBNETS}{key}"), "x");
        }
        fleet.ipam("STATUS", 0, &json!({})).run().done();
        fleet.add(0, &json!({})).result();
        assert_eq!(fleet.keys().len(), 3);
        let fleet = Fleet::new(1, config);
        fleet.etcd.put(&format!("{SUBNETS}{}", keys[1]), &host);
        fleet.fails(0, &json!({}), 104).assert_names(&["are taken", keys[1]]);
        assert_eq!(fleet.keys(), [keys[1]]);
    }
}

/// All that lie between the smallest and the largest are given, these two among them, and no other: of each family.
#[test]
fn hosts_share_the_subnets_from_the_smallest_to_the_largest() {
    let config = r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.241.254.0", "SubnetMax": "10.242.1.0",
        "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "IPv6SubnetMin": "fd00:42:0:fe::",
        "IPv6SubnetMax": "fd00:42:0:101::", "Backend": {"Type": "vxlan"}}"#;
    let fleet = Fleet::new(5, config);
    let given = (0..4).flat_map(|node| addresses(&fleet.add(node, &json!({})).result()));
    let given: BTreeSet<String> = given.collect();
    let v4 = ["10.241.254.2/24", "10.241.255.2/24", "10.242.0.2/24", "10.242.1.2/24"];
    let v6 = ["fd00:42:0:100::2/64", "fd00:42:0:101::2/64", "fd00:42:0:fe::2/64", "fd00:42:0:ff::2/64"];
    assert!(given.iter().eq(v4.iter().chain(&v6)), "{given:#?}");
    let keys = fleet.keys().concat();
    for address in given {
        let subnet = address.replace(".2/", ".0-").replace("::2/", "::-");
        assert_eq!(keys.matches(&subnet).count(), 1, "{subnet}: {keys}");
    }
    fleet.fails(4, &json!({}), 104).assert_names(&["10.240.0.0/12", "all 4"]);
    assert_eq!(fleet.keys().len(), 4);
}
