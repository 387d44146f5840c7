//! A network of one family that gets the other one under its hosts.

use super::*;

/// The host of before stays in its subnet and goes on with its containers, also with new ones. It and those that come after reach each
/// other by the family that both have.
#[test]
fn a_living_network_gets_ipv6() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let [before, after] = [0, 1].map(|index| cluster.node(index));
    let network = Weftd::network(&etcd).with(&json!({ "ipam": { "peerRefresh": 0 } }));
    let agent = Weftd::up(before, &etcd);
    let (old, result) = before.attach(&network);
    let old_address = ips(&result)[0];
    let key = etcd.keys(SUBNETS)[0].trim_start_matches(SUBNETS).to_owned();
    etcd.put("/coreos.com/network/config", DUAL);
    let parts = ["config was changed", "of IPv4 and IPv6 now", &key, "of IPv4,", "weftctl leave"];
    eventually(PATIENCE, "it tells what has changed", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
    });
    let _other_agent = Weftd::up(after, &etcd);
    let (new, result) = after.attach(&network);
    let [new_address, _] = ips(&result)[..] else { panic!("both families: {result}") };
    heal::reaches_in(PATIENCE, &old, new_address, "a host of both families came");
    new.assert_reaches(old_address);
    let (more, result) = before.attach(&network);
    assert_eq!(ips(&result).len(), 1, "the lease goes on");
    more.assert_reaches(new_address);
    // Without the agent an ADD is what can tell.
    agent.daemon().stop();
    network.add_call(&Pod::new()).on(before).run().error_code(7).assert_names(&parts);
    old.assert_reaches(new_address);
}
