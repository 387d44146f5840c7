//! What is true of a network now: its loop writes it, and `/readyz`, `/healthz`, the metrics and systemd read it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cni_protocol::NetworkName;
use weft_state::lease::{HostLease, Taken};

/// How long the store may be silent before readiness speaks of an outage.
const SILENCE: Duration = Duration::from_secs(30);
/// The loop turns at least every ten seconds; one that has not for so long hangs.
const HANGS: Duration = Duration::from_secs(30);

/// The truth about one network.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) network: NetworkName,
    pub(super) lease: Held,
    /// Why etcd gives this host no lease, or not the one that it has, until a person has done something.
    pub(super) refused: Option<Refused>,
    /// That the lease is at another place in etcd than is configured, and kept there for its containers' sake, and what helps.
    pub(super) elsewhere: Option<String>,
    /// Why the kernel's objects are not as they ought to be; `None` when they are, `Some` until they were looked at.
    pub(super) damage: Option<String>,
    /// Whether etcd was heard, or is known to be silent, and all that this allows is set up.
    pub(super) settled: bool,
    pub(super) store: Store,
    /// How many other hosts are connected.
    pub(super) peers: usize,
    /// How many records are of no host that can be connected or reached, by the kind of reason.
    pub(super) rejected: BTreeMap<&'static str, usize>,
    /// When the loop last turned.
    pub(super) turned: Instant,
}

/// See [`Truth::refused`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: String,
    /// Whether this host has its lease all the same: it is the network's configuration that nobody can follow.
    pub(super) keeps: bool,
}

/// This host's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// There never was one.
    Nothing,
    Lease(HostLease),
    /// Another host owns the subnet now, in which containers of this host may live.
    Taken {
        lease: HostLease,
        owner: String,
    },
}

/// What is known of etcd.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// When it last answered.
    pub(super) seen: Option<Instant>,
    /// Since when it does not, and what it or the network said last.
    pub(super) outage: Option<(Instant, String)>,
}

impl Truth {
    pub(super) fn new(network: NetworkName) -> Self {
        Self {
            network,
            lease: Held::Nothing,
            refused: None,
            elsewhere: None,
            damage: Some("nothing was set up yet".into()),
            settled: false,
            store: Store::default(),
            peers: 0,
            rejected: BTreeMap::new(),
            turned: Instant::now(),
        }
    }

    /// What is good enough about the network, or why it is not ready: containers reach other hosts and will go on
    /// doing so. An outage of the store is tolerated as long as the lease lasts, and a configuration that nobody can follow; both are
    /// said.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn ready(&self) -> Result<String, String> {
        let there = self.ready_there();
        match &self.elsewhere {
            None => there,
            Some(why) => {
                let (Ok(more) | Err(more)) = there;
                Err(format!("{why}; {more}"))
            }
        }
    }

    /// The same where the lease is.
    fn ready_there(&self) -> Result<String, String> {
        let but = match &self.refused {
            None => String::new(),
            Some(Refused { why, keeps: true }) => format!("; {why}"),
            Some(Refused { why, keeps: false }) => return Err(why.clone()),
        };
        let lease = match &self.lease {
            Held::Nothing => return Err(format!("no subnet is leased yet{but}{}", self.store.complaint())),
            Held::Taken { lease, owner } => {
                return Err(format!("subnet {} belongs to {owner} now: {}", lease.key, Taken::REMEDY));
            }
            Held::Lease(lease) => lease,
        };
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        let subnet = &lease.key;
        let complaint = self.store.complaint();
        let left = lease.remaining().as_secs();
        // Leases may be shorter than a silence that counts as none: anybody may have the subnet by now.
        if lease.has_ended() {
            return Err(format!("the lease of {subnet} has ended{complaint}"));
        }
        if self.store.seen.is_some_and(|seen| seen.elapsed() < SILENCE) {
            return Ok(format!("subnet {subnet}, {} peers{but}", self.peers));
        }
        let end = if lease.is_pinned() { String::new() } else { format!("; the lease ends in {left} s") };
        Ok(format!("subnet {subnet}, {} peers as last seen{but}{complaint}{end}", self.peers))
    }

    /// Whether the network's loop turns.
    pub(super) fn lives(&self) -> bool {
        self.turned.elapsed() < HANGS
    }
}

impl Store {
    /// The store answered.
    pub(super) fn answers(&mut self) {
        *self = Self { seen: Some(Instant::now()), outage: None };
    }

    /// The store did not answer, or not as it ought to.
    pub(super) fn fails(&mut self, cause: String) {
        let since = self.outage.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        self.outage = Some((since, cause));
    }

    /// What is wrong with the store, to be appended to a sentence; nothing when nothing is known to be.
    fn complaint(&self) -> String {
        match &self.outage {
            None => String::new(),
            Some((since, cause)) => {
                format!("; trouble with etcd for {} s: {cause}", since.elapsed().as_secs())
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use weft_state::lease::since_1970;

    use super::*;

    fn lease() -> HostLease {
        HostLease {
            prefix: "/n".into(),
            config: "{}".into(),
            key: "10.1.2.0-24".into(),
            value: "{}".into(),
            lease_id: 1,
            pinned: false,
            ttl: 60,
            renewed: since_1970().as_secs(),
            local: Vec::new(),
            underlay: String::new(),
            holder: String::new(),
        }
    }

    /// A network that is ready.
    pub(in crate::agent) fn truth() -> Truth {
        let mut truth = Truth::new("pods".parse().unwrap());
        truth.lease = Held::Lease(lease());
        truth.damage = None;
        truth.store.answers();
        truth
    }

    #[test]
    fn ready_is_lease_device_and_store() {
        assert!(truth().ready().unwrap().contains("10.1.2.0-24"));
        let mut fresh = Truth::new("pods".parse().unwrap());
        assert_eq!(fresh.ready().unwrap_err(), "no subnet is leased yet");
        fresh.store.fails("refused".into());
        fresh.store.fails("refused again".into());
        assert_eq!(
            fresh.ready().unwrap_err(),
            "no subnet is leased yet; trouble with etcd for 0 s: refused again"
        );
        let damaged = Truth { damage: Some("no weft.1".into()), ..truth() };
        assert_eq!(damaged.ready().unwrap_err(), "no weft.1");
        let taken = Truth { lease: Held::Taken { lease: lease(), owner: "192.0.2.9".into() }, ..truth() };
        assert!(taken.ready().unwrap_err().contains("belongs to 192.0.2.9"));
        let refused = |keeps| Some(Refused { why: "no JSON".into(), keeps });
        assert_eq!(Truth { refused: refused(false), ..truth() }.ready().unwrap_err(), "no JSON");
        assert!(Truth { refused: refused(true), ..truth() }.ready().unwrap().ends_with("; no JSON"));
        let elsewhere = || Some("another prefix".to_owned());
        let (kept, lost) =
            (Truth { elsewhere: elsewhere(), ..truth() }, Truth { elsewhere: elsewhere(), ..taken });
        assert!(kept.ready().unwrap_err().starts_with("another prefix; subnet 10.1.2.0-24"));
        assert!(lost.ready().unwrap_err().contains("another prefix; subnet 10.1.2.0-24 belongs to"));
        let damaged = Truth { refused: refused(true), ..damaged };
        assert_eq!(damaged.ready().unwrap_err(), "no weft.1");
    }

    #[test]
    fn an_outage_is_tolerated_and_said_until_the_lease_ends() {
        let mut truth = truth();
        truth.store.seen = Instant::now().checked_sub(SILENCE);
        truth.store.fails("refused".into());
        let said = truth.ready().unwrap();
        assert!(said.contains("trouble with etcd") && said.contains("the lease ends in"), "{said}");
        truth.lease = Held::Lease(HostLease { renewed: since_1970().as_secs() - 61, ..lease() });
        assert!(truth.ready().unwrap_err().contains("has ended; trouble with etcd"));
        // However short the silence is.
        truth.store.seen = Some(Instant::now());
        assert!(truth.ready().unwrap_err().contains("has ended; trouble with etcd"));
        truth.store.seen = Instant::now().checked_sub(SILENCE);
        // A record without an end is held for good.
        truth.lease = Held::Lease(HostLease { pinned: true, renewed: 0, ..lease() });
        assert!(!truth.ready().unwrap().contains("ends"));
        // A short silence of a store that answers otherwise counts as none.
        truth.store.seen = Some(Instant::now());
        assert!(!truth.ready().unwrap().contains("etcd"));
    }

    #[test]
    fn a_loop_that_does_not_turn_is_noticed() {
        let mut truth = truth();
        assert!(truth.lives());
        truth.turned = Instant::now().checked_sub(HANGS).unwrap();
        assert!(!truth.lives());
    }
}
