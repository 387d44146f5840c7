//! Two machines with one public address, of which each has an agent.

use std::process::Command;

use weft_tests::dist;

use super::pinned::PINNED;
use super::*;

/// The agents' own patience with one that is not heard, and some.
const SILENCE: Duration = Duration::from_secs(45);

/// Hosts 0 and 1, of which each has the address of host 0, on segments of their own; an agent on host 0.
struct Twins {
    first: Weftd,
    etcd: Etcd,
    cluster: Cluster,
}

impl Twins {
    fn new(changes: &Value) -> Self {
        Self::of(changes, None)
    }

    /// With a subnet that somebody has pinned for the address.
    fn of(changes: &Value, pinned: Option<&str>) -> Self {
        let cluster = Cluster::segments(&[1, 1]);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put("/coreos.com/network/config", CONFIG);
        if let Some(key) = pinned {
            etcd.put(&format!("{SUBNETS}{key}"), record("172.30.0.11", "8e:00:00:00:00:0b"));
        }
        cluster.node(1).command("ip addr add 172.30.0.11/32 dev eth0");
        let first = Weftd::start(cluster.node(0), &etcd, changes);
        first.ready();
        Self { first, etcd, cluster }
    }

    /// An agent on host 1, that is told to be reached by the address of host 0.
    fn second(&self) -> Weftd {
        Weftd::start(self.cluster.node(1), &self.etcd, &json!({ "publicIP": "172.30.0.11" }))
    }

    fn weftctl(&self, node: usize, words: &[&str]) -> String {
        weftctl(self.cluster.node(node), &self.etcd, words)
    }

    fn everything(&self) -> Vec<(String, Option<String>)> {
        let keys = self.etcd.keys(Weftd::PREFIX);
        keys.into_iter().map(|key| (key.clone(), self.etcd.get(&key))).collect()
    }

    /// Waits until an agent says that it is not ready, for what reason.
    #[track_caller]
    fn refused(agent: &Weftd, parts: &[&str]) {
        eventually(PATIENCE, &format!("readiness is false and names {parts:?}"), || {
            let answer = agent.ask("/readyz")?;
            let all = parts.iter().all(|part| answer.body.contains(part));
            (answer.status == 503 && all).then_some(())
        });
    }
}

/// What the operator's tool says on a node.
#[track_caller]
pub(super) fn weftctl(node: &Node, etcd: &Etcd, words: &[&str]) -> String {
    let mut command = Command::new(dist().join("weftctl"));
    command.args(["--name", Weftd::NETWORK, "--etcd-endpoints", &etcd.endpoints()[0]]);
    command.arg("--subnet-file").arg(node.subnet_file()).args(words).envs(node.env());
    let output = node.inside(|| command.output().expect("run weftctl"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_agent_of_the_second_host_is_refused() {
    the_second_is_refused(&Twins::new(&json!({})));
    the_second_is_refused(&Twins::of(&json!({}), Some(PINNED)));
}

fn the_second_is_refused(twins: &Twins) {
    let (one, two) = (twins.cluster.node(0), twins.cluster.node(1));
    let own = subnet(one);
    let mac = one.link("eth0").expect("an interface")["address"].as_str().expect("a MAC").to_owned();
    let before = (twins.everything(), twins.etcd.revision());
    let second = twins.second();
    let parts = ["172.30.0.11", &mac, &own, "ipam.publicIP", "etcdctl del"];
    Twins::refused(&second, &parts);
    // It asks again and again, and says it once; so does the plugin, which has nothing else to go by.
    let network = Weftd::network(&twins.etcd).with(&json!({ "ipam": { "publicIP": "172.30.0.11" } }));
    network.call("STATUS").on(two).run().error_code(50).assert_names(&parts);
    network.add_call(&Pod::new()).on(two).run().error_code(103).assert_names(&parts);
    let log = second.daemon().log();
    assert_eq!(log.lines().filter(|line| line.contains("ERROR") && line.contains(&mac)).count(), 1, "{log}");
    assert_eq!((twins.everything(), twins.etcd.revision()), before, "nothing was written");
    assert!(two.link(DEVICE).is_none() && !two.subnet_file().exists());
    twins.first.ready();
    // The first one leaves, and the second gets in; then it is the first that is refused.
    twins.first.daemon().stop();
    assert!(twins.weftctl(0, &["leave"]).contains("is given up"));
    second.ready();
    assert_eq!(twins.etcd.leases().len(), 1);
    let first = Weftd::start(one, &twins.etcd, &json!({}));
    Twins::refused(&first, &["172.30.0.11", &subnet(two)]);
}

/// The whole disk is a copy, with the file of the lease.
#[test]
fn the_copy_of_a_hosts_disk_is_refused_while_the_host_lives() {
    let twins = Twins::new(&json!({}));
    let (one, two) = (twins.cluster.node(0), twins.cluster.node(1));
    let before = (twins.everything(), twins.etcd.revision());
    fs::create_dir_all(two.data_dir().join("pods")).expect("make a directory");
    for file in ["lease.json", "peers.json"] {
        let file = std::path::Path::new("pods").join(file);
        fs::copy(one.data_dir().join(&file), two.data_dir().join(&file)).expect("copy a disk");
    }
    let second = twins.second();
    Twins::refused(&second, &["172.30.0.11", "another live host", &subnet(one)]);
    assert!(two.link(DEVICE).is_none() && !two.subnet_file().exists());
    // What it gives up is not the other's.
    second.daemon().stop();
    assert!(twins.weftctl(1, &["leave"]).contains("stays with another host"));
    assert_eq!((twins.everything(), twins.etcd.revision()), before, "nothing was written");
    twins.first.ready();
}

/// A host that was cut off while another one came to its address: its containers stay, and it is told until the other
/// one leaves.
#[test]
fn an_agent_that_is_not_heard_loses_its_address() {
    let mut twins = Twins::new(&json!({}));
    let own = subnet(twins.cluster.node(0));
    let network = Network::leased(twins.cluster.node(0), "weft").with(&json!({ "name": Weftd::NETWORK }));
    let (pod, result) = twins.cluster.node(0).attach(&network);
    twins.first.daemon().kill();
    let second = twins.second();
    Twins::refused(&second, &["172.30.0.11"]);
    eventually(SILENCE, "the second gets in", || (second.ask("/readyz")?.status == 200).then_some(()));
    assert_eq!(subnet(twins.cluster.node(1)), own);
    let taken = twins.everything();
    twins.first = Weftd::start(twins.cluster.node(0), &twins.etcd, &json!({}));
    let parts = [own.as_str(), "belongs to another live host with this one's address 172.30.0.11"];
    Twins::refused(&twins.first, &parts);
    network.call("STATUS").on(twins.cluster.node(0)).run().error_code(51).assert_names(&parts);
    let log = twins.first.daemon().log();
    assert!(log.contains(parts[1]) && !log.contains('\\'), "{log}");
    assert!(pod.addresses("eth0").iter().any(|found| found.starts_with(&ips(&result)[0].to_string())));
    assert_eq!(twins.everything(), taken);
    second.daemon().stop();
    assert!(twins.weftctl(1, &["leave"]).contains("is given up"));
    eventually(PATIENCE, "the first has its subnet again", || {
        (twins.first.ask("/readyz")?.status == 200).then_some(())
    });
    assert_eq!(subnet(twins.cluster.node(0)), own);
}

/// A pinned record stays when its host is gone, and is for whoever comes then.
#[test]
fn a_pinned_subnet_is_another_machines_when_the_first_is_gone() {
    let short = json!({ "leaseTTL": 10 });
    let mut twins = Twins::of(&short, Some(PINNED));
    let key = format!("{SUBNETS}{PINNED}");
    let own = twins.etcd.get(&key);
    twins.first.daemon().kill();
    let changes = json!({ "publicIP": "172.30.0.11", "leaseTTL": 10 });
    let second = Weftd::start(twins.cluster.node(1), &twins.etcd, &changes);
    Twins::refused(&second, &["172.30.0.11", "another live host", PINNED]);
    second.ready();
    assert_eq!((subnet(twins.cluster.node(1)), twins.etcd.get(&key)), (PINNED.to_owned(), own.clone()));
    let leases = twins.etcd.leases();
    assert!(leases.len() == 1 && !leases[0].keys.contains(&key), "{leases:?}");
    twins.first = Weftd::start(twins.cluster.node(0), &twins.etcd, &short);
    Twins::refused(&twins.first, &["172.30.0.11", "another live host", PINNED]);
    assert_eq!(twins.etcd.get(&key), own);
    second.ready();
}

/// Nothing is left of it but its hardware, and its agent was heard a moment ago.
#[test]
fn a_host_that_was_set_up_anew_is_itself() {
    let mut twins = Twins::new(&json!({}));
    let node = twins.cluster.node(0);
    let own = subnet(node);
    let records = twins.etcd.keys(SUBNETS);
    twins.first.daemon().kill();
    node.command(&format!("ip link del {DEVICE}"));
    fs::remove_dir_all(node.directory()).expect("lose the disk");
    let start = Instant::now();
    twins.first = Weftd::up(node, &twins.etcd);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!((subnet(node), twins.etcd.keys(SUBNETS)), (own, records));
    assert_eq!(twins.etcd.leases().len(), 1);
}

/// The network has the host's subnet no more, and containers live in it: it stays the host's, and everybody is told.
#[test]
fn a_network_that_was_configured_anew_keeps_containers_where_they_are() {
    let mut twins = Twins::new(&json!({ "leaseTTL": 4 }));
    let node = twins.cluster.node(0);
    let own = subnet(node);
    let network = Network::leased(node, "weft").with(&json!({ "name": Weftd::NETWORK }));
    let (_pod, _) = node.attach(&network);
    let config = "/coreos.com/network/config";
    twins.etcd.put(config, r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    // It looks once a minute, and at its start.
    twins.first.daemon().stop();
    twins.first = Weftd::start(node, &twins.etcd, &json!({ "leaseTTL": 4 }));
    Twins::refused(&twins.first, &["config was changed", &own, "10.96.0.0/12", "weftctl leave"]);
    let mut last = u64::MAX;
    eventually(PATIENCE, "the lease is renewed all the same", || {
        let left = twins.etcd.leases().first().expect("the lease").remaining;
        (left > std::mem::replace(&mut last, left)).then_some(())
    });
    assert_eq!(subnet(node), own);
    let log = twins.first.daemon().log();
    assert_eq!(log.lines().filter(|line| line.contains("config was changed")).count(), 1, "{log}");
    twins.etcd.put(config, CONFIG);
    twins.first.ready();
    assert_eq!(subnet(node), own);
}

/// That it may have some is all that is known without one: whoever reads subnet.env may use the subnet.
#[test]
fn a_network_that_was_configured_anew_before_any_container_came() {
    let mut twins = Twins::new(&json!({}));
    let own = subnet(twins.cluster.node(0));
    twins
        .etcd
        .put("/coreos.com/network/config", r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    let parts = [&own, "containers may have addresses of it", "stop weftd, weftctl leave, start weftd"];
    Twins::refused(&twins.first, &parts);
    assert!(twins.first.daemon().stop().success());
    twins.first = Weftd::start(twins.cluster.node(0), &twins.etcd, &json!({}));
    Twins::refused(&twins.first, &parts);
    // As it says.
    assert!(twins.first.daemon().stop().success());
    twins.weftctl(0, &["leave"]);
    twins.first = Weftd::up(twins.cluster.node(0), &twins.etcd);
    assert!(!subnet(twins.cluster.node(0)).starts_with("10.24"));
    assert_eq!(twins.etcd.keys(SUBNETS).len(), 1);
}

/// Nobody hears it any more, so that it has its address as long as its lease lasts.
#[test]
fn a_host_whose_agent_has_ended_for_good_is_known_as_one_without() {
    let mut twins = Twins::new(&json!({}));
    let node = twins.cluster.node(0);
    let key = format!("{}/weft/hosts/172.30.0.11", Weftd::PREFIX);
    let keeper = |etcd: &Etcd| -> Value {
        let holder: Value =
            serde_json::from_str(&etcd.get(&key).expect("who has the address")).expect("JSON");
        holder["keeper"].clone()
    };
    assert_eq!(keeper(&twins.etcd), "agent");
    assert!(twins.first.daemon().stop().success());
    let network = Weftd::network(&twins.etcd).with(&json!({ "ipam": { "peerRefresh": 0 } }));
    let own = subnet(node);
    let (_first, _) = node.attach(&network);
    assert_eq!(keeper(&twins.etcd), "plugin");
    let revision = twins.etcd.revision();
    let (_second, result) = node.attach(&network);
    assert_eq!(twins.etcd.revision(), revision, "it is written once");
    assert!(ips(&result)[0].to_string().starts_with(own.trim_end_matches("0-24")), "{result}");
    twins.first = Weftd::up(node, &twins.etcd);
    assert_eq!((keeper(&twins.etcd), subnet(node)), (json!("agent"), own));
    assert_eq!(twins.etcd.leases().len(), 1);
}
