//! The store in a real directory, with every kind of damage.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_state::monotonic;

use super::*;

struct Dir {
    root: tempfile::TempDir,
    network: NetworkName,
}

impl Dir {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), network: "net".parse().unwrap() }
    }

    fn store(&self) -> Store {
        let soon = Deadline::after(Duration::from_secs(20));
        Store::create(self.root.path(), &self.network, soon).unwrap()
    }

    fn opened(&self) -> Option<Store> {
        Store::open(self.root.path(), &self.network, Deadline::after(Duration::from_secs(20))).unwrap()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn owner(name: &str) -> Owner {
    Owner::new(name, "eth0")
}

fn reserve(store: &Store, owner: &Owner, ips: &[&str]) {
    let reservation = store.begin(owner, ips.len(), None).unwrap();
    for text in ips {
        assert!(reservation.claim(ip(text)).unwrap());
    }
    reservation.commit().unwrap();
}

/// A reservation as a killed ADD leaves it.
fn leave_unfinished(store: &Store, owner: &Owner, ips: &[&str]) {
    let reservation = store.begin(owner, 1, None).unwrap();
    for text in ips {
        assert!(reservation.claim(ip(text)).unwrap());
    }
    drop(reservation);
}

/// Every file and directory of the store with its content, except for the lock.
fn world(store: &Store) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut world = BTreeMap::new();
    let mut todo = vec![store.dir.clone()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            if path.file_name().unwrap() != "lock" {
                world.insert(path.clone(), fs::read(&path).ok());
            }
        }
    }
    world
}

#[test]
fn opening_creates_nothing() {
    let dir = Dir::new();
    assert!(dir.opened().is_none());
    assert_eq!(fs::read_dir(dir.root.path()).unwrap().count(), 0);
    drop(dir.store());
    assert!(dir.opened().is_some());
}

#[test]
fn a_store_that_was_half_made_is_completed() {
    let dir = Dir::new();
    let made = dir.store().dir.clone();
    // The last one is made last.
    for missing in [&["owner"][..], &["owner", "pending"], &["owner", "pending", "addr"]] {
        missing.iter().for_each(|part| fs::remove_dir(made.join(part)).unwrap());
        assert!(dir.opened().is_some());
        assert!(missing.iter().all(|part| made.join(part).is_dir()), "{missing:?}");
    }
}

#[test]
fn reserve_find_and_release() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    let (one, two) = (owner("one"), owner("two"));
    reserve(&store, &one, &["10.0.0.2", "fd00::2"]);
    let mut held = store.held_by(&one).unwrap();
    held.sort();
    assert_eq!(held, [ip("10.0.0.2"), ip("fd00::2")]);
    assert!(store.held_by(&two).unwrap().is_empty());
    assert!(store.holder(ip("fd00::2")).contains("container one (eth0)"));
    let reservation = store.begin(&two, 1, None).unwrap();
    assert!(!reservation.claim(ip("10.0.0.2")).unwrap());
    let error = reservation.abort(Error::new(Code::Exhausted, "cause"));
    assert_eq!((error.msg.as_str(), error.details.len()), ("cause", 0));
    store.verify(&one, ip("10.0.0.2")).unwrap();
    assert!(store.verify(&two, ip("10.0.0.2")).unwrap_err().contains("container one"));
    assert!(store.verify(&one, ip("10.0.0.3")).unwrap_err().contains("not reserved"));
    assert_eq!(store.release(&one, &[]), Vec::<String>::new());
    assert_eq!(store.release(&one, &[]), Vec::<String>::new());
    assert_eq!(world(&store), before);
}

#[test]
fn the_last_one_is_remembered_and_garbage_is_not() {
    let store = Dir::new();
    let store = store.store();
    assert_eq!(store.last(0), None);
    for text in ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "10.0.0.2"] {
        store.set_last(0, ip(text)).unwrap();
        assert_eq!(store.last(0), Some(ip(text)));
    }
    assert_eq!(store.last(1), None);
    for garbage in [&b""[..], b"10.0.0.", b"\xff\xfe", b"10.0.0.2 10.0.0.3"] {
        fs::write(store.dir.join("last.0"), garbage).unwrap();
        assert_eq!(store.last(0), None);
    }
}

#[test]
fn an_unfinished_reservation_is_taken_up_by_its_owner() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    leave_unfinished(&store, &owner("one"), &["10.0.0.2"]);
    assert!(store.held_by(&owner("one")).unwrap().is_empty(), "not finished");
    let one = owner("one");
    let reservation = store.begin(&one, 1, None).unwrap();
    assert_eq!(reservation.before(), [ip("10.0.0.2")]);
    assert!(reservation.claim(ip("10.0.0.2")).unwrap());
    reservation.commit().unwrap();
    assert_eq!(store.release(&one, &[]), Vec::<String>::new());
    assert_eq!(world(&store), before);
}

#[test]
fn an_unfinished_reservation_goes_with_del_gc_and_when_the_pool_looks_full() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    let free: [&dyn Fn(); 4] = [
        &|| assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new()),
        &|| assert_eq!(store.collect_garbage(&[], Duration::ZERO), Vec::<String>::new()),
        &|| assert_eq!(store.collect_garbage(&[owner("one")], Duration::ZERO), Vec::<String>::new()),
        &|| store.reclaim_unfinished(None).unwrap(),
    ];
    for free in free {
        leave_unfinished(&store, &owner("one"), &["10.0.0.2", "fd00::2"]);
        // Killed between the link by owner and the address.
        fs::remove_file(store.address_file(ip("fd00::2"))).unwrap();
        free();
        assert_eq!(world(&store), before);
    }
    leave_unfinished(&store, &owner("one"), &["10.0.0.2"]);
    store.reclaim_unfinished(Some(&owner("one"))).unwrap();
    assert_eq!(store.used().unwrap().len(), 1);
}

#[test]
fn gc_keeps_the_valid_and_the_newer() {
    let dir = Dir::new();
    let store = dir.store();
    reserve(&store, &owner("live"), &["10.0.0.2"]);
    reserve(&store, &owner("dead"), &["10.0.0.3", "fd00::3"]);
    let started = monotonic();
    reserve(&store, &owner("newer"), &["10.0.0.4"]);
    assert_eq!(store.collect_garbage(&[owner("live")], started), Vec::<String>::new());
    let used = store.used().unwrap();
    assert_eq!(used, HashSet::from([ip("10.0.0.2"), ip("10.0.0.4")]));
    assert_eq!(store.collect_garbage(&[owner("live")], monotonic()), Vec::<String>::new());
    assert_eq!(store.used().unwrap(), HashSet::from([ip("10.0.0.2")]));
    // Another interface of the same container is another owner.
    assert_eq!(store.collect_garbage(&[Owner::new("live", "eth1")], monotonic()), Vec::<String>::new());
    assert_eq!(store.used().unwrap(), HashSet::new());
}

#[test]
fn a_damaged_record_harms_nobody_and_is_repaired() {
    for garbage in [&b""[..], b"{\"containerID\":\"on", b"\xff\0\xff", b"[]"] {
        let dir = Dir::new();
        let store = dir.store();
        let before = world(&store);
        reserve(&store, &owner("one"), &["10.0.0.2"]);
        let address = store.address_file(ip("10.0.0.2"));
        let damage = || fs::write(&address, garbage).unwrap();
        damage();
        assert!(store.holder(ip("10.0.0.2")).contains("damaged"));
        let two = owner("two");
        let reservation = store.begin(&two, 1, None).unwrap();
        assert!(!reservation.claim(ip("10.0.0.2")).unwrap(), "still held");
        drop(reservation.abort(Error::new(Code::Io, "")));
        store.verify(&owner("one"), ip("10.0.0.2")).unwrap();
        assert!(store.holder(ip("10.0.0.2")).contains("container one (eth0)"));
        damage();
        assert_eq!(store.collect_garbage(&[owner("one")], monotonic()), Vec::<String>::new());
        assert!(store.holder(ip("10.0.0.2")).contains("container one (eth0)"));
        damage();
        assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new());
        assert_eq!(world(&store), before);
        reserve(&store, &owner("one"), &["10.0.0.2"]);
        damage();
        assert_eq!(store.collect_garbage(&[], monotonic()), Vec::<String>::new());
        assert_eq!(world(&store), before);
    }
}

#[test]
fn a_lost_address_file_is_restored_by_gc_or_reported_by_check() {
    let dir = Dir::new();
    let store = dir.store();
    reserve(&store, &owner("one"), &["10.0.0.2"]);
    let address = store.address_file(ip("10.0.0.2"));
    fs::remove_file(&address).unwrap();
    assert!(store.verify(&owner("one"), ip("10.0.0.2")).unwrap_err().contains("missing"));
    assert_eq!(store.collect_garbage(&[owner("one")], monotonic()), Vec::<String>::new());
    store.verify(&owner("one"), ip("10.0.0.2")).unwrap();
    // Given to another meanwhile: neither CHECK, GC nor DEL of the first one take it away.
    fs::remove_file(&address).unwrap();
    reserve(&store, &owner("two"), &["10.0.0.2"]);
    assert!(store.verify(&owner("one"), ip("10.0.0.2")).unwrap_err().contains("container two"));
    assert_eq!(store.collect_garbage(&[owner("one"), owner("two")], monotonic()), Vec::<String>::new());
    assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new());
    store.verify(&owner("two"), ip("10.0.0.2")).unwrap();
}

#[test]
fn an_address_without_link_by_owner_is_adopted_or_freed() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    let orphan = || {
        reserve(&store, &owner("one"), &["10.0.0.2"]);
        let owned = store.part("owner", owner("one").hash());
        fs::remove_file(owned.join("10.0.0.2")).unwrap();
        fs::remove_dir(owned).unwrap();
    };
    orphan();
    assert_eq!(store.release(&owner("two"), &[ip("10.0.0.2")]), Vec::<String>::new());
    assert_eq!(store.used().unwrap().len(), 1, "of another owner");
    assert_eq!(store.release(&owner("one"), &[ip("10.0.0.2")]), Vec::<String>::new());
    assert_eq!(world(&store), before);
    orphan();
    assert_eq!(store.collect_garbage(&[owner("one")], monotonic()), Vec::<String>::new());
    store.verify(&owner("one"), ip("10.0.0.2")).unwrap();
    assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new());
    orphan();
    assert_eq!(store.collect_garbage(&[], Duration::ZERO), Vec::<String>::new());
    assert_eq!(store.used().unwrap().len(), 1, "newer than the GC");
    assert_eq!(store.collect_garbage(&[], monotonic()), Vec::<String>::new());
    assert_eq!(world(&store), before);
    orphan();
    fs::write(store.address_file(ip("10.0.0.2")), b"").unwrap();
    let one = owner("one");
    let reservation = store.begin(&one, 1, None).unwrap();
    assert!(!reservation.claim(ip("10.0.0.2")).unwrap(), "held until GC, for nobody knows by whom");
    drop(reservation.abort(Error::new(Code::Io, "")));
    assert_eq!(store.collect_garbage(&[owner("one")], Duration::ZERO), Vec::<String>::new());
    assert_eq!(world(&store), before);
}

#[test]
fn del_finds_an_address_by_its_record_where_all_links_are_lost() {
    let dir = Dir::new();
    let store = dir.store();
    reserve(&store, &owner("other"), &["10.0.0.3", "fd00::3"]);
    let before = world(&store);
    let lose_links = |with_directory: bool| {
        reserve(&store, &owner("one"), &["10.0.0.2", "fd00::2"]);
        let owned = store.part("owner", owner("one").hash());
        for link in ["10.0.0.2", "fd00::2"] {
            fs::remove_file(owned.join(link)).unwrap();
        }
        if with_directory {
            fs::remove_dir(owned).unwrap();
        }
    };
    for with_directory in [true, false] {
        lose_links(with_directory);
        assert_eq!(store.release(&owner("two"), &[]), Vec::<String>::new());
        assert_eq!(store.used().unwrap().len(), 4, "of another owner");
        assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new());
        assert_eq!(world(&store), before);
    }
    // Now nobody can know whose it is: GC frees it, and what has its record goes all the same.
    lose_links(true);
    fs::write(store.address_file(ip("10.0.0.2")), b"{\"containerID\":\"on").unwrap();
    assert_eq!(store.release(&owner("one"), &[ip("10.0.0.2")]), Vec::<String>::new());
    let left: Vec<_> = store
        .used()
        .unwrap()
        .into_iter()
        .filter(|held| !before.contains_key(&store.address_file(*held)))
        .collect();
    assert_eq!(left, [ip("10.0.0.2")]);
    assert_eq!(store.collect_garbage(&[owner("other")], monotonic()), Vec::<String>::new());
    assert_eq!(world(&store), before);
}

#[test]
fn del_finds_an_address_by_its_record_where_some_links_are_lost() {
    let dir = Dir::new();
    let store = dir.store();
    reserve(&store, &owner("other"), &["10.0.0.3", "fd00::3"]);
    let before = world(&store);
    let (one, ips) = (owner("one"), ["10.0.0.2", "10.1.0.2", "fd00::2"]);
    for lost in [&ips[..1], &ips[1..2], &ips[2..], &ips[1..]] {
        reserve(&store, &one, &ips);
        for link in lost {
            fs::remove_file(store.part("owner", one.hash()).join(link)).unwrap();
        }
        assert_eq!(store.release(&one, &[]), Vec::<String>::new());
        assert_eq!(world(&store), before, "{lost:?}");
    }
}

#[test]
fn copies_in_place_of_links_still_belong_to_their_owner() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    reserve(&store, &owner("one"), &["10.0.0.2"]);
    let address = store.address_file(ip("10.0.0.2"));
    let content = fs::read(&address).unwrap();
    let tear = || {
        fs::remove_file(&address).unwrap();
        fs::write(&address, &content).unwrap();
    };
    tear();
    store.verify(&owner("one"), ip("10.0.0.2")).unwrap();
    assert_eq!(store.collect_garbage(&[owner("one")], monotonic()), Vec::<String>::new());
    assert_eq!(fs::metadata(&address).unwrap().nlink(), 2, "linked again");
    tear();
    assert_eq!(store.release(&owner("one"), &[]), Vec::<String>::new());
    assert_eq!(world(&store), before);
}

#[test]
fn files_where_directories_should_be_are_removed() {
    let dir = Dir::new();
    let store = dir.store();
    let before = world(&store);
    let one = owner("one");
    for part in ["owner", "pending"] {
        fs::write(store.part(part, one.hash()), b"garbage").unwrap();
        assert!(store.held_by(&one).unwrap().is_empty());
        assert_eq!(store.release(&one, &[]), Vec::<String>::new());
        assert_eq!(world(&store), before);
        fs::write(store.part(part, one.hash()), b"garbage").unwrap();
        assert_eq!(store.collect_garbage(&[], monotonic()), Vec::<String>::new());
        assert_eq!(world(&store), before);
    }
}

#[test]
fn what_cannot_be_removed_is_reported_and_the_rest_is_done() {
    let dir = Dir::new();
    let store = dir.store();
    reserve(&store, &owner("one"), &["10.0.0.2"]);
    reserve(&store, &owner("two"), &["10.0.0.3"]);
    // A directory that is not empty, under the name of an address.
    let obstacle = store.part("owner", owner("one").hash()).join("10.0.0.9");
    fs::create_dir_all(obstacle.join("inside")).unwrap();
    let left = store.collect_garbage(&[], monotonic());
    assert!(left.iter().any(|l| l.contains("10.0.0.9")), "{left:?}");
    assert_eq!(store.used().unwrap(), HashSet::new());
    assert!(store.release(&owner("one"), &[]).iter().any(|l| l.contains("10.0.0.9")));
}

#[test]
fn a_store_is_locked_while_it_lives() {
    let dir = Dir::new();
    let store = dir.store();
    let late = Deadline::after(Duration::ZERO);
    let error = Store::create(dir.root.path(), &dir.network, late).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    assert!(error.msg.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(store);
    assert!(dir.opened().is_some());
}
