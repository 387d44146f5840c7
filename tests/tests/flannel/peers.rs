//! Weft's hosts and flanneld's in one network.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft_tests::{
    Access, Call, Cluster, Etcd, Family, Flanneld, Node, Pod, Weftd, dist, eventually, ips, records, transfer,
};

const CONFIG: &str = "/coreos.com/network/config";
pub(super) const SUBNETS: &str = "/coreos.com/network/subnets/";
pub(super) const V4: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;
/// Each backend, with one family and with both.
const CONFIGS: [&str; 5] = [
    V4,
    r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#,
    r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#,
    r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "host-gw"}}"#,
    r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48",
        "Backend": {"Type": "vxlan", "DirectRouting": true}}"#,
];
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Fleet {
    pub(super) cluster: Cluster,
    pub(super) etcd: Etcd,
}

impl Fleet {
    pub(super) fn new(config: &str) -> Self {
        let cluster = Cluster::new(2);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, config);
        Self { cluster, etcd }
    }

    pub(super) fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    fn weft(&self, index: usize) -> Weftd {
        Weftd::up(self.node(index), &self.etcd)
    }

    fn flannel(&self, index: usize) -> Flanneld {
        Flanneld::up(self.node(index), &self.etcd)
    }

    pub(super) fn call(&self, command: &str, index: usize, pod: &Pod) -> Call {
        let node = self.node(index);
        let conf: Value = json!({
            "name": "cbr0", "cniVersion": "1.1.0", "type": "flannel", "subnetFile": node.subnet_file(),
            "dataDir": node.directory().join("flannel"),
            "ipam": { "type": "weft-ipam" },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true }
        });
        Call::any("flannel", command, conf.to_string()).on(node).pod(pod)
    }

    /// A container on a host, by the plugin type `flannel`.
    pub(super) fn pod(&self, index: usize) -> (Pod, Vec<IpAddr>) {
        let pod = Pod::new();
        let result = self.call("ADD", index, &pod).run().result();
        (pod, ips(&result))
    }

    /// A container on a host without an agent, by the plugin type `weft` and the same network's configuration.
    fn without_agent(&self, index: usize) -> (Pod, Vec<IpAddr>) {
        let network = Weftd::network(&self.etcd).with(&json!({ "name": "cbr0", "bridge": "cni0" }));
        let (pod, result) = self.node(index).attach(&network);
        (pod, ips(&result))
    }

    pub(super) fn subnets(&self) -> Vec<String> {
        self.etcd.keys(SUBNETS)
    }

    /// Waits until a host knows the way to another one's subnet.
    fn knows(&self, index: usize, other: usize, knows: bool) {
        let subnet = self.node(other).subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24");
        eventually(PATIENCE, &format!("host {index} knows of {subnet}: {knows}"), || {
            (self.node(index).command("ip route").contains(&subnet) == knows).then_some(())
        });
    }
}

/// Both ways, by TCP, at every address.
pub(super) fn talk(one: &(Pod, Vec<IpAddr>), other: &(Pod, Vec<IpAddr>), bytes: usize) {
    for (from, to) in [(one, other), (other, one)] {
        for address in &to.1 {
            eventually(PATIENCE, "the way is there", || from.0.ping(*address).status.success().then_some(()));
            transfer(&from.0, &to.0, *address, bytes);
        }
    }
}

/// Both see each other's lease, containers reach each other both ways, and a host that leaves is forgotten by both.
#[test]
fn they_make_one_overlay() {
    for config in CONFIGS {
        let fleet = Fleet::new(config);
        let _daemons = (fleet.weft(0), fleet.flannel(1));
        assert_eq!(fleet.subnets().len(), 2);
        let (one, other) = (fleet.pod(0), fleet.pod(1));
        assert_eq!(one.1.len(), other.1.len());
        talk(&one, &other, 10 << 20);
    }
}

/// No agent on Weft's host: the network's configuration alone, by which the first container brings the host in.
#[test]
fn they_make_one_overlay_without_an_agent() {
    for config in CONFIGS {
        let fleet = Fleet::new(config);
        let _flanneld = fleet.flannel(1);
        let other = fleet.pod(1);
        let one = fleet.without_agent(0);
        assert_eq!((fleet.subnets().len(), one.1.len()), (2, other.1.len()));
        talk(&one, &other, 10 << 20);
    }
}

/// A host is drained, flanneld and its device go, and the network has the plugin type `weft` and `ipam.etcd`: the host keeps its
/// subnet.
#[test]
fn a_host_goes_over_from_flanneld_to_no_agent() {
    // Two devices, and none.
    for config in [CONFIGS[1], CONFIGS[2]] {
        let fleet = Fleet::new(config);
        let [flanneld, _other] = [fleet.flannel(0), fleet.flannel(1)];
        let (old, other) = (fleet.pod(0), fleet.pod(1));
        talk(&old, &other, 1 << 20);
        let before = fleet.subnets();
        fleet.call("DEL", 0, &old.0).run().done();
        flanneld.stop();
        let node = fleet.node(0);
        let devices = ["flannel.1", "flannel-v6.1"].into_iter().filter(|name| node.link(name).is_some());
        devices.for_each(|name| drop(node.command(&format!("ip link delete {name}"))));
        let new = fleet.without_agent(0);
        assert_eq!(fleet.subnets(), before);
        for address in &new.1 {
            let subnet = Family::of(*address).subnet(node);
            assert!(subnet.contains(*address), "{address}: flanneld had {subnet}");
        }
        talk(&new, &other, 1 << 20);
    }
}

/// As clouds have it: each host has a single address, and a route says who is on the link. Both take each other for neighbours, so also where
/// what comes another way than it would leave is dropped.
#[test]
fn hosts_of_single_addresses_are_on_one_link() {
    for backend in [r#""host-gw""#, r#""vxlan", "DirectRouting": true"#] {
        let fleet = Fleet::new(&V4.replace(r#""vxlan""#, backend));
        for node in fleet.cluster.nodes() {
            node.single_address();
            node.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
        }
        let _daemons = (fleet.weft(0), fleet.flannel(1));
        let (one, other) = (fleet.pod(0), fleet.pod(1));
        talk(&one, &other, 1 << 20);
        for (index, other) in [(0, 1), (1, 0)] {
            let other = fleet.node(other);
            let subnet = other.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24");
            let routes = fleet.node(index).command("ip route");
            assert!(routes.contains(&format!("{subnet} via {} dev eth0", other.ipv4)), "{routes}");
        }
    }
}

/// The kernel would send by the second one, in whose subnet the router is.
#[test]
fn a_host_of_two_addresses_is_known_by_the_same_to_both() {
    let fleet = Fleet::new(V4);
    let node = fleet.node(0);
    node.command("ip addr del 172.30.0.11/24 dev eth0");
    node.command("ip addr add 10.9.0.5/24 dev eth0");
    node.command("ip addr add 172.30.0.11/24 dev eth0");
    node.command("ip route add default via 172.30.0.1");
    let flanneld = fleet.flannel(0);
    let before = fleet.subnets();
    flanneld.stop();
    node.command("ip link delete flannel.1");
    let _weftd = fleet.weft(0);
    assert_eq!(fleet.subnets(), before);
    let record = fleet.etcd.get(&before[0]).expect("the host's record");
    assert!(record.contains(r#""PublicIP":"10.9.0.5""#), "{record}");
}

/// In whatever case keys are written, and with the MTU of packets between hosts.
#[test]
fn they_read_the_configuration_alike() {
    let fleet =
        Fleet::new(r#"{"network": "10.240.0.0/12", "backend": {"type": "vxlan", "vni": 7, "mtu": 1400}}"#);
    let _daemons = (fleet.weft(0), fleet.flannel(1));
    for (index, device) in [(0, "weft.7"), (1, "flannel.7")] {
        let node = fleet.node(index);
        assert_eq!(node.link(device).expect("a device")["mtu"], 1350, "{device}");
        assert_eq!(node.subnet_env()["FLANNEL_MTU"], "1350", "{device}");
    }
    talk(&fleet.pod(0), &fleet.pod(1), 10 << 20);
}

/// Two hosts in a network that has two subnets of each family: whoever counted them otherwise would find none.
#[test]
fn they_cut_the_network_alike() {
    let fleet = Fleet::new(
        r#"{"Network": "10.240.0.0/16", "SubnetLen": 26, "SubnetMin": "10.240.3.64", "SubnetMax": "10.240.3.128",
            "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "IPv6SubnetLen": 72,
            "IPv6SubnetMin": "fd00:42:0:7::", "IPv6SubnetMax": "fd00:42:0:7:100::", "Backend": {"Type": "vxlan"}}"#,
    );
    let _daemons = (fleet.weft(0), fleet.flannel(1));
    let keys = fleet.subnets().concat();
    for subnet in ["10.240.3.64-26", "10.240.3.128-26", "fd00:42:0:7::-72", "fd00:42:0:7:100::-72"] {
        assert_eq!(keys.matches(subnet).count(), 1, "{subnet}: {keys}");
    }
    talk(&fleet.pod(0), &fleet.pod(1), 10 << 20);
}

/// Each tells the other: Weft's host by `weftctl leave`, flanneld's by its lease, which it leaves to end. And a third host tells both.
#[test]
fn a_host_that_leaves_is_forgotten_by_both() {
    for config in CONFIGS {
        let is_dual = config.contains("EnableIPv6");
        forgets(config, if is_dual { &[Family::V4, Family::V6] } else { &[Family::V4] });
    }
}

fn forgets(config: &str, families: &[Family]) {
    let fleet = Fleet::new(&records::apart(config));
    let (weftd, flanneld) = (fleet.weft(0), fleet.flannel(1));
    fleet.knows(0, 1, true);
    fleet.knows(1, 0, true);
    let (third, mut value) = records::of_a_host(families);
    if config.contains("host-gw") {
        value = value.replace("vxlan", "host-gw");
    }
    let key = format!("{SUBNETS}{third}");
    // Plain routes are all that there is with some.
    let looks = [
        "ip route",
        "ip -6 route",
        "ip neigh show nud permanent",
        "ip -6 neigh show nud permanent",
        "bridge fdb",
    ];
    let says = |index: usize| looks.map(|look| fleet.node(index).command(look)).concat();
    let ways: Vec<String> = third.split('&').map(|subnet| subnet.replace('-', "/")).collect();
    let routes = |index: usize| ways.iter().filter(|way| says(index).contains(*way)).count();
    fleet.etcd.put(&key, value);
    eventually(PATIENCE, "both know it", || ([0, 1].map(routes) == [ways.len(); 2]).then_some(()));
    fleet.etcd.del(&key);
    eventually(PATIENCE, "both forget it", || ([0, 1].map(routes) == [0; 2]).then_some(()));

    // A host's neighbour has the subnet's first address, and its forwarding entry the host's.
    let has_gone = |index: usize, subnets: &[IpNetwork], gone: usize| {
        let text = says(index);
        let named = |subnet: &IpNetwork| text.contains(&subnet.network().to_string());
        let leads = |family: &Family| text.contains(&format!("dst {} ", family.address(fleet.node(gone))));
        (!subnets.iter().any(named) && !families.iter().any(leads)).then_some(())
    };
    let subnets =
        |index: usize| families.iter().map(|family| family.subnet(fleet.node(index))).collect::<Vec<_>>();
    weftd.daemon().stop();
    let own = subnets(0);
    leave(&fleet);
    eventually(PATIENCE, "flanneld forgets Weft's host", || has_gone(1, &own, 0));

    let weftd = fleet.weft(0);
    fleet.knows(0, 1, true);
    flanneld.stop();
    let other = fleet.node(1).subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24");
    let lease =
        fleet.etcd.leases().into_iter().find(|lease| lease.keys.iter().any(|key| key.contains(&other)));
    let other = subnets(1);
    fleet.etcd.revoke(&lease.expect("flanneld's lease").id);
    eventually(PATIENCE, "Weft's host forgets flanneld's", || has_gone(0, &other, 1));
    weftd.ready();
}

/// `weftctl leave` on host 0.
fn leave(fleet: &Fleet) {
    let node = fleet.node(0);
    let mut leave = Command::new(dist().join("weftctl"));
    leave.args(["--name", Weftd::NETWORK, "--etcd-endpoints", &fleet.etcd.endpoints()[0], "--subnet-file"]);
    leave.arg(node.subnet_file()).arg("leave").envs(node.env());
    let output = node.inside(|| leave.output().expect("run weftctl"));
    assert!(output.status.success(), "{output:?}");
}
