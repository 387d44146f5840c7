//! ADD that cannot be: an error that says why and what helps, and the world as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, World, cni_path, command, script};

#[test]
fn a_taken_interface_name() {
    let host = Host::new();
    let pod = Pod::new();
    pod.command("ip link add eth0 type bridge");
    let before = World::of(&host, &[&pod]);
    let error = Network::dual().add_call(&pod).run().error_code(103);
    error.assert_names(&["eth0"]);
    before.assert_unchanged(&host, &[&pod], "ADD of a taken name");
}

#[test]
fn a_duplicate_of_an_attachment() {
    let host = Host::new();
    let network = Network::dual();
    let pod = Pod::new();
    let result = network.add(&pod);
    let before = World::of(&host, &[&pod]);
    let error = network.add_call(&pod).run().error_code(103);
    error.assert_names(&[&pod.id, "eth0"]);
    before.assert_unchanged(&host, &[&pod], "a second ADD");
    network.check(&pod, &result).done();

    // The same attachment from another namespace is a duplicate too: the first one lives.
    let other = Pod::new();
    let before = World::of(&host, &[&pod, &other]);
    network.add_call(&pod).env("CNI_NETNS", other.path()).run().error_code(103);
    before.assert_unchanged(&host, &[&pod, &other], "ADD of a held attachment into another namespace");
    network.check(&pod, &result).done();
}

#[test]
fn a_bridge_name_taken_by_another_kind() {
    let host = Host::new();
    let pod = Pod::new();
    command("ip link add weft0 type veth peer name other0");
    let before = World::of(&host, &[&pod]);
    let error = Network::v4().add_call(&pod).run().error();
    error.assert_names(&["weft0", "veth"]);
    before.assert_unchanged(&host, &[&pod], "ADD to a bridge that is none");
}

#[test]
fn a_foreign_address_on_the_bridge() {
    for foreign in ["10.88.0.254/24", "fd00:88::fe/64"] {
        let host = Host::new();
        let pod = Pod::new();
        command("ip link add weft0 address 02:00:00:00:00:77 type bridge");
        command(&format!("ip addr add {foreign} dev weft0 nodad"));
        let before = World::of(&host, &[&pod]);
        let error = Network::dual().add_call(&pod).run().error_code(103);
        error.assert_names(&["weft0", foreign, "forceAddress"]);
        before.assert_unchanged(&host, &[&pod], &format!("ADD beside {foreign}"));

        let forced = Network::dual().with(&json!({ "forceAddress": true }));
        forced.add(&pod);
        assert_eq!(host.addresses("weft0"), ["10.88.0.1/24", "fd00:88::1/64"]);
        for gateway in ["10.88.0.1", "fd00:88::1"] {
            pod.assert_reaches(gateway.parse::<IpAddr>().unwrap());
        }
    }
}

/// What is for containers would leave there, without a word. What leads nowhere, or to others, is no obstacle.
#[test]
fn a_link_that_is_on_the_subnet_already() {
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::dual();
    // With a carrier: without one the kernel has no route of IPv6 yet.
    command("ip link add cni0 type bridge");
    command("ip link add far0 up type veth peer name near0");
    command("ip link set near0 up master cni0");
    command("ip link set cni0 up");
    for address in
        ["10.88.0.200/12", "fd00:88::200/32", "10.88.0.201/32", "fd00:88::201/128", "10.88.0.130/29"]
    {
        command(&format!("ip addr add {address} dev cni0"));
    }
    command("ip addr add 10.88.0.202 peer 192.0.2.1/24 dev cni0");
    let refused = |subnet: &str| {
        let before = World::of(&host, &[&pod]);
        let parts = ["gateway address", "cni0", subnet];
        network.add_call(&pod).run().error_code(103).assert_names(&parts);
        before.assert_unchanged(&host, &[&pod], "ADD beside a link on the subnet");
        network.status().error_code(50).assert_names(&parts);
    };
    for with_bridge in [false, true] {
        if with_bridge {
            command("ip link add weft0 address 02:00:00:00:00:77 type bridge");
        }
        for (other, subnet) in [("10.88.0.1/24", "10.88.0."), ("fd00:88::1/64", "fd00:88::")] {
            command(&format!("ip addr add {other} dev cni0"));
            refused(subnet);
            command(&format!("ip addr del {other} dev cni0"));
            network.status().done();
        }
    }
    // A bridge that somebody left behind.
    command("ip addr add 10.88.0.1/24 dev cni0");
    refused("10.88.0.");
    command("ip link set cni0 down");
    network.status().done();
    network.add(&pod);
    for gateway in ["10.88.0.1", "fd00:88::1"] {
        pod.assert_reaches(gateway.parse::<IpAddr>().unwrap());
    }
}

/// As administrators have them, so that private addresses leave by no router.
#[test]
fn routes_that_lead_nowhere_are_no_obstacle() {
    for kind in ["blackhole", "prohibit", "unreachable", "throw"] {
        let _host = Host::new();
        command(&format!("ip route add {kind} 10.0.0.0/8"));
        command(&format!("ip route add {kind} fd00::/8"));
        Network::dual().status().done();
        Network::dual().add(&Pod::new());
    }
}

/// That the kernel does not take the plugin for a program is learnt late, when bridge and veth are made.
#[test]
fn an_ipam_plugin_that_is_no_program() {
    let host = Host::new();
    let pod = Pod::new();
    script("/run/netns/.broken", "weft-ipam", "");
    std::fs::write("/run/netns/.broken/weft-ipam", "#!/nowhere/sh\n").unwrap();
    let before = World::of(&host, &[&pod]);
    let error = Network::v4().add_call(&pod).env("CNI_PATH", "/run/netns/.broken").run().error_code(5);
    error.assert_names(&["/run/netns/.broken/weft-ipam", "cannot be executed"]);
    before.assert_unchanged(&host, &[&pod], "ADD with an IPAM plugin that is no program");
}

#[test]
fn an_exhausted_pool() {
    let host = Host::new();
    let network = Network::new("tiny", &["10.88.0.0/29"]);
    let pods: Vec<Pod> = (0..6).map(|_| Pod::new()).collect();
    pods[..5].iter().for_each(|pod| drop(network.add(pod)));
    let before = World::of(&host, &[&pods[5]]);
    let error = network.add_call(&pods[5]).run().error_code(104);
    // Which pool, how many of how many.
    error.assert_names(&["10.88.0.0/29", "5"]);
    before.assert_unchanged(&host, &[&pods[5]], "ADD with an exhausted pool");

    network.del(&pods[2]);
    network.add(&pods[5]);
    assert_eq!(pods[5].addresses("eth0"), ["10.88.0.4/29"]);
}

/// The kernel would end the process when it writes more.
#[test]
fn files_that_may_not_grow() {
    let host = Host::new();
    let pod = Pod::new();
    for network in [Network::dual(), Network::new("flat", &[])] {
        let before = World::of(&host, &[&pod]);
        let error = network.add_call(&pod).through(["prlimit", "--fsize=0"]).run().error_code(5);
        error.assert_names(&["record the attachment", "File too large"]);
        before.assert_unchanged(&host, &[&pod], "ADD that may write nothing");
    }
    let result = Network::dual().add(&pod);
    let used = Network::dual().del_call(&pod).through(["prlimit", "--fsize=0"]).run();
    used.done();
    assert!(pod.link("eth0").is_none(), "{result}");
}

#[test]
fn a_missing_ipam_plugin() {
    let host = Host::new();
    let pod = Pod::new();
    cni_path("/run/plugins".as_ref(), &["weft"]);
    let before = World::of(&host, &[&pod]);
    let call = Network::v4().add_call(&pod).env("CNI_PATH", "/run/plugins:/nowhere");
    call.run().error_code(7).assert_names(&["weft-ipam", "/run/plugins", "/nowhere"]);
    before.assert_unchanged(&host, &[&pod], "ADD without its IPAM plugin");
}

/// The flaw of CVE-2021-20206: a plugin's type that is a path.
#[test]
fn a_plugin_type_with_a_path() {
    let host = Host::new();
    let pod = Pod::new();
    std::fs::create_dir_all("/run/plugins/sub").unwrap();
    cni_path("/run/plugins/sub".as_ref(), &["weft-ipam"]);
    let before = World::of(&host, &[&pod]);
    for kind in ["sub/weft-ipam", "../plugins/sub/weft-ipam", "/run/plugins/sub/weft-ipam", "..", "."] {
        let network = Network::v4().with(&json!({ "ipam": { "type": kind } }));
        let reply = network.add_call(&pod).env("CNI_PATH", "/run/plugins").run();
        reply.error_code(7).assert_names(&[kind]);
        before.assert_unchanged(&host, &[&pod], kind);
    }
}

#[test]
fn namespaces_that_are_none() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    std::fs::write("/run/netns/file", "").unwrap();
    for path in ["/proc/self/ns/net", "/proc/1/nothing", "/run/netns/file", "/run/netns"] {
        let error = Network::v4().add_call(&pod).env("CNI_NETNS", path).run().error();
        assert!([3, 4].contains(&error.code), "{path}: {error:?}");
        error.assert_names(&["CNI_NETNS"]);
        before.assert_unchanged(&host, &[&pod], path);
    }
}

/// Every value is wrong by itself or beside another; the error names key, value, and the nearest key where it is
/// a slip of the pen.
#[test]
fn configurations() {
    assert_refused(&[
        (json!({ "isGatway": true }), 2, &["isGatway", "true", "isGateway"]),
        (json!({ "vlan": 5 }), 2, &["vlan", "5"]),
        (json!({ "vlanTrunk": [{ "id": 5 }] }), 2, &["vlanTrunk"]),
        (json!({ "guard": false, "macspoofchk": true }), 7, &["macspoofchk", "guard"]),
        (json!({ "ipMasqBackend": "iptables" }), 2, &["ipMasqBackend", "iptables", "nftables"]),
        (json!({ "noMasquerade": ["192.0.2.0/24"], "ipMasq": false }), 7, &["noMasquerade", "ipMasq"]),
        (json!({ "noMasquerade": ["192.0.2.1/24"], "ipMasq": true }), 7, &["192.0.2.1/24", "192.0.2.0/24"]),
        (json!({ "noMasquerade": ["192.0.2.0/33"], "ipMasq": true }), 7, &["noMasquerade"]),
        (json!({ "mtu": -5 }), 7, &["mtu", "-5"]),
        (json!({ "mtu": 70000 }), 7, &["mtu", "70000"]),
        (json!({ "bridge": "a/b" }), 7, &["bridge", "a/b"]),
        (json!({ "bridge": "sixteen-bytes-xx" }), 7, &["bridge", "sixteen-bytes-xx"]),
        (json!({ "hairpinMode": true, "promiscMode": true }), 7, &["hairpinMode", "promiscMode"]),
        (json!({ "runtimeConfig": { "mac": "01:00:5e:00:00:01" } }), 7, &["01:00:5e:00:00:01"]),
        (json!({ "runtimeConfig": { "mac": "nonsense" } }), 7, &["runtimeConfig.mac", "nonsense"]),
        (
            json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "gateway": "fd00::1" }]] } }),
            7,
            &["fd00::1"],
        ),
        (
            json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "gateway": "10.9.0.1" }]] } }),
            7,
            &["10.9.0.1"],
        ),
        (json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.5/24" }]] } }), 7, &["10.0.0.5/24"]),
        (json!({ "ipam": { "ranges": [[{ "subnet": "224.0.0.0/24" }]] } }), 7, &["224.0.0.0/24"]),
        (json!({ "ipam": { "ranges": [[{ "subnet": "127.0.0.0/24" }]] } }), 7, &["127.0.0.0/24"]),
        (
            json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.5" }]] } }),
            7,
            &["10.0.0.9", "10.0.0.5"],
        ),
        (
            json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24" }], [{ "subnet": "10.0.0.0/16" }]] } }),
            7,
            &["10.0.0.0/24", "10.0.0.0/16"],
        ),
        (json!({ "ipam": { "ranges": [] } }), 7, &["ranges"]),
        (json!({ "ipam": { "ranegs": 1 } }), 2, &["ranegs", "ranges"]),
        (json!({ "ipam": { "type": null } }), 7, &["ipam", "type"]),
    ]);
}

/// What the plugins that Weft takes the place of are told by keys of theirs.
#[test]
fn keys_of_other_plugins() {
    assert_refused(&[
        (json!({ "bandwidth": { "ingressRate": 1 } }), 2, &["bandwidth"]),
        (json!({ "backend": "iptables" }), 2, &["backend", "iptables", "nftables"]),
        (json!({ "backend": "firewalld" }), 2, &["backend", "firewalld", "nftables"]),
        (json!({ "firewalldZone": "trusted" }), 2, &["firewalldZone", "trusted", "firewall-cmd"]),
        (json!({ "ingressPolicy": "same-bridge" }), 2, &["ingressPolicy", "same-bridge", "isolation"]),
        (json!({ "ingressPolicy": "isolated" }), 2, &["ingressPolicy", "isolated", "icc"]),
        (
            json!({ "iptablesAdminChainName": "A" }),
            2,
            &["iptablesAdminChainName", "allow", "egress", "sources"],
        ),
    ]);
}

#[track_caller]
fn assert_refused(cases: &[(Value, u64, &[&str])]) {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    for (change, code, words) in cases {
        let error = Network::v4().with(change).add_call(&pod).run().error();
        assert_eq!(error.code, *code, "{change}: {error:?}");
        error.assert_names(words);
        before.assert_unchanged(&host, &[&pod], &change.to_string());
    }
}

/// Where no more of the network is known than this host's part, a rule about others may be for another host: it is said that it opens
/// nothing here.
#[test]
fn a_rule_about_addresses_that_this_host_does_not_have() {
    let _host = Host::new();
    let private = Network::dual().with(&json!({ "isDefaultGateway": true, "icc": false }));
    let said = "has the prefix 192.0.2.0/24, which is outside of the network";
    for (prefix, is_said) in [("192.0.2.0/24", true), ("10.0.0.0/8", false), ("fd00:88::7/128", false)] {
        let rule = json!([{ "from": { "prefix": prefix }, "to": { "label": "role=db" } }]);
        let network = private.clone().with(&json!({ "allow": rule }));
        let (status, pod) = (network.status(), Pod::new());
        let add = network.add_call(&pod).run();
        status.done();
        add.result();
        assert_eq!([status, add].map(|reply| reply.stderr.contains(said)), [is_said; 2], "{prefix}");
        network.del(&pod);
    }
}

/// What the reference accepts as "not asked for" migrates unchanged.
#[test]
fn unbuilt_keys_that_ask_for_nothing_are_no_obstacle() {
    let _host = Host::new();
    let quiet = json!({ "vlan": 0, "vlanTrunk": [], "macspoofchk": false, "ipMasqBackend": "", "backend": "nftables" });
    Network::v4().with(&quiet).add(&Pod::new());
}

/// A key whose value is null is absent to plugins in Go, and some runtimes write all that they know.
#[test]
fn keys_without_a_value_are_no_obstacle() {
    let _host = Host::new();
    let mut network = Network::v4();
    for key in [
        "isGateway", "ipMasq", "mtu", "bridge", "dns", "args", "runtimeConfig", "capabilities", "routes",
        "guard", "icc", "allow", "sources", "sysctl", "ingressRate", "stateDir", "logFile", "timeout",
        "chained", "prevResult",
    ] {
        network.conf[key] = Value::Null;
    }
    for key in ["routes", "rangeStart", "gateway", "subnet", "exclude", "etcd", "sticky", "dataDir"] {
        network.conf["ipam"][key] = Value::Null;
    }
    let pod = Pod::new();
    let result = network.add(&pod);
    network.check(&pod, &result).done();
    network.status().done();
    network.del(&pod);
}
