//! A host whose subnet somebody has pinned: its record in etcd has no lease.

use std::os::unix::fs::MetadataExt as _;

use super::*;

const PINNED: &str = "10.240.7.0-24";

fn host(cluster: &Cluster) -> (Etcd, Weftd) {
    let (etcd, node) = (cluster.etcd(1, Access::Open), cluster.node(0));
    etcd.put("/coreos.com/network/config", CONFIG);
    etcd.put(&format!("{SUBNETS}{PINNED}"), record(&node.ipv4.to_string(), "8e:00:00:00:00:0b"));
    let agent = Weftd::up(node, &etcd);
    assert_eq!(subnet(node), PINNED);
    (etcd, agent)
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
    assert!(etcd.leases().is_empty(), "nothing of the host hangs on a lease");
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
