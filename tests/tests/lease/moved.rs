//! A host without containers whose subnet becomes another one, as the network was configured anew or another host has it, while
//! containers come.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weft_tests::{Call, Pod, Relay, eventually, hold};

use super::super::{CONFIG, Fleet, SUBNETS, V4, addresses, ipam};
use super::identity::record;
use super::status::age_peers;

const ROUNDS: u64 = 30;

/// The one that finds it out takes as long as etcd does; the other one comes with it, or in the middle of that. Whoever has an address has
/// it of the subnet that the host has then.
#[test]
fn containers_that_come_while_the_subnet_changes_are_in_the_new_one() {
    let config = |number: u64| {
        format!(r#"{{"Network": "10.{}.0.0/16", "Backend": {{"Type": "vxlan"}}}}"#, 240 + number % 2)
    };
    let fleet = Fleet::new(1, &config(0));
    let node = fleet.node(0);
    let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
    let network = fleet.conf(&json!({ "ipam": { "etcd": { "endpoints": [relay.endpoint()] } } }));
    let call = |command: &str, pod: &Pod| {
        Call::new("weft-ipam", command, network.conf.to_string()).on(node).pod(pod)
    };
    let first = Pod::new();
    call("ADD", &first).run().result();
    call("DEL", &first).run().done();
    relay.delay(Duration::from_millis(10));
    let lease = node.data_dir().join("pods");
    for round in 1..=ROUNDS {
        let (before, _) = fleet.record();
        fleet.etcd.put(CONFIG, config(round));
        // Long ago: the first to come looks.
        age_peers(&fleet);
        let _none_yet = fs::remove_file(lease.join("tried"));
        let pods = [Pod::new(), Pod::new()];
        let one = call("ADD", &pods[0]).start();
        if round % 2 == 0 {
            // On a busy machine etcd may be too late: then everything stays.
            let stat = format!("/proc/{}/stat", one.pid());
            let has_ended = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "));
            eventually(Duration::from_secs(5), "the former record is gone", || {
                (!fleet.keys().contains(&before) || has_ended()).then_some(())
            });
        }
        let replies = [call("ADD", &pods[1]).run(), one.finish()];
        let (key, _) = fleet.record();
        let subnet = key.trim_end_matches("0-24");
        for reply in replies.iter().filter(|reply| reply.succeeded()) {
            let given = addresses(&reply.result());
            assert!(given[0].starts_with(subnet), "round {round}: {given:?} is not of {key}");
        }
        assert!(replies.iter().any(weft_tests::Reply::succeeded), "round {round}");
        pods.iter().for_each(|pod| call("DEL", pod).run().done());
    }
}

/// Whoever keeps the lease ends it once etcd has no subnet for the host, or an ADD finds it wrong, while a container is on its way to an
/// address of that.
#[test]
fn a_container_on_its_way_while_the_lease_is_ended_or_comes_into_doubt_asks_etcd() {
    for is_ended in [true, false] {
        on_its_way(is_ended);
    }
}

fn on_its_way(is_ended: bool) {
    let fleet = Fleet::new(1, V4);
    let node = fleet.node(0);
    let call = fleet.ipam("ADD", 0, &json!({}));
    call.clone().run().result();
    call.env("CNI_COMMAND", "DEL").run().done();
    let (key, _) = fleet.record();
    let books = node.command(&format!("find {} -path */ipam/lock", node.state_dir().display()));
    let books = hold(books.trim());
    let late = fleet.ipam("ADD", 0, &json!({})).start();
    let waits = format!(" {} ", late.pid());
    eventually(Duration::from_secs(5), "it waits for the books", || {
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        locks.lines().any(|line| line.contains("->") && line.contains(&waits)).then_some(())
    });
    fleet.etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.99"));
    let directory = node.data_dir().join("pods");
    if is_ended {
        let file = directory.join("lease.json");
        let mut lease: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
        lease["renewed"] = json!(0);
        let next = file.with_extension("next");
        fs::write(&next, lease.to_string()).expect("end the lease");
        fs::rename(&next, &file).expect("end the lease");
    } else {
        fs::write(directory.join("tried"), "?").expect("note a doubt");
    }
    drop(books);
    let given = addresses(&late.finish().result());
    assert!(!given[0].starts_with(key.trim_end_matches("0-24")), "{given:?} is of {key}");
}

/// One that comes first finds the host another subnet, as it has another address or place in etcd. One that comes with it goes by what is on
/// file.
#[test]
fn an_add_that_goes_on_with_a_lease_while_another_one_leaves_it() {
    for changes in [json!({}), json!({ "ipam": { "etcd": { "prefix": "/other" } } })] {
        let fleet = Fleet::new(1, V4);
        fleet
            .etcd
            .put("/other/config", r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan", "VNI": 2}}"#);
        let node = fleet.node(0);
        let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
        // It goes on in two seconds.
        let slow =
            json!({ "timeout": 8, "ipam": { "etcd": { "endpoints": [relay.endpoint()], "timeout": 20 } } });
        let call = fleet.ipam("ADD", 0, &slow);
        call.clone().run().result();
        call.env("CNI_COMMAND", "DEL").run().done();
        let (key, _) = fleet.record();
        if changes == json!({}) {
            node.renumber("172.30.0.11", "172.30.0.22");
            fleet.etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.99"));
        }
        relay.delay(Duration::from_millis(400));
        let first =
            ipam("ADD", node, &fleet.conf(&slow).with(&json!({ "timeout": 60 })).with(&changes)).start();
        let holds = format!(" {} ", first.pid());
        eventually(Duration::from_secs(5), "it has the lock of the lease", || {
            let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
            locks.lines().any(|line| line.contains(&holds)).then_some(())
        });
        let replies = [fleet.ipam("ADD", 0, &slow).run(), first.finish()];
        let lease = fs::read(node.data_dir().join("pods/lease.json")).expect("a lease");
        let lease: Value = serde_json::from_slice(&lease).expect("JSON");
        let now = lease["key"].as_str().expect("a key").trim_end_matches("0-24");
        for reply in replies.iter().filter(|reply| reply.succeeded()) {
            let given = addresses(&reply.result());
            assert!(given[0].starts_with(now), "{changes}: {given:?} is not of {now}");
        }
        assert!(replies.iter().any(weft_tests::Reply::succeeded), "{changes}");
    }
}

/// Nothing lives in its subnet, and etcd had no other one for it.
#[test]
fn a_host_that_lost_its_subnet_gives_no_address_of_it_while_etcd_is_silent() {
    let one = r#"{"Network": "10.240.0.0/16", "SubnetMin": "10.240.1.0", "SubnetMax": "10.240.1.0", "Backend": {"Type": "vxlan"}}"#;
    let fleet = Fleet::new(1, one);
    let key = format!("{SUBNETS}10.240.1.0-24");
    let due = json!({ "timeout": 4, "ipam": { "peerRefresh": 0 } });
    let call = fleet.ipam("ADD", 0, &due);
    call.clone().run().result();
    call.env("CNI_COMMAND", "DEL").run().done();
    fleet.etcd.del(&key);
    fleet.etcd.put(&key, record("172.30.0.99"));
    fleet.etcd.del(CONFIG);
    fleet.fails(0, &due, 7);
    fleet.etcd.put(CONFIG, one);
    fleet.fails(0, &due, 104);
    // One that is killed while it asks has not said anything else.
    fleet.etcd.freeze();
    let killed = fleet.ipam("ADD", 0, &due).start();
    let tried = fleet.node(0).data_dir().join("pods/tried");
    eventually(Duration::from_secs(5), "it waits for etcd", || {
        let sockets = fs::read_dir(format!("/proc/{}/fd", killed.pid())).ok()?;
        let links = sockets.filter_map(|socket| fs::read_link(socket.ok()?.path()).ok());
        links.into_iter().any(|link| link.to_string_lossy().starts_with("socket:")).then_some(())
    });
    killed.kill();
    assert_ne!(killed.finish().status.code(), Some(0));
    let parts = ["172.30.0.2:2379", "the lease on file is not right any more"];
    // News of other hosts need not be due for that.
    for changes in [&due, &json!({ "timeout": 4 }), &json!({ "timeout": 4 })] {
        fleet.fails(0, changes, 11).assert_names(&parts);
        fleet.ipam("STATUS", 0, changes).run().error_code(50).assert_names(&parts);
    }
    fleet.etcd.thaw();
    fleet.fails(0, &due, 104);
    fleet.etcd.del(&key);
    assert_eq!(addresses(&fleet.add(0, &json!({})).result()), ["10.240.1.3/24"]);
    assert_eq!(fs::metadata(tried).map(|file| file.len()).unwrap_or_default(), 0, "that is settled");
    fleet.etcd.kill();
    fleet.add(0, &json!({})).result();
}

/// The subnet is the host's all the same, whether the ADD that finds that out is killed or loses etcd before it has settled it.
#[test]
fn another_time_of_the_lease_brings_no_doubt_on_it() {
    for is_killed in [true, false] {
        let fleet = Fleet::new(1, V4);
        let node = fleet.node(0);
        let relay = Relay::start(node, fleet.etcd.members()[0].clients().next().expect("an address"));
        let changes = |refresh: u32| {
            let ipam = json!({ "leaseTTL": 90_000, "peerRefresh": refresh, "etcd": { "endpoints": [relay.endpoint()] } });
            json!({ "timeout": 4, "ipam": ipam })
        };
        let first = fleet.ipam("ADD", 0, &json!({}));
        first.clone().run().result();
        first.env("CNI_COMMAND", "DEL").run().done();
        let (key, _) = fleet.record();
        let subnet = key.trim_end_matches("0-24");
        let directory = node.data_dir().join("pods");
        // More than half of its time is over, so that etcd is waited for.
        let file = directory.join("lease.json");
        let mut lease: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
        lease["renewed"] = json!(lease["renewed"].as_u64().expect("a time") - 50_000);
        fs::write(&file, lease.to_string()).expect("put the file");
        relay.delay(Duration::from_millis(60));
        let add = fleet.ipam("ADD", 0, &changes(0)).start();
        eventually(Duration::from_secs(5), "it has looked", || {
            fs::metadata(directory.join("tried"))
                .ok()?
                .modified()
                .ok()
                .filter(|time| *time == SystemTime::UNIX_EPOCH)
        });
        fleet.etcd.freeze();
        if is_killed {
            add.kill();
            assert_ne!(add.finish().status.code(), Some(0));
        } else {
            assert!(addresses(&add.finish().result())[0].starts_with(subnet));
            let now: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
            assert!(
                now["renewed"].as_u64() > lease["renewed"].as_u64(),
                "what was renewed is on file: {now}"
            );
        }
        for refresh in [10, 0] {
            fleet.ipam("STATUS", 0, &changes(refresh)).run().done();
            assert!(addresses(&fleet.add(0, &changes(refresh)).result())[0].starts_with(subnet));
        }
        fleet.etcd.thaw();
        relay.delay(Duration::ZERO);
        fleet.add(0, &changes(0)).result();
        assert_eq!((fleet.record().0, fleet.etcd.leases()[0].granted), (key.clone(), 90_000));
    }
}

/// It is told at once, and nothing is given up for what cannot be had.
#[test]
fn a_host_leaves_no_subnet_for_a_network_that_is_full() {
    let fleet = Fleet::new(1, V4);
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    let call = fleet.ipam("ADD", 0, &due);
    call.clone().run().result();
    call.env("CNI_COMMAND", "DEL").run().done();
    let (key, value) = fleet.record();
    fleet.etcd.put(CONFIG, r#"{"Network": "10.96.0.0/22", "Backend": {"Type": "vxlan"}}"#);
    let theirs = |number: u8| format!("{SUBNETS}10.96.{number}.0-24");
    (0..4).for_each(|number| fleet.etcd.put(&theirs(number), record(&format!("172.31.0.{number}"))));
    for _ in 0..2 {
        fleet.ipam("STATUS", 0, &due).run().error_code(50).assert_names(&["10.96.0.0/22", "all 3"]);
        fleet.fails(0, &due, 104).assert_names(&["10.96.0.0/22", "all 3"]);
        assert_eq!(fleet.etcd.get(&format!("{SUBNETS}{key}")).as_ref(), Some(&value));
    }
    fleet.etcd.del(&theirs(2));
    fleet.ipam("STATUS", 0, &due).run().done();
    assert!(addresses(&fleet.add(0, &due).result())[0].starts_with("10.96.2."));
    assert_eq!(fleet.etcd.get(&format!("{SUBNETS}{key}")), None);
}

/// Who has them may be about to find the host another subnet.
#[test]
fn reservations_in_other_hands_keep_no_host_in_a_subnet_that_the_network_has_no_more() {
    let fleet = Fleet::new(1, V4);
    let node = fleet.node(0);
    let due = |timeout: u32| json!({ "timeout": timeout, "ipam": { "peerRefresh": 0 } });
    let call = fleet.ipam("ADD", 0, &due(4));
    call.clone().run().result();
    call.env("CNI_COMMAND", "DEL").run().done();
    let path = node.command(&format!("find {} -path */ipam/lock", node.state_dir().display()));
    let configure = |network: &str| {
        fleet.etcd.put(CONFIG, format!(r#"{{"Network": "{network}", "Backend": {{"Type": "vxlan"}}}}"#));
    };
    configure("10.98.0.0/16");
    let books = hold(path.trim());
    fleet.fails(0, &due(1), 11).assert_names(&["ipam/lock"]);
    drop(books);
    // What was found is not forgotten by the next one, for which no news is due.
    let call = fleet.ipam("ADD", 0, &json!({}));
    let given = addresses(&call.clone().run().result());
    assert!(given[0].starts_with("10.98."), "{given:?}");
    call.env("CNI_COMMAND", "DEL").run().done();
    configure("10.99.0.0/16");
    let books = hold(path.trim());
    let late = fleet.ipam("ADD", 0, &due(30)).start();
    let waits = format!(" {} ", late.pid());
    eventually(Duration::from_secs(5), "it waits for the books", || {
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        locks.lines().any(|line| line.contains("->") && line.contains(&waits)).then_some(())
    });
    drop(books);
    for reply in [fleet.add(0, &json!({})), late.finish()] {
        let given = addresses(&reply.result());
        assert!(given[0].starts_with("10.99."), "{given:?}");
    }
}

/// Whoever waits for a container need not try one to learn that it would get none.
#[test]
fn status_tells_that_a_subnet_is_another_hosts_before_any_add_has_failed() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let (key, _) = fleet.record();
    fleet.etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.99"));
    let status = |changes: &Value| fleet.ipam("STATUS", 0, changes).run();
    age_peers(&fleet);
    // A silent etcd is asked once in a while.
    fleet.etcd.freeze();
    status(&json!({})).done();
    fleet.etcd.thaw();
    status(&json!({})).done();
    status(&json!({ "ipam": { "peerRefresh": 0 } })).error_code(51).assert_names(&[&key, "172.30.0.99"]);
    // It is known from then on.
    status(&json!({})).error_code(51).assert_names(&[&key, "172.30.0.99"]);
    fleet.fails(0, &json!({}), 103).assert_names(&[&key, "172.30.0.99"]);
}
