//! Calls that come upon another one at work.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use weft_tests::{Host, Network, Pod, World, command, eventually, hold, script};

const PATIENCE: Duration = Duration::from_secs(20);

/// A file of the state directory that `find` finds by its path.
fn file(path: &str) -> String {
    let found = command(&format!("find /run/weft -path {path} -type f"));
    assert_eq!(found.lines().count(), 1, "{path}: {found}");
    found.trim().to_owned()
}

/// A call on an attachment that somebody else is at work on says who that is, and does nothing.
#[test]
fn an_attachment_that_another_call_has() {
    let _host = Host::new();
    let network = Network::dual().with(&json!({ "timeout": 1 }));
    let pod = Pod::new();
    let result = network.add(&pod);
    let path = file("*/attachments/*");
    let record = hold(&path);
    let holder = format!("pid {} ", std::process::id());
    network.add_call(&pod).run().error_code(11).assert_names(&[&path, &holder]);
    network.del_call(&pod).run().error_code(11).assert_names(&[&path, &holder]);
    drop(record);
    network.check(&pod, &result).done();
    network.del(&pod);
}

/// Holds a lock for a while, without the test's own doing.
fn hold_for_a_while(path: &str, seconds: &str) -> Child {
    let holder = Command::new("flock").args([path, "sleep", seconds]).spawn().unwrap();
    let is_free = || Command::new("flock").args(["-n", path, "true"]).status().unwrap().success();
    eventually(PATIENCE, "the lock is held", || (!is_free()).then_some(()));
    holder
}

/// The IPAM plugin has no less patience than the DEL that it waits for.
#[test]
fn a_del_that_waits_for_the_rules_between_containers() {
    let _host = Host::new();
    let app = json!({ "label": "part=app" });
    let network = Network::dual()
        .with(&json!({ "icc": false, "allow": [{ "from": app, "to": app, "port": 80 }] }))
        .with(&json!({ "args": { "cni": { "labels": [{ "key": "part", "value": "app" }] } } }));
    let (one, other) = (Pod::new(), Pod::new());
    network.add(&one);
    network.add(&other);
    let mut holder = hold_for_a_while(&file("*/meeting.lock"), "2");
    network.del_call(&one).env("WEFT_STDIN_TIMEOUT", "1").run().done();
    holder.wait().unwrap();
    network.del(&other);
    assert_eq!(command("find /run/weft -path */ipam/owner/* -type f"), "", "addresses are held");
}

/// What one ADD came to find in the container is not another one's to take back.
#[test]
fn an_add_that_fails_beside_another_one_of_the_container() {
    let _host = Host::new();
    let network = Network::dual();
    let pod = Pod::new();
    mkfifo("/run/netns/.go", Mode::S_IRWXU).unwrap();
    let fails = "[ $CNI_COMMAND = ADD ] || exit 0; read go </run/netns/.go; exit 1";
    script("/run/netns/.slow", "weft-ipam", fails);
    let first = network.add_call(&pod).env("CNI_PATH", "/run/netns/.slow").start();
    let is_up = || pod.link("lo").unwrap()["flags"].as_array().unwrap().contains(&json!("UP"));
    eventually(PATIENCE, "lo is up", || is_up().then_some(()));
    let result = network.add_call(&pod).ifname("eth1").run().result();
    fs::write("/run/netns/.go", "\n").unwrap();
    first.finish().error();
    network.check_call(&pod, &result).ifname("eth1").run().done();
}

/// Nobody can work there, so it gives way.
#[test]
fn what_is_no_file_in_place_of_a_record() {
    let host = Host::new();
    let network = Network::dual();
    let pod = Pod::new();
    network.add(&pod);
    let record = file("*/attachments/*");
    network.del(&pod);
    let before = World::of(&host, &[&pod]);
    for make in ["mkdir", "ln -s /run/nowhere", "ln -s /etc/hostname"] {
        command(&format!("{make} {record}"));
        let result = network.add(&pod);
        network.check(&pod, &result).done();
        network.del(&pod);
    }
    let aside = |line: &String| line.contains("/no-record-");
    let differences = before.differences(&World::of(&host, &[&pod]));
    assert!(differences.iter().all(aside), "{differences:#?}");
}
