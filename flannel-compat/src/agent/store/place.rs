//! Where in etcd the agent works: where its network is configured, but at the place of its lease while containers have addresses of
//! that.

use cni_protocol::Error;
use weft_ipam::lease::{self, Tenants};
use weft_state::lease::HostLease;

use super::Store;
use crate::tenants;

impl Store {
    /// Decides where the session that begins works: wholly, as if it were configured so. The lease that is elsewhere, and what is to be
    /// done about it.
    pub(super) fn choose_place(&mut self) -> Option<(HostLease, Error)> {
        let stays = self.stays().cloned();
        if self.leased_elsewhere().is_some() {
            self.tenants = if stays.is_some() { Tenants::Some } else { Tenants::None };
        }
        let prefix = stays.as_ref().map_or(&self.configured.prefix, |lease| &lease.prefix);
        self.conf = self.configured.at(prefix);
        stays.map(|lease| {
            let why = lease::elsewhere(&lease, &self.configured);
            (lease, why)
        })
    }

    /// Whether the next session would work there, too: containers come and go.
    pub(super) fn is_in_place(&self) -> bool {
        self.conf.prefix == *self.stays().map_or(&self.configured.prefix, |lease| &lease.prefix)
    }

    /// Whether the lease, if there is one, is where this session works.
    pub(super) fn is_here(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.prefix == self.conf.prefix)
    }

    /// The lease at another place than is configured, while containers have addresses of it.
    fn stays(&self) -> Option<&HostLease> {
        let has_tenants =
            |lease: &&HostLease| !tenants::are_none(&self.state_dir, &self.network, Some(lease));
        self.leased_elsewhere().filter(has_tenants)
    }

    fn leased_elsewhere(&self) -> Option<&HostLease> {
        self.lease.as_ref().filter(|lease| lease.prefix != self.configured.prefix)
    }
}
