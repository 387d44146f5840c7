//! An agent that is told another place in etcd than the one at which this host has its subnet.

use super::duplicates::weftctl;
use super::outage::{pair, readiness};
use super::*;

const OTHER: &str = r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
const OTHERS: &str = "/other/subnets/";

fn at_other() -> Value {
    json!({ "etcd": { "prefix": "/other" } })
}

/// Running containers keep their network, with all that the agent does for it, until the prefix is put back or they are gone.
#[test]
fn another_prefix_cuts_no_container_off() {
    let (mut fleet, (one, _), (_other, address)) = pair(&json!({}));
    let own = subnet(fleet.node(0));
    let record_of_own = fleet.etcd.get(&format!("{SUBNETS}{own}"));
    let network = fleet.network(0);
    fleet.etcd.put("/other/config", OTHER);
    assert!(fleet.agents[0].daemon().stop().success());
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &at_other());
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let parts = [Weftd::PREFIX, &own, "/other", "put the former prefix back", "remove these containers"];
    eventually(PATIENCE, "it says so", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
    });
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
    one.assert_reaches(address);
    former.call("STATUS").on(node).run().done();
    let said = weftctl(node, &fleet.etcd, &["--etcd-prefix", "/other", "status"]);
    assert!(said.contains("put the former prefix back") && said.contains("as it ought to be"), "{said}");
    let log = agent.daemon().log();
    assert_eq!(log.lines().filter(|line| line.contains("put the former prefix back")).count(), 1, "{log}");
    // The way out without the former prefix: nobody is left, and what the host had at it is given up.
    network.del_call(&one).on(node).run().done();
    eventually(PATIENCE, "it is in the other network", || {
        (readiness(agent).0 == 200 && node.link("weft.2").is_some()).then_some(())
    });
    assert!(node.link(DEVICE).is_none() && fleet.etcd.get(&format!("{SUBNETS}{own}")).is_none());
    assert_eq!(fleet.etcd.keys(&format!("{}/weft/hosts/", Weftd::PREFIX)).len(), 1, "the second host's");
    assert_eq!((fleet.etcd.keys(OTHERS).len(), fleet.etcd.leases().len()), (1, 2));
    other.add_call(&Pod::new()).on(node).run().result();
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
        eventually(PATIENCE, "it says so", || {
            agent.ask("/readyz")?.body.contains("remove these containers").then_some(())
        });
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
