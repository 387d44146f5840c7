//! `stateDir` of the configuration, also on a host where an earlier version took no heed of it.
#![expect(clippy::unwrap_used, reason = "tests: a panic is the failure")]

mod common;

use std::fs;
use std::path::Path;

use common::{command, finish, start};
use serde_json::{Value, json};

/// A network whose `stateDir` is this one, and the names of the addresses held below a directory.
fn conf(dir: Option<&Path>) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "stateDir": dir,
        "ipam": {"type": "weft-ipam", "subnet": "10.5.0.0/29"}})
}

fn held(dir: &Path) -> Vec<String> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let addresses = fs::read_dir(dir.join("net").join(boot_id.trim()).join("ipam/addr"));
    let names =
        addresses.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// What earlier versions reserved is in the default directory: nobody gets it again, and its containers go as others do.
#[test]
fn reservations_of_before_are_where_they_were() {
    let (now, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (now, before) = (now.path(), before.path());
    let run = |verb, container, conf: &Value| {
        finish(start(command(verb, container).env("WEFT_STATE_DIR", before), conf))
    };
    let (old, conf) = (conf(None), conf(Some(now)));
    let first = run("ADD", "one", &old).ok();
    assert_eq!((held(before), held(now)), (vec!["10.5.0.2".to_owned()], vec![]));

    assert_eq!(run("ADD", "two", &conf).ips(), ["10.5.0.3/29"]);
    assert_eq!((held(before), held(now)), (vec!["10.5.0.2".to_owned()], vec!["10.5.0.3".to_owned()]));
    let mut as_before = conf.clone();
    as_before["prevResult"] = first;
    run("CHECK", "one", &as_before).ok();
    // Another host of this machine may have its own there.
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    run("GC", "", &valid).ok();
    assert_eq!(held(before), ["10.5.0.2"]);
    run("DEL", "one", &conf).ok();
    run("DEL", "two", &conf).ok();
    assert!(held(before).is_empty() && held(now).is_empty());

    // A network that says where its reservations are had them there before, too.
    run("ADD", "one", &old).ok();
    let mut elsewhere = conf.clone();
    elsewhere["ipam"]["dataDir"] = json!(now.join("other"));
    run("DEL", "one", &elsewhere).ok();
    assert_eq!(held(before), ["10.5.0.3"]);
}
