//! The hosts of a network as this one knows them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_state::lease::{HostLease, Peers};

/// How long hosts stay that went with the store's data, from when they can put their records back.
const PATIENCE: Duration = Duration::from_secs(60);
/// And at least from when they can do so again.
const LEAST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Hosts {
    /// As in the store, and those that the store has lost.
    known: Peers,
    /// Until when the latter stay; not set while they cannot come back.
    until: Option<Instant>,
    /// And for how long when they can.
    left: Duration,
}

impl Hosts {
    /// What was on file.
    pub(super) fn new(known: Peers) -> Self {
        Self { known, until: None, left: PATIENCE }
    }

    pub(super) fn known(&self) -> &Peers {
        &self.known
    }

    /// This host's lease has ended, and the record with it: that it is made anew is no sign of a loss.
    pub(super) fn has_ended(&mut self, key: &str) {
        self.known.created.remove(key);
    }

    /// This host has another subnet: its former record goes, and the new one's key may have been another host's, which is no sign of a
    /// loss either.
    pub(super) fn moves(&mut self, from: &str, to: &str) {
        self.known.records.remove(from);
        self.has_ended(from);
        self.has_ended(to);
    }

    /// Whether hosts can put their records back, as this one can: etcd answers, and has the network's configuration. From then on their time
    /// runs.
    pub(super) fn can_return(&mut self, can: bool) {
        if !can {
            let left = |until: Instant| until.saturating_duration_since(Instant::now()).max(LEAST);
            self.left = self.until.take().map_or(self.left, left);
        } else if self.known.lost.is_some() {
            self.until.get_or_insert_with(|| Instant::now() + self.left);
        }
    }

    /// Takes in all of the store's records, with this host's lease as it was before. Whether anything is different.
    pub(super) fn replace(&mut self, hosts: Peers, lease: Option<&HostLease>) -> bool {
        let hosts = hosts.after(&self.known, lease);
        // Lost once more, or for the first time.
        if hosts.lost != self.known.lost {
            (self.until, self.left) = (None, PATIENCE);
        }
        let before = std::mem::replace(&mut self.known, hosts);
        (&self.known.records, &self.known.created) != (&before.records, &before.created)
    }

    /// Takes in changes, of which each is a wish.
    pub(super) fn change(&mut self, revision: i64, records: BTreeMap<String, Option<(String, i64)>>) {
        self.known.revision = revision;
        for (key, put) in records {
            let Peers { records, created, .. } = &mut self.known;
            if let Some((value, made)) = put {
                created.insert(key.clone(), made);
                records.insert(key, value);
            } else {
                created.remove(&key);
                records.remove(&key);
            }
        }
    }

    /// Gives up the hosts that have not come back in time. Whether there are any.
    pub(super) fn give_up(&mut self) -> bool {
        self.until.take_if(|until| *until <= Instant::now()).is_some() && !self.known.give_up().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(revision: i64, keys: &[&str]) -> Peers {
        let records = keys.iter().map(|key| ((*key).to_owned(), "{}".to_owned())).collect();
        let created = keys.iter().map(|key| ((*key).to_owned(), 1)).collect();
        Peers { revision, records, created, lost: None }
    }

    fn keys(hosts: &Hosts) -> Vec<&str> {
        hosts.known().records.keys().map(String::as_str).collect()
    }

    #[test]
    fn hosts_come_and_go() {
        let mut hosts = Hosts::new(peers(5, &["a", "b"]));
        assert!(!hosts.replace(peers(6, &["a", "b"]), None));
        assert!(hosts.replace(peers(7, &["b", "c"]), None));
        assert_eq!(keys(&hosts), ["b", "c"]);
        hosts.change(8, BTreeMap::from([("b".into(), None), ("d".into(), Some(("{}".into(), 8)))]));
        assert_eq!((keys(&hosts), hosts.known().revision), (vec!["c", "d"], 8));
        hosts.can_return(true);
        assert!(hosts.until.is_none() && !hosts.give_up());
    }

    #[test]
    fn hosts_stay_when_the_store_has_lost_them() {
        let mut hosts = Hosts::new(peers(50, &["a", "b", "c"]));
        hosts.replace(peers(3, &["a"]), None);
        assert_eq!(keys(&hosts), ["a", "b", "c"]);
        hosts.can_return(true);
        // One comes back, another one leaves for good, and later snapshots are no reason to give up the third.
        hosts.change(4, BTreeMap::from([("b".into(), Some(("{}".into(), 4)))]));
        hosts.change(5, BTreeMap::from([("a".into(), None)]));
        hosts.replace(peers(6, &["b"]), None);
        assert_eq!(keys(&hosts), ["b", "c"]);
        assert!(!hosts.give_up());
        hosts.until = Some(Instant::now());
        assert!(hosts.give_up());
        assert_eq!(keys(&hosts), ["b"]);
        assert!(hosts.replace(peers(7, &[]), None));
    }

    #[test]
    fn their_time_runs_while_they_can_return() {
        let mut hosts = Hosts::new(peers(50, &["a", "b"]));
        hosts.replace(peers(3, &[]), None);
        // Whoever comes now knows of the loss by what is on file.
        let later = Hosts::new(hosts.known().clone());
        for mut hosts in [hosts, later] {
            assert!(hosts.until.is_none() && !hosts.give_up());
            hosts.can_return(true);
            let until = hosts.until.expect("it runs");
            hosts.replace(peers(4, &["a"]), None);
            hosts.can_return(true);
            assert_eq!(hosts.until, Some(until));
            // The configuration, or etcd, is away again, which is not the end of their time; or the data are.
            hosts.until = Some(Instant::now());
            for _ in 0..2 {
                hosts.can_return(false);
                assert!(hosts.until.is_none() && hosts.left == LEAST && !hosts.give_up());
            }
            hosts.can_return(true);
            assert!(hosts.until.is_some_and(|until| until <= Instant::now() + LEAST));
            hosts.until = Some(Instant::now());
            hosts.known.lost = Some(1);
            hosts.replace(peers(2, &[]), None);
            assert!(!hosts.give_up() && hosts.left == PATIENCE);
            assert_eq!(keys(&hosts), ["a", "b"]);
        }
    }
}
