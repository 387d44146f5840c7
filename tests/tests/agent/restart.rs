//! An agent that ends and begins again, with etcd or without it.

use super::outage::{Pings, pair, readiness};
use super::*;

/// One subnet, for one host.
const ONE: &str = r#"{"Network": "10.240.0.0/12", "SubnetMin": "10.241.7.0", "SubnetMax": "10.241.7.0", "Backend": {"Type": "vxlan"}}"#;

/// An agent that ends, in whatever way, is missed by nobody, and the next one finds everything.
#[test]
fn a_restart_is_not_noticed_by_traffic() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let (own, own_mac) = (subnet(fleet.node(0)), mac(fleet.node(0)));
    let index = fleet.node(0).link(DEVICE).expect("the device")["ifindex"].clone();
    let pings = Pings::start(&one, address);
    for kill in [true, false, true, false, true, true, true, false] {
        let daemon = fleet.agents[0].daemon();
        if kill {
            daemon.kill();
        } else {
            assert!(daemon.stop().success());
        }
        assert!(fleet.etcd.get(&format!("{SUBNETS}{own}")).is_some(), "the lease stays");
        fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    }
    let node = fleet.node(0);
    assert_eq!((subnet(node), mac(node)), (own, own_mac));
    assert_eq!(node.link(DEVICE).expect("the device")["ifindex"], index);
    let (sent, received) = pings.end();
    assert!(sent > 8 && sent == received, "{received} of {sent}");
    assert_eq!(fleet.etcd.leases().len(), 2, "restarts leave no leases behind");
}

/// A lease as long as is configured now takes the place of the one that the record hangs on.
#[test]
fn a_restart_with_another_lease_ttl_keeps_the_record_and_is_not_noticed_by_traffic() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({ "leaseTTL": 60 }));
    let key = format!("{SUBNETS}{}", subnet(fleet.node(0)));
    let record = fleet.etcd.get(&key).expect("the host's record");
    let pings = Pings::start(&one, address);
    for ttl in [600, 30] {
        assert!(fleet.agents[0].daemon().stop().success());
        fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({ "leaseTTL": ttl }));
        fleet.agents[0].ready();
        assert_eq!(fleet.etcd.get(&key).as_ref(), Some(&record));
        let leases = fleet.etcd.leases().into_iter().filter(|lease| lease.keys.contains(&key));
        assert_eq!(leases.map(|lease| lease.granted).collect::<Vec<u64>>(), [ttl]);
    }
    let (sent, received) = pings.end();
    assert!(sent > 8 && sent == received, "{received} of {sent}");
    for agent in &fleet.agents {
        let log = agent.daemon().log();
        assert!(!log.contains("etcd has lost data"), "{log}");
    }
}

/// A second record with the host's address, which anybody may have put, is no reason to leave one's subnet.
#[test]
fn a_restart_keeps_the_subnet_whatever_other_record_names_the_host() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own = subnet(fleet.node(0));
    let second = format!("{SUBNETS}10.240.0.0-24");
    fleet.etcd.put(&second, record("172.30.0.11", "8e:00:00:00:00:01"));
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    assert_eq!(subnet(fleet.node(0)), own);
    assert!(fleet.agents[0].daemon().log().contains(&format!("{second} is ignored")));
    one.assert_reaches(address);
}

/// The host starts while etcd is away: what it knew last is enough, also when the kernel has nothing any more.
#[test]
fn the_agent_starts_while_etcd_is_away() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own_mac = mac(fleet.node(0));
    fleet.agents[0].daemon().stop();
    fleet.etcd.kill();
    fleet.node(0).command(&format!("ip link del {DEVICE}"));
    fs::remove_file(fleet.node(0).subnet_file()).expect("remove subnet.env");
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    fleet.agents[0].ready();
    assert_eq!(mac(fleet.node(0)), own_mac);
    one.assert_reaches(address);
    let (_, text) = readiness(&fleet.agents[0]);
    assert!(text.contains("trouble with etcd for"), "{text}");
    fleet.etcd.restart();
    eventually(PATIENCE, "etcd is seen again", || {
        (!readiness(&fleet.agents[0]).1.contains("trouble with etcd")).then_some(())
    });
}

/// A host that boots while etcd is away, maybe after its lease has ended, and the subnet that it had, which another host has by now.
fn booted_without_etcd(config: &str, renewed: Option<u64>) -> (Fleet, String) {
    let mut fleet = Fleet::of(1, config, &json!({}));
    let own = subnet(fleet.node(0));
    fleet.agents[0].daemon().stop();
    fleet.etcd.put(&format!("{SUBNETS}{own}"), record("172.30.0.99", "8e:00:00:00:00:01"));
    fleet.etcd.stop();
    // As after a boot.
    fs::remove_file(fleet.node(0).subnet_file()).expect("remove subnet.env");
    if let Some(renewed) = renewed {
        let file = fleet.node(0).data_dir().join(Weftd::NETWORK).join("lease.json");
        let mut lease: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
        lease["renewed"] = json!(renewed);
        fs::write(&file, lease.to_string()).expect("age the lease");
    }
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &json!({}));
    (fleet, own)
}

/// The CNI type `flannel` on a node, with another IPAM plugin or its own.
pub(super) fn by_flannel(command: &str, node: &Node, ipam: &str, pod: &Pod) -> Reply {
    let path = std::env::join_paths([weft_tests::dist(), weft_tests::peers()]).expect("a path");
    let directory = node.directory();
    let conf = json!({
        "cniVersion": "1.1.0", "name": Weftd::NETWORK, "type": "flannel", "subnetFile": node.subnet_file(),
        "dataDir": directory.join("flannel"), "delegate": { "isDefaultGateway": true },
        "ipam": { "type": ipam, "dataDir": directory.join("books") },
    });
    Call::any("flannel", command, conf.to_string()).pod(pod).on(node).env("CNI_PATH", path).run()
}

/// Runtimes do not wait for it: a container that came before etcd could be asked has an address of the subnet on file, by whatever plugins.
#[test]
fn a_container_that_comes_before_etcd_does_is_not_left_in_a_subnet_that_the_host_leaves() {
    for by_weft in [true, false] {
        let (fleet, own) = booted_without_etcd(CONFIG, None);
        let (node, agent, pod) = (fleet.node(0), &fleet.agents[0], Pod::new());
        agent.ready();
        let result = if by_weft {
            Weftd::network(&fleet.etcd).add_call(&pod).on(node).run().result()
        } else {
            by_flannel("ADD", node, "host-local", &pod).result()
        };
        assert!(ips(&result)[0].to_string().starts_with(own.trim_end_matches("0-24")), "{result}");
        fleet.etcd.restart();
        eventually(PATIENCE, "it is told, and nothing is changed", || {
            let (status, text) = readiness(agent);
            (status == 503 && text.contains("172.30.0.99") && text.contains(&own)).then_some(())
        });
        assert_eq!(fleet.etcd.keys(SUBNETS).len(), 1);
        assert_eq!(subnet(node), own);
        by_flannel("STATUS", node, "host-local", &pod).error_code(51).assert_names(&["172.30.0.99"]);
    }
}

/// What etcd says in the end is said to a host with a container, whether there is another subnet for it or none.
#[test]
fn a_container_that_comes_while_etcd_is_asked_keeps_the_host_in_its_subnet() {
    for config in [CONFIG, ONE] {
        let mut fleet = Fleet::of(1, config, &json!({}));
        let own = subnet(fleet.node(0));
        assert!(fleet.agents[0].daemon().stop().success());
        fleet.etcd.put(&format!("{SUBNETS}{own}"), record("172.30.0.99", "8e:00:00:00:00:01"));
        // As after a boot.
        fs::remove_file(fleet.node(0).subnet_file()).expect("remove subnet.env");
        fleet.etcd.freeze();
        let patient = json!({ "etcd": { "endpoints": fleet.etcd.endpoints(), "timeout": 60 } });
        fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &patient);
        let (node, agent, pod) = (fleet.node(0), &fleet.agents[0], Pod::new());
        eventually(PATIENCE, "it asks", || {
            agent.daemon().log().contains("was leased by this host before").then_some(())
        });
        let network = Weftd::network(&fleet.etcd);
        let call = |command| Call::new("weft-ipam", command, network.conf.to_string()).on(node).pod(&pod);
        let given = ips(&call("ADD").run().result())[0].to_string();
        assert!(given.starts_with(own.trim_end_matches("0-24")), "{given} {own}");
        fleet.etcd.thaw();
        eventually(PATIENCE, "it is told, and nothing is changed", || {
            let (status, text) = readiness(agent);
            (status == 503 && text.contains("172.30.0.99") && text.contains(&own)).then_some(())
        });
        assert_eq!(fleet.etcd.keys(SUBNETS).len(), 1);
        network.call("STATUS").on(node).run().error_code(51).assert_names(&["172.30.0.99", &own]);
        let file = node.data_dir().join(Weftd::NETWORK).join("taken.json");
        if config == CONFIG {
            // What is on file of it cannot be removed when the other host leaves, and is when it can be.
            fs::remove_file(&file).expect("remove taken.json");
            fs::create_dir_all(file.join("in the way")).expect("make a directory");
            fleet.etcd.del(&format!("{SUBNETS}{own}"));
            eventually(PATIENCE, "it says so", || readiness(agent).1.contains("taken.json").then_some(()));
            fs::remove_dir_all(&file).expect("remove the directory");
            agent.ready();
            network.call("STATUS").on(node).run().done();
        } else {
            // Without the container nothing keeps the host there, and it has no other subnet.
            call("DEL").run().done();
            eventually(PATIENCE, "it has none", || (!file.exists()).then_some(()));
            call("ADD").run().error_code(11).assert_names(&[&own, "does not give"]);
        }
    }
}

/// What was written while etcd was away is no promise: nobody comes to a host that etcd gives no subnet.
#[test]
fn a_host_that_gets_no_subnet_after_its_boot_takes_no_container() {
    let (fleet, own) = booted_without_etcd(ONE, None);
    let (node, agent, pod) = (fleet.node(0), &fleet.agents[0], Pod::new());
    agent.ready();
    by_flannel("STATUS", node, "weft-ipam", &pod).done();
    fleet.etcd.restart();
    eventually(PATIENCE, "it is told why", || {
        let (status, text) = readiness(agent);
        (status == 503 && text.contains("are taken")).then_some(())
    });
    by_flannel("STATUS", node, "weft-ipam", &pod).error_code(50).assert_names(&["weftd"]);
    by_flannel("ADD", node, "weft-ipam", &pod).error_code(11).assert_names(&["weftd"]);
    let leased = Weftd::network(&fleet.etcd);
    leased.call("STATUS").on(node).run().error_code(51).assert_names(&[&own, "does not give", "/readyz"]);
    leased.add_call(&pod).on(node).run().error_code(11).assert_names(&[&own, "does not give", "/readyz"]);
    // That one file cannot be written is told once, whatever becomes of others while it looks again and again.
    let peers = node.data_dir().join(Weftd::NETWORK).join("peers.json");
    fs::remove_file(&peers).expect("remove the peers");
    fs::create_dir_all(peers.join("in the way")).expect("make a directory");
    let lines = |part: &str| agent.daemon().log().lines().filter(|line| line.contains(part)).count();
    eventually(PATIENCE, "the log says it", || (lines("/peers.json: ") == 1).then_some(()));
    asks_etcd_again(agent);
    assert_eq!((lines("/peers.json: "), lines("could be set up again")), (1, 0), "{}", agent.daemon().log());
    fs::remove_dir_all(&peers).expect("remove the directory");
    eventually(PATIENCE, "the log says that it could", || {
        (lines("could be set up again") == 1).then_some(())
    });
    // The other one leaves.
    fleet.etcd.del(&format!("{SUBNETS}{own}"));
    agent.ready();
    assert_eq!(subnet(node), own);
    by_flannel("ADD", node, "weft-ipam", &pod).result();
}

/// Nothing lives in the subnet, so that any other one will do, and another host may have it: etcd is to say which.
#[test]
fn a_host_that_boots_after_its_lease_ended_waits_for_etcd() {
    // Long ago, and by a clock that was ahead: then nobody knows when.
    for renewed in [1, u64::MAX / 2] {
        waits_for_etcd(&booted_without_etcd(CONFIG, Some(renewed)));
    }
}

fn waits_for_etcd((fleet, own): &(Fleet, String)) {
    let (node, agent, pod) = (fleet.node(0), &fleet.agents[0], Pod::new());
    eventually(PATIENCE, "it says what it waits for", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && answer.body.contains("trouble with etcd")).then_some(())
    });
    let leased = Weftd::network(&fleet.etcd).with(&json!({ "timeout": 4 }));
    by_flannel("ADD", node, "host-local", &pod).error_code(11).assert_names(&["subnet.env"]);
    leased.add_call(&pod).on(node).run().error_code(11).assert_names(&[own, "has ended", "/readyz"]);
    leased.call("STATUS").on(node).run().error_code(51).assert_names(&[own, "has ended", "/readyz"]);
    assert!(!node.subnet_file().exists());
    fleet.etcd.restart();
    agent.ready();
    assert_ne!(subnet(node), *own);
    by_flannel("STATUS", node, "host-local", &pod).done();
    leased.call("STATUS").on(node).run().done();
    let address = ips(&leased.add_call(&pod).on(node).run().result())[0].to_string();
    assert!(!address.starts_with(own.trim_end_matches("0-24")), "{address} {own}");
    let log = agent.daemon().log();
    assert!(!log.contains("etcd has lost data"), "{log}");
}

/// For whoever reads it without the agent: after the clock was set back, too.
#[test]
fn a_lease_on_file_of_a_time_to_come_is_put_right() {
    let mut fleet = Fleet::of(1, CONFIG, &json!({}));
    let file = fleet.node(0).data_dir().join(Weftd::NETWORK).join("lease.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON") };
    for ahead in [86_400, 50] {
        fleet.agents[0].daemon().stop();
        let mut lease = read();
        let now = lease["renewed"].as_u64().expect("a time");
        lease["renewed"] = json!(now + ahead);
        fs::write(&file, lease.to_string()).expect("put the lease ahead");
        fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
        eventually(PATIENCE, "it is renewed", || (read()["renewed"].as_u64()? < now + ahead).then_some(()));
        fleet.network(0).call("STATUS").on(fleet.node(0)).run().done();
    }
}

/// Before it ever had a subnet it waits, says for what, and begins when etcd is there.
#[test]
fn the_first_start_waits_for_etcd() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.stop();
    let agent = Weftd::start(cluster.node(0), &etcd, &json!({}));
    let said = eventually(PATIENCE, "it says what it waits for", || {
        let answer = agent.ask("/readyz")?;
        answer.body.contains("trouble with etcd for").then_some(answer)
    });
    assert_eq!(said.status, 503);
    assert_eq!(agent.ask("/healthz").map(|answer| answer.status), Some(200));
    etcd.restart();
    // Without a configuration it says how to put one.
    eventually(PATIENCE, "it says how to put a configuration", || {
        agent.daemon().log().contains("etcdctl put").then_some(())
    });
    etcd.put("/coreos.com/network/config", CONFIG);
    eventually(PATIENCE, "it has a subnet", || (agent.ask("/readyz")?.status == 200).then_some(()));
}

/// Where etcd answers, that there is no subnet yet is no trouble with etcd, whatever is missing.
#[test]
fn the_first_start_waits_for_a_configuration_and_a_free_subnet() {
    const KEY: &str = "/coreos.com/network/config";
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    let agent = Weftd::start(cluster.node(0), &etcd, &json!({}));
    let says = |part: &str| {
        eventually(PATIENCE, &format!("readiness is false and says {part:?}"), || {
            let answer = agent.ask("/readyz")?;
            let is_said = answer.body.contains(part) && !answer.body.contains("trouble with etcd");
            (answer.status == 503 && is_said).then_some(())
        });
    };
    says("config is not in etcd: put it there: etcdctl put");
    etcd.put(KEY, "{");
    says("config: ");
    let theirs = format!("{SUBNETS}10.241.7.0-24");
    etcd.put(&theirs, record("172.30.0.99", "8e:00:00:00:00:01"));
    etcd.put(KEY, ONE);
    says("are taken, by 10.241.7.0-24 among others");
    etcd.del(&theirs);
    eventually(PATIENCE, "it has the subnet", || (readiness(&agent).0 == 200).then_some(()));
    assert_eq!(subnet(cluster.node(0)), "10.241.7.0-24");
    let log = agent.daemon().log();
    assert_eq!(agent.metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0), 0.0, "{log}");
    assert!(!log.contains("goes on with what it knows"), "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("etcdctl put")).count(), 1, "{log}");
}

/// Of a subnet that was another's when the plugin was killed, right before it would have removed it.
#[test]
fn what_is_on_file_of_a_taken_subnet_goes_with_the_lease_of_another() {
    let fleet = Fleet::of(1, CONFIG, &json!({}));
    let node = fleet.node(0);
    assert!(fleet.agents[0].daemon().stop().success());
    let file = node.data_dir().join(Weftd::NETWORK).join("taken.json");
    let taken = json!({ "key": "10.255.255.0-24", "owner": "172.30.0.99", "since": 1 });
    fs::write(&file, taken.to_string()).expect("write it");
    Weftd::up(node, &fleet.etcd);
    eventually(PATIENCE, "it is forgotten", || (!file.exists()).then_some(()));
}

/// It is looked at with each look at the kernel.
#[test]
fn a_damaged_lease_of_another_network_fills_no_log() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put(&format!("{}/config", Weftd::PREFIX), CONFIG);
    let node = cluster.node(0);
    let other = node.data_dir().join("other");
    fs::create_dir_all(&other).expect("make a directory");
    fs::write(other.join("lease.json"), "{").expect("write it");
    let agent = Weftd::up(node, &etcd);
    assert!(!agent.daemon().log().contains("is damaged"), "{}", agent.daemon().log());
}
