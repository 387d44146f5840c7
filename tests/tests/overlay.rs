//! Networks that span hosts, without an agent: each host learns of the others when it attaches a container.

#[path = "overlay/firewalls.rs"]
mod firewalls;
#[path = "overlay/rules.rs"]
mod rules;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::{Access, Cluster, Etcd, Family, Network, Node, Pod, Random, Weftd, ips, transfer};

#[path = "overlay/device.rs"]
mod device;
#[path = "overlay/hostile.rs"]
mod hostile;
#[path = "overlay/isolation.rs"]
mod isolation;
#[path = "overlay/mtu.rs"]
mod mtu;
#[path = "overlay/networks.rs"]
mod networks;
#[path = "overlay/refresh.rs"]
mod refresh;
#[path = "overlay/shaping.rs"]
mod shaping;
#[path = "overlay/slow.rs"]
mod slow;
#[path = "overlay/underlay.rs"]
mod underlay;

const CONFIG: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const V4: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#;

struct Fleet {
    cluster: Cluster,
    etcd: Etcd,
    network: Network,
}

impl Fleet {
    fn new(segments: &[u8], config: &str) -> Self {
        let cluster = Cluster::segments(segments);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, config);
        // Every ADD looks for news of the other hosts.
        let network = Weftd::network(&etcd).with(&json!({ "ipam": { "peerRefresh": 0 } }));
        Self { cluster, etcd, network }
    }

    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// A container on each host, and one more, by which each host has learnt of all others.
    fn pods(&self) -> Vec<(Pod, Vec<IpAddr>)> {
        let attach = |node: &Node| {
            let (pod, result) = node.attach(&self.network);
            (pod, ips(&result))
        };
        let pods: Vec<_> = self.cluster.nodes().iter().map(attach).collect();
        for node in self.cluster.nodes() {
            drop(node.attach(&self.network));
        }
        pods
    }

    #[track_caller]
    fn all_reach(&self, families: usize) -> Vec<(Pod, Vec<IpAddr>)> {
        let pods = self.pods();
        assert!(pods.iter().all(|(_, ips)| ips.len() == families));
        for (from, _) in &pods {
            for (_, addresses) in &pods {
                for address in addresses {
                    from.assert_reaches(*address);
                }
            }
        }
        pods
    }
}

#[test]
fn three_hosts_by_vxlan() {
    let fleet = Fleet::new(&[3], V4);
    let pods = fleet.all_reach(1);
    let (one, other) = (&pods[0], &pods[2]);
    transfer(&one.0, &other.0, other.1[0], 10 << 20);
    transfer(&other.0, &one.0, one.1[0], 10 << 20);
    let node = fleet.node(0);
    let device = node.link("weft.1").expect("a device");
    assert_eq!((device["mtu"].as_u64(), device["operstate"].as_str()), (Some(1450), Some("UNKNOWN")));
    let data = &device["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"], &data["learning"]), (&json!(1), &json!(8472), &json!(false)));
    assert_eq!(data["local"], "172.30.0.11");
    assert_eq!(one.0.link("eth0").expect("an interface")["mtu"], 1450);
    assert_eq!(node.link("weft0").expect("a bridge")["mtu"], 1450);
    assert_eq!(fleet.etcd.leases().len(), 3);
}

#[test]
fn hosts_on_several_links() {
    Fleet::new(&[1, 1], V4).all_reach(1);
}

#[test]
fn both_families_and_ipv6_alone() {
    let fleet = Fleet::new(&[2], DUAL);
    let pods = fleet.all_reach(2);
    transfer(&pods[0].0, &pods[1].0, pods[1].1[1], 10 << 20);
    assert_eq!(fleet.node(0).link("weft6.1").expect("a device")["mtu"], 1430);
    let alone = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:43::/48", "Backend": {"Type": "vxlan"}}"#;
    let fleet = Fleet::new(&[2], alone);
    fleet.all_reach(1);
    assert!(fleet.node(0).link("weft.1").is_none());
}

/// What is wrong with others' records is said by the ADD that learns of it, and not again until it is something else.
#[test]
fn records_that_are_no_hosts_are_told_once() {
    let fleet = Fleet::new(&[1], V4);
    let add = || {
        let pod = Pod::new();
        let reply = fleet.network.add_call(&pod).on(fleet.node(0)).run();
        reply.result();
        reply.stderr.matches("is passed over").count()
    };
    assert_eq!(add(), 0);
    fleet.etcd.put(&format!("{SUBNETS}10.240.9.0-24"), "{}");
    assert_eq!([add(), add()], [1, 0]);
    fleet.etcd.put(&format!("{SUBNETS}10.240.10.0-24"), "[]");
    assert_eq!([add(), add()], [2, 0]);
    fleet.etcd.del(&format!("{SUBNETS}10.240.9.0-24"));
    assert_eq!([add(), add()], [1, 0]);
}

/// Whoever takes another host's VTEP by a record of its own gets nothing, wherever its key stands.
#[test]
fn who_comes_later_takes_nothing_from_who_is_there() {
    let fleet = Fleet::new(&[2], V4);
    let pods = fleet.all_reach(1);
    let other = fleet.node(1).link("weft.1").expect("a device")["address"].clone();
    for newcomer in ["10.240.0.0-24", "10.255.255.0-24"] {
        let data = json!({ "VNI": 1, "VtepMAC": other });
        let record = json!({ "PublicIP": "172.30.0.94", "BackendType": "vxlan", "BackendData": data });
        fleet.etcd.put(&format!("{SUBNETS}{newcomer}"), record.to_string());
        drop(fleet.node(0).attach(&fleet.network));
        let entries = fleet.node(0).command("bridge fdb show dev weft.1");
        assert!(entries.contains("dst 172.30.0.12") && !entries.contains("172.30.0.94"), "{entries}");
        pods[0].0.assert_reaches(pods[1].1[0]);
    }
}

/// The network's `MTU` is that of packets between hosts, as with flannel, and no promise that their interfaces do not
/// keep.
#[test]
fn an_mtu_of_the_network() {
    for (mtu, expected) in [(1400, 1350), (9000, 1450)] {
        let config =
            format!(r#"{{"Network": "10.240.0.0/12", "Backend": {{"Type": "vxlan", "MTU": {mtu}}}}}"#);
        let fleet = Fleet::new(&[2], &config);
        let pods = fleet.all_reach(1);
        assert_eq!(fleet.node(0).link("weft.1").expect("a device")["mtu"], expected);
        assert_eq!(pods[0].0.link("eth0").expect("an interface")["mtu"], expected);
        let whole = format!("ping -c 1 -W 2 -M do -s {} {}", expected - 28, pods[1].1[0]);
        pods[0].0.command(&whole);
    }
}

/// A network with a backend, of IPv4, of IPv6 alone and of both.
fn each_way(backend: &Value) -> [(String, Vec<Family>); 3] {
    let config = |families: &[Family]| {
        let config = json!({
            "EnableIPv4": families.contains(&Family::V4), "Network": "10.240.0.0/12",
            "EnableIPv6": families.contains(&Family::V6), "IPv6Network": "fd00:42::/48",
            "Backend": backend,
        });
        (config.to_string(), families.to_vec())
    };
    [&[Family::V4][..], &[Family::V6], &[Family::V4, Family::V6]].map(config)
}

/// Weft's plain routes on a node.
fn plain_routes(node: &Node, family: Family) -> String {
    node.command(&format!("ip {} route show proto 119", family.flag()))
}

#[test]
fn plain_routes_without_a_device() {
    for (config, families) in each_way(&json!({ "Type": "host-gw" })) {
        let fleet = Fleet::new(&[2], &config);
        let pods = fleet.all_reach(families.len());
        assert_eq!(pods[0].0.link("eth0").expect("an interface")["mtu"], 1500);
        let (node, other) = (fleet.node(0), fleet.node(1));
        for family in [Family::V4, Family::V6] {
            let routes = plain_routes(node, family);
            assert_eq!(routes.lines().count(), usize::from(families.contains(&family)), "{routes}");
            let way = format!("via {} dev eth0", family.address(other));
            assert!(routes.lines().all(|route| route.contains(&way)), "{routes}");
            assert!(node.link(family.device()).is_none());
        }
    }
}

/// `DirectRouting`: plain routes on the same link, the device for the others.
#[test]
fn plain_routes_where_hosts_share_a_link() {
    for (config, families) in each_way(&json!({ "Type": "vxlan", "DirectRouting": true })) {
        let fleet = Fleet::new(&[2, 1], &config);
        fleet.all_reach(families.len());
        let [node, near, far] = [0, 1, 2].map(|index| fleet.node(index));
        for family in families {
            let direct = plain_routes(node, family);
            let way = format!("via {} dev eth0", family.address(near));
            assert!(direct.lines().count() == 1 && direct.contains(&way), "{direct}");
            let entries = node.command(&format!("bridge fdb show dev {}", family.device()));
            assert!(entries.contains(&format!("dst {} ", family.address(far))), "{entries}");
            assert!(!entries.contains(&format!("dst {} ", family.address(near))), "{entries}");
        }
    }
}

/// A record that goes from etcd goes from the kernel, and what was never Weft's stays.
#[test]
fn a_host_that_is_gone() {
    let fleet = Fleet::new(&[2], V4);
    fleet.all_reach(1);
    let node = fleet.node(0);
    node.command("ip route add 203.0.113.0/24 via 172.30.0.12 proto static");
    let key = fleet
        .etcd
        .keys(SUBNETS)
        .into_iter()
        .find(|key| fleet.etcd.get(key).is_some_and(|value| value.contains("172.30.0.12")));
    let key = key.expect("the other host's record");
    fleet.etcd.del(&key);
    drop(node.attach(&fleet.network));
    assert!(!node.command("bridge fdb show dev weft.1").contains("172.30.0.12"));
    let subnet = key.trim_start_matches(SUBNETS).replace("-24", "/24");
    assert!(!node.command("ip route show").contains(&subnet));
    assert!(node.command("ip route show").contains("203.0.113.0/24"));
}

#[test]
fn whatever_is_altered_is_told_by_check_and_made_right_by_the_next_add() {
    let fleet = Fleet::new(&[2], V4);
    let pods = fleet.all_reach(1);
    let node = fleet.node(0);
    let (pod, result) = node.attach(&fleet.network);
    let check = || {
        let conf = fleet.network.clone().with(&json!({ "prevResult": result }));
        conf.call("CHECK").pod(&pod).on(node).run()
    };
    check().done();
    let mac = |line: &str| line.split_whitespace().next().expect("a MAC").to_owned();
    let entries = node.command("bridge fdb show dev weft.1");
    let forward = entries.lines().find(|line| line.contains("dst 172.30.0.12")).expect("an entry").to_owned();
    for (damage, told) in [
        ("ip link delete weft.1".to_owned(), "weft.1 is gone"),
        ("ip link set weft.1 down".to_owned(), "weft.1 is down"),
        ("ip link set weft.1 mtu 1400".to_owned(), "MTU 1400 instead of 1450"),
        ("ip link set weft.1 address 02:99:99:99:99:99".to_owned(), "02:99:99:99:99:99 instead of"),
        ("ip addr add 192.0.2.77/32 dev weft.1".to_owned(), "192.0.2.77"),
        (format!("bridge fdb del {} dev weft.1 dst 172.30.0.12", mac(&forward)), "forwarding entry"),
        ("ip neigh flush dev weft.1 nud permanent".to_owned(), "neighbour"),
        ("ip route flush dev weft.1".to_owned(), "route"),
    ] {
        node.command(&damage);
        check().error_code(105).assert_names(&[told]);
        drop(node.attach(&fleet.network));
        check().done();
        pods[0].0.assert_reaches(pods[1].1[0]);
    }
}

/// The address of a device is the same after all that a host can go through.
#[test]
fn the_devices_address_is_the_hosts() {
    let fleet = Fleet::new(&[2], V4);
    fleet.pods();
    let mac = |node: usize| fleet.node(node).link("weft.1").expect("a device")["address"].clone();
    let before = [mac(0), mac(1)];
    assert_ne!(before[0], before[1]);
    fleet.node(0).command("ip link delete weft.1");
    std::fs::remove_dir_all(fleet.node(0).data_dir()).expect("lose what is on file");
    drop(fleet.node(0).attach(&fleet.network));
    assert_eq!(before, [mac(0), mac(1)]);
}

#[test]
fn traffic_that_leaves_the_network_is_masqueraded_and_traffic_within_is_not() {
    let mut fleet = Fleet::new(&[2], V4);
    fleet.network = fleet.network.with(&json!({ "ipMasq": true }));
    let pods = fleet.pods();
    let sees = |from: &Pod, to: IpAddr, listener: &dyn Fn() -> std::net::UdpSocket| {
        let socket = listener();
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        let port = socket.local_addr().expect("an address").port();
        from.inside(|| {
            let client = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            client.send_to(b"x", (to, port)).expect("send");
        });
        socket.recv_from(&mut [0; 8]).expect("a datagram").1.ip()
    };
    let inside = &pods[1];
    let seen = sees(&pods[0].0, inside.1[0], &|| {
        inside.0.inside(|| std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket"))
    });
    assert_eq!(seen, pods[0].1[0], "containers of two hosts see each other's addresses");
    let router: IpAddr = [172, 30, 0, 1].into();
    let seen = sees(&pods[0].0, router, &|| std::net::UdpSocket::bind("172.30.0.1:0").expect("a socket"));
    assert_eq!(seen, IpAddr::from([172, 30, 0, 11]), "the outside sees the host's");
    // Unless it is exempt, and has a way back.
    let exempt = fleet.network.clone().with(&json!({ "noMasquerade": ["172.30.0.0/24"] }));
    let (late, result) = fleet.node(0).attach(&exempt);
    let subnet = fleet.node(0).addresses("weft0")[0].replace(".1/24", ".0/24");
    weft_tests::command(&format!("ip route add {subnet} via 172.30.0.11"));
    let seen = sees(&late, router, &|| std::net::UdpSocket::bind("172.30.0.1:0").expect("a socket"));
    assert_eq!(seen, ips(&result)[0]);
}

/// flanneld's device, on a host that changes over without having it removed.
#[test]
fn a_vni_that_somebody_else_has() {
    let fleet = Fleet::new(&[1], V4);
    let node = fleet.node(0);
    node.command("ip link add flannel.1 type vxlan id 1 local 172.30.0.11 dev eth0 dstport 8472 nolearning");
    let before: Value = node.json("ip -j link show");
    let pod = Pod::new();
    let error = fleet.network.add_call(&pod).on(node).run().error();
    error.assert_names(&["VNI 1", "flannel.1", "ip link delete"]);
    assert_eq!(node.json("ip -j link show"), before, "nothing is left behind");
    node.command("ip link delete flannel.1");
    drop(node.attach(&fleet.network));
    assert!(node.link("weft.1").is_some());
}

/// A first ADD that fails takes the device back; one beside containers leaves it to them.
#[test]
fn a_failed_add_takes_back_what_it_alone_made() {
    let fleet = Fleet::new(&[2], V4);
    let node = fleet.node(0);
    let taken = Pod::new();
    taken.command("ip link add eth0 type bridge");
    let before: Value = node.json("ip -j link show");
    fleet.network.add_call(&taken).on(node).run().error_code(103).assert_names(&["eth0"]);
    assert_eq!(node.json("ip -j link show"), before);
    assert!(node.command("ip route show").lines().all(|route| !route.contains("weft")));
    let pods = fleet.all_reach(1);
    fleet.network.add_call(&taken).on(node).run().error_code(103);
    pods[0].0.assert_reaches(pods[1].1[0]);
}

/// Killed anywhere on a fresh host, alone or with the IPAM plugin: DEL and the next ADD find everything as they need
/// it, and however often it happens, etcd has one record and one lease of this host.
#[test]
fn a_killed_first_add() {
    let fleet = Fleet::new(&[1], V4);
    let node = fleet.node(0);
    let mut random = Random::new();
    for _ in 0..60 {
        let pod = Pod::new();
        let running = fleet.network.add_call(&pod).on(node).start();
        let moment = Duration::from_micros(random.below(15_000));
        let start = Instant::now();
        while start.elapsed() < moment {
            std::hint::spin_loop();
        }
        if random.below(2) == 0 {
            running.kill_group();
        } else {
            running.kill();
        }
        drop(running.finish());
        fleet.network.call("DEL").pod(&pod).on(node).run().done();
        let links = node.command("ip -o link show type veth");
        assert_eq!(links.lines().count(), 1, "only eth0 is left: {links}");
        // Fresh again, as far as the host knows; etcd keeps what it has.
        if node.link("weft.1").is_some() {
            node.command("ip link delete weft.1");
        }
        for directory in [node.data_dir(), node.state_dir()] {
            if directory.exists() {
                std::fs::remove_dir_all(directory).expect("forget everything");
            }
        }
    }
    let (pod, result) = node.attach(&fleet.network);
    assert_eq!((fleet.etcd.keys(SUBNETS).len(), fleet.etcd.leases().len()), (1, 1));
    let gateway: IpAddr =
        result["ips"][0]["gateway"].as_str().expect("a gateway").parse().expect("an address");
    pod.assert_reaches(gateway);
}
