//! The network modes of container runtimes: none (only `lo`), host, and another container's network; and the plugin
//! `loopback`, which runtimes call for every container.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::path::Path;

use serde_json::{Value, json};
use weft_tests::{Call, Host, Network, Pod, World, ip, ips, peers};

fn conf(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "cni-loopback", "type": "loopback" })
}

fn call(command: &str, pod: &Pod) -> Call {
    Call::new("loopback", command, conf("1.0.0").to_string()).pod(pod)
}

/// Interfaces and addresses that a plugin answers with, less the path of the namespace.
fn answer(program: &Path, version: &str) -> [Value; 2] {
    let pod = Pod::new();
    let call = Call::new(program.to_str().unwrap(), "ADD", conf(version).to_string()).pod(&pod);
    let mut result = call.run().result();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        interface.as_object_mut().unwrap().remove("sandbox");
    }
    pod.assert_reaches([127, 0, 0, 1]);
    [result["interfaces"].take(), result["ips"].take()]
}

#[test]
fn loopback_answers_as_the_reference_does() {
    let _host = Host::new();
    assert_eq!(answer(Path::new("loopback"), "1.0.0"), answer(&peers().join("loopback"), "1.0.0"));
    // Before, results had other forms, which the reference does not care for.
    let result = |version| {
        let pod = Pod::new();
        Call::new("loopback", "ADD", conf(version).to_string()).pod(&pod).run().result()
    };
    assert_eq!(result("0.4.0")["ips"][1], json!({ "version": "6", "address": "::1/128", "interface": 0 }));
    let oldest = result("0.2.0");
    assert_eq!((&oldest["ip4"]["ip"], &oldest["ip6"]["ip"]), (&json!("127.0.0.1/8"), &json!("::1/128")));
    // Version 1.1.0 has a place for the MTU, which the reference leaves empty.
    let pod = Pod::new();
    let result = Call::new("loopback", "ADD", conf("1.1.0").to_string()).pod(&pod).run().result();
    assert_eq!(result["interfaces"][0]["mtu"], 65_536);
    assert_eq!(result["interfaces"][0]["sandbox"], pod.path().to_str().unwrap());
}

#[test]
fn loopback_passes_on_what_others_returned() {
    let _host = Host::new();
    let pod = Pod::new();
    let previous = Network::v4().add(&pod);
    let mut conf = conf("1.1.0");
    conf["prevResult"] = previous.clone();
    let result = Call::new("loopback", "ADD", conf.to_string()).pod(&pod).run().result();
    assert_eq!(result, previous);
}

#[test]
fn loopback_is_checked_and_taken_down() {
    let host = Host::new();
    let mut pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    let result = call("ADD", &pod).run().result();
    let check = |pod: &Pod| {
        let mut conf = conf("1.0.0");
        conf["prevResult"] = result.clone();
        Call::new("loopback", "CHECK", conf.to_string()).pod(pod).run()
    };
    check(&pod).done();
    pod.command("ip addr del 127.0.0.1/8 dev lo");
    check(&pod).error_code(105).assert_names(&["lo", "127.0.0.1/8"]);
    pod.command("ip link set lo down");
    check(&pod).error_code(105).assert_names(&["lo", "down"]);
    for _ in 0..2 {
        call("DEL", &pod).run().done();
    }
    before.assert_unchanged(&host, &[&pod], "DEL of loopback");
    pod.die();
    call("DEL", &pod).run().done();
    let call = Call::new("loopback", "DEL", conf("1.0.0").to_string());
    call.env("CNI_CONTAINERID", "gone").env("CNI_IFNAME", "lo").run().done();
}

#[test]
fn loopback_refuses_what_is_none() {
    let _host = Host::new();
    let pod = Pod::new();
    pod.command("ip addr add 192.0.2.1/32 dev lo");
    call("ADD", &pod).run().error_code(103).assert_names(&["lo", "192.0.2.1/32"]);
    assert!(!pod.link("lo").unwrap()["flags"].as_array().unwrap().contains(&json!("UP")), "lo is up");
    let own = call("ADD", &pod).env("CNI_NETNS", "/proc/self/ns/net");
    own.run().error_code(4).assert_names(&["CNI_NETNS", "host's own"]);
}

/// The host's own network is no container's: it is refused by every command that would change it.
#[test]
fn the_hosts_network_is_refused() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[]);
    for namespace in ["/proc/self/ns/net", "/proc/thread-self/ns/net", "/proc/1/../self/ns/net"] {
        let call = Network::v4().add_call(&pod).env("CNI_NETNS", Path::new(namespace));
        call.run().error_code(4).assert_names(&["CNI_NETNS", "host's own"]);
        Network::v4().del_call(&pod).env("CNI_NETNS", Path::new(namespace)).run().done();
    }
    before.assert_unchanged(&host, &[], "calls with the host's namespace");
}

/// Two containers in one namespace: the second has another interface, or none of its own.
#[test]
fn two_containers_share_a_namespace() {
    let host = Host::new();
    let (first, second) = (Pod::named("first"), Pod::named("second"));
    let network = Network::dual();
    let result = network.add(&first);
    let shared = |call: Call| call.env("CNI_CONTAINERID", &second.id);
    let before = World::of(&host, &[&first]);
    let refused = shared(network.add_call(&first)).run();
    refused.error_code(103).assert_names(&["eth0", "CNI_IFNAME"]);
    before.assert_unchanged(&host, &[&first], "ADD of a taken interface");
    network.check(&first, &result).done();

    let other = Network::new("other", &["10.89.0.0/24", "fd00:89::/64"]).with(&json!({ "bridge": "weft1" }));
    let own = shared(other.add_call(&first)).ifname("eth1").run().result();
    let (peer, other_peer) = (Pod::new(), Pod::new());
    network.add(&peer);
    other.add(&other_peer);
    ips(&result).into_iter().for_each(|address| peer.assert_reaches(address));
    ips(&own).into_iter().for_each(|address| other_peer.assert_reaches(address));
    shared(other.del_call(&first)).ifname("eth1").run().done();
    assert!(first.link("eth1").is_none());
    network.check(&first, &result).done();
    peer.assert_reaches(ip(&result));
}
