//! Who has addresses of this host's subnet: by the books of `weft-ipam`, and in the kernel, whoever gave them.

use std::collections::BTreeSet;
use std::path::Path;

use cni_protocol::{Deadline, NetworkName};
use weft_ipam::store::glance;
use weft_net::{Netlink, NlResult};
use weft_state::lease::HostLease;

/// How long the kernel may take to list links and addresses.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether no container of this host has an address of the lease's subnet. What cannot be told may be one.
pub(crate) fn are_none(state_dir: &Path, network: &NetworkName, lease: Option<&HostLease>) -> bool {
    let has_port = |lease: &HostLease| {
        let ports =
            Netlink::open(Deadline::after(PATIENCE)).and_then(|mut net| ports_of(&lease.key, &mut net));
        !ports.is_ok_and(|ports| ports.is_empty())
    };
    glance(state_dir, network).is_ok_and(|held| held.is_empty()) && !lease.is_some_and(has_port)
}

/// The links of containers in the host's subnets: the ports of bridges that have an address of these.
pub(crate) fn ports_of(key: &str, netlink: &mut Netlink) -> NlResult<Vec<String>> {
    let subnets = flannel_records::parse_key(key).unwrap_or_default();
    let links = netlink.links(None)?;
    let bridges: BTreeSet<u32> = links.iter().filter_map(|link| link.master).collect();
    let mut ports = Vec::new();
    for bridge in bridges {
        let addresses = netlink.addresses(bridge)?;
        if addresses.iter().any(|address| subnets.iter().any(|subnet| subnet.contains(address.ip()))) {
            let names = links.iter().filter(|link| link.master == Some(bridge)).map(|link| link.name.clone());
            ports.extend(names);
        }
    }
    Ok(ports)
}
