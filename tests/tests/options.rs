//! The keys of the configuration, each with its effect in the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, ip};

/// The host's end of a container's veth pair.
fn host_end(host: &Host, result: &Value) -> Value {
    let name = result["interfaces"][1]["name"].as_str().unwrap();
    host.link(name).unwrap_or_else(|| panic!("{name} is not on the host"))
}

fn port<'a>(link: &'a Value, setting: &str) -> &'a Value {
    &link["linkinfo"]["info_slave_data"][setting]
}

#[test]
fn mtu() {
    let host = Host::new();
    let network = Network::dual().with(&json!({ "mtu": 1400 }));
    let pod = Pod::new();
    let result = network.add(&pod);

    assert_eq!(pod.link("eth0").unwrap()["mtu"], 1400);
    assert_eq!(host_end(&host, &result)["mtu"], 1400);
    assert_eq!(result["interfaces"][2]["mtu"], 1400);
    let ping = pod.inside(|| weft_tests::command("ping -n -c 1 -W 3 -M do -s 1372 10.88.0.1"));
    assert!(ping.contains("1 received"), "{ping}");

    // Below IPv6's smallest, in a network without IPv6.
    let small = Pod::new();
    let network = Network::new("small", &["10.89.0.0/24"]).with(&json!({ "mtu": 1000 }));
    let result = network.add(&small);
    network.check(&small, &result).done();
    small.assert_reaches([10, 89, 0, 1]);
    network.del(&small);

    // Without the key: the kernel's default.
    let plain = Pod::new();
    let result = Network::dual().add(&plain);
    assert_eq!(plain.link("eth0").unwrap()["mtu"], 1500);
    assert_eq!(result["interfaces"][2]["mtu"], 1500);
}

#[test]
fn mac_by_every_way_of_asking() {
    let _host = Host::new();
    let network = Network::v4();
    let capability = network.clone().with(&json!({ "runtimeConfig": { "mac": "02:00:00:00:00:01" } }));
    let convention = network.clone().with(&json!({ "args": { "cni": { "mac": "02:00:00:00:00:02" } } }));
    let argument = "MAC=02:00:00:00:00:03";
    let pods = [Pod::new(), Pod::new(), Pod::new(), Pod::new()];
    let results = [
        capability.add(&pods[0]),
        convention.add(&pods[1]),
        network.add_call(&pods[2]).args(argument).run().result(),
        // The capability wins.
        capability
            .clone()
            .with(&json!({ "runtimeConfig": { "mac": "02:00:00:00:00:04" } }))
            .add_call(&pods[3])
            .args(argument)
            .run()
            .result(),
    ];
    for (number, (pod, result)) in pods.iter().zip(&results).enumerate() {
        let expected = format!("02:00:00:00:00:0{}", number + 1);
        assert_eq!(pod.link("eth0").unwrap()["address"], expected.as_str());
        assert_eq!(result["interfaces"][2]["mac"], expected.as_str());
    }
    pods[0].assert_reaches(ip(&results[1]));
}

#[test]
fn hairpin_mode() {
    let host = Host::new();
    let (other, pod) = (Pod::new(), Pod::new());
    let plain = Network::v4().add(&other);
    assert_eq!(port(&host_end(&host, &plain), "hairpin"), false);
    let network = Network::v4().with(&json!({ "hairpinMode": true }));
    let result = network.add(&pod);
    assert_eq!(port(&host_end(&host, &result), "hairpin"), true);
    network.check(&pod, &result).done();
}

#[test]
fn port_isolation() {
    let host = Host::new();
    let network = Network::v4().with(&json!({ "portIsolation": true }));
    let (one, two) = (Pod::new(), Pod::new());
    let first = network.add(&one);
    let second = network.add(&two);

    assert_eq!(port(&host_end(&host, &first), "isolated"), true);
    one.assert_reaches([10, 88, 0, 1]);
    assert!(!one.ping(ip(&second)).status.success(), "an isolated port reached another one");
    network.check(&one, &first).done();
}

#[test]
fn promiscuous_mode() {
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::v4().with(&json!({ "promiscMode": true }));
    let result = network.add(&pod);
    let flags = host.link("weft0").unwrap()["flags"].clone();
    assert!(flags.as_array().unwrap().contains(&json!("PROMISC")), "{flags}");
    network.check(&pod, &result).done();
}

/// With detection asked for, ADD returns when it is over: the address is no longer tentative.
#[test]
fn duplicate_address_detection() {
    let _host = Host::new();
    let network = Network::dual().with(&json!({ "enabledad": true }));
    let pod = Pod::new();
    network.add(&pod);
    let addresses = pod.json("ip -j -6 addr show dev eth0 scope global");
    let info = &addresses[0]["addr_info"][0];
    assert_eq!(info["local"], "fd00:88::2");
    assert_eq!((info.get("tentative"), info.get("nodad")), (None, None), "{info}");
    pod.assert_reaches("fd00:88::1".parse::<IpAddr>().unwrap());
}

#[test]
fn duplicate_address_detection_that_finds_one() {
    let host = Host::new();
    let network = Network::dual().with(&json!({ "enabledad": true }));
    let (squatter, pod) = (Pod::new(), Pod::new());
    Network::new("flat", &[]).add(&squatter);
    squatter.command("ip addr add fd00:88::2/64 dev eth0 nodad");
    // The bridge and its addresses are there already, so that the world is comparable.
    let first = Pod::new();
    let warm = Network::dual().with(&json!({ "runtimeConfig": { "ips": ["10.88.0.9", "fd00:88::9"] } }));
    warm.add(&first);
    warm.del(&first);
    let before = weft_tests::World::of(&host, &[&pod, &squatter]);
    network
        .clone()
        .with(&json!({ "runtimeConfig": { "ips": ["10.88.0.2", "fd00:88::2"] } }))
        .add_call(&pod)
        .run()
        .error()
        .assert_names(&["fd00:88::2"]);
    before.assert_unchanged(&host, &[&pod, &squatter], "an address that somebody else has");
}

#[test]
fn container_interface_disabled() {
    let _host = Host::new();
    let network = Network::new("flat", &[]).with(&json!({ "disableContainerInterface": true }));
    let pod = Pod::new();
    let result = network.add(&pod);
    let flags = pod.link("eth0").unwrap()["flags"].clone();
    assert!(!flags.as_array().unwrap().contains(&json!("UP")), "{flags}");
    network.check(&pod, &result).done();
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
}

#[test]
fn dns_is_passed_on() {
    let _host = Host::new();
    let dns = json!({ "nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["a.example.org"], "options": ["ndots:2"] });
    let result = Network::v4().with(&json!({ "dns": dns })).add(&Pod::new());
    assert_eq!(result["dns"], dns);

    std::fs::write("/run/resolv.conf", "nameserver 192.0.2.54\nsearch b.example.org\noptions edns0\n")
        .unwrap();
    let result =
        Network::v4().with(&json!({ "ipam": { "resolvConf": "/run/resolv.conf" } })).add(&Pod::new());
    assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.54"]));
    assert_eq!(result["dns"]["search"], json!(["b.example.org"]));
}

#[test]
fn logs_go_to_the_file_and_never_to_standard_output() {
    let _host = Host::new();
    let network = Network::v4().with(&json!({ "logFile": "/run/weft.log", "logLevel": "debug" }));
    let pod = Pod::new();
    network.add(&pod);
    network.del(&pod);
    let log = std::fs::read_to_string("/run/weft.log").unwrap();
    assert!(log.contains("weft0") && log.contains(&pod.id), "{log}");
}
