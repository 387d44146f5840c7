use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn network(gateway: Gateway) -> Network {
    let conf = json!({
        "isGateway": gateway == Gateway::Address,
        "isDefaultGateway": gateway == Gateway::DefaultRoute,
        "ipMasq": true,
        "ipam": {"type": "weft-ipam"}
    });
    Network::parse(&"net".parse().unwrap(), conf.as_object().unwrap()).unwrap()
}

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    IpConfig {
        address: address.parse().unwrap(),
        gateway: gateway.map(|text| text.parse().unwrap()),
        interface: None,
    }
}

fn route(dst: &str, gw: Option<&str>) -> Route {
    Route { gw: gw.map(|text| text.parse().unwrap()), ..Route::to(dst.parse().unwrap()) }
}

#[test]
fn dual_stack_gets_a_gateway_and_a_default_route_of_each_family() {
    let ips = [ip("10.1.0.2/16", None), ip("fd00::2/64", Some("fd00::1"))];
    let plan = Plan::new(&network(Gateway::DefaultRoute), &ips, &[]).unwrap();
    assert_eq!(plan.gateways, ["10.1.0.1/16".parse().unwrap(), "fd00::1/64".parse::<IpNetwork>().unwrap()]);
    assert_eq!(plan.routes, [route("0.0.0.0/0", Some("10.1.0.1")), route("::/0", Some("fd00::1"))]);
    assert_eq!(plan.forwarding, [Family::V4, Family::V6]);
    assert_eq!(
        plan.masquerade.prefixes,
        ["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse::<IpNetwork>().unwrap()]
    );
    assert_eq!(plan.ipv6, Ipv6::On);
}

#[test]
fn an_ipv4_network_has_no_ipv6_and_one_of_layer_2_is_left_alone() {
    let plan = Plan::new(&network(Gateway::None), &[ip("10.1.0.2/16", None)], &[]).unwrap();
    assert_eq!((plan.ipv6, plan.gateways.len(), plan.routes.len()), (Ipv6::Off, 0, 0));
    let plan = Plan::new(&network(Gateway::DefaultRoute), &[], &[]).unwrap();
    assert_eq!((plan.ipv6, plan.masquerade.prefixes.len()), (Ipv6::Untouched, 0));
}

#[test]
fn a_given_default_route_is_kept_and_gets_its_next_hop() {
    let given =
        [route("0.0.0.0/0", None), route("192.168.0.0/16", Some("10.1.0.9")), route("0.0.0.0/0", None)];
    let plan = Plan::new(&network(Gateway::DefaultRoute), &[ip("10.1.0.2/16", None)], &given).unwrap();
    assert_eq!(plan.routes, given);
    let kernel = [route("0.0.0.0/0", Some("10.1.0.1")), route("192.168.0.0/16", Some("10.1.0.9"))];
    assert_eq!(plan.kernel_routes(), kernel);
}

#[test]
fn a_route_of_link_scope_has_no_next_hop() {
    let given = [Route { scope: Some(253), ..route("192.168.0.0/16", None) }];
    let plan = Plan::new(&network(Gateway::Address), &[ip("10.1.0.2/16", None)], &given).unwrap();
    assert_eq!(plan.kernel_routes()[0].gw, None);
}

fn elsewhere(dst: &str, priority: u32) -> KernelRoute {
    let dst = dst.parse().unwrap();
    KernelRoute {
        dst,
        gateway: None,
        table: RT_TABLE_MAIN,
        priority,
        mtu: None,
        advmss: None,
        scope: 0,
        protocol: 3,
        tos: 0,
        has_more: false,
    }
}

#[test]
fn a_default_route_goes_behind_those_of_other_interfaces_unless_it_has_a_metric() {
    let ips = [ip("10.1.0.2/16", None), ip("fd00::2/64", None)];
    let plan = |metric| {
        Plan::new(&network(Gateway::DefaultRoute), &ips, &[route("192.0.2.0/24", None)])
            .unwrap()
            .with_metric(metric)
    };
    let others = [elsewhere("0.0.0.0/0", 0), elsewhere("0.0.0.0/0", 7), elsewhere("::/0", 1024)];
    let metrics = |plan: &Plan| plan.routes.iter().map(|route| route.priority).collect::<Vec<_>>();
    let behind = plan(None).behind(&others);
    assert_eq!(metrics(&behind), [None, Some(8), Some(1025)]);
    assert_eq!(behind.second, [Family::V4, Family::V6]);
    let before = plan(Some(3)).behind(&others);
    assert_eq!(metrics(&before), [Some(3); 3]);
    assert_eq!(before.second, [Family::V4]);
    // Asked for 0, the kernel gives IPv6's default.
    assert_eq!(plan(Some(0)).behind(&others).second, [Family::V4, Family::V6]);
    assert_eq!(plan(None).behind(&[]), plan(None));
}

#[test]
fn a_gateway_outside_of_the_subnet_is_not_the_bridges() {
    let ips = [ip("10.1.0.2/16", Some("192.168.0.1"))];
    assert_eq!(Plan::new(&network(Gateway::Address), &ips, &[]).unwrap().gateways, []);
}

#[test]
fn what_cannot_work_is_refused() {
    for (address, gateway) in [
        ("10.1.0.2/16", Some("fd00::1")),
        ("10.1.0.1/16", None),
        ("10.1.0.5/16", Some("10.1.0.5")),
        ("10.1.0.5/32", None),
    ] {
        let refused = Plan::new(&network(Gateway::Address), &[ip(address, gateway)], &[]).unwrap_err();
        assert_eq!(refused.code, Code::InvalidConfig, "{address} {gateway:?}");
    }
    let small = Network { mtu: Some(1000), ..network(Gateway::None) };
    assert!(Plan::new(&small, &[ip("10.1.0.2/16", None)], &[]).is_ok());
    assert!(Plan::new(&small, &[ip("fd00::2/64", None)], &[]).unwrap_err().msg.contains("1280"));
}

fn address() -> impl Strategy<Value = IpNetwork> {
    let v4 = (any::<u32>(), 0..=32_u8)
        .prop_map(|(ip, length)| Ipv4Network::new(Ipv4Addr::from(ip), length).unwrap().into());
    let v6 = (any::<u128>(), 0..=128_u8)
        .prop_map(|(ip, length)| Ipv6Network::new(Ipv6Addr::from(ip), length).unwrap().into());
    prop_oneof![v4, v6]
}

proptest! {
    /// Whatever an IPAM plugin returns, a plan holds together or is refused.
    #[test]
    fn plans_hold_together(addresses in prop::collection::vec(address(), 0..4)) {
        let ips: Vec<_> =
            addresses.iter().map(|address| IpConfig { address: *address, gateway: None, interface: None }).collect();
        let Ok(plan) = Plan::new(&network(Gateway::DefaultRoute), &ips, &[]) else { return Ok(()) };
        prop_assert_eq!(plan.ips.len(), ips.len());
        for ip in &plan.ips {
            let gateway = ip.gateway.unwrap();
            prop_assert!(prefix(ip.address).contains(gateway));
            prop_assert_ne!(gateway, ip.address.ip());
            prop_assert!(plan.masquerade.prefixes.contains(&prefix(ip.address)));
            prop_assert!(plan.gateways.iter().any(|on_bridge| on_bridge.ip() == gateway));
        }
        let defaults = plan.kernel_routes().iter().filter(|route| route.dst.prefix() == 0).count();
        prop_assert_eq!(defaults, plan.forwarding.len());
    }
}
