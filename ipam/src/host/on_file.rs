//! The lease that this host has on file, and whether that is good for anything.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use cni_protocol::Error;
use weft_state::lease::{HostLease, agent_lives, lease_files};

use super::Host;
use super::attempts::Tried;
use crate::lease::{self, Standing};

/// The lease on file as it is at a moment.
pub(crate) struct Glance {
    file: Option<(u64, i64, i64)>,
    pub(super) tried: Tried,
    is_void: bool,
}

impl Host<'_> {
    /// The lease on file, if it is this host's: a disk that was copied to another host has another host's.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn on_file(&self) -> Result<Option<HostLease>, Error> {
        let Some(lease) = HostLease::read(&self.data_dir, self.network)? else { return Ok(None) };
        Ok(self.is_ours(&lease)?.then_some(lease))
    }

    /// That by which this machine's containers have their addresses, also where the configuration names another place in etcd by now.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn of_containers(&self) -> Result<Option<HostLease>, Error> {
        match self.on_file()? {
            None => Ok(HostLease::read(&self.data_dir, self.network)?.filter(lease::is_by_machine)),
            lease => Ok(lease),
        }
    }

    /// The lease on file of this machine where it has other addresses since. etcd is to be told of these; while it cannot be, the lease
    /// is what it was.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn of_former_addresses(&self) -> Result<Option<HostLease>, Error> {
        match HostLease::read(&self.data_dir, self.network)? {
            Some(lease) if lease.prefix == self.etcd.prefix && !self.is_void(&lease, self.tried())? => {
                Ok(lease::is_by_machine(&lease).then_some(lease))
            }
            _ => Ok(None),
        }
    }

    /// Whether a lease is as good as none: it has ended, or etcd has said that it is wrong and nobody has settled that, so another host
    /// may have the subnet, and no container would miss that.
    pub(super) fn is_void(&self, lease: &HostLease, tried: Tried) -> Result<bool, Error> {
        let is_lost =
            || Ok(lease.has_ended() || tried.is_in_doubt && !agent_lives(&self.state_dir, self.network)?);
        Ok(is_lost()? && self.is_unused())
    }

    /// Where this machine's agent lives, it is the agent that moves the host to other addresses.
    fn is_ours(&self, lease: &HostLease) -> Result<bool, Error> {
        if lease.prefix != self.etcd.prefix {
            return Ok(false);
        }
        match lease::standing(&self.etcd, lease, &[]) {
            Standing::Same => return Ok(true),
            Standing::Away => {
                let remedy = "where it gets none any more, set ipam.iface";
                let network = self.network;
                log::warn!("network {network}: the interface to other hosts has lost its address: {remedy}");
                return Ok(true);
            }
            Standing::Moved => {}
        }
        Ok(agent_lives(&self.state_dir, self.network)? && lease::is_by_machine(lease))
    }

    /// Which lease is on file, without reading it: each is a file of its own; and whether etcd is to say first whether it is right.
    pub(crate) fn glance(&self) -> Glance {
        let [lease, _] = lease_files(&self.data_dir, self.network);
        let file = fs::metadata(lease).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec()));
        let tried = self.tried();
        Glance { file, tried, is_void: tried.is_in_doubt && self.is_unused() }
    }

    /// Whether the lease on file still has this one's subnet, and has neither been ended nor come into doubt since it was seen.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn has_still(&self, lease: &HostLease, seen: &Glance) -> Result<bool, Error> {
        let glance = self.glance();
        if glance.is_void && !seen.is_void {
            return Ok(false);
        }
        if glance.file == seen.file {
            return Ok(true);
        }
        let is_still = |now: HostLease| now.key == lease.key && (lease.has_ended() || !now.has_ended());
        Ok(HostLease::read(&self.data_dir, self.network)?.is_some_and(is_still))
    }
}
