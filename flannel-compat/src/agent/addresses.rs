//! How many addresses the containers of this host have, and may have.

use std::path::Path;

use cni_protocol::NetworkName;
use flannel_records::HostRecord;
use ipnetwork::IpNetwork;
use weft_state::lease::HostLease;

use super::truth::{Held, Truth};

/// Addresses of a network's containers on this host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Addresses {
    pub(crate) used: f64,
    pub(crate) free: f64,
}

impl Addresses {
    /// As far as `weft-ipam` gives them; nothing without a subnet. Other IPAM plugins keep their own books.
    pub(super) fn of(truth: &Truth, state_dir: &Path) -> Option<Self> {
        let (Held::Lease(lease) | Held::Taken { lease, .. }) = &truth.lease else { return None };
        Self::of_lease(lease, state_dir, &truth.network)
    }

    pub(crate) fn of_lease(lease: &HostLease, state_dir: &Path, network: &NetworkName) -> Option<Self> {
        let record = HostRecord::parse(&lease.key, &lease.value).ok()?;
        let held = weft_ipam::store::glance(state_dir, network)
            .inspect_err(|error| log::warn!("count addresses: {error}"))
            .ok()?;
        let subnets: Vec<IpNetwork> = record.segments().iter().map(|segment| segment.subnet).collect();
        let used = held.iter().filter(|ip| subnets.iter().any(|subnet| subnet.contains(**ip))).count();
        let used = f64::from(u32::try_from(used).unwrap_or(u32::MAX));
        Some(Self { used, free: subnets.iter().map(|subnet| capacity(*subnet)).sum::<f64>() - used })
    }
}

/// Addresses for containers: not the network's own, the gateway's and IPv4's broadcast address.
fn capacity(subnet: IpNetwork) -> f64 {
    let (bits, reserved) = if subnet.is_ipv4() { (32, 3.0) } else { (128, 2.0) };
    2_f64.powi(i32::from(bits - subnet.prefix())) - reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities() {
        for (subnet, expected) in [("10.1.2.0/24", 253.0), ("10.1.2.0/30", 1.0), ("fd00::/126", 2.0)] {
            assert_eq!(capacity(subnet.parse().unwrap()), expected, "{subnet}");
        }
    }
}
