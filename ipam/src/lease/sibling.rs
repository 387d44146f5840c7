//! Another network of this host that has the same place in etcd, or the same addresses. At one place both are one host in one network
//! to etcd, which would have both give out the addresses of one subnet.

use std::ffi::os_str;
use std::path::{self, Path, PathBuf};

use cni_protocol::{Code, Error};
use flannel_records::{NetworkConfig, Pool};
use ipnetwork::IpNetwork;
use weft_state::lease::HostLease;

use super::{Lease, Search, Snapshot, published};
use crate::registry::{Held, Registry};
use crate::underlay;

impl Search<'_> {
    /// Why this network gets none whatever is free: its address is another host's, or its place in etcd another network's.
    pub(super) async fn barred(
        &self,
        registry: &mut Registry,
        snapshot: &Snapshot,
    ) -> Result<Option<Lease>, Error> {
        Ok(match self.rival(registry, snapshot).await? {
            Some(rival) => Some(self.yields(&rival)),
            None => self.sibling(snapshot).or_else(|| self.overlap()).map(Lease::Refused),
        })
    }

    /// Why this network does not get its first subnet yet. Whoever has one keeps it.
    fn overlap(&self) -> Option<Error> {
        let networks: Vec<IpNetwork> = self.config.pools().iter().map(Pool::network).collect();
        let found = self.before.is_none().then(|| overlap(&networks, &self.conf.prefix, self.others))?;
        found.map(|why| Error::new(Code::Conflict, format!("take a subnet: {why}")))
    }

    /// Why this network gets no subnet, if another one of this host has it. What is on file of that one counts while etcd has it so:
    /// it may be of another etcd, of a network that is gone, or of the host whose disk this is a copy of.
    fn sibling(&self, snapshot: &Snapshot) -> Option<Error> {
        let (dir, lease) = self.others.iter().find(|(_, other)| {
            let own = published(other);
            let mut held = self.held.iter().filter(|(address, _)| own.contains(address));
            // Beside a pinned record nobody says who has the address once the host's lease has ended.
            let is_its = |held: &Option<Held>| held.as_ref().is_none_or(|held| held.value == other.holder);
            other.prefix == self.conf.prefix
                && other.local.iter().any(|local| underlay::is_here(*local))
                && snapshot.hosts.records.get(&other.key) == Some(&other.value)
                && held.all(|(_, held)| is_its(held))
        })?;
        let (name, dir) = named(dir);
        let (prefix, key) = (&self.conf.prefix, &lease.key);
        let msg = format!(
            "take a subnet: network {name} of this host is at {prefix} in the same etcd, with {key}, and two networks at one place \
             would give out the same addresses: give one of them another ipam.etcd.prefix, with a config of its own there; if network \
             {name} and its containers are gone, remove {dir}"
        );
        Some(Error::new(Code::Conflict, msg))
    }
}

/// Why these networks of a prefix cannot be this host's beside the others: what one has on file has addresses of them, and its lease
/// has not ended. A packet would belong to either, and a subnet of one might be another host's in the other.
#[must_use]
pub fn overlap(networks: &[IpNetwork], prefix: &str, others: &[(PathBuf, HostLease)]) -> Option<String> {
    let has_ended = |other: &HostLease| other.has_ended() && !other.is_undated();
    let lives = |other: &HostLease| other.prefix != prefix && !has_ended(other);
    others.iter().filter(|(_, other)| lives(other)).find_map(|(dir, other)| {
        let config = NetworkConfig::parse(&other.config).ok()?;
        let shared = |pool: &Pool| {
            let theirs = pool.network();
            Some((*networks.iter().find(|own| flannel_records::overlap(**own, theirs))?, theirs))
        };
        let (own, theirs) = config.pools().iter().find_map(shared)?;
        let (name, dir) = named(dir);
        let place = &other.prefix;
        Some(format!(
            "{own} of the network at {prefix} in etcd overlaps {theirs} of network {name} of this host, at {place}: give one of them \
             other addresses in its config; if network {name} and its containers are gone, weftctl leave, or remove {dir}"
        ))
    })
}

/// A network and its directory, for a message.
fn named(dir: &Path) -> (os_str::Display<'_>, path::Display<'_>) {
    (dir.file_name().unwrap_or_default().display(), dir.display())
}
