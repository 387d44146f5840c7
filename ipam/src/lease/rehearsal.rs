//! What would become of a host that comes for a subnet, without taking one.

use cni_protocol::Error;

use super::{Claimant, Lease, Own, Place, Search, Snapshot, configured};
use crate::conf::etcd::EtcdConf;
use crate::registry::Registry;

/// What [`super::acquire`] would say in place of a lease, without taking one; `None` when it would find a subnet.
///
/// # Errors
/// As [`super::acquire`]; [`cni_protocol::Code::InvalidConfig`] also when the network's configuration is missing or wrong.
pub(crate) async fn rehearse(
    registry: &mut Registry,
    conf: &EtcdConf,
    claimant: Claimant<'_>,
) -> Result<Option<Lease>, Error> {
    let claimant = match claimant.at(conf) {
        Ok((claimant, _former)) => claimant,
        Err(elsewhere) => return Ok(Some(Lease::Refused(elsewhere))),
    };
    let own = Own::find(conf, claimant)?;
    let snapshot = registry.snapshot(&own.asked(claimant.before)).await?;
    let search = match Search::new(conf, configured(conf, &snapshot)?, &snapshot, claimant, own)? {
        Ok(search) => search,
        Err(unfound) => return Ok(Some(Lease::Unconfigured(unfound))),
    };
    match search.barred(registry, &snapshot).await? {
        Some(bar) => Ok(Some(bar)),
        None => search.foresee(&snapshot),
    }
}

impl Search<'_> {
    /// What would be said in place of a lease if etcd were as in this snapshot.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Exhausted`] when no subnet is free.
    pub(super) fn foresee(&self, snapshot: &Snapshot) -> Result<Option<Lease>, Error> {
        match self.place(snapshot) {
            Place::Mine { .. } | Place::Before(_) => Ok(None),
            Place::Misfit { key, .. } => self.foresee(&snapshot.without(key)),
            Place::Taken { key, owner } => Ok(Some(Lease::Taken { key, owner })),
            Place::Refused(error) => Ok(Some(Lease::Refused(error))),
            Place::Anywhere => {
                let records = &snapshot.hosts.records;
                self.free(records.keys(), records).map(|_| None)
            }
        }
    }
}
