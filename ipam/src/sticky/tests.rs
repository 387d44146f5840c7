//! Addresses that stay with names, in a real store.

use std::collections::BTreeMap;

use cni_protocol::{Deadline, NetworkName};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::commands::reserve;
use crate::conf::Conf;
use crate::pool::Pools;
use crate::range::{Range, RangeSpec};
use crate::record::Owner;

struct Dir {
    root: tempfile::TempDir,
    conf: Conf,
}

impl Dir {
    /// A network that gives the addresses of these subnets, and keeps them for an hour.
    fn new(subnets: &[&str]) -> Self {
        let set = |subnet: &&str| {
            let subnet: IpNetwork = subnet.parse().unwrap();
            vec![Range::new(&RangeSpec { subnet, start: None, end: None, gateway: None }).unwrap()]
        };
        let pools = Pools::new(&subnets.iter().map(set).collect::<Vec<_>>(), Vec::new()).unwrap();
        let conf = Conf {
            requests: vec![None; pools.sets().len()],
            pools,
            routes: Vec::new(),
            resolv_conf: None,
            sticky: Some(HOUR),
        };
        Self { root: tempfile::tempdir().unwrap(), conf }
    }

    fn store(&self) -> Store {
        let network: NetworkName = "net".parse().unwrap();
        Store::create(self.root.path(), &network, Deadline::after(Duration::from_secs(20))).unwrap()
    }

    fn add(&self, container: &str, name: Option<&Name>) -> Result<Vec<IpAddr>, Error> {
        reserve(&self.store(), &self.conf, (&Owner::new(container, "eth0"), name))
    }

    #[track_caller]
    fn gives(&self, container: &str, name: &str, addresses: &[&str]) {
        let expected: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(self.add(container, Some(&called(name))).unwrap(), expected);
    }

    fn del(&self, container: &str) {
        assert_eq!(self.store().release(&Owner::new(container, "eth0"), &[]), [""; 0]);
    }

    /// As if so much time had gone by since addresses were freed.
    fn age(&self, by: Duration) {
        let store = self.store();
        for ip in addresses_in(&store.dir().join("kept")).unwrap() {
            let path = store.part("kept", &ip.to_string());
            let mut kept = Kept::read(&path).unwrap();
            kept.until = kept.until.saturating_sub(u64::try_from(by.as_nanos()).unwrap());
            fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
        }
    }

    fn files(&self, part: &str) -> usize {
        names_in(&self.store().dir().join(part)).unwrap().map_or(0, |names| names.len())
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn called(name: &str) -> Name {
    Name { name: name.to_owned(), ifname: "eth0".to_owned(), time: HOUR.as_secs() }
}

#[test]
fn a_name_keeps_its_addresses_of_every_family_and_others_get_none_of_them() {
    let dir = Dir::new(&["10.5.0.0/24", "fd05::/64"]);
    dir.gives("a1", "default/a", &["10.5.0.2", "fd05::2"]);
    dir.gives("b1", "default/b", &["10.5.0.3", "fd05::3"]);
    dir.del("a1");
    dir.del("b1");
    // As if the order had come round.
    fs::remove_file(dir.store().dir().join("last.0")).unwrap();
    dir.gives("c1", "default/c", &["10.5.0.4", "fd05::4"]);
    dir.gives("b2", "default/b", &["10.5.0.3", "fd05::3"]);
    dir.gives("a2", "default/a", &["10.5.0.2", "fd05::2"]);
    assert_eq!(dir.add("nobody", None).unwrap()[0], "10.5.0.5".parse::<IpAddr>().unwrap());
}

#[test]
fn a_name_whose_address_is_held_gets_another_and_keeps_that() {
    let dir = Dir::new(&["10.5.0.0/24"]);
    dir.gives("old", "a", &["10.5.0.2"]);
    dir.gives("new", "a", &["10.5.0.3"]);
    dir.del("new");
    dir.del("old");
    assert_eq!(dir.files("kept"), 1, "the older address is nobody's");
    dir.gives("again", "a", &["10.5.0.3"]);
}

#[test]
fn a_pool_that_is_otherwise_full_gives_what_is_kept_the_oldest_first() {
    let dir = Dir::new(&["10.5.0.0/29"]);
    for name in ["a", "b", "c", "d", "e"] {
        dir.add(name, Some(&called(name))).unwrap();
    }
    dir.del("b");
    dir.del("a");
    dir.gives("f", "f", &["10.5.0.3"]);
    // `a` has its own still; then there is none, and nothing is left of the failed attempt.
    dir.gives("a", "a", &["10.5.0.2"]);
    assert_eq!(dir.add("b", Some(&called("b"))).unwrap_err().code, Code::Exhausted);
    dir.del("f");
    dir.gives("b", "b", &["10.5.0.3"]);
}

#[test]
fn an_address_asked_for_is_refused_while_it_is_kept_for_another() {
    let mut dir = Dir::new(&["10.5.0.0/29"]);
    dir.gives("a", "default/a", &["10.5.0.2"]);
    dir.del("a");
    dir.conf.requests = vec![Some("10.5.0.2".parse().unwrap())];
    let error = dir.add("b", None).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
    assert!(error.msg.contains("\"default/a\" (eth0) for 3"), "{}", error.msg);
    dir.gives("a", "default/a", &["10.5.0.2"]);
    dir.del("a");
    dir.age(HOUR);
    dir.add("b", None).unwrap();
}

#[test]
fn what_is_over_is_forgotten_by_gc_and_without_gc() {
    let dir = Dir::new(&["10.5.0.0/24"]);
    dir.gives("a", "a", &["10.5.0.2"]);
    dir.gives("b", "b", &["10.5.0.3"]);
    dir.del("a");
    assert_eq!(dir.store().collect_garbage(&[], monotonic()), [""; 0]);
    // GC frees `b`, whose address is kept as after a DEL.
    assert_eq!((dir.files("addr"), dir.files("kept"), dir.files("name")), (0, 2, 2));
    dir.age(HOUR / 2);
    dir.store().collect_garbage(&[], monotonic());
    assert_eq!((dir.files("kept"), dir.files("name")), (2, 2));
    dir.age(HOUR / 2);
    dir.store().collect_garbage(&[], monotonic());
    assert_eq!((dir.files("kept"), dir.files("name")), (0, 0));

    dir.gives("c", "c", &["10.5.0.4"]);
    dir.gives("d", "d", &["10.5.0.5"]);
    dir.del("c");
    dir.age(HOUR);
    let forgotten = dir.store().dir().join("forgotten");
    assert!(fs::read_to_string(&forgotten).unwrap().parse::<u64>().unwrap() <= monotonic().as_secs());
    dir.del("d");
    assert_eq!(dir.files("name"), 2, "not every DEL looks at all names");
    dir.gives("d", "d", &["10.5.0.5"]);
    fs::remove_file(&forgotten).unwrap();
    dir.del("d");
    assert_eq!((dir.files("kept"), dir.files("name")), (1, 1));
}

#[test]
fn the_name_of_a_living_container_is_not_forgotten() {
    let dir = Dir::new(&["10.5.0.0/24"]);
    dir.gives("a", "a", &["10.5.0.2"]);
    let a = Owner::new("a", "eth0");
    dir.store().collect_garbage(&[a], monotonic());
    dir.del("a");
    dir.gives("a", "a", &["10.5.0.2"]);
}

#[test]
fn damage_costs_a_name_its_address_at_most() {
    for part in ["name", "kept"] {
        for garbage in [&b""[..], b"{", b"10.5.0.", b"\xff\xfe", b"../../x ../y"] {
            let dir = Dir::new(&["10.5.0.0/24"]);
            dir.gives("a", "a", &["10.5.0.2"]);
            dir.del("a");
            let of_part = dir.store().dir().join(part);
            for name in names_in(&of_part).unwrap().unwrap() {
                fs::write(of_part.join(name), garbage).unwrap();
            }
            fs::write(of_part.join("not an address"), b"x").unwrap();
            assert!(dir.add("b", Some(&called("b"))).is_ok());
            assert!(dir.add("a", Some(&called("a"))).is_ok());
            dir.del("a");
            dir.del("b");
            assert_eq!(dir.store().collect_garbage(&[], monotonic()), [""; 0]);
            assert!(dir.add("c", None).is_ok());
        }
    }
    // A file where the directory ought to be.
    let dir = Dir::new(&["10.5.0.0/24"]);
    for part in ["name", "kept"] {
        fs::write(dir.store().dir().join(part), b"").unwrap();
    }
    dir.gives("a", "a", &["10.5.0.2"]);
    dir.del("a");
    dir.gives("a", "a", &["10.5.0.3"]);
    dir.del("a");
}

#[test]
fn the_keys_are_checked() {
    let time = |sticky, seconds| time(sticky, seconds).map_err(|error| (error.code, error.msg));
    assert_eq!(time(None, None), Ok(None));
    assert_eq!(time(Some(""), None), Ok(None));
    assert_eq!(time(Some("name"), None), Ok(Some(HOUR)));
    assert_eq!(time(Some("name"), Some(1)), Ok(Some(Duration::from_secs(1))));
    for (sticky, seconds, part) in [
        (Some("mac"), None, "\"mac\""),
        (None, Some(60), "ipam.stickyFor: 60"),
        (Some("name"), Some(0), "ipam.stickyFor: 0"),
        (Some("name"), Some(TIME_MAX + 1), "write 1 to 31536000"),
    ] {
        let (code, msg) = time(sticky, seconds).unwrap_err();
        assert!(code == Code::InvalidConfig && msg.contains(part), "{msg}");
    }
}

#[test]
fn names_that_runtimes_give() {
    let name_in = |id: &str, args: &CniArgs| {
        Name::of(args, &id.parse().unwrap(), &"eth0".parse().unwrap(), HOUR).map(|name| name.name)
    };
    let name = |args: &CniArgs| {
        let [plain, nerdctl] = ["3f4e8d1c9a7b5e6f", "my-space-3f4e8d1c9a7b5e6f"].map(|id| name_in(id, args));
        assert_eq!(plain, nerdctl);
        plain
    };
    let mut args = CniArgs { hostname: Some("web".into()), ..CniArgs::default() };
    assert_eq!(name(&args), Some("web".into()));
    // What nerdctl makes up is another one for each container.
    args.hostname = Some("3f4e8d1c9a7b".into());
    assert_eq!(name(&args), None);
    // A short name may begin the container ID by chance, and a runtime that gives a pod's makes up none.
    args.hostname = Some("3f4e8d1c9a7".into());
    assert_eq!(name(&args), Some("3f4e8d1c9a7".into()));
    args.k8s_pod = BTreeMap::from([("NAME".into(), "3f4e8d1c9a7b".into())]);
    assert_eq!(name(&args), Some("3f4e8d1c9a7b".into()));
    args.k8s_pod = BTreeMap::from([("NAMESPACE".into(), "default".into()), ("NAME".into(), "web-0".into())]);
    assert_eq!(name(&args), Some("default/web-0".into()));
    assert_eq!(name(&CniArgs::default()), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a model: who holds what, and what is kept for whom, in the order of time.
    #[test]
    fn every_choice_is_the_models(calls in prop::collection::vec((0..8_usize, any::<bool>()), 1..40)) {
        let dir = Dir::new(&["10.5.0.0/29"]);
        let mut held: BTreeMap<usize, IpAddr> = BTreeMap::new();
        let mut kept: Vec<(usize, IpAddr)> = Vec::new();
        for (who, add) in calls {
            let name = format!("n{who}");
            if !add {
                dir.del(&name);
                if let Some(ip) = held.remove(&who) {
                    kept.retain(|(_, other)| *other != ip);
                    kept.push((who, ip));
                }
                continue;
            }
            let given = dir.add(&name, Some(&called(&name)));
            if held.contains_key(&who) {
                prop_assert_eq!(given.unwrap_err().code, Code::Conflict);
                continue;
            }
            let is_free = |ip: &IpAddr| !held.values().any(|held| held == ip);
            let own = kept.iter().rev().find(|(whose, ip)| *whose == who && is_free(ip)).map(|(_, ip)| *ip);
            let mut free = (2..7).map(|n| IpAddr::from([10, 5, 0, n]));
            let unkept = free.any(|ip| is_free(&ip) && !kept.iter().any(|(_, kept)| *kept == ip));
            let oldest = kept.iter().map(|(_, ip)| *ip).find(|ip| is_free(ip));
            match (own, unkept, oldest) {
                (Some(own), ..) => prop_assert_eq!(&given, &Ok(vec![own])),
                (None, true, _) => {
                    let ip = given.as_ref().unwrap()[0];
                    prop_assert!(is_free(&ip) && !kept.iter().any(|(_, kept)| *kept == ip));
                }
                (None, false, Some(oldest)) => prop_assert_eq!(&given, &Ok(vec![oldest])),
                (None, false, None) => prop_assert!(given.is_err()),
            }
            if let Ok(given) = given {
                held.insert(who, given[0]);
            }
        }
    }
}
