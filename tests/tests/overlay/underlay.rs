//! Which interface leads to the other hosts, where a host has several.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Family, Network, Node, Pod, Weftd, eventually};

use super::refresh::other_host;
use super::{CONFIG, DUAL, Fleet, SUBNETS, V4, each_way};

const PATIENCE: Duration = Duration::from_secs(10);

/// What is configured, and what follows from it in each family: the address that other hosts are told, the one that
/// packets leave with, and the interface.
struct Case {
    ipam: Value,
    expected: [(&'static str, &'static str, &'static str); 2],
}

fn case(ipam: Value, expected: [(&'static str, &'static str, &'static str); 2]) -> Case {
    Case { ipam, expected }
}

/// As [`case`], where other hosts are told the address that packets leave with.
fn same(ipam: Value, (v4, v6): (&'static str, &'static str), link: &'static str) -> Case {
    case(ipam, [(v4, v4, link), (v6, v6, link)])
}

/// Beside `eth0`, to which the default routes lead: `eth1` with a smaller MTU, `eth2` with two addresses of each family,
/// `eth3` with none but of IPv4, and `eth4` from which the kernel prefers to send by a temporary address. The router is on all of
/// them.
fn more_interfaces(node: &Node) {
    let netns = node.netns().path();
    for number in 1..=4 {
        let there = format!("peer name eth{number} netns {}", netns.display());
        weft_tests::command(&format!("ip link add more{number} up type veth {there}"));
        weft_tests::command(&format!("ip addr add 10.9.{number}.1/24 dev more{number}"));
        node.command(&format!("ip link set eth{number} up"));
        node.command(&format!("ip addr add 10.9.{number}.2/24 dev eth{number}"));
        if number < 3 {
            node.command(&format!("ip addr add fd09:{number}::2/64 dev eth{number} nodad"));
        }
    }
    node.command("ip link set eth1 mtu 1400");
    node.command("ip addr add 10.9.2.3/24 dev eth2");
    // Not the first to be taken: it is there for what is running only.
    node.command("ip addr add fd09:2::3/64 dev eth2 nodad preferred_lft 0");
    // And not even where a route asks for it.
    node.command("ip -6 route add 2001:db8:77::/48 dev eth2 src fd09:2::3");
    node.set_sysctl("net/ipv6/conf/eth4/use_tempaddr", "2");
    node.set_sysctl("net/ipv6/conf/eth4/accept_dad", "0");
    node.command("ip addr add fd09:4::2/64 dev eth4 nodad mngtmpaddr");
    eventually(PATIENCE, "the kernel sends by a temporary address", || {
        (!node.command("ip -6 route get fd09:4::77").contains(" src fd09:4::2 ")).then_some(())
    });
}

fn cases() -> Vec<Case> {
    let (eth0, eth1, eth2) =
        (("172.30.0.11", "fd30::11"), ("10.9.1.2", "fd09:1::2"), ("10.9.2.2", "fd09:2::2"));
    let eth4 = ("10.9.4.2", "fd09:4::2");
    let nat = json!({ "publicIP": "198.51.100.7", "publicIPv6": "2001:db8:7::7" });
    let mut nat_by_eth1 = nat.clone();
    nat_by_eth1["iface"] = "eth1".into();
    vec![
        same(json!({}), eth0, "eth0"),
        same(json!({ "iface": "eth1" }), eth1, "eth1"),
        same(json!({ "iface": "10.9.1.2" }), eth1, "eth1"),
        same(json!({ "iface": "fd09:1::2" }), eth1, "eth1"),
        same(json!({ "iface": "10.9.2.3" }), ("10.9.2.3", eth2.1), "eth2"),
        same(json!({ "iface": "fd09:2::3" }), (eth2.0, "fd09:2::3"), "eth2"),
        same(json!({ "ifaceRegex": "^eth2$" }), eth2, "eth2"),
        same(json!({ "ifaceRegex": r"^(10\.9\.1\.|fd09:1:)" }), eth1, "eth1"),
        same(json!({ "ifaceCanReach": "10.9.1.77" }), eth1, "eth1"),
        same(json!({ "ifaceCanReach": "fd09:1::77" }), eth1, "eth1"),
        same(json!({ "ifaceCanReach": "192.0.2.77" }), eth0, "eth0"),
        same(json!({ "ifaceCanReach": "2001:db8:77::1" }), eth2, "eth2"),
        same(json!({ "ifaceCanReach": "fd09:4::77" }), eth4, "eth4"),
        same(json!({ "publicIP": eth1.0, "publicIPv6": eth1.1 }), eth1, "eth1"),
        same(json!({ "publicIP": "10.9.2.3", "publicIPv6": "fd09:2::3" }), ("10.9.2.3", "fd09:2::3"), "eth2"),
        case(nat, [("198.51.100.7", eth0.0, "eth0"), ("2001:db8:7::7", eth0.1, "eth0")]),
        case(nat_by_eth1, [("198.51.100.7", eth1.0, "eth1"), ("2001:db8:7::7", eth1.1, "eth1")]),
    ]
}

/// What is published, and what the kernel has.
#[track_caller]
fn assert_chosen(fleet: &Fleet, Case { ipam, expected }: &Case) {
    let node = fleet.node(0);
    let keys = fleet.etcd.keys(SUBNETS);
    assert_eq!(keys.len(), 1, "{ipam}: {keys:?}");
    let record = fleet.etcd.get(&keys[0]).expect("the host's record");
    let record: Value = serde_json::from_str(&record).expect("JSON");
    for (family, (public, local, iface)) in [Family::V4, Family::V6].into_iter().zip(expected) {
        let (key, attribute) = match family {
            Family::V4 => ("PublicIP", "local"),
            Family::V6 => ("PublicIPv6", "local6"),
        };
        assert_eq!(record[key], *public, "{ipam}: {record}");
        let link = node.link(family.device()).expect("a device");
        let data = &link["linkinfo"]["info_data"];
        assert_eq!((&data[attribute], &data["link"]), (&json!(local), &json!(iface)), "{ipam}: {data}");
        let underlay = node.link(iface).expect("an interface")["mtu"].as_u64().expect("an MTU");
        assert_eq!(link["mtu"], underlay - family.overhead(), "{ipam}");
    }
}

/// As if the host had never been in the network.
fn forget(fleet: &Fleet) {
    let node = fleet.node(0);
    fleet.etcd.ctl(&["del", "--prefix", "/coreos.com/network/subnets/"]);
    for lease in fleet.etcd.leases() {
        fleet.etcd.revoke(&lease.id);
    }
    for device in [Family::V4, Family::V6].map(Family::device) {
        if node.link(device).is_some() {
            node.command(&format!("ip link delete {device}"));
        }
    }
    for directory in [node.data_dir(), node.state_dir()] {
        std::fs::remove_dir_all(directory).expect("forget everything");
    }
}

/// A host with several interfaces in a network of both families.
fn fleet() -> Fleet {
    let [.., (config, _)] = each_way(&json!({ "Type": "vxlan" }));
    let fleet = Fleet::new(&[1], &config);
    more_interfaces(fleet.node(0));
    fleet
}

#[test]
fn each_way_of_choosing_an_interface() {
    let fleet = fleet();
    let node = fleet.node(0);
    let attach = |case: &Case| {
        let network = fleet.network.clone().with(&json!({ "ipam": case.ipam }));
        let (pod, _) = node.attach(&network);
        // The next one finds the lease, and that the addresses are still these.
        drop(node.attach(&network));
        assert_chosen(&fleet, case);
        network.call("DEL").pod(&pod).on(node).run().done();
        forget(&fleet);
    };
    cases().iter().for_each(attach);
    // The default routes lead elsewhere.
    node.command("ip route replace default via 10.9.2.1");
    node.command("ip -6 route del default");
    node.command("ip -6 route add default dev eth2");
    let eth2 = same(json!({}), ("10.9.2.2", "fd09:2::2"), "eth2");
    attach(&eth2);
    // A VPN takes everything but the default route itself, by halves.
    for half in ["0.0.0.0/1 via 10.9.1.1", "128.0.0.0/1 via 10.9.1.1", "::/1 dev eth1", "8000::/1 dev eth1"] {
        node.command(&format!("ip route add {half}"));
    }
    attach(&eth2);
}

/// The kernel would send by another one, in whose subnet the router is. Containers reach each other by it.
#[test]
fn the_first_address_of_the_default_interface() {
    let fleet = Fleet::new(&[2], V4);
    for (number, node) in (2..).zip(fleet.cluster.nodes()) {
        let own = node.ipv4;
        node.command(&format!("ip addr del {own}/24 dev eth0"));
        node.command(&format!("ip addr add 10.9.0.{number}/24 dev eth0"));
        node.command(&format!("ip addr add {own}/24 dev eth0"));
        node.command("ip route add default via 172.30.0.1");
        assert!(node.command("ip route get 203.0.113.1").contains(&format!("src {own}")));
    }
    fleet.all_reach(1);
    let records = fleet.etcd.keys(SUBNETS).into_iter().map(|key| fleet.etcd.get(&key).expect("a record"));
    let records = records.collect::<String>();
    assert!(records.contains(r#""10.9.0.2""#) && records.contains(r#""10.9.0.3""#), "{records}");
    let link = fleet.node(0).link("weft.1").expect("a device");
    assert_eq!(link["linkinfo"]["info_data"]["local"], "10.9.0.2");
    // The lease on file has it, and nothing is asked.
    fleet.etcd.stop();
    drop(fleet.node(0).attach(&fleet.network));
}

/// As while DHCP renews them. The host is in its network, also without etcd.
#[test]
fn a_host_that_lacks_its_addresses_for_a_while_attaches_containers() {
    for Case { ipam, expected } in cases() {
        let fleet = fleet();
        let (node, network) = (fleet.node(0), fleet.network.clone().with(&json!({ "ipam": ipam })));
        drop(node.attach(&network));
        let records = fleet.etcd.keys(SUBNETS);
        fleet.etcd.freeze();
        node.command(&format!("ip addr flush dev {}", expected[0].2));
        network.call("STATUS").on(node).run().done();
        drop(node.attach(&network));
        fleet.etcd.thaw();
        assert_eq!(fleet.etcd.keys(SUBNETS), records, "{ipam}");
    }
}

/// A link like a VPN's, to which nothing leads yet.
fn tunnel(node: &Node) {
    node.command("ip link add tun0 up type veth peer name tun0-server");
    node.command("ip link set tun0-server up");
    node.command("ip addr add 10.8.0.2/24 dev tun0");
}

/// Hosts without IPv4 addresses reach etcd still.
fn by_ipv6(fleet: &Fleet) -> Network {
    let endpoints = fleet.etcd.endpoints().into_iter().filter(|url| url.contains('['));
    fleet.network.clone().with(&json!({ "ipam": { "etcd": { "endpoints": endpoints.collect::<Vec<_>>() } } }))
}

/// It is followed when the address is back.
#[test]
fn news_of_other_hosts_for_one_that_lacks_its_address() {
    for config in [V4, DUAL] {
        let fleet = Fleet::new(&[1], config);
        let (node, network) = (fleet.node(0), by_ipv6(&fleet));
        drop(node.attach(&network));
        node.command("ip -4 addr flush dev eth0");
        let subnet = if config == V4 { "10.250.99.0-24" } else { "10.244.99.0-24" };
        fleet.etcd.put(&format!("{SUBNETS}{subnet}"), other_host(99));
        let add = || network.add_call(&Pod::new()).on(node).run();
        let knows = || node.command("bridge fdb show dev weft.1").contains("dst 172.30.0.99 ");
        for _ in 0..2 {
            let reply = add();
            reply.result();
            assert!(reply.stderr.contains("no interface has 172.30.0.11"), "{config}: {}", reply.stderr);
        }
        network.call("STATUS").on(node).run().done();
        assert!(!knows(), "{config}");
        node.command("ip addr add 172.30.0.11/24 dev eth0");
        node.command("ip route add default via 172.30.0.1");
        let reply = add();
        reply.result();
        assert!(!reply.stderr.contains("no interface") && knows(), "{config}: {}", reply.stderr);
    }
}

/// Which has the addresses from then on, and a hardware address of its own. Until DHCP is through, a VPN's are not the host's.
#[test]
fn an_interface_becomes_a_port_of_a_bridge() {
    for has_vpn in [false, true] {
        let fleet = Fleet::new(&[1], V4);
        let (node, network) = (fleet.node(0), by_ipv6(&fleet));
        drop(node.attach(&network));
        let keys = fleet.etcd.keys(SUBNETS);
        let record = || fleet.etcd.get(&keys[0]).expect("the host's record");
        let before = record();
        if has_vpn {
            tunnel(node);
            node.command("ip route replace default via 10.8.0.1 dev tun0");
        }
        node.command("ip link add br-ext address 02:00:00:00:aa:01 up type bridge");
        node.command("ip addr flush dev eth0");
        node.command("ip link set eth0 master br-ext");
        node.command("ip addr add fd30::11/64 dev br-ext nodad");
        drop(node.attach(&network));
        assert_eq!(record(), before, "{has_vpn}");
        node.command("ip addr add 172.30.0.22/24 dev br-ext");
        if !has_vpn {
            node.command("ip route add default via 172.30.0.1");
        }
        network.call("STATUS").on(node).run().done();
        drop(node.attach(&network));
        assert!(record().contains(r#""PublicIP":"172.30.0.22""#), "{has_vpn}: {}", record());
        assert_eq!(fleet.etcd.keys(SUBNETS), keys, "{has_vpn}");
        let data = node.link("weft.1").expect("a device")["linkinfo"]["info_data"].clone();
        assert_eq!((&data["local"], &data["link"]), (&json!("172.30.0.22"), &json!("br-ext")));
    }
}

/// As after a boot, or with plain routes alone: nothing leads to other hosts, and how large packets may be is not known.
#[test]
fn nothing_is_connected_by_an_address_that_is_away() {
    for backend in ["vxlan", "host-gw"] {
        let [(config, _), ..] = each_way(&json!({ "Type": backend }));
        let fleet = Fleet::new(&[1], &config);
        let (node, network) = (fleet.node(0), by_ipv6(&fleet));
        drop(node.attach(&network));
        node.command("ip -4 addr flush dev eth0");
        if backend == "vxlan" {
            node.command("ip link delete weft.1");
        }
        let error = network.add_call(&Pod::new()).on(node).run().error_code(11);
        error.assert_names(&["no interface has 172.30.0.11", "ipam.iface"]);
        let status = || network.call("STATUS").on(node).run();
        status().error_code(50).assert_names(&["no interface has 172.30.0.11", "ipam.iface"]);
        // An ADD would move the host there.
        node.command("ip addr add 172.30.0.22/24 dev eth0");
        node.command("ip route add default via 172.30.0.1");
        status().done();
        drop(node.attach(&network));
    }
}

/// Its address is on file, and an interface has it: without etcd, too, it is in its network.
#[test]
fn a_vpn_keeps_no_container_from_a_host() {
    let [(config, _), ..] = each_way(&json!({ "Type": "vxlan" }));
    let fleet = Fleet::new(&[1], &config);
    let node = fleet.node(0);
    drop(node.attach(&fleet.network));
    tunnel(node);
    for half in ["0.0.0.0/1", "128.0.0.0/1"] {
        node.command(&format!("ip route add {half} via 10.8.0.1"));
    }
    fleet.etcd.freeze();
    drop(node.attach(&fleet.network));
    node.command("ip route replace default via 10.8.0.1 dev tun0");
    drop(node.attach(&fleet.network));
    fleet.etcd.thaw();
    let before = fleet.etcd.keys(SUBNETS);
    drop(node.attach(&fleet.network));
    assert_eq!(fleet.etcd.keys(SUBNETS), before);
    let record = fleet.etcd.get(&before[0]).expect("the host's record");
    assert!(record.contains(r#""PublicIP":"172.30.0.11""#), "{record}");
}

/// The kernel sends by the temporary address, and the host is known by the lasting one, whose lease it finds again alone.
#[test]
fn a_temporary_address_by_the_default_route() {
    let fleet = fleet();
    let node = fleet.node(0);
    node.command("ip -6 route del default");
    node.command("ip -6 route add default dev eth4");
    drop(node.attach(&fleet.network));
    let (eth0, eth4) = ("172.30.0.11", "fd09:4::2");
    assert_chosen(&fleet, &case(json!({}), [(eth0, eth0, "eth0"), (eth4, eth4, "eth4")]));
    fleet.etcd.stop();
    drop(node.attach(&fleet.network));
}

/// The agent reads the same keys.
#[test]
fn the_agent_chooses_alike() {
    let fleet = fleet();
    for case in cases() {
        let agent = Weftd::start(fleet.node(0), &fleet.etcd, &case.ipam);
        agent.ready();
        assert_chosen(&fleet, &case);
        agent.daemon().stop();
        std::fs::remove_file(fleet.node(0).subnet_file()).expect("remove subnet.env");
        forget(&fleet);
    }
}

/// Each says for which family, what was looked for, and what can be set; nothing is made.
#[test]
fn no_interface_that_fits() {
    let fleet = fleet();
    let node = fleet.node(0);
    let refused = |ipam: Value, parts: &[&str]| {
        let before = node.json("ip -j link show");
        let network = fleet.network.clone().with(&json!({ "ipam": ipam }));
        let error = network.add_call(&Pod::new()).on(node).run().error_code(7);
        error.assert_names(parts).assert_names(&["ipam.iface", "ifaceCanReach", "publicIP"]);
        assert_eq!(node.json("ip -j link show"), before, "{ipam}");
        assert!(fleet.etcd.keys(SUBNETS).is_empty(), "{ipam}");
    };
    let absent: IpAddr = [10, 9, 1, 99].into();
    for (ipam, parts) in [
        (json!({ "iface": "eth9" }), ["IPv4", "eth9 has none"]),
        (json!({ "iface": absent }), ["IPv4", "10.9.1.99 has none"]),
        (json!({ "iface": "eth3" }), ["IPv6", "eth3 has none"]),
        (json!({ "ifaceCanReach": "10.9.3.77" }), ["IPv6", "eth3 has none"]),
        (json!({ "ifaceRegex": "^wlan" }), ["IPv4", "nothing matches ^wlan"]),
        (json!({ "ifaceRegex": r"^10\.9\.1\." }), ["IPv6", r"nothing matches ^10\.9\.1\."]),
    ] {
        refused(ipam, &parts);
    }
    for (family, name) in [(Family::V6, "IPv6"), (Family::V4, "IPv4")] {
        node.command(&format!("ip {} route del default", family.flag()));
        refused(json!({}), &[name, "no default route"]);
        let (target, told) = match family {
            Family::V4 => ("192.0.2.77", "no route to 192.0.2.77"),
            Family::V6 => ("2001:db8::77", "no route to 2001:db8::77"),
        };
        refused(json!({ "ifaceCanReach": target }), &[told]);
    }
    // The one family's failure is the network's only where that has the family.
    let [(config, _), ..] = each_way(&json!({ "Type": "vxlan" }));
    fleet.etcd.put(CONFIG, config);
    let network = fleet.network.clone().with(&json!({ "ipam": { "iface": "eth3" } }));
    let (_pod, _) = node.attach(&network);
    let link = node.link(Family::V4.device()).expect("a device");
    assert_eq!(link["linkinfo"]["info_data"]["local"], "10.9.3.2");
}
