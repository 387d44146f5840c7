//! Results in the shape of each version, both ways.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use cni_protocol::{AddResult, Code, Dns, Interface, IpConfig, Route, Version};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use serde_json::{Value, json};

fn dual_stack() -> AddResult {
    let bridge =
        Interface { name: "weft0".into(), mac: Some("02:00:00:00:00:01".into()), ..Interface::default() };
    let container = Interface {
        name: "eth0".into(),
        mac: Some("02:00:00:00:00:02".into()),
        mtu: Some(1450),
        sandbox: Some("/run/netns/c1".into()),
        socket_path: Some("/run/s".into()),
        pci_id: Some("0000:00:01.0".into()),
    };
    let ip = |address: &str, gateway: &str| IpConfig {
        address: address.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        interface: Some(1),
    };
    let route = |dst: &str| Route {
        dst: dst.parse().unwrap(),
        gw: None,
        mtu: Some(1400),
        advmss: Some(1360),
        priority: Some(10),
        table: Some(100),
        scope: Some(253),
    };
    AddResult {
        interfaces: vec![bridge, container],
        ips: vec![ip("10.1.0.5/16", "10.1.0.1"), ip("fd00::5/64", "fd00::1")],
        routes: vec![route("0.0.0.0/0"), route("::/0")],
        dns: Dns { nameservers: vec!["10.1.0.1".into()], ..Dns::default() },
    }
}

#[test]
fn shape_of_0_1_and_0_2() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        assert_eq!(
            dual_stack().to_json(version),
            json!({
                "cniVersion": version.as_str(),
                "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
                "dns": {"nameservers": ["10.1.0.1"]},
            })
        );
        assert_eq!(AddResult::default().to_json(version), json!({"cniVersion": version.as_str(), "dns": {}}));
    }
}

#[test]
fn shape_of_0_3_to_1_0() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
        let mut ips = json!([
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
        ]);
        if version < Version::V1_0_0 {
            ips[0]["version"] = "4".into();
            ips[1]["version"] = "6".into();
        }
        assert_eq!(
            dual_stack().to_json(version),
            json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    {"name": "weft0", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/c1"},
                ],
                "ips": ips,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dns": {"nameservers": ["10.1.0.1"]},
            })
        );
    }
}

#[test]
fn shape_of_1_1() {
    let json = dual_stack().to_json(Version::V1_1_0);
    assert_eq!(json["cniVersion"], "1.1.0");
    assert_eq!(
        json["interfaces"][1],
        json!({
            "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/c1",
            "socketPath": "/run/s", "pciID": "0000:00:01.0",
        })
    );
    assert_eq!(json["ips"][0], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1}));
    assert_eq!(
        json["routes"][0],
        json!({"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1360, "priority": 10, "table": 100, "scope": 253})
    );
}

#[test]
fn an_ipam_plugins_result_has_no_interfaces() {
    let mut result = dual_stack();
    result.interfaces.clear();
    assert_eq!(result.to_json(Version::V1_1_0).get("interfaces"), None);
}

#[test]
fn what_other_implementations_write() {
    let read = |json: Value| AddResult::from_json(&json).unwrap();
    let address = |text: &str| IpConfig { address: text.parse().unwrap(), gateway: None, interface: None };
    for nothing in [
        json!({"cniVersion": "1.0.0"}),
        json!({"cniVersion": "0.4.0", "interfaces": null, "ips": null, "routes": null, "dns": null}),
        json!({"cniVersion": "0.2.0", "ip4": null, "dns": {}}),
        json!({"cniVersion": null, "dns": {"nameservers": null, "domain": ""}}),
    ] {
        assert_eq!(read(nothing), AddResult::default());
    }
    // Without a version: the oldest by its keys, else a newer one.
    assert_eq!(read(json!({"ip4": {"ip": "10.0.0.2/8"}})).ips, [address("10.0.0.2/8")]);
    assert_eq!(
        read(json!({"ips": [{"version": "4", "address": "10.0.0.2/8"}]})).ips,
        [address("10.0.0.2/8")]
    );
    let ip = json!({"address": "10.0.0.2/8", "gateway": "", "unknown": 1});
    assert_eq!(read(json!({"cniVersion": "1.0.0", "ips": [ip]})).ips, [address("10.0.0.2/8")]);
    let result = read(
        json!({"interfaces": [{"name": "a", "mac": "", "sandbox": ""}], "routes": [{"dst": "0.0.0.0/0", "gw": ""}]}),
    );
    assert_eq!(result.interfaces, [Interface { name: "a".into(), ..Interface::default() }]);
    assert_eq!(result.routes[0].gw, None);
}

#[test]
fn what_is_no_result() {
    for (json, code, reason) in [
        (json!([]), 6, "object"),
        (json!("x"), 6, "result"),
        (json!({"cniVersion": 1}), 6, "cniVersion"),
        (json!({"cniVersion": "7.0.0"}), 1, "7.0.0"),
        (json!({"interfaces": [null]}), 6, "interfaces[0]"),
        (json!({"interfaces": [["eth0"]]}), 6, "interfaces[0]"),
        (json!({"interfaces": [{"name": "a", "mtu": -1}]}), 6, "interfaces[0].mtu"),
        (json!({"ips": [{"address": "10.0.0.1"}]}), 6, "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.1/33"}]}), 6, "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.1/255.0.0.0"}]}), 6, "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.1/+8"}]}), 6, "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}), 6, "ips[0].gateway"),
        (json!({"ips": [{"address": "10.0.0.1/8", "interface": -1}]}), 6, "ips[0].interface"),
        (json!({"routes": [{"gw": "10.0.0.1"}]}), 6, "routes[0]"),
        (json!({"routes": [{"dst": "0.0.0.0/0", "scope": 256}]}), 6, "routes[0].scope"),
        (json!({"dns": {"nameservers": "10.0.0.1"}}), 6, "dns.nameservers"),
        (
            json!({"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "10.0.0.1/8"}]}),
            6,
            "ips[0].version",
        ),
        (json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}), 6, "ip4.ip"),
        (json!({"cniVersion": "0.1.0", "ip6": {"ip": "fd00::1/64", "routes": [{}]}}), 6, "ip6.routes[0]"),
    ] {
        let error = AddResult::from_json(&json).unwrap_err();
        assert_eq!(error.code.number(), code, "{json}");
        assert!(error.msg.contains(reason), "{json}: {error}");
        assert!(error.code != Code::Internal);
    }
}

fn network() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (any::<std::net::Ipv4Addr>(), 0..=32_u8)
            .prop_map(|(ip, prefix)| IpNetwork::new(ip.into(), prefix).unwrap()),
        (any::<std::net::Ipv6Addr>(), 0..=128_u8)
            .prop_map(|(ip, prefix)| IpNetwork::new(ip.into(), prefix).unwrap()),
    ]
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of("\\PC{1,12}")
}

prop_compose! {
    fn interface()(
        name in "\\PC{0,15}", mac in text(), mtu: Option<u32>, sandbox in text(), socket_path in text(), pci_id in text(),
    ) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

prop_compose! {
    fn ip_config()(address in network(), gateway: Option<IpAddr>, interface: Option<usize>) -> IpConfig {
        IpConfig { address, gateway, interface }
    }
}

prop_compose! {
    fn route()(
        dst in network(), gw: Option<IpAddr>, mtu: Option<u32>, advmss: Option<u32>, priority: Option<u32>,
        table: Option<u32>, scope: Option<u8>,
    ) -> Route {
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn any_result()(
        interfaces in prop::collection::vec(interface(), 0..4),
        ips in prop::collection::vec(ip_config(), 0..4),
        routes in prop::collection::vec(route(), 0..4),
        (nameservers, domain, search, options) in (
            prop::collection::vec("\\PC*", 0..3), text(), prop::collection::vec("\\PC*", 0..3),
            prop::collection::vec("\\PC*", 0..3),
        ),
    ) -> AddResult {
        AddResult { interfaces, ips, routes, dns: Dns { nameservers, domain, search, options } }
    }
}

/// What remains of a result in a version.
fn as_seen_by(version: Version, mut result: AddResult) -> AddResult {
    if version < Version::V1_1_0 {
        for interface in &mut result.interfaces {
            (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
        }
        for route in &mut result.routes {
            *route = Route {
                dst: route.dst,
                gw: route.gw,
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            };
        }
    }
    if version <= Version::V0_2_0 {
        let family = |is_ipv4: bool| result.ips.iter().find(move |ip| ip.address.is_ipv4() == is_ipv4);
        let ips: Vec<IpConfig> = [family(true), family(false)].into_iter().flatten().cloned().collect();
        let has_family = |route: &&Route| ips.iter().any(|ip| ip.address.is_ipv4() == route.dst.is_ipv4());
        let mut routes: Vec<Route> = result.routes.iter().filter(has_family).cloned().collect();
        routes.sort_by_key(|route| route.dst.is_ipv6());
        let ips = ips.into_iter().map(|ip| IpConfig { interface: None, ..ip }).collect();
        return AddResult { interfaces: Vec::new(), ips, routes, dns: result.dns };
    }
    result
}

proptest! {
    #[test]
    fn every_version_round_trips(result in any_result(), index in 0..Version::ALL.len()) {
        let version = Version::ALL[index];
        let json = result.to_json(version);
        prop_assert_eq!(json["cniVersion"].as_str(), Some(version.as_str()));
        let text = json.to_string();
        let read = AddResult::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
        prop_assert_eq!(&read, &as_seen_by(version, result));
        // A second trip changes nothing.
        prop_assert_eq!(read.to_json(version), json);
    }

    #[test]
    fn serde_form_is_the_newest_version(result in any_result()) {
        let mut json = serde_json::to_value(&result).unwrap();
        prop_assert_eq!(&serde_json::from_value::<AddResult>(json.clone()).unwrap(), &result);
        json["cniVersion"] = "1.1.0".into();
        prop_assert_eq!(json, result.to_json(Version::V1_1_0));
    }
}
