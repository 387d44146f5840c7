//! Hosts that went with the store's data.

use super::{HostLease, Peers, since_1970};

impl Peers {
    /// These hosts, just read, in place of those that were known `before` they were asked for. Where the store has lost its data in
    /// between, hosts that it does not know any more stay: each of them will put its record back, and until it has, its containers are
    /// where they were. `lease` is this host's, as it was before.
    #[must_use]
    pub fn after(mut self, before: &Self, lease: Option<&HostLease>) -> Self {
        let is_lost = self.has_lost(before, lease);
        self.lost = if is_lost { Some(since_1970().as_secs()) } else { before.lost };
        if self.lost.is_none() {
            return self;
        }
        for (key, value) in &before.records {
            // What came back after a loss and is not there now went by itself.
            let is_kept = is_lost || !before.created.contains_key(key);
            if is_kept && lease.is_none_or(|lease| lease.key != *key) {
                self.records.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let lost = self.lost_keys();
        match lost.first() {
            None => self.lost = None,
            Some(first) if is_lost => log::warn!(
                "etcd has lost data: {} hosts that it does not know any more, {first:?} among them, stay until they have had time to come back",
                lost.len()
            ),
            Some(_) => {}
        }
        self
    }

    /// Whether the store that these are of is another one than before, or one that was restored or emptied. Revisions only grow. The other
    /// sign is for a store that was written to since: another revision made this host's record, or it is gone, although its lease had
    /// time left. The cluster's ID is no sign: etcd works it out from its flags, and has the same one with an empty directory.
    fn has_lost(&self, before: &Self, lease: Option<&HostLease>) -> bool {
        let is_made_anew = |lease: &HostLease| {
            let made = before.created.get(&lease.key);
            made.is_some() && made != self.created.get(&lease.key) && !lease.has_ended()
        };
        self.revision < before.revision || lease.is_some_and(is_made_anew)
    }

    /// Of which no revision is known that made them.
    fn lost_keys(&self) -> Vec<String> {
        self.records.keys().filter(|key| !self.created.contains_key(*key)).cloned().collect()
    }

    /// Gives up the hosts that the store has lost, and tells which.
    pub fn give_up(&mut self) -> Vec<String> {
        if self.lost.take().is_none() {
            return Vec::new();
        }
        let lost = self.lost_keys();
        if let Some(first) = lost.first() {
            log::warn!(
                "{} hosts have not come back since etcd lost its data, {first:?} among them",
                lost.len()
            );
        }
        self.records.retain(|key, _| self.created.contains_key(key));
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::lease;
    use super::*;

    fn peers(revision: i64, hosts: &[(&str, i64)]) -> Peers {
        let records = hosts.iter().map(|(key, _)| ((*key).to_owned(), "{}".to_owned())).collect();
        let created = hosts.iter().map(|(key, made)| ((*key).to_owned(), *made)).collect();
        Peers { revision, records, created, lost: None }
    }

    fn keys(peers: &Peers) -> Vec<&str> {
        peers.records.keys().map(String::as_str).collect()
    }

    #[test]
    fn hosts_that_leave_are_gone() {
        let before = peers(5, &[(&lease().key, 3), ("b", 4)]);
        let after = peers(9, &[(&lease().key, 3)]);
        assert_eq!(after.clone().after(&before, Some(&lease())), after);
        // Where this host had no record, or the file is of an earlier version, that it has one says nothing.
        let after = peers(9, &[(&lease().key, 9)]);
        let without = Peers { created: std::collections::BTreeMap::new(), ..before };
        for before in [peers(5, &[("b", 4)]), without] {
            assert_eq!(after.clone().after(&before, Some(&lease())), after);
        }
    }

    #[test]
    fn hosts_stay_that_went_with_the_data() {
        let own = lease().key;
        let before = peers(5, &[(&own, 3), ("b", 4), ("c", 5)]);
        for found in [peers(22, &[(&own, 22)]), peers(22, &[]), peers(4, &[(&own, 3)])] {
            let made = found.created.get(&own).copied();
            let after = found.after(&before, Some(&lease()));
            let known: Vec<&str> = ["b", "c"].into_iter().chain(made.map(|_| own.as_str())).collect();
            assert!(after.lost.is_some() && keys(&after).len() == known.len());
            assert!(known.iter().all(|key| after.records.contains_key(*key)), "{after:?}");
            assert!(after.made("b") > after.revision, "who comes meanwhile has precedence");
            // One comes back, and goes by itself; the other is waited for.
            let (since, made) = (after.lost, made.unwrap_or(24));
            let later = peers(30, &[(&own, made), ("b", 25)]).after(&after, Some(&lease()));
            assert_eq!((keys(&later), later.lost), (vec![own.as_str(), "b", "c"], since));
            let later = peers(40, &[(&own, made)]).after(&later, Some(&lease()));
            assert_eq!((keys(&later), later.lost), (vec![own.as_str(), "c"], since));
            let back = peers(50, &[(&own, made), ("c", 50)]);
            assert_eq!(back.clone().after(&later, Some(&lease())), back);
            let mut late = later;
            assert_eq!(late.give_up(), ["c"]);
            assert_eq!(late, peers(40, &[(&own, made)]));
            assert!(late.give_up().is_empty());
        }
    }

    #[test]
    fn a_lease_that_ended_took_its_record_with_it() {
        let before = peers(5, &[(&lease().key, 3), ("b", 4)]);
        let after = peers(22, &[(&lease().key, 22)]);
        let ended = HostLease { renewed: 0, ..lease() };
        assert_eq!(after.clone().after(&before, Some(&ended)), after);
        let endless = HostLease { pinned: true, ..ended };
        assert!(after.after(&before, Some(&endless)).records.contains_key("b"));
    }
}
