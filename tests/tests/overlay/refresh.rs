//! News of the other hosts where no agent brings them: an ADD looks for them when it is time.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weft_tests::Weftd;

use super::{CONFIG, Fleet, SUBNETS, V4};

/// `ipam.peerRefresh`, when it is not given.
const DEFAULT: Duration = Duration::from_secs(10);
/// Sooner than that by more than an ADD takes on a busy machine.
const SOONER: Duration = Duration::from_secs(6);

pub(super) fn other_host(number: u8) -> String {
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
    fleet.etcd.freeze();
    assert!(!knows_after_add(99), "etcd does not answer");
    fleet.etcd.thaw();
    assert!(!knows_after_add(99), "they were asked for just now");
    age("tried", SOONER);
    assert!(!knows_after_add(99), "they were asked for {SOONER:?} ago");
    age("tried", DEFAULT);
    assert!(knows_after_add(99), "they were asked for {DEFAULT:?} ago");
}

/// The other host puts its record back only with an ADD of its own, for which nothing may call for long: until then it stays, whether or not
/// the network's configuration is back, and whatever the revision is.
#[test]
fn a_host_stays_when_etcd_has_lost_its_data() {
    let fleet = Fleet::new(&[2], V4);
    let pods = fleet.all_reach(1);
    let (from, to) = (&pods[0].0, pods[1].1[0]);
    let is_others = |key: &String| fleet.etcd.get(key).is_some_and(|value| value.contains("172.30.0.12"));
    let key = || fleet.etcd.keys(SUBNETS).into_iter().find(is_others);
    let reaches = || from.ping(to).status.success();
    for writes in [0, 40] {
        fleet.etcd.restart_empty();
        (0..writes).for_each(|number| fleet.etcd.put("/of/others", number.to_string()));
        for config in [None, Some(V4)] {
            if let Some(config) = config {
                fleet.etcd.put(CONFIG, config);
            }
            for add in ["first", "second"] {
                drop(fleet.node(0).attach(&fleet.network));
                assert_eq!(key(), None, "nothing has called the other host");
                assert!(reaches(), "{writes} writes, {config:?}, the {add} ADD");
            }
        }
        if writes != 0 {
            // As if it had been waited for since 1970.
            let file = fleet.node(0).data_dir().join(Weftd::NETWORK).join("peers.json");
            let mut peers: Value =
                serde_json::from_slice(&fs::read(&file).expect("read peers.json")).expect("JSON");
            assert!(peers["lost"].is_u64(), "{peers}");
            peers["lost"] = json!(1);
            fs::write(&file, peers.to_string()).expect("write peers.json");
            drop(fleet.node(0).attach(&fleet.network));
            assert!(!reaches(), "it was not waited for any longer");
        }
        // It comes back, and is as any other host.
        drop(fleet.node(1).attach(&fleet.network));
        let back = key().expect("the other host's record");
        drop(fleet.node(0).attach(&fleet.network));
        from.assert_reaches(to);
        if writes != 0 {
            fleet.etcd.del(&back);
            drop(fleet.node(0).attach(&fleet.network));
            assert!(!reaches(), "it has left");
        }
    }
}
