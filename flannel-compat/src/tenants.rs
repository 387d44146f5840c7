//! Who has addresses of this host's subnet: by the books of `weft-ipam`, and in the kernel, whoever gave them.

use std::collections::BTreeSet;
use std::path::Path;

use cni_protocol::{Code, Deadline, Error, NetworkName};
use weft_ipam::store::{Store, glance};
use weft_net::{Netlink, NlResult};
use weft_state::lease::HostLease;

/// How long the kernel may take to list links and addresses.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// How long whoever changes the books is waited for, mostly an ADD, which has them for some milliseconds.
const HOLD: std::time::Duration = std::time::Duration::from_millis(200);

/// Whether no container of this host has an address of the lease's subnet. What cannot be told may be one.
pub(crate) fn are_none(state_dir: &Path, network: &NetworkName, lease: Option<&HostLease>) -> bool {
    let has_port = |lease: &HostLease| {
        let ports =
            Netlink::open(Deadline::after(PATIENCE)).and_then(|mut net| ports_of(&lease.key, &mut net));
        !ports.is_ok_and(|ports| ports.is_empty())
    };
    glance(state_dir, network).is_ok_and(|held| held.is_empty()) && !lease.is_some_and(has_port)
}

/// The books, if no container of this host has an address of the lease's subnet: while they are held, `weft-ipam` gives none one.
///
/// # Errors
/// [`Code::Io`] when they cannot be made.
pub(crate) fn hold_none(
    state_dir: &Path,
    network: &NetworkName,
    lease: Option<&HostLease>,
) -> Result<Option<Store>, Error> {
    if !are_none(state_dir, network, lease) {
        return Ok(None);
    }
    match Store::create(state_dir, network, Deadline::after(HOLD)) {
        Ok(books) => Ok(are_none(state_dir, network, lease).then_some(books)),
        // Whoever has them for so long may be giving one.
        Err(error) if error.code == Code::TryAgain => Ok(None),
        Err(error) => Err(error),
    }
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
