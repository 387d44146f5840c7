//! What STATUS asks etcd on a host without an agent, and what ADDs have from that.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weft_tests::Relay;

use super::super::{CONFIG, Fleet, V4};

/// As if the other hosts had been read long ago.
pub(super) fn age_peers(fleet: &Fleet) {
    let file = fleet.node(0).data_dir().join("pods/peers.json");
    let peers = fs::File::options().write(true).open(file).expect("open a file");
    peers.set_modified(SystemTime::UNIX_EPOCH).expect("make it old");
}

/// It is asked again and again, and etcd takes longer to answer than STATUS waits. An ADD waits for it.
#[test]
fn status_keeps_no_add_from_renewing_the_lease() {
    let fleet = Fleet::new(1, V4);
    let node = fleet.node(0);
    let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
    let slow = json!({ "ipam": { "etcd": { "endpoints": [relay.endpoint()] } } });
    fleet.add(0, &slow).result();
    let file = node.data_dir().join("pods/lease.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON") };
    let mut lease = read();
    let renewed = lease["renewed"].as_u64().expect("a time");
    lease["renewed"] = json!(renewed - 50_000);
    fs::write(&file, lease.to_string()).expect("more than half of its time is over");
    relay.delay(Duration::from_millis(150));
    fleet.ipam("STATUS", 0, &slow).run().done();
    fleet.add(0, &slow).result();
    assert!(read()["renewed"].as_u64() >= Some(renewed), "{}", read());
}

/// What etcd says, or does not, is good until an ADD asks next. That it is bad is no reason to ask less.
#[test]
fn status_asks_once_in_a_while() {
    let fleet = Fleet::new(1, V4);
    let asked = || fleet.etcd.members()[0].calls("Txn");
    let status = || fleet.ipam("STATUS", 0, &json!({})).run();
    fleet.add(0, &json!({})).result();
    age_peers(&fleet);
    let before = asked();
    (0..4).for_each(|_| status().done());
    assert_eq!(asked() - before, 1);
    fleet.add(0, &json!({})).result();
    assert_eq!(asked() - before, 2, "an ADD asks as if nobody had");
    fleet.etcd.put(CONFIG, r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    status().done();
    age_peers(&fleet);
    fleet.fails(0, &json!({ "ipam": { "peerRefresh": 0 } }), 7);
    (0..2).for_each(|_| drop(status().error_code(50)));
    fleet.etcd.put(CONFIG, V4);
    let before = asked();
    (0..4).for_each(|_| status().done());
    assert_eq!(asked() - before, 1);
}
