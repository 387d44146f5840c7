//! Interfaces of other kinds than a port of the reference bridge. They are made here as those plugins make them.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Outside, Pod, World, command};

use crate::{answers, behind, port_alone, server, wishes};

/// What `ptp` does for `10.SUBNET.0.NUMBER`: a pair whose host's end has the gateway's address and is no port of anything.
pub(crate) fn routed(pod: &Pod, (subnet, number): (u8, u8)) -> Value {
    let (netns, link) = (pod.path().display(), format!("ptp{subnet}-{number}"));
    let (own, gateway) = (format!("10.{subnet}.0.{number}"), format!("10.{subnet}.0.1"));
    command(&format!("ip link add {link} type veth peer name eth0 netns {netns}"));
    command(&format!("ip addr add {gateway}/32 dev {link}"));
    command(&format!("ip link set {link} up"));
    command(&format!("ip route add {own}/32 dev {link}"));
    command("sysctl -qw net.ipv4.ip_forward=1");
    for line in [
        &format!("ip addr add {own}/24 dev eth0"),
        "ip link set eth0 up",
        &format!("ip route del 10.{subnet}.0.0/24 dev eth0"),
        &format!("ip route add {gateway} dev eth0"),
        &format!("ip route add 10.{subnet}.0.0/24 via {gateway}"),
        &format!("ip route add default via {gateway}"),
    ] {
        pod.command(line);
    }
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": link }, { "name": "eth0", "sandbox": pod.path() }],
        "ips": [{ "interface": 1, "address": format!("{own}/24"), "gateway": gateway }],
        "routes": [{ "dst": "0.0.0.0/0" }],
    })
}

/// What Calico does, and for the interfaces also AWS' plugin for VPCs: single addresses, and default routes to a next hop that stands for
/// the pair's other end. Their results tell of no route, and Calico's of the host's end alone.
fn routed_to_the_pair(pod: &Pod) -> Value {
    let (netns, mac) = (pod.path().display(), "ee:ee:ee:ee:ee:ee");
    command(&format!("ip link add cali1 address {mac} type veth peer name eth0 netns {netns}"));
    command(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.cali1.accept_dad=0",
    );
    command("ip link set cali1 up");
    pod.command("sysctl -qw net.ipv6.conf.eth0.accept_dad=0");
    pod.command("ip link set eth0 up");
    for (own, next) in [("10.94.0.2/32", "169.254.1.1"), ("fd00:94::2/128", "fe80::1")] {
        command(&format!("ip route add {own} dev cali1"));
        pod.command(&format!("ip addr add {own} dev eth0"));
        pod.command(&format!("ip route add {next} dev eth0"));
        pod.command(&format!("ip neigh add {next} lladdr {mac} dev eth0 nud permanent"));
        pod.command(&format!("ip route add default via {next} dev eth0"));
    }
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "cali1" }],
        "ips": [{ "address": "10.94.0.2/32" }, { "address": "fd00:94::2/128" }],
    })
}

/// What `macvlan` does: an interface above one of the host, which is no other end of it.
pub(crate) fn macvlan(pod: &Pod) -> Value {
    command("ip link add parent0 type veth peer name parent1");
    command("ip link set parent0 up");
    command(&format!(
        "ip link add link parent0 name eth0 netns {} type macvlan mode bridge",
        pod.path().display()
    ));
    pod.command("ip addr add 10.95.0.2/24 dev eth0");
    pod.command("ip link set eth0 up");
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "parent0" }, { "name": "eth0", "sandbox": pod.path() }],
        "ips": [{ "interface": 1, "address": "10.95.0.2/24" }],
    })
}

#[test]
fn a_pair_without_a_bridge() {
    let host = Host::new();
    let pod = Pod::new();
    let previous = routed(&pod, (96, 2));
    let network = behind(&previous, &wishes());
    network.add(&pod);
    network.del(&pod);
    let before = World::of(&host, &[&pod]);
    let result = network.add(&pod);
    assert_eq!(result, previous);
    let server = server(&pod);
    assert!(answers(&server, host.netns(), "10.96.0.1"));
    assert!(answers(&server, host.netns(), "127.0.0.1"), "by the pair's own link");
    network.check(&pod, &result).done();
    network.del(&pod);
    // The link is the container's own, so nothing of it may stay.
    before.assert_unchanged(&host, &[&pod], "DEL");
}

#[test]
fn a_result_that_names_the_hosts_end_alone() {
    let host = Host::new();
    let pod = Pod::new();
    let previous = routed_to_the_pair(&pod);
    let network = behind(&previous, &wishes());
    network.add(&pod);
    network.del(&pod);
    let before = World::of(&host, &[&pod]);
    let result = network.add(&pod);
    assert_eq!(result, previous);
    let server = server(&pod);
    command("ip addr add 198.51.100.1/32 dev lo");
    assert!(answers(&server, host.netns(), "198.51.100.1"));
    let queue = command("tc qdisc show dev cali1");
    assert!(queue.contains("tbf 1: root") && queue.contains("rate 10Mbit"), "{queue}");
    network.check(&pod, &result).done();
    network.del(&pod);
    command("ip addr del 198.51.100.1/32 dev lo");
    before.assert_unchanged(&host, &[&pod], "DEL");
}

/// By which routes the container answers is asked of the container.
#[test]
fn a_result_without_routes_hides_no_client() {
    let host = Host::new();
    let outside = host.outside();
    let pod = Pod::new();
    let calico = routed_to_the_pair(&pod);
    let sandboxed = json!([{ "name": "cali1" }, { "name": "eth0", "sandbox": pod.path() }, { "name": "dummy1", "sandbox": "5" }]);
    let mut aws = calico.clone();
    aws["interfaces"] = sandboxed;
    for ip in aws["ips"].as_array_mut().unwrap() {
        ip["interface"] = json!(1);
    }
    let mirror = Mirror::on(&pod, 80);
    for previous in [aws, calico] {
        let network = behind(&previous, &port_alone());
        let result = network.add(&pod);
        for (at, peer) in Outside::HOST.iter().zip(Outside::PEER) {
            let peer: IpAddr = peer.parse().unwrap();
            assert_eq!(mirror.seen(&outside, (at.parse().unwrap(), 8080)), Some(peer), "{previous}");
        }
        network.check(&pod, &result).done();
        command("find /run/weft -path */attachments/* -type f -delete");
        network.check(&pod, &result).done();
        network.del(&pod);
    }
}

#[test]
fn without_another_end_there_are_ports_but_no_limits() {
    let host = Host::new();
    let pod = Pod::new();
    let previous = macvlan(&pod);
    let before = World::of(&host, &[&pod]);
    let error = behind(&previous, &wishes()).add_call(&pod).run().error_code(7);
    assert!(error.msg.contains("macvlan") && error.msg.contains("eth0"), "{}", error.msg);
    before.assert_unchanged(&host, &[&pod], "limits behind macvlan");
    let network = behind(&previous, &port_alone());
    let result = network.add(&pod);
    assert!(host.ruleset().contains("10.95.0.2 . 80"), "{}", host.ruleset());
    network.check(&pod, &result).done();
    network.del(&pod);
    assert!(!host.ruleset().contains("10.95.0.2"), "{}", host.ruleset());
}
