//! Many hosts at once.

use std::collections::BTreeSet;

use serde_json::json;
use weft_ipam::lease::{Claimant, Lease, acquire};
use weft_ipam::registry::{Attempt, Candidate, Claim, Record, Registry, Watched, in_event_loop};
use weft_tests::{Access, Cluster, NEWCOMER, host_at, take_all};

use super::super::{CONFIG, DUAL, Fleet, SUBNETS, V4};

#[test]
fn a_thousand_hosts_take_a_subnet_each() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(CONFIG, V4);
    let keys = take_all(&etcd, 1000);
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(etcd.keys(SUBNETS).len(), 1000);
}

/// No two of them share a subnet of either family, although their keys differ when they share only one.
#[test]
fn hosts_of_both_families_share_nothing() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    // So few subnets of IPv6 that they meet.
    etcd.put(CONFIG, DUAL.replace("fd00:42::/48", "fd00:42::/57"));
    take_all(&etcd, 100);
    let keys = etcd.keys(SUBNETS);
    assert_eq!(keys.len(), 100);
    let parts: BTreeSet<&str> =
        keys.iter().flat_map(|key| key.trim_start_matches(SUBNETS).split('&')).collect();
    assert_eq!(parts.len(), 200);
}

/// Two hosts of both families came at once to one subnet of IPv6, and the later one was killed before it noticed.
#[test]
fn who_came_later_to_a_shared_subnet_gives_way_when_it_comes_again() {
    let fleet = Fleet::new(1, DUAL);
    let record = |host: u8| {
        let data = |mac: u8| format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:{mac:02x}:{host:02x}"}}"#);
        format!(
            r#"{{"PublicIP":"172.30.0.{host}","PublicIPv6":"fd30::{host}","BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#,
            data(4),
            data(6)
        )
    };
    let (elder, own) = ("10.244.1.0-24&fd00:42:0:31::-64", "10.244.6.0-24&fd00:42:0:31::-64");
    let put = |key: &str, value: &str| fleet.etcd.put(&format!("{SUBNETS}{key}"), value);
    let leave = |key: &str| fleet.etcd.del(&format!("{SUBNETS}{key}"));
    let peer_refresh = json!({ "ipam": { "peerRefresh": 0 } });
    put(elder, &record(99));
    // Whoever has pinned a subnet for it is to change that.
    put(own, &record(11));
    let parts = [own, elder, "172.30.0.99 and fd30::99", "etcdctl del"];
    fleet.fails(0, &peer_refresh, 103).assert_names(&parts);
    fleet.ipam("STATUS", 0, &peer_refresh).run().error_code(50).assert_names(&parts);
    assert_eq!(fleet.keys(), [elder, own]);
    assert!(fleet.etcd.leases().is_empty());
    // Nobody has, and nothing lives in its subnet: it takes another one.
    fleet.etcd.put_leased(&format!("{SUBNETS}{own}"), record(11), &fleet.etcd.grant(600));
    fleet.ipam("STATUS", 0, &peer_refresh).run().done();
    let reply = fleet.add(0, &peer_refresh);
    reply.result();
    assert!(reply.stderr.contains(own) && reply.stderr.contains(elder), "{}", reply.stderr);
    let keys = fleet.keys();
    assert!(keys.len() == 2 && keys[0] == elder && keys[1..] != [own], "{keys:?}");
    // Containers do, and it was there first: who came later is to give way, and what is no host's takes nothing.
    let (key, other) =
        (keys[1].clone(), format!("10.244.1.0-24&{}", keys[1].split_once('&').expect("both").1));
    let value = fleet.etcd.get(&format!("{SUBNETS}{key}")).expect("its record");
    leave(elder);
    put(&other, &record(99));
    fleet.add(0, &peer_refresh).result();
    put(&other, "{}");
    leave(&key);
    put(&key, &value);
    fleet.add(0, &peer_refresh).result();
    // The other one was there first.
    put(&other, &record(99));
    let parts = [&key, "172.30.0.99 and fd30::99", &format!("etcdctl del {SUBNETS}{other}")];
    fleet.fails(0, &peer_refresh, 103).assert_names(&parts);
    fleet.ipam("STATUS", 0, &peer_refresh).run().error_code(51).assert_names(&parts);
    leave(&other);
    fleet.add(0, &peer_refresh).result();
    assert_eq!(fleet.keys(), [key]);
}

#[test]
fn two_hosts_race_for_one_subnet_two_hundred_times() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    // Three subnets, of which one is left.
    etcd.put(CONFIG, r#"{"Network": "10.240.0.0/22", "Backend": {"Type": "vxlan"}}"#);
    let record = |number: u8| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:00:0{number}"}}"#);
        format!(
            r#"{{"PublicIP":"172.31.0.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
        )
    };
    for number in [1, 2] {
        etcd.put(&format!("{SUBNETS}10.240.{number}.0-24"), record(number));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    runtime.block_on(async {
        let confs = [host_at(&etcd, 1), host_at(&etcd, 2)];
        let mut one = Registry::new(&confs[0]).expect("a registry");
        let mut other = Registry::new(&confs[1]).expect("a registry");
        for round in 0..200 {
            let both = tokio::join!(
                acquire(&mut one, &confs[0], NEWCOMER),
                acquire(&mut other, &confs[1], NEWCOMER)
            );
            let held: Vec<_> = [both.0, both.1]
                .into_iter()
                .filter_map(|outcome| match outcome {
                    Ok(Lease::Held(lease)) => Some(lease),
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => {
                        assert!(error.msg.contains("all 3 subnets"), "{}", error.msg);
                        None
                    }
                })
                .collect();
            assert_eq!(held.len(), 1, "round {round}");
            weft_ipam::lease::release(&mut one, &held[0]).await.expect("give it back");
        }
    });
}

/// Its record became what is no text while the host was given another address. Nobody is faster, and nothing is asked more often than
/// that helps.
#[test]
fn what_etcd_does_not_take_although_nothing_changes_is_tried_at_a_pace() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(CONFIG, V4);
    let confs = [host_at(&etcd, 1), host_at(&etcd, 2)];
    let mut registry = Registry::new(&confs[0]).expect("a registry");
    let error = in_event_loop(async {
        let Lease::Held(lease) = acquire(&mut registry, &confs[0], NEWCOMER).await? else {
            panic!("no lease")
        };
        etcd.put_leased(&format!("{SUBNETS}{}", lease.key), b"\xff", &format!("{:x}", lease.lease_id));
        acquire(&mut registry, &confs[1], Claimant { before: Some(&lease), ..NEWCOMER }).await
    });
    let error = error.expect_err("it cannot be put");
    assert!(error.msg.contains("20 times, although nothing of the network has changed"), "{error}");
}

/// The second choice needs no second call, and the keys that are taken come with the answer when there is none left.
#[test]
fn of_two_choices_the_first_that_is_free_is_taken() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(&format!("{SUBNETS}10.240.1.0-24"), "another host's");
    let conf = host_at(&etcd, 1);
    let candidate = |key| Candidate {
        record: Record { key, value: "this host's", lease: 7 },
        taken_if: key,
        claim: Claim { addresses: Vec::new(), value: String::new(), lease: 7, former: Vec::new() },
    };
    let candidates = ["10.240.1.0-24", "10.240.2.0-24"].map(candidate);
    let attempt = in_event_loop(async {
        let mut registry = Registry::new(&conf)?;
        registry.lease(7, 60).await?;
        Ok([registry.take(&candidates).await?, registry.take(&candidates).await?])
    });
    let [first, second] = attempt.expect("etcd answers");
    assert!(matches!(first, Attempt::Done(1)), "{first:?}");
    assert_eq!(etcd.get(&format!("{SUBNETS}10.240.2.0-24")).as_deref(), Some("this host's"));
    let Attempt::Lost(taken) = second else { panic!("{second:?}") };
    assert_eq!(taken, ["10.240.1.0-24", "10.240.2.0-24"]);
}

/// Ten thousand keys of anybody are not in the way.
#[test]
fn a_store_full_of_what_does_not_belong_there() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(CONFIG, V4);
    let keys: Vec<String> = (0..10_000).map(|number| format!("{SUBNETS}10.240.{number}-nonsense")).collect();
    for part in keys.chunks(100) {
        etcd.put_all(part.iter().map(|key| (key.as_str(), "{]")));
    }
    let key = take_all(&etcd, 1).remove(0);
    assert!(etcd.get(&format!("{SUBNETS}{key}")).is_some());
}

/// Values of almost the size that etcd takes: a gRPC client reads no answer of more than 4 MiB unless it is told to.
#[test]
fn large_values_of_anybody_are_not_in_the_way() {
    let cluster = Cluster::new(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(CONFIG, V4);
    for number in 0..4 {
        etcd.put(&format!("{SUBNETS}large-{number}"), vec![b'x'; 1_400_000]);
    }
    let conf = host_at(&etcd, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    runtime.block_on(async {
        let mut registry = Registry::new(&conf).expect("a registry");
        assert_eq!(registry.hosts().await.expect("the hosts").records.len(), 4);
        let lease = acquire(&mut registry, &conf, NEWCOMER).await.expect("a lease");
        assert!(matches!(lease, Lease::Held(_)), "{lease:?}");
        // What was missed comes in one message, behind one that says only that the watch begins.
        let mut watch = registry.watch(1).await.expect("a watch");
        let mut missed = 0;
        while missed == 0 {
            let Watched::Changes { records, .. } = watch.next().await.expect("what was missed") else {
                panic!("nothing was compacted");
            };
            missed = records.len();
        }
        assert_eq!(missed, 5);
    });
}
