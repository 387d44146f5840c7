//! Two machines that have one public address on their interfaces.

use std::fs;

use serde_json::{Value, json};
use weft_tests::{Cluster, Running, eventually};

use super::super::{CONFIG, DUAL, Fleet, PREFIX, SUBNETS, V4, V6};

use std::time::Duration;

/// Where it is said who has an address.
pub(super) const HOSTS: &str = "/coreos.com/network/weft/hosts/";

/// Hosts 0 and 1, of which each has the addresses of host 0, on segments of their own.
pub(super) fn twins(config: &str) -> Fleet {
    let fleet = Fleet::of(Cluster::segments(&[1, 1]), config);
    fleet.node(1).command("ip addr add 172.30.0.11/32 dev eth0");
    fleet.node(1).command("ip addr add fd30::11/128 dev eth0 nodad");
    fleet
}

/// What either is told to be reached by.
pub(super) fn twin() -> Value {
    json!({ "ipam": { "publicIP": "172.30.0.11", "publicIPv6": "fd30::11", "peerRefresh": 0 } })
}

/// All that the network has in etcd.
pub(super) fn everything(fleet: &Fleet) -> Vec<(String, Option<String>)> {
    let keys = fleet.etcd.keys(PREFIX);
    keys.into_iter().map(|key| (key.clone(), fleet.etcd.get(&key))).collect()
}

pub(super) fn end_lease(fleet: &Fleet) {
    fleet.etcd.revoke(&fleet.etcd.leases()[0].id);
}

#[test]
fn the_first_of_two_hosts_with_one_address_keeps_it() {
    for (config, address) in [(V4, "172.30.0.11"), (V6, "fd30::11"), (DUAL, "172.30.0.11")] {
        let fleet = twins(config);
        fleet.add(0, &twin()).result();
        let (key, _) = fleet.record();
        let before = (everything(&fleet), fleet.etcd.revision());
        let mac = fleet.node(0).link("eth0").expect("an interface")["address"].clone();
        let parts = [address, &key, mac.as_str().expect("a MAC"), "ipam.publicIP", "etcdctl del", HOSTS];
        for _ in 0..2 {
            fleet.fails(1, &twin(), 103).assert_names(&parts);
            fleet.ipam("STATUS", 1, &twin()).run().error_code(50).assert_names(&parts);
        }
        assert_eq!((everything(&fleet), fleet.etcd.revision()), before, "nothing was written");
        assert!(!fleet.node(1).data_dir().join("pods/lease.json").exists());
        fleet.add(0, &twin()).result();
        fleet.ipam("STATUS", 0, &twin()).run().done();
        // The first is gone, and the second gets in: then it is the first that is told.
        end_lease(&fleet);
        fleet.ipam("STATUS", 1, &twin()).run().done();
        fleet.add(1, &twin()).result();
        let taken = everything(&fleet);
        fleet.fails(0, &twin(), 103).assert_names(&[address, "another live host"]);
        assert_eq!(everything(&fleet), taken);
    }
}

/// One of the two addresses is enough.
#[test]
fn hosts_that_share_one_family_only() {
    let fleet = twins(DUAL);
    fleet.add(0, &twin()).result();
    let (key, _) = fleet.record();
    let shared = json!({ "ipam": { "publicIP": "172.30.1.11", "publicIPv6": "fd30::11" } });
    fleet.fails(1, &shared, 103).assert_names(&["fd30::11", &key]);
    let own = json!({ "ipam": { "publicIP": "172.30.1.11", "publicIPv6": "fd30:0:0:1::11" } });
    fleet.add(1, &own).result();
    assert_eq!((fleet.keys().len(), fleet.etcd.keys(HOSTS).len()), (2, 4));
}

/// Neither has been there before the other.
#[test]
fn two_hosts_with_one_address_that_start_at_once() {
    let fleet = twins(DUAL);
    for round in 0..10 {
        let running = [0, 1].map(|node| fleet.ipam("ADD", node, &twin()).start());
        let replies = running.map(Running::finish);
        let refused: Vec<_> = replies.iter().filter(|reply| !reply.succeeded()).collect();
        assert_eq!(refused.len(), 1, "round {round}");
        refused[0].error_code(103).assert_names(&["172.30.0.11", "another live host"]);
        assert_eq!((fleet.keys().len(), fleet.etcd.leases().len()), (1, 1));
        end_lease(&fleet);
        for node in [0, 1] {
            fs::remove_dir_all(fleet.node(node).directory()).expect("start anew");
        }
    }
}

/// Makes it look as if whoever has the first address had put something else there.
fn change_holder(fleet: &Fleet, changes: &Value) {
    let key = fleet.etcd.keys(HOSTS).remove(0);
    let mut holder: Value =
        serde_json::from_str(&fleet.etcd.get(&key).expect("who has the address")).expect("JSON");
    for (name, value) in changes.as_object().expect("an object") {
        assert!(holder.get(name).is_some(), "{holder} has no {name}");
        holder[name] = value.clone();
    }
    fleet.etcd.put_leased(&key, holder.to_string(), &fleet.etcd.leases()[0].id);
}

/// Nothing is left of it but its hardware: it need not wait until its former lease ends.
#[test]
fn a_host_that_was_set_up_anew_gets_its_subnet_back_at_once() {
    for (config, keeper) in [(V4, "plugin"), (V6, "agent"), (DUAL, "agent")] {
        let fleet = twins(config);
        fleet.add(0, &json!({})).result();
        let record = fleet.record();
        // Before the boot into the new system, and with an agent that was heard a moment ago.
        change_holder(&fleet, &json!({ "boot": "00000000-0000-0000-0000-000000000000", "keeper": keeper }));
        fs::remove_dir_all(fleet.node(0).directory()).expect("lose the disk");
        fleet.ipam("STATUS", 0, &json!({})).run().done();
        fleet.add(0, &json!({})).result();
        assert_eq!(fleet.record(), record);
        assert_eq!(fleet.etcd.leases().len(), 1);
        // And it is the one from which others are told now.
        fleet.fails(1, &twin(), 103).assert_names(&["another live host", &record.0]);
    }
}

/// Booted with another interface, it has nothing but its disk to show. A copy of that has the same, so where the other
/// is heard, it counts as another machine.
#[test]
fn a_host_with_another_interface_is_known_by_its_disk() {
    let fleet = twins(V4);
    fleet.add(0, &twin()).result();
    let record = fleet.record();
    let mut before = json!({ "boot": "00000000-0000-0000-0000-000000000000", "mac": "02:00:00:00:77:77" });
    change_holder(&fleet, &before);
    fleet.add(0, &twin()).result();
    assert_eq!(fleet.record(), record);
    assert!(!fleet.etcd.get(&format!("{HOSTS}172.30.0.11")).expect("the address's key").contains("77:77"));
    before["keeper"] = json!("agent");
    // The lease was renewed a moment ago.
    change_holder(&fleet, &before);
    fleet.fails(0, &twin(), 103).assert_names(&["02:00:00:00:77:77", &record.0, "weftctl leave"]);
    fleet.ipam("STATUS", 0, &twin()).run().error_code(51).assert_names(&["02:00:00:00:77:77"]);
}

/// Who has an address comes from the store, in which anybody may write.
#[test]
fn what_is_said_of_an_address_may_be_anything() {
    let fleet = twins(V4);
    let key = format!("{HOSTS}172.30.0.11");
    for value in ["", "{", "[]", "{\"mac\": 1}", "\u{1b}[2J"] {
        fleet.etcd.put(&key, value);
        fleet.add(0, &json!({})).result();
        let (subnet, _) = fleet.record();
        assert!(fleet.etcd.get(&key).is_some_and(|value| value.contains(&subnet)));
        end_lease(&fleet);
        fs::remove_dir_all(fleet.node(0).directory()).expect("start anew");
    }
    let forged = json!({
        "subnet": "10.240.9.0-24\nforged", "host": "x\n{\"code\": 0}", "mac": null,
        "instance": "x", "boot": "x", "netns": 1, "keeper": "plugin",
    });
    // Without a lease nobody lives.
    fleet.etcd.put(&key, forged.to_string());
    fleet.add(0, &json!({})).result();
    end_lease(&fleet);
    fs::remove_dir_all(fleet.node(0).directory()).expect("start anew");
    fleet.etcd.put_leased(&key, forged.to_string(), &fleet.etcd.grant(100));
    let error = fleet.fails(0, &json!({}), 103);
    error.assert_names(&["172.30.0.11", r"10.240.9.0-24\nforged", "etcdctl del"]);
    // The way out that it names.
    fleet.etcd.del(&key);
    fleet.add(0, &json!({})).result();
}

/// flanneld takes a record over under a lease of its own; what Weft had said of the address counts no more.
#[test]
fn a_record_that_flanneld_took_over_is_taken_back() {
    let fleet = twins(V4);
    fleet.add(0, &json!({})).result();
    let (key, value) = fleet.record();
    fleet.etcd.put_leased(&format!("{SUBNETS}{key}"), &value, &fleet.etcd.grant(100));
    assert_eq!(fleet.etcd.keys(HOSTS).len(), 1);
    fleet.add(1, &twin()).result();
    assert_eq!(fleet.record(), (key, value));
}

/// Whoever had the address has its lease on file, and says so anew.
#[test]
fn etcd_comes_back_empty_to_two_hosts_with_one_address() {
    let fleet = twins(V4);
    fleet.add(0, &twin()).result();
    let (key, value) = fleet.record();
    fleet.etcd.restart_empty();
    fleet.etcd.put(CONFIG, V4);
    fleet.add(0, &twin()).result();
    assert_eq!(fleet.record(), (key.clone(), value));
    assert_eq!(fleet.etcd.keys(HOSTS), [format!("{HOSTS}172.30.0.11")]);
    fleet.fails(1, &twin(), 103).assert_names(&["172.30.0.11", &key]);
}

/// The lease ends by itself: then the address is anybody's.
#[test]
fn a_host_that_is_gone_is_waited_for_as_long_as_its_lease() {
    let fleet = twins(V4);
    let mut short = twin();
    short["ipam"]["leaseTTL"] = json!(8);
    fleet.add(0, &short).result();
    fleet.fails(1, &short, 103);
    eventually(Duration::from_secs(20), "the second gets in", || {
        fleet.add(1, &short).succeeded().then_some(())
    });
    assert_eq!(fleet.keys().len(), 1);
}
