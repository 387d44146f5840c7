//! Another network of this host that has the same place in etcd. For etcd both are one host in one network: it would have both give
//! out the addresses of one subnet.

use cni_protocol::{Code, Error};

use super::{Lease, Search, Snapshot, holds, published};
use crate::registry::Registry;
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
            None => self.sibling(snapshot).map(Lease::Refused),
        })
    }

    /// Why this network gets no subnet, if another one of this host has it. What is on file of that one counts while etcd has it so:
    /// it may be of another etcd, of a network that is gone, or of the host whose disk this is a copy of.
    fn sibling(&self, snapshot: &Snapshot) -> Option<Error> {
        let (dir, lease) = self.others.iter().find(|(_, other)| {
            let own = published(other);
            let held: Vec<_> =
                self.held.iter().filter(|(address, _)| own.contains(address)).cloned().collect();
            other.prefix == self.conf.prefix
                && other.local.iter().any(|local| underlay::is_here(*local))
                && snapshot.hosts.records.get(&other.key) == Some(&other.value)
                && holds(other, &held)
        })?;
        let name = dir.file_name().unwrap_or_default().display();
        let (prefix, key, dir) = (&self.conf.prefix, &lease.key, dir.display());
        let msg = format!(
            "take a subnet: network {name} of this host is at {prefix} in the same etcd, with {key}, and two networks at one place \
             would give out the same addresses: give one of them another ipam.etcd.prefix, with a config of its own there; if network \
             {name} and its containers are gone, remove {dir}"
        );
        Some(Error::new(Code::Conflict, msg))
    }
}
