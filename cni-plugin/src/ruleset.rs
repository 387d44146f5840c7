//! The static part of Weft's nftables tables, and what an attachment adds to it.
//!
//! Chains and rules are made once for all networks, in groups that come with their first use ([`hostport`],
//! [`guard`], [`isolation`]). An attachment only adds elements to sets and maps: its cost and a packet's are the same
//! whatever else is there. Every element carries the attachment's hash as its comment, so that DEL and GC
//! find all of it also without a record.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_protocol::{Code, Error};
use nix::errno::Errno;
use weft_net::Family;
use weft_net::nft::{ATTEMPTS, Change, Element, Nft, Set, Type, retry, retry_in};
use weft_net::{NetError, NlResult};

use crate::fault::Fault;
use crate::key::{AttachmentKey, is_hash};
use crate::{guard, hostport, isolation};

mod check;
mod group;
mod idle;
mod missing;
pub mod network;
mod rules;
mod shared;
#[cfg(test)]
mod tests;

pub use check::{asleep, check};
pub use group::{Chain, Group, is_whole, mend, rehearse, renew_others, undo};
pub use idle::{Idle, is_settled};
pub use missing::put_back;
pub use rules::Rules;

use group::{build, explain, has_all_sets};
use idle::is_ready;

/// All groups.
pub static GROUPS: [&Group; 5] =
    [&hostport::GROUP, &hostport::SOURCES_GROUP, &isolation::GROUP, &isolation::BRIDGE_GROUP, &guard::GROUP];

/// What one attachment has in the ruleset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// Its own: added, or another has them.
    pub own: Vec<Element>,
    /// Those that attachments share and none takes back: that is for GC.
    pub shared: Vec<Element>,
    /// Those of its network, which go when the network's configuration does not have them any more.
    pub network: Vec<Element>,
}

impl Elements {
    /// Writes on every element whose it is.
    #[must_use]
    pub fn of(mut self, key: &AttachmentKey) -> Self {
        let owner = owner(key);
        self.own.iter_mut().for_each(|element| element.set_comment(&owner));
        network::mark(&mut self.network, &key.network);
        self
    }

    /// Adds those of another part.
    pub fn extend(&mut self, part: Self) {
        self.own.extend(part.own);
        self.shared.extend(part.shared);
        self.network.extend(part.network);
    }

    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    fn all(&self) -> impl Iterator<Item = &Element> {
        self.own.iter().chain(&self.shared).chain(&self.network)
    }

    fn groups(&self) -> Vec<&'static Group> {
        let uses = |group: &&&Group| self.all().any(|element| group.sets.contains(&element.set));
        GROUPS.iter().filter(uses).copied().collect()
    }
}

/// Makes sure that the groups which these elements need are there, as Weft makes them. When one was lost or altered, whoever
/// did that may have done it to all: those that other attachments need are looked at too, and get back the elements that
/// `others` tells. Groups that were not there and nobody else needs are added to `made`, also when a later one fails.
///
/// # Errors
/// What the kernel refused; the explanation names the object. What `others` says.
pub fn ensure(
    nft: &mut Nft,
    elements: &Elements,
    made: &mut Vec<&'static Group>,
    others: &mut dyn FnMut() -> Result<Vec<Elements>, Error>,
) -> Result<(), Fault> {
    let mut intact = true;
    for group in elements.groups() {
        intact &= retry(|| Ok(has_all_sets(nft, group)? && is_ready(nft, group, elements.all())?))?;
    }
    if intact {
        return Ok(());
    }
    let others = others()?;
    for group in GROUPS {
        let of_others = of_group(group, &others);
        if of_others.is_empty() && !elements.groups().contains(&group) {
            continue;
        }
        if let Some(was_there) =
            remake(nft, group, &of_others, elements).map_err(|error| explain(group, error))?
            && !was_there
            && of_others.is_empty()
        {
            made.push(group);
        }
    }
    Ok(())
}

/// Makes a group that is not ready for what is `needed`, together with elements, so that it is never seen without them.
/// Whether anything of it was there; `None` where it is ready.
fn remake(nft: &mut Nft, group: &Group, elements: &[Element], needed: &Elements) -> NlResult<Option<bool>> {
    let all = || elements.iter().chain(needed.all());
    let make = |nft: &mut Nft, with: &[Element]| {
        retry_in(nft, |nft, now| match has_all_sets(nft, group)? && is_ready(nft, group, all())? {
            true => Ok(None),
            false => build(nft, group, (with, now), all()).map(Some),
        })
    };
    match make(nft, elements) {
        Err(error) if !elements.is_empty() => {
            // One that cannot be put back must not keep out the others.
            log::warn!("putting elements back one by one: {error}");
            let made = make(nft, &[])?;
            one_by_one(nft, elements);
            Ok(made)
        }
        other => other,
    }
}

/// What attachments have in a group, everything once.
fn of_group(group: &Group, all: &[Elements]) -> Vec<Element> {
    let within = |element: &&Element| group.sets.contains(&element.set);
    let shared = all.iter().flat_map(|elements| &elements.shared).filter(within);
    let mut found = shared::widest(shared.cloned());
    let mut networks = BTreeSet::new();
    for elements in all {
        let mark = elements.network.first().map(|first| first.comment.as_str());
        let is_new = mark.is_some_and(|mark| networks.insert(mark));
        let network = elements.network.iter().filter(|_| is_new);
        found.extend(elements.own.iter().chain(network).filter(within).cloned());
    }
    found
}

/// Adds an attachment's elements in one batch. An element that somebody else has is taken only from an
/// attachment that is not `alive`. Returns those that another attachment of the same container has: then none is added.
///
/// # Errors
/// [`Code::Conflict`] naming the holder's container; what the kernel refused.
pub fn add(
    nft: &mut Nft,
    key: &AttachmentKey,
    elements: &Elements,
    alive: &dyn Fn(&str) -> bool,
) -> Result<Vec<Element>, Fault> {
    let own = Change::for_elements(&elements.own, Change::create_elements);
    let mut shared = Change::for_elements(&elements.shared, Change::ensure_elements);
    if own.is_empty() && shared.is_empty() {
        return Ok(Vec::new());
    }
    for _ in 0..ATTEMPTS {
        let refusal = match nft.batch(own.iter().chain(&shared).cloned().collect()) {
            Ok(()) => return Ok(Vec::new()),
            Err(refusal) => refusal,
        };
        if !matches!(refusal.errno, Errno::EEXIST | Errno::ENOTEMPTY | Errno::EBUSY) {
            return Err(refusal.into());
        }
        let mut holders = Vec::new();
        for element in &elements.own {
            if let Some(holder) = nft.element(element)? {
                holders.push((element, holder));
            }
        }
        if holders.is_empty() {
            shared = shared::make_way(nft, &elements.shared)?.ok_or(refusal)?;
            continue;
        }
        let mut of_the_same = Vec::new();
        for (element, holder) in holders {
            if give_way(nft, key, element, &holder, alive)? {
                of_the_same.push(element.clone());
            }
        }
        if !of_the_same.is_empty() {
            return Ok(of_the_same);
        }
    }
    Err(NetError::from(Errno::EEXIST).into())
}

/// Removes everything of the attachment that is in the way of an element, if that is gone. Returns whether it stays: a
/// living one of the same container has that very element.
///
/// # Errors
/// [`Code::Conflict`] if another is alive, naming its container.
pub fn give_way(
    nft: &mut Nft,
    key: &AttachmentKey,
    wanted: &Element,
    holder: &Element,
    alive: &dyn Fn(&str) -> bool,
) -> Result<bool, Fault> {
    let (hash, container) = holder.comment.split_once(' ').unwrap_or((&holder.comment, "unknown"));
    let what = &wanted.text;
    if hash != key.hash() && (!is_hash(hash) || alive(hash)) {
        if container == key.container_id.as_str() && holder.is_at(wanted) {
            return Ok(true);
        }
        let conflict =
            format!("{what} is held by container {container}: choose another, or remove that container");
        return Err(Error::new(Code::Conflict, conflict).into());
    }
    log::warn!("{what}: removing what attachment {hash} of container {container} left");
    sweep(nft, |of| of == hash)?;
    Ok(false)
}

/// The elements of the attachments that a predicate on their hashes chooses.
///
/// # Errors
/// What the kernel says to the queries.
pub fn find(nft: &mut Nft, is_chosen: impl Fn(&str) -> bool) -> NlResult<Vec<Element>> {
    let mut found = Vec::new();
    for set in GROUPS.iter().flat_map(|group| group.sets) {
        let elements = nft.elements(set)?;
        found.extend(elements.into_iter().filter(|element| {
            let hash = owner_of(element);
            is_hash(hash) && is_chosen(hash)
        }));
    }
    Ok(found)
}

/// Deletes elements that are there.
///
/// # Errors
/// `ENOENT` when one of them is not there: then none is deleted. What else the kernel refused.
pub fn erase(nft: &mut Nft, elements: &[Element]) -> NlResult<()> {
    if elements.is_empty() {
        return Ok(());
    }
    nft.batch(Change::for_elements(elements, Change::remove_elements))
}

/// Deletes an attachment's elements, which it is known to have.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn remove(nft: &mut Nft, key: &AttachmentKey, known: &Elements) -> NlResult<()> {
    // Some may have gone with the container that they were for, or were flushed.
    match erase_if(nft, &known.own, |_, found| owner_of(found) == key.hash()) {
        Err(error) if is_misfit(&error) => sweep(nft, |hash| hash == key.hash()).map(drop),
        other => other,
    }
}

/// Deletes those of the elements that are there, whosever they are.
///
/// # Errors
/// What the kernel refused.
pub fn erase_what_is_there(nft: &mut Nft, elements: &[Element]) -> NlResult<()> {
    erase_if(nft, elements, |wanted, found| found.is_at(wanted))
}

/// Deletes all elements, or, if one is missing, those that are there and `is_meant`.
fn erase_if(
    nft: &mut Nft,
    elements: &[Element],
    is_meant: impl Fn(&Element, &Element) -> bool,
) -> NlResult<()> {
    match erase(nft, elements) {
        Err(error) if error.not_found() => {}
        other => return other,
    }
    retry(|| {
        let mut left = Vec::new();
        for element in elements {
            let found = nft.element(element)?.filter(|found| is_meant(element, found));
            left.extend(found.map(|_| element.clone()));
        }
        erase(nft, &left)
    })
}

/// Deletes the elements of the attachments that a predicate on their hashes chooses, and returns them.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn sweep(nft: &mut Nft, is_chosen: impl Fn(&str) -> bool) -> NlResult<Vec<Element>> {
    retry(|| {
        let left = find(nft, &is_chosen)?;
        erase(nft, &left).map(|()| left)
    })
}

/// Whether this is what the kernel says of an element that its set has no room for: the set is another version's.
pub fn is_misfit(error: &NetError) -> bool {
    error.errno == Errno::EINVAL
}

/// What the comment of an attachment's elements is.
fn owner(key: &AttachmentKey) -> String {
    format!("{} {}", key.hash(), key.container_id)
}

/// The hash of an element's owner.
fn owner_of(element: &Element) -> &str {
    hash_in(&element.comment)
}

fn hash_in(comment: &str) -> &str {
    comment.split(' ').next().unwrap_or_default()
}

/// The hash of the attachment whose element has this comment.
pub fn owner_in(comment: &str) -> Option<&str> {
    Some(hash_in(comment)).filter(|hash| is_hash(hash))
}

/// Puts elements in as far as the kernel takes them; whether it took all.
fn one_by_one(nft: &mut Nft, elements: &[Element]) -> bool {
    let mut told = BTreeSet::new();
    let mut are_all_in = true;
    for element in elements {
        if let Err(error) = nft.batch(Change::ensure_elements(&[element]).into_iter().collect()) {
            are_all_in = false;
            if told.insert(element.comment.clone()) {
                log::warn!("cannot put back {element} of attachment {}: {error}", element.comment);
            }
        }
    }
    are_all_in
}

/// An address as a field of a set.
pub const V4: Type = Type::Address(Family::V4);
pub const V6: Type = Type::Address(Family::V6);
/// Each family, and where its set stands in a pair.
pub const FAMILIES: [(Family, usize); 2] = [(Family::V4, 0), (Family::V6, 1)];

/// The set of a pair for a family.
pub fn of_family(sets: &'static [Set; 2], family: Family) -> &'static Set {
    match family {
        Family::V4 => &sets[0],
        Family::V6 => &sets[1],
    }
}

/// The set of a pair for an address.
pub fn by_address(sets: &'static [Set; 2], address: IpAddr) -> &'static Set {
    of_family(sets, Family::of(address))
}
