//! ADD gives a container its network: addresses, routes, gateway, in every combination of families.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, World, command, ip, ips, json};

#[path = "add/advertised.rs"]
mod advertised;
#[path = "add/defaults.rs"]
mod defaults;

#[test]
fn ipv4_pods_reach_the_gateway_and_each_other() {
    let host = Host::new();
    let network = Network::v4();
    let (one, two) = (Pod::new(), Pod::new());
    let (first, second) = (network.add(&one), network.add(&two));

    assert_eq!(one.addresses("eth0"), ["10.88.0.2/24"]);
    assert_eq!(host.addresses("weft0"), ["10.88.0.1/24"]);
    one.assert_reaches([10, 88, 0, 1]);
    one.assert_reaches(ip(&second));
    two.assert_reaches(ip(&first));
    assert_eq!(host.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "0", "nothing was said of IPv6");
    assert_eq!(one.link("lo").unwrap()["flags"], json!(["LOOPBACK", "UP", "LOWER_UP"]));
}

/// IPv6 chatter flooded to every port is what makes a large bridge slow.
#[test]
fn a_network_without_ipv6_has_none_on_its_interfaces() {
    let host = Host::new();
    let network = Network::v4();
    let pod = Pod::new();
    let result = network.add(&pod);
    let veth = result["interfaces"][1]["name"].as_str().unwrap();

    assert_eq!(pod.json("ip -j -6 addr show dev eth0"), json!([]));
    assert_eq!(json(&format!("ip -j -6 addr show dev {veth}")), json!([]));
    assert_eq!(host.ports("weft0"), [veth]);
}

/// The first packet right after ADD's return counts: no duplicate address detection is waited for or pending.
#[test]
fn dual_stack_is_usable_at_return() {
    let host = Host::new();
    let network = Network::dual();
    let (one, two) = (Pod::new(), Pod::new());
    network.add(&one);
    one.assert_reaches_at_once("fd00:88::1".parse::<IpAddr>().unwrap());
    let second = network.add(&two);

    for address in ips(&second) {
        one.assert_reaches_at_once(address);
        let listener = two.listen(address);
        one.connect(listener.local_addr().unwrap()).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    assert_eq!(two.addresses("eth0"), ["10.88.0.3/24", "fd00:88::3/64"]);
    assert_eq!(host.addresses("weft0"), ["10.88.0.1/24", "fd00:88::1/64"]);
    assert_eq!(host.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
    let setting = two.command("cat /proc/sys/net/ipv6/conf/eth0/accept_ra");
    assert_eq!(setting.trim(), "0", "a container's router is its gateway, not whoever advertises itself");
}

#[test]
fn ipv6_only() {
    let host = Host::new();
    let network = Network::new("six", &["fd00:66::/64"]).with(&json!({ "isDefaultGateway": true }));
    let (one, two) = (Pod::new(), Pod::new());
    network.add(&one);
    let second = network.add(&two);

    one.assert_reaches_at_once("fd00:66::1".parse::<IpAddr>().unwrap());
    one.assert_reaches_at_once(ip(&second));
    assert_eq!(one.json("ip -j -4 addr show dev eth0"), json!([]));
    assert_eq!(routes(&one, "-6", "default"), [json!("fd00:66::1")]);
    assert_eq!(host.sysctl("net/ipv4/ip_forward"), "0", "nothing was said of IPv4");
    assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
    network.check(&two, &second).done();
}

#[test]
fn layer_2_only() {
    let host = Host::new();
    let network = Network::new("flat", &[]);
    let (one, two) = (Pod::new(), Pod::new());
    let result = network.add(&one);
    network.add(&two);

    assert_eq!(result.get("ips").and_then(Value::as_array).map_or(0, Vec::len), 0);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(host.addresses("weft0"), Vec::<String>::new());
    assert_eq!(host.sysctl("net/ipv4/ip_forward"), "0");
    one.command("ip addr add 192.0.2.1/24 dev eth0");
    two.command("ip addr add 192.0.2.2/24 dev eth0");
    one.assert_reaches([192, 0, 2, 2]);
    network.check(&one, &result).done();
    network.del(&one);
    network.del(&two);
    assert_eq!(host.ports("weft0"), Vec::<String>::new());
}

#[test]
fn several_addresses_of_one_family() {
    let _host = Host::new();
    let network = Network::new("many", &["10.88.0.0/24", "10.89.0.0/24", "fd00:88::/64"]);
    let pod = Pod::new();
    let result = network.add(&pod);

    assert_eq!(pod.addresses("eth0"), ["10.88.0.2/24", "10.89.0.2/24", "fd00:88::2/64"]);
    for gateway in ["10.88.0.1", "10.89.0.1", "fd00:88::1"] {
        pod.assert_reaches(gateway.parse::<IpAddr>().unwrap());
    }
    let gateways: Vec<&Value> = result["ips"].as_array().unwrap().iter().map(|ip| &ip["gateway"]).collect();
    assert_eq!(gateways, ["10.88.0.1", "10.89.0.1", "fd00:88::1"]);
    network.check(&pod, &result).done();
}

#[test]
fn routes_as_given() {
    let _host = Host::new();
    let routes = json!([
        { "dst": "192.0.2.0/24" },
        { "dst": "198.51.100.0/24", "gw": "10.88.0.9" },
        { "dst": "203.0.113.0/24", "gw": "10.88.0.9", "mtu": 1400, "advmss": 1360, "priority": 50, "table": 99 },
        { "dst": "2001:db8::/32" },
    ]);
    let network =
        Network::new("net", &["10.88.0.0/24", "fd00:88::/64"]).with(&json!({ "ipam": { "routes": routes } }));
    let pod = Pod::new();
    let result = network.add(&pod);

    assert_eq!(self::routes(&pod, "-4", "192.0.2.0/24"), ["10.88.0.1"], "without gw: the subnet's gateway");
    assert_eq!(self::routes(&pod, "-4", "198.51.100.0/24"), ["10.88.0.9"]);
    assert_eq!(self::routes(&pod, "-6", "2001:db8::/32"), ["fd00:88::1"]);
    let special = &pod.json("ip -j -4 route show table 99")[0];
    assert_eq!(special["metric"], 50);
    assert_eq!(special["metrics"][0], json!({ "mtu": 1400, "advmss": 1360 }));
    assert_eq!(self::routes(&pod, "-4", "default"), Vec::<Value>::new(), "nobody asked for a default route");
    assert_eq!(result["routes"], routes);
    network.check(&pod, &result).done();
}

#[test]
fn default_routes_come_once() {
    let _host = Host::new();
    // The IPAM plugin gives a default route of its own for IPv4: it is taken, not doubled.
    let network = Network::dual().with(&json!({ "ipam": { "routes": [{ "dst": "0.0.0.0/0" }] } }));
    let pod = Pod::new();
    let result = network.add(&pod);

    assert_eq!(routes(&pod, "-4", "default"), ["10.88.0.1"]);
    assert_eq!(routes(&pod, "-6", "default"), ["fd00:88::1"]);
    assert_eq!(result["routes"].as_array().unwrap().len(), 2, "{result}");
}

/// As runtimes attach a container to several networks, each of which would be its way out: the first one stays it.
#[test]
fn default_routes_of_two_networks() {
    let host = Host::new();
    let other = Network::new("other", &["10.2.0.0/24", "fd00:2::/64"])
        .with(&json!({ "bridge": "other0", "isDefaultGateway": true }));
    let pod = Pod::new();
    let first = Network::dual().add(&pod);
    let second = other.add_call(&pod).ifname("eth1").run().result();
    assert_eq!(routes(&pod, "-4", "default"), ["10.88.0.1", "10.2.0.1"]);
    assert_eq!(routes(&pod, "-6", "default"), ["fd00:88::1", "fd00:2::1"]);
    let metrics: Vec<&Value> =
        second["routes"].as_array().unwrap().iter().map(|route| &route["priority"]).collect();
    assert_eq!(metrics, [1, 1025]);
    Network::dual().check(&pod, &first).done();
    other.check_call(&pod, &second).ifname("eth1").run().done();
    other.del_call(&pod).ifname("eth1").run().done();
    assert_eq!(routes(&pod, "-4", "default"), ["10.88.0.1"]);
    assert_eq!(routes(&pod, "-6", "default"), ["fd00:88::1"]);
    Network::dual().check(&pod, &first).done();
    drop(host);
}

#[test]
fn without_a_gateway_the_bridge_has_no_address() {
    let host = Host::new();
    let network = Network::v4().with(&json!({ "isGateway": false, "isDefaultGateway": false }));
    let (one, two) = (Pod::new(), Pod::new());
    network.add(&one);
    let second = network.add(&two);

    assert_eq!(host.addresses("weft0"), Vec::<String>::new());
    assert_eq!(host.sysctl("net/ipv4/ip_forward"), "0");
    one.assert_reaches(ip(&second));
}

#[test]
fn static_addresses_by_every_way_of_asking() {
    let _host = Host::new();
    let network = Network::v4();
    let (one, two, three, four) = (Pod::new(), Pod::new(), Pod::new(), Pod::new());
    let capability = network.clone().with(&json!({ "runtimeConfig": { "ips": ["10.88.0.50/24"] } }));
    assert_eq!(ip(&capability.add(&one)).to_string(), "10.88.0.50");
    let convention = network.clone().with(&json!({ "args": { "cni": { "ips": ["10.88.0.60"] } } }));
    assert_eq!(ip(&convention.add(&two)).to_string(), "10.88.0.60");
    let result =
        network.add_call(&three).args("IgnoreUnknown=1;IP=10.88.0.70;K8S_POD_NAME=three;X=y").run().result();
    assert_eq!(ip(&result).to_string(), "10.88.0.70");

    let before = World::of(&_host, &[&four]);
    let error = capability.add_call(&four).run().error();
    error.assert_names(&["10.88.0.50", &one.id]);
    let outside = network.clone().with(&json!({ "runtimeConfig": { "ips": ["10.99.0.1/24"] } }));
    outside.add_call(&four).run().error().assert_names(&["10.99.0.1"]);
    for reserved in ["10.88.0.0", "10.88.0.1", "10.88.0.255"] {
        let asked = network.clone().with(&json!({ "runtimeConfig": { "ips": [reserved] } }));
        asked.add_call(&four).run().error().assert_names(&[reserved]);
    }
    before.assert_unchanged(&_host, &[&four], "refused requests");
}

#[test]
fn two_networks_on_one_host() {
    let host = Host::new();
    let red = Network::new("red", &["10.1.0.0/24"]).with(&json!({ "bridge": "red0" }));
    let blue = Network::new("blue", &["10.2.0.0/24"]).with(&json!({ "bridge": "blue0" }));
    let (one, two) = (Pod::new(), Pod::new());
    red.add(&one);
    blue.add(&two);

    assert_eq!(host.addresses("red0"), ["10.1.0.1/24"]);
    assert_eq!(host.addresses("blue0"), ["10.2.0.1/24"]);
    assert_eq!((host.ports("red0").len(), host.ports("blue0").len()), (1, 1));
    one.assert_reaches([10, 1, 0, 1]);
    two.assert_reaches([10, 2, 0, 1]);
    red.del(&one);
    assert_eq!(host.ports("blue0").len(), 1);
    two.assert_reaches([10, 2, 0, 1]);
}

#[test]
fn two_networks_on_one_bridge() {
    let host = Host::new();
    let one_network = Network::new("one", &["10.1.0.0/24"]);
    let other_network = Network::new("other", &["10.2.0.0/24"]);
    let (one, other) = (Pod::new(), Pod::new());
    let first = one_network.add(&one);
    let second = other_network.add(&other);

    let mut addresses = host.addresses("weft0");
    addresses.sort();
    assert_eq!(addresses, ["10.1.0.1/24", "10.2.0.1/24"]);
    one.assert_reaches([10, 1, 0, 1]);
    other.assert_reaches([10, 2, 0, 1]);
    one_network.check(&one, &first).done();
    other_network.check(&other, &second).done();
    one_network.gc(&[]);
    other_network.check(&other, &second).done();
}

/// A network's name is a directory's: none may be the name of a file that Weft keeps beside it, or in another network's.
#[test]
fn networks_of_any_name() {
    let host = Host::new();
    let boot = host.sysctl("kernel/random/boot_id");
    let names = [
        "lock",
        "net",
        "agent.lock",
        "hostport",
        "ipam",
        "attachments",
        "lease.json",
        "last.0",
        "weft0",
        "v4",
        "net-v4",
        &boot,
        &"n".repeat(200),
    ];
    let networks = names.iter().enumerate().map(|(number, name)| {
        // Host ports have a lock of their own.
        let port = json!([{ "hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp" }]);
        Network::new(name, &[&format!("10.{number}.0.0/24")])
            .with(&json!({ "ipMasq": true, "runtimeConfig": { "portMappings": port } }))
    });
    let networks: Vec<Network> = networks.collect();
    // Container IDs have no greatest length; a file's name has 255 bytes at most.
    let pods: Vec<Pod> =
        (10..10 + names.len()).map(|number| Pod::named(&format!("{number:0>250}"))).collect();
    // Also as the first one of a host.
    networks[0].add(&pods[0]);
    networks[0].del(&pods[0]);
    networks[0].gc(&[]);
    assert_eq!(command("find /run/weft -type f -not -name lock -not -name .lock -not -name last.0"), "");
    let results: Vec<Value> = networks.iter().zip(&pods).map(|(network, pod)| network.add(pod)).collect();
    for ((network, pod), result) in networks.iter().zip(&pods).zip(&results) {
        network.check(pod, result).done();
        network.del(pod);
        network.gc(&[]);
    }
    assert_eq!(host.ports("weft0"), [""; 0]);
}

#[test]
fn two_interfaces_in_one_container() {
    let host = Host::new();
    let network = Network::v4().with(&json!({ "isDefaultGateway": false, "ipMasq": true }));
    let other = Network::new("other", &["10.2.0.0/24"]).with(&json!({ "bridge": "other0", "ipMasq": true }));
    let pod = Pod::new();
    let results = [
        network.add(&pod),
        network.add_call(&pod).ifname("eth1").run().result(),
        other.add_call(&pod).ifname("net1").run().result(),
    ];

    assert_eq!(pod.addresses("eth0"), ["10.88.0.2/24"]);
    assert_eq!(pod.addresses("eth1"), ["10.88.0.3/24"]);
    assert_eq!(pod.addresses("net1"), ["10.2.0.2/24"]);
    network.del_call(&pod).ifname("eth1").run().done();
    assert!(pod.link("eth1").is_none());
    assert_eq!(host.ports("weft0").len(), 1);
    network.check(&pod, &results[0]).done();
    other.check_call(&pod, &results[2]).ifname("net1").run().done();
    pod.assert_reaches([10, 2, 0, 1]);
}

#[test]
fn a_namespace_may_be_any_path() {
    let _host = Host::new();
    let pod = Pod::new();
    let network = Network::v4();
    let path = pod.netns().path();
    let result = network.add_call(&pod).env("CNI_NETNS", &path).run().result();
    assert_eq!(result["interfaces"][2]["sandbox"].as_str(), path.to_str());
    // Another path to the same namespace, as after a restart of the runtime.
    network.check(&pod, &result).done();
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
}

/// Also where somebody made the bridge without a word about that: the kernel would give it the lowest of its ports' addresses.
#[test]
fn the_bridge_keeps_its_mac_address() {
    for of_somebody in [false, true] {
        let host = Host::new();
        if of_somebody {
            command("ip link add weft0 type bridge");
        }
        let mac = || host.link("weft0").map(|link| link["address"].clone());
        let before = mac();
        let network = Network::v4();
        let pods: Vec<Pod> = (0..6).map(|_| Pod::new()).collect();
        network.add(&pods[0]);
        let kept = before.or_else(mac);
        for pod in &pods[1..] {
            let result = network.add(pod);
            assert_eq!(mac(), kept);
            assert_eq!(Some(&result["interfaces"][0]["mac"]), kept.as_ref());
        }
        pods.iter().for_each(|pod| network.del(pod));
        assert_eq!(mac(), kept);
    }
}

#[test]
fn state_may_be_elsewhere() {
    let _host = Host::new();
    for network in [
        Network::v4().with(&json!({ "stateDir": "/run/elsewhere", "ipam": { "dataDir": "/run/elsewhere" } })),
        Network::v4(),
    ] {
        let pod = Pod::new();
        let add = network.add_call(&pod).env("WEFT_STATE_DIR", "/run/elsewhere").run();
        add.result();
        assert!(!std::path::Path::new("/run/weft").exists());
        assert!(!command("find /run/elsewhere -type f").is_empty());
        network.del_call(&pod).env("WEFT_STATE_DIR", "/run/elsewhere").run().done();
    }
}

/// The gateways of a container's routes to a destination.
fn routes(pod: &Pod, family: &str, destination: &str) -> Vec<Value> {
    let routes = pod.json(&format!("ip -j {family} route show table main"));
    let matching = routes.as_array().unwrap().iter().filter(|route| route["dst"] == destination);
    matching.map(|route| route["gateway"].clone()).collect()
}

/// The kernel opens a port in its own time, and the first packets before that are lost: ADD does not leave that to chance.
#[test]
fn every_port_is_open_when_add_returns() {
    let _host = Host::new();
    let network = Network::v4();
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    for pod in &pods {
        network.add(pod);
        let ports = json("bridge -j link");
        let states = ports.as_array().unwrap().iter().map(|port| port["state"].as_str().unwrap());
        assert!(states.clone().all(|state| state == "forwarding"), "{ports}");
    }
}
