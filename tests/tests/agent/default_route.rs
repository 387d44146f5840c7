//! Where a host's traffic to others goes says nothing about how other hosts reach it.

use super::*;

const EVERYWHERE: [(&str, &str, [&str; 3]); 2] = [
    ("-4", "10.8.0.1", ["0.0.0.0/1", "128.0.0.0/1", "default"]),
    ("-6", "fd08::1", ["::/1", "8000::/1", "default"]),
];

/// A link like a VPN's, to which nothing leads yet.
fn tunnel(node: &Node) {
    node.command("ip link add tun0 up type veth peer name tun0-server");
    node.command("ip link set tun0-server up");
    node.command("ip addr add 10.8.0.2/24 dev tun0");
    node.command("ip addr add fd08::2/64 dev tun0 nodad");
}

/// Waits until the agent has renewed the lease so many times, and looked at the host's addresses each time.
#[track_caller]
fn renewed(agent: &Weftd, times: u32) {
    let (mut beats, mut last) = (0, 0.0);
    eventually(PATIENCE * 3, "the lease is renewed", || {
        let age = agent.metric(r#"weft_lease_age_seconds{network="pods"}"#)?;
        beats += u32::from(age < last);
        last = age;
        (beats >= times).then_some(())
    });
}

fn all_records(fleet: &Fleet) -> Vec<(String, Option<String>)> {
    let keys = fleet.etcd.keys(SUBNETS);
    keys.into_iter().map(|key| (key.clone(), fleet.etcd.get(&key))).collect()
}

/// By two halves of everything, as OpenVPN's `redirect-gateway def1` has it, or in place of the default route; also for an agent that
/// starts meanwhile.
#[test]
fn a_vpn_moves_no_host() {
    let mut fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let pods = [0, 1].map(|index| fleet.pod_of_all(index));
    let before = all_records(&fleet);
    let assert_same = |fleet: &Fleet| {
        renewed(&fleet.agents[0], 2);
        fleet.agents[0].ready();
        assert_eq!(all_records(fleet), before);
        for family in 0..2 {
            assert_all_reach(&[0, 1].map(|index| (&pods[index].0, pods[index].1[family])));
        }
    };
    let node = fleet.node(0);
    tunnel(node);
    for (family, gateway, [low, high, _]) in EVERYWHERE {
        for half in [low, high] {
            node.command(&format!("ip {family} route add {half} via {gateway}"));
        }
    }
    assert_same(&fleet);
    for (family, gateway, [.., all]) in EVERYWHERE {
        fleet.node(0).command(&format!("ip {family} route replace {all} via {gateway} dev tun0"));
    }
    assert_same(&fleet);
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    fleet.agents[0].ready();
    assert_same(&fleet);
}

/// Whoever has the default route: it is known by its interface, and waits for nothing.
#[test]
fn an_interface_with_another_address_moves_the_host_at_once() {
    let mut fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let pods = [0, 1].map(|index| fleet.pod_of_all(index));
    let key = all_records(&fleet).into_iter().find(|(key, _)| key.contains(&subnet(fleet.node(0))));
    let (key, _) = key.expect("the record of host 0");
    tunnel(fleet.node(0));
    for (family, gateway, [.., all]) in EVERYWHERE {
        fleet.node(0).command(&format!("ip {family} route replace {all} via {gateway} dev tun0"));
    }
    let renumber = |fleet: &Fleet, [before, after]: [&str; 2]| {
        fleet.node(0).command(&format!("ip addr del {before} dev eth0"));
        fleet.node(0).command(&format!("ip addr add {after} dev eth0 nodad"));
    };
    let assert_moves = |fleet: &Fleet, published: [&str; 2]| {
        // It would wait three times as long for an address.
        assert_published(&fleet.etcd, &key, &published);
        fleet.agents[0].ready();
        for family in 0..2 {
            assert_all_reach(&[0, 1].map(|index| (&pods[index].0, pods[index].1[family])));
        }
        let log = fleet.agents[0].daemon().log();
        assert!(
            published.iter().all(|address| log.contains(&format!("and is {address} from now on"))),
            "{log}"
        );
        assert!(["10.8.0.2", "fd08::2"].iter().all(|tunnels| !log.contains(tunnels)), "{log}");
    };
    renumber(&fleet, ["172.30.0.11/24", "172.30.0.21/24"]);
    renumber(&fleet, ["fd30::11/64", "fd30::21/64"]);
    assert_moves(&fleet, ["172.30.0.21", "fd30::21"]);
    assert!(fleet.agents[0].daemon().stop().success());
    renumber(&fleet, ["172.30.0.21/24", "172.30.0.31/24"]);
    renumber(&fleet, ["fd30::21/64", "fd30::31/64"]);
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    assert_moves(&fleet, ["172.30.0.31", "fd30::31"]);
}

/// A port has no address of its own, so that none is waited for: those of the bridge are the host's, whatever its hardware address.
#[test]
fn an_interface_that_becomes_a_port_of_a_bridge_moves_the_host_at_once() {
    let fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let pods = [0, 1].map(|index| fleet.pod_of_all(index));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    tunnel(node);
    for (family, gateway, [.., all]) in EVERYWHERE {
        node.command(&format!("ip {family} route replace {all} via {gateway} dev tun0"));
    }
    node.command("ip link add br-ext address 02:00:00:00:aa:01 up type bridge");
    node.command("ip addr flush dev eth0");
    node.command("ip link set eth0 master br-ext");
    node.command("ip addr add 172.30.0.21/24 dev br-ext");
    node.command("ip addr add fd30::21/64 dev br-ext nodad");
    eventually(PATIENCE, "the bridge's addresses are published", || {
        let has = |value: &str| ["172.30.0.21", "fd30::21"].iter().all(|address| value.contains(address));
        all_records(&fleet).into_iter().any(|(_, value)| value.is_some_and(|value| has(&value))).then_some(())
    });
    agent.ready();
    for family in 0..2 {
        assert_all_reach(&[0, 1].map(|index| (&pods[index].0, pods[index].1[family])));
    }
    assert_eq!(all_records(&fleet).len(), 2);
    let log = agent.daemon().log();
    assert!(["10.8.0.2", "fd08::2"].iter().all(|tunnels| !log.contains(tunnels)), "{log}");
}

/// A family of a host's addresses after another: set down and up again, or given back by DHCP. The other one leads to etcd.
#[test]
fn an_interface_without_its_address_for_a_while_moves_no_host() {
    let fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let before = all_records(&fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    tunnel(node);
    // As VLANs of one interface have it.
    let hardware = node.link("eth0").expect("an interface")["address"].clone();
    node.command(&format!("ip link set tun0 address {}", hardware.as_str().expect("a MAC")));
    node.command("ip route add 0.0.0.0/1 via 10.8.0.1");
    node.command("ip route add 128.0.0.0/1 via 10.8.0.1");
    node.command("ip -6 route add default via fd08::1 metric 5000");
    for [address, router] in [["172.30.0.11/24", "172.30.0.1"], ["fd30::11/64", "fd30::1"]] {
        node.command(&format!("ip addr del {address} dev eth0"));
        let _gone_with_it = node.inside(|| {
            std::process::Command::new("ip").args(["route", "del", "default", "via", router]).output()
        });
        renewed(agent, 2);
        assert_eq!(all_records(&fleet), before, "without {address}");
        node.command(&format!("ip addr add {address} dev eth0 nodad"));
        node.command(&format!("ip route add default via {router}"));
        renewed(agent, 2);
        assert_eq!(all_records(&fleet), before, "{address} is back");
        agent.ready();
    }
    let log = agent.daemon().log();
    assert!(log.contains("has lost its address") && !log.contains("from now on"), "{log}");
    // Not for ever: it may have been taken for good.
    node.command("ip addr del 172.30.0.11/24 dev eth0");
    let since = Instant::now();
    eventually(PATIENCE * 6, "another interface's address counts", || {
        let moved = |(_, value): &(String, Option<String>)| {
            value.as_ref().is_some_and(|value| value.contains("10.8.0.2"))
        };
        all_records(&fleet).iter().any(moved).then_some(())
    });
    assert!(since.elapsed() > PATIENCE * 2, "{:?}", since.elapsed());
}

/// Each waits for its own interface, and that of the other family is another one to it.
#[test]
fn families_of_an_interface_each_wait_for_their_own() {
    let cluster = Cluster::new(1);
    tunnel(cluster.node(0));
    cluster.node(0).command("ip -6 route replace default via fd08::1 dev tun0");
    cluster.node(0).command("ip -6 route add default via fd30::1 dev eth0 metric 5000");
    cluster.node(0).command("ip route add default via 10.8.0.1 metric 5000");
    let fleet = Fleet::on(cluster, DUAL, &json!({}));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let before = all_records(&fleet);
    let value = before[0].1.as_ref().expect("a record");
    assert!(value.contains("172.30.0.11") && value.contains("fd08::2"), "{value}");
    for [link, address, router] in
        [["eth0", "172.30.0.11/24", "172.30.0.1"], ["tun0", "fd08::2/64", "fd08::1"]]
    {
        node.command(&format!("ip addr del {address} dev {link}"));
        renewed(agent, 3);
        assert_eq!(all_records(&fleet), before, "without {address}");
        node.command(&format!("ip addr add {address} dev {link} nodad"));
        node.command(&format!("ip route replace default via {router} dev {link}"));
        renewed(agent, 2);
        assert_eq!(all_records(&fleet), before, "{address} is back");
    }
    let log = agent.daemon().log();
    assert_eq!(log.matches("has lost its address").count(), 2, "{log}");
}

/// It has not seen which interface had that: the hardware address of the one that has IPv4's tells.
#[test]
fn an_agent_that_starts_before_ipv6_is_there_waits_for_it() {
    let cluster = Cluster::new(1);
    tunnel(cluster.node(0));
    cluster.node(0).command("ip -6 route add default via fd08::1 dev tun0 metric 5000");
    let mut fleet = Fleet::on(cluster, DUAL, &json!({}));
    let before = all_records(&fleet);
    let value = before[0].1.as_ref().expect("a record");
    assert!(value.contains("172.30.0.11") && value.contains("fd30::11"), "{value}");
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.node(0).command("ip -6 route del default dev eth0");
    fleet.node(0).command("ip addr del fd30::11/64 dev eth0");
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    renewed(&fleet.agents[0], 3);
    assert_eq!(all_records(&fleet), before);
}

/// Its address is there, and so is etcd on the link. Twice the time of its lease passes.
#[test]
fn a_host_without_a_default_route_keeps_its_lease() {
    let short = json!({ "leaseTTL": 6 });
    let mut fleet = Fleet::of(1, CONFIG, &short);
    let before = all_records(&fleet);
    fleet.node(0).command("ip route del default");
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &short);
    fleet.agents[0].ready();
    renewed(&fleet.agents[0], 7);
    fleet.agents[0].ready();
    assert_eq!(all_records(&fleet), before);
    let log = fleet.agents[0].daemon().log();
    assert!(!log.contains("etcd:") && !log.contains("find this host"), "{log}");
    assert_eq!(fleet.agents[0].metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0), 0.0);
}

/// What a host that comes to a network without a lease lacks is its own, and not etcd's.
#[test]
fn a_host_without_an_address_says_so() {
    let cluster = Cluster::new(1);
    let (etcd, node) = (cluster.etcd(1, Access::Open), cluster.node(0));
    etcd.put("/coreos.com/network/config", CONFIG);
    node.command("ip route del default");
    let agent = Weftd::start(node, &etcd, &json!({}));
    let told = eventually(PATIENCE, "it says what is missing", || {
        agent.ask("/readyz").map(|answer| answer.body).filter(|body| body.contains("no default route"))
    });
    assert!(told.contains("IPv4") && told.contains("ifaceCanReach") && !told.contains("etcd"), "{told}");
    assert_eq!(agent.metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0), 0.0);
    node.command("ip route add default via 172.30.0.1");
    agent.ready();
}
