//! Weft's hosts and flanneld's in one network.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Access, Call, Cluster, Etcd, Flanneld, Node, Pod, Weftd, eventually, ips, transfer};

use std::time::Duration;

const CONFIG: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const V4: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// Who looks after a host.
enum Daemon {
    Weft(Weftd),
    Flannel(Flanneld),
}

struct Fleet {
    cluster: Cluster,
    etcd: Etcd,
}

impl Fleet {
    fn new(config: &str) -> Self {
        let cluster = Cluster::new(2);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, config);
        Self { cluster, etcd }
    }

    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    fn weft(&self, index: usize) -> Daemon {
        Daemon::Weft(Weftd::up(self.node(index), &self.etcd))
    }

    fn flannel(&self, index: usize) -> Daemon {
        Daemon::Flannel(Flanneld::up(self.node(index), &self.etcd))
    }

    fn call(&self, command: &str, index: usize, pod: &Pod) -> Call {
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
    fn pod(&self, index: usize) -> (Pod, Vec<IpAddr>) {
        let pod = Pod::new();
        let result = self.call("ADD", index, &pod).run().result();
        (pod, ips(&result))
    }

    fn subnets(&self) -> Vec<String> {
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

fn talk(one: &(Pod, Vec<IpAddr>), other: &(Pod, Vec<IpAddr>)) {
    for (from, to) in [(one, other), (other, one)] {
        for address in &to.1 {
            eventually(PATIENCE, "the way is there", || from.0.ping(*address).status.success().then_some(()));
            transfer(&from.0, &to.0, *address, 10 << 20);
        }
    }
}

/// Both see each other's lease, containers reach each other both ways, and a host that leaves is forgotten by both.
#[test]
fn they_make_one_overlay() {
    for config in [
        V4,
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#,
        r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#,
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "host-gw"}}"#,
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48",
            "Backend": {"Type": "vxlan", "DirectRouting": true}}"#,
    ] {
        let fleet = Fleet::new(config);
        let _daemons = [fleet.weft(0), fleet.flannel(1)];
        assert_eq!(fleet.subnets().len(), 2);
        let (one, other) = (fleet.pod(0), fleet.pod(1));
        assert_eq!(one.1.len(), other.1.len());
        talk(&one, &other);
    }
}

/// In whatever case keys are written, and with the MTU of packets between hosts.
#[test]
fn they_read_the_configuration_alike() {
    let fleet =
        Fleet::new(r#"{"network": "10.240.0.0/12", "backend": {"type": "vxlan", "vni": 7, "mtu": 1400}}"#);
    let _daemons = [fleet.weft(0), fleet.flannel(1)];
    for (index, device) in [(0, "weft.7"), (1, "flannel.7")] {
        let node = fleet.node(index);
        assert_eq!(node.link(device).expect("a device")["mtu"], 1350, "{device}");
        assert_eq!(node.subnet_env()["FLANNEL_MTU"], "1350", "{device}");
    }
    talk(&fleet.pod(0), &fleet.pod(1));
}

#[test]
fn a_host_that_leaves_is_forgotten_by_both() {
    let fleet = Fleet::new(V4);
    let _daemons = [fleet.weft(0), fleet.flannel(1)];
    fleet.knows(0, 1, true);
    fleet.knows(1, 0, true);
    let other = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8e:00:00:00:00:99"}}"#;
    let key = format!("{SUBNETS}10.250.99.0-24");
    fleet.etcd.put(&key, other);
    let routes = |index: usize| fleet.node(index).command("ip route").contains("10.250.99.0/24");
    eventually(PATIENCE, "both know it", || (routes(0) && routes(1)).then_some(()));
    fleet.etcd.del(&key);
    eventually(PATIENCE, "both forget it", || (!routes(0) && !routes(1)).then_some(()));
}

/// docs/migrate-from-flannel.md, step by step, there and back: subnet and containers stay.
#[test]
fn a_host_changes_over_and_back() {
    let fleet = Fleet::new(V4);
    let mut daemons = vec![fleet.flannel(0), fleet.flannel(1)];
    let subnets = fleet.subnets();
    let (one, other) = (fleet.pod(0), fleet.pod(1));
    talk(&one, &other);
    let file = fleet.node(0).subnet_env();

    let Daemon::Flannel(flanneld) = daemons.remove(0) else { unreachable!("it was started as one") };
    flanneld.stop();
    fleet.node(0).command("ip link delete flannel.1");
    daemons.insert(0, fleet.weft(0));
    assert_eq!(fleet.subnets(), subnets, "the subnet is the same");
    assert_eq!(fleet.node(0).subnet_env()["FLANNEL_SUBNET"], file["FLANNEL_SUBNET"]);
    talk(&one, &other);
    let late = fleet.pod(0);
    talk(&late, &other);

    let Daemon::Weft(weftd) = daemons.remove(0) else { unreachable!("it was started as one") };
    weftd.daemon().stop();
    fleet.node(0).command("ip link delete weft.1");
    daemons.insert(0, fleet.flannel(0));
    assert_eq!(fleet.subnets(), subnets, "the subnet is the same");
    talk(&one, &other);
    talk(&late, &other);

    // And once more: what Weft had said of the address before does not count for flanneld's record.
    let Daemon::Flannel(flanneld) = daemons.remove(0) else { unreachable!("it was started as one") };
    flanneld.stop();
    fleet.node(0).command("ip link delete flannel.1");
    daemons.insert(0, fleet.weft(0));
    assert_eq!(fleet.subnets(), subnets, "the subnet is the same");
    talk(&late, &other);
    for (index, pod) in [(0, one), (0, late), (1, other)] {
        fleet.call("DEL", index, &pod.0).run().done();
    }
}
