//! Real container runtimes attach real containers with Weft, each to the network of a sample in `conf/`.
//!
//! These tests need the real root: `hack/test runtimes`. Each has its own network, mount and PID namespace.

#[path = "runtimes/cri.rs"]
mod cri;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use cri::Kubelet;
use serde_json::Value;
use weft_tests::runtime::{Containerd, Machine, Podman};
use weft_tests::{Host, Pod, World, dist, peers};

/// One echo request that must be answered.
const PING: [&str; 5] = ["ping", "-c", "1", "-W", "3"];

fn conf() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../conf"))
}

/// Calls cnitool, which must succeed, for a container and a network of `conf/`.
#[track_caller]
fn cnitool(command: &str, network: &str, pod: &Pod) -> Vec<u8> {
    let output = Command::new(peers().join("cnitool"))
        .args([command, network])
        .arg(pod.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("a PATH"))
        .env("NETCONFPATH", conf())
        .env("CNI_PATH", std::env::join_paths([dist(), peers()]).expect("a search path"))
        .output()
        .expect("run cnitool");
    assert!(
        output.status.success(),
        "cnitool {command} {network}: {} {}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    output.stdout
}

/// The addresses in the result of an ADD.
fn addresses(result: &[u8]) -> Vec<IpAddr> {
    let result: Value = serde_json::from_slice(result).expect("a result");
    let ips = result["ips"].as_array().expect("addresses").iter();
    ips.map(|ip| ip["address"].as_str().and_then(|text| text.split('/').next()).expect("an address"))
        .map(|text| text.parse().expect("an address"))
        .collect()
}

/// Every sample works as it is: two containers reach each other and are gone without a trace.
/// The first attachment makes what a network keeps (bridge, forwarding, rules); it is made before one compares.
#[test]
fn cnitool_attaches_checks_and_detaches_with_every_sample() {
    let mut samples = 0;
    for entry in fs::read_dir(conf()).expect("read conf/") {
        let path = entry.expect("an entry of conf/").path();
        if path.extension().is_none_or(|extension| extension != "conflist") {
            continue;
        }
        let conflist: Value = serde_json::from_slice(&fs::read(&path).expect("read a sample")).expect("JSON");
        let network = conflist["name"].as_str().expect("a network has a name");

        let host = Host::new();
        let (a, b) = (Pod::new(), Pod::new());
        cnitool("status", network, &a);
        cnitool("add", network, &a);
        cnitool("del", network, &a);
        let before = World::of(&host, &[&a, &b]);

        let addresses_of_a = addresses(&cnitool("add", network, &a));
        let addresses_of_b = addresses(&cnitool("add", network, &b));
        for (of_a, of_b) in addresses_of_a.into_iter().zip(addresses_of_b) {
            a.assert_reaches(of_b);
            b.assert_reaches(of_a);
        }
        cnitool("check", network, &a);
        cnitool("check", network, &b);
        cnitool("status", network, &a);
        cnitool("del", network, &a);
        cnitool("del", network, &a);
        cnitool("del", network, &b);
        before.assert_unchanged(
            &host,
            &[&a, &b],
            &format!("the life of two containers in {}", path.display()),
        );
        samples += 1;
    }
    assert!(samples > 0, "there is no conflist in {}", conf().display());
}

/// libcni's GC deletes what its cache knows, then calls GC.
#[test]
fn cnitool_gc_removes_what_is_attached() {
    let host = Host::new();
    let (a, b) = (Pod::new(), Pod::new());
    cnitool("add", "weft", &a);
    cnitool("add", "weft", &b);
    assert_eq!(host.ports("weft0").len(), 2);
    cnitool("gc", "weft", &a);
    assert_eq!(host.ports("weft0"), Vec::<String>::new());
    assert!(a.link("eth0").is_none() && b.link("eth0").is_none());
    let state = World::of(&host, &[]);
    assert_eq!(state.matching("file /run/weft"), Vec::<&str>::new());
}

#[test]
fn containers_of_ctr_reach_each_other() {
    let machine = Machine::new("30-weft-containerd-cri.conflist");
    let containerd = Containerd::start(&machine);
    containerd.run("first").stop();
    let before = World::of(machine.host(), &[]);

    let (a, b) = (containerd.run("a"), containerd.run("b"));
    assert_eq!(machine.host().ports("weft3").len(), 2);
    a.exec(&[&PING[..], &[&b.address.to_string()]].concat());
    b.exec(&[&PING[..], &[&a.address.to_string()]].concat());
    a.stop();
    b.stop();
    machine.assert_nothing_left(&before);
}

#[test]
fn pods_of_containerd_reach_each_other() {
    let machine = Machine::new("30-weft-containerd-cri.conflist");
    let _containerd = Containerd::start(&machine);
    let mut kubelet = Kubelet::connect(&machine);
    let first = kubelet.run("first");
    kubelet.stop(&first);
    kubelet.remove(first);
    let before = World::of(machine.host(), &[]);

    let (a, b) = (kubelet.run("a"), kubelet.run("b"));
    assert_eq!(machine.host().ports("weft3").len(), 2);
    assert!(kubelet.exec(&a, &["ip", "-4", "-o", "addr"]).contains(&format!(" {}/", a.address)));
    kubelet.exec(&a, &[&PING[..], &[&b.address.to_string()]].concat());
    kubelet.exec(&b, &[&PING[..], &[&a.address.to_string()]].concat());
    for pod in [&a, &b, &a] {
        kubelet.stop(pod);
    }
    assert_eq!(machine.host().ports("weft3"), Vec::<String>::new());
    kubelet.remove(a);
    kubelet.remove(b);
    assert_eq!(kubelet.pods(), 0);
    machine.assert_nothing_left(&before);
}

#[test]
fn containers_of_podman_reach_each_other() {
    let machine = Machine::new("20-weft-nerdctl-podman.conflist");
    let podman = Podman::new(&machine);
    podman.run("first", "weft-net");
    podman.remove("first");
    let before = World::of(machine.host(), &[]);

    podman.run("a", "weft-net");
    podman.run("b", "weft-net");
    assert_eq!(machine.host().ports("weft2").len(), 2);
    for (from, to) in [("a", "b"), ("b", "a")] {
        let target = podman.address(to).to_string();
        podman.exec(from, &[&PING[..], &[&target]].concat());
    }
    podman.remove("a");
    podman.remove("b");
    machine.assert_nothing_left(&before);
}
