//! The VXLAN device as the network's configuration in etcd wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use weft_tests::{Family, Node, Pod, Weftd, eventually};

use super::{CONFIG, DUAL, Fleet, each_way};

/// What an agent needs to see another configuration with a lease of three seconds, and to follow it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A device's parameters, as `ip -d link` has them, against those that it ought to have.
#[track_caller]
fn assert_device(fleet: &Fleet, family: Family, vni: u32, port: u16, learning: bool, prefix: &str) {
    let node = fleet.node(0);
    let name = family.device().replace(".1", &format!(".{vni}"));
    let link = node.link(&name).unwrap_or_else(|| panic!("no {name}: {}", node.command("ip link")));
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    assert_eq!(link["mtu"], 1500 - family.overhead());
    let data = &link["linkinfo"]["info_data"];
    let local = if family == Family::V4 { "local" } else { "local6" };
    let expected = json!({
        "id": vni, "port": port, "learning": learning, "link": "eth0", local: family.address(node),
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&data[key], value, "{key} of {name}: {data}");
    }
    let gbp = data.get("gbp").and_then(serde_json::Value::as_bool).unwrap_or(false);
    assert!(!gbp, "no group-based policy: {data}");
    let mac = link["address"].as_str().expect("a MAC");
    assert!(mac.starts_with(prefix), "{mac} of {name} begins with {prefix:?}");
    let record = fleet.etcd.ctl(&["get", "--prefix", super::SUBNETS]);
    assert!(record.contains(&format!(r#""VNI":{vni},"VtepMAC":"{mac}""#)), "{name} is published: {record}");
}

#[test]
fn its_parameters_are_the_networks() {
    let backend = json!({
        "Type": "vxlan", "VNI": 77, "Port": 4789, "Learning": true, "MacPrefix": "0E-2A"
    });
    for (config, families) in each_way(&backend) {
        let fleet = Fleet::new(&[2], &config);
        fleet.all_reach(families.len());
        for family in families {
            assert_device(&fleet, family, 77, 4789, true, "0e:2a:");
        }
    }
    for (config, families) in each_way(&json!({ "Type": "vxlan" })) {
        let fleet = Fleet::new(&[1], &config);
        fleet.pods();
        for family in families {
            assert_device(&fleet, family, 1, 8472, false, "");
        }
    }
}

/// By the next ADD, without news of other hosts and without an agent.
#[test]
fn an_altered_device_is_as_it_was_after_an_add() {
    let [.., (config, families)] = each_way(&json!({ "Type": "vxlan" }));
    let fleet = Fleet::new(&[1], &config);
    let network = fleet.network.clone().with(&json!({ "ipam": { "peerRefresh": 3600 } }));
    let node = fleet.node(0);
    let _first = node.attach(&network);
    for family in families {
        let device = family.device();
        let state = || {
            let link = node.link(device).unwrap_or_else(|| panic!("no {device}"));
            (link["mtu"].clone(), link["address"].clone(), link["flags"].clone())
        };
        let whole = state();
        for damage in ["mtu 1300", "address 02:00:00:00:00:99", "down"] {
            node.command(&format!("ip link set {device} {damage}"));
            assert_ne!(state(), whole, "{damage}");
            drop(node.attach(&network));
            assert_eq!(state(), whole, "{device} after {damage}");
        }
    }
}

/// The kernel has no IPv6 on a device with less than 1280 bytes, whoever sets it up. The other family goes on.
#[test]
fn an_underlay_without_room_for_ipv6_is_told_with_what_it_needs() {
    let fleet = Fleet::new(&[1], DUAL);
    let node = fleet.node(0);
    node.command("ip link set eth0 mtu 1320");
    let parts = ["weft6.1", "MTU 1250", "eth0 1320", "raise eth0 to 1350"];
    fleet.network.add_call(&Pod::new()).on(node).run().error_code(102).assert_names(&parts);
    fleet.network.call("STATUS").on(node).run().error_code(50).assert_names(&parts);
    let agent = Weftd::start(node, &fleet.etcd, &json!({}));
    eventually(PATIENCE, "the agent says so", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
    });
    let link = node.link("weft.1").expect("the device of IPv4");
    assert_eq!((&link["mtu"], node.addresses("weft.1").len()), (&json!(1270), 1));
    node.command("ip link set eth0 mtu 1350");
    agent.ready();
    assert_eq!(node.link("weft6.1").expect("the device of IPv6")["mtu"], 1280);
    fleet.network.call("STATUS").on(node).run().done();
    drop(node.attach(&fleet.network));
}

/// As is told of the bridge, and of the interface to other hosts where plain routes lead by it.
#[test]
fn a_device_that_does_not_forward_is_told_by_check() {
    for backend in [json!({ "Type": "vxlan" }), json!({ "Type": "host-gw" })] {
        let [.., (config, families)] = each_way(&backend);
        let fleet = Fleet::new(&[2], &config);
        let _others = fleet.pods();
        let node = fleet.node(0);
        let (pod, result) = node.attach(&fleet.network);
        let checked = fleet.network.clone().with(&json!({ "prevResult": result }));
        let check = || checked.call("CHECK").pod(&pod).on(node).run();
        check().done();
        for family in families {
            let device = if backend["Type"] == "vxlan" { family.device() } else { "eth0" };
            let setting = family.forwarding(device);
            node.set_sysctl(&setting, "0");
            if device == "eth0" && family == Family::V6 {
                check().done();
            } else {
                check().error_code(105).assert_names(&[&setting]);
            }
            node.set_sysctl(&setting, "1");
        }
    }
}

/// The addresses of the devices of two networks on all hosts of a fleet, by host and device.
fn addresses(fleet: &Fleet) -> BTreeMap<(String, &'static str), String> {
    let devices = ["weft.1", "weft6.1", "weft.2", "weft6.2"];
    let nodes = fleet.cluster.nodes().iter();
    let address = |node: &Node, device: &str| {
        let link = node.link(device).unwrap_or_else(|| panic!("{} has no {device}", node.name));
        link["address"].as_str().expect("a MAC").to_owned()
    };
    nodes
        .flat_map(|node| devices.map(|device| ((node.name.clone(), device), address(node, device))))
        .collect()
}

/// No two of a host, a network and a family have the same, and each is what it was after the device is made again.
#[test]
fn its_address_is_of_one_host_one_network_and_one_family() {
    let [.., (config, _)] = each_way(&json!({ "Type": "vxlan" }));
    let fleet = Fleet::new(&[2], &config);
    let other = config
        .replace("10.240.0.0/12", "10.96.0.0/12")
        .replace("fd00:42::", "fd00:96::")
        .replace(r#""Type":"vxlan""#, r#""Type":"vxlan","VNI":2"#);
    fleet.etcd.put("/other/config", other);
    let changes = json!({ "name": "other", "bridge": "weft1", "ipam": { "etcd": { "prefix": "/other" } } });
    let networks = [fleet.network.clone(), fleet.network.clone().with(&changes)];
    let attach = || {
        let pairs =
            fleet.cluster.nodes().iter().flat_map(|node| networks.each_ref().map(|network| (node, network)));
        pairs.for_each(|(node, network)| drop(node.attach(network)));
    };
    attach();
    let before = addresses(&fleet);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 8, "{before:#?}");
    for (host, device) in before.keys() {
        let node = fleet.cluster.nodes().iter().find(|node| node.name == *host).expect("a host");
        node.command(&format!("ip link delete {device}"));
    }
    attach();
    assert_eq!(addresses(&fleet), before);
}

/// What can be changed under containers is changed in place of the old, also on a host that was there before.
#[test]
fn it_follows_the_networks_configuration() {
    for (config, families) in each_way(&json!({ "Type": "vxlan" })) {
        let fleet = Fleet::new(&[1], &config);
        let agent = Weftd::start(fleet.node(0), &fleet.etcd, &json!({ "leaseTTL": 3 }));
        agent.ready();
        let changed = config.replace(r#""Type":"vxlan""#, r#""Type":"vxlan","Port":4789,"Learning":true"#);
        assert_ne!(config, changed);
        fleet.etcd.put(CONFIG, &changed);
        for family in families {
            eventually(PATIENCE, "the device has the new port", || {
                let link = fleet.node(0).link(family.device())?;
                (link["linkinfo"]["info_data"]["port"] == 4789).then_some(())
            });
            assert_device(&fleet, family, 1, 4789, true, "");
        }
        agent.ready();
    }
}

/// `bridge fdb add … dynamic` makes what a device that learns makes of others' packets.
#[test]
fn what_it_learns_stays_where_the_network_wants_that() {
    for learning in [true, false] {
        let [(config, _), ..] = each_way(&json!({ "Type": "vxlan", "Learning": learning }));
        let fleet = Fleet::new(&[1], &config);
        let node = fleet.node(0);
        let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#;
        let other = r#""PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan""#;
        fleet.etcd.put(
            &format!("{}10.240.99.0-24", super::SUBNETS),
            format!(r#"{{{other},"BackendData":{data}}}"#),
        );
        let agent = Weftd::up(node, &fleet.etcd);
        let entries = || node.command("bridge fdb show dev weft.1");
        let has = |what: &str| entries().contains(what);
        let (own, learnt) = ("8e:00:00:00:00:01 dst 172.30.0.99", "8e:00:00:00:00:77 dst 172.30.0.13");
        let fixed = format!("{own} self permanent");
        assert!(has(&fixed), "{}", entries());
        let heals = || agent.metric(r#"weft_heals_total{network="pods",object="fdb"}"#).unwrap_or_default();
        node.command(&format!("bridge fdb add {learnt} dev weft.1 self dynamic"));
        if !learning {
            eventually(PATIENCE, "it is gone", || (!has(learnt)).then_some(()));
            continue;
        }
        // In the way, one learnt in place of a host's own, and gone: each is put right, and what was learnt stays.
        let damages = [
            "bridge fdb add 8e:00:00:00:00:78 dst 172.30.0.14 dev weft.1 self static",
            "bridge fdb replace 8e:00:00:00:00:01 dst 172.30.0.99 dev weft.1 self dynamic",
            "bridge fdb del 8e:00:00:00:00:01 dst 172.30.0.99 dev weft.1 self",
        ];
        for (number, damage) in (0_u8..).zip(damages) {
            node.command(damage);
            eventually(PATIENCE, damage, || {
                let is_whole = has(&fixed) && !has("8e:00:00:00:00:78");
                (is_whole && heals() >= f64::from(number + 1)).then_some(())
            });
            assert!(has(learnt), "after {damage}: {}", entries());
            assert_eq!(heals(), f64::from(number + 1), "after {damage}: {}", agent.daemon().log());
        }
    }
}

/// What Weft cannot do is said, and nothing is made of half of it.
#[test]
fn group_based_policy_is_refused() {
    for (config, _) in each_way(&json!({ "Type": "vxlan", "GBP": true })) {
        let fleet = Fleet::new(&[1], &config);
        let before = fleet.node(0).json("ip -j link show");
        let error = fleet.network.add_call(&Pod::new()).on(fleet.node(0)).run().error_code(7);
        error.assert_names(&["Backend.GBP", "take it out"]);
        assert_eq!(fleet.node(0).json("ip -j link show"), before);
        assert!(fleet.etcd.keys(super::SUBNETS).is_empty());
    }
}

/// What systemd-udevd does with a new link of its namespace.
const UDEV: &str = r#"set -e
mount -t sysfs sysfs /sys
mkdir -p /run/systemd/network
cp "$1" /run/systemd/network
udevadm test-builtin net_setup_link "/sys/class/net/$0"
"#;

/// Where it runs, its MACAddressPolicy replaces addresses that nobody chose; the file that is shipped exempts Weft's devices.
#[test]
fn udev_leaves_the_devices_to_weft() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/10-weft-vxlan.link");
    let [.., (config, families)] = each_way(&json!({ "Type": "vxlan" }));
    let fleet = Fleet::new(&[1], &config);
    let node = fleet.node(0);
    let address =
        |name: &str| node.link(name).expect("a device")["address"].as_str().expect("a MAC").to_owned();
    // Whether the address is the same afterwards.
    let stays = |name: &str| {
        let before = address(name);
        let mut udev = Command::new("unshare");
        udev.args(["--mount", "sh", "-c", UDEV, name, file]);
        let output = node.inside(|| udev.output().expect("run a shell"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "is udevadm there (apt-get install udev)? {text}");
        address(name) == before
    };
    // By their names alone: these have addresses of the kernel's choice.
    for (number, name) in [(9, "weft.9"), (10, "weft6.9"), (11, "other.9")] {
        node.command(&format!("ip link add {name} type vxlan id {number} dstport 9000 local 172.30.0.11"));
    }
    assert!(stays("weft.9") && stays("weft6.9"));
    assert!(!stays("other.9"), "it has such a policy here");
    drop(node.attach(&fleet.network));
    for family in families {
        assert!(stays(family.device()));
    }
}
