//! An agent that is told another place in etcd than the one at which this host has its subnet.

use super::duplicates::weftctl;
use super::outage::{pair, readiness};
use super::restart::by_flannel;
use super::*;

const OTHER: &str = r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
const OTHERS: &str = "/other/subnets/";

fn at_other() -> Value {
    json!({ "etcd": { "prefix": "/other" } })
}

/// What an agent says that works at the former place.
const REMEDY: &str = "put the former prefix back, or remove these containers";

/// Starts the first host's agent anew, told the other prefix.
fn change_over(fleet: &mut Fleet) {
    fleet.agents[0].daemon().stop();
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &at_other());
}

/// Waits until an agent is not ready, with these parts in the reason.
#[track_caller]
fn assert_unready(agent: &Weftd, parts: &[&str]) {
    eventually(PATIENCE, &format!("it is not ready and says {parts:?}"), || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
    });
}

/// Waits until a container reaches another one.
#[track_caller]
fn assert_gets_to(pod: &Pod, address: IpAddr) {
    eventually(PATIENCE, &format!("{address} answers"), || pod.ping(address).status.success().then_some(()));
}

/// Running containers keep their network, with all that the agent does for it, until the prefix is put back or they are gone.
#[test]
fn another_prefix_cuts_no_container_off() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own = subnet(fleet.node(0));
    let record_of_own = fleet.etcd.get(&format!("{SUBNETS}{own}"));
    let network = fleet.network(0);
    fleet.etcd.put("/other/config", OTHER);
    change_over(&mut fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let parts = [Weftd::PREFIX, &own, "/other", REMEDY];
    assert_unready(agent, &parts);
    let former = Weftd::network(&fleet.etcd);
    let other = former.clone().with(&json!({ "ipam": at_other() }));
    other.add_call(&Pod::new()).on(node).run().error_code(7).assert_names(&parts);
    other.call("STATUS").on(node).run().error_code(50).assert_names(&parts);
    assert!(fleet.etcd.keys(OTHERS).is_empty() && node.link("weft.2").is_none());
    assert_eq!((subnet(node), fleet.etcd.get(&format!("{SUBNETS}{own}"))), (own.clone(), record_of_own));
    one.assert_reaches(address);
    // It goes on in the former network: who comes there is reached, and what is damaged is repaired.
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_learns(node, PATIENCE, "8e:00:00:00:00:01", true);
    node.command(&format!("ip link del {DEVICE}"));
    eventually(REPAIR, "the device is back", || node.link(DEVICE));
    assert_gets_to(&one, address);
    former.call("STATUS").on(node).run().done();
    let said = weftctl(node, &fleet.etcd, &["--etcd-prefix", "/other", "status"]);
    assert!(said.contains(REMEDY) && said.contains("as it ought to be"), "{said}");
    let log = agent.daemon().log();
    assert_eq!(log.lines().filter(|line| line.contains(REMEDY)).count(), 1, "{log}");
    // The way out without the former prefix: nobody is left, and what the host had at it is given up.
    network.del_call(&one).on(node).run().done();
    eventually(PATIENCE, "it is in the other network", || {
        (readiness(agent).0 == 200 && node.link("weft.2").is_some()).then_some(())
    });
    assert!(node.link(DEVICE).is_none() && fleet.etcd.get(&format!("{SUBNETS}{own}")).is_none());
    assert_eq!(fleet.etcd.keys(&format!("{}/weft/hosts/", Weftd::PREFIX)).len(), 1, "the second host's");
    assert_eq!((fleet.etcd.keys(OTHERS).len(), fleet.etcd.leases().len()), (1, 2));
    other.add_call(&Pod::new()).on(node).run().result();
    let log = agent.daemon().log();
    assert!(!log.contains("cut off"), "nobody was: {log}");
}

/// As wholly as if it were configured there, and says from the first moment on that it does.
#[test]
fn at_the_former_place_it_does_all_that_an_agent_does() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let key = format!("{SUBNETS}{}", subnet(fleet.node(0)));
    fleet.etcd.put("/other/config", OTHER);
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.etcd.freeze();
    change_over(&mut fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    assert_unready(agent, &[REMEDY]);
    assert_eq!(agent.metric(r#"weft_ready{network="pods"}"#), Some(0.0));
    assert_unready(agent, &[REMEDY, "trouble with etcd"]);
    fleet.etcd.thaw();
    let publishes = |address: &str| assert_published(&fleet.etcd, &key, &[address]);
    // etcd loses the record, the host moves.
    fleet.etcd.del(&key);
    publishes("172.30.0.11");
    node.renumber("172.30.0.11", "172.30.0.21");
    publishes("172.30.0.21");
    assert_gets_to(&one, address);
    // Another host has the subnet, and leaves it.
    let former = Weftd::network(&fleet.etcd);
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_unready(agent, &[REMEDY, "belongs to 172.30.0.99"]);
    former.add_call(&Pod::new()).on(node).run().error_code(103).assert_names(&["172.30.0.99"]);
    fleet.etcd.del(&key);
    publishes("172.30.0.21");
    eventually(PATIENCE, "containers come", || {
        former.call("STATUS").on(node).run().succeeded().then_some(())
    });
}

/// The last container goes while the other network is not configured yet: whoever asks is told what is missing, and not about
/// containers, as whoever is configured for the other prefix before the agent is.
#[test]
fn without_containers_it_waits_for_the_other_network() {
    let mut fleet = Fleet::of(1, CONFIG, &json!({ "leaseTTL": 20 }));
    let network = fleet.network(0);
    let other = Weftd::network(&fleet.etcd).with(&json!({ "ipam": at_other() }));
    let is_told = |fleet: &Fleet| {
        let pod = Pod::new();
        for (call, code) in [(other.add_call(&pod), 11), (other.call("STATUS"), 50)] {
            let error = call.on(fleet.node(0)).run().error_code(code);
            error.assert_names(&[Weftd::PREFIX, "/other", "etcd.prefix", "/readyz"]);
            assert!(!error.msg.contains("containers"), "{}", error.msg);
        }
    };
    is_told(&fleet);
    let (pod, _result) = fleet.node(0).attach(&network);
    let own = subnet(fleet.node(0));
    fleet.agents[0].daemon().stop();
    let changes = json!({ "leaseTTL": 20, "etcd": { "prefix": "/other" } });
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &changes);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    assert_unready(agent, &[REMEDY]);
    network.del_call(&pod).on(node).run().done();
    assert_unready(agent, &["/other/config"]);
    let (_, said) = readiness(agent);
    assert!(!said.contains(REMEDY), "{said}");
    is_told(&fleet);
    // Until it has another subnet the former one stays its own, for etcd and by the file.
    let file = node.data_dir().join("pods/lease.json");
    let renewed = || {
        let lease: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
        lease["renewed"].as_u64().expect("a time")
    };
    let before = renewed();
    eventually(PATIENCE, "the former lease is renewed", || (renewed() > before).then_some(()));
    assert!(fleet.etcd.get(&format!("{SUBNETS}{own}")).is_some());
    fleet.etcd.put("/other/config", OTHER);
    eventually(Duration::from_secs(5), "it is in the other network", || {
        (readiness(agent).0 == 200 && node.link("weft.2").is_some()).then_some(())
    });
    other.add_call(&Pod::new()).on(node).run().result();
}

/// Other prefix, other etcd, whose revisions are lower: no host of the former network is one of the new one.
#[test]
fn no_host_of_the_former_network_comes_along() {
    let mut fleet = Fleet::new(2);
    fleet.acquainted();
    for agent in &fleet.agents {
        assert!(agent.daemon().stop().success());
    }
    fleet.etcd.restart_empty();
    fleet.etcd.put("/other/config", OTHER);
    change_over(&mut fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    agent.ready();
    eventually(PATIENCE, "it is set up", || node.link("weft.2"));
    assert_eq!(forwarding_entries(node, "weft.2"), 0);
    let peers = fs::read_to_string(node.data_dir().join("pods/peers.json")).expect("the hosts");
    assert!(!peers.contains("172.30.0.12"), "{peers}");
    let log = agent.daemon().log();
    assert!(!log.contains("lost data") && !log.contains("cut off") && !log.contains("is given up"), "{log}");
    assert!(log.contains("has no record in the etcd that is configured"), "{log}");
}

/// Another etcd, which never had the former network: it knows of no host, which says nothing of those that are there, also where the lease has
/// ended meanwhile.
#[test]
fn an_etcd_without_the_former_network_takes_no_host_away() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    assert!(fleet.agents[0].daemon().stop().success());
    let revision = fleet.etcd.revision();
    fleet.etcd.restart_empty();
    for number in 0..=revision {
        fleet.etcd.put("/else", number.to_string());
    }
    let file = fleet.node(0).data_dir().join("pods/lease.json");
    let mut lease: Value = serde_json::from_slice(&fs::read(&file).expect("a lease")).expect("JSON");
    lease["renewed"] = json!(1);
    fs::write(&file, lease.to_string()).expect("age the lease");
    change_over(&mut fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    assert_unready(agent, &[REMEDY]);
    asks_etcd_again(agent);
    assert_eq!(forwarding_entries(node, DEVICE), 1);
    one.assert_reaches(address);
}

/// subnet.env leads a container to the former subnet while etcd, of which the host asks another one, is silent.
#[test]
fn a_container_that_comes_by_the_former_subnet_keeps_the_host_there() {
    comes_by_the_former_subnet(false);
}

/// Also when etcd has been asked before it comes, and answers then.
#[test]
fn a_container_that_comes_while_another_subnet_is_asked_for_keeps_the_host_in_its_own() {
    comes_by_the_former_subnet(true);
}

fn comes_by_the_former_subnet(is_back_at_once: bool) {
    let mut fleet = Fleet::new(2);
    fleet.etcd.put("/other/config", OTHER);
    let (_other, address) = fleet.pod(1);
    let own = subnet(fleet.node(0));
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.node(0).command(&format!("ip link del {DEVICE}"));
    fleet.etcd.freeze();
    change_over(&mut fleet);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    assert_unready(agent, &["no subnet is leased yet", "trouble with etcd"]);
    let pod = Pod::new();
    by_flannel("ADD", node, "host-local", &pod).result();
    if !is_back_at_once {
        assert_unready(agent, &[REMEDY, &own]);
        eventually(PATIENCE, "the device is there", || node.link(DEVICE));
    }
    fleet.etcd.thaw();
    assert_gets_to(&pod, address);
    assert_unready(agent, &[REMEDY, &format!("subnet {own}, 1 peers")]);
    by_flannel("DEL", node, "host-local", &pod).done();
    eventually(PATIENCE, "it is in the other network", || {
        (readiness(agent).0 == 200 && node.link("weft.2").is_some()).then_some(())
    });
}

/// Everything is as it was, and a host without containers leaves whatever the prefix is.
#[test]
fn a_former_prefix_that_is_put_back() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own = subnet(fleet.node(0));
    fleet.etcd.put("/other/config", OTHER);
    assert!(fleet.agents[0].daemon().stop().success());
    // Also while etcd is away.
    fleet.etcd.stop();
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &at_other());
    eventually(PATIENCE, "it has looked at etcd", || {
        fleet.agents[0].daemon().log().contains("etcd").then_some(())
    });
    one.assert_reaches(address);
    fleet.etcd.restart();
    let says_so = |agent: &Weftd| {
        eventually(PATIENCE, "it says so", || agent.ask("/readyz")?.body.contains(REMEDY).then_some(()));
    };
    says_so(&fleet.agents[0]);
    // And where etcd has nothing of the host, as another etcd.
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.etcd.del(&format!("{SUBNETS}{own}"));
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &at_other());
    says_so(&fleet.agents[0]);
    fleet.node(0).command(&format!("ip link del {DEVICE}"));
    eventually(REPAIR, "the device is back, and leads to the other host", || {
        fleet.node(0).link(DEVICE).filter(|_| forwarding_entries(fleet.node(0), DEVICE) == 1)
    });
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    assert_eq!(subnet(fleet.node(0)), own);
    fleet.acquainted();
    one.assert_reaches(address);
    assert_eq!((fleet.etcd.leases().len(), fleet.etcd.keys(OTHERS).len()), (2, 0));
    // By the tool, with the other prefix in its configuration.
    fleet.network(0).del_call(&one).on(fleet.node(0)).run().done();
    assert!(fleet.agents[0].daemon().stop().success());
    let said = weftctl(fleet.node(0), &fleet.etcd, &["--etcd-prefix", "/other", "leave"]);
    assert!(said.contains("is given up;"), "{said}");
    assert!(fleet.etcd.get(&format!("{SUBNETS}{own}")).is_none());
}
