//! What a network has in the host's rules for all its containers. Which subnets are the network's follows from all of them, as a
//! configuration may have had other ranges when some came. No two networks with containers have addresses in common, as rules could not
//! tell them apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, NetworkName};
use weft_net::NetError;
use weft_net::nft::{Element, Nft};
use weft_state::Lock;
use weft_state::lease::agent_lives;

use super::Holdings;
use crate::fault::{Fault, failed};
use crate::isolation::{Known, Policy, known};
use crate::key::AttachmentKey;
use crate::locks::lock_networks;
use crate::record::{self, Attached, Content, Found, Locked};
use crate::ruleset::{self, Elements, Rules, network};
use crate::step::{Journal, Step};

/// How long the agent waits for the lock of all networks. An ADD has it for a moment, but may be stopped then, and all that the agent does is on one thread.
const AGENT_PATIENCE: Duration = Duration::from_millis(100);

/// Has the network's policy name the subnets and ports of all its containers, where the rules lack what this one's alone tells. Returns
/// the lock under which the rules can be changed then.
///
/// # Errors
/// [`Code::Conflict`] when another network has addresses in common, [`Code::TryAgain`].
pub(super) fn agree(
    journal: &mut Journal,
    rules: &mut Rules,
    state_dir: &Path,
    key: &AttachmentKey,
    holdings: &mut Holdings,
) -> Result<Option<Lock>, Error> {
    let Some(isolation) = &mut holdings.isolation else { return Ok(None) };
    let name = &key.network;
    let unreadable = |error: NetError| failed(&Step::Rules, error.into());
    if rules.look_for(&isolation.policy.of_network(name)).map_err(unreadable)? {
        return Ok(None);
    }
    // What the agent says of a network is for all hosts, and more than a plugin may know.
    let is_announced = agent_lives(state_dir, name)?;
    if is_announced {
        let mut announced = isolation.policy.clone();
        announced.join(known(&mut rules.nft, name).map_err(unreadable)?);
        if rules.look_for(&announced.of_network(name)).map_err(unreadable)? {
            isolation.policy = announced;
            return Ok(None);
        }
    }
    let lock = lock_networks(state_dir, rules.nft.deadline())?;
    rules.look_again();
    let mut in_rules = known(&mut rules.nft, name).map_err(unreadable)?;
    let (filed, is_all) = on_file(state_dir, name)?;
    if is_all {
        // Those of all that live, and are on their way, are on file. The others' ports are gone.
        in_rules.links.clear();
    }
    let own = isolation.policy.clone();
    isolation.policy.join(filed);
    let filed = isolation.policy.clone();
    isolation.policy.join(in_rules);
    if isolation.policy != filed && !is_announced && is_all && journal.alone()? {
        // Nobody on the way would rely on what nobody has on file; what was read before somebody ended may be old.
        isolation.policy = own;
        isolation.policy.join(on_file(state_dir, name)?.0);
    }
    let wanted = isolation.policy.of_network(name);
    if rules.look_for(&wanted).map_err(unreadable)? {
        return Ok(None);
    }
    refuse_rivals(&mut rules.nft, state_dir, name, &wanted).map_err(|fault| failed(&Step::Rules, fault))?;
    Ok(Some(lock))
}

/// For the agent: has the rules know a network of which no container is here, so that other networks' containers are kept from its
/// containers on other hosts, and the other way round. Whether there was anything to do; what containers brought is left alone.
///
/// # Errors
/// [`Code::Conflict`] when another network has addresses in common, [`Code::TryAgain`] while an ADD is at it, [`Code::Kernel`].
pub fn announce(
    state_dir: &Path,
    name: &NetworkName,
    policy: &Policy,
    deadline: Deadline,
) -> Result<bool, Error> {
    let step = "have the ruleset know the network";
    let refused = |error: NetError| failed(&step, error.into());
    let mut nft = Nft::open(deadline).map_err(refused)?;
    let elements = Elements { network: policy.of_network(name), ..Elements::default() };
    let is_seen_to = |nft: &mut Nft| {
        Ok::<_, Error>(
            !record::hashes(state_dir, name)?.is_empty()
                || network::has(nft, &elements.network).map_err(refused)?,
        )
    };
    if is_seen_to(&mut nft)? {
        return Ok(false);
    }
    let _changing = lock_networks(state_dir, Deadline::after(AGENT_PATIENCE))?;
    if is_seen_to(&mut nft)? {
        return Ok(false);
    }
    refuse_rivals(&mut nft, state_dir, name, &elements.network).map_err(|fault| failed(&step, fault))?;
    // Once more: of two networks that come at the same time each may see the other only now.
    for _ in 0..2 {
        let mut others = Attached::default();
        let made = ruleset::ensure(&mut nft, &elements, &mut Vec::new(), &mut || {
            others = record::attached(state_dir)?;
            Ok(held_by(&others))
        });
        made.map_err(|fault| failed(&step, fault))?;
        network::ensure(&mut nft, &elements.network).map_err(refused)?;
    }
    Ok(true)
}

/// Undoes [`announce`], unless the network has containers.
///
/// # Errors
/// [`Code::TryAgain`], [`Code::Kernel`].
pub fn forget(state_dir: &Path, name: &NetworkName, deadline: Deadline) -> Result<(), Error> {
    let _changing = lock_networks(state_dir, deadline)?;
    if !record::hashes(state_dir, name)?.is_empty() {
        return Ok(());
    }
    Nft::open(deadline)
        .and_then(|mut nft| network::restore(&mut nft, name, &[]))
        .map_err(|error| failed(&"have the ruleset forget the network", error.into()))
}

/// For CHECK: has a policy name all the subnets and ports that the network has.
///
/// # Errors
/// What the kernel says, or the records.
pub fn complete(
    nft: &mut Nft,
    state_dir: &Path,
    network: &NetworkName,
    policy: &mut Policy,
) -> Result<(), Fault> {
    policy.join(on_file(state_dir, network)?.0);
    policy.join(known(nft, network)?);
    Ok(())
}

/// What tells a network's containers from others, and whether all of their records can be read. The port of one that is on its way is
/// among it, as what its network has in the rules may change meanwhile.
fn on_file(state_dir: &Path, network: &NetworkName) -> Result<(Known, bool), Error> {
    let (mut known, mut is_all) = (Known::default(), true);
    for hash in record::hashes(state_dir, network)? {
        match record::peek(state_dir, network, &hash) {
            Ok(Found::Attached(content) | Found::Begun(content)) => {
                known.links.extend(content.holdings.port);
                known.subnets.extend(
                    content.holdings.isolation.into_iter().flat_map(|isolation| isolation.policy.subnets),
                );
            }
            Ok(Found::Nothing) => {}
            Ok(Found::Damaged) | Err(_) => is_all = false,
        }
    }
    Ok((known, is_all))
}

/// Sees that no other network with containers has any of the addresses that a network is to have in the rules.
///
/// # Errors
/// [`Code::Conflict`], naming the other network and what it has.
pub fn refuse_rivals(
    nft: &mut Nft,
    state_dir: &Path,
    name: &NetworkName,
    wanted: &[Element],
) -> Result<(), Fault> {
    let owners = network::owners_of_the_same(nft, name, wanted)?;
    if owners.is_empty() {
        return Ok(());
    }
    for other in record::networks(state_dir).iter().filter(|other| network::is_any_of(other, &owners)) {
        if let Some(whose) = lives(state_dir, other, wanted)? {
            let conflict = format!(
                "addresses of it are network {other}'s, {whose}: networks of a host have no addresses in common; take another subnet, \
                 remove that network's containers, or give both the same name"
            );
            return Err(Error::new(Code::Conflict, conflict).into());
        }
    }
    Ok(())
}

/// Who of a network has addresses in common with what another one wants in the rules: a container, or one on its way.
fn lives(state_dir: &Path, network: &NetworkName, wanted: &[Element]) -> Result<Option<String>, Error> {
    for hash in record::hashes(state_dir, network)? {
        match record::peek(state_dir, network, &hash)? {
            Found::Attached(content) => {
                let isolation = content.holdings.isolation.as_ref();
                let has = isolation.map(|isolation| isolation.policy.of_network(network)).unwrap_or_default();
                if has.iter().any(|has| wanted.iter().any(|wanted| wanted.overlaps(has))) {
                    return Ok(Some(format!("of which container {} is there", content.container_id)));
                }
            }
            // An ADD that was killed holds no lock.
            Found::Begun(content) if is_held(state_dir, network, &hash)? => {
                return Ok(Some(format!("of which container {} is on its way", content.container_id)));
            }
            Found::Damaged => return Ok(Some(format!("of which attachment {hash} has a damaged record"))),
            Found::Begun(_) | Found::Nothing => {}
        }
    }
    Ok(None)
}

/// Whether somebody is at work on a record, which may be gone by now.
fn is_held(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<bool, Error> {
    Ok(record::is_held(state_dir, network, hash)?
        && record::peek(state_dir, network, hash)? != Found::Nothing)
}

/// What attachments hold, as it is to be put back: what a network says is what it said last, for the subnets of all.
pub(super) fn held_by(attached: &[Locked]) -> Vec<Elements> {
    let mut policies: BTreeMap<&NetworkName, (&Content, Policy)> = BTreeMap::new();
    for Locked { key, content, .. } in attached {
        let Some(isolation) = &content.holdings.isolation else { continue };
        let (last, policy) =
            policies.entry(&key.network).or_insert_with(|| (content, isolation.policy.clone()));
        let mut all =
            Known { subnets: std::mem::take(&mut policy.subnets), links: std::mem::take(&mut policy.links) };
        all.subnets.extend(&isolation.policy.subnets);
        all.links.extend(content.holdings.port.clone());
        if content.since() > last.since() {
            (*last, *policy) = (content, isolation.policy.clone());
        }
        policy.join(all);
    }
    let held = attached.iter().map(|Locked { key, content, .. }| {
        let mut holdings = content.holdings.clone();
        if let (Some(isolation), Some((_, policy))) = (&mut holdings.isolation, policies.get(&key.network)) {
            isolation.policy.clone_from(policy);
        }
        holdings.elements(key)
    });
    held.collect()
}
