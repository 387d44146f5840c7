//! What is done to entries of the state directory, one by one.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use weft_tests::{Call, Host, Network, Pod, Reply, command};

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=";

/// Whatever waits for somebody at the other end of a FIFO would wait for ever.
fn run(call: Call) -> Reply {
    call.through(["timeout", "20"]).run()
}

fn all_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all_below(&entry.path(), found);
        }
        // That of those who are at work on the rules is one.
        if !entry.file_type().unwrap().is_fifo() {
            found.push(entry.path());
        }
    }
}

fn entries() -> Vec<PathBuf> {
    let mut found = Vec::new();
    all_below("/run/weft".as_ref(), &mut found);
    found.sort();
    found
}

/// What is in the place of an entry then.
type Spoil = (&'static str, fn(&str));

/// Whatever is lost or replaced: whoever comes is attached, whoever goes leaves nothing, and no two have one address.
#[test]
fn none_is_needed() {
    let host = Host::new();
    let network = Network::dual().with(&json!({ "ipMasq": true, "ipam": { "sticky": "name" } }));
    let spoils: [Spoil; 4] = [
        ("nothing", |_| {}),
        ("a directory", |path| drop(command(&format!("mkdir {path}")))),
        ("a directory with a file", |path| drop(command(&format!("install -D /dev/null {path}/x")))),
        ("a FIFO", |path| drop(command(&format!("mkfifo {path}")))),
    ];
    let mut problems = Vec::new();
    let mut nth = 0;
    loop {
        let mut count = 0;
        for (what, spoil) in spoils {
            let pods = ["a", "b", "c"].map(Pod::named);
            for pod in &pods[..2] {
                network.add_call(pod).args(&format!("{ARGS}{}", pod.id)).run().result();
            }
            let entries = entries();
            count = entries.len();
            let entry = &entries[nth];
            // In place of a directory only nothing. What somebody put in place of an address is that one's to remove, and GC tells so.
            let is_address =
                entry.ancestors().any(|above| above.ends_with("addr") || above.ends_with("owner"));
            if entry.is_dir() && what != "nothing" || is_address && what == "a directory with a file" {
                network.gc(&[]);
                continue;
            }
            let path = entry.to_str().unwrap();
            command(&format!("rm -r {path}"));
            spoil(path);
            let mut note = |call: &str, reply: &Reply| {
                if !reply.succeeded() {
                    problems.push(format!(
                        "{what} in place of {path}: {call}: {}",
                        String::from_utf8_lossy(&reply.stdout)
                    ));
                }
            };
            note("ADD", &run(network.add_call(&pods[2]).args(&format!("{ARGS}c"))));
            pods.iter().for_each(|pod| note(&format!("DEL {}", pod.id), &run(network.del_call(pod))));
            note("GC", &run(network.gc_call(&[])));
            let left = command(
                "find /run/weft ( -path */ipam/addr/* -o -path */ipam/owner/* -o -path */ipam/pending/* )",
            );
            let links = host.ports("weft0");
            if !left.is_empty() || !links.is_empty() {
                problems.push(format!("{what} in place of {path}: left {left} {links:?}"));
            }
            command("rm -r /run/weft");
        }
        nth += 1;
        if nth == count {
            break;
        }
    }
    assert!(nth > 15, "only {nth} entries");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Nobody gets what others have.
#[test]
fn addresses_are_held_without_the_directory_that_says_so() {
    let _host = Host::new();
    let network = Network::v4();
    let pods: [Pod; 4] = std::array::from_fn(|_| Pod::new());
    pods[..2].iter().for_each(|pod| drop(network.add(pod)));
    command("find /run/weft -path */ipam/addr -exec rm -r {} +");
    command("find /run/weft -name last.0 -delete");
    pods[2..].iter().for_each(|pod| drop(network.add(pod)));
    let addresses: Vec<String> = pods.iter().flat_map(|pod| pod.addresses("eth0")).collect();
    assert_eq!(addresses, ["10.88.0.2/24", "10.88.0.3/24", "10.88.0.4/24", "10.88.0.5/24"]);
}
