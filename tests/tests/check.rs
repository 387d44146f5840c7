//! CHECK notices every promise that no longer holds, says which and what it found, and tolerates what others added.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, World, command};

#[path = "check/attributes.rs"]
mod attributes;

/// An attached container and what is needed to spoil it.
struct Attached {
    host: Host,
    pod: Pod,
    result: Value,
    network: Network,
}

impl Attached {
    fn new(network: Network) -> Self {
        let host = Host::new();
        let pod = Pod::new();
        let result = network.add(&pod);
        Self { host, pod, result, network }
    }

    /// The name of the host's end of the veth pair.
    fn veth(&self) -> &str {
        self.result["interfaces"][1]["name"].as_str().unwrap()
    }

    /// Runs a command line in the container.
    fn pod(&self, line: &str) {
        self.pod.command(line);
    }
}

fn network() -> Network {
    Network::dual().with(&json!({
        "ipMasq": true,
        "ipam": { "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "203.0.113.0/24", "gw": "10.88.0.9" }] },
    }))
}

/// A tampering: how a message names it, what it does, and the words that the error must have.
type Tampering = (&'static str, fn(&mut Attached), &'static [&'static str]);

/// Makes an attachment for each tampering, and expects CHECK to fail after it with these words, changing nothing.
fn assert_noticed(network: &Network, tamperings: &[Tampering]) {
    for (name, tamper, words) in tamperings {
        let mut attached = Attached::new(network.clone());
        attached.network.check(&attached.pod, &attached.result).done();
        tamper(&mut attached);
        let before = World::of(&attached.host, &[&attached.pod]);
        let reply = attached.network.check(&attached.pod, &attached.result);
        assert!(!reply.succeeded(), "CHECK did not notice: {name}");
        let error = reply.error();
        assert_eq!(error.code, 105, "{name}: {error:?}");
        error.assert_names(words);
        before.assert_unchanged(&attached.host, &[&attached.pod], &format!("CHECK after: {name}"));
    }
}

#[test]
fn the_containers_side() {
    assert_noticed(
        &network(),
        &[
            ("eth0 deleted", |it| it.pod("ip link delete eth0"), &["eth0"]),
            ("eth0 down", |it| it.pod("ip link set eth0 down"), &["eth0", "down"]),
            ("lo down", |it| it.pod("ip link set lo down"), &["lo is down"]),
            ("eth0 with another MTU", |it| it.pod("ip link set eth0 mtu 1300"), &["eth0", "1300", "1500"]),
            (
                "eth0 with another MAC",
                |it| it.pod("ip link set eth0 address 02:00:00:00:00:99"),
                &["02:00:00:00:00:99"],
            ),
            ("another interface named eth0", another_eth0, &["eth0"]),
            ("IPv4 address removed", |it| it.pod("ip addr del 10.88.0.2/24 dev eth0"), &["10.88.0.2/24"]),
            ("IPv6 address removed", |it| it.pod("ip addr del fd00:88::2/64 dev eth0"), &["fd00:88::2/64"]),
            ("another prefix length", another_prefix, &["10.88.0.2/24"]),
            ("IPv4 default route removed", |it| it.pod("ip route del default"), &["0.0.0.0/0"]),
            ("IPv6 default route removed", |it| it.pod("ip -6 route del default"), &["::/0"]),
            (
                "another gateway in the default route",
                |it| it.pod("ip route replace default via 10.88.0.77"),
                &["0.0.0.0/0", "10.88.0.1"],
            ),
            ("a route removed", |it| it.pod("ip route del 192.0.2.0/24"), &["192.0.2.0/24"]),
            (
                "another gateway in a route",
                |it| it.pod("ip route replace 203.0.113.0/24 via 10.88.0.77"),
                &["203.0.113.0/24", "10.88.0.9"],
            ),
        ],
    );
}

fn another_eth0(it: &mut Attached) {
    let mac = it.result["interfaces"][2]["mac"].as_str().unwrap().to_owned();
    it.pod("ip link delete eth0");
    it.pod(&format!("ip link add eth0 address {mac} type veth peer name other0"));
    it.pod("ip link set other0 up");
    it.pod("ip link set eth0 up");
    it.pod("ip addr add 10.88.0.2/24 dev eth0");
    it.pod("ip addr add fd00:88::2/64 dev eth0 nodad");
    it.pod("ip route add default via 10.88.0.1");
    it.pod("ip -6 route add default via fd00:88::1");
    it.pod("ip route add 192.0.2.0/24 via 10.88.0.1");
    it.pod("ip route add 203.0.113.0/24 via 10.88.0.9");
}

fn another_prefix(it: &mut Attached) {
    it.pod("ip addr add 10.88.0.2/16 dev eth0");
    it.pod("ip addr del 10.88.0.2/24 dev eth0");
    it.pod("ip route replace default via 10.88.0.1");
    it.pod("ip route replace 192.0.2.0/24 via 10.88.0.1");
    it.pod("ip route replace 203.0.113.0/24 via 10.88.0.9");
}

#[test]
fn the_hosts_side() {
    fn host(line: &str) {
        command(line);
    }
    assert_noticed(
        &network(),
        &[
            ("host end down", |it| host(&format!("ip link set {} down", it.veth())), &["down"]),
            (
                "host end off its bridge",
                |it| host(&format!("ip link set {} nomaster", it.veth())),
                &["weft0"],
            ),
            (
                "host end on another bridge",
                |it| {
                    host("ip link add other0 type bridge");
                    host(&format!("ip link set {} master other0", it.veth()));
                },
                &["weft0", "other0"],
            ),
            (
                "bridge with another MAC",
                |_| host("ip link set weft0 address 02:00:00:00:00:99"),
                &["weft0", "02:00:00:00:00:99"],
            ),
            ("bridge with another MTU", |_| host("ip link set weft0 mtu 1300"), &["weft0", "1300"]),
            ("bridge down", |_| host("ip link set weft0 down"), &["weft0", "down"]),
            ("bridge deleted", |_| host("ip link delete weft0"), &["weft0"]),
            ("IPv4 gateway removed", |_| host("ip addr del 10.88.0.1/24 dev weft0"), &["10.88.0.1", "weft0"]),
            (
                "IPv6 gateway removed",
                |_| host("ip addr del fd00:88::1/64 dev weft0"),
                &["fd00:88::1", "weft0"],
            ),
            ("IPv4 forwarding off", |it| it.host.set_sysctl("net/ipv4/ip_forward", "0"), &["orward"]),
            (
                "IPv6 forwarding off",
                |it| it.host.set_sysctl("net/ipv6/conf/all/forwarding", "0"),
                &["orward"],
            ),
            (
                "IPv4 forwarding of the bridge off",
                |it| it.host.set_sysctl("net/ipv4/conf/weft0/forwarding", "0"),
                &["ipv4/conf/weft0/forwarding is 0"],
            ),
            (
                "IPv6 forwarding of the bridge off",
                |it| it.host.set_sysctl("net/ipv6/conf/weft0/forwarding", "0"),
                &["ipv6/conf/weft0/forwarding is 0"],
            ),
            ("reservation removed", remove_reservation, &["weft-ipam", "holds none"]),
        ],
    );
}

fn remove_reservation(it: &mut Attached) {
    let conf = it.network.conf.to_string();
    weft_tests::Call::new("weft-ipam", "DEL", conf).pod(&it.pod).run().done();
}

#[test]
fn masquerade() {
    fn nft(line: &str) {
        command(&format!("nft {line}"));
    }
    assert_noticed(
        &network(),
        &[
            ("ruleset flushed", |_| nft("flush ruleset"), &["masq"]),
            ("table deleted", |_| nft("delete table inet weft"), &["masq"]),
            ("chain flushed", |_| nft("flush chain inet weft masq-dual"), &["masq-dual"]),
            ("a rule before", |_| nft("insert rule inet weft masq-dual accept"), &["masq-dual"]),
            ("a rule after", |_| nft("add rule inet weft masq-dual accept"), &["masq-dual"]),
            ("IPv4 set flushed", |_| nft("flush set inet weft masq-dual-v4"), &["10.88.0.0/24"]),
            ("IPv6 set flushed", |_| nft("flush set inet weft masq-dual-v6"), &["fd00:88::/64"]),
            (
                "table dormant",
                |_| nft("add table inet weft { flags dormant; }"),
                &["inet weft is dormant", "nft add table inet weft"],
            ),
            (
                "table of bridges dormant",
                |_| nft("add table bridge weft { flags dormant; }"),
                &["bridge weft is dormant"],
            ),
            (
                "one rule changed in place",
                |it| {
                    let table = command("nft -a list table inet weft");
                    let rule = table.lines().find(|line| line.contains("ip saddr")).unwrap();
                    let handle = rule.rsplit(' ').next().unwrap();
                    it.host.nft(&format!(
                        "replace rule inet weft masq-dual handle {handle} ip saddr @masq-dual-v4 oif \"lo\" masquerade"
                    ));
                },
                &["masq-dual"],
            ),
        ],
    );
}

#[test]
fn port_settings() {
    fn set(it: &Attached, setting: &str) {
        command(&format!("bridge link set dev {} {setting}", it.veth()));
    }
    let hairpin = network().with(&json!({ "hairpinMode": true, "portIsolation": true }));
    assert_noticed(
        &hairpin,
        &[
            (
                "hairpin off",
                |it| set(it, "hairpin off"),
                &["has hairpin off, isolated on", "instead of hairpin on, isolated on"],
            ),
            ("isolation off", |it| set(it, "isolated off"), &["has hairpin on, isolated off"]),
            ("disabled", |it| set(it, "state 0"), &["is disabled"]),
        ],
    );
    let promiscuous = network().with(&json!({ "promiscMode": true }));
    assert_noticed(
        &promiscuous,
        &[("promisc off", |_| drop(command("ip link set weft0 promisc off")), &["weft0", "romisc"])],
    );
}

#[test]
fn another_namespace_at_the_path() {
    let mut it = Attached::new(network());
    it.pod.replace();
    it.network.check(&it.pod, &it.result).error_code(105);
    it.pod.die();
    let error = it.network.check(&it.pod, &it.result).error();
    assert!([3, 4].contains(&error.code), "{error:?}");
}

#[test]
fn after_del_nothing_holds() {
    let it = Attached::new(network());
    it.network.del(&it.pod);
    it.network.check(&it.pod, &it.result).error_code(105);
}

#[test]
fn a_previous_result_is_required_and_believed() {
    let it = Attached::new(network());
    it.network.call("CHECK").pod(&it.pod).run().error_code(7).assert_names(&["prevResult"]);
    for (pointer, value) in [
        ("/interfaces/2/mac", json!("02:00:00:00:00:98")),
        ("/interfaces/2/mtu", json!(1280)),
        ("/ips/0/address", json!("10.88.0.44/24")),
        ("/ips/0/gateway", json!("10.88.0.254")),
        ("/routes/0/dst", json!("192.0.9.0/24")),
    ] {
        let mut previous = it.result.clone();
        *previous.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {}", it.result)) = value;
        let reply = it.network.check(&it.pod, &previous);
        assert!(!reply.succeeded(), "CHECK believed a result that is not so: {pointer}");
        reply.error_code(105);
    }
    it.network.check(&it.pod, &it.result).done();
}

/// Plugins that come later in a chain add things, and report some of them.
#[test]
fn additions_by_later_plugins_are_tolerated() {
    let it = Attached::new(network());
    it.pod("ip addr add 192.0.2.77/32 dev eth0");
    it.pod("ip route add 198.18.0.0/15 via 10.88.0.5");
    it.pod("ip link add extra0 type bridge");
    it.pod("ip link set eth0 txqueuelen 500");
    it.pod("ip link set eth0 address 02:00:00:00:00:55");
    command("ip addr add 10.88.0.253/24 dev weft0");
    command("ip link add ifb-extra type ifb");
    command(&format!("tc qdisc add dev {} root tbf rate 10mbit burst 10kb latency 50ms", it.veth()));
    it.host.nft("table ip foreign { chain c { type filter hook forward priority 0; }; }");
    command("nft add chain inet weft others");
    let mut previous = it.result.clone();
    previous["interfaces"][2]["mac"] = json!("02:00:00:00:00:55");
    previous["interfaces"].as_array_mut().unwrap().push(json!({ "name": "ifb-extra" }));
    previous["ips"].as_array_mut().unwrap().push(json!({ "address": "192.0.2.77/32", "interface": 2 }));
    previous["routes"].as_array_mut().unwrap().push(json!({ "dst": "198.18.0.0/15", "gw": "10.88.0.5" }));
    previous["dns"] = json!({ "nameservers": ["192.0.2.1"] });
    it.network.check(&it.pod, &previous).done();
}
