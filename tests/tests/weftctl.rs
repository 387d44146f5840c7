//! `weftctl` on hosts of a network, with and without the agent.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Access, Cluster, Etcd, Network, Node, Pod, Weftd, dist, eventually, peers};

#[path = "weftctl/trouble.rs"]
mod trouble;

const CONFIG: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const PATIENCE: Duration = Duration::from_secs(10);
const DUAL: &str = r#"{"EnableIPv6": true, "Network": "10.240.0.0/12", "IPv6Network": "fd00:42::/48",
    "Backend": {"Type": "vxlan"}}"#;
const V4: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;

struct Fleet {
    cluster: Cluster,
    etcd: Etcd,
}

impl Fleet {
    fn new(hosts: u8) -> Self {
        let cluster = Cluster::new(hosts);
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, V4);
        Self { cluster, etcd }
    }

    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// Runs it on a host with words as a shell would split them.
    fn weftctl(&self, node: usize, words: &str) -> Output {
        let mut command = self.command(node, words);
        self.node(node).inside(|| command.output().expect("run weftctl"))
    }

    fn command(&self, node: usize, words: &str) -> Command {
        let node = self.node(node);
        let mut command = Command::new(dist().join("weftctl"));
        command.args(["--name", Weftd::NETWORK, "--etcd-endpoints", &self.etcd.endpoints()[0]]);
        command.arg("--subnet-file").arg(node.subnet_file());
        command.args(words.split_whitespace()).envs(node.env());
        command
    }

    #[track_caller]
    fn says(&self, node: usize, words: &str) -> String {
        let output = self.weftctl(node, words);
        assert!(output.status.success(), "weftctl {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn refuses(&self, node: usize, words: &str, parts: &[&str]) {
        let output = self.weftctl(node, words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "weftctl {words} succeeded");
        for part in parts {
            assert!(text.contains(part), "weftctl {words}: {text} lacks {part}");
        }
    }

    fn status(&self, node: usize) -> Value {
        let all: Value = serde_json::from_str(&self.says(node, "status -o json")).expect("JSON");
        all[0].clone()
    }
}

#[test]
fn status_of_hosts_with_agents() {
    let fleet = Fleet::new(2);
    let agents: Vec<Weftd> = fleet.cluster.nodes().iter().map(|node| Weftd::up(node, &fleet.etcd)).collect();
    let network = Weftd::network(&fleet.etcd);
    let (pod, _result) = fleet.node(0).attach(&network);
    let status = eventually(PATIENCE, "all is well", || {
        let status = fleet.status(0);
        (status["damage"] == json!([]) && status["peers"].as_array()?.len() == 1).then_some(status)
    });
    assert_eq!((&status["agent"], &status["etcd"]["answers"]), (&json!(true), &json!(true)));
    assert_eq!(status["addresses"], json!({ "ipv4": { "used": 1.0, "free": 252.0 } }));
    assert_eq!(
        (&status["peers"][0]["address"], &status["peers"][0]["state"]),
        (&json!("172.30.0.12"), &json!("followed"))
    );
    assert!(status["lease"]["remaining"].as_u64() > Some(86_000), "{status}");
    let text = fleet.says(0, "status");
    for part in [
        "network pods", "weftd renews it", "1 used, 252 free", "answers, revision", "as it ought to be",
        "172.30.0.12",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let held = fleet.says(0, "ipam ls");
    assert!(held.contains(&pod.id) && held.contains("eth0") && held.contains("1 addresses held"), "{held}");
    let held: Value = serde_json::from_str(&fleet.says(0, "ipam ls -o json")).expect("JSON");
    assert_eq!(held["pods"][0]["containerID"], json!(pod.id));

    // A record that is none, a device that is gone, a store that is away.
    fleet.etcd.put(&format!("{SUBNETS}10.250.1.0-24"), "{]\u{1b}[2J");
    let passed_over = |status: &Value| {
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().any(|peer| peer["state"].as_str().is_some_and(|state| state.contains("passed over")))
    };
    assert!(passed_over(&fleet.status(0)));
    assert!(!fleet.says(0, "status").contains('\u{1b}'), "what others wrote moves no cursor");
    drop(agents);
    fleet.node(0).command("ip link delete weft.1");
    fleet.etcd.kill();
    let text = fleet.says(0, "status");
    for part in ["no weftd renews it", "device weft.1 is gone", "refuses the connection"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_host_leaves() {
    let fleet = Fleet::new(2);
    let network = Weftd::network(&fleet.etcd);
    let is_known = || {
        let rules = fleet.node(0).command("nft list ruleset");
        rules.contains("\"network ") && rules.contains(" pods\"")
    };
    assert!(fleet.says(0, "leave").contains("no lease"));
    let agent = Weftd::up(fleet.node(0), &fleet.etcd);
    fleet.refuses(0, "leave", &["weftd looks after it", "end weftd first"]);
    assert!(is_known());
    agent.daemon().stop();
    let (pod, _result) = fleet.node(0).attach(&network);
    fleet.refuses(0, "leave", &[&pod.id, "--force"]);
    assert_eq!(fleet.etcd.keys(SUBNETS).len(), 1);
    network.call("DEL").pod(&pod).on(fleet.node(0)).run().done();
    assert!(fleet.says(0, "leave").contains("is given up"));
    assert_eq!(fleet.etcd.keys(Weftd::PREFIX), [CONFIG], "nothing of the host is left");
    assert!(fleet.etcd.leases().is_empty());
    assert!(fleet.node(0).link("weft.1").is_none());
    assert!(!fleet.node(0).subnet_file().exists());
    assert!(fleet.says(0, "leave").contains("no lease"));
    assert!(!is_known(), "the rules have forgotten the network");
    // By force, and back.
    let (_cut_off, _result) = fleet.node(0).attach(&network);
    assert!(fleet.says(0, "leave --force").contains("is given up"));
    assert!(is_known(), "other networks are kept from its container");
    drop(fleet.node(1).attach(&network));
    fleet.etcd.kill();
    fleet.refuses(1, "leave --force", &["refuses the connection"]);
    assert!(fleet.node(1).link("weft.1").is_some(), "the lease is given up first, or nothing");
}

/// Somebody puts the record again without a lease while weftd runs, which has nothing to write then.
#[test]
fn a_host_leaves_whose_record_was_pinned_meanwhile() {
    let leased = || {
        let fleet = Fleet::new(1);
        let agent = Weftd::up(fleet.node(0), &fleet.etcd);
        let key = fleet.etcd.keys(SUBNETS).remove(0);
        let value = fleet.etcd.get(&key).expect("the host's record");
        (fleet, agent, key, value)
    };
    // Also when the configuration names another prefix by now.
    for words in ["leave", "--etcd-prefix /other leave"] {
        let (fleet, agent, key, value) = leased();
        fleet.etcd.put(&key, &value);
        agent.daemon().stop();
        let said = fleet.says(0, words);
        assert!(said.contains("is given up;"), "{said}");
        assert_eq!(fleet.etcd.keys(Weftd::PREFIX), [CONFIG], "nothing of the host is left");
        assert!(fleet.etcd.leases().is_empty());
    }
    // Under another program's lease it is not this host's, whatever it says.
    let (fleet, agent, key, value) = leased();
    fleet.etcd.put_leased(&key, &value, &fleet.etcd.grant(600));
    agent.daemon().stop();
    let said = fleet.says(0, "leave");
    assert!(
        said.contains("not this host's, and stays") && said.contains(&format!("etcdctl del {key}")),
        "{said}"
    );
    assert_eq!(fleet.etcd.keys(Weftd::PREFIX), [CONFIG, &key]);
}

/// Whoever was killed between etcd's answer and the disk has a file that names another lease than the record hangs on, another
/// record, no lease, or the addresses of before it was renumbered.
#[test]
fn a_host_leaves_whose_file_is_older_than_its_record() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let file = node.data_dir().join(Weftd::NETWORK).join("lease.json");
    let run = |seconds: u64| {
        let agent = Weftd::start(node, &fleet.etcd, &json!({ "leaseTTL": seconds }));
        agent.ready();
        agent.daemon().stop();
    };
    for (differs, seconds) in [("lease", 500), ("value", 600), ("version", 500), ("address", 600)] {
        run(600);
        let mut before: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("a lease")).expect("JSON");
        match differs {
            "value" => fleet.etcd.put(CONFIG, V4.replace(r#""vxlan""#, r#""vxlan", "VNI": 7"#)),
            "version" => {
                let key = fleet.etcd.keys(SUBNETS).remove(0);
                fleet.etcd.put(&key, before["value"].as_str().expect("the record"));
                before["leaseId"] = json!(0);
            }
            "address" => node.renumber("172.30.0.11", "172.30.0.77"),
            _ => {}
        }
        run(seconds);
        std::fs::write(&file, before.to_string()).expect("put the older file");
        let said = fleet.says(0, "leave");
        assert!(said.contains("is given up;"), "{differs}: {said}");
        assert_eq!(fleet.etcd.keys(Weftd::PREFIX), [CONFIG], "{differs}: nothing of the host is left");
        assert!(fleet.etcd.leases().is_empty(), "{differs}");
    }
}

/// A file that was emptied says nothing of what is in etcd and in the kernel.
#[test]
fn a_host_does_not_leave_by_a_damaged_file() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let file = node.data_dir().join(Weftd::NETWORK).join("lease.json");
    Weftd::up(node, &fleet.etcd).daemon().stop();
    let keys = fleet.etcd.keys(Weftd::PREFIX);
    for text in ["", "{", "{}"] {
        std::fs::write(&file, text).expect("damage the lease");
        fleet.refuses(0, "leave", &["lease.json is damaged", "start weftd", "leave again"]);
        fleet.refuses(0, "leave --force", &["lease.json is damaged"]);
        assert_eq!(fleet.etcd.keys(Weftd::PREFIX), keys);
        assert!(node.link("weft.1").is_some() && file.exists());
    }
    Weftd::up(node, &fleet.etcd).daemon().stop();
    assert!(fleet.says(0, "leave").contains("is given up"));
    assert_eq!(fleet.etcd.keys(Weftd::PREFIX), [CONFIG], "nothing of the host is left");
    assert!(fleet.etcd.leases().is_empty() && node.link("weft.1").is_none());
}

/// While etcd takes its time: an agent or a container that comes meanwhile finds the host in the network, or out of it.
#[test]
fn nobody_comes_while_a_host_leaves() {
    let fleet = Fleet::new(1);
    let (node, network) = (fleet.node(0), Weftd::network(&fleet.etcd));
    for with_agent in [false, true] {
        let (pod, _result) = node.attach(&network);
        network.del_call(&pod).on(node).run().done();
        fleet.etcd.freeze();
        let mut leave = fleet.command(0, "leave");
        leave.env("WEFT_ETCD_TIMEOUT", "30").stdout(Stdio::piped()).stderr(Stdio::piped());
        let leave = node.inside(|| leave.spawn().expect("run weftctl"));
        let descriptors = format!("/proc/{}/fd", leave.id());
        eventually(PATIENCE, "it talks with etcd", || {
            let mut files = std::fs::read_dir(&descriptors).ok()?.filter_map(Result::ok);
            let is_event_loop = |path: &Path| path.to_string_lossy().contains("[eventpoll]");
            files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| is_event_loop(&to))).then_some(())
        });
        let agent = with_agent.then(|| Weftd::start(node, &fleet.etcd, &json!({})));
        if let Some(agent) = &agent {
            assert!(!agent.daemon().wait().success());
            let log = agent.daemon().log();
            assert!(log.contains("agent.lock") && log.contains(&format!("pid {}", leave.id())), "{log}");
        }
        let late = Pod::new();
        let add = network.add_call(&late).on(node).start();
        fleet.etcd.thaw();
        let left = leave.wait_with_output().expect("wait for weftctl");
        assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
        let result = add.finish().result();
        let address = result["ips"][0]["address"].as_str().expect("an address");
        let (subnet, _) = address.rsplit_once('.').expect("an IPv4 address");
        assert_eq!(
            fleet.etcd.keys(SUBNETS),
            [format!("{SUBNETS}{subnet}.0-24")],
            "the container's subnet is leased"
        );
        network.del_call(&late).on(node).run().done();
    }
}

/// Containers of whose addresses `weft-ipam` does not know by the network's name: of `host-local`, as on a host that changed over from flanneld,
/// and of a conflist with another name.
#[test]
fn a_host_with_containers_of_other_books_does_not_leave() {
    for (name, ipam) in [(Weftd::NETWORK, "host-local"), ("cbr0", "weft-ipam")] {
        let fleet = Fleet::new(1);
        let node = fleet.node(0);
        Weftd::up(node, &fleet.etcd).daemon().stop();
        let network = Network::leased(node, "weft").with(
            &json!({ "name": name, "ipam": { "type": ipam, "dataDir": node.directory().join("ipam") } }),
        );
        let path = std::env::join_paths([dist(), peers()]).expect("a path");
        let pod = Pod::new();
        let result = network.add_call(&pod).on(node).env("CNI_PATH", &path).run().result();
        let link = result["interfaces"][1]["name"].as_str().expect("the host's end");
        let key = fleet.etcd.keys(SUBNETS).remove(0);
        let subnet = key.trim_start_matches(SUBNETS);
        fleet.refuses(0, "leave", &[link, subnet, "another IPAM plugin or network name", "--force"]);
        assert_eq!(fleet.etcd.keys(SUBNETS), [key]);
        network.del_call(&pod).on(node).env("CNI_PATH", &path).run().done();
        assert!(fleet.says(0, "leave").contains("is given up"));
    }
}

#[test]
fn the_networks_configuration() {
    let fleet = Fleet::new(1);
    assert_eq!(fleet.says(0, "config get").trim(), V4);
    drop(fleet.node(0).attach(&Weftd::network(&fleet.etcd)));
    let file = fleet.node(0).directory().join("config.json");
    let put = |text: &str| std::fs::write(&file, text).expect("write a configuration");
    let command = format!("config put {}", file.display());
    put("{");
    fleet.refuses(0, &command, &["JSON", "correct it there"]);
    put(r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "udp"}}"#);
    fleet.refuses(0, &command, &["Backend.Type", "udp"]);
    put(r#"{"Network": "127.0.0.0/8", "Backend": {"Type": "vxlan"}}"#);
    fleet.refuses(0, &command, &["Network: 127.0.0.0/8 overlaps", "loopback", "unicast"]);
    put(r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan"}}"#);
    let key = fleet.etcd.keys(SUBNETS)[0].trim_start_matches(SUBNETS).to_owned();
    fleet.refuses(0, &command, &["cut off", &key, "--force"]);
    // Its subnet is in the network, but of one family.
    put(DUAL);
    fleet.refuses(0, &command, &["families", &key, "--force"]);
    assert_eq!(fleet.etcd.get(CONFIG).as_deref(), Some(V4));
    let wider = r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.241.0.0", "Backend": {"Type": "vxlan"}}"#;
    put(wider);
    fleet.says(0, &command);
    assert_eq!(fleet.etcd.get(CONFIG).as_deref(), Some(wider));
    // The first one.
    fleet.etcd.del(CONFIG);
    fleet.refuses(0, "config get", &["is not in etcd"]);
    fleet.says(0, &command);
    assert_eq!(fleet.etcd.get(CONFIG).as_deref(), Some(wider));
    fleet.refuses(0, "config put /nowhere.json", &["/nowhere.json"]);
}

#[test]
fn wrong_words_are_told() {
    let fleet = Fleet::new(1);
    fleet.refuses(0, "--network other status", &["other", "pods"]);
    fleet.refuses(0, "statsu", &["status"]);
    let output = Command::new(dist().join("weftctl")).args(["--config", "/nowhere.json", "status"]).output();
    let text = String::from_utf8_lossy(&output.expect("run weftctl").stderr).into_owned();
    for part in ["/nowhere.json", "docs/weftd.md", "--name, --etcd-endpoints and --etcd-prefix"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn completions_and_manual_pages() {
    let fleet = Fleet::new(1);
    for shell in ["bash", "zsh", "fish"] {
        assert!(fleet.says(0, &format!("completions {shell}")).contains("weftctl"));
    }
    let directory = fleet.node(0).directory().join("man");
    std::fs::create_dir_all(&directory).expect("make a directory");
    fleet.says(0, &format!("man {}", directory.display()));
    for page in ["weftctl.1", "weftctl-status.1", "weftd.1"] {
        let text = std::fs::read_to_string(Path::new(&directory).join(page)).expect(page);
        assert!(text.contains(".TH"), "{page}");
    }
    fleet.refuses(0, "man /nowhere", &["/nowhere"]);
}
