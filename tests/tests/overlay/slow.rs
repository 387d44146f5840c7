//! etcd that answers, but late.

use std::time::{Duration, Instant};

use serde_json::json;
use weft_tests::{Relay, ips};

use super::{Fleet, SUBNETS, V4};

/// An ADD can do without news of other hosts: it waits for them for 200 ms, and does not fail for want of them.
#[test]
fn an_add_does_not_wait_for_news_that_are_late() {
    let fleet = Fleet::new(&[2], V4);
    let (node, other) = (fleet.node(0), fleet.node(1));
    let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
    let slow =
        fleet.network.clone().with(&json!({ "ipam": { "etcd": { "endpoints": [relay.endpoint()] } } }));
    let (pod, _) = node.attach(&slow);
    let (there, result) = other.attach(&fleet.network);
    let add = || {
        let start = Instant::now();
        let late = weft_tests::Pod::new();
        let reply = slow.add_call(&late).on(node).run();
        reply.result();
        (reply.stderr, start.elapsed())
    };
    let knows = |public: &str| node.command("bridge fdb show dev weft.1").contains(&format!("dst {public} "));

    // The answer is far away; the request is, too.
    relay.delay(Duration::from_secs(3));
    let (said, took) = add();
    assert!(said.contains("etcd gave no answer within 200ms; going on with what is known"), "{said}");
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(3), "{took:?}");
    assert!(!knows("172.30.0.12"), "there was no news");

    // Slow, but in time.
    relay.delay(Duration::from_millis(5));
    let (said, took) = add();
    assert!(!said.contains("no answer"), "{said}");
    assert!(took >= Duration::from_millis(10), "it has come the long way: {took:?}");
    assert!(knows("172.30.0.12"));
    drop(other.attach(&fleet.network));
    pod.assert_reaches(ips(&result)[0]);

    // What is known stays when news fail to come.
    relay.delay(Duration::from_secs(3));
    add();
    assert!(knows("172.30.0.12"));
    pod.assert_reaches(ips(&result)[0]);
    drop(there);
    assert_eq!(fleet.etcd.keys(SUBNETS).len(), 2);
}

/// Without an agent nobody but an ADD renews the lease: for that it waits, also for longer than for news.
#[test]
fn a_lease_is_renewed_however_late_etcd_answers() {
    let fleet = Fleet::new(&[1], V4);
    let node = fleet.node(0);
    let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
    let ipam = json!({ "leaseTTL": 10, "etcd": { "endpoints": [relay.endpoint()] } });
    let slow = fleet.network.clone().with(&json!({ "ipam": ipam }));
    drop(node.attach(&slow));
    let before = fleet.etcd.keys(SUBNETS);
    relay.delay(Duration::from_millis(110));
    let start = Instant::now();
    let mut late = 0;
    // As long as the lease lasts, and half as long again.
    while start.elapsed() < Duration::from_secs(15) {
        let pod = weft_tests::Pod::new();
        let reply = slow.add_call(&pod).on(node).run();
        late += usize::from(reply.stderr.contains("etcd gave no answer within 200ms"));
        reply.result();
    }
    assert!(late > 0, "for news they wait no longer");
    assert_eq!((fleet.etcd.keys(SUBNETS), fleet.etcd.leases().len()), (before, 1));
}
