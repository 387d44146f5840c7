//! What a host has set for links that are made, or for all that it has, where a network needs something else.

use std::fs;
use std::net::IpAddr;

use serde_json::json;
use weft_tests::{Host, Network, Outside, Pod};

/// A container that comes now is as it ought to be, and reaches these.
fn assert_usable(network: &Network, targets: &[&str]) {
    let pod = Pod::new();
    network.status().done();
    let result = network.add(&pod);
    network.check(&pod, &result).done();
    for target in targets {
        pod.assert_reaches(target.parse::<IpAddr>().unwrap());
    }
}

#[test]
fn ipv6_is_off() {
    let gateways = ["10.88.0.1", "fd00:88::1"];
    for of in ["default", "all"] {
        let host = Host::new();
        host.set_sysctl(&format!("net/ipv6/conf/{of}/disable_ipv6"), "1");
        assert_usable(&Network::dual(), &gateways);
        // Once more, for the bridge that is there by now.
        host.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        assert_eq!(host.addresses("weft0"), ["10.88.0.1/24"]);
        assert_usable(&Network::dual(), &gateways);
    }
}

#[test]
fn forwarding_is_off_for_new_links() {
    let host = Host::new();
    let _outside = host.outside();
    for (every, new) in [
        ("net/ipv4/ip_forward", "net/ipv4/conf/default/forwarding"),
        ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"),
    ] {
        host.set_sysctl(every, "1");
        host.set_sysctl(new, "0");
    }
    assert_usable(&Network::dual().with(&json!({ "ipMasq": true })), &Outside::PEER);
}

/// Whoever gives the addresses of a network without `ipam` may do so by router advertisements.
#[test]
fn ipv6_of_a_network_without_ipam_is_left_alone() {
    for (disabled, accept_ra) in [("0", "1"), ("1", "2")] {
        let _host = Host::new();
        let pod = Pod::new();
        let of = |link: &str, key: &str| format!("/proc/sys/net/ipv6/conf/{link}/{key}");
        pod.inside(|| {
            fs::write(of("default", "disable_ipv6"), disabled).unwrap();
            fs::write(of("default", "accept_ra"), accept_ra).unwrap();
        });
        let network = Network::new("flat", &[]);
        let result = network.add(&pod);
        let found = pod
            .inside(|| ["disable_ipv6", "accept_ra"].map(|key| fs::read_to_string(of("eth0", key)).unwrap()));
        assert_eq!(found, [format!("{disabled}\n"), format!("{accept_ra}\n")]);
        network.check(&pod, &result).done();
    }
}

/// The setting is named, and what helps.
#[test]
fn a_route_of_ipv6_for_a_container_without() {
    let _host = Host::new();
    let routed = Network::new("routed", &["10.89.0.0/24"]).with(&json!({
        "isDefaultGateway": true, "routes": [{ "dst": "fd00:1::/64", "gw": "fe80::1" }]
    }));
    let error = routed.add_call(&Pod::new()).run().any_error();
    error.assert_names(&[
        "net.ipv6.conf.eth0.disable_ipv6 is 1",
        "leave IPv6 out of the network's ranges and routes",
    ]);
}
