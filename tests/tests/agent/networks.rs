//! Several networks of one host, and one that changes.

use weft_tests::{Mirror, assert_way, ip, merge};

use super::*;

const OTHER: &str = "/other";
/// Name, place in etcd and addresses.
const NETWORKS: [(&str, &str, &str); 2] =
    [(Weftd::NETWORK, Weftd::PREFIX, "10.240.0.0/12"), ("other", OTHER, "10.96.0.0/12")];

fn configure(etcd: &Etcd, (_, prefix, range): (&str, &str, &str), backend: &Value) {
    let config = json!({ "Network": range, "Backend": backend });
    etcd.put(&format!("{prefix}/config"), config.to_string());
}

/// An agent that looks after both.
fn start(node: &Node, etcd: &Etcd) -> Weftd {
    start_with(node, etcd, &json!({}))
}

/// One that is told something of each of the two.
fn start_with(node: &Node, etcd: &Etcd, changes: &Value) -> Weftd {
    let networks = NETWORKS.map(|(name, prefix, _)| {
        let file = node.directory().join(name).with_extension("env");
        let etcd = json!({ "endpoints": etcd.endpoints(), "prefix": prefix });
        let mut network = json!({ "name": name, "subnetFile": file, "etcd": etcd });
        merge(&mut network, changes);
        network
    });
    Weftd::with(node, &json!({ "networks": networks }))
}

/// Each network's own, also while both are repaired.
#[test]
fn two_networks_leave_each_other_their_plain_routes() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    NETWORKS.into_iter().for_each(|network| configure(&etcd, network, &json!({ "Type": "host-gw" })));
    let agents: Vec<Weftd> = cluster.nodes().iter().map(|node| start(node, &etcd)).collect();
    agents.iter().for_each(Weftd::ready);
    let node = cluster.node(0);
    let both = |after: &str| {
        eventually(PATIENCE, &format!("a plain route of each network after {after}"), || {
            (node.command("ip route show proto 119").lines().count() == 2).then_some(())
        });
    };
    both("the start");
    for (_, _, range) in NETWORKS {
        node.command(&format!("ip route flush root {range} proto 119"));
        both(&format!("a loss in {range}"));
    }
}

/// What another network has on file cannot be read: that is no word of etcd's, by which the host keeps its lease.
#[test]
fn a_file_that_cannot_be_read_is_no_trouble_with_etcd() {
    let changes = json!({ "leaseTTL": 5 });
    let fleet = Fleet::of(1, CONFIG, &changes);
    let (node, etcd, own) = (fleet.node(0), &fleet.etcd, subnet(fleet.node(0)));
    assert!(fleet.agents[0].daemon().stop().success());
    let unreadable = node.data_dir().join("other/lease.json");
    fs::create_dir_all(&unreadable).expect("make a directory in the file's place");
    let agent = Weftd::start(node, etcd, &changes);
    let path = unreadable.to_str().expect("a path in UTF-8");
    eventually(PATIENCE, "readiness is false and names the file", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && answer.body.contains(path)).then_some(())
    });
    for renewed in [false, true, false, true] {
        eventually(PATIENCE, &format!("the lease is renewed: {renewed}"), || {
            (etcd.leases().first()?.remaining > 3).eq(&renewed).then_some(())
        });
    }
    let errors = agent.metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0);
    let log = agent.daemon().log();
    assert!(errors == 0.0 && !log.contains("etcd:"), "{errors} {log}");
    // Once by whom the lease is taken, and once by whom the host is looked after.
    assert_eq!(log.lines().filter(|line| line.contains(path)).count(), 2, "{log}");
    fs::remove_dir(unreadable).expect("remove it");
    agent.ready();
    assert_eq!(subnet(node), own);
}

/// The second one is told of; where both have a subnet already, both go on.
#[test]
fn two_networks_with_the_same_addresses() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    let node = cluster.node(0);
    let [first, (other, place, range)] = NETWORKS;
    configure(&etcd, first, &json!({ "Type": "vxlan" }));
    let agent = start(node, &etcd);
    eventually(PATIENCE, "the first network has its lease", || {
        node.data_dir().join(Weftd::NETWORK).join("lease.json").exists().then_some(())
    });
    let backend = json!({ "Type": "vxlan", "VNI": 2 });
    let is_told = |own: &str| {
        eventually(PATIENCE, &format!("{own} is told of"), || {
            let told =
                [own, place, "10.240.0.0/12", "network pods of this host", Weftd::PREFIX, "weftctl leave"];
            let body = agent.ask("/readyz")?.body;
            let line = body.lines().find_map(|line| line.strip_prefix("other: "))?;
            told.iter().all(|part| line.contains(part)).then_some(())
        });
    };
    configure(&etcd, (other, place, "10.240.0.0/16"), &backend);
    is_told("10.240.0.0/16");
    assert!(etcd.keys("/other/subnets/").is_empty());
    configure(&etcd, (other, place, range), &backend);
    agent.ready();
    configure(&etcd, (other, place, "10.0.0.0/8"), &backend);
    is_told("10.0.0.0/8");
    node.command("ip link delete weft.2");
    eventually(PATIENCE, "the second network is repaired", || node.link("weft.2"));
    configure(&etcd, (other, place, range), &backend);
    agent.ready();
}

/// The second one is told of, and set up when it has a VNI of its own; the first one works all the time.
#[test]
fn two_networks_with_one_vni() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    let node = cluster.node(0);
    let vxlan = json!({ "Type": "vxlan" });
    configure(&etcd, NETWORKS[0], &vxlan);
    let agent = start(node, &etcd);
    let own = eventually(PATIENCE, "the first network's device", || {
        let alias = node.link(DEVICE)?["ifalias"].clone();
        (alias == format!("weft:{}", Weftd::PREFIX)).then(|| mac(node))
    });
    configure(&etcd, NETWORKS[1], &vxlan);
    eventually(PATIENCE, "the second network is told of", || {
        let answer = agent.ask("/readyz")?;
        let told = ["other: ", DEVICE, Weftd::PREFIX, "/other/config"];
        (answer.status == 503 && told.iter().all(|part| answer.body.contains(part))).then_some(())
    });
    node.command(&format!("ip link set {DEVICE} mtu 1300"));
    eventually(PATIENCE, "the first network is repaired", || {
        (node.link(DEVICE)?["mtu"] == 1450).then_some(())
    });
    assert_eq!(mac(node), own, "the device is the first network's");
    configure(&etcd, NETWORKS[1], &json!({ "Type": "vxlan", "VNI": 2 }));
    agent.ready();
    assert!(node.link("weft.2").is_some());
    assert_eq!(mac(node), own, "the device is the first network's");
}

/// The agent's network and another one, of plugins alone: whichever is the second is told.
#[test]
fn a_network_of_plugins_at_the_agents_place_in_etcd() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    configure(&etcd, NETWORKS[0], &json!({ "Type": "vxlan" }));
    let [one, two] = [0, 1].map(|index| cluster.node(index));
    let network = Weftd::network(&etcd).with(&json!({ "name": "other" }));
    let _agent = Weftd::up(one, &etcd);
    let pod = Pod::new();
    let refused = network.add_call(&pod).on(one).run().error_code(103);
    refused.assert_names(&["network pods", Weftd::PREFIX, &subnet(one), "ipam.etcd.prefix"]);
    let (pod, _) = two.attach(&network);
    let late = Weftd::start(two, &etcd, &json!({}));
    eventually(PATIENCE, "the agent tells of the other network", || {
        let answer = late.ask("/readyz")?;
        (answer.status == 503 && answer.body.contains("network other of this host")).then_some(())
    });
    network.del_call(&pod).on(two).run().done();
    fs::remove_dir_all(two.data_dir().join("other")).expect("forget the other network");
    late.ready();
}

/// With another VNI or backend nothing is left of the former, and containers go on.
#[test]
fn a_network_with_another_vni_or_backend() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let (one, _) = fleet.pod(0);
    let (_other, address) = fleet.pod(1);
    one.assert_reaches(address);
    for (backend, device, plain) in [
        (json!({ "Type": "vxlan", "VNI": 7 }), "weft.7", 0),
        (json!({ "Type": "host-gw" }), "", 1),
        (json!({ "Type": "vxlan" }), DEVICE, 0),
    ] {
        configure(&fleet.etcd, NETWORKS[0], &backend);
        for node in fleet.cluster.nodes() {
            eventually(PATIENCE, &format!("{} has what leads to others by {backend}", node.name), || {
                let links = node.json("ip -j link show type vxlan");
                let devices: Vec<&str> =
                    links.as_array()?.iter().filter_map(|link| link["ifname"].as_str()).collect();
                let routes = node
                    .command("ip route show proto 119")
                    .lines()
                    .filter(|route| route.contains(" dev eth0 "))
                    .count();
                (devices.join(" ") == device && routes == plain).then_some(())
            });
        }
        heal::reaches_in(PATIENCE, &one, address, &format!("another backend, {backend}"));
    }
}

/// What the kernel does not remove at first, as it does not `lo` whatever that is called, goes as soon as it can.
#[test]
fn a_former_device_that_cannot_be_removed_at_first() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let mark = node.link(DEVICE).expect("the device")["ifalias"].as_str().expect("a mark").to_owned();
    agent.daemon().freeze();
    for line in ["del weft.1", "set lo down", "set lo name weft.1", "set weft.1 up"] {
        node.command(&format!("ip link {line}"));
    }
    node.command(&format!("ip link set weft.1 alias {mark}"));
    configure(&fleet.etcd, NETWORKS[0], &json!({ "Type": "vxlan", "VNI": 7 }));
    agent.daemon().thaw();
    let said = || agent.daemon().log().matches("of the former configuration are left").count();
    eventually(PATIENCE, "the log says it", || (said() == 1).then_some(()));
    agent.ready();
    assert!(node.link("weft.7").is_some());
    for line in ["set weft.1 down", "set weft.1 alias none", "set weft.1 name lo", "set lo up"] {
        node.command(&format!("ip link {line}"));
    }
    node.command("ip link add weft.1 type vxlan id 1 dstport 8472");
    node.command(&format!("ip link set weft.1 alias {mark}"));
    eventually(REPAIR, "it is gone", || node.link("weft.1").is_none().then_some(()));
    assert_eq!(said(), 1, "{}", agent.daemon().log());
}

/// A host without any container of a network knows what is that network's, so it keeps its own containers from it.
#[test]
fn networks_are_closed_to_each_other_between_hosts_of_which_none_has_both() {
    for (says, is_open) in [("network", false), ("none", true)] {
        let cluster = Cluster::new(2);
        let etcd = cluster.etcd(1, Access::Open);
        for (number, network) in (1..).zip(NETWORKS) {
            configure(&etcd, network, &json!({ "Type": "vxlan", "VNI": number }));
        }
        let agents: Vec<Weftd> = cluster
            .nodes()
            .iter()
            .map(|node| start_with(node, &etcd, &json!({ "isolation": says, "ipMasq": true })))
            .collect();
        agents.iter().for_each(Weftd::ready);
        let pods = [0, 1].map(|at| {
            let (name, prefix, _) = NETWORKS[at];
            let network = Weftd::network(&etcd).with(&json!({
                "name": name, "bridge": format!("weft{at}"), "isolation": says, "ipMasq": true, "ipam": { "etcd": { "prefix": prefix } }
            }));
            let (pod, result) = cluster.node(at).attach(&network);
            (Mirror::on(&pod, 80), pod, ip(&result))
        });
        for (at, other) in [(0, 1), (1, 0)] {
            // The host that has it reaches it.
            let (mirror, _, address) = &pods[other];
            let what = format!("{says}: the own host reaches {address}");
            assert!(mirror.seen(cluster.node(other).netns(), (*address, 80)).is_some(), "{what}");
            let route = || cluster.node(at).command(&format!("ip route get {address}"));
            eventually(PATIENCE, "a way to the other host", || route().contains("weft.").then_some(()));
            assert_way(is_open, mirror, &pods[at].1, *address, says);
        }
    }
}
