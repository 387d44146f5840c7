//! The order of giving where long runs of addresses are held.

use std::collections::BTreeSet;
use std::time::Duration;

use cni_protocol::{Deadline, NetworkName};
use proptest::prelude::*;

use super::*;
use crate::commands::next_free;
use crate::pool::Pools;
use crate::range::{Range, RangeSpec};
use crate::record::Owner;

struct Net {
    _root: tempfile::TempDir,
    store: Store,
    pools: Pools,
}

impl Net {
    fn new(subnet: &str) -> Self {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let name: NetworkName = "net".parse().unwrap();
        let store = Store::create(root.path(), &name, Deadline::after(Duration::from_secs(20))).unwrap();
        let subnet = subnet.parse().unwrap();
        let range = Range::new(&RangeSpec { subnet, start: None, end: None, gateway: None }).unwrap();
        Self { _root: root, store, pools: Pools::new(&[vec![range]], Vec::new()).unwrap() }
    }

    fn set(&self) -> &RangeSet {
        &self.pools.sets()[0]
    }

    fn add(&self, owner: &str) -> Option<IpAddr> {
        let owner = Owner::new(owner, "eth0");
        let reservation = self.store.begin(&owner, 1, None).unwrap();
        match next_free(&self.store, &reservation, (0, self.set()), (&owner, None)) {
            Ok(ip) => {
                self.store.set_last(0, ip).unwrap();
                reservation.commit().unwrap();
                Some(ip)
            }
            Err(error) => {
                assert_eq!(error.code, cni_protocol::Code::Exhausted);
                drop(reservation.abort(error));
                None
            }
        }
    }

    fn del(&self, owner: &str) {
        assert_eq!(self.store.release(&Owner::new(owner, "eth0"), &[]), Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever came and went: the next one is the first free one behind the last, around the end, until there is none.
    #[test]
    fn the_next_one_is_the_first_that_is_free(
        bits in 22_u8..=26,
        // A container comes, goes, or its ADD is killed; in runs, so that blocks fill and get holes.
        steps in prop::collection::vec((0_u8..8, 0_usize..1000, 1_usize..300), 1..24),
    ) {
        let net = Net::new(&format!("10.0.0.0/{bits}"));
        let set = net.set();
        let (mut held, mut last, mut count) = (std::collections::BTreeMap::new(), None, 0);
        for (kind, at, run) in steps {
            for step in 0..run {
                let nth = held.keys().nth((at + step) % held.len().max(1)).copied();
                match (kind, nth) {
                    (0..=3, _) => {
                        let expected = set.after(last).find(|ip| !held.contains_key(ip));
                        let name = format!("c{count}");
                        prop_assert_eq!(net.add(&name), expected, "{} held", held.len());
                        let Some(ip) = expected else { break };
                        prop_assert!(set.gives(ip) && held.insert(ip, name).is_none());
                        (last, count) = (expected, count + 1);
                    }
                    (4, Some(ip)) => {
                        net.del(&held.remove(&ip).unwrap());
                    }
                    (5..=6, Some(ip)) => {
                        // The order goes on somewhere else, as with another host's file or a smaller range before.
                        net.store.set_last(0, ip).unwrap();
                        last = Some(ip);
                        break;
                    }
                    _ => {
                        let owner = Owner::new("killed", "eth0");
                        let reservation = net.store.begin(&owner, 1, None).unwrap();
                        if let Some(ip) = reservation.claim_next(set, last, None).unwrap() {
                            prop_assert!(!held.contains_key(&ip));
                        }
                        drop(reservation);
                        net.del("killed");
                        break;
                    }
                }
            }
        }
        let found: BTreeSet<IpAddr> = net.store.used().unwrap().into_iter().collect();
        prop_assert_eq!(found, held.into_keys().collect::<BTreeSet<_>>());
    }
}

#[test]
fn a_block_that_was_full_is_looked_at_again_when_one_of_it_comes_free() {
    let net = Net::new("10.0.0.0/22");
    let total = usize::try_from(net.set().total()).unwrap();
    let ips: Vec<IpAddr> = (0..total).map(|number| net.add(&format!("c{number}")).unwrap()).collect();
    assert_eq!(ips, net.set().after(None).collect::<Vec<_>>());
    net.del("c1000");
    assert_eq!(net.add("c1000"), Some(ips[1000]), "which has marked all before");
    for freed in [300, 500, 900] {
        net.del(&format!("c{freed}"));
    }
    net.store.set_last(0, ips[total - 1]).unwrap();
    for next in [300, 500, 900] {
        assert_eq!(net.add(&format!("c{next}")), Some(ips[next]));
    }
    assert_eq!(net.add("more"), None);
}

/// An address that came free by other hands than Weft's is found before a pool is said to be full.
#[test]
fn a_mark_that_is_wrong_is_not_believed_in_the_end() {
    let net = Net::new("10.0.0.0/22");
    let total = usize::try_from(net.set().total()).unwrap();
    for number in 0..total {
        assert!(net.add(&format!("c{number}")).is_some());
    }
    assert_eq!(net.add("more"), None);
    net.del("c700");
    let freed = net.add("again").unwrap();
    // The search for it has found other blocks full.
    assert!(fs::read_dir(net.store.dir().join(FULL)).unwrap().count() > 0);
    let other = net.set().after(Some(freed)).nth(300).unwrap();
    fs::remove_file(net.store.address_file(other)).unwrap();
    assert_eq!(net.add("more"), Some(other));
    assert_eq!(net.add("even more"), None);
}

/// Behind the last address is a run of very many that are held: once it was looked through, it is passed without a look at them. So
/// one that comes free and is told to nobody is not noticed there.
#[test]
fn a_long_run_is_passed_without_a_look() {
    let net = Net::new("10.0.0.0/20");
    let total = usize::try_from(net.set().total()).unwrap();
    for number in 0..total {
        net.add(&format!("c{number}")).unwrap();
    }
    let nth = |number: usize| net.set().after(None).nth(number).unwrap();
    let give_again = |number: usize| {
        net.del(&format!("c{number}"));
        net.store.set_last(0, nth(total - 1)).unwrap();
        assert_eq!(net.add(&format!("c{number}")), Some(nth(number)));
    };
    give_again(total - 10);
    fs::remove_file(net.store.address_file(nth(300))).unwrap();
    give_again(total - 10);
    // Freeing another there in the right way has both found.
    net.del("c301");
    net.store.set_last(0, nth(total - 1)).unwrap();
    assert_eq!([net.add("one"), net.add("two")], [Some(nth(300)), Some(nth(301))]);
}
