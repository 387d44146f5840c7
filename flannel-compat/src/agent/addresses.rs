//! How many addresses the containers of this host have, and may have.

use std::collections::BTreeMap;
use std::path::Path;

use cni_protocol::NetworkName;
use flannel_records::parse_key;
use ipnetwork::IpNetwork;
use serde::Serialize;
use weft_state::lease::HostLease;

use super::truth::{Held, Truth};

/// Addresses of one family of a network's containers on this host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Addresses {
    pub(crate) used: f64,
    pub(crate) free: f64,
}

/// The same for each family: with both together nobody would see that one has none left.
pub(crate) type ByFamily = BTreeMap<&'static str, Addresses>;

impl Addresses {
    /// As far as `weft-ipam` gives them; nothing without a subnet. Other IPAM plugins keep their own books.
    pub(super) fn of(truth: &Truth, state_dir: &Path) -> ByFamily {
        match &truth.lease {
            Held::Nothing => ByFamily::new(),
            Held::Lease(lease) | Held::Taken { lease, .. } => {
                Self::of_lease(lease, state_dir, &truth.network)
            }
        }
    }

    pub(crate) fn of_lease(lease: &HostLease, state_dir: &Path, network: &NetworkName) -> ByFamily {
        let Ok(held) = weft_ipam::store::glance(state_dir, network)
            .inspect_err(|error| log::warn!("count addresses: {error}"))
        else {
            return ByFamily::new();
        };
        let of_subnet = |subnet: IpNetwork| {
            let used = held.iter().filter(|ip| subnet.contains(**ip)).count();
            let used = f64::from(u32::try_from(used).unwrap_or(u32::MAX));
            let family = if subnet.is_ipv4() { "ipv4" } else { "ipv6" };
            (family, Self { used, free: capacity(subnet) - used })
        };
        parse_key(&lease.key).unwrap_or_default().into_iter().map(of_subnet).collect()
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
