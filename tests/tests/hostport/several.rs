//! A container on several networks, each of which is told all its ports, as podman does it.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, NetNs, Network, Outside, Pod, answered_as, ips};

use crate::{addr, mapping, network, with};

/// Another network, of both families.
fn second() -> Network {
    Network::new("second", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }))
}

/// Attaches a container's `eth1`.
fn add_eth1(network: &Network, pod: &Pod) -> Value {
    network.add_call(pod).ifname("eth1").run().result()
}

/// A port, one of an address, a range.
fn all_kinds() -> Vec<Value> {
    let at = json!({ "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": Outside::HOST[0] });
    let range = (9000..9010).map(|port| mapping(port, port));
    [mapping(8080, 80), at].into_iter().chain(range).collect()
}

#[test]
fn ports_stay_at_the_interface_that_has_them() {
    let host = Host::new();
    let _outside = host.outside();
    let own: &NetNs = host.netns();
    let web = Pod::new();
    let (one, two) = (with(&network(), &all_kinds()), with(&second(), &all_kinds()));
    let first = one.add(&web);
    let later = add_eth1(&two, &web);
    let (at_80, at_9005) = (Mirror::on(&web, 80), Mirror::on(&web, 9005));
    let [v4, v6] = Outside::HOST.map(addr);
    let assert_served = |is_served: bool, when: &str| {
        for (mirror, target) in [
            (&at_80, (v4, 8080)),
            (&at_80, (v6, 8080)),
            (&at_80, (v4, 8081)),
            (&at_80, (addr("127.0.0.1"), 8080)),
            (&at_9005, (v4, 9005)),
            (&at_9005, (v6, 9005)),
        ] {
            let is_as_expected = match is_served {
                true => mirror.seen(own, target).is_some(),
                false => mirror.is_closed_to(own, target),
            };
            assert!(is_as_expected, "{target:?} {when}: {}", host.ruleset());
        }
    };
    let check = |network: &Network, result: &Value, ifname: &str| {
        network.check_call(&web, result).ifname(ifname).run().done();
    };
    assert_served(true, "with both");
    check(&one, &first, "eth0");
    check(&two, &later, "eth1");
    assert_eq!(host.sysctl("net/ipv4/conf/weft1/route_localnet"), "0", "no port is at that bridge");
    // Another container hears who has them.
    let other = Pod::new();
    two.add_call(&other).run().error_code(103).assert_names(&[&web.id, "9000-9009"]);
    two.del_call(&web).ifname("eth1").run().done();
    assert_served(true, "without the second");
    check(&one, &first, "eth0");
    let later = add_eth1(&two, &web);
    one.del(&web);
    assert_served(false, "they go with the attachment that has them");
    check(&two, &later, "eth1");
    two.add(&other);
}

/// What the first network has no address for is at the second one.
#[test]
fn each_family_is_at_the_first_interface_that_has_it() {
    let host = Host::new();
    let _outside = host.outside();
    let web = Pod::new();
    with(&Network::v4(), &all_kinds()).add(&web);
    let two = with(&second(), &all_kinds());
    let later = add_eth1(&two, &web);
    let mirror = Mirror::on(&web, 80);
    for at in Outside::HOST {
        assert!(mirror.seen(host.netns(), (addr(at), 8080)).is_some(), "at {at}");
    }
    two.check_call(&web, &later).ifname("eth1").run().done();
    two.del_call(&web).ifname("eth1").run().done();
    assert!(mirror.seen(host.netns(), (addr(Outside::HOST[0]), 8080)).is_some(), "the first one's stays");
    assert!(mirror.is_closed_to(host.netns(), (addr(Outside::HOST[1]), 8080)), "the second one's is gone");
}

/// Whom a container sees as the client from outside that asks at its ports, for IPv4 and IPv6.
fn clients_seen(web: &Pod, outside: &Outside) -> [IpAddr; 2] {
    let tcp = Mirror::on(web, 80);
    let udp = web.inside(|| UdpSocket::bind(("::", 53)).expect("a server"));
    udp.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
    Outside::HOST.map(addr).map(|at| {
        let seen = tcp.seen(outside, (at, 8080)).unwrap_or_else(|| panic!("no answer by TCP at {at}"));
        let by_udp = answered_as(outside, &udp, (at, 5353));
        assert_eq!(by_udp, Some(seen), "by UDP at {at}");
        seen
    })
}

/// The first interface's default route stays the one that is used. Clients of ports at another one are masqueraded, as the container
/// answers them where they come from then.
#[test]
fn the_outside_is_answered_at_either_interface() {
    let host = Host::new();
    let outside = host.outside();
    let ports = [mapping(8080, 80), json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" })];
    let (kept, gateways) = (Outside::PEER.map(addr), ["10.99.0.1", "fd00:99::1"].map(addr));
    // As it is with podman, the default route of each network comes from `routes` of the IPAM plugin.
    let routes = json!({ "ipam": { "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } });
    for change in [json!({}), routes] {
        let (first, later) = (network().with(&change), second().with(&change));
        for is_later in [false, true] {
            let web = Pod::new();
            let published =
                |network: &Network, has_ports| with(network, if has_ports { &ports } else { &[] });
            let (one, two) = (published(&first, !is_later), published(&later, is_later));
            let results = [one.add(&web), add_eth1(&two, &web)];
            let expected = if is_later { gateways } else { kept };
            assert_eq!(clients_seen(&web, &outside), expected, "at the later one: {is_later}, {change}");
            let check = || {
                for (network, result, ifname) in [(&one, &results[0], "eth0"), (&two, &results[1], "eth1")] {
                    network.check_call(&web, result).ifname(ifname).run().done();
                }
            };
            check();
            // The first one goes: the other takes over, and comes before it when it comes again.
            one.del(&web);
            if is_later {
                assert_eq!(clients_seen(&web, &outside), gateways);
            }
            two.check_call(&web, &results[1]).ifname("eth1").run().done();
            let again = one.add(&web);
            one.check(&web, &again).done();
            for (target, own) in Outside::PEER.iter().zip(ips(&results[1])) {
                let route = web.command(&format!("ip route get {target}"));
                assert!(route.contains("dev eth1") && route.contains(&own.to_string()), "{route}");
            }
            one.del(&web);
            two.del_call(&web).ifname("eth1").run().done();
        }
    }
}

/// Metrics that somebody asked for stay as they are.
#[test]
fn the_interface_with_the_better_metric_keeps_the_clients_address() {
    let host = Host::new();
    let outside = host.outside();
    let ports = [mapping(8080, 80), json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" })];
    for (metric, expected) in
        [(50, Outside::PEER), (100, ["10.99.0.1", "fd00:99::1"]), (200, ["10.99.0.1", "fd00:99::1"])]
    {
        let metrics = json!({ "interfaceMetrics": { "eth0": 100, "eth1": metric } });
        let (web, one) = (Pod::new(), network().with(&metrics));
        one.add(&web);
        let two = with(&second().with(&metrics), &ports);
        let result = add_eth1(&two, &web);
        assert_eq!(clients_seen(&web, &outside), expected.map(addr), "metric {metric}");
        assert_eq!(result["routes"][0]["priority"], metric);
        two.check_call(&web, &result).ifname("eth1").run().done();
        two.del_call(&web).ifname("eth1").run().done();
    }
}
