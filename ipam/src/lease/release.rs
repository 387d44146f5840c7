//! A host gives up what it has in etcd.

use cni_protocol::{Code, Error};
use weft_state::lease::HostLease;

use super::former::publics;
use super::holder::{Holder, Keeper};
use super::place::owner;
use super::{ATTEMPTS, published};
use crate::registry::{Claim, Registry, Removal};
use crate::underlay::Here;

/// What became of a lease that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    Done,
    /// The host's addresses and its lease are given up; what stands at the subnet's key is not this host's, and stays: that of a
    /// host with these addresses, where it has others than this one.
    Replaced {
        owner: Option<String>,
    },
    /// Another host has these addresses now, whose record may be byte for byte the same: nothing is touched.
    Disputed,
}

/// Gives it up: the record goes, if it is still this host's, with the host's addresses, and the leases of both end.
///
/// # Errors
/// [`Code::TryAgain`]; [`Code::Io`] when this host cannot tell who it is.
pub async fn release(registry: &mut Registry, lease: &HostLease) -> Result<Release, Error> {
    let here = Here::look()?;
    let me = Holder::here(&here, Some(lease), lease.local.first().copied(), Keeper::Plugin)?;
    for _ in 0..ATTEMPTS {
        let addresses = registry.holders(&published(lease)).await?;
        let held = addresses.iter().filter_map(|(_, held)| held.as_ref());
        let holders: Vec<_> =
            held.filter_map(|held| Some((held.lease, Holder::parse(&held.value)?))).collect();
        if holders.iter().any(|(_, holder)| !me.is(holder)) {
            return Ok(Release::Disputed);
        }
        // The file is older than etcd's answer where this host was killed between the two.
        let leases = holders.iter().map(|(lease, _)| *lease).chain([lease.lease_id]);
        let leases = leases.filter(|lease| *lease != 0).collect();
        let claim = Claim { addresses, value: String::new(), lease: 0, former: Vec::new() };
        match registry.release((&lease.key, &lease.value), &leases, &claim).await? {
            Removal::Done => return Ok(Release::Done),
            Removal::Other(value) => return Ok(Release::Replaced { owner: other_owner(lease, &value) }),
            Removal::Again => {}
        }
    }
    Err(Error::new(Code::TryAgain, "give up a subnet: others were faster a thousand times: try again"))
}

/// Whose record stands at a lease's key, for people; `None` when it is no host's, or one with an address of the lease's own.
fn other_owner(lease: &HostLease, value: &str) -> Option<String> {
    let (theirs, own) = (publics(&lease.key, value), publics(&lease.key, &lease.value));
    (!theirs.is_empty() && !theirs.iter().any(|one| own.contains(one))).then(|| owner(&lease.key, value))
}
