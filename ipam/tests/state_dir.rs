//! `stateDir` of the configuration, also on a host where an earlier version took no heed of it.
#![expect(clippy::unwrap_used, reason = "tests: a panic is the failure")]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use cni_protocol::Deadline;
use common::{Answer, command, finish, start};
use serde_json::{Value, json};
use weft_ipam::store::Store;

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

/// A command on a host with this default directory.
fn run(default: &Path, verb: &str, container: &str, conf: &Value) -> Answer {
    finish(start(command(verb, container).env("WEFT_STATE_DIR", default), conf))
}

/// Reservations of earlier versions are in the default directory, where another host of the machine may have its own as well: nobody
/// waits for them or takes any away, and the first ADD says that they are there.
#[test]
fn reservations_of_before_are_told_of_and_left() {
    let (now, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (now, before) = (now.path(), before.path());
    let run = |verb, container, conf: &Value| run(before, verb, container, conf);
    let (old, conf) = (conf(None), conf(Some(now)));
    let warning = format!("{} has reservations (1) as earlier versions made them", before.display());
    run("ADD", "one", &old).ok();
    let _lock = Store::open(before, &"net".parse().unwrap(), Deadline::after(Duration::from_secs(9)))
        .unwrap()
        .unwrap();

    run("STATUS", "", &conf).ok();
    let first = run("ADD", "two", &conf);
    assert!(first.stderr.contains(&warning), "{first:?}");
    assert_eq!((first.ips(), held(now)), (vec!["10.5.0.2/29".to_owned()], vec!["10.5.0.2".to_owned()]));
    let second = run("ADD", "three", &conf);
    assert!(!second.stderr.contains(&warning), "{second:?}");
    run("DEL", "one", &conf).ok();
    assert_eq!(held(now).len(), 2);
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([]);
    run("GC", "", &valid).ok();
    assert_eq!((held(before), held(now)), (vec!["10.5.0.2".to_owned()], vec![]));
}

/// As the changelog tells: with the former directory as `ipam.dataDir` containers of before are as any others.
#[test]
fn the_former_directory_may_be_kept_until_the_next_boot() {
    let (now, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (now, before) = (now.path(), before.path());
    let run = |verb, container, conf: &Value| run(before, verb, container, conf);
    let (old, mut conf) = (conf(None), conf(Some(now)));
    conf["ipam"]["dataDir"] = json!(before);
    let first = run("ADD", "one", &old).ok();
    let second = run("ADD", "two", &conf);
    assert!(second.stderr.is_empty(), "{second:?}");
    assert_eq!(second.ips(), ["10.5.0.3/29"]);
    let mut as_before = conf.clone();
    as_before["prevResult"] = first;
    run("CHECK", "one", &as_before).ok();
    conf["args"] = json!({"cni": {"ips": ["10.5.0.2"]}});
    assert!(run("ADD", "three", &conf).error(103).contains("held by container one"));
    run("DEL", "one", &conf).ok();
    assert_eq!((held(before), held(now)), (vec!["10.5.0.3".to_owned()], vec![]));
}
