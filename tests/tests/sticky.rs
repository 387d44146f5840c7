//! Addresses that stay with the name of a container, asked for as each runtime does it.
#![allow(clippy::unwrap_used, reason = "a test's panic is its verdict")]

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Access, Call, Cluster, Host, Network, Pod, command, eventually, ips};

/// A pod of Kubernetes, as containerd and CRI-O name it.
const WEB: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=7";
/// A container of podman with the name `db`.
const DB: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=db;K8S_POD_NAME=db;K8S_POD_INFRA_CONTAINER_ID=abc";
/// `nerdctl run --hostname cache`.
const CACHE: &str = "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=cache";

/// A TCP client's first packet and its answer.
const WITHIN: Duration = Duration::from_millis(900);

fn sticky(network: Network) -> Network {
    network.with(&json!({ "ipam": { "sticky": "name" } }))
}

/// A new container with these arguments, attached.
fn add(network: &Network, args: &str) -> (Pod, Value) {
    let pod = Pod::new();
    let result = network.add_call(&pod).args(args).run().result();
    (pod, result)
}

#[test]
fn a_container_that_comes_again_has_the_address_that_it_had() {
    let _host = Host::new();
    let network = sticky(Network::dual());
    let (_other, other) = add(&network, "");
    let mut pods: Vec<(Pod, Value)> = [WEB, DB, CACHE].map(|args| add(&network, args)).into();
    for (pod, _) in &pods {
        network.del(pod);
    }
    // Others come in between, and in another order.
    let (_between, between) = add(&network, "");
    let before: Vec<_> = pods.drain(..).map(|(_, result)| ips(&result)).collect();
    for (args, before) in [WEB, DB, CACHE].iter().zip(&before).rev() {
        let (pod, result) = add(&network, args);
        assert_eq!(&ips(&result), before, "{args}");
        assert!(before.iter().all(|ip| !ips(&between).contains(ip)));
        network.check(&pod, &result).done();
        pod.assert_reaches(ips(&other)[0]);
        pods.push((pod, result));
    }
    // GC frees as DEL does.
    network.gc(&[]);
    let (_web, result) = add(&network, WEB);
    assert_eq!(ips(&result), before[0]);
}

/// The host knew the address at another MAC address a moment ago.
#[test]
fn the_host_finds_the_new_container_at_the_old_address() {
    let _host = Host::new();
    let network = sticky(Network::dual());
    for _ in 0..3 {
        let (pod, result) = add(&network, WEB);
        for ip in ips(&result) {
            command(&format!("ping -n -c 1 -W 1 {ip}"));
        }
        network.del(&pod);
    }
}

/// So did another container, which talked with the old one just now: its next packet reaches the new one.
#[test]
fn other_containers_find_the_new_one_at_the_old_address() {
    let _host = Host::new();
    let mac = |pod: &Pod| pod.link("eth0").unwrap()["address"].clone();
    let static_ipam = json!({ "type": "static", "ranges": null, "addresses": [
        { "address": "10.88.0.9/24", "gateway": "10.88.0.1" }, { "address": "fd00:88::9/64", "gateway": "fd00:88::1" },
    ] });
    let asked = json!({ "ips": ["10.88.0.8", "fd00:88::8"] });
    let call = |command, network: &Network, args, pod: &Pod| {
        Call::any("weft", command, network.conf.to_string()).pod(pod).args(args)
    };
    let client = Pod::new();
    Network::dual().add(&client);
    for (network, args) in [
        (sticky(Network::dual()), WEB),
        (Network::dual(), "IP=10.88.0.7,fd00:88::7"),
        (Network::dual().with(&json!({ "runtimeConfig": asked })), ""),
        (Network::dual().with(&json!({ "args": { "cni": asked } })), ""),
        (Network::dual().with(&json!({ "ipam": static_ipam })), ""),
    ] {
        let before = Pod::new();
        let result = call("ADD", &network, args, &before).run().result();
        let mac_before = mac(&before);
        for ip in ips(&result) {
            client.assert_reaches(ip);
        }
        call("DEL", &network, args, &before).run().done();
        let after = Pod::new();
        let again = call("ADD", &network, args, &after).run().result();
        for ip in ips(&result) {
            // One packet: TCP sends the second one after a second. Nobody listens there, and the kernel says so.
            let answer = client.inside(|| TcpStream::connect_timeout(&(ip, 80).into(), WITHIN)).unwrap_err();
            let table = client.command("ip neigh");
            assert_eq!(answer.kind(), ErrorKind::ConnectionRefused, "{ip} of {}: {table}", network.conf);
        }
        assert_eq!(ips(&again), ips(&result));
        assert_ne!(mac(&after), mac_before, "another container has another MAC address");
        call("DEL", &network, args, &after).run().done();
    }
    // What goes to all ports is sent for these alone.
    let (pod, _) = add(&Network::dual(), "");
    for setting in ["ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify"] {
        assert_eq!(pod.command(&format!("cat /proc/sys/net/{setting}")).trim(), "0", "{setting}");
    }
}

#[test]
fn the_time_is_the_networks_and_a_reboot_may_forget() {
    let host = Host::new();
    let network = sticky(Network::v4()).with(&json!({ "ipam": { "stickyFor": 1 } }));
    let (pod, first) = add(&network, WEB);
    network.del(&pod);
    let asking = network.clone().with(&json!({ "runtimeConfig": { "ips": [ips(&first)[0]] } }));
    let other = Pod::new();
    // Kept for the name, and free for all after a second.
    eventually(Duration::from_secs(20), "the address is kept no longer", || {
        let reply = asking.add_call(&other).run();
        if reply.succeeded() {
            return Some(());
        }
        let message = reply.error_code(103).msg;
        assert!(message.contains("kept for \"default/web-0\" (eth0)"), "{message}");
        None
    });
    network.del(&other);
    host.reboot();
    add(&network, WEB);
}

#[test]
fn the_keys_are_refused_where_they_mean_nothing() {
    let _host = Host::new();
    let pod = Pod::new();
    for (ipam, part) in [
        (json!({ "sticky": "address" }), "ipam.sticky: \"address\""),
        (json!({ "stickyFor": 60 }), "ipam.stickyFor: 60"),
        (json!({ "sticky": "name", "stickyFor": 0 }), "ipam.stickyFor: 0"),
        (json!({ "sticky": "name", "stickyFor": "1h" }), "stickyFor"),
    ] {
        let network = Network::v4().with(&json!({ "ipam": ipam }));
        for error in [network.add_call(&pod).run(), network.status()] {
            let error = error.error();
            assert!(error.msg.contains(part), "{}", error.msg);
        }
    }
}

#[test]
fn a_network_that_spans_hosts() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(
        "/coreos.com/network/config",
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "host-gw"}}"#,
    );
    let ipam = json!({ "type": "weft-ipam", "sticky": "name", "etcd": { "endpoints": etcd.endpoints() } });
    let network = Network::new("pods", &[]).with(&json!({ "ipam": ipam, "isGateway": true }));
    let add = |args: &str| {
        let pod = Pod::new();
        let result = network.add_call(&pod).on(cluster.node(0)).args(args).run().result();
        (pod, ips(&result))
    };
    let (pod, first) = add(WEB);
    assert_eq!(first.len(), 2);
    network.del_call(&pod).on(cluster.node(0)).run().done();
    assert_ne!(add("").1, first);
    assert_eq!(add(WEB).1, first);
}
