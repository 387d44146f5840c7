//! Whom others see, where the agent masquerades.

use weft_tests::{Mirror, NetNs};

use super::*;

const PORT: u16 = 8080;
/// Addresses of the machine outside of the network for which nobody's address is changed.
const EXEMPT: [&str; 2] = ["203.0.113.1", "2001:db8:77::1"];

#[test]
fn what_leaves_the_network_has_the_hosts_address_unless_it_is_exempt() {
    let exempt = json!(["203.0.113.0/24", "2001:db8:77::/48"]);
    let fleet = Fleet::of(2, DUAL, &json!({ "ipMasq": true, "noMasquerade": exempt }));
    fleet.acquainted();
    let (one, own) = fleet.pod_of_all(0);
    let (other, theirs) = fleet.pod_of_all(1);
    let (inside, outside) = (Mirror::on(&other, PORT), Mirror::on(&NetNs::current(), PORT));
    let node = fleet.node(0);
    for (index, family) in fleet.families.iter().enumerate() {
        let (flag, host) = (family.flag(), family.address(node));
        command(&format!("ip addr add {}/{} dev lo", EXEMPT[index], family.alone()));
        // An address that is not changed needs a way back.
        command(&format!("ip {flag} route add {} via {host}", family.subnet(node)));
        assert_eq!(outside.seen(&one, (family.neighbour(1), PORT)), Some(host));
        let exempt = EXEMPT[index].parse().expect("an address");
        assert_eq!(outside.seen(&one, (exempt, PORT)), Some(own[index]));
        assert_eq!(inside.seen(&one, (theirs[index], PORT)), Some(own[index]), "within the network");
    }
}

/// Whose record is read first is by chance: those from before and after know nothing of it.
#[test]
fn what_one_of_several_containers_has_masqueraded_comes_back() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let network = |masquerade: bool| Network::dual().with(&json!({ "ipMasq": masquerade }));
    let attached = [false, true, false].map(|masquerade| node.attach(&network(masquerade)));
    let (pod, result) = &attached[1];
    let check = || network(true).check_call(pod, result).on(node).run().succeeded();
    assert!(check());
    for damage in ["nft delete chain inet weft masq-dual", "nft flush set inet weft masq-dual-v4"] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
    }
}
