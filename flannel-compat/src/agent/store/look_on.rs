//! A host that gets no lease, or not the one that it has, for a reason that may last: it goes on with what it has.

use std::net::IpAddr;
use std::time::Duration;

use cni_protocol::{Code, Error};
use tokio::time::Instant;
use weft_ipam::lease;
use weft_ipam::registry::{Registry, Snapshot, Watched};
use weft_state::lease::HostLease;

use super::{
    Acquired, End, KEEP, KEEP_PATIENCE, MOST_PATIENCE, News, RESYNC, Store, loses, often, patience, renew,
};
use crate::agent::every;

/// How often to look whether this host can have its subnet by now, where nobody tells. It also shows whether etcd can be reached.
const LOOK: Duration = Duration::from_secs(2);

/// What the last attempt to have a lease was made with.
struct Attempt {
    /// By which others would have known this host.
    addresses: Vec<IpAddr>,
    /// The last revision of etcd that it had seen.
    revision: i64,
    /// Whether the reason was that containers have addresses of a subnet that the network has no more.
    is_refused: bool,
    /// How long a renewal may take.
    patience: Duration,
}

impl Store {
    /// The lease, as soon as there is one, or why the session ends before.
    pub(super) async fn obtain(&mut self, registry: &mut Registry) -> Result<Result<Acquired, End>, Error> {
        loop {
            let addresses = self.addresses();
            let reason = match self.acquire(registry).await? {
                Ok(acquired) => return Ok(Ok(acquired)),
                Err(reason) => reason,
            };
            // A container may have come just now.
            let is_kept = !self.is_here() && matches!(reason, News::Refused { unused: None, .. });
            if is_kept || !self.is_in_place() {
                return Ok(Err(End::Lost));
            }
            if self.look_on(registry, reason, addresses).await?.is_none() {
                return Ok(Err(End::Stopped));
            }
        }
    }

    /// Tells the reason, and of the other hosts: containers' connections to them may still find back. Returns when the reason may have
    /// gone; `None` when the loop does not listen any more.
    async fn look_on(
        &mut self,
        registry: &mut Registry,
        mut reason: News,
        addresses: Vec<IpAddr>,
    ) -> Result<Option<()>, Error> {
        let is_here = self.is_here();
        let lease = self.lease.clone().filter(|_| is_here);
        let (asked_at, is_told) = (registry.revision(), is_told(&reason));
        let is_refused = matches!(&reason, News::Refused { .. });
        let is_held = matches!(&reason, News::Refused { unused: Some(_), .. });
        let asked = Instant::now();
        registry.set_patience(is_held.then_some(MOST_PATIENCE));
        let published = lease.as_ref().map(lease::published).unwrap_or_default();
        let snapshot = registry.snapshot(&published).await;
        registry.set_patience(None);
        let snapshot = snapshot?;
        let own = lease.filter(|lease| lease::holds(lease, &snapshot));
        let patience = own.as_ref().map_or(KEEP_PATIENCE, |lease| patience(asked.elapsed(), lease));
        if let News::Unconfigured { keeps, .. } = &mut reason {
            *keeps = is_told && own.is_some();
        }
        // Only now, as it says that etcd answers, which may not have been asked for it.
        if self.tell(reason).await.is_none() {
            return Ok(None);
        }
        // What containers have addresses of stays this host's, whatever it is refused.
        if let Some(lease) = &own
            && self.renew(registry, lease, patience).await?.is_none()
        {
            return Ok(None);
        }
        if !is_here {
            // Until there is one here a container that comes by the former lease keeps the host there.
            let former = self.lease.clone().filter(lease::is_by_machine);
            if let Some(former) = former
                && self.renew(registry, &former, KEEP_PATIENCE).await?.is_none()
            {
                return Ok(None);
            }
        } else if self.tell(self.hosts_or_none(snapshot, own.is_some())).await.is_none() {
            return Ok(None);
        }
        if let Some(lease) = own.filter(|_| is_told) {
            return self
                .wait(registry, &lease, Attempt { addresses, revision: asked_at, is_refused, patience })
                .await;
        }
        // A host that has none can have no container.
        let period = if self.lease.is_some() { LOOK } else { LOOK / 2 };
        tokio::time::sleep(often(period, self.lease.as_ref())).await;
        Ok(Some(()))
    }

    /// What a snapshot says of the hosts. Where the prefix was changed, so may have been the endpoints: an etcd without a trace of the network
    /// says nothing of it.
    fn hosts_or_none(&self, snapshot: Snapshot, has_own: bool) -> News {
        let is_known = has_own || snapshot.config.is_ok() || self.conf.prefix == self.configured.prefix;
        if is_known { News::Hosts(snapshot.hosts) } else { News::Unknown }
    }

    /// Follows the hosts and renews the lease until an attempt may end otherwise: all hosts of a network may be here at once, for
    /// weeks, so nothing is read that a watch tells.
    async fn wait(
        &mut self,
        registry: &mut Registry,
        lease: &HostLease,
        attempt: Attempt,
    ) -> Result<Option<()>, Error> {
        let mut keep = every(often(KEEP, Some(lease)));
        let mut resync = every(often(RESYNC, Some(lease)));
        let mut known = attempt.revision;
        let mut watch = registry.watch(known + 1).await?;
        loop {
            if !watch.is_current(registry) {
                watch = registry.watch(known + 1).await?;
            }
            let told = tokio::select! {
                watched = watch.next() => match watched? {
                    Watched::Changes { revision, records, config: None } if !loses(&records, lease) => {
                        known = known.max(revision);
                        self.tell_changes(revision, records).await
                    }
                    Watched::Changes { .. } | Watched::Compacted => return Ok(Some(())),
                },
                _ = keep.tick() => {
                    let is_left = attempt.is_refused && self.is_unused() || !self.is_in_place();
                    if is_left || self.addresses() != attempt.addresses {
                        return Ok(Some(()));
                    }
                    self.renew(registry, lease, attempt.patience).await?
                }
                _ = resync.tick() => return Ok(Some(())),
            };
            if told.is_none() {
                return Ok(None);
            }
        }
    }

    /// Renews the lease that this host keeps all the same. One that is gone is seen by the record's end. `None` when the loop does not
    /// listen any more.
    async fn renew(
        &self,
        registry: &mut Registry,
        lease: &HostLease,
        patience: Duration,
    ) -> Result<Option<()>, Error> {
        let Some(renewed) = renew(registry, lease, patience).await? else { return Ok(Some(())) };
        Ok(self.tell(News::Renewed(renewed)).await)
    }
}

/// Whether the reason lasts until the network's configuration or this host's addresses are others, or, where containers are in the way,
/// these are gone: etcd tells of the one, and this host knows the rest. What else there is also ends with another host's silence.
fn is_told(reason: &News) -> bool {
    matches!(reason, News::Unconfigured { why, .. } | News::Refused { why, .. } if why.code == Code::InvalidConfig)
}
