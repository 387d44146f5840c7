//! What is promised of interfaces and routes beside their being there, and results of versions that say less.

use serde_json::json;
use weft_tests::{Network, command};

use super::{Attached, assert_noticed, network};

#[test]
fn settings_of_the_containers_interface() {
    fn set(it: &Attached, setting: &str, value: &str) {
        it.pod.inside(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/eth0/{setting}"), value)).unwrap();
    }
    assert_noticed(
        &network(),
        &[
            ("router advertisements accepted", |it| set(it, "accept_ra", "1"), &["eth0/accept_ra", "1", "0"]),
            ("… also by a router", |it| set(it, "accept_ra", "2"), &["eth0/accept_ra", "2", "0"]),
        ],
    );
    assert_noticed(
        &Network::v4(),
        &[
            ("accepted once IPv6 is on", |it| set(it, "accept_ra", "1"), &["eth0/accept_ra", "1", "0"]),
            ("IPv6 on", |it| set(it, "disable_ipv6", "0"), &["eth0/disable_ipv6", "0", "1"]),
        ],
    );
}

#[test]
fn the_hosts_end() {
    fn set(it: &Attached, setting: &str) {
        command(&format!("ip link set {} {setting}", it.veth()));
    }
    for version in VERSIONS {
        assert_noticed(
            &network().with(&json!({ "cniVersion": version })),
            &[
                ("MTU", |it| set(it, "mtu 1300"), &["weft", "1300", "1500"]),
                (
                    "MAC",
                    |it| set(it, "address 02:00:00:00:00:97"),
                    &["weft", "02:00:00:00:00:97", "instead of"],
                ),
            ],
        );
    }
    // Both ends alike, as the configuration says no longer.
    for version in VERSIONS {
        assert_noticed(
            &network().with(&json!({ "cniVersion": version, "mtu": 1400 })),
            &[("MTU", both_ends, &["1300", "1400"])],
        );
    }
}

fn both_ends(it: &mut Attached) {
    command(&format!("ip link set {} mtu 1300", it.veth()));
    it.pod("ip link set eth0 mtu 1300");
}

#[test]
fn attributes_of_routes() {
    fn change(it: &mut Attached, to: &str) {
        it.pod("ip route del 198.51.100.0/24");
        it.pod(&format!("ip route add 198.51.100.0/24 via 10.88.0.9 {to}"));
    }
    let routes = json!([
        { "dst": "192.0.2.0/24" },
        { "dst": "198.51.100.0/24", "gw": "10.88.0.9", "mtu": 1400, "advmss": 1360, "priority": 50 },
        { "dst": "203.0.113.0/24", "gw": "10.88.0.9", "table": 99 },
        { "dst": "198.18.0.0/15", "scope": 253 },
    ]);
    assert_noticed(
        &Network::dual().with(&json!({ "ipam": { "routes": routes } })),
        &[
            ("metric", |it| change(it, "metric 51 mtu 1400 advmss 1360"), &["198.51.100.0/24", "51", "50"]),
            ("mtu", |it| change(it, "metric 50 mtu 1200 advmss 1360"), &["198.51.100.0/24", "1200", "1400"]),
            ("no mtu", |it| change(it, "metric 50 advmss 1360"), &["198.51.100.0/24", "none", "1400"]),
            ("advmss", |it| change(it, "metric 50 mtu 1400 advmss 99"), &["198.51.100.0/24", "99", "1360"]),
            ("table", another_table, &["203.0.113.0/24", "gone", "99"]),
            ("scope", another_scope, &["198.18.0.0/15", "0", "253"]),
        ],
    );
}

fn another_table(it: &mut Attached) {
    it.pod("ip route del 203.0.113.0/24 table 99");
    it.pod("ip route add 203.0.113.0/24 via 10.88.0.9");
}

fn another_scope(it: &mut Attached) {
    it.pod("ip route del 198.18.0.0/15");
    it.pod("ip route add 198.18.0.0/15 dev eth0 scope global");
}

#[test]
fn metrics_of_routes_that_were_given_none() {
    assert_noticed(
        &network(),
        &[
            (
                "a metric where there was none",
                |it| {
                    it.pod("ip route del default");
                    it.pod("ip route add default via 10.88.0.1 metric 500");
                },
                &["0.0.0.0/0", "500"],
            ),
            (
                "another metric than the kernel's own",
                |it| {
                    it.pod("ip -6 route del default");
                    it.pod("ip -6 route add default via fd00:88::1 metric 77");
                },
                &["::/0", "77", "1024"],
            ),
        ],
    );
    let metrics = Network::dual().with(&json!({ "interfaceMetrics": { "eth0": 50 } }));
    assert_noticed(
        &metrics,
        &[(
            "an interface's metric",
            |it| {
                it.pod("ip route del default");
                it.pod("ip route add default via 10.88.0.1");
            },
            &["0.0.0.0/0", "50"],
        )],
    );
}

/// Versions that have CHECK. 0.4.0 writes addresses in another way; only 1.1.0 has MTUs and attributes of routes.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

#[test]
fn results_of_older_versions() {
    for version in &VERSIONS[..2] {
        assert_noticed(
            &network().with(&json!({ "cniVersion": version })),
            &[
                ("eth0 deleted", |it| it.pod("ip link delete eth0"), &["eth0", "gone"]),
                ("eth0 down", |it| it.pod("ip link set eth0 down"), &["eth0", "down"]),
                ("MTU", |it| it.pod("ip link set eth0 mtu 1300"), &["eth0", "1300", "1500"]),
                (
                    "MAC",
                    |it| it.pod("ip link set eth0 address 02:00:00:00:00:99"),
                    &["eth0", "02:00:00:00:00:99"],
                ),
                ("IPv4 address", |it| it.pod("ip addr del 10.88.0.2/24 dev eth0"), &["10.88.0.2/24"]),
                ("IPv6 address", |it| it.pod("ip addr del fd00:88::2/64 dev eth0"), &["fd00:88::2/64"]),
                ("default route", |it| it.pod("ip route del default"), &["0.0.0.0/0"]),
                (
                    "its gateway",
                    |it| it.pod("ip route replace default via 10.88.0.77"),
                    &["0.0.0.0/0", "10.88.0.1", "10.88.0.77"],
                ),
                ("a route", |it| it.pod("ip route del 203.0.113.0/24"), &["203.0.113.0/24", "10.88.0.9"]),
                (
                    "off the bridge",
                    |it| drop(command(&format!("ip link set {} nomaster", it.veth()))),
                    &["weft0", "none"],
                ),
                (
                    "gateway's address",
                    |_| drop(command("ip addr del 10.88.0.1/24 dev weft0")),
                    &["weft0", "10.88.0.1/24"],
                ),
                ("masquerade", |it| it.host.nft("flush chain inet weft masq-dual"), &["masq-dual"]),
            ],
        );
    }
}

/// What a result cannot say is not missed: a route's metric in one that a runtime wrote anew in a later version.
#[test]
fn a_result_that_was_converted() {
    let routes = json!([{ "dst": "192.0.2.0/24", "priority": 50 }]);
    let network = Network::dual().with(&json!({ "cniVersion": "1.0.0", "ipam": { "routes": routes } }));
    let mut it = Attached::new(network.clone());
    it.network.check(&it.pod, &it.result).done();
    it.result["cniVersion"] = json!("1.1.0");
    network.with(&json!({ "cniVersion": "1.1.0" })).check(&it.pod, &it.result).done();
}
