//! Traffic out of a network has the host's address, traffic within it its own; the rules are one network's.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Outside, Pod, World, command, ips, masqueraded as network};

/// The source address that the outside sees of a container's connection, for each family.
fn seen(pod: &Pod, outside: &Outside) -> Vec<IpAddr> {
    let peers = Outside::PEER.map(|address| address.parse::<IpAddr>().unwrap());
    let source = |peer| {
        let listener = outside.listen(peer);
        let target = listener.local_addr().unwrap();
        let _connection =
            pod.connect(target).unwrap_or_else(|error| panic!("{} to {target}: {error}", pod.id));
        listener.accept().unwrap().1.ip()
    };
    peers.into_iter().map(source).collect()
}

fn host_addresses() -> Vec<IpAddr> {
    Outside::HOST.map(|address| address.parse().unwrap()).to_vec()
}

#[test]
fn the_outside_sees_the_hosts_address() {
    let host = Host::new();
    let outside = host.outside();
    let pod = Pod::new();
    network().add(&pod);
    assert_eq!(seen(&pod, &outside), host_addresses());
    pod.assert_reaches(Outside::PEER[0].parse::<IpAddr>().unwrap());
    pod.assert_reaches(Outside::PEER[1].parse::<IpAddr>().unwrap());
}

#[test]
fn without_the_key_the_outside_sees_the_container() {
    let host = Host::new();
    let outside = host.outside();
    let pod = Pod::new();
    let result = Network::dual().add(&pod);
    outside.inside(|| {
        command(&format!("ip route add 10.88.0.0/24 via {}", Outside::HOST[0]));
        command(&format!("ip -6 route add fd00:88::/64 via {}", Outside::HOST[1]));
    });
    assert_eq!(seen(&pod, &outside), ips(&result));
    assert!(!host.ruleset().contains("masq"));
}

/// Also when bridged frames pass the host's rules, as with br_netfilter, and between two subnets of the network.
#[test]
fn within_the_network_addresses_stay() {
    let host = Host::new();
    let subnets = ["10.88.0.0/24", "10.89.0.0/24", "fd00:88::/64", "fd00:89::/64"];
    let two_subnets = Network::new("wide", &subnets).with(&json!({ "ipMasq": true }));
    let (one, two) = (Pod::new(), Pod::new());
    let first = two_subnets.add(&one);
    let second = two_subnets.add(&two);
    // Routed by the host from one subnet to the other.
    for line in ["addr del 10.89.0.2/24 dev eth0", "addr del fd00:89::2/64 dev eth0"] {
        one.command(&format!("ip {line}"));
    }
    for line in ["addr del 10.88.0.3/24 dev eth0", "addr del fd00:88::3/64 dev eth0"] {
        two.command(&format!("ip {line}"));
    }
    for (near, far) in [(0, 1), (2, 3)] {
        let gateway =
            |result: &Value, number: usize| result["ips"][number]["gateway"].as_str().unwrap().to_owned();
        one.command(&format!("ip route add {} via {}", subnets[far], gateway(&first, near)));
        two.command(&format!("ip route add {} via {}", subnets[near], gateway(&second, far)));
        let listener = two.listen(ips(&second)[far]);
        let _connection = one.connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), ips(&first)[near]);
    }
    drop(host);
}

/// A receiver tells senders apart by their addresses.
#[test]
fn multicast_is_left_alone() {
    let _host = Host::new();
    let pod = Pod::new();
    network().add(&pod);
    let (v4, v6) = (Ipv4Addr::new(239, 1, 2, 3), Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 7));
    command("ip route add 239.0.0.0/8 dev weft0");
    command("ip -6 route add ff15::/16 dev weft0 table local");
    let receiver = pod.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:5353").unwrap();
        socket.join_multicast_v4(&v4, &Ipv4Addr::new(10, 88, 0, 2)).unwrap();
        socket
    });
    let receiver6 = pod.inside(|| {
        let socket = UdpSocket::bind("[::]:5354").unwrap();
        // The container has one interface.
        socket.join_multicast_v6(&v6, 0).unwrap();
        socket
    });
    let groups: [SocketAddr; 2] = [(v4, 5353).into(), (v6, 5354).into()];
    for ((receiver, group), own) in
        [receiver, receiver6].iter().zip(groups).zip(["10.88.0.1:6000", "[fd00:88::1]:6000"])
    {
        receiver.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        UdpSocket::bind(own).unwrap().send_to(b"hello", group).unwrap();
        let (_, source) = receiver.recv_from(&mut [0; 16]).expect("the group gets the packet");
        assert_eq!(source, own.parse().unwrap(), "with its address and port");
    }
}

#[test]
fn rules_are_per_network_never_per_container() {
    let host = Host::new();
    // The guard has elements of each container.
    let network = network().with(&json!({ "guard": false }));
    let pods: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
    network.add(&pods[0]);
    let one = host.ruleset();
    pods[1..].iter().for_each(|pod| drop(network.add(pod)));
    assert_eq!(host.ruleset(), one);
    pods.iter().for_each(|pod| network.del(pod));
    assert_eq!(host.ruleset(), one, "other tools may rely on the table");
    for part in ["table inet weft", "masq-dual-v4", "10.88.0.0/24", "fd00:88::/64", "masquerade fully-random"]
    {
        assert!(one.contains(part), "no {part} in\n{one}");
    }
}

#[test]
fn foreign_rules_stay_byte_for_byte() {
    let host = Host::new();
    host.nft(
        "table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; \
         ip saddr 172.17.0.0/16 oifname != \"docker0\" counter masquerade; }; }\n\
         table inet firewalld { set s { type ipv4_addr; flags interval; elements = { 10.88.0.0/16 }; }\n\
         chain c { type filter hook forward priority 10; ip saddr @s accept comment \"mine\"; }; }\n\
         table inet weft { chain someone { ip saddr 10.1.1.1 counter drop; }; }",
    );
    let tables = ["ip nat", "inet firewalld"];
    // With handles: not even deleted and made again.
    let text = || tables.map(|table| command(&format!("nft -a -s list table {table}"))).concat();
    let chain = || command("nft -a -s list chain inet weft someone");
    let before = (text(), chain());
    let network = network();
    let pod = Pod::new();
    let result = network.add(&pod);
    assert_eq!((text(), chain()), before, "after ADD");
    network.check(&pod, &result).done();
    network.del(&pod);
    assert_eq!((text(), chain()), before, "after DEL");
    network.gc(&[]);
    assert_eq!((text(), chain()), before, "after GC");
}

#[test]
fn what_was_flushed_is_told_and_healed() {
    let host = Host::new();
    let outside = host.outside();
    let network = network().with(&json!({ "guard": false }));
    let pod = Pod::new();
    let result = network.add(&pod);
    // Objects are made anew in another order.
    let objects = || {
        let mut lines: Vec<String> = host.ruleset().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let whole = objects();
    for tampering in [
        "flush ruleset",
        "delete table inet weft",
        "flush table inet weft",
        "flush set inet weft masq-dual-v4",
        "add rule inet weft masq-dual accept",
        "insert rule inet weft masq-dual accept",
    ] {
        command(&format!("nft {tampering}"));
        network.check(&pod, &result).error_code(105).assert_names(&["masq"]);
        let next = Pod::new();
        network.add(&next);
        assert_eq!(objects(), whole, "{tampering}");
        network.check(&pod, &result).done();
        assert_eq!(seen(&pod, &outside), host_addresses(), "{tampering}");
        network.del(&next);
    }
}

/// Whoever comes next to any network puts back what all of them have masqueraded.
#[test]
fn a_flush_is_healed_for_other_networks_too() {
    let host = Host::new();
    let outside = host.outside();
    let network = network().with(&json!({ "noMasquerade": ["203.0.113.0/24"] }));
    let other = Network::new("other", &["10.2.0.0/24"]).with(&json!({ "bridge": "other0" }));
    let (pod, next) = (Pod::new(), Pod::new());
    let result = network.add(&pod);
    command("nft flush ruleset");
    network.check(&pod, &result).error_code(105);
    other.add(&next);
    network.check(&pod, &result).done();
    assert_eq!(seen(&pod, &outside), host_addresses());
}

/// An ADD that fails after it has put back what a flush took leaves that to its owners, and takes its own.
#[test]
fn an_add_that_fails_after_a_flush_takes_back_its_own_masquerade_alone() {
    let host = Host::new();
    let outside = host.outside();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let with_port =
        |network: Network| network.with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
    let holders = with_port(network());
    let strangers = with_port(
        Network::new("other", &["10.2.0.0/24"])
            .with(&json!({ "bridge": "other0", "ipMasq": true, "isDefaultGateway": true })),
    );
    let (holder, stranger, neighbour) = (Pod::new(), Pod::new(), Pod::new());
    let result = holders.add(&holder);
    for (failing, pod) in [(&strangers, &stranger), (&holders, &neighbour)] {
        command("nft flush ruleset");
        holders.check(&holder, &result).error_code(105);
        // By then everything is back: it is the rules that say who has the port.
        failing.add_call(pod).run().error_code(103).assert_names(&["8080", &holder.id]);
        holders.check(&holder, &result).done();
        assert_eq!(seen(&holder, &outside), host_addresses(), "{} failed", failing.name());
        assert!(!host.ruleset().contains("masq-other"), "its own is gone: {}", host.ruleset());
    }
}

/// Records of containers from before know nothing of what the network's configuration says by now.
#[test]
fn new_exemptions_outlast_old_records() {
    let _host = Host::new();
    let (pod, next) = (Pod::new(), Pod::new());
    network().add(&pod);
    // The host's first port makes rules for which all records are read.
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let now = network().with(&json!({
        "noMasquerade": ["203.0.113.0/24"], "runtimeConfig": { "portMappings": [mapping] },
    }));
    let result = now.add(&next);
    now.check(&next, &result).done();
}

/// It is the network's: whoever comes by a configuration without it ends it for all, and nobody puts it back from what older containers
/// have on file.
#[test]
fn it_ends_with_the_configuration_that_asked_for_it() {
    let host = Host::new();
    let outside = host.outside();
    outside.inside(|| {
        command(&format!("ip route add 10.88.0.0/24 via {}", Outside::HOST[0]));
        command(&format!("ip -6 route add fd00:88::/64 via {}", Outside::HOST[1]));
    });
    let (old, new, third) = (Pod::new(), Pod::new(), Pod::new());
    let flush = |beside: &str| {
        command("nft flush ruleset");
        let other = Network::new(beside, &["10.2.0.0/24"]).with(&json!({ "bridge": "other0" }));
        let pod = Pod::new();
        other.add(&pod);
        other.del(&pod);
    };
    let (with, without) = (network(), Network::dual());
    let first = with.add(&old);
    let result = without.add(&new);
    for (pod, result) in [(&new, &result), (&old, &first)] {
        assert_eq!(seen(pod, &outside), ips(result));
        without.check(pod, result).done();
    }
    with.check(&old, &first).error_code(105).assert_names(&["masq-dual"]);
    flush("one");
    assert!(!host.ruleset().contains("masq"), "{}", host.ruleset());
    let without_it = result;
    let result = with.add(&third);
    assert_eq!(seen(&third, &outside), host_addresses());
    without.check(&new, &without_it).error_code(105).assert_names(&["ipMasq is false"]);
    flush("two");
    with.check(&third, &result).done();
    assert_eq!(seen(&old, &outside), host_addresses());
}

#[test]
fn two_networks_do_not_meet() {
    let host = Host::new();
    let outside = host.outside();
    let networks = [
        network(),
        Network::new("other", &["10.2.0.0/24", "fd00:2::/64"])
            .with(&json!({ "bridge": "other0", "ipMasq": true, "isDefaultGateway": true })),
    ];
    let (one, two) = (Pod::new(), Pod::new());
    networks[0].add(&one);
    let result = networks[1].add(&two);
    let before = World::of(&host, &[&two]);
    assert_eq!(seen(&one, &outside), host_addresses());
    networks[0].del(&one);
    networks[0].gc(&[]);
    assert_eq!(before.matching("masq-other").len(), World::of(&host, &[&two]).matching("masq-other").len());
    networks[1].check(&two, &result).done();
    assert_eq!(seen(&two, &outside), host_addresses());
}
