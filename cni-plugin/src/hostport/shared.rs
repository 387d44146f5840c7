//! What several containers may need of host ports at a time, and none takes back.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use weft_net::Family;
use weft_net::nft::{Element, Nft};

use super::all_of;
use super::rules::{ADDRESSES, AT, HAIRPIN, LOCALNET, RANGES, SAME};
use crate::fault::Fault;
use crate::localnet;
use crate::locks::lock_ports;
use crate::ruleset::erase_what_is_there;

/// Removes what nobody needs any more. For GC, as it reads all ports of one address.
///
/// # Errors
/// What the kernel refused; a lock that is not to be had.
pub fn tidy(nft: &mut Nft, state_dir: &Path) -> Result<(), Fault> {
    if nft.has_set(&HAIRPIN[0])? != Some(true) {
        // There is nothing, or it is of another version, whose containers are not told by these sets.
        return Ok(());
    }
    if unneeded(nft, state_dir)?.is_empty() {
        return Ok(());
    }
    // An ADD adds it together with what needs it, and has opened the interface when it lets go of the lock.
    let _lock = lock_ports(state_dir, nft.deadline())?;
    let unneeded = unneeded(nft, state_dir)?;
    Ok(erase_what_is_there(nft, &unneeded)?)
}

fn unneeded(nft: &mut Nft, state_dir: &Path) -> Result<Vec<Element>, Fault> {
    let mut unneeded = Vec::new();
    for family in Family::ALL {
        let mut addresses = all_of(nft, &[&ADDRESSES], family)?;
        if !addresses.is_empty() {
            let taken = all_of(nft, &[&AT, &RANGES], family)?;
            let has_ports = |address: &Element| {
                taken.iter().any(|element| element.key.bytes().starts_with(address.key.bytes()))
            };
            addresses.retain(|address| !has_ports(address));
        }
        unneeded.extend(addresses);
        let mut prefixes = all_of(nft, &[&SAME], family)?;
        if !prefixes.is_empty() {
            let containers: Vec<IpAddr> = all_of(nft, &[&HAIRPIN], family)?
                .iter()
                .filter_map(|container| container.key.as_address())
                .collect();
            let is_needed =
                |prefix: IpNetwork| containers.iter().any(|container| prefix.contains(*container));
            prefixes.retain(|element| !element.first_prefix().is_some_and(is_needed));
        }
        unneeded.extend(prefixes);
    }
    for interface in nft.elements(&LOCALNET)? {
        // One with a comment is an attachment's own.
        if interface.comment.is_empty() && !localnet::is_open(state_dir, &interface.key.as_ifname())? {
            unneeded.push(interface);
        }
    }
    Ok(unneeded)
}
