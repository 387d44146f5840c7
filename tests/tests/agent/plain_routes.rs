//! Plain routes to hosts on the same link: all that there is with `host-gw`, and beside the device with `DirectRouting`.

use super::*;

/// The plain route to a peer, deleted or altered: by somebody who leaves it Weft's, and by somebody who makes it his own.
fn damages_of_the_plain_route(peer: &Node, family: Family) -> Vec<Damage> {
    let (subnet, public, router) = (family.subnet(peer), family.address(peer), family.neighbour(1));
    let route = format!("ip {} route", family.flag());
    let lines = [
        format!("{route} del {subnet}"),
        format!("{route} flush proto 119"),
        format!("{route} replace {subnet} via {router} dev eth0 proto 119"),
        format!("{route} replace {subnet} via {router} dev eth0"),
        format!("{route} replace blackhole {subnet}"),
    ];
    let way = format!("{subnet} via {public} dev eth0 proto 119 ");
    lines.iter().map(|line| damage("route", line, &route, [&way])).collect()
}

/// The same for a peer that the device could lead to, too.
fn damage_by_the_device(peer: &Node, family: Family) -> Damage {
    let (subnet, public, device) = (family.subnet(peer), family.address(peer), family.device());
    let route = format!("ip {} route", family.flag());
    // As it would lead there. The kernel wants no gateway of IPv6 to which another link leads.
    let way = match family {
        Family::V4 => format!("via {} dev {device} onlink", subnet.network()),
        Family::V6 => format!("dev {device}"),
    };
    damage(
        "route",
        &format!("{route} replace {subnet} {way}"),
        &route,
        [format!("{subnet} via {public} dev eth0 proto 119 ")],
    )
}

/// A configuration with another backend, whose hosts on this link are reached by plain routes.
fn with_backend(config: &str, backend: &str) -> String {
    let changed = config.replace(r#"{"Type": "vxlan"}"#, backend);
    assert_ne!(changed, config);
    changed
}

/// Waits until every host knows of every other one, with a device or without.
fn acquainted(fleet: &Fleet) {
    let others = u8::try_from(fleet.agents.len() - 1).expect("a few hosts");
    for agent in &fleet.agents {
        eventually(PATIENCE, "an agent knows the other hosts", || {
            (agent.metric(r#"weft_peers{network="pods",state="valid"}"#)? == f64::from(others)).then_some(())
        });
    }
}

/// Waits until host 0 leads to host 1 by nothing but a plain route.
#[track_caller]
fn assert_leads(fleet: &Fleet, family: Family, after: &str) {
    let (node, peer) = (fleet.node(0), fleet.node(1));
    let show = format!("ip {} route show {}", family.flag(), family.subnet(peer));
    let way = format!(" via {} dev eth0 proto 119 ", family.address(peer));
    eventually(REPAIR, &format!("one plain route after {after}"), || {
        let routes = node.command(&show);
        (routes.lines().count() == 1 && routes.contains(&way)).then_some(())
    });
}

/// Damages the route between two hosts on one link in every way, also by the link itself; `beside` is what else there is.
fn the_way_is_whole_again(fleet: &Fleet, beside: impl Fn(&Node, Family) -> Vec<Damage>) {
    acquainted(fleet);
    let (one, _) = fleet.pod_of_all(0);
    let (_other, addresses) = fleet.pod_of_all(1);
    let (node, peer) = (fleet.node(0), fleet.node(1));
    for (family, address) in fleet.families.iter().copied().zip(addresses) {
        assert_leads(fleet, family, "the start");
        one.assert_reaches(address);
        for damage in damages_of_the_plain_route(peer, family).into_iter().chain(beside(peer, family)) {
            assert_repaired(fleet, &damage, &one, address);
            assert_leads(fleet, family, &damage.line);
        }
        // The kernel drops what leads through a link that goes down. Without this it would drop the host's address as well.
        node.set_sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1");
        node.command("ip link set eth0 down");
        assert!(!node.command(&format!("ip {} route", family.flag())).contains("proto 119"));
        node.command("ip link set eth0 up");
        assert_leads(fleet, family, "the link's return");
        reaches_in(REPAIR, &one, address, "the link's return");
    }
    fleet.agents[0].ready();
}

#[test]
fn plain_routes_without_a_device_are_whole_again() {
    for config in [CONFIG, V6, DUAL] {
        let config = with_backend(config, r#"{"Type": "host-gw"}"#);
        let fleet = Fleet::of(2, &config, &json!({}));
        the_way_is_whole_again(&fleet, |_, _| Vec::new());
    }
}

/// What leads to the link tells who is on it, and not the one address that a host is known by: that may be a prefix of its own, or one of
/// several subnets. No plain route leads to a host behind a router, though the router's route is within another one of the link.
#[test]
fn neighbours_are_told_by_all_that_leads_to_the_link() {
    for backend in [r#"{"Type": "host-gw"}"#, r#"{"Type": "vxlan", "DirectRouting": true}"#] {
        let cluster = Cluster::new(2);
        cluster.nodes().iter().for_each(Node::single_address);
        let fleet = Fleet::on(cluster, &with_backend(DUAL, backend), &json!({}));
        acquainted(&fleet);
        for family in &fleet.families {
            assert_leads(&fleet, *family, "the start");
        }
        let pods = [0, 1].map(|index| fleet.pod_of_all(index));
        for family in 0..2 {
            assert_all_reach(&[0, 1].map(|index| (&pods[index].0, pods[index].1[family])));
        }
        if backend.contains("vxlan") {
            let (node, subnet) = (fleet.node(0), Family::V4.subnet(fleet.node(1)));
            node.command("ip route add 172.30.0.12 via 172.30.0.1 dev eth0");
            eventually(PATIENCE, "the device leads there", || {
                let routes = node.command(&format!("ip route show {subnet}"));
                (routes.contains("dev weft.1") && !routes.contains("eth0")).then_some(())
            });
            pods[0].0.assert_reaches(pods[1].1[0]);
        }
    }
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", with_backend(CONFIG, r#"{"Type": "host-gw"}"#));
    for (node, number) in cluster.nodes().iter().zip([11, 12]) {
        node.command(&format!("ip addr add 10.77.0.{number}/24 dev eth0"));
    }
    let known_by = |ip: &str| json!({ "iface": ip });
    let agents = [("172.30.0.11", 0), ("10.77.0.12", 1)]
        .map(|(ip, index)| Weftd::start(cluster.node(index), &etcd, &known_by(ip)));
    agents.iter().for_each(Weftd::ready);
    let (node, subnet) = (cluster.node(0), Family::V4.subnet(cluster.node(1)));
    let way = format!("{subnet} via 10.77.0.12 dev eth0 proto 119 ");
    eventually(PATIENCE, "the second subnet is on the link, too", || {
        node.command("ip route").contains(&way).then_some(())
    });
}

/// What comes by them is dropped where the interface to other hosts does not forward. That is its owner's to set, and said.
#[test]
fn an_interface_of_plain_routes_that_does_not_forward_is_told() {
    const SETTING: &str = "net/ipv4/conf/eth0/forwarding";
    let fleet = Fleet::of(2, &with_backend(CONFIG, r#"{"Type": "host-gw"}"#), &json!({}));
    acquainted(&fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    for (value, status) in [("0", 503), ("1", 200)] {
        node.set_sysctl(SETTING, value);
        eventually(REPAIR, &format!("/readyz answers {status}"), || {
            let (found, text) = outage::readiness(agent);
            (found == status && (status == 200 || text.contains(SETTING))).then_some(())
        });
        assert_eq!(node.sysctl(SETTING), value);
    }
}

/// A host on another link is led to by the device all the time, and the one on this link never is.
#[test]
fn plain_routes_beside_the_device_are_whole_again() {
    for config in [CONFIG, V6, DUAL] {
        let config = with_backend(config, r#"{"Type": "vxlan", "DirectRouting": true}"#);
        let fleet = Fleet::on(Cluster::segments(&[2, 1]), &config, &json!({}));
        acquainted(&fleet);
        let (node, far) = (fleet.node(0), fleet.node(2));
        let (_there, addresses) = fleet.pod_of_all(2);
        let (one, _) = fleet.pod_of_all(0);
        for (family, address) in fleet.families.iter().copied().zip(addresses) {
            for damage in damages_of_the_peer(far, family) {
                assert_repaired(&fleet, &damage, &one, address);
            }
        }
        the_way_is_whole_again(&fleet, |peer, family| vec![damage_by_the_device(peer, family)]);
        for family in &fleet.families {
            let entries = node.command(&format!("bridge fdb show dev {}", family.device()));
            assert!(entries.contains(&format!("dst {} ", family.address(far))), "{entries}");
            assert_eq!(forwarding_entries(node, family.device()), 1, "{entries}");
        }
    }
}
