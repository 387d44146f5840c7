//! The testbed does what the tests of many hosts rely on.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use weft_tests::{
    Access, Cluster, Daemon, Etcd, Flanneld, Host, Identity, Member, Network, Node, World, assert_all_reach,
    eventually, ip, ips, transfer,
};

/// A key and what it may hold: everything but the end of the text.
const KEY: &str = "/coreos.com/network/config";
const VALUE: &str = "{\"Network\": \"10.240.0.0/12\"}\n 'quoted' \\n";

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn etcd_keeps_values_keys_and_leases() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    let etcd = Etcd::new();
    assert_eq!(etcd.endpoints(), ["http://127.0.0.1:2379"]);
    assert_eq!(etcd.get(KEY), None);
    etcd.put(KEY, VALUE);
    assert_eq!(etcd.get(KEY).as_deref(), Some(VALUE));
    etcd.put(KEY, "");
    assert_eq!(etcd.get(KEY).as_deref(), Some(""));

    let lease = etcd.grant(1000);
    etcd.put_leased("/leased/a", "1", &lease);
    etcd.put_all([("/leased/b", "{\"a\": 1}"), ("/leased/c", "")]);
    assert_eq!(etcd.get("/leased/b").as_deref(), Some("{\"a\": 1}"));
    assert_eq!(etcd.keys("/leased/"), ["/leased/a", "/leased/b", "/leased/c"]);
    let leases = etcd.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!((leases[0].id.as_str(), leases[0].granted), (lease.as_str(), 1000));
    assert!((990..=1000).contains(&leases[0].remaining), "{leases:?}");
    assert_eq!(leases[0].keys, ["/leased/a"]);
    etcd.revoke(&lease);
    assert_eq!(etcd.leases(), []);
    etcd.del("/leased/b");
    assert_eq!(etcd.keys("/"), [KEY, "/leased/c"]);

    drop(etcd);
    before.assert_unchanged(&host, &[], "etcd came and went");
}

/// Values survive what a process survives, and only that.
#[test]
fn etcd_is_killed_frozen_compacted_and_emptied() {
    let _host = Host::new();
    let etcd = Etcd::new();
    etcd.put(KEY, "1");
    etcd.kill();
    etcd.restart();
    assert_eq!(etcd.get(KEY).as_deref(), Some("1"));

    etcd.put(KEY, "2");
    etcd.compact();
    let revision = etcd.revision();
    assert!(revision > 2, "{revision}");
    let past = etcd.attempt(&["get", "--rev", &(revision - 1).to_string(), KEY]);
    assert!(
        String::from_utf8_lossy(&past.stderr).contains("required revision has been compacted"),
        "{past:?}"
    );

    etcd.freeze();
    let frozen = etcd.attempt(&["--command-timeout", "200ms", "get", KEY]);
    assert!(!frozen.status.success(), "{frozen:?}");
    etcd.thaw();
    assert_eq!(etcd.get(KEY).as_deref(), Some("2"));

    etcd.restart_empty();
    assert_eq!(etcd.get(KEY), None);
    assert_eq!(etcd.revision(), 1);
}

#[test]
fn a_cluster_of_three_outlives_its_leader() {
    let _host = Host::new();
    let etcd = Etcd::local(3, Access::Open);
    etcd.put(KEY, "1");
    let first = eventually(PATIENCE, "a leader", || etcd.leader());
    etcd.members()[first].kill();
    let second = eventually(PATIENCE, "another leader", || etcd.leader());
    assert_ne!(first, second);
    etcd.put(KEY, "2");
    etcd.members()[first].start();
    etcd.members()[first].ready();
    assert!(etcd.members().iter().all(Member::is_healthy));
    assert_eq!(etcd.get(KEY).as_deref(), Some("2"));
}

/// What etcdctl says when it fails with some options, which it must.
#[track_caller]
fn refused(etcd: &Etcd, options: &[String]) -> String {
    // A handshake is repeated until then.
    let output = etcdctl(etcd, &[&["--command-timeout=1s".to_owned()], options].concat());
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Reads a key with options of one's own.
fn etcdctl(etcd: &Etcd, options: &[String]) -> Output {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.endpoints().join(",")]);
    command.args(options).args(["get", KEY]).output().expect("run etcdctl")
}

#[test]
fn etcd_wants_a_certificate() {
    let _host = Host::new();
    let etcd = Etcd::local(1, Access::Tls);
    etcd.put(KEY, "1");
    let tls = etcd.tls();
    let options = |authority: PathBuf, client: Identity| {
        let files = [("--cacert", authority), ("--cert", client.certificate), ("--key", client.key)];
        files.map(|(option, file)| format!("{option}={}", file.display()))
    };
    let right = options(tls.ca(), tls.client());
    assert!(etcdctl(&etcd, &right).status.success());
    // etcdctl only says that time is over; etcd's log says why.
    let assert_refused = |options: &[String], reason: &str| {
        let before = etcd.members()[0].log().len();
        refused(&etcd, options);
        eventually(PATIENCE, reason, || etcd.members()[0].log()[before..].contains(reason).then_some(()));
    };
    assert_refused(&options(tls.foreign_ca(), tls.client()), "remote error: tls: bad certificate");
    assert_refused(&options(tls.ca(), tls.expired_client()), "certificate has expired");
    assert_refused(&options(tls.ca(), tls.foreign_client()), "certificate signed by unknown authority");
    assert_refused(&right[..1], "client didn't provide a certificate");
    tls.expire_server();
    assert_refused(&right, "remote error: tls: bad certificate");
    assert_eq!(etcd.get(KEY).as_deref(), Some("1"), "the testbed itself still looks into the store");
}

#[test]
fn etcd_wants_a_password() {
    let _host = Host::new();
    let etcd = Etcd::local(1, Access::Password);
    etcd.put(KEY, "1");
    etcd.restart_empty();
    etcd.put(KEY, "2");
    let user = |password: &str| [format!("--user={}:{password}", Etcd::USER)];
    assert!(etcdctl(&etcd, &user(Etcd::PASSWORD)).status.success());
    let wrong = refused(&etcd, &user("wrong"));
    assert!(wrong.contains("invalid user ID or password"), "{wrong}");
    let none = refused(&etcd, &[]);
    assert!(none.contains("user name is empty"), "{none}");
}

/// Whether an echo request to a node's address of each family is answered within some seconds.
fn reaches(from: &Node, to: &Node, seconds: &str) -> [bool; 2] {
    let ping = |target: &str| {
        let mut command = Command::new("ping");
        command.args(["-n", "-c", "1", "-W", seconds, target]);
        from.inside(|| command.output()).expect("run ping").status.success()
    };
    [ping(&to.ipv4.to_string()), ping(&to.ipv6.to_string())]
}

#[test]
fn nodes_reach_each_other_until_cut() {
    let cluster = Cluster::segments(&[2, 1]);
    let nodes = cluster.nodes();
    let addresses: BTreeSet<String> =
        nodes.iter().map(|node| format!("{} {}", node.ipv4, node.ipv6)).collect();
    let expected = ["172.30.0.11 fd30::11", "172.30.0.12 fd30::12", "172.30.1.11 fd30:0:0:1::11"];
    assert_eq!(addresses, expected.map(str::to_owned).into());
    for from in nodes {
        for to in nodes {
            assert_eq!(reaches(from, to, "3"), [true; 2], "{} to {}", from.name, to.name);
        }
    }

    let (a, b) = (cluster.node(0), cluster.node(1));
    for (apart, together) in
        [(cut as fn(&Node), join as fn(&Node)), (|node| node.cable.unplug(), |node| node.cable.plug())]
    {
        apart(a);
        assert_eq!(reaches(a, b, "0.3"), [false; 2]);
        assert_eq!(reaches(b, cluster.node(2), "3"), [true; 2]);
        together(a);
        eventually(PATIENCE, "the cable works again", || (reaches(a, b, "0.3") == [true; 2]).then_some(()));
    }
}

fn cut(node: &Node) {
    node.cable.cut();
    assert_eq!(node.link("eth0").expect("eth0")["operstate"], "UP", "a partition is not to be seen");
}

fn join(node: &Node) {
    node.cable.join();
}

/// Sysctls and files of a node are its own.
#[test]
fn nodes_are_hosts_of_their_own() {
    let cluster = Cluster::new(2);
    let (a, b) = (cluster.node(0), cluster.node(1));
    a.set_sysctl("net/ipv4/ip_forward", "1");
    b.set_sysctl("net/ipv4/ip_forward", "0");
    assert_eq!([a.sysctl("net/ipv4/ip_forward"), b.sysctl("net/ipv4/ip_forward")], ["1", "0"]);
    assert_ne!(a.directory(), b.directory());
}

/// Every node has the store in reach, of either family, and every member can be cut off.
#[test]
fn nodes_reach_the_members_of_etcd() {
    let cluster = Cluster::segments(&[1, 1]);
    let etcd = cluster.etcd(3, Access::Open);
    assert_eq!(etcd.endpoints().len(), 6);
    for node in cluster.nodes() {
        for endpoint in etcd.endpoints() {
            let mut command = Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint, "put", KEY, &endpoint]);
            let output = node.inside(|| command.output()).expect("run etcdctl");
            assert!(output.status.success(), "{} to {endpoint}: {output:?}", node.name);
        }
    }
    let first = eventually(PATIENCE, "a leader", || etcd.leader());
    etcd.members()[first].cable().cut();
    let second = eventually(PATIENCE, "another leader", || etcd.leader().filter(|leader| *leader != first));
    assert_ne!(first, second);
    etcd.members()[first].cable().join();
    etcd.members()[first].ready();
}

#[test]
fn a_daemon_ends_with_its_value_and_tells_how_it_ended() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    let daemon = node.start(shell("echo $WEFT_STATE_DIR; trap 'exit 7' TERM; read x < /dev/zero"));
    let expected = node.state_dir().display().to_string();
    eventually(PATIENCE, "it says where its state is", || daemon.log().contains(&expected).then_some(()));
    assert_eq!(daemon.ended(), None);
    let process = format!("/proc/{}", daemon.pid());
    assert!(fs::exists(&process).expect("look for a process"));
    drop(daemon);
    assert!(!fs::exists(&process).expect("look for a process"));

    let daemon = Daemon::start(&shell("kill -STOP $$; exit 3"), &node.directory().join("other.log"));
    let state = format!("/proc/{}/stat", daemon.pid());
    let stopped = || fs::read_to_string(&state).expect("a process has a state").contains(" T ").then_some(());
    eventually(PATIENCE, "it stops itself", stopped);
    daemon.thaw();
    assert_eq!(daemon.wait().code(), Some(3));
    assert_eq!(node.start(shell("exec tail -f /dev/null")).stop().code(), None);
}

/// A flanneld on every node, by which containers of two hosts talk, one of the reference plugins' and one of Weft's.
fn assert_flannelds_join(config: &str, access: Access, options: &[&str]) {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, access);
    etcd.put(KEY, config);
    let start = |node| {
        let flanneld = Flanneld::start(node, &etcd, Flanneld::PREFIX, options);
        // One after the other: of two that pick the same IPv4 subnet at once, one ends, or, with both families, they
        // share it, as the keys are of both families together.
        flanneld.ready();
        flanneld
    };
    let flannelds: Vec<Flanneld> = cluster.nodes().iter().map(start).collect();
    assert_eq!(etcd.keys("/coreos.com/network/subnets/").len(), 2);

    let (a, b) = (cluster.node(0), cluster.node(1));
    for (node, peer) in [(a, b), (b, a)] {
        eventually(PATIENCE, "the peer's subnets have routes", || {
            let routes = node.command("ip -4 route") + &node.command("ip -6 route");
            subnets(peer).iter().all(|subnet| routes.contains(subnet)).then_some(())
        });
    }
    let attached = [a.attach(&Network::leased(a, "bridge")), b.attach(&Network::leased(b, "weft"))];
    let families = ips(&attached[0].1).len();
    assert_eq!(families, subnets(a).len());
    for family in 0..families {
        let pods = attached.each_ref().map(|(pod, result)| (pod, ips(result)[family]));
        assert_all_reach(&pods);
        transfer(pods[0].0, pods[1].0, pods[1].1, 10_000_000);
    }

    // What it made stays, and the next one goes on with it.
    let before = subnets(a);
    assert_eq!(flannelds[0].stop().code(), Some(0));
    drop(flannelds);
    let again = start(a);
    assert_eq!(subnets(a), before);
    assert_all_reach(&attached.each_ref().map(|(pod, result)| (pod, ip(result))));
    again.daemon().kill();
}

/// The subnets that were leased for a node.
fn subnets(node: &Node) -> Vec<String> {
    let env = node.subnet_env();
    let gateways = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].iter().filter_map(|key| env.get(*key));
    gateways.map(|gateway| gateway.replace(".1/24", ".0/24").replace("::1/64", "::/64")).collect()
}

#[test]
fn flannelds_make_an_overlay() {
    let config = r#"{"Network": "10.240.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    assert_flannelds_join(config, Access::Open, &[]);
}

#[test]
fn flannelds_make_an_overlay_of_both_families_with_masquerade() {
    let config = r#"{
        "EnableIPv6": true, "Network": "10.240.0.0/16", "IPv6Network": "fd00:42::/56", "Backend": {"Type": "vxlan"}
    }"#;
    assert_flannelds_join(config, Access::Tls, &["--ip-masq"]);
}

#[test]
fn flannelds_make_routes_without_an_overlay() {
    let config = r#"{"Network": "10.240.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    assert_flannelds_join(config, Access::Password, &[]);
}
