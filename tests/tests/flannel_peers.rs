//! What a real flanneld writes into the store, into its host's file and into the kernel: Weft is built to be its peer,
//! so a flannel that does it differently has to be noticed.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Access, Cluster, Etcd, Family, Flanneld, Node, eventually};

const PATIENCE: Duration = Duration::from_secs(10);
const CONFIG: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets/";

/// A flanneld on each node of a cluster, for one network.
struct Flannel {
    cluster: Cluster,
    etcd: Etcd,
    flannelds: Vec<Flanneld>,
}

impl Flannel {
    fn new(segments: &[u8], config: &str) -> Self {
        let cluster = Cluster::segments(segments);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, config);
        let flannelds = cluster.nodes().iter().map(|node| Flanneld::up(node, &etcd)).collect();
        Self { cluster, etcd, flannelds }
    }

    /// The only host's record: its key without the prefix, and its value.
    fn record(&self) -> (String, String) {
        let keys = self.etcd.keys(SUBNETS);
        assert_eq!(keys.len(), 1, "{keys:?}");
        let leases = self.etcd.leases();
        assert_eq!((leases.len(), &leases[0].keys), (1, &keys), "{leases:?}");
        assert_eq!(leases[0].granted, 86_400);
        let value = self.etcd.get(&keys[0]).expect("the key was listed");
        (keys[0].trim_start_matches(SUBNETS).to_owned(), value)
    }
}

/// The VTEP's MAC on a node.
fn mac(node: &Node, device: &str) -> String {
    let link = node.link(device).unwrap_or_else(|| panic!("{} has no {device}", node.name));
    link["address"].as_str().expect("a MAC").to_owned()
}

/// The subnet that a node was given: `10.240.34.0/24`, `fd00:42:0:31::/64`.
fn subnet(node: &Node, family: Family) -> String {
    family.subnet(node).to_string()
}

#[test]
fn record_and_file_of_an_overlay() {
    let flannel = Flannel::new(&[1], r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    let node = flannel.cluster.node(0);
    let v4 = subnet(node, Family::V4);
    let (key, value) = flannel.record();
    assert_eq!(key, v4.replace('/', "-"));
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(node, "flannel.1"));
    let addresses = r#""PublicIP":"172.30.0.11","PublicIPv6":null"#;
    assert_eq!(value, format!(r#"{{{addresses},"BackendType":"vxlan","BackendData":{data}}}"#));
    let file = fs::read_to_string(node.subnet_file()).expect("subnet.env");
    let gateway = v4.replace(".0/24", ".1/24");
    let expected = format!(
        "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(file, expected);
}

#[test]
fn record_and_file_of_both_families() {
    let config = r#"{
        "EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}
    }"#;
    let flannel = Flannel::new(&[1], config);
    let node = flannel.cluster.node(0);
    let (v4, v6) = (subnet(node, Family::V4), subnet(node, Family::V6));
    let (key, value) = flannel.record();
    assert_eq!(key, format!("{}&{}", v4.replace('/', "-"), v6.replace('/', "-")));
    let data = |device| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(node, device));
    assert_eq!(
        value,
        format!(
            r#"{{"PublicIP":"172.30.0.11","PublicIPv6":"fd30::11","BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#,
            data("flannel.1"),
            data("flannel-v6.1")
        )
    );
    let file = fs::read_to_string(node.subnet_file()).expect("subnet.env");
    // The MTU is that of the IPv4 device; the IPv6 device's is 1430.
    let expected = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={}\nFLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET={}\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        v4.replace(".0/24", ".1/24"),
        v6.replace("::/64", "::1/64")
    );
    assert_eq!(file, expected);
}

#[test]
fn record_and_file_of_ipv6_alone() {
    let config = r#"{
        "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:43::/48", "Backend": {"Type": "vxlan"}
    }"#;
    let flannel = Flannel::new(&[1], config);
    let node = flannel.cluster.node(0);
    let v6 = subnet(node, Family::V6);
    let (key, value) = flannel.record();
    assert_eq!(key, format!("0.0.0.0-0&{}", v6.replace('/', "-")));
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(node, "flannel-v6.1"));
    let addresses = r#""PublicIP":"0.0.0.0","PublicIPv6":"fd30::11""#;
    assert_eq!(value, format!(r#"{{{addresses},"BackendType":"vxlan","BackendV6Data":{data}}}"#));
    // It looks for a device of IPv4, and connects nobody: docs/migrate-from-flannel.md.
    eventually(PATIENCE, "it says what it lacks", || {
        flannel.flannelds[0].daemon().log().contains("vxlan device is nil").then_some(())
    });
}

#[test]
fn record_of_plain_routes() {
    let flannel = Flannel::new(&[1], r#"{"Network": "10.240.0.0/16", "Backend": {"Type": "host-gw"}}"#);
    let node = flannel.cluster.node(0);
    let (key, value) = flannel.record();
    assert_eq!(key, subnet(node, Family::V4).replace('/', "-"));
    assert_eq!(value, r#"{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"host-gw"}"#);
    assert_eq!(node.subnet_env()["FLANNEL_MTU"], "1500");
}

/// `MTU` is that of the packets between hosts, and keys are read in any case. 50 bytes are taken off in either family.
#[test]
fn mtu_of_the_network() {
    let config = r#"{
        "enableipv6": true, "network": "10.244.0.0/16", "ipv6network": "fd00:42::/48",
        "backend": {"type": "vxlan", "vni": 7, "mtu": 1400}
    }"#;
    let flannel = Flannel::new(&[1], config);
    let node = flannel.cluster.node(0);
    for device in ["flannel.7", "flannel-v6.7"] {
        assert_eq!(node.link(device).expect("a device")["mtu"], 1350, "{device}");
    }
    assert_eq!(node.subnet_env()["FLANNEL_MTU"], "1350");
}

/// One device per family, and per peer a neighbour, an entry in the forwarding table and a route.
#[test]
fn devices_and_peers_in_the_kernel() {
    let config = r#"{
        "EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}
    }"#;
    let flannel = Flannel::new(&[2], config);
    let (a, b) = (flannel.cluster.node(0), flannel.cluster.node(1));
    for (node, peer) in [(a, b), (b, a)] {
        let (local, remote) = (node.ipv4.to_string(), peer.ipv4.to_string());
        assert_device(node, "flannel.1", &json!({ "local": local }), 1450, &subnet(node, Family::V4));
        assert_peer(node, "flannel.1", &mac(peer, "flannel.1"), &remote, &subnet(peer, Family::V4));
        let (local, remote) = (node.ipv6.to_string(), peer.ipv6.to_string());
        assert_device(node, "flannel-v6.1", &json!({ "local6": local }), 1430, &subnet(node, Family::V6));
        assert_peer(node, "flannel-v6.1", &mac(peer, "flannel-v6.1"), &remote, &subnet(peer, Family::V6));
    }
}

/// The parameters of a VXLAN device; its address is the subnet's first one, alone.
#[track_caller]
fn assert_device(node: &Node, device: &str, local: &Value, mtu: u32, subnet: &str) {
    let link = node.link(device).unwrap_or_else(|| panic!("{} has no {device}", node.name));
    assert_eq!(link["mtu"], mtu, "{link}");
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    let expected = json!({ "id": 1, "link": "eth0", "port": 8472, "learning": false });
    for (key, value) in [&expected, local].into_iter().flat_map(|part| part.as_object().expect("an object")) {
        assert_eq!(&data[key], value, "{key} of {device}: {data}");
    }
    let (address, _) = subnet.split_once('/').expect("a prefix length");
    let alone = if address.contains(':') { 128 } else { 32 };
    assert_eq!(node.addresses(device), [format!("{address}/{alone}")]);
}

/// What leads to a peer's containers, as `ip` and `bridge` print it. flanneld learns of it in its own time.
#[track_caller]
fn assert_peer(node: &Node, device: &str, mac: &str, remote: &str, subnet: &str) {
    let (vtep, _) = subnet.split_once('/').expect("a prefix length");
    let family = if vtep.contains(':') { "-6" } else { "-4" };
    for (line, expected) in [
        (
            format!("ip {family} neigh show dev {device} nud permanent"),
            format!("{vtep} lladdr {mac} PERMANENT"),
        ),
        (format!("bridge fdb show dev {device}"), format!("{mac} dst {remote} self permanent")),
        (format!("ip {family} route show dev {device}"), format!("{subnet} via {vtep}")),
    ] {
        eventually(PATIENCE, &format!("`{line}` says {expected}"), || {
            node.command(&line).contains(&expected).then_some(())
        });
    }
    let routes = node.command(&format!("ip {family} route show dev {device}"));
    assert!(routes.lines().any(|route| route.starts_with(subnet) && route.contains("onlink")), "{routes}");
}

/// DirectRouting: no tunnel to peers on the same segment.
#[test]
fn direct_routes_on_one_segment() {
    let config = r#"{"Network": "10.240.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    let flannel = Flannel::new(&[2, 1], config);
    let [a, near, far] = [0, 1, 2].map(|index| flannel.cluster.node(index));
    let direct = format!("{} via {} dev eth0", subnet(near, Family::V4), near.ipv4);
    eventually(PATIENCE, &direct, || a.command("ip -4 route").contains(&direct).then_some(()));
    assert_peer(a, "flannel.1", &mac(far, "flannel.1"), &far.ipv4.to_string(), &subnet(far, Family::V4));
    assert!(!a.command("bridge fdb show dev flannel.1").contains(&near.ipv4.to_string()));
}
