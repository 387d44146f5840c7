//! The hosts of a network as this one knows them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_state::lease::Peers;

/// How long hosts that went with the store's data stay: each of them will put its record back, and until it has, its
/// containers are where they were.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// As in the store, and those that the store has lost.
    known: Peers,
    /// The keys of those that the store has lost, until when.
    lost: Option<(Vec<String>, Instant)>,
}

impl Hosts {
    /// What was on file.
    pub(super) fn new(known: Peers) -> Self {
        Self { known, lost: None }
    }

    pub(super) fn known(&self) -> &Peers {
        &self.known
    }

    /// The store has lost data, or has probably: what it lacks from now on did not go by itself.
    pub(super) fn suspect(&mut self) {
        if self.lost.is_none() {
            log::warn!("etcd has lost data: hosts that it does not know any more stay for {PATIENCE:?}");
            self.lost = Some((Vec::new(), Instant::now() + PATIENCE));
        }
    }

    /// Takes in all of the store's records. Whether anything is different.
    pub(super) fn replace(&mut self, mut hosts: Peers) -> bool {
        // Revisions only grow: this is another store, or one that was restored.
        if hosts.revision < self.known.revision {
            self.suspect();
        }
        let before = std::mem::take(&mut self.known);
        if let Some((lost, _)) = &mut self.lost {
            lost.retain(|key| !hosts.records.contains_key(key));
            for (key, value) in &before.records {
                if !hosts.records.contains_key(key) {
                    hosts.records.insert(key.clone(), value.clone());
                    lost.push(key.clone());
                }
            }
            lost.sort();
            lost.dedup();
        }
        self.known = hosts;
        (&self.known.records, &self.known.created) != (&before.records, &before.created)
    }

    /// Takes in changes, of which each is a wish.
    pub(super) fn change(&mut self, revision: i64, records: BTreeMap<String, Option<(String, i64)>>) {
        self.known.revision = revision;
        for (key, put) in records {
            if let Some((lost, _)) = &mut self.lost {
                lost.retain(|other| *other != key);
            }
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
        let Some((lost, _)) = self.lost.take_if(|(_, until)| *until <= Instant::now()) else { return false };
        if let Some(first) = lost.first() {
            log::warn!(
                "{} hosts have not come back since etcd lost its data, {first:?} among them",
                lost.len()
            );
        }
        for key in &lost {
            self.known.records.remove(key);
        }
        !lost.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(revision: i64, keys: &[&str]) -> Peers {
        let records = keys.iter().map(|key| ((*key).to_owned(), "{}".to_owned())).collect();
        Peers { revision, records, ..Peers::default() }
    }

    fn keys(hosts: &Hosts) -> Vec<&str> {
        hosts.known().records.keys().map(String::as_str).collect()
    }

    #[test]
    fn hosts_come_and_go() {
        let mut hosts = Hosts::new(peers(5, &["a", "b"]));
        assert!(!hosts.replace(peers(6, &["a", "b"])));
        assert!(hosts.replace(peers(7, &["b", "c"])));
        assert_eq!(keys(&hosts), ["b", "c"]);
        hosts.change(8, BTreeMap::from([("b".into(), None), ("d".into(), Some(("{}".into(), 8)))]));
        assert_eq!((keys(&hosts), hosts.known().revision), (vec!["c", "d"], 8));
        assert!(!hosts.give_up());
    }

    #[test]
    fn hosts_stay_when_the_store_has_lost_them() {
        let mut hosts = Hosts::new(peers(50, &["a", "b", "c"]));
        assert!(!hosts.replace(peers(3, &["a"])));
        assert_eq!(keys(&hosts), ["a", "b", "c"]);
        // One comes back, another one leaves for good, and later snapshots are no reason to give up the third.
        hosts.change(4, BTreeMap::from([("b".into(), Some(("{}".into(), 4)))]));
        hosts.change(5, BTreeMap::from([("a".into(), None)]));
        hosts.replace(peers(6, &["b"]));
        assert_eq!(keys(&hosts), ["b", "c"]);
        assert!(!hosts.give_up());
        hosts.lost.as_mut().unwrap().1 = Instant::now();
        assert!(hosts.give_up());
        assert_eq!(keys(&hosts), ["b"]);
        assert!(hosts.replace(peers(7, &[])));
    }

    #[test]
    fn a_suspicion_is_enough() {
        let mut hosts = Hosts::new(peers(5, &["a"]));
        hosts.suspect();
        hosts.replace(peers(6, &[]));
        assert_eq!(keys(&hosts), ["a"]);
    }
}
