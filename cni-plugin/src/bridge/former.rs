//! Addresses of a bridge that were gateways of former configurations.
//!
//! With `forceAddress` the reference plugin leaves a bridge one address of IPv4. Here the addresses that containers need stay, as
//! several networks may share a bridge and a network may have several subnets. Nobody keeps ADDs out meanwhile: one that comes has
//! its record before it looks at the bridge, and is seen by a second look at the records, or sees that the address is gone.

use ipnetwork::IpNetwork;
use weft_net::{Link, Netlink, NlResult, WholeAddress};

use super::membership::Membership;
use crate::conf::Network;
use crate::key::AttachmentKey;
use crate::plan::Plan;
use crate::record;

/// The addresses that give way to the plan's gateways, in the order of giving way. An ADD at work may need any, so then none does.
pub fn find(
    netlink: &mut Netlink,
    network: &Network,
    bridge: &Link,
    plan: &Plan,
    key: &AttachmentKey,
) -> NlResult<Vec<WholeAddress>> {
    let mut found = netlink.whole_addresses(bridge.index)?;
    found.retain(|whole| whole.address.is_ipv4() && !plan.gateways.contains(&whole.address));
    if !found.is_empty() {
        match needed(network, key) {
            Some(needed) => found.retain(|whole| !needed.contains(&whole.address)),
            None => found.clear(),
        }
    }
    // A secondary one goes before the one that it would go with.
    found.reverse();
    found.iter_mut().try_for_each(|whole| netlink.note_routes(whole))?;
    Ok(found)
}

/// Puts back those that a container that came meanwhile may need.
pub fn give_back(
    netlink: &mut Netlink,
    network: &Network,
    taken: &[WholeAddress],
    key: &AttachmentKey,
) -> NlResult<()> {
    let needed = needed(network, key);
    let is_needed = |whole: &&WholeAddress| needed.as_ref().is_none_or(|all| all.contains(&whole.address));
    taken.iter().rev().filter(is_needed).try_for_each(|whole| netlink.put_back(whole))
}

/// The gateways' addresses that other containers of the bridge have on file; `None` where that is not known of all.
fn needed(network: &Network, key: &AttachmentKey) -> Option<Vec<IpNetwork>> {
    let state_dir = &network.state_dir;
    let others = record::others(state_dir, &record::networks(state_dir), Some(key.hash()))?;
    let mut memberships: Vec<Membership> = others.into_iter().filter_map(|other| other.membership).collect();
    memberships.retain(|membership| membership.bridge == network.bridge.as_str());
    Some(memberships.into_iter().flat_map(|membership| membership.gateways).collect())
}
