//! The node agent: it keeps a host in its network whatever happens to the host's kernel, to etcd, and to itself.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::{
    Access, Call, Cluster, Daemon, Etcd, Family, Network, Node, Pod, Reply, Weftd, assert_all_reach, command,
    eventually, ips,
};

#[path = "agent/access.rs"]
mod access;
#[path = "agent/advertised.rs"]
mod advertised;
#[path = "agent/bridges.rs"]
mod bridges;
#[path = "agent/chained.rs"]
mod chained;
#[path = "agent/default_route.rs"]
mod default_route;
#[path = "agent/directories.rs"]
mod directories;
#[path = "agent/duplicates.rs"]
mod duplicates;
#[path = "agent/elements.rs"]
mod elements;
#[path = "agent/families.rs"]
mod families;
#[path = "agent/firewalls.rs"]
mod firewalls;
#[path = "agent/heal.rs"]
mod heal;
#[path = "agent/hostile.rs"]
mod hostile;
#[path = "agent/layouts.rs"]
mod layouts;
#[path = "agent/lost_data.rs"]
mod lost_data;
#[path = "agent/masquerade.rs"]
mod masquerade;
#[path = "agent/networks.rs"]
mod networks;
#[path = "agent/outage.rs"]
mod outage;
#[path = "agent/pinned.rs"]
mod pinned;
#[path = "agent/prefixes.rs"]
mod prefixes;
#[path = "agent/records.rs"]
mod records;
#[path = "agent/renumbered.rs"]
mod renumbered;
#[path = "agent/restart.rs"]
mod restart;
#[path = "agent/service.rs"]
mod service;
#[path = "agent/stopped.rs"]
mod stopped;
#[path = "agent/underlay.rs"]
mod underlay;
#[path = "agent/watch.rs"]
mod watch;
#[path = "agent/ways.rs"]
mod ways;

const PATIENCE: Duration = Duration::from_secs(10);
/// How long a repair may take, and catching up when etcd is back.
const REPAIR: Duration = Duration::from_secs(2);
/// Of what lies above, made-up hosts have their subnets.
const CONFIG: &str =
    r#"{"Network": "10.240.0.0/12", "SubnetMax": "10.249.255.0", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str = r#"{"EnableIPv6": true, "Network": "10.240.0.0/12", "IPv6Network": "fd00:42::/48",
    "Backend": {"Type": "vxlan"}}"#;
const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:43::/48",
    "Backend": {"Type": "vxlan"}}"#;
const SUBNETS: &str = "/coreos.com/network/subnets/";
const DEVICE: &str = "weft.1";

/// Hosts with an agent each, on one network.
struct Fleet {
    agents: Vec<Weftd>,
    etcd: Etcd,
    cluster: Cluster,
    /// Those of the network.
    families: Vec<Family>,
}

impl Fleet {
    fn new(hosts: u8) -> Self {
        Self::of(hosts, CONFIG, &json!({}))
    }

    /// With a configuration of the network, and changes of the agents'.
    fn of(hosts: u8, config: &str, changes: &Value) -> Self {
        Self::on(Cluster::new(hosts), config, changes)
    }

    fn on(cluster: Cluster, config: &str, changes: &Value) -> Self {
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put("/coreos.com/network/config", config);
        let agents: Vec<Weftd> =
            cluster.nodes().iter().map(|node| Weftd::start(node, &etcd, changes)).collect();
        agents.iter().for_each(Weftd::ready);
        let config: Value = serde_json::from_str(config).expect("a configuration");
        let enabled = |key: &str, default| config[key].as_bool().unwrap_or(default);
        let families = [
            enabled("EnableIPv4", true).then_some(Family::V4),
            enabled("EnableIPv6", false).then_some(Family::V6),
        ];
        Self { agents, etcd, cluster, families: families.into_iter().flatten().collect() }
    }

    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// The network on a host's subnet, as flannel's consumers make it.
    fn network(&self, index: usize) -> Network {
        Network::leased(self.node(index), "weft").with(&json!({ "name": Weftd::NETWORK }))
    }

    /// A pod on a host, and its address.
    #[track_caller]
    fn pod(&self, index: usize) -> (Pod, IpAddr) {
        let (pod, addresses) = self.pod_of_all(index);
        (pod, addresses[0])
    }

    /// A pod on a host, and its addresses, as many as the network has families.
    #[track_caller]
    fn pod_of_all(&self, index: usize) -> (Pod, Vec<IpAddr>) {
        let (pod, result) = self.node(index).attach(&self.network(index));
        let addresses = ips(&result);
        let families: Vec<Family> = addresses.iter().copied().map(Family::of).collect();
        assert_eq!(families, self.families);
        (pod, addresses)
    }

    /// Waits until every host knows of every other one.
    fn acquainted(&self) {
        let others = self.agents.len() - 1;
        for node in self.cluster.nodes() {
            for device in self.families.iter().map(|family| family.device()) {
                eventually(PATIENCE, &format!("{device} of {} leads to {others} others", node.name), || {
                    (forwarding_entries(node, device) == others).then_some(())
                });
            }
        }
    }
}

/// How many peers a device of a node leads to.
fn forwarding_entries(node: &Node, device: &str) -> usize {
    let entries = node.command(&format!("bridge fdb show dev {device}"));
    entries.lines().filter(|line| line.contains(" dst ") && line.contains("permanent")).count()
}

/// The subnet that a node was given, as in its key: `10.240.34.0-24`.
fn subnet(node: &Node) -> String {
    node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24")
}

/// Waits until an agent has heard etcd some times more.
#[track_caller]
fn asks_etcd_again(agent: &Weftd) {
    let (mut looks, mut last) = (0, 0.0);
    eventually(Duration::from_secs(30), "it asks etcd again", || {
        let silence = agent.metric(r#"weft_store_silence_seconds{network="pods"}"#)?;
        looks += i32::from(silence < last);
        last = silence;
        (looks >= 3).then_some(())
    });
}

/// Waits until a record names these addresses.
#[track_caller]
fn assert_published(etcd: &Etcd, key: &str, addresses: &[&str]) {
    eventually(PATIENCE, &format!("{addresses:?} are published"), || {
        let value = etcd.get(key)?;
        addresses.iter().all(|address| value.contains(&format!("\"{address}\""))).then_some(())
    });
}

/// How often everything was compared.
fn syncs(agent: &Weftd) -> f64 {
    agent.metric(r#"weft_sync_duration_seconds_count{network="pods"}"#).expect("a count")
}

fn mac(node: &Node) -> String {
    Family::V4.mac(node)
}

/// A record of a host that is not there.
fn record(public: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Waits until a node leads to a record's host, or does not any more.
#[track_caller]
fn assert_learns(node: &Node, limit: Duration, mac: &str, there: bool) {
    eventually(limit, &format!("{} and {mac}: {there}", node.name), || {
        let entries = node.command(&format!("bridge fdb show dev {DEVICE}"));
        (entries.contains(mac) == there).then_some(())
    });
}

#[test]
fn containers_of_two_hosts_reach_each_other() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let pods = [fleet.pod(0), fleet.pod(1)];
    assert_all_reach(&pods.each_ref().map(|(pod, address)| (pod, *address)));
    for (index, (_, address)) in pods.iter().enumerate() {
        let node = fleet.node(index);
        let env = node.subnet_env();
        assert_eq!(env["FLANNEL_NETWORK"], "10.240.0.0/12");
        assert_eq!((env["FLANNEL_MTU"].as_str(), env["FLANNEL_IPMASQ"].as_str()), ("1450", "false"));
        let gateway = env["FLANNEL_SUBNET"].trim_end_matches("1/24");
        assert!(address.to_string().starts_with(gateway), "{address} {env:?}");
        let value = fleet.etcd.get(&format!("{SUBNETS}{}", subnet(node))).expect("the host's record");
        assert_eq!(value, record(&node.ipv4.to_string(), &mac(node)));
        let leases = fleet.etcd.leases();
        assert_eq!(leases.len(), 2, "{leases:?}");
        fleet.network(index).call("STATUS").on(node).run().done();
    }
    let agent = &fleet.agents[0];
    for (metric, expected) in [
        (r#"weft_ready{network="pods"}"#, 1.0),
        (r#"weft_peers{network="pods",state="valid"}"#, 1.0),
        (r#"weft_addresses{network="pods",family="ipv4",state="used"}"#, 1.0),
        (r#"weft_addresses{network="pods",family="ipv4",state="free"}"#, 252.0),
    ] {
        assert_eq!(agent.metric(metric), Some(expected), "{metric}");
    }
    assert!(agent.metric(r#"weft_lease_left_seconds{network="pods"}"#).unwrap() > 86_000.0);
    assert_eq!(agent.ask("/healthz").unwrap().status, 200);
}

#[test]
fn both_families_and_ipv6_alone() {
    for config in [DUAL, V6] {
        let fleet = Fleet::of(2, config, &json!({}));
        let attached = [0, 1].map(|index| fleet.pod_of_all(index));
        let pods: Vec<(&Pod, IpAddr)> = attached
            .iter()
            .flat_map(|(pod, addresses)| addresses.iter().map(move |address| (pod, *address)))
            .collect();
        eventually(PATIENCE, "peers are known", || {
            let known =
                |agent: &Weftd| agent.metric(r#"weft_peers{network="pods",state="valid"}"#) == Some(1.0);
            fleet.agents.iter().all(known).then_some(())
        });
        assert_all_reach(&pods);
        let free = |family: &str| {
            fleet.agents[0]
                .metric(&format!(r#"weft_addresses{{network="pods",family="{family}",state="free"}}"#))
        };
        assert_eq!(free("ipv4"), fleet.families.contains(&Family::V4).then_some(252.0));
        assert_eq!(free("ipv6"), Some(2_f64.powi(64) - 3.0));
        let env = fleet.node(0).subnet_env();
        for (family, key) in [(Family::V4, "FLANNEL_SUBNET"), (Family::V6, "FLANNEL_IPV6_SUBNET")] {
            assert_eq!(env.contains_key(key), fleet.families.contains(&family), "{env:?}");
        }
    }
}

/// A host that joins and one that leaves, and a record that changes: seen at once.
#[test]
fn hosts_come_change_and_go() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let key = format!("{SUBNETS}10.255.7.0-24");
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_learns(node, REPAIR, "8e:00:00:00:00:01 dst 172.30.0.99", true);
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:02"));
    assert_learns(node, REPAIR, "8e:00:00:00:00:02 dst 172.30.0.99", true);
    assert_learns(node, REPAIR, "8e:00:00:00:00:01", false);
    fleet.etcd.del(&key);
    assert_learns(node, REPAIR, "8e:00:00:00:00:02", false);
    assert!(!node.command("ip route").contains("10.255.7.0"));
    assert!(!node.command("ip neigh").contains("10.255.7.0"));
}

/// One agent for two networks, each with its own device, file and state.
#[test]
fn two_networks_of_one_host() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    let node = cluster.node(0);
    let mut networks = Vec::new();
    for (number, name) in [(1, "one"), (2, "two")] {
        let prefix = format!("/{name}");
        let backend = json!({ "Type": "vxlan", "VNI": number });
        let config = json!({ "Network": format!("10.{number}.0.0/16"), "Backend": backend });
        etcd.put(&format!("{prefix}/config"), config.to_string());
        networks.push(json!({
            "name": name,
            "etcd": { "endpoints": etcd.endpoints(), "prefix": prefix },
            "subnetFile": node.directory().join(format!("{name}.env")),
        }));
    }
    let agent = Weftd::with(node, &json!({ "networks": networks }));
    agent.ready();
    let text = agent.ask("/readyz").unwrap().body;
    for (number, name) in [(1, "one"), (2, "two")] {
        assert!(node.link(&format!("weft.{number}")).is_some());
        let env = fs::read_to_string(node.directory().join(format!("{name}.env"))).expect("a subnet file");
        assert!(env.contains(&format!("FLANNEL_NETWORK=10.{number}.0.0/16")), "{env}");
        assert!(text.contains(&format!("{name}: subnet 10.{number}.")), "{text}");
    }
}
