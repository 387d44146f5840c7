//! A host whose subnet somebody has pinned: its record in etcd has no lease.

use std::os::unix::fs::MetadataExt as _;

use super::*;

pub(super) const PINNED: &str = "10.240.7.0-24";

fn host(cluster: &Cluster) -> (Etcd, Weftd) {
    let (etcd, node) = (cluster.etcd(1, Access::Open), cluster.node(0));
    etcd.put("/coreos.com/network/config", CONFIG);
    etcd.put(&format!("{SUBNETS}{PINNED}"), record(&node.ipv4.to_string(), "8e:00:00:00:00:0b"));
    let agent = Weftd::up(node, &etcd);
    assert_eq!(subnet(node), PINNED);
    (etcd, agent)
}

/// Nothing but who has the address hangs on a lease.
#[track_caller]
fn only_the_address_ends(etcd: &Etcd, node: &Node) {
    let keys: Vec<_> = etcd.leases().into_iter().map(|lease| lease.keys).collect();
    assert_eq!(keys, [[format!("{}/weft/hosts/{}", Weftd::PREFIX, node.ipv4)]]);
}

fn metric(agent: &Weftd, name: &str) -> Option<f64> {
    agent.metric(&format!(r#"{name}{{network="pods"}}"#))
}

/// It has no end of which anybody would have to be told, or that would have to be put on file.
#[test]
fn nothing_is_written_as_long_as_nothing_changes() {
    let cluster = Cluster::new(1);
    let (etcd, agent) = host(&cluster);
    let file = cluster.node(0).data_dir().join(Weftd::NETWORK).join("lease.json");
    let inode = || fs::metadata(&file).expect("the lease's file").ino();
    let before = inode();
    let (mut beats, mut last) = (0, 0.0);
    eventually(Duration::from_secs(30), "etcd is asked several times", || {
        let age = metric(&agent, "weft_lease_age_seconds")?;
        beats += i32::from(age < last);
        last = age;
        (beats >= 4).then_some(())
    });
    assert_eq!(inode(), before);
    assert_eq!(metric(&agent, "weft_lease_left_seconds"), None);
    only_the_address_ends(&etcd, cluster.node(0));
}

/// That etcd cannot be reached is noticed, and so is that it can be again.
#[test]
fn a_host_that_was_cut_off_for_a_moment_catches_up_at_once() {
    let cluster = Cluster::new(1);
    let (etcd, agent) = host(&cluster);
    let node = cluster.node(0);
    node.cable.cut();
    etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    eventually(PATIENCE, "etcd is silent", || {
        metric(&agent, "weft_store_silence_seconds").filter(|silence| *silence > 4.0)
    });
    node.cable.join();
    assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
}

/// What somebody does to the record is seen by the watch, and by whoever asks after it.
#[test]
fn a_record_that_goes_is_put_back() {
    let cluster = Cluster::new(1);
    let (etcd, agent) = host(&cluster);
    let key = format!("{SUBNETS}{PINNED}");
    let own = etcd.get(&key).expect("the host's record");
    etcd.del(&key);
    let again = eventually(REPAIR, "the record is back", || etcd.get(&key));
    assert_eq!(again, own);
    agent.ready();
    assert_eq!(subnet(cluster.node(0)), PINNED);
}

/// Somebody pins the record of a host that runs, and pins it no more: what has no end does not end while etcd is away.
#[test]
fn a_record_that_is_pinned_while_the_agent_runs() {
    let fleet = Fleet::of(1, CONFIG, &json!({ "leaseTTL": 6 }));
    let (node, agent, etcd) = (fleet.node(0), &fleet.agents[0], &fleet.etcd);
    let file = node.data_dir().join(Weftd::NETWORK).join("lease.json");
    let becomes_pinned = |pinned: bool| {
        eventually(PATIENCE, &format!("what is on file says pinned: {pinned}"), || {
            let lease: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (lease["pinned"] == json!(pinned)).then_some(())
        });
    };
    let key = format!("{SUBNETS}{}", subnet(node));
    let own = etcd.get(&key).expect("the host's record");
    etcd.put(&key, &own);
    becomes_pinned(true);
    only_the_address_ends(etcd, node);
    etcd.freeze();
    eventually(Duration::from_secs(20), "etcd is silent for longer than the lease lasts", || {
        metric(agent, "weft_store_silence_seconds").filter(|silence| *silence > 8.0)
    });
    assert_eq!(agent.ask("/readyz").expect("an answer").status, 200);
    assert_eq!(metric(agent, "weft_lease_left_seconds"), None);
    Weftd::network(etcd).call("STATUS").on(node).run().done();
    assert!(!agent.daemon().log().contains("has ended"), "{}", agent.daemon().log());
    etcd.thaw();
    etcd.put_leased(&key, &own, &etcd.grant(60));
    becomes_pinned(false);
    let keys: Vec<_> = etcd.leases().into_iter().map(|lease| lease.keys).collect();
    assert_eq!(keys, [[key, format!("{}/weft/hosts/{}", Weftd::PREFIX, node.ipv4)]]);
}

/// Containers may live in the subnet that it has.
#[test]
fn a_record_that_goes_while_another_subnet_is_pinned_for_the_host() {
    let fleet = Fleet::new(1);
    let (node, agent, etcd) = (fleet.node(0), &fleet.agents[0], &fleet.etcd);
    let had = subnet(node);
    let (key, other) = (format!("{SUBNETS}{had}"), format!("{SUBNETS}{PINNED}"));
    let own = etcd.get(&key).expect("the host's record");
    etcd.put(&other, &own);
    etcd.del(&key);
    let again = eventually(REPAIR, "the record is back", || etcd.get(&key));
    assert_eq!(again, own);
    eventually(REPAIR, "it says what it leaves alone", || {
        agent.daemon().log().contains(&format!("{other} is ignored")).then_some(())
    });
    assert_eq!(subnet(node), had);
}

/// It may have been killed between etcd's answer and its file, by which a container came then.
#[test]
fn a_record_that_is_not_on_file_is_given_up() {
    let mut fleet = Fleet::new(1);
    let had = subnet(fleet.node(0));
    fleet.agents[0].daemon().kill();
    let (key, other) = (format!("{SUBNETS}{had}"), format!("{SUBNETS}{PINNED}"));
    let own = fleet.etcd.get(&key).expect("the host's record");
    fleet.etcd.del(&key);
    fleet.etcd.put_leased(&other, &own, &fleet.etcd.leases()[0].id);
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    assert_eq!(subnet(fleet.node(0)), had);
    assert_eq!(fleet.etcd.keys(SUBNETS), [key]);
}

/// It is the same host that comes again, whatever has become of its lease meanwhile.
#[test]
fn an_agent_that_is_killed_comes_back_to_its_subnet() {
    let cluster = Cluster::new(1);
    let (etcd, mut agent) = host(&cluster);
    let node = cluster.node(0);
    let key = format!("{SUBNETS}{PINNED}");
    let own = etcd.get(&key);
    for ended in [false, true] {
        agent.daemon().kill();
        if ended {
            etcd.revoke(&etcd.leases()[0].id);
        }
        let start = Instant::now();
        agent = Weftd::up(node, &etcd);
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        assert_eq!((subnet(node), etcd.get(&key)), (PINNED.to_owned(), own.clone()));
        only_the_address_ends(&etcd, node);
    }
    // Also while it lives, as after an outage that was longer than the lease.
    etcd.revoke(&etcd.leases()[0].id);
    eventually(PATIENCE, "it says again who it is", || (!etcd.leases().is_empty()).then_some(()));
    agent.ready();
    assert_eq!(etcd.get(&key), own);
    only_the_address_ends(&etcd, node);
}
