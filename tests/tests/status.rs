//! STATUS fails whenever ADD would, and says why.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;

use serde_json::json;
use weft_tests::{Host, Injection, Network, Pod, Tampered, World, cni_path, command};

/// The kernel's limit: BR_MAX_PORTS of net/bridge/br_private.h, less port number 0.
const BRIDGE_PORTS: usize = 1023;

#[test]
fn ready_and_nothing_changed() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    for network in [Network::dual().with(&json!({ "ipMasq": true })), Network::new("flat", &[])] {
        network.status().done();
        before.assert_unchanged(&host, &[], "STATUS on a fresh host");
        assert!(!fs::exists("/run/weft").unwrap(), "STATUS created a state directory");
    }
    let network = Network::dual();
    let pod = Pod::new();
    network.add(&pod);
    let before = World::of(&host, &[]);
    network.status().done();
    before.assert_unchanged(&host, &[], "STATUS of a network in use");
}

/// As in a container that is not privileged.
#[test]
fn kernel_settings_that_cannot_be_written() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    command("mount --rbind /proc/sys /proc/sys");
    command("mount -o remount,bind,ro /proc/sys");
    let names = ["/proc/sys/net/", "Read-only file system", "remount,rw /proc/sys"];
    for network in [Network::v4(), Network::dual(), Network::new("flat", &[])] {
        network.status().error_code(50).assert_names(&names);
        network.add_call(&Pod::new()).run().error_code(102).assert_names(&names);
        before.assert_unchanged(&host, &[], "ADD without kernel settings");
    }
    command("umount -l /proc/sys");
    Network::v4().status().done();
}

#[test]
fn an_exhausted_pool() {
    let _host = Host::new();
    let network = Network::new("tiny", &["10.88.0.0/30"]);
    let pod = Pod::new();
    network.status().done();
    network.add(&pod);
    network.status().error_code(50).assert_names(&["10.88.0.0/30"]);
    network.del(&pod);
    network.status().done();
}

/// Which has no address of its own: the first one is the gateway's (RFC 3021, RFC 6164).
#[test]
fn a_subnet_of_two_addresses() {
    let _host = Host::new();
    let network =
        Network::new("pair", &["10.9.0.0/31", "fd00:9::/127"]).with(&json!({ "isDefaultGateway": true }));
    let pod = Pod::new();
    let result = network.add(&pod);
    network.check(&pod, &result).done();
    for gateway in ["10.9.0.0", "fd00:9::"] {
        pod.assert_reaches(gateway.parse::<IpAddr>().unwrap());
    }
    network.del(&pod);
    network.status().done();
}

/// No ADD succeeds there, whatever address it gets.
#[test]
fn subnets_in_which_nothing_can_be_planned() {
    let _host = Host::new();
    let alone = Network::new("alone", &["10.9.0.7/32"]).with(&json!({ "isGateway": true }));
    alone.status().error_code(50).assert_names(&["10.9.0.7/32", "no room for a gateway"]);
    let small = Network::new("small", &["fd00:9::/64"]).with(&json!({ "mtu": 1000 }));
    small.status().error_code(50).assert_names(&["mtu is 1000", "1280"]);
}

#[test]
fn a_missing_ipam_plugin() {
    let _host = Host::new();
    cni_path("/run/plugins".as_ref(), &["weft"]);
    let call = Network::v4().call("STATUS").env("CNI_PATH", "/run/plugins");
    call.run().error_code(50).assert_names(&["weft-ipam", "/run/plugins"]);
}

#[test]
fn a_bridge_of_another_kind() {
    let _host = Host::new();
    command("ip link add weft0 type veth peer name other0");
    Network::v4().status().error_code(50).assert_names(&["weft0", "veth"]);
    let network = Network::v4().with(&json!({ "bridge": "lo" }));
    network.status().error_code(50).assert_names(&["lo", "hardware"]);
    network.add_call(&Pod::new()).run().any_error();
}

#[test]
fn another_address_of_the_bridge() {
    let _host = Host::new();
    command("ip link add weft0 type bridge");
    let network = Network::dual();
    for (subnet, foreign, gateway, of_another, moved) in [
        ("10.88.0.0/24", "10.88.0.9/24", "10.88.0.1/24", "192.0.2.1/24", "10.88.0.254"),
        ("fd00:88::/64", "fd00:88::9/64", "fd00:88::1/64", "2001:db8::1/64", "fd00:88::fe"),
    ] {
        command(&format!("ip addr add {foreign} dev weft0"));
        network.status().error_code(50).assert_names(&["weft0", gateway, foreign, "forceAddress"]);
        network.clone().with(&json!({ "forceAddress": true })).status().done();
        network.clone().with(&json!({ "isGateway": false, "isDefaultGateway": false })).status().done();
        // The gateway's own is none, nor is one of another network.
        command(&format!("ip addr del {foreign} dev weft0"));
        command(&format!("ip addr add {gateway} dev weft0"));
        command(&format!("ip addr add {of_another} dev weft0"));
        network.status().done();
        let other = json!({ "ipam": { "ranges": [[{ "subnet": subnet, "gateway": moved }]] } });
        network.clone().with(&other).status().error_code(50).assert_names(&[moved, gateway]);
    }
}

#[test]
fn a_full_bridge() {
    let host = Host::new();
    let mut batch = String::from("link add weft0 type bridge\n");
    for number in 0..BRIDGE_PORTS - 1 {
        writeln!(batch, "link add p{number} master weft0 type veth peer name q{number}").unwrap();
    }
    fs::write("/run/batch", batch).unwrap();
    command("ip -batch /run/batch");
    let network = Network::v4();
    network.status().done();
    let (last, more) = (Pod::new(), Pod::new());
    network.add(&last);
    network.status().error_code(50).assert_names(&["weft0", "1023"]);
    let before = World::of(&host, &[&more]);
    network.add_call(&more).run().error_code(104).assert_names(&["weft0", "1023"]);
    before.assert_unchanged(&host, &[&more], "ADD to a full bridge");
    network.del(&last);
    network.status().done();
    network.add(&more);
}

/// A kernel without nftables or without netlink at all.
#[test]
fn kernel_interfaces_that_are_missing() {
    let _host = Host::new();
    let network = Network::v4().with(&json!({ "ipMasq": true }));
    let mut hits = 0;
    for nth in 1.. {
        let injection = Injection { process: Tampered::Weft, syscall: "socket", errno: "EAFNOSUPPORT", nth };
        let (reply, hit) = injection.run(network.call("STATUS"));
        let Some(line) = hit else { break };
        hits += usize::from(line.contains("NETLINK_NETFILTER"));
        assert!(!reply.succeeded(), "STATUS succeeded, although ADD would fail: {line}");
        reply.error_code(50);
    }
    assert!(hits > 0, "STATUS does not look whether nftables is there");
}

#[test]
fn state_that_cannot_be_written() {
    let _host = Host::new();
    fs::write("/run/weft", "not a directory").unwrap();
    let pod = Pod::new();
    Network::v4().add_call(&pod).run().error().assert_names(&["/run/weft"]);
    Network::v4().status().error().assert_names(&["/run/weft"]);
}

#[test]
fn a_state_directory_that_is_read_only() {
    let _host = Host::new();
    let (network, pod) = (Network::v4(), Pod::new());
    network.add(&pod);
    command("mount --bind /run/weft /run/weft");
    command("mount -o remount,bind,ro /run/weft");
    for reply in [network.add_call(&Pod::new()).run(), network.del_call(&pod).run()] {
        reply.error_code(5).assert_names(&["/run/weft/", "Read-only", "neither full nor read-only"]);
    }
    network.status().error_code(50).assert_names(&["/run/weft", "cannot be written"]);
    command("umount /run/weft");
    network.del(&pod);
}

#[test]
fn a_configuration_that_add_refuses() {
    let _host = Host::new();
    for (change, code) in [(json!({ "mtu": -5 }), 7), (json!({ "isGatway": true }), 2)] {
        Network::v4().with(&change).status().error_code(code);
    }
    let quoted = Network::v4().with(&json!({ "mtu": "1500" }));
    quoted
        .add_call(&Pod::new())
        .run()
        .error_code(7)
        .assert_names(&["mtu", "\"1500\" is a text", "without quotes"]);
    let broken = Network::v4().with(&json!({ "ipam": { "ranges": [[{ "subnet": "10.88.0.7/24" }]] } }));
    assert!(!broken.status().succeeded());
}
