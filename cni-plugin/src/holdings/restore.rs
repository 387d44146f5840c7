//! The agent's part: how what attachments hold is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cni_protocol::{Deadline, Error, NetworkName};
use weft_net::nft::{ATTEMPTS, Nft};
use weft_net::{NetError, NlResult};
use weft_state::Lock;

use super::network::held_by;
use crate::fault::{Fault, failed};
use crate::locks::network_lock;
use crate::masquerade::{self, Ensured, Masquerade};
use crate::record::{self, Content, Found, Locked};
use crate::ruleset::{self, Elements};
use crate::suspects::Suspects;

/// Puts back what attachments hold in rules that were flushed or altered, and what is missing of the suspects'; whether there was
/// anything to put back. For whoever looks after the host while no container comes.
///
/// # Errors
/// [`Code::Kernel`](cni_protocol::Code::Kernel), [`Code::Io`](cni_protocol::Code::Io) where what some of them hold cannot be told.
pub fn restore(state_dir: &Path, suspects: &Suspects, deadline: Deadline) -> Result<bool, Error> {
    let step = "put back what containers hold in the ruleset";
    let refused = |error: NetError| failed(&step, error.into());
    let mut nft = Nft::open(deadline).map_err(refused)?;
    let mended = ruleset::mend(&mut nft).map_err(refused)?;
    if ruleset::is_whole(&mut nft).map_err(refused)?
        && masquerade_is_whole(&mut nft, state_dir).map_err(refused)?
    {
        return Ok(
            elements_again(&mut nft, state_dir, suspects).map_err(|fault| failed(&step, fault))? || mended
        );
    }
    // Their locks are held until their elements are back: no DEL can come in between.
    let attached = record::attached(state_dir)?;
    let mut held = held_by(&attached);
    let mut all = Elements::default();
    held.iter().cloned().for_each(|elements| all.extend(elements));
    // First, so that whatever is still missing makes the next comer do all of it again.
    let mut lost = masquerade_again(&mut nft, &attached);
    for _ in 0..ATTEMPTS {
        // Once more, until nothing is missing: what was back may have been flushed while the rest was put back.
        let mut missing = false;
        ruleset::ensure(&mut nft, &all, &mut Vec::new(), &mut || {
            missing = true;
            Ok(held.clone())
        })
        .map_err(|fault| failed(&step, fault))?;
        if !missing {
            break;
        }
        lost = true;
    }
    leave_out_unsettled(state_dir, &attached, &mut held);
    lost |= ruleset::put_back(&mut nft, &held).map_err(refused)?;
    let renewed = ruleset::renew_others(&mut nft, &all).map_err(refused)?;
    Ok(lost || mended || renewed)
}

/// Puts back what was taken out of sets of the suspects' elements; whether anything was.
fn elements_again(nft: &mut Nft, state_dir: &Path, suspects: &Suspects) -> Result<bool, Fault> {
    // Their locks are held until their elements are back: no DEL can come in between.
    let attached = record::attached_of(state_dir, |hash| suspects.has(hash))?;
    let mut held = held_by(&attached);
    match suspects {
        Suspects::All => leave_out_unsettled(state_dir, &attached, &mut held),
        // Some of a network's containers may have come with a former configuration. Where anything of a network is missing, all are suspects.
        Suspects::These(_) => held.iter_mut().for_each(|elements| elements.network.clear()),
    }
    Ok(ruleset::put_back(nft, &held)?)
}

/// Leaves out what networks have at which somebody is at work: a container on its way may have brought another configuration.
fn leave_out_unsettled(state_dir: &Path, attached: &[Locked], held: &mut [Elements]) {
    let own: BTreeSet<&str> = attached.iter().map(|one| one.key.hash()).collect();
    let networks: BTreeSet<&NetworkName> = attached.iter().map(|one| &one.key.network).collect();
    let is_settled = |network: &NetworkName| {
        let is_held = |hash: &String| record::is_held(state_dir, network, hash).unwrap_or_default();
        record::hashes(state_dir, network)
            .is_ok_and(|all| !all.iter().filter(|hash| !own.contains(hash.as_str())).any(is_held))
    };
    let unsettled: BTreeSet<&NetworkName> =
        networks.into_iter().filter(|network| !is_settled(network)).collect();
    for (elements, one) in held.iter_mut().zip(attached) {
        if unsettled.contains(&one.key.network) {
            elements.network.clear();
        }
    }
}

/// Ends the masquerade of a network of which no attachment has, or may have, any on file; whether there was any. For whoever had the network
/// masquerade and is not to any more.
///
/// # Errors
/// [`Code::Kernel`](cni_protocol::Code::Kernel), [`Code::Io`](cni_protocol::Code::Io), [`Code::TryAgain`](cni_protocol::Code::TryAgain) while an ADD is at work.
pub fn end_masquerade(state_dir: &Path, network: &NetworkName, deadline: Deadline) -> Result<bool, Error> {
    let refused = |error: NetError| failed(&format!("end the masquerade of network {network}"), error.into());
    let mut nft = Nft::open(deadline).map_err(refused)?;
    if !masquerade::ending::is_there(&mut nft, network).map_err(refused)? {
        return Ok(false);
    }
    // What an ADD has just made is on file when it has ended.
    let _lock = Lock::exclusive(&network_lock(state_dir, network), deadline)?;
    let ended = masquerade::ending::ended(state_dir, network);
    for hash in record::hashes(state_dir, network)? {
        match record::peek(state_dir, network, &hash)? {
            Found::Attached(content) if content.is_masqueraded(ended) => return Ok(false),
            // Nobody knows whether its container has any.
            Found::Damaged => return Ok(false),
            _ => {}
        }
    }
    masquerade::remove(&mut nft, network).map_err(refused)?;
    Ok(true)
}

/// Whether what the host's networks masquerade is there, by one record of each that has anything of it.
fn masquerade_is_whole(nft: &mut Nft, state_dir: &Path) -> NlResult<bool> {
    for network in record::networks(state_dir) {
        if let Some(masquerade) = record::any_masquerade(state_dir, &network)
            && !masquerade::is_whole(nft, &network, &masquerade)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts back what the networks of attachments have masqueraded, as far as the kernel takes it; whether anything was missing.
pub(super) fn masquerade_again(nft: &mut Nft, attached: &[Locked]) -> bool {
    let mut was_missing = false;
    for (network, wanted) in masquerades(attached) {
        match masquerade::put_back(nft, network, &wanted) {
            Ok(ensured) => was_missing |= ensured != Ensured::Nothing,
            Err(error) => log::warn!("masquerade of network {network} cannot be put back: {error}"),
        }
    }
    was_missing
}

/// What the networks of these attachments have masqueraded, by their names: all of their prefixes, with the exemptions of whoever
/// came last.
fn masquerades(attached: &[Locked]) -> BTreeMap<&NetworkName, Masquerade> {
    let mut all: Vec<_> = attached.iter().filter(|one| !one.content.masquerade.is_nothing()).collect();
    all.sort_by_key(|one| one.content.since());
    let mut found = BTreeMap::<_, Masquerade>::new();
    for Locked { key, content: Content { masquerade, .. }, .. } in all {
        let of_network = found.entry(&key.network).or_default();
        of_network.exempt.clone_from(&masquerade.exempt);
        of_network.prefixes.extend(&masquerade.prefixes);
        of_network.prefixes.sort_unstable();
        of_network.prefixes.dedup();
    }
    found
}
