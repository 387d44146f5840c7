//! Hosts that get other addresses while their containers live.

use super::*;

/// In one family while etcd is reached by the other, in that by which it is reached, and while no agent is there.
#[test]
fn a_host_keeps_its_subnet_and_containers_when_its_address_changes() {
    let mut fleet = Fleet::of(2, DUAL, &json!({}));
    let pods = [0, 1].map(|index| fleet.pod_of_all(index));
    let key = fleet.etcd.keys(SUBNETS).into_iter().find(|key| key.contains(&subnet(fleet.node(1))));
    let key = key.expect("the record of host 1");
    let assert_moves = |fleet: &Fleet, published: [&str; 2]| {
        assert_published(&fleet.etcd, &key, &published);
        fleet.agents[1].ready();
        for family in 0..2 {
            assert_all_reach(&[0, 1].map(|index| (&pods[index].0, pods[index].1[family])));
        }
        let holders = fleet.etcd.keys("/coreos.com/network/weft/hosts/");
        assert!(holders.len() == 4 && published.iter().all(|address| holders.concat().contains(address)));
        assert_eq!((fleet.etcd.keys(SUBNETS).len(), fleet.etcd.leases().len()), (2, 2));
    };
    fleet.node(1).renumber("fd30::12", "fd30::22");
    assert_moves(&fleet, ["172.30.0.12", "fd30::22"]);
    fleet.node(1).renumber("172.30.0.12", "172.30.0.22");
    assert_moves(&fleet, ["172.30.0.22", "fd30::22"]);
    let log = fleet.agents[1].daemon().log();
    assert!(!log.contains("etcd has lost data") && !log.contains("belongs to"), "{log}");
    for (from, to) in [("fd30::12", "fd30::22"), ("172.30.0.12", "172.30.0.22")] {
        assert_eq!(log.matches(&format!("was {from}, and is {to} from now on")).count(), 1, "{log}");
    }
    assert!(fleet.agents[1].daemon().stop().success());
    fleet.node(1).renumber("172.30.0.22", "172.30.0.32");
    fleet.node(1).renumber("fd30::22", "fd30::32");
    fleet.agents[1] = Weftd::start(fleet.node(1), &fleet.etcd, &json!({}));
    assert_moves(&fleet, ["172.30.0.32", "fd30::32"]);
}
