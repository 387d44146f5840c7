use cni_protocol::Deadline;

use super::*;

fn network() -> NetworkName {
    "net".parse().unwrap()
}

pub(super) fn lease() -> HostLease {
    HostLease {
        prefix: "/coreos.com/network".into(),
        config: "{}".into(),
        key: "10.240.34.0-24".into(),
        value: "{}".into(),
        lease_id: 7,
        pinned: false,
        ttl: 60,
        renewed: since_1970().as_secs() - 20,
        local: Vec::new(),
        underlay: String::new(),
        holder: String::new(),
    }
}

#[test]
fn a_lease_is_read_as_written_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(HostLease::read(dir.path(), &network()).unwrap(), None);
    let lease = lease();
    lease.write(dir.path(), &network()).unwrap();
    assert_eq!(HostLease::read(dir.path(), &network()).unwrap(), Some(lease));
    HostLease::forget(dir.path(), &network()).unwrap();
    HostLease::forget(dir.path(), &network()).unwrap();
    assert_eq!(HostLease::read(dir.path(), &network()).unwrap(), None);
}

#[test]
fn leases_of_other_networks() {
    let dir = tempfile::tempdir().unwrap();
    let missing = HostLease::others(&dir.path().join("missing"), &network()).unwrap();
    assert_eq!(missing, []);
    for name in ["net", "other", ".hidden", "without"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let bytes = serde_json::to_vec(&lease()).unwrap();
        if name != "without" {
            std::fs::write(dir.path().join(name).join("lease.json"), bytes).unwrap();
        }
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    let found = HostLease::others(dir.path(), &network());
    assert_eq!(found.unwrap(), [(dir.path().join("other"), lease())]);
}

#[test]
fn that_a_subnet_was_taken_is_remembered_until_it_is_given_back_or_up() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Taken { key: "10.240.34.0-24".into(), owner: "192.0.2.9".into(), since: 1 };
    for forget in [Taken::forget, HostLease::forget] {
        assert_eq!(Taken::read(dir.path(), &network()).unwrap(), None);
        taken.write(dir.path(), &network()).unwrap();
        assert_eq!(Taken::read(dir.path(), &network()).unwrap(), Some(taken.clone()));
        forget(dir.path(), &network()).unwrap();
    }
    assert_eq!(Taken::read(dir.path(), &network()).unwrap(), None);
}

#[test]
fn a_file_cut_anywhere_is_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    lease().write(dir.path(), &network()).unwrap();
    let path = file(dir.path(), &network(), "lease.json");
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(HostLease::read(dir.path(), &network()).unwrap(), None, "{length}");
    }
}

#[test]
fn the_time_left() {
    let left = lease().remaining().as_secs();
    assert!((35..=40).contains(&left), "{left}");
    let ended = HostLease { renewed: 0, ..lease() };
    assert_eq!(ended.remaining(), Duration::ZERO);
}

/// Whoever renewed it then had another clock: nobody knows how long it lasts.
#[test]
fn a_lease_of_a_time_to_come_has_no_time_left() {
    let ahead = |seconds| HostLease { renewed: since_1970().as_secs() + seconds, ..lease() };
    for (seconds, is_undated) in [(0, false), (2, false), (60, true), (864_000, true), (u64::MAX / 2, true)] {
        let lease = ahead(seconds);
        assert_eq!((lease.is_undated(), lease.has_ended()), (is_undated, is_undated), "{seconds}");
        assert!(!HostLease { pinned: true, ..lease }.has_ended());
    }
}

/// An earlier version has no lease of a pinned one on file.
#[test]
fn a_pinned_subnet_has_no_end() {
    let ended = HostLease { renewed: 0, ..lease() };
    assert!(ended.has_ended() && !ended.is_pinned());
    let mut earlier = serde_json::to_value(HostLease { lease_id: 0, ttl: 0, ..ended.clone() }).unwrap();
    earlier.as_object_mut().unwrap().remove("pinned").unwrap();
    let earlier: HostLease = serde_json::from_value(earlier).unwrap();
    for pinned in [HostLease { pinned: true, ..ended }, earlier] {
        assert!(pinned.is_pinned() && !pinned.has_ended(), "{pinned:?}");
        assert!(pinned.ended().has_ended(), "{pinned:?}");
    }
    assert!(!lease().has_ended() && lease().ended().has_ended());
}

#[test]
fn an_agent_lives_as_long_as_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!agent_lives(dir.path(), &network()).unwrap());
    std::fs::create_dir(dir.path().join("net")).unwrap();
    let path = agent_lock(dir.path(), &network());
    let agent = Lock::exclusive(&path, Deadline::after(Duration::ZERO)).unwrap();
    assert!(agent_lives(dir.path(), &network()).unwrap());
    drop(agent);
    assert!(!agent_lives(dir.path(), &network()).unwrap());
}
