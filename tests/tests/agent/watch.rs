//! The agent's watch ends, falls behind, or misses something: what came and went meanwhile is right in the kernel.

use weft_tests::{Connection, Relay};

use super::*;

const CAME: &str = "8e:00:00:00:00:01";
const GONE: &str = "8e:00:00:00:00:06";

/// A host that is there before something happens to the watch, and goes meanwhile; another one comes.
struct Meanwhile {
    came: (String, String),
    gone: String,
}

impl Meanwhile {
    fn begin(fleet: &Fleet) -> Self {
        let gone = format!("{SUBNETS}10.255.6.0-24");
        fleet.etcd.put(&gone, record("172.30.0.98", GONE));
        assert_learns(fleet.node(0), REPAIR, GONE, true);
        Self { came: (format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", CAME)), gone }
    }

    fn happen(&self, store: &Connection) {
        store.delete(&self.gone);
        store.put(&self.came.0, &self.came.1);
    }

    #[track_caller]
    fn assert_learnt(&self, node: &Node, limit: Duration) {
        assert_learns(node, limit, CAME, true);
        assert_learns(node, limit, GONE, false);
        eventually(limit, "routes and neighbours are right", || {
            let text = node.command("ip route") + &node.command("ip neigh");
            (text.matches("10.255.7.0").count() >= 2 && !text.contains("10.255.6.0")).then_some(())
        });
    }
}

fn errors(agent: &Weftd) -> f64 {
    agent.metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0)
}

/// How many lines of an agent's log contain something.
fn lines(agent: &Weftd, part: &str) -> usize {
    agent.daemon().log().lines().filter(|line| line.contains(part)).count()
}

/// A host that is held, as a suspended machine is, while more happens than etcd keeps for a watch, and the history of it
/// is compacted: the connection lives on, and etcd says so on the watch itself.
#[test]
fn a_watch_falls_behind_a_compaction() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let meanwhile = Meanwhile::begin(&fleet);
    let before = errors(agent);
    let store = Connection::to(&fleet.etcd.endpoints());
    agent.daemon().freeze();
    // As much as the connection takes, and as many answers as etcd keeps beside it (chanBufLen in its
    // mvcc/watchable_store.go).
    let (noise, large) = (format!("{SUBNETS}noise"), "x".repeat(256 << 10));
    for value in [large.as_str(); 32].into_iter().chain([""; 1100]) {
        store.put(&noise, value);
    }
    store.delete(&noise);
    meanwhile.happen(&store);
    fleet.etcd.compact();
    agent.daemon().thaw();
    meanwhile.assert_learnt(node, REPAIR);
    assert_eq!(lines(agent, "history was compacted"), 1, "{}", agent.daemon().log());
    assert_eq!(errors(agent), before, "it is no failure");
    // From there on it follows again.
    fleet.etcd.del(&meanwhile.came.0);
    assert_learns(node, REPAIR, CAME, false);
    agent.ready();
}

/// What no host can follow is told, and what they can is followed, without a look at everything (which comes once a minute).
#[test]
fn a_network_that_is_configured_anew_is_seen_at_once() {
    const KEY: &str = "/coreos.com/network/config";
    let fleet = Fleet::new(1);
    let (node, agent, own) = (fleet.node(0), &fleet.agents[0], subnet(fleet.node(0)));
    let before = errors(agent);
    for broken in [Some("{"), None] {
        match broken {
            Some(text) => fleet.etcd.put(KEY, text),
            None => fleet.etcd.del(KEY),
        }
        eventually(REPAIR, &format!("readiness says what is wrong with {broken:?}"), || {
            outage::readiness(agent).1.contains(KEY).then_some(())
        });
        fleet.etcd.put(KEY, CONFIG);
        agent.ready();
    }
    fleet.etcd.put(KEY, CONFIG.replace(r#""vxlan""#, r#""vxlan", "VNI": 7"#));
    eventually(REPAIR, "the device has the other VNI", || node.link("weft.7"));
    assert_eq!(subnet(node), own);
    assert_eq!(errors(agent), before, "it is no failure");
    // From there on it follows again.
    let host = record("172.30.0.99", CAME).replace(r#""VNI":1"#, r#""VNI":7"#);
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), host);
    eventually(REPAIR, "another host is followed", || {
        (forwarding_entries(node, "weft.7") == 1).then_some(())
    });
}

/// A host keeps its subnet while its network has no configuration that it can follow, maybe for weeks, as all hosts of the network do: it is
/// told of the others as ever, and asks etcd for nothing but its lease's renewal.
#[test]
fn a_host_that_waits_for_another_configuration_follows_the_others() {
    const KEY: &str = "/coreos.com/network/config";
    let fleet = Fleet::new(1);
    let (node, agent, etcd) = (fleet.node(0), &fleet.agents[0], &fleet.etcd.members()[0]);
    let store = Connection::to(&fleet.etcd.endpoints());
    let elsewhere =
        CONFIG.replace("10.240.0.0/12", "10.96.0.0/12").replace(r#""SubnetMax": "10.249.255.0", "#, "");
    for (number, config) in ["{", &elsewhere].into_iter().enumerate() {
        store.put(KEY, config);
        eventually(REPAIR, &format!("weftd says what is wrong with {config}"), || {
            outage::readiness(agent).1.contains(KEY).then_some(())
        });
        let renewals = etcd.calls("LeaseKeepAlive");
        let renewed = |count| {
            eventually(PATIENCE, "the lease is renewed", || {
                (etcd.calls("LeaseKeepAlive") >= renewals + count).then_some(())
            });
        };
        renewed(1);
        let asked = || ["Txn", "Range"].map(|method| etcd.calls(method)).iter().sum::<u64>();
        let before = asked();
        renewed(4);
        assert!(asked() <= before + 1, "{} requests between four renewals", asked() - before);
        let age = agent.metric(r#"weft_lease_age_seconds{network="pods"}"#).expect("a lease");
        assert!(age < 5.0, "renewed {age} s ago");
        // None of these waits for a renewal.
        let begun = Instant::now();
        for host in 0..8 {
            let mac = format!("8e:00:00:00:{number:02x}:{host:02x}");
            store.put(&format!("{SUBNETS}10.255.{host}.0-24"), &record("172.30.0.99", &mac));
            assert_learns(node, REPAIR, &mac, true);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        store.put(KEY, CONFIG);
        eventually(REPAIR, "all is well again", || {
            let (status, text) = outage::readiness(agent);
            (status == 200 && !text.contains(KEY)).then_some(())
        });
    }
    assert_eq!(errors(agent), 0.0);
}

fn three_members() -> Fleet {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(3, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let agents = vec![Weftd::up(cluster.node(0), &etcd)];
    Fleet { agents, etcd, cluster, families: vec![Family::V4] }
}

/// The next renewal is far enough for the watch to be told first.
fn renewed(agent: &Weftd) {
    eventually(PATIENCE, "the lease was just renewed", || {
        (agent.metric(r#"weft_store_silence_seconds{network="pods"}"#)? < 0.1).then_some(())
    });
}

/// The member that the agent talks with reaches no other one: it says so, and the agent goes to one that does.
#[test]
fn a_member_is_cut_off_from_the_others() {
    let fleet = three_members();
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let meanwhile = Meanwhile::begin(&fleet);
    renewed(agent);
    fleet.cluster.router().nft(
        r#"table bridge cut {
            chain cut {
                type filter hook forward priority 0
                iifname etcd0 oifname { etcd1, etcd2 } drop
                iifname { etcd1, etcd2 } oifname etcd0 drop
            }
        }"#,
    );
    eventually(PATIENCE, "the others have a leader", || fleet.etcd.leader().filter(|leader| *leader != 0));
    // Each member has two addresses.
    meanwhile.happen(&Connection::to(&fleet.etcd.endpoints()[2..]));
    meanwhile.assert_learnt(node, REPAIR);
    // Mostly the watch is told. A renewal that is told first goes on at another member, and nothing is said.
    let told = lines(agent, "watch the hosts: http://172.30.0.2:2379 has no leader");
    assert!(told <= 1 && lines(agent, "etcd is back") == told, "{}", agent.daemon().log());
    agent.ready();
}

/// Packets to the first of three members, with which the agent talks, are dropped. The others are fine: what one of them tells is
/// seen in time, nobody speaks of an outage, and an agent that starts then is not held up for long either.
#[test]
fn a_member_is_out_of_reach() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(3, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    // One address of each member.
    let endpoints: Vec<String> = etcd.endpoints().into_iter().step_by(2).collect();
    let changes = json!({ "etcd": { "endpoints": endpoints } });
    let (node, agent) = (cluster.node(0), Weftd::start(cluster.node(0), &etcd, &changes));
    agent.ready();
    let store = Connection::to(&endpoints[1..]);
    cluster.router().nft(
        r#"table bridge cut {
            chain cut {
                type filter hook forward priority 0
                oifname etcd0 tcp dport 2379 drop
                iifname etcd0 tcp sport 2379 drop
            }
        }"#,
    );
    for number in 0..6 {
        let mac = format!("8e:00:00:00:00:1{number}");
        store.put(&format!("{SUBNETS}10.255.7.0-24"), &record("172.30.0.99", &mac));
        // The member's silence is noticed by the next renewal, two seconds later at most, which has a second for its answer.
        assert_learns(node, REPAIR + Duration::from_secs(3), &mac, true);
    }
    agent.ready();
    let log = agent.daemon().log();
    assert!(errors(&agent) == 0.0 && !log.contains("WARN"), "{log}");
    let late = Weftd::start(cluster.node(1), &etcd, &changes);
    late.ready();
    assert_learns(cluster.node(1), REPAIR, "8e:00:00:00:00:15", true);
    assert_eq!(errors(&late), 0.0, "{}", late.daemon().log());
}

/// Most members end and start again: nothing can change meanwhile, and what changes then is learnt at once.
#[test]
fn etcd_loses_its_quorum_and_gets_it_back() {
    let fleet = three_members();
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let meanwhile = Meanwhile::begin(&fleet);
    renewed(agent);
    let others = &fleet.etcd.members()[1..];
    others.iter().for_each(weft_tests::Member::kill);
    eventually(PATIENCE, "the watch, or on a busy machine a renewal, is told", || {
        (lines(agent, "http://172.30.0.2:2379 has no leader") >= 1).then_some(())
    });
    // Repairs need no etcd.
    node.command(&format!("ip link del {DEVICE}"));
    eventually(REPAIR, "the device is back", || node.link(DEVICE));
    assert_learns(node, REPAIR, GONE, true);
    assert_eq!(agent.ask("/readyz").expect("an answer").status, 200, "an outage is tolerated");
    others.iter().for_each(weft_tests::Member::start);
    // Also the one that was there has to find the new leader.
    fleet.etcd.members().iter().for_each(weft_tests::Member::ready);
    meanwhile.happen(&Connection::to(&fleet.etcd.endpoints()));
    meanwhile.assert_learnt(node, REPAIR);
    assert_eq!(lines(agent, "etcd is back"), 1);
    let log = agent.daemon().log();
    let told = log.lines().filter(|line| line.contains("WARN") && line.contains("etcd")).count();
    assert!(told <= 3, "no flood: {log}");
}

/// One host whose agent reaches etcd through a relay.
fn relayed(changes: &Value) -> (Fleet, Relay) {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let node = cluster.node(0);
    let relay = Relay::start(node, etcd.members()[0].clients().next().expect("an address"));
    let mut changes = changes.clone();
    changes["etcd"] = json!({ "endpoints": [relay.endpoint()] });
    let agents = vec![Weftd::start(node, &etcd, &changes)];
    agents[0].ready();
    (Fleet { agents, etcd, cluster, families: vec![Family::V4] }, relay)
}

/// Events that never arrive, on a connection that lives: the next look at everything makes up for them.
#[test]
fn what_the_watch_misses_is_found_by_the_timer() {
    let (fleet, relay) = relayed(&json!({ "leaseTTL": 3 }));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let before = errors(agent);
    let key = format!("{SUBNETS}10.255.7.0-24");
    // A third of the lease's time, and a repair.
    let limit = Duration::from_secs(1) + REPAIR;
    for there in [true, false] {
        relay.lose("10.255.7.0-24");
        if there {
            fleet.etcd.put(&key, record("172.30.0.99", CAME));
        } else {
            fleet.etcd.del(&key);
        }
        eventually(REPAIR, "the event is lost", || relay.has_lost().then_some(()));
        assert_learns(node, limit, CAME, there);
    }
    assert_eq!(errors(agent), before, "the watch lives on");
}

/// etcd begins to answer so late, and goes on to; how many failures of it are counted.
fn failures_of_a_slow_etcd(delay: Duration) -> f64 {
    let (fleet, relay) = relayed(&json!({}));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    relay.delay(delay);
    let silence = || agent.metric(r#"weft_store_silence_seconds{network="pods"}"#).expect("a time");
    for _ in 0..3 {
        eventually(PATIENCE, "a renewal is due", || (silence() > 1.5).then_some(()));
        eventually(PATIENCE, "the lease was renewed", || (silence() < 1.0).then_some(()));
        assert_eq!(agent.ask("/readyz").expect("an answer").status, 200);
    }
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", CAME));
    assert_learns(node, delay + REPAIR, CAME, true);
    errors(agent)
}

/// Later than a healthy one ever does: nothing is begun anew, nothing is said.
#[test]
fn an_etcd_that_is_slow_is_no_outage() {
    assert_eq!(failures_of_a_slow_etcd(Duration::from_millis(150)), 0.0);
}

/// As late as one that has failed: that is taken for a failure once, and then for what it is.
#[test]
fn an_etcd_that_is_very_slow_is_one_outage() {
    assert_eq!(failures_of_a_slow_etcd(Duration::from_millis(600)), 1.0);
}

/// As of a network whose place in etcd is within this one's.
#[test]
fn what_is_not_this_networks_has_nothing_compared() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let store = Connection::to(&fleet.etcd.endpoints());
    let syncs = || agent.metric(r#"weft_sync_duration_seconds_count{network="pods"}"#).expect("a metric");
    let before = syncs();
    for number in 0..40 {
        let key = format!("{}/east/subnets/10.1.{number}.0-24", Weftd::PREFIX);
        store.put(&key, &record("172.30.0.98", GONE));
        // Each by itself: the agent takes in at once what came meanwhile.
        assert!(agent.ask("/readyz").is_some());
    }
    store.put(&format!("{SUBNETS}10.255.7.0-24"), &record("172.30.0.99", CAME));
    assert_learns(node, REPAIR, CAME, true);
    assert!(syncs() - before < 20.0, "{} syncs", syncs() - before);
}
