//! The lease on file is at another place in etcd: somebody has changed `prefix`. Another lease in its place would cut off the containers
//! that have addresses of its subnet.

use cni_protocol::{Code, Error};
use weft_state::lease::HostLease;

use super::{Claimant, Release, Tenants, is_by_machine, release};
use crate::conf::etcd::EtcdConf;
use crate::registry::Registry;

impl<'a> Claimant<'a> {
    /// The same at the place that is configured, of which the lease on file says nothing, with that lease.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] while containers may have addresses of it.
    pub(super) fn at(self, conf: &EtcdConf) -> Result<(Self, Option<&'a HostLease>), Error> {
        match self.before.filter(|lease| lease.prefix != conf.prefix) {
            Some(former) if self.tenants != Tenants::None => Err(elsewhere(former, conf)),
            Some(former) => Ok((Self { before: None, ..self }, Some(former))),
            None => Ok((self, None)),
        }
    }
}

/// That the configuration names another place than the one where this host has its lease.
#[must_use]
pub fn elsewhere(former: &HostLease, conf: &EtcdConf) -> Error {
    let HostLease { prefix, key, .. } = former;
    let msg = format!(
        "etcd.prefix is {0}, but this host has its subnet {key} in the network at {prefix}, and keeps it while containers have \
         addresses of it: put the former prefix back, or remove these containers: without any the host takes a subnet at {0}",
        conf.prefix
    );
    Error::new(Code::InvalidConfig, msg)
}

/// Gives it up for the one that this host has now. A copy of a disk has nothing to give up, and what somebody has pinned is theirs to
/// remove.
pub(super) async fn give_up(registry: &Registry, former: &HostLease) {
    let HostLease { prefix, key, .. } = former;
    let what = if former.is_pinned() || !is_by_machine(former) {
        "stays".to_owned()
    } else {
        match release(&mut registry.at(prefix), former).await {
            Ok(Release::Done) => "has no record in the etcd that is configured".to_owned(),
            Ok(_) => "is another's by now, and stays".to_owned(),
            Err(error) => format!("is left to its end: {}", error.msg),
        }
    };
    log::warn!("this host leaves the network at {prefix}: subnet {key} there {what}");
}
