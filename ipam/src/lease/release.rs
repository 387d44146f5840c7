//! A host gives up what it has in etcd.

use std::net::IpAddr;

use cni_protocol::{Code, Error};
use weft_state::lease::HostLease;

use super::former::publics;
use super::holder::{Holder, Keeper};
use super::place::owner;
use super::{ATTEMPTS, Search, published};
use crate::registry::{Claim, Held, Registry, Removal, Snapshot};
use crate::underlay::Here;

/// What became of a lease that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    Done,
    /// The host's addresses and its lease are given up; what stands at the subnet's key is not this host's, and stays.
    Replaced {
        /// Which host's that is, if it is one's.
        owner: Option<String>,
    },
    /// Another host has these addresses now, whose record may be byte for byte the same: nothing is touched.
    Disputed,
}

/// Gives it up: the record goes, if it is still this host's, with the host's addresses, and the leases of both end. The file is older
/// than etcd's answer where this host was killed between the two: other leases hang there, or it was renumbered.
///
/// # Errors
/// [`Code::TryAgain`]; [`Code::Io`] when this host cannot tell who it is.
pub async fn release(registry: &mut Registry, lease: &HostLease) -> Result<Release, Error> {
    let here = Here::look()?;
    let me = Holder::here(&here, Some(lease), lease.local.first().copied(), Keeper::Plugin)?;
    let (mut own, mut record) = (published(lease), lease.value.clone());
    for _ in 0..ATTEMPTS {
        let addresses = registry.holders(&own).await?;
        let holders = holders(&addresses);
        if holders.iter().any(|(_, holder)| !me.is(holder)) {
            return Ok(Release::Disputed);
        }
        let leases = holders.iter().map(|(lease, _)| *lease).chain([lease.lease_id]);
        let leases = leases.filter(|lease| *lease != 0).collect();
        let claim = Claim { addresses, value: String::new(), lease: 0, former: Vec::new() };
        match registry.release((&lease.key, &record), &leases, &claim).await? {
            Removal::Done => return Ok(Release::Done),
            Removal::Other(value) => {
                let now = publics(&lease.key, &value);
                if now.iter().all(|public| own.contains(public)) || !is_at(registry, &me, &now).await? {
                    return Ok(Release::Replaced { owner: other_owner(&lease.key, &value, &own) });
                }
                (own, record) = (now, value);
            }
            Removal::Again => {}
        }
    }
    Err(Error::new(Code::TryAgain, "give up a subnet: others were faster a thousand times: try again"))
}

impl Search<'_> {
    /// Sees to records of this host at other keys than its own. What hangs on its own lease was put by a run that was killed before
    /// it was on file; others are whoever's put them.
    pub(super) async fn clear_others(
        &self,
        registry: &mut Registry,
        snapshot: &Snapshot,
        key: &str,
    ) -> Result<(), Error> {
        let others = self.all_own(&snapshot.hosts.records).filter(|(other, _)| *other != key);
        for (other, value) in others {
            if snapshot.leases.get(other) == Some(&self.lease_id()) {
                log::warn!("subnet {key} is this host's: it gives up {other}");
                registry.remove(other, value).await?;
            } else {
                log::warn!("subnet {key} is this host's: {}/subnets/{other} is ignored", self.conf.prefix);
            }
        }
        Ok(())
    }
}

/// Who has put itself at addresses, each with the lease that this hangs on.
fn holders(addresses: &[(IpAddr, Option<Held>)]) -> Vec<(i64, Holder)> {
    let held = addresses.iter().filter_map(|(_, held)| held.as_ref());
    held.filter_map(|held| Some((held.lease, Holder::parse(&held.value)?))).collect()
}

/// Whether this machine, and nobody else, has put itself at some addresses.
async fn is_at(registry: &mut Registry, me: &Holder, publics: &[IpAddr]) -> Result<bool, Error> {
    let holders = holders(&registry.holders(publics).await?);
    Ok(!holders.is_empty() && holders.iter().all(|(_, holder)| me.is_by_machine(holder)))
}

/// Whose record stands at a lease's key, for people; `None` when it is no host's, or one with an address of this host's own.
fn other_owner(key: &str, value: &str, own: &[IpAddr]) -> Option<String> {
    let theirs = publics(key, value);
    (!theirs.is_empty() && !theirs.iter().any(|one| own.contains(one))).then(|| owner(key, value))
}
