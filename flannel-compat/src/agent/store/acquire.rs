//! How the agent comes to its lease, and whether the host still has the addresses that it was taken with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Code, Error};
use tokio::time::Instant;
use weft_ipam::lease::{self, Claimant, Keeper, Lease, Standing, Tenants};
use weft_ipam::registry::Registry;
use weft_ipam::store::Store as Reservations;
use weft_state::lease::HostLease;

use super::{Acquired, MOST_PATIENCE, News, Store};
use crate::tenants;

/// How long an interface may be without the address under which this host is known, until that of another one counts. An interface
/// that is set down and up, and DHCP, take some seconds.
const ABSENCE: Duration = Duration::from_secs(30);

impl Store {
    /// The lease, or why there is none. It is looked for as if containers had addresses of the last one; only where that leaves the host
    /// without is it found out whether any has, and then none comes to one until it is known what becomes of the subnet: etcd may take
    /// long to answer.
    pub(super) async fn acquire(&mut self, registry: &mut Registry) -> Result<Result<Acquired, News>, Error> {
        let outcome = self.ask(registry, None).await?;
        if !matches!(outcome, Err(News::Taken { .. } | News::Refused { .. })) {
            return Ok(outcome);
        }
        // That was refused without a question. While etcd is silent containers of other plugins come, which the books do not keep away:
        // they are looked for when it answers.
        if !self.is_here()
            && let Err(error) = registry.config().await
            && error.code == Code::TryAgain
        {
            return Err(error);
        }
        match self.hold_unused() {
            Ok(None) => Ok(outcome),
            Ok(unused) => {
                // No container comes or goes meanwhile.
                registry.set_patience(Some(MOST_PATIENCE));
                let outcome = self.ask(registry, unused).await;
                registry.set_patience(None);
                outcome
            }
            Err(why) => Ok(Err(News::Unconfigured { why, keeps: false })),
        }
    }

    /// The addresses by which others would know this host now, and do.
    pub(super) fn addresses(&mut self) -> Vec<IpAddr> {
        if let Some(lease) = self.lease.clone() {
            self.look_for_addresses(&lease);
        }
        lease::known_by(&self.conf, self.claimant(self.tenants, &[]))
    }

    fn claimant<'s>(&'s self, tenants: Tenants, others: &'s [(PathBuf, HostLease)]) -> Claimant<'s> {
        Claimant {
            before: self.lease.as_ref(),
            wish: self.wish.as_deref(),
            tenants,
            waits: (!self.is_away_for_long()).then_some(self.links.as_slice()),
            keeper: Keeper::Agent,
            others,
        }
    }

    async fn ask(
        &mut self,
        registry: &mut Registry,
        unused: Option<Reservations>,
    ) -> Result<Result<Acquired, News>, Error> {
        if let Some(lease) = self.lease.clone() {
            self.look_for_addresses(&lease);
        }
        let tenants = match self.tenants {
            Tenants::None if unused.is_none() => Tenants::Possible,
            known => known,
        };
        let outcome = match HostLease::others(&self.data_dir, &self.network) {
            Ok(others) => lease::acquire(registry, &self.conf, self.claimant(tenants, &others)).await,
            Err(error) => Err(error),
        };
        Ok(match outcome {
            Ok(Lease::Held(lease)) => Ok((lease, unused)),
            Ok(Lease::Taken { key, owner }) if self.lease.is_none() => {
                Err(News::Refused { why: is_anothers(&key, &owner), unused })
            }
            Ok(Lease::Taken { key, owner }) => Err(News::Taken { key, owner }),
            Ok(Lease::Unconfigured(why)) => Err(News::Unconfigured { why, keeps: false }),
            Ok(Lease::Refused(why)) => Err(News::Refused { why, unused }),
            // etcd has answered, and will say so until another host leaves.
            Err(why) if why.code == Code::Exhausted => Err(News::Refused { why, unused }),
            // It is this host that does not tell.
            Err(why) if why.code == Code::Io => Err(News::Unconfigured { why, keeps: false }),
            Err(error) => return Err(error),
        })
    }

    /// Whether this host is known by other addresses from now on.
    pub(super) fn has_moved(&mut self, lease: &HostLease) -> bool {
        self.look_for_addresses(lease) == Standing::Moved || self.is_away_for_long()
    }

    /// What has become of those that it is known by.
    fn look_for_addresses(&mut self, lease: &HostLease) -> Standing {
        let standing = lease::standing(&self.conf, lease, &self.links);
        match standing {
            Standing::Away => {
                self.away.get_or_insert_with(|| {
                    let what = "the interface to other hosts has lost its address";
                    log::warn!("network {}: {what}: waiting {ABSENCE:?} for it", self.network);
                    Instant::now()
                });
            }
            // It may have come back as another link.
            Standing::Same if self.away.is_some() => {
                self.away = None;
                self.note_links(lease);
            }
            Standing::Same | Standing::Moved => self.away = None,
        }
        standing
    }

    /// Those of addresses that are gone stay known.
    pub(super) fn note_links(&mut self, lease: &HostLease) {
        let now = lease::links(lease);
        let is_gone = |local: &IpAddr| now.iter().all(|(other, _)| other != local);
        self.links.retain(|(local, _)| lease.local.contains(local) && is_gone(local));
        self.links.extend(now);
    }

    fn is_away_for_long(&self) -> bool {
        self.away.is_some_and(|since| since.elapsed() >= ABSENCE)
    }

    /// Whether no container has an address of the lease's subnet, so that any other one will do: some may have come since the start, also by
    /// the file that was written then from what was known last.
    pub(in crate::agent) fn is_unused(&self) -> bool {
        self.tenants == Tenants::None
            && tenants::are_none(&self.state_dir, &self.network, self.lease.as_ref())
    }

    /// Sees to it that this stays so while the value lives.
    fn hold_unused(&self) -> Result<Option<Reservations>, Error> {
        if self.tenants != Tenants::None {
            return Ok(None);
        }
        tenants::hold_none(&self.state_dir, &self.network, self.lease.as_ref())
    }
}

/// That another host has the subnet of one that has no lease on file, so that `weftctl leave` has nothing to give up.
fn is_anothers(key: &str, owner: &str) -> Error {
    let msg = format!(
        "subnet {key} of this host belongs to {} now, its containers are cut off: move the containers away, then stop weftd, \
         remove subnet.env, start weftd",
        printable(owner)
    );
    Error::new(Code::Conflict, msg)
}
