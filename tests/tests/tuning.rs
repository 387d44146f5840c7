//! What is set in one container: kernel settings, its interface, routes, names; as the reference tuning plugin has it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, World, command};

fn tuned() -> Network {
    Network::dual().with(&json!({
        "sysctl": { "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.tcp_rmem": "4096 131072 6291456" },
        "promisc": true, "allmulti": true, "txQLen": 77,
    }))
}

/// A kernel setting in a container.
fn sysctl(pod: &Pod, path: &str) -> String {
    let path = format!("/proc/sys/net/{path}");
    pod.inside(|| fs::read_to_string(path).unwrap()).trim().to_owned()
}

fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().contains(&json!(flag))
}

#[test]
fn settings_take_effect_in_the_container_only() {
    let host = Host::new();
    let before = (host.sysctl("net/core/somaxconn"), host.sysctl("net/ipv4/tcp_rmem"));
    let pod = Pod::new();
    let result = tuned().add(&pod);
    let link = pod.link("eth0").unwrap();
    assert!(has_flag(&link, "PROMISC") && has_flag(&link, "ALLMULTI"), "{link}");
    assert_eq!(link["txqlen"], 77);
    assert_eq!(sysctl(&pod, "core/somaxconn"), "500");
    assert_eq!(sysctl(&pod, "ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!((host.sysctl("net/core/somaxconn"), host.sysctl("net/ipv4/tcp_rmem")), before);
    tuned().check(&pod, &result).done();

    for (tamper, undo, words) in [
        ("ip link set eth0 promisc off", "ip link set eth0 promisc on", &["eth0", "promiscuous"][..]),
        ("ip link set eth0 allmulticast off", "ip link set eth0 allmulticast on", &["eth0", "all-multicast"]),
        ("ip link set eth0 txqueuelen 5", "ip link set eth0 txqueuelen 77", &["queue length 5", "77"]),
    ] {
        pod.command(tamper);
        tuned().check(&pod, &result).error_code(105).assert_names(words);
        pod.command(undo);
        tuned().check(&pod, &result).done();
    }
    pod.inside(|| fs::write("/proc/sys/net/core/somaxconn", "600").unwrap());
    tuned().check(&pod, &result).error_code(105).assert_names(&["somaxconn", "600", "500"]);
    tuned().del(&pod);
}

#[test]
fn one_container_goes_before_its_network() {
    let host = Host::new();
    let (own, other) = (Pod::new(), Pod::new());
    let args =
        json!({ "mtu": 1300, "promisc": false, "txQLen": 5, "sysctl": { "net.core.somaxconn": "700" } });
    let network = tuned().with(&json!({ "args": { "cni": args } }));
    let result = network.add(&own);
    network.check(&own, &result).done();
    tuned().add(&other);
    let link = own.link("eth0").unwrap();
    assert_eq!((&link["mtu"], &link["txqlen"]), (&json!(1300), &json!(5)));
    assert!(!has_flag(&link, "PROMISC"), "{link}");
    assert_eq!(host.link(result["interfaces"][1]["name"].as_str().unwrap()).unwrap()["mtu"], 1300);
    assert_eq!(sysctl(&own, "core/somaxconn"), "700");
    assert_eq!(sysctl(&own, "ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(other.link("eth0").unwrap()["mtu"], 1500);
    // IPv6 has a smallest MTU.
    let small = tuned().with(&json!({ "args": { "cni": { "mtu": 1000 } } }));
    small.add_call(&Pod::new()).run().error_code(7).assert_names(&["1000", "1280"]);
}

/// Whatever of it fails, the container's namespace is as it was.
#[test]
fn what_cannot_be_set_takes_back_the_rest() {
    let host = Host::new();
    let pod = Pod::new();
    // What containers share is there.
    let used = Pod::new();
    Network::dual().add(&used);
    let before = World::of(&host, &[&pod]);
    let somaxconn = sysctl(&pod, "core/somaxconn");
    for (settings, words) in [
        (
            json!({ "net.core.somaxconn": "600", "net.ipv4.no_such_thing": "1" }),
            ["no_such_thing", "no setting"],
        ),
        (json!({ "net.core.somaxconn": "600", "net.ipv4.tcp_ecn": "many" }), ["tcp_ecn", "many"]),
        (json!({ "net.core.somaxconn": "600", "kernel.panic": "1" }), ["kernel.panic", "below net"]),
        (json!({ "net/../kernel/panic": "1" }), ["net/../kernel/panic", "below net"]),
        (
            json!({ "net.core.somaxconn": "600", "net.core.rmem_max": "300000" }),
            ["rmem_max", "the whole host's, it cannot be set for one container: take it out of sysctl"],
        ),
        (json!({ "net.netfilter.nf_conntrack_max": "300000" }), ["nf_conntrack_max", "the whole host's"]),
    ] {
        let network = Network::dual().with(&json!({ "sysctl": settings }));
        network.add_call(&pod).run().error_code(7).assert_names(&words);
        assert_eq!(sysctl(&pod, "core/somaxconn"), somaxconn);
        before.assert_unchanged(&host, &[&pod], words[0]);
    }
}

/// As for the reference tuning plugin, the administrator of the host says what may be asked for.
#[test]
fn an_allowlist_of_the_host_is_heeded() {
    let host = Host::new();
    let pod = Pod::new();
    command("mount -t tmpfs tmpfs /etc");
    fs::create_dir_all("/etc/cni/tuning").unwrap();
    let list = |patterns: &str| fs::write("/etc/cni/tuning/allowlist.conf", patterns).unwrap();
    let before = World::of(&host, &[&pod]);
    list("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\nnet.core.somaxconn\n");
    let words = ["sysctl.net.ipv4.tcp_rmem", "/etc/cni/tuning/allowlist.conf"];
    tuned().add_call(&pod).run().error_code(7).assert_names(&words);
    tuned().status().error_code(50).assert_names(&words);
    before.assert_unchanged(&host, &[&pod], "a setting that is not allowed");
    // Whoever asks for no setting is none of the list's business.
    list("(");
    tuned().status().error_code(50).assert_names(&["pattern (", words[1]]);
    Network::dual().status().done();
    list("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\nnet.core.somaxconn\n\n  tcp_rmem$\n");
    tuned().status().done();
    let result = tuned().add(&pod);
    assert_eq!(sysctl(&pod, "ipv4/tcp_rmem"), "4096\t131072\t6291456");
    tuned().check(&pod, &result).done();
}

#[test]
fn mac_of_the_network_is_the_last_resort() {
    let _host = Host::new();
    let network = Network::v4().with(&json!({ "mac": "02:00:00:00:00:07" }));
    let (one, two) = (Pod::new(), Pod::new());
    network.add(&one);
    network.add_call(&two).args("MAC=02:00:00:00:00:08").run().result();
    assert_eq!(one.link("eth0").unwrap()["address"], "02:00:00:00:00:07");
    assert_eq!(two.link("eth0").unwrap()["address"], "02:00:00:00:00:08");
    let wrong = Network::v4().with(&json!({ "mac": "01:00:00:00:00:07" }));
    wrong.add_call(&Pod::new()).run().error_code(7).assert_names(&["01:00:00:00:00:07", "unicast"]);
}

#[test]
fn routes_of_the_network() {
    let _host = Host::new();
    let routes =
        json!([{ "dst": "192.0.2.0/24" }, { "dst": "2001:db8:7::/48", "gw": "fd00:88::1", "mtu": 1400 }]);
    let network = Network::dual().with(&json!({
        "routes": routes, "ipam": { "routes": [{ "dst": "192.0.2.0/24", "gw": "10.88.0.9" }] },
    }));
    let pod = Pod::new();
    let result = network.add(&pod);
    network.check(&pod, &result).done();
    let v4 = pod.command("ip -4 route show 192.0.2.0/24");
    assert!(v4.contains("via 10.88.0.1") && !v4.contains("10.88.0.9"), "{v4}");
    let v6 = pod.command("ip -6 route show 2001:db8:7::/48");
    assert!(v6.contains("via fd00:88::1") && v6.contains("mtu 1400"), "{v6}");
    pod.command("ip route del 192.0.2.0/24");
    network.check(&pod, &result).error_code(105).assert_names(&["192.0.2.0/24"]);
    for (route, words) in [
        (json!({ "dst": "192.0.2.1/24" }), ["routes[0].dst", "192.0.2.0/24"]),
        (json!({ "dst": "192.0.2.0/24", "gw": "fd00::1" }), ["routes[0].gw", "family"]),
        (json!({ "dst": "192.0.2.0/24", "gw": "224.0.0.1" }), ["routes[0].gw", "unicast"]),
    ] {
        let network = Network::dual().with(&json!({ "routes": [route] }));
        network.add_call(&Pod::new()).run().error_code(7).assert_names(&words);
    }
}

/// Of two networks that both have a default route, the container uses the one with the smaller metric.
#[test]
fn metrics_say_which_network_goes_first() {
    let _host = Host::new();
    let metrics = json!({ "eth0": 200, "eth1": 100 });
    let first = Network::dual().with(&json!({ "interfaceMetrics": metrics }));
    let second = Network::new("second", &["10.89.0.0/24", "fd00:89::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "interfaceMetrics": metrics }));
    let pod = Pod::new();
    let result = first.add(&pod);
    let eth1 = second.add_call(&pod).env("CNI_IFNAME", "eth1").run().result();
    for target in ["203.0.113.1", "2001:db8:9::1"] {
        let way = pod.command(&format!("ip route get {target}"));
        assert!(way.contains("dev eth1"), "{way}");
    }
    first.check(&pod, &result).done();
    second.check_call(&pod, &eth1).env("CNI_IFNAME", "eth1").run().done();
    assert_eq!(eth1["routes"][0]["priority"], 100);
}

#[test]
fn dns_of_container_network_and_ipam() {
    let _host = Host::new();
    fs::write("/run/resolv.conf", "nameserver 192.0.2.1\nsearch ipam.example\n").unwrap();
    let dns = |conf: Value| Network::v4().with(&conf).add(&Pod::new())["dns"].clone();
    let ipam = json!({ "ipam": { "resolvConf": "/run/resolv.conf" } });
    assert_eq!(dns(ipam.clone()), json!({ "nameservers": ["192.0.2.1"], "search": ["ipam.example"] }));
    let network =
        json!({ "dns": { "nameservers": ["192.0.2.2"], "domain": "net.example", "options": ["ndots:2"] } });
    assert_eq!(dns(network.clone()), network["dns"]);
    let mut own = network;
    own["runtimeConfig"] =
        json!({ "dns": { "servers": ["192.0.2.3", "fd00::53"], "searches": ["own.example"] } });
    assert_eq!(
        dns(own),
        json!({
            "nameservers": ["192.0.2.3", "fd00::53"], "domain": "net.example", "search": ["own.example"], "options": ["ndots:2"],
        })
    );
    let wrong = Network::v4().with(&json!({ "runtimeConfig": { "dns": { "servers": ["ns.example"] } } }));
    wrong
        .add_call(&Pod::new())
        .run()
        .error_code(7)
        .assert_names(&["runtimeConfig.dns.servers", "ns.example"]);
}

/// The record keeps who the container is to people, for whoever resolves names.
#[test]
fn names_are_kept_on_record() {
    let _host = Host::new();
    let pod = Pod::new();
    let network =
        Network::v4().with(&json!({ "runtimeConfig": { "aliases": { "net4": ["web", "web_1"] } } }));
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    network.add_call(&pod).args(args).run().result();
    let record = command("find /run/weft/net4 -path */attachments/* -type f");
    let record: Value = serde_json::from_str(&fs::read_to_string(record.trim()).unwrap()).unwrap();
    assert_eq!(record["names"], json!({ "pod": "shop/web-0", "aliases": ["web", "web_1"] }));
    let wrong = Network::v4().with(&json!({ "runtimeConfig": { "aliases": ["we b"] } }));
    wrong.add_call(&Pod::new()).run().error_code(7).assert_names(&["runtimeConfig.aliases", "we b"]);
}
