use std::path::Path;

use cni_protocol::Deadline;
use serde_json::json;

use super::*;
use crate::record::Record;

const NETWORK: &str = "net";

fn network() -> NetworkName {
    NETWORK.parse().unwrap()
}

fn key(id: &str) -> AttachmentKey {
    AttachmentKey::new(&network(), &id.parse().unwrap(), &"eth0".parse().unwrap())
}

/// What is on record of a container with a label and rules.
fn content(id: &str, label: &str, allow: &serde_json::Value) -> Content {
    let policy = json!({ "subnets": ["10.0.0.0/24"], "closed": true, "internal": false, "private": true,
        "hostAccess": true, "egressAllow": null, "egressDeny": [] });
    serde_json::from_value(json!({
        "containerID": id, "ifname": "eth0", "netns": "/run/netns/x", "attached": true, "since": "0",
        "names": { "labels": [label] },
        "holdings": { "isolation": { "policy": policy, "addresses": [], "allow": allow } },
    }))
    .unwrap()
}

fn to(label: &str) -> serde_json::Value {
    json!([{ "from": "own", "to": { "label": label } }])
}

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    /// What an ADD does: whom it meets.
    fn attach(&self, content: &Content) -> Vec<String> {
        let record = self.begin(content);
        let met = self.meet(content);
        record.write(content).unwrap();
        met
    }

    fn begin(&self, content: &Content) -> Record {
        let key = key(&content.container_id);
        Record::lock(self.dir(), &key, Deadline::after(std::time::Duration::from_secs(5))).unwrap()
    }

    fn meet(&self, content: &Content) -> Vec<String> {
        let own = Member::of(content).unwrap();
        let mut met: Vec<String> = meet(self.dir(), &key(&content.container_id), &own)
            .unwrap()
            .into_iter()
            .map(|content| content.container_id)
            .collect();
        met.sort();
        met
    }

    fn files(&self) -> usize {
        let dir = boot_path(self.dir(), &network()).unwrap().join(INDEX);
        entries(&dir).unwrap().iter().map(|dir| entries(dir).unwrap().len()).sum()
    }
}

#[test]
fn those_that_ask_and_those_that_are_asked_for_meet_whoever_comes_first() {
    let host = Host::new();
    assert!(host.attach(&content("idle", "role=idle", &json!([]))).is_empty());
    assert!(host.attach(&content("db", "role=db", &json!([]))).is_empty());
    assert_eq!(host.files(), 0, "nobody asked");
    assert_eq!(host.attach(&content("web", "role=web", &to("role=db"))), ["db"]);
    assert_eq!(host.attach(&content("db2", "role=db", &json!([]))), ["web"]);
    assert_eq!(host.attach(&content("web2", "role=web", &to("role=db"))), ["db", "db2"]);
    assert!(host.attach(&content("idle2", "role=idle", &json!([]))).is_empty());
}

#[test]
fn who_leaves_is_not_met_any_more_and_leaves_nothing() {
    let host = Host::new();
    let (db, web) = (content("db", "role=db", &json!([])), content("web", "role=web", &to("role=db")));
    host.attach(&db);
    host.attach(&web);
    assert_eq!(host.files(), 2);
    for gone in [&db, &web] {
        host.begin(gone).remove().unwrap();
    }
    assert_eq!(host.files(), 0);
    assert!(host.attach(&db).is_empty());
    // Killed: entered, and never on record.
    drop(host.begin(&web));
    assert_eq!(host.meet(&web), ["db"]);
    assert_eq!(host.meet(&content("db2", "role=db", &json!([]))), [""; 0]);
    host.begin(&web).remove().unwrap();
    assert_eq!(host.files(), 2, "the two that have the label");
}

#[test]
fn what_is_lost_or_was_never_there_is_made_of_the_records() {
    let host = Host::new();
    let boot = boot_dir(host.dir(), &network()).unwrap();
    for content in [content("db", "role=db", &json!([])), content("web", "role=web", &to("role=cache"))] {
        host.begin(&content).write(&content).unwrap();
    }
    // Left by one that was killed while it made it.
    fs::create_dir_all(boot.join(NEW).join("asks-x")).unwrap();
    assert_eq!(host.meet(&content("cache", "role=cache", &to("role=db"))), ["db", "web"]);
    discard(host.dir(), &network()).unwrap();
    assert!(!is_there(&boot).unwrap());
    assert_eq!(host.meet(&content("cache", "role=cache", &to("role=db"))), ["db", "web"]);
}

#[test]
fn what_leads_nowhere_is_swept() {
    let host = Host::new();
    let (db, web) = (content("db", "role=db", &json!([])), content("web", "role=web", &to("role=db")));
    host.attach(&db);
    host.attach(&web);
    let records = boot_dir(host.dir(), &network()).unwrap().join("attachments");
    fs::remove_file(records.join(key("web").hash())).unwrap();
    assert!(host.meet(&db).is_empty());
    assert_eq!(host.files(), 2);
    fs::remove_file(records.join(key("db").hash())).unwrap();
    sweep(host.dir(), &network(), |hash| hash == key("web").hash()).unwrap();
    assert_eq!(host.files(), 1, "one whose record is lost is there still");
    sweep(host.dir(), &network(), |_| false).unwrap();
    assert_eq!(host.files(), 0);
}
