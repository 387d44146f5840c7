//! etcd goes away, comes back, forgets, or gives the host's subnet to another.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use super::*;

/// Pings all the time, a hundred times a second.
pub(super) struct Pings {
    ping: Child,
    /// Reads what it says, so that it does not wait for a reader.
    output: JoinHandle<String>,
}

impl Pings {
    pub(super) fn start(from: &Pod, to: IpAddr) -> Self {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.01", "-W", "1", &to.to_string()]).stdout(Stdio::piped());
        let mut ping = from.inside(|| command.spawn().expect("run ping"));
        let stdout = ping.stdout.take().expect("a pipe");
        let output = thread::spawn(|| io::read_to_string(stdout).expect("read what ping says"));
        Self { ping, output }
    }

    /// Ends and tells how many were sent and how many answered. The last one does not count where its answer may be on its way.
    pub(super) fn end(mut self) -> (u32, u32) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.ping.id()).expect("process IDs fit"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("end ping");
        self.ping.wait().expect("wait for ping");
        let text = self.output.join().expect("what ping says");
        // 250 packets transmitted, 250 received, 0% packet loss, time 2490ms
        let line = text.lines().find(|line| line.contains("transmitted")).expect("a summary");
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (sent, received) = (numbers[0], numbers[1]);
        // 64 bytes from 10.240.1.2: icmp_seq=250 ttl=62 time=0.104 ms
        let last = format!("icmp_seq={sent} ttl=");
        (if text.contains(&last) { sent } else { sent - 1 }, received)
    }
}

/// Two hosts whose containers reach each other.
pub(super) fn pair(changes: &Value) -> (Fleet, (Pod, IpAddr), (Pod, IpAddr)) {
    let fleet = Fleet::of(2, CONFIG, changes);
    fleet.acquainted();
    let (one, other) = (fleet.pod(0), fleet.pod(1));
    one.0.assert_reaches(other.1);
    (fleet, one, other)
}

pub(super) fn readiness(agent: &Weftd) -> (u16, String) {
    let answer = agent.ask("/readyz").expect("an answer");
    (answer.status, answer.body)
}

/// A host comes while etcd is away for one of them: it is known within two seconds of etcd's return.
#[test]
fn etcd_is_killed_and_back() {
    let (fleet, (one, _), (_other, address)) = pair(&json!({}));
    let pings = Pings::start(&one, address);
    fleet.etcd.kill();
    let metric = r#"weft_store_errors_total{network="pods"}"#;
    eventually(PATIENCE, "the agent notices", || (fleet.agents[0].metric(metric)? > 3.0).then_some(()));
    assert_eq!(readiness(&fleet.agents[0]).0, 200, "an outage is tolerated");
    // Local containers come and go.
    let (late, _) = fleet.pod(0);
    late.assert_reaches(address);
    fleet.etcd.restart();
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    for node in fleet.cluster.nodes() {
        assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
    }
    let (sent, received) = pings.end();
    assert!(sent > 5 && sent == received, "{received} of {sent}");
    let log = fleet.agents[0].daemon().log();
    let lines = log.lines().filter(|line| line.contains("etcd")).count();
    assert!(lines <= 6, "one line when it goes, one when it is back: {log}");
}

#[test]
fn etcd_is_frozen_and_back() {
    let (fleet, (one, _), (_other, address)) = pair(&json!({}));
    let pings = Pings::start(&one, address);
    let metric = r#"weft_store_errors_total{network="pods"}"#;
    let before = fleet.agents[0].metric(metric).unwrap_or(0.0);
    fleet.etcd.freeze();
    eventually(Duration::from_secs(30), "the agent notices", || {
        (fleet.agents[0].metric(metric).unwrap_or(0.0) > before + 1.0).then_some(())
    });
    // Repairs need no etcd.
    fleet.node(0).command(&format!("ip link del {DEVICE}"));
    eventually(REPAIR, "the device is back", || fleet.node(0).link(DEVICE));
    fleet.etcd.thaw();
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    for node in fleet.cluster.nodes() {
        assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
    }
    let (sent, received) = pings.end();
    assert!(sent.abs_diff(received) < 200, "{received} of {sent}: the device was away for a moment only");
}

/// STATUS of the network as its plugins lease it, and on the ranges of subnet.env, says what `/readyz` does, and the log says it once.
#[test]
fn the_lease_ends_while_etcd_is_frozen() {
    let fleet = Fleet::of(1, CONFIG, &json!({ "leaseTTL": 5 }));
    let (agent, node) = (&fleet.agents[0], fleet.node(0));
    let networks = [Weftd::network(&fleet.etcd), fleet.network(0)];
    let status = |network: &Network| network.call("STATUS").on(node).run();
    networks.iter().for_each(|network| status(network).done());
    fleet.etcd.freeze();
    let said = format!("the lease of {} has ended", subnet(node));
    let lines = || agent.daemon().log().lines().filter(|line| line.contains(&said)).count();
    eventually(Duration::from_secs(20), "readiness is false and says why", || {
        let (status, text) = readiness(agent);
        (status == 503 && text.contains(&said)).then_some(())
    });
    for network in &networks {
        status(network).error_code(51).assert_names(&["the lease of subnet", &subnet(node), "/readyz"]);
    }
    eventually(PATIENCE, "the log says it", || (lines() == 1).then_some(()));
    fleet.etcd.thaw();
    agent.ready();
    networks.iter().for_each(|network| status(network).done());
    assert_eq!(lines(), 1, "{}", agent.daemon().log());
}

/// What happened while an agent could not see it, and of which etcd has no history any more.
#[test]
fn history_is_compacted_while_a_host_is_cut_off() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let node = fleet.node(0);
    let gone = format!("{SUBNETS}10.255.6.0-24");
    fleet.etcd.put(&gone, record("172.30.0.98", "8e:00:00:00:00:06"));
    assert_learns(node, REPAIR, "8e:00:00:00:00:06", true);
    node.cable.cut();
    fleet.etcd.del(&gone);
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    fleet.etcd.compact();
    node.cable.join();
    assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
    assert_learns(node, REPAIR, "8e:00:00:00:00:06", false);
}

/// How often a node has asked anew for connections that it did not get.
fn asked_anew(node: &Node) -> u64 {
    let text = node.command("cat /proc/net/netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (Some(mut names), Some(mut counts)) = (lines.next(), lines.next()) else { panic!("{text}") };
    let place = names.position(|name| name == "TCPSynRetrans").expect("a counter of it");
    counts.nth(place).expect("as many counts as names").parse().expect("a number")
}

/// For so long that TCP would ask again only after more seconds than a host may take, and however patient the agent is with an etcd that
/// is slow.
#[test]
fn a_host_that_was_cut_off_catches_up_at_once() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let node = cluster.node(0);
    let patient = json!({ "etcd": { "endpoints": etcd.endpoints()[..1], "timeout": 20 } });
    let agent = Weftd::start(node, &etcd, &patient);
    agent.ready();
    let before = asked_anew(node);
    node.cable.cut();
    etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    eventually(Duration::from_secs(30), "it has asked for a connection again and again", || {
        (asked_anew(node) >= before + 5).then_some(())
    });
    node.cable.join();
    assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
}

#[test]
fn the_hosts_key_is_deleted_and_put_back() {
    let (fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own = subnet(fleet.node(0));
    let key = format!("{SUBNETS}{own}");
    let value = fleet.etcd.get(&key).expect("the host's record");
    for lease_too in [false, true] {
        if lease_too {
            let lease = fleet.etcd.leases().into_iter().find(|lease| lease.keys.contains(&key));
            fleet.etcd.revoke(&lease.expect("the host's lease").id);
        } else {
            fleet.etcd.del(&key);
        }
        let again = eventually(REPAIR, "the record is back", || fleet.etcd.get(&key));
        assert_eq!(again, value);
        // The other host has taken its way back here off, and is told by its watch, too.
        heal::reaches_in(REPAIR, &one, address, "the record is back");
    }
    assert_eq!(fleet.etcd.leases().len(), 2, "no lease is left behind");
    fleet.agents[0].ready();
}

/// Cut off for longer than its lease, and another host has its subnet now: containers are not touched, and everybody
/// who asks is told.
#[test]
fn another_host_takes_the_subnet_during_a_partition() {
    let (fleet, (one, address), (other, other_address)) = pair(&json!({ "leaseTTL": 2 }));
    let node = fleet.node(0);
    let (own, own_mac) = (subnet(node), mac(node));
    let key = format!("{SUBNETS}{own}");
    node.cable.cut();
    eventually(Duration::from_secs(15), "the lease ends", || fleet.etcd.get(&key).is_none().then_some(()));
    assert_learns(fleet.node(1), REPAIR, &own_mac, false);
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:01"));
    node.cable.join();
    eventually(Duration::from_secs(15), "readiness is false and says why", || {
        let (status, text) = readiness(&fleet.agents[0]);
        (status == 503 && text.contains("172.30.0.99") && text.contains(&own)).then_some(())
    });
    // The other's record is the other's, and the containers of this host are where they were.
    assert_eq!(fleet.etcd.get(&key).as_deref(), Some(record("172.30.0.99", "8e:00:00:00:00:01").as_str()));
    assert_eq!(subnet(node), own);
    assert!(one.addresses("eth0").iter().any(|found| found.starts_with(&address.to_string())));
    let error = fleet.network(0).call("STATUS").on(node).run().error_code(51);
    error.assert_names(&["172.30.0.99", &own]);
    drop((other, other_address));
    let log = fleet.agents[0].daemon().log();
    let said = log.lines().filter(|line| line.contains("ERROR") && line.contains("172.30.0.99")).count();
    assert_eq!(said, 1, "{log}");
    // The other gives it up: it is this host's again.
    fleet.etcd.del(&key);
    eventually(PATIENCE, "the subnet is this host's again", || {
        (readiness(&fleet.agents[0]).0 == 200).then_some(())
    });
    assert!(fleet.etcd.get(&key).is_some_and(|value| value.contains("172.30.0.11")));
    fleet.network(0).call("STATUS").on(node).run().done();
    assert_learns(fleet.node(1), PATIENCE, &own_mac, true);
}

/// Word for word.
#[test]
fn the_remedy_for_a_subnet_that_another_host_has_helps() {
    let mut fleet = Fleet::new(1);
    let own = subnet(fleet.node(0));
    let key = format!("{SUBNETS}{own}");
    let network = fleet.network(0);
    let (pod, _) = fleet.node(0).attach(&network);
    let theirs = record("172.30.0.99", "8e:00:00:00:00:01");
    fleet.etcd.put(&key, &theirs);
    eventually(PATIENCE, "it is seen", || (readiness(&fleet.agents[0]).0 == 503).then_some(()));
    let error = network.call("STATUS").on(fleet.node(0)).run().error_code(51);
    let (_, remedy) = error.msg.rsplit_once(": ").expect("a remedy");
    assert!(readiness(&fleet.agents[0]).1.contains(remedy));
    for step in remedy.split(", ") {
        match step {
            "move the containers away" => network.del_call(&pod).on(fleet.node(0)).run().done(),
            "then stop weftd" => assert!(fleet.agents[0].daemon().stop().success()),
            "`weftctl leave`" => {
                duplicates::weftctl(fleet.node(0), &fleet.etcd, &["leave"]);
            }
            "start weftd" => fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd),
            other => panic!("{other}"),
        }
    }
    assert_ne!(subnet(fleet.node(0)), own);
    assert_eq!(fleet.etcd.get(&key), Some(theirs));
    fleet.network(0).call("STATUS").on(fleet.node(0)).run().done();
}

/// By a configuration that is gone, or no JSON, nobody gets a subnet; whoever has one keeps it, learns of others, and is ready: whatever
/// drains hosts that are not would drain all of them. A host whose record goes meanwhile is not.
#[test]
fn a_broken_configuration_takes_nobodys_lease() {
    const KEY: &str = "/coreos.com/network/config";
    let fleet = Fleet::of(1, CONFIG, &json!({ "leaseTTL": 3 }));
    let (agent, node) = (&fleet.agents[0], fleet.node(0));
    let own = subnet(node);
    for (number, broken) in [(90, None), (91, Some("{"))] {
        match broken {
            None => fleet.etcd.del(KEY),
            Some(text) => fleet.etcd.put(KEY, text),
        }
        eventually(Duration::from_secs(15), "the text of readiness says why", || {
            readiness(agent).1.contains(KEY).then_some(())
        });
        // Three times as long as a lease lasts that nobody renews.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(9) {
            #[expect(clippy::disallowed_methods, reason = "that nothing happens is only seen in time")]
            thread::sleep(Duration::from_millis(250));
            assert!(fleet.etcd.get(&format!("{SUBNETS}{own}")).is_some(), "{broken:?}: the lease has ended");
            let (status, text) = readiness(agent);
            assert!(
                status == 200 && text.contains(&own) && text.contains(KEY),
                "{broken:?}: {status} {text}"
            );
        }
        let mac = format!("8e:00:00:00:00:{number}");
        fleet.etcd.put(&format!("{SUBNETS}10.255.{number}.0-24"), record("172.30.0.99", &mac));
        assert_learns(node, REPAIR, &mac, true);
    }
    assert_eq!(agent.metric(r#"weft_ready{network="pods"}"#), Some(1.0));
    fleet.etcd.del(&format!("{SUBNETS}{own}"));
    eventually(REPAIR, "readiness is false and says why", || {
        let (status, text) = readiness(agent);
        (status == 503 && text.contains(KEY)).then_some(())
    });
    fleet.etcd.put(KEY, CONFIG);
    agent.ready();
    assert_eq!(subnet(node), own);
}

/// The same with another host that lives: the network has one subnet, for the host whose lease lasts.
#[test]
fn two_live_hosts_and_one_subnet() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    let config = r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.241.7.0", "SubnetMax": "10.241.7.0", "Backend": {"Type": "vxlan"}}"#;
    etcd.put("/coreos.com/network/config", config);
    let short = json!({ "leaseTTL": 2 });
    let [one, other] = [0, 1].map(|index| cluster.node(index));
    let first = Weftd::start(one, &etcd, &short);
    first.ready();
    let network = Network::leased(one, "weft").with(&json!({ "name": Weftd::NETWORK }));
    let (pod, result) = one.attach(&network);
    one.cable.cut();
    // It waits until the subnet is free, and has it then.
    let second = Weftd::start(other, &etcd, &short);
    second.ready();
    let key = format!("{SUBNETS}10.241.7.0-24");
    let value = etcd.get(&key).expect("the other's record");
    assert!(value.contains("172.30.0.12"), "{value}");
    let (theirs, _) = other.attach(&network);
    one.cable.join();
    eventually(Duration::from_secs(15), "readiness is false and says why", || {
        let (status, text) = readiness(&first);
        (status == 503 && text.contains("172.30.0.12")).then_some(())
    });
    assert_eq!(etcd.get(&key).as_deref(), Some(value.as_str()), "nobody else's record is touched");
    network.call("STATUS").on(one).run().error_code(51).assert_names(&["172.30.0.12", "10.241.7.0-24"]);
    assert_eq!(pod.addresses("eth0")[0], result["ips"][0]["address"], "containers stay as they are");
    second.ready();
    theirs.assert_reaches([10, 241, 7, 1]);
    // The other one leaves, and the subnet is this host's again.
    second.daemon().stop();
    eventually(Duration::from_secs(15), "the subnet is this host's again", || {
        (readiness(&first).0 == 200 && etcd.get(&key)?.contains("172.30.0.11")).then_some(())
    });
}

/// Off for longer than its lease, and booted: no container is left that would have to be moved.
#[test]
fn a_host_that_boots_takes_another_subnet_when_its_own_is_gone() {
    let mut fleet = Fleet::new(1);
    let own = subnet(fleet.node(0));
    let key = format!("{SUBNETS}{own}");
    fleet.agents[0].daemon().stop();
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:01"));
    fleet.node(0).command(&format!("ip link del {DEVICE}"));
    fs::remove_file(fleet.node(0).subnet_file()).expect("remove subnet.env");
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    let node = fleet.node(0);
    assert_ne!(subnet(node), own);
    assert!(fleet.etcd.get(&format!("{SUBNETS}{}", subnet(node))).is_some());
    assert_learns(node, REPAIR, "8e:00:00:00:00:01 dst 172.30.0.99", true);
    let address = subnet(node).replace("-24", "/32");
    assert_eq!(node.addresses(DEVICE), [address]);
}

/// A thousand hosts at once are few looks at the kernel, and not much memory.
#[test]
fn a_thousand_hosts() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let hosts: Vec<(String, String)> = (0..1000)
        .map(|number| {
            let (high, low) = (number / 250, number % 250);
            let key = format!("{SUBNETS}10.25{high}.{low}.0-24");
            (key, record(&format!("172.31.{high}.{low}"), &format!("8e:00:00:00:{high:02x}:{low:02x}")))
        })
        .collect();
    for part in hosts.chunks(100) {
        fleet.etcd.put_all(part.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    }
    eventually(PATIENCE, "all of them are peers", || {
        (forwarding_entries(node, DEVICE) == hosts.len()).then_some(())
    });
    let syncs = agent.metric(r#"weft_sync_duration_seconds_count{network="pods"}"#).expect("a count");
    assert!(syncs < 60.0, "{syncs}");
    let status = fs::read_to_string(format!("/proc/{}/status", agent.daemon().pid())).expect("a process");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = rss.split_whitespace().next().expect("a number").parse().expect("a number");
    // A build without optimisation has four times the code of a release.
    assert!(kib < 40 * 1024, "{kib} KiB");
    fleet.etcd.ctl(&["del", "--prefix", &format!("{SUBNETS}10.25")]);
    eventually(PATIENCE, "all of them are gone", || (forwarding_entries(node, DEVICE) == 0).then_some(()));
}
