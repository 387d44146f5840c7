//! A host that gets other addresses, by DHCP or by hand, while containers live on it.

use std::time::Duration;

use serde_json::json;
use weft_tests::{Call, Network, Node, Pod, Weftd, command, eventually};

use super::super::{DUAL, Fleet, PREFIX, SUBNETS, V4, V6, addresses};

/// Where it is said who has an address.
const HOSTS: &str = "/coreos.com/network/weft/hosts/";
const BEFORE: [&str; 2] = ["172.30.0.11", "fd30::11"];
const AFTER: [&str; 2] = ["172.30.0.22", "fd30::22"];

#[test]
fn a_host_keeps_its_subnet_when_its_address_changes() {
    for (config, families, renumbered) in [
        (V4, vec![0], vec![0]),
        (V6, vec![1], vec![1]),
        (DUAL, vec![0, 1], vec![0]),
        (DUAL, vec![0, 1], vec![1]),
        (DUAL, vec![0, 1], vec![0, 1]),
    ] {
        let what = format!("{config} {renumbered:?}");
        let fleet = Fleet::new(2, config);
        fleet.add(0, &json!({})).result();
        let (key, _) = fleet.record();
        for family in &renumbered {
            fleet.node(0).renumber(BEFORE[*family], AFTER[*family]);
        }
        fleet.ipam("STATUS", 0, &json!({})).run().done();
        let given = addresses(&fleet.add(0, &json!({})).result());
        assert!(given.iter().all(|address| address.contains(".3/") || address.contains("::3/")), "{given:?}");
        let (now, value) = fleet.record();
        assert_eq!(now, key, "{what}");
        let mut holders = Vec::new();
        for family in &families {
            let address = if renumbered.contains(family) { AFTER[*family] } else { BEFORE[*family] };
            assert!(value.contains(&format!("\"{address}\"")), "{what}: {value}");
            holders.push(format!("{HOSTS}{address}"));
        }
        let leases = fleet.etcd.leases();
        assert_eq!(leases.len(), 1, "{what}: the former lease is gone");
        assert_eq!(leases[0].keys[1..], holders, "{what}");
        // Whoever comes to the former address is another host.
        for family in &renumbered {
            fleet.node(1).renumber(["172.30.0.12", "fd30::12"][*family], BEFORE[*family]);
        }
        fleet.add(1, &json!({})).result();
        fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
        assert_eq!((fleet.keys().len(), fleet.etcd.leases().len()), (2, 2), "{what}");
    }
}

/// What a host put at its address is not told by its disk.
#[test]
fn the_copy_of_a_disk_on_another_address_gets_no_subnet_of_the_first() {
    let fleet = Fleet::new(2, V4);
    fleet.add(0, &json!({})).result();
    let before = (fleet.record(), fleet.etcd.revision());
    let key = format!("{SUBNETS}{}", before.0.0);
    let [from, to] = [0, 1].map(|node| fleet.node(node).directory());
    command(&format!("cp -a {} {}", from.display(), to.display()));
    let parts = ["172.30.0.11", "weftctl leave", &format!("etcdctl del {key}")];
    fleet.ipam("STATUS", 1, &json!({})).run().error_code(51).assert_names(&parts);
    fleet.fails(1, &json!({}), 103).assert_names(&parts);
    fleet.ipam("STATUS", 1, &json!({})).run().error_code(51).assert_names(&parts);
    assert_eq!((fleet.record(), fleet.etcd.revision()), before, "nothing was written");
}

/// The record of a host that is gone, in the way of one that cannot show that it was that.
#[test]
fn what_the_error_of_a_taken_subnet_says_to_do_helps() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let (key, _) = fleet.record();
    fleet.etcd.del(&format!("{HOSTS}172.30.0.11"));
    fleet.node(0).renumber(BEFORE[0], AFTER[0]);
    let error = fleet.fails(0, &json!({}), 103);
    let (_, line) = error.msg.split_once("etcdctl del ").expect("a line for etcdctl");
    let (named, _) = line.split_once(')').expect("its end");
    assert_eq!(named, format!("{PREFIX}/subnets/{key}"));
    fleet.ipam("STATUS", 0, &json!({})).run().error_code(51);
    fleet.etcd.del(named);
    fleet.ipam("STATUS", 0, &json!({})).run().done();
    fleet.add(0, &json!({})).result();
    assert!(fleet.record().1.contains(AFTER[0]));
    fleet.ipam("STATUS", 0, &json!({})).run().done();
}

/// The record that it has on file names an address that no interface has, until an ADD.
#[test]
fn status_of_the_interface_plugin_does_not_mind_the_former_address() {
    let fleet = Fleet::new(1, V4);
    let network = fleet.conf(&json!({ "isGateway": true, "ipam": { "peerRefresh": 0 } }));
    let node = fleet.node(0);
    let _first = node.attach(&network);
    node.renumber(BEFORE[0], AFTER[0]);
    network.call("STATUS").on(node).run().done();
    let _second = node.attach(&network);
    network.call("STATUS").on(node).run().done();
    assert!(fleet.record().1.contains(AFTER[0]));
}

/// They need not wait: the subnet is this host's as before, and who has its disk is not this host.
#[test]
fn containers_come_and_go_while_etcd_cannot_be_told_of_the_new_address() {
    let fleet = Fleet::new(2, V4);
    let short = json!({ "timeout": 4 });
    let network = fleet.conf(&short);
    let pod = Pod::new();
    let call = |network: &Network, command| {
        Call::new("weft-ipam", command, network.conf.to_string()).on(fleet.node(0)).pod(&pod)
    };
    let result = call(&network, "ADD").run().result();
    let (key, value) = fleet.record();
    let [from, to] = [0, 1].map(|node| fleet.node(node).directory());
    command(&format!("cp -a {} {}", from.display(), to.display()));
    fleet.node(0).renumber(BEFORE[0], AFTER[0]);
    fleet.etcd.freeze();
    let reply = fleet.add(0, &short);
    assert_eq!(addresses(&reply.result()), [addresses(&result)[0].replace(".2/", ".3/")]);
    assert!(reply.stderr.contains("the addresses that this host had"), "{}", reply.stderr);
    fleet.ipam("STATUS", 0, &short).run().done();
    call(&network.previous(&result), "CHECK").run().done();
    fleet.fails(1, &short, 11);
    fleet.ipam("STATUS", 1, &short).run().error_code(50);
    fleet.etcd.thaw();
    assert_eq!(fleet.record(), (key.clone(), value));
    fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
    let (now, value) = fleet.record();
    assert!(now == key && value.contains(AFTER[0]), "{now} {key} {value}");
}

/// The others that came with it go on by what it found.
#[test]
fn one_add_of_many_waits_for_etcd_after_the_address_has_changed() {
    let fleet = Fleet::new(1, V4);
    // News of other hosts that came just now are none of etcd's silence.
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    fleet.add(0, &due).result();
    fleet.add(0, &due).result();
    fleet.node(0).renumber(BEFORE[0], AFTER[0]);
    fleet.etcd.freeze();
    let short = json!({ "ipam": { "etcd": { "timeout": 1 } } });
    let calls: Vec<_> = (0..6).map(|_| fleet.ipam("ADD", 0, &short).start()).collect();
    let replies: Vec<_> = calls.into_iter().map(weft_tests::Running::finish).collect();
    replies.iter().for_each(|reply| drop(reply.result()));
    let waited = replies.iter().filter(|reply| reply.stderr.contains("172.30.0.2:2379")).count();
    assert_eq!(waited, 1, "{:?}", replies.iter().map(|reply| &reply.stderr).collect::<Vec<_>>());
    fleet.etcd.thaw();
    fleet.add(0, &due).result();
    assert!(fleet.record().1.contains(AFTER[0]));
    // Nothing was asked in vain since.
    fleet.add(0, &due).result();
    fleet.node(0).renumber(AFTER[0], BEFORE[0]);
    fleet.add(0, &json!({})).result();
    assert!(fleet.record().1.contains(BEFORE[0]));
}

/// Nothing connects the host with the others yet, which takes an address that it has; or its subnet is full.
#[test]
fn status_tells_what_a_lease_of_former_addresses_lacks_while_etcd_is_away() {
    let plain = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#;
    let small = r#"{"Network": "10.240.0.0/20", "SubnetLen": 30, "Backend": {"Type": "vxlan"}}"#;
    for config in [plain, small] {
        let fleet = Fleet::new(1, config);
        let node = fleet.node(0);
        let short = json!({ "timeout": 4, "isGateway": true });
        let network = fleet.conf(&short);
        let _first = node.attach(&network);
        node.renumber(BEFORE[0], AFTER[0]);
        fleet.etcd.freeze();
        let status = network.call("STATUS").on(node).run().error_code(50);
        let add = network.add_call(&Pod::new()).on(node).run();
        if config == small {
            status.assert_names(&["1 of 1 used"]);
            add.error_code(104);
        } else {
            status.assert_names(&[BEFORE[0], "172.30.0.2:2379"]);
            add.error_code(11).assert_names(&[BEFORE[0], "etcd in reach"]);
        }
        fleet.etcd.thaw();
        if config == plain {
            // It has to ask, however short ago another one did.
            drop(node.attach(&network));
        }
    }
}

/// What is known is said then, and at once.
#[test]
fn a_subnet_that_was_taken_stays_that_while_etcd_is_away() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let (key, _) = fleet.record();
    fleet.etcd.del(&format!("{HOSTS}172.30.0.11"));
    fleet.node(0).renumber(BEFORE[0], AFTER[0]);
    fleet.fails(0, &json!({}), 103);
    fleet.etcd.kill();
    let reply = fleet.add(0, &json!({ "timeout": 4 }));
    assert!(!reply.stderr.contains("trying again"), "{}", reply.stderr);
    reply.error_code(103).assert_names(&[&key, "172.30.0.11"]);
    fleet.ipam("STATUS", 0, &json!({})).run().error_code(51).assert_names(&[&key]);
}

/// A link like a VPN's, to which nothing leads yet.
fn tunnel(node: &Node) {
    node.command("ip link add tun0 up type veth peer name tun0-server");
    node.command("ip link set tun0-server up");
    node.command("ip addr add 10.8.0.2/24 dev tun0");
    node.command("ip addr add fd08::2/64 dev tun0 nodad");
}

/// It is known by its interface's address, not by that of the way to everywhere.
#[test]
fn an_interface_gets_another_address_while_a_vpn_has_the_default_route() {
    for config in [V4, V6, DUAL] {
        let fleet = Fleet::new(1, config);
        let (node, due) = (fleet.node(0), json!({ "ipam": { "peerRefresh": 0 } }));
        fleet.add(0, &due).result();
        let (key, _) = fleet.record();
        tunnel(node);
        node.command("ip route replace default via 10.8.0.1 dev tun0");
        node.command("ip -6 route replace default via fd08::1 dev tun0");
        for (family, length) in [(0, 24), (1, 64)] {
            let (before, after) = (BEFORE[family], AFTER[family]);
            node.command(&format!("ip addr del {before}/{length} dev eth0"));
            node.command(&format!("ip addr add {after}/{length} dev eth0 nodad"));
        }
        fleet.ipam("STATUS", 0, &due).run().done();
        fleet.add(0, &due).result();
        let (now, value) = fleet.record();
        assert_eq!(now, key, "{config}");
        for (family, tunnels) in [(0, "10.8.0.2"), (1, "fd08::2")] {
            let is_used = config == DUAL || config == [V4, V6][family];
            assert_eq!(value.contains(&format!("\"{}\"", AFTER[family])), is_used, "{value}");
            assert!(!value.contains(tunnels), "{value}");
        }
    }
}

/// The interface lacks its address while a VPN has everything, by halves: what others know is not the VPN's. Etcd is reached by IPv6.
#[test]
fn an_add_while_the_interface_has_no_address_moves_no_host() {
    let fleet = Fleet::new(1, V4);
    let node = fleet.node(0);
    let by_ipv6: Vec<String> = fleet.etcd.endpoints().into_iter().filter(|url| url.contains('[')).collect();
    let due = json!({ "ipam": { "peerRefresh": 0, "etcd": { "endpoints": by_ipv6 } } });
    fleet.add(0, &due).result();
    let before = fleet.record();
    tunnel(node);
    for half in ["0.0.0.0/1", "128.0.0.0/1"] {
        node.command(&format!("ip route add {half} via 10.8.0.1"));
    }
    node.command("ip -4 addr flush dev eth0");
    fleet.ipam("STATUS", 0, &due).run().done();
    fleet.add(0, &due).result();
    assert_eq!(fleet.record(), before);
    // As with a lease that has to be taken anew.
    fleet.etcd.del(&format!("{SUBNETS}{}", before.0));
    fleet.add(0, &due).result();
    assert_eq!(fleet.record(), before);
    node.command("ip addr add 172.30.0.11/24 dev eth0");
    node.command("ip route add default via 172.30.0.1");
    fleet.add(0, &due).result();
    assert_eq!(fleet.record(), before);
    // The interface is another one.
    node.command("ip -4 addr flush dev eth0");
    node.command("ip link set eth0 address 02:00:00:00:77:77");
    fleet.add(0, &due).result();
    let (key, value) = fleet.record();
    assert!(key == before.0 && value.contains("\"10.8.0.2\""), "{value}");
}

/// That has IPv6 alone. What tells interfaces apart without an agent is the hardware address of the one that has IPv4.
#[test]
fn an_add_follows_an_interface_of_ipv6() {
    let fleet = Fleet::new(1, DUAL);
    let (node, due) = (fleet.node(0), json!({ "ipam": { "peerRefresh": 0 } }));
    node.command("ip link add eth1 up type veth peer name eth1-peer");
    node.command("ip link set eth1-peer up");
    let has = |network: &str| {
        node.command(&format!("ip addr add {network}::1/64 dev eth1 nodad"));
        node.command(&format!("ip -6 route replace default via {network}::ff dev eth1"));
    };
    has("fd31");
    fleet.add(0, &due).result();
    let (key, value) = fleet.record();
    assert!(value.contains("\"172.30.0.11\"") && value.contains("\"fd31::1\""), "{value}");
    node.command("ip addr del fd31::1/64 dev eth1");
    has("fd31:0:0:7");
    let reply = fleet.add(0, &due);
    reply.result();
    let (now, value) = fleet.record();
    assert!(now == key && value.contains("\"fd31:0:0:7::1\""), "{value}: {}", reply.stderr);
    assert!(reply.stderr.contains("was fd31::1, and is fd31:0:0:7::1 from now on"), "{}", reply.stderr);
}

/// It has no other for a while: the kernel sends by the one that every link has, by which no other host reaches this one.
#[test]
fn an_address_of_the_link_alone_is_no_hosts() {
    let fleet = Fleet::new(1, V6);
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    fleet.add(0, &due).result();
    let record = fleet.record();
    let node = fleet.node(0);
    node.command("ip -6 route replace default via fe80::ff dev eth0");
    node.command(&format!("ip addr del {}/64 dev eth0", BEFORE[1]));
    assert!(node.command("ip -6 route get 2001:db8::1").contains("src fe80:"));
    fleet.add(0, &due).result();
    assert_eq!(fleet.record(), record);
    node.command(&format!("ip addr add {}/64 dev eth0 nodad", AFTER[1]));
    fleet.add(0, &due).result();
    let (now, value) = fleet.record();
    assert!(now == record.0 && value.contains(AFTER[1]), "{value}");
}

/// It is asked for nothing then: the agent looks itself, and etcd may be away.
#[test]
fn beside_an_agent_an_add_moves_no_host() {
    let fleet = Fleet::new(1, V4);
    let agent = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    agent.ready();
    let (key, _) = fleet.record();
    fleet.etcd.freeze();
    fleet.node(0).renumber(BEFORE[0], AFTER[0]);
    let given = addresses(&fleet.add(0, &json!({})).result());
    assert!(given[0].starts_with(key.trim_end_matches("0-24")), "{given:?} of {key}");
    fleet.ipam("STATUS", 0, &json!({})).run().done();
    fleet.etcd.thaw();
    eventually(Duration::from_secs(20), "the agent moves it", || {
        let (now, value) = fleet.record();
        (now == key && value.contains(AFTER[0])).then_some(())
    });
}
