//! Hosts whose subnet somebody has pinned: its record hangs on no lease, and who has its address on one of the host's own.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::{Running, eventually};

use super::super::{Fleet, SUBNETS, V4, addresses};
use super::duplicates::{HOSTS, end_lease, everything, twin, twins};
use super::identity::record;

const PINNED: &str = "10.241.7.0-24";
const ADDRESS: &str = "172.30.0.11";

fn key() -> String {
    format!("{SUBNETS}{PINNED}")
}

fn pin(fleet: &Fleet) {
    fleet.etcd.put(&key(), record(ADDRESS));
}

/// The pinned record. Nothing but who has an address hangs on a lease.
#[track_caller]
fn pinned(fleet: &Fleet, address: &str) -> String {
    let leases = fleet.etcd.leases();
    let keys: Vec<_> = leases.iter().map(|lease| lease.keys.clone()).collect();
    assert_eq!(keys, [[format!("{HOSTS}{address}")]]);
    fleet.etcd.get(&key()).expect("the pinned record")
}

fn file(fleet: &Fleet) -> PathBuf {
    fleet.node(0).data_dir().join("pods/lease.json")
}

fn on_file(fleet: &Fleet) -> Value {
    serde_json::from_slice(&fs::read(file(fleet)).expect("a lease")).expect("JSON")
}

fn due() -> Value {
    json!({ "ipam": { "peerRefresh": 0 } })
}

#[test]
fn the_first_of_two_hosts_with_one_pinned_record_keeps_it() {
    let fleet = twins(V4);
    pin(&fleet);
    assert_eq!(addresses(&fleet.add(0, &twin()).result()), ["10.241.7.2/24"]);
    let value = pinned(&fleet, ADDRESS);
    let before = (everything(&fleet), fleet.etcd.revision());
    let mac = fleet.node(0).link("eth0").expect("an interface")["address"].clone();
    let parts = [ADDRESS, PINNED, mac.as_str().expect("a MAC"), "ipam.publicIP", "etcdctl del", HOSTS];
    for _ in 0..2 {
        fleet.fails(1, &twin(), 103).assert_names(&parts);
        fleet.ipam("STATUS", 1, &twin()).run().error_code(50).assert_names(&parts);
    }
    fleet.add(0, &twin()).result();
    fleet.ipam("STATUS", 0, &twin()).run().done();
    assert_eq!((everything(&fleet), fleet.etcd.revision()), before, "nothing was written");
    // Set up anew, it is itself.
    fs::remove_dir_all(fleet.node(0).directory()).expect("lose the disk");
    assert_eq!(addresses(&fleet.add(0, &twin()).result()), ["10.241.7.2/24"]);
    assert_eq!(pinned(&fleet, ADDRESS), value);
    // The first is gone, and the second gets in: then it is the first that is told.
    end_lease(&fleet);
    fleet.ipam("STATUS", 1, &twin()).run().done();
    assert_eq!(addresses(&fleet.add(1, &twin()).result()), ["10.241.7.2/24"]);
    assert_eq!(pinned(&fleet, ADDRESS), value);
    let taken = everything(&fleet);
    fleet.fails(0, &twin(), 103).assert_names(&[ADDRESS, PINNED, "another live host"]);
    fleet.ipam("STATUS", 0, &twin()).run().error_code(51).assert_names(&[PINNED]);
    assert_eq!(everything(&fleet), taken);
}

/// Neither has been there before the other.
#[test]
fn two_hosts_with_one_pinned_record_that_start_at_once() {
    let fleet = twins(V4);
    for round in 0..6 {
        pin(&fleet);
        let replies = [0, 1].map(|node| fleet.ipam("ADD", node, &twin()).start()).map(Running::finish);
        let refused: Vec<_> = replies.iter().filter(|reply| !reply.succeeded()).collect();
        assert_eq!(refused.len(), 1, "round {round}");
        refused[0].error_code(103).assert_names(&[ADDRESS, "another live host"]);
        pinned(&fleet, ADDRESS);
        end_lease(&fleet);
        for node in [0, 1] {
            fs::remove_dir_all(fleet.node(node).directory()).expect("start anew");
        }
    }
}

/// Nobody but an ADD says for a host without an agent that it still has its address. The subnet itself has no end.
#[test]
fn an_add_renews_what_a_host_with_a_pinned_subnet_says_of_itself() {
    let fleet = Fleet::new(1, V4);
    pin(&fleet);
    let short = json!({ "ipam": { "leaseTTL": 10, "peerRefresh": 0 } });
    let left = || fleet.etcd.leases()[0].remaining;
    fleet.add(0, &short).result();
    let value = pinned(&fleet, ADDRESS);
    // Times are whole seconds here and there.
    for (limit, renewed) in [(8, false), (3, true)] {
        eventually(Duration::from_secs(10), "time goes by", || (left() <= limit).then_some(()));
        let reply = fleet.ipam("STATUS", 0, &short).run();
        reply.done();
        assert!(!reply.stderr.contains("lease"), "{}", reply.stderr);
        let reply = fleet.add(0, &short);
        reply.result();
        assert_eq!(left() > limit, renewed, "{limit} {}", reply.stderr);
    }
    eventually(Duration::from_secs(20), "the lease ends", || fleet.etcd.leases().is_empty().then_some(()));
    fleet.ipam("STATUS", 0, &short).run().done();
    fleet.add(0, &short).result();
    assert_eq!(pinned(&fleet, ADDRESS), value);
}

/// An earlier version put nothing at the address, and has no lease on file.
#[test]
fn a_host_with_the_file_of_an_earlier_version_says_who_it_is() {
    let fleet = twins(V4);
    pin(&fleet);
    fleet.add(0, &json!({})).result();
    let value = pinned(&fleet, ADDRESS);
    let mut earlier = on_file(&fleet);
    for (name, value) in [("leaseId", json!(0)), ("ttl", json!(0)), ("holder", json!(""))] {
        assert!(earlier[name].take() != Value::Null, "{name}");
        earlier[name] = value;
    }
    let all = earlier.as_object_mut().expect("an object");
    assert_eq!(all.remove("pinned"), Some(json!(true)));
    fs::write(file(&fleet), earlier.to_string()).expect("put the earlier file");
    end_lease(&fleet);
    let status = fleet.ipam("STATUS", 0, &json!({})).run();
    status.done();
    assert!(!status.stderr.contains("lease"), "{}", status.stderr);
    // With the next ADD, whenever that looks for news of other hosts.
    assert_eq!(addresses(&fleet.add(0, &json!({})).result()), ["10.241.7.3/24"]);
    assert_eq!(pinned(&fleet, ADDRESS), value);
    assert_eq!((&on_file(&fleet)["pinned"], &on_file(&fleet)["ttl"]), (&json!(true), &json!(86_400)));
    // Whoever has such a file beside it and comes later is refused.
    let other = fleet.node(1).data_dir().join("pods");
    fs::create_dir_all(&other).expect("make a directory");
    fs::write(other.join("lease.json"), earlier.to_string()).expect("put the earlier file");
    fleet.fails(1, &twin(), 103).assert_names(&[ADDRESS, PINNED, "another live host"]);
}

/// The lease of its address has ended, and the subnet is still the first network's.
#[test]
fn a_second_network_at_the_place_of_an_idle_one_is_refused() {
    let fleet = Fleet::new(1, V4);
    pin(&fleet);
    fleet.add(0, &due()).result();
    let mut second = due();
    second["name"] = json!("other");
    end_lease(&fleet);
    fleet.fails(0, &second, 103).assert_names(&["network pods", PINNED]);
    fleet.ipam("STATUS", 0, &second).run().error_code(50).assert_names(&["network pods", PINNED]);
    fleet.ipam("STATUS", 0, &due()).run().done();
    assert_eq!(addresses(&fleet.add(0, &due()).result()), ["10.241.7.3/24"]);
    pinned(&fleet, ADDRESS);
    // It is nobody's any more, or another host's.
    fleet.etcd.del(&key());
    end_lease(&fleet);
    fleet.add(0, &second).result();
}

/// Nothing that etcd could say in time keeps the subnet. What is on file is as after half of the lease's time, or of an earlier version.
#[test]
fn an_add_with_a_pinned_subnet_does_not_wait_for_etcd() {
    let fleet = Fleet::new(1, V4);
    pin(&fleet);
    let patient = json!({ "timeout": 60, "ipam": { "peerRefresh": 0, "etcd": { "timeout": 30 } } });
    fleet.add(0, &patient).result();
    let renewed = on_file(&fleet)["renewed"].as_u64().expect("a time");
    fleet.etcd.freeze();
    for (name, value) in [("renewed", renewed - 80_000), ("ttl", 0)] {
        let mut lease = on_file(&fleet);
        lease[name] = json!(value);
        fs::write(file(&fleet), lease.to_string()).expect("put the file");
        let start = Instant::now();
        fleet.add(0, &patient).result();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    }
    fleet.etcd.thaw();
}

/// Pins and leases as a person puts them, and another time of the lease: there is never more than one.
#[test]
fn a_record_that_is_pinned_and_pinned_no_more() {
    let fleet = Fleet::new(1, V4);
    let host = format!("{HOSTS}{ADDRESS}");
    fleet.add(0, &due()).result();
    let (key, value) = fleet.record();
    let key = format!("{SUBNETS}{key}");
    let keys_of_leases = || fleet.etcd.leases().into_iter().map(|lease| lease.keys).collect::<Vec<_>>();
    for (theirs, deleted) in [(None, false), (Some(500), false), (None, true), (Some(86_400), true)] {
        if deleted {
            fleet.etcd.del(&key);
        }
        match theirs {
            None => fleet.etcd.put(&key, &value),
            Some(seconds) => fleet.etcd.put_leased(&key, &value, &fleet.etcd.grant(seconds)),
        }
        fleet.add(0, &due()).result();
        let with_record = if theirs.is_some() { vec![key.clone(), host.clone()] } else { vec![host.clone()] };
        assert_eq!(keys_of_leases(), [with_record], "{theirs:?} {deleted}");
        assert_eq!(on_file(&fleet)["pinned"], json!(theirs.is_none()));
        assert_eq!(fleet.record().1, value);
    }
    fleet.etcd.put(&key, &value);
    for ttl in [600, 30] {
        fleet.add(0, &json!({ "ipam": { "leaseTTL": ttl, "peerRefresh": 0 } })).result();
        assert_eq!(keys_of_leases(), [[host.clone()]]);
        assert_eq!(fleet.etcd.leases()[0].granted, ttl);
    }
    fleet.etcd.del(&key);
    fleet.add(0, &json!({ "ipam": { "leaseTTL": 30, "peerRefresh": 0 } })).result();
    assert_eq!(keys_of_leases(), [[key, host]]);
}

/// The pinned record names the address that somebody has put there, and is for them to change. The host has its former address
/// no more once it has its subnet at another one, or another subnet.
#[test]
fn a_host_with_a_pinned_subnet_whose_address_changes() {
    let moved = "172.30.0.22";
    for unused in [false, true] {
        let fleet = Fleet::new(1, V4);
        pin(&fleet);
        fleet.add(0, &due()).result();
        let value = pinned(&fleet, ADDRESS);
        fleet.node(0).renumber(ADDRESS, moved);
        if unused {
            fs::remove_dir_all(fleet.node(0).state_dir()).expect("no containers");
            fleet.add(0, &due()).result();
            assert_eq!(fleet.etcd.get(&key()), Some(value));
            assert_eq!(fleet.keys().len(), 2);
        } else {
            fleet.fails(0, &due(), 103).assert_names(&[PINNED, ADDRESS]);
            assert_eq!(pinned(&fleet, ADDRESS), value);
            fleet.etcd.put(&key(), record(moved));
            assert_eq!(addresses(&fleet.add(0, &due()).result()), ["10.241.7.3/24"]);
            assert!(pinned(&fleet, moved).contains(moved));
        }
        assert_eq!(fleet.etcd.keys(HOSTS), [format!("{HOSTS}{moved}")], "{unused}");
        assert_eq!(fleet.etcd.leases().len(), 1, "{unused}");
    }
}

/// Containers live in the subnet that it has. Without them it goes where somebody wants it.
#[test]
fn a_host_whose_record_goes_while_another_subnet_is_pinned_for_it() {
    let fleet = Fleet::new(1, V4);
    let calls = [(); 2].map(|()| fleet.ipam("ADD", 0, &due()));
    calls[0].clone().run().result();
    let (key, value) = fleet.record();
    let part = key.trim_end_matches("0-24").to_owned();
    let key = format!("{SUBNETS}{key}");
    fleet.etcd.del(&key);
    pin(&fleet);
    let reply = calls[1].clone().run_with_news();
    assert!(addresses(&reply.result())[0].starts_with(&part));
    assert!(reply.stderr.contains(&format!("{} is ignored", self::key())), "{}", reply.stderr);
    assert_eq!(fleet.etcd.get(&key), Some(value));
    for call in calls {
        call.env("CNI_COMMAND", "DEL").run().done();
    }
    fleet.etcd.del(&key);
    assert_eq!(addresses(&fleet.add(0, &due()).result()), ["10.241.7.2/24"]);
    assert_eq!(fleet.etcd.keys(SUBNETS), [self::key()]);
}

/// It may have been killed between etcd's answer and its file, by which another container came then.
#[test]
fn a_record_that_is_not_on_file_is_given_up_while_containers_live_elsewhere() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &due()).result();
    let (subnet, value) = fleet.record();
    fleet.etcd.del(&format!("{SUBNETS}{subnet}"));
    fleet.etcd.put_leased(&key(), &value, &fleet.etcd.leases()[0].id);
    let given = addresses(&fleet.add(0, &due()).result());
    assert!(given[0].starts_with(subnet.trim_end_matches("0-24")), "{given:?}");
    assert_eq!(fleet.record(), (subnet, value));
    assert_eq!(fleet.etcd.leases().len(), 1);
}
