//! Several networks of one host: what one does is not the others' loss.

use std::process::Command;

use weft_tests::{Call, Running, dist};

use super::*;

/// Another network on the fleet's hosts.
fn other(fleet: &Fleet, backend: &Value) -> Network {
    let config = json!({ "Network": "10.96.0.0/12", "Backend": backend });
    fleet.etcd.put("/other/config", config.to_string());
    fleet.network.clone().with(&json!({
        "name": "other", "bridge": "weft1", "ipam": { "etcd": { "prefix": "/other" } }
    }))
}

/// Ends a node's part in the other network.
fn leave(fleet: &Fleet, node: &Node) {
    let mut command = Command::new(dist().join("weftctl"));
    command.args([
        "--name",
        "other",
        "--etcd-prefix",
        "/other",
        "--etcd-endpoints",
        &fleet.etcd.endpoints()[0],
    ]);
    command.args(["leave", "--force"]).envs(node.env());
    let output = node.inside(|| command.output().expect("run weftctl"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn two_networks_of_several_hosts() {
    let fleet = Fleet::new(&[2], V4);
    let other = other(&fleet, &json!({ "Type": "vxlan", "VNI": 2 }));
    fleet.all_reach(1);
    let pods: Vec<_> = fleet.cluster.nodes().iter().map(|node| node.attach(&other)).collect();
    drop(fleet.node(0).attach(&other));
    pods[0].0.assert_reaches(ips(&pods[1].1)[0]);
}

#[test]
fn two_networks_of_plain_routes_leave_each_other_theirs() {
    let host_gw = json!({ "Type": "host-gw" });
    let fleet = Fleet::new(&[2], &json!({ "Network": "10.240.0.0/12", "Backend": host_gw }).to_string());
    let other = other(&fleet, &host_gw);
    let node = fleet.node(0);
    let pods = fleet.all_reach(1);
    let others: Vec<_> = fleet.cluster.nodes().iter().map(|node| node.attach(&other)).collect();
    // Every ADD compares all plain routes.
    for network in [&other, &fleet.network] {
        drop(node.attach(network));
        let routes = plain_routes(node, Family::V4);
        assert_eq!(routes.lines().count(), 2, "after an ADD to {}: {routes}", network.name());
    }
    pods[0].0.assert_reaches(pods[1].1[0]);
    others[0].0.assert_reaches(ips(&others[1].1)[0]);
    leave(&fleet, node);
    let routes = plain_routes(node, Family::V4);
    assert!(routes.lines().count() == 1 && routes.starts_with("10.2"), "{routes}");
    pods[0].0.assert_reaches(pods[1].1[0]);
}

/// The first network goes on, the second one is refused until it has a VNI of its own.
#[test]
fn two_networks_with_one_vni() {
    let fleet = Fleet::new(&[2], V4);
    let other = other(&fleet, &json!({ "Type": "vxlan" }));
    let pods = fleet.all_reach(1);
    let node = fleet.node(0);
    let device = || {
        ["ip -d link show dev", "ip -4 addr show dev", "bridge fdb show dev", "ip neigh show dev"]
            .map(|show| node.command(&format!("{show} weft.1")))
    };
    let before = device();
    let pod = Pod::new();
    let refused = other.add_call(&pod).on(node).run().error_code(103);
    refused.assert_names(&["network other", "weft.1", "/coreos.com/network", "/other/config", "VNI 1"]);
    assert_eq!(device(), before);
    leave(&fleet, node);
    assert_eq!(device(), before);
    pods[0].0.assert_reaches(pods[1].1[0]);
    self::other(&fleet, &json!({ "Type": "vxlan", "VNI": 2 }));
    drop(node.attach(&other));
    assert!(node.link("weft.2").is_some());
    assert_eq!(device(), before);
}

/// A device that another network's ADD has just made has no mark yet.
#[test]
fn a_device_that_another_network_is_about_to_mark() {
    let fleet = Fleet::new(&[1], V4);
    let node = fleet.node(0);
    let made = "ip link add weft.1 address 02:00:00:00:00:99 mtu 1450 type vxlan id 1 local 172.30.0.11 dev eth0 dstport 8472 \
                nolearning";
    node.command(made);
    let before = node.command("ip -d link show dev weft.1");
    let pod = Pod::new();
    let refused = fleet.network.add_call(&pod).on(node).run().error_code(103);
    refused.assert_names(&["network pods", "weft.1", "another network", "VNI 1", "ip link delete weft.1"]);
    assert_eq!(node.command("ip -d link show dev weft.1"), before);
    node.command("ip link delete weft.1");
    drop(node.attach(&fleet.network));
}

/// Neither has been there before the other: the device is one's, whole, and the other one is refused.
#[test]
fn two_networks_with_one_vni_that_start_at_once() {
    let fleet = Fleet::new(&[1], V4);
    let networks = [fleet.network.clone(), other(&fleet, &json!({ "Type": "vxlan" }))];
    let node = fleet.node(0);
    let pods = [Pod::new(), Pod::new()];
    // From the second round on both have their leases and only the device is to be made.
    for round in 0..20 {
        let calls = [0, 1].map(|index| networks[index].add_call(&pods[index]).on(node));
        let replies = calls.map(Call::start).map(Running::finish);
        let first = usize::from(replies[1].succeeded());
        assert!(replies[first].succeeded(), "round {round}: {}", replies[first].stderr);
        replies[1 - first].error_code(103).assert_names(&["weft.1", "VNI 1"]);
        let prefix = ["/coreos.com/network", "/other"][first];
        let record = fleet.etcd.ctl(&["get", "--prefix", &format!("{prefix}/subnets/")]);
        let device = node.link("weft.1").expect("a device");
        assert_eq!(device["ifalias"], format!("weft:{prefix}"), "round {round}");
        assert!(record.contains(device["address"].as_str().expect("a MAC")), "round {round}: {record}");
        networks[first].call("DEL").pod(&pods[first]).on(node).run().done();
        node.command("ip link delete weft.1");
    }
}

/// As one that an earlier version of Weft made.
#[test]
fn a_device_without_a_mark_is_taken() {
    let fleet = Fleet::new(&[1], V4);
    let node = fleet.node(0);
    let (pod, result) = node.attach(&fleet.network);
    let unmarked =
        || Command::new("ip").args(["link", "set", "weft.1", "alias", ""]).status().expect("run ip");
    assert!(node.inside(unmarked).success());
    assert_eq!(node.link("weft.1").expect("a device")["ifalias"], Value::Null);
    let checked = fleet.network.clone().with(&json!({ "prevResult": result }));
    checked.call("CHECK").pod(&pod).on(node).run().done();
    std::fs::remove_dir_all(node.state_dir()).expect("forget what was set up");
    drop(node.attach(&fleet.network));
    assert_eq!(node.link("weft.1").expect("a device")["ifalias"], "weft:/coreos.com/network");
}

/// With another VNI or backend nothing is left of the former, and containers go on.
#[test]
fn a_network_with_another_vni_or_backend() {
    let fleet = Fleet::new(&[2], V4);
    let pods = fleet.all_reach(1);
    for (backend, device, plain) in [
        (json!({ "Type": "vxlan", "VNI": 7 }), "weft.7", 0),
        (json!({ "Type": "host-gw" }), "", 1),
        (json!({ "Type": "vxlan" }), "weft.1", 0),
    ] {
        fleet.etcd.put(CONFIG, json!({ "Network": "10.240.0.0/12", "Backend": backend }).to_string());
        // Each learns of the configuration, and then of what the other made of it.
        drop(fleet.pods());
        for node in fleet.cluster.nodes() {
            let links = node.json("ip -j link show type vxlan");
            let links = links.as_array().expect("a list").iter();
            let devices: Vec<&str> = links.filter_map(|link| link["ifname"].as_str()).collect();
            assert_eq!(devices.join(" "), device, "{backend}");
            let routes = plain_routes(node, Family::V4);
            assert_eq!(routes.lines().filter(|route| route.contains("dev eth0")).count(), plain, "{routes}");
        }
        pods[0].0.assert_reaches(pods[1].1[0]);
    }
}

/// What the kernel does not remove at first, as it does not `lo` whatever that is called, goes with a later ADD.
#[test]
fn a_former_device_that_cannot_be_removed_at_first() {
    let fleet = Fleet::new(&[1], V4);
    drop(fleet.pods());
    let node = fleet.cluster.node(0);
    let mark = node.link("weft.1").expect("the device")["ifalias"].as_str().expect("a mark").to_owned();
    for line in ["del weft.1", "set lo down", "set lo name weft.1"] {
        node.command(&format!("ip link {line}"));
    }
    node.command(&format!("ip link set weft.1 alias {mark}"));
    fleet.etcd.put(CONFIG, V4.replace(r#""vxlan""#, r#""vxlan", "VNI": 7"#));
    drop(fleet.pods());
    assert!(node.link("weft.7").is_some() && node.link("weft.1").is_some());
    for line in ["set weft.1 alias none", "set weft.1 name lo", "add weft.1 type vxlan id 1 dstport 8472"] {
        node.command(&format!("ip link {line}"));
    }
    node.command(&format!("ip link set weft.1 alias {mark}"));
    drop(fleet.pods());
    assert!(node.link("weft.7").is_some() && node.link("weft.1").is_none());
}
