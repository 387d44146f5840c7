//! News of the other hosts where no agent brings them: an ADD looks for them when it is time.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weft_tests::Weftd;

use super::{Fleet, SUBNETS, V4};

/// `ipam.peerRefresh`, when it is not given.
const DEFAULT: Duration = Duration::from_secs(10);
/// Sooner than that by more than an ADD takes on a busy machine.
const SOONER: Duration = Duration::from_secs(6);

fn other_host(number: u8) -> String {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:00:{number}"}}"#);
    format!(
        r#"{{"PublicIP":"172.30.0.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
    )
}

/// Not before its time, by when the hosts were last read and when they were last asked for; and then at once.
#[test]
fn an_add_looks_for_the_other_hosts_every_ten_seconds() {
    let mut fleet = Fleet::new(&[1], V4);
    fleet.network = fleet.network.with(&json!({ "ipam": { "peerRefresh": Value::Null } }));
    let node = fleet.node(0);
    let file = |name: &str| node.data_dir().join(Weftd::NETWORK).join(name);
    // As if it had been written some time ago.
    let age = |name: &str, by: Duration| {
        let file = File::options().write(true).open(file(name)).expect("a file of the network");
        file.set_modified(SystemTime::now() - by).expect("set a file's time");
    };
    let knows_after_add = |number: u8| {
        drop(node.attach(&fleet.network));
        node.command("bridge fdb show dev weft.1").contains(&format!("dst 172.30.0.{number} "))
    };
    let comes = |number: u8| {
        fleet.etcd.put(&format!("{SUBNETS}10.250.{number}.0-24"), other_host(number));
    };
    drop(node.attach(&fleet.network));
    comes(98);
    assert!(!knows_after_add(98), "they were read just now");
    age("peers.json", SOONER);
    assert!(!knows_after_add(98), "they were read {SOONER:?} ago");
    assert!(!file("tried").exists(), "nobody has asked for them since");
    age("peers.json", DEFAULT);
    assert!(knows_after_add(98), "they were read {DEFAULT:?} ago");

    comes(99);
    age("peers.json", DEFAULT);
    assert!(!knows_after_add(99), "they were asked for just now");
    age("tried", SOONER);
    assert!(!knows_after_add(99), "they were asked for {SOONER:?} ago");
    age("tried", DEFAULT);
    assert!(knows_after_add(99), "they were asked for {DEFAULT:?} ago");
}
