//! The static part of Weft's nftables tables, and what an attachment adds to it.
//!
//! Chains and rules are made once for all networks, in groups that come with their first use ([`hostport`],
//! [`guard`], [`isolation`]). An attachment only adds elements to sets and maps: its cost and a packet's are the same
//! whatever else is there. Every element carries the attachment's hash as its comment, so that DEL and GC
//! find all of it also without a record.

use std::collections::BTreeSet;
use std::fmt;

use cni_protocol::{Code, Error};
use nix::errno::Errno;
use weft_net::nft::{ATTEMPTS, ChainKind, Change, Element, Nft, Rule, Set, Table, retry};
use weft_net::{NetError, NlResult};

use crate::hostport;
use crate::key::AttachmentKey;
use crate::step::Fault;

#[cfg(test)]
mod tests;

/// How many elements of other attachments are put back by one batch.
const AT_ONCE: usize = 512;

/// Sets, chains and rules that belong together.
pub struct Group {
    pub name: &'static str,
    pub table: Table,
    pub sets: &'static [Set],
    pub chains: &'static [Chain],
}

/// A chain with its rules.
pub struct Chain {
    pub name: &'static str,
    pub kind: ChainKind,
    pub rules: fn() -> Vec<Rule>,
    /// How many rules it has and how many jump to it: what tells an intact chain without reading its rules.
    pub uses: u32,
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Group {}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All groups.
pub static GROUPS: [&Group; 1] = [&hostport::GROUP];

/// What one attachment has in the ruleset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// Its own: added, or another has them.
    pub own: Vec<Element>,
    /// Those that attachments share and none takes back.
    pub shared: Vec<Element>,
}

impl Elements {
    /// Writes on every element whose it is.
    #[must_use]
    pub fn of(mut self, key: &AttachmentKey) -> Self {
        let owner = owner(key);
        self.own.iter_mut().for_each(|element| element.comment.clone_from(&owner));
        self
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.shared.is_empty()
    }

    fn groups(&self) -> Vec<&'static Group> {
        let uses = |group: &&&Group| {
            let within = |element: &Element| group.sets.contains(&element.set);
            self.own.iter().chain(&self.shared).any(within)
        };
        GROUPS.iter().filter(uses).copied().collect()
    }
}

/// Makes sure that the groups which these elements need are there, as Weft makes them. A group that was lost or
/// altered is made anew, and gets back the elements of all attachments, which `others` tells. Returns the groups that
/// were not there.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn ensure(
    nft: &mut Nft,
    elements: &Elements,
    others: &mut dyn FnMut() -> Vec<Elements>,
) -> NlResult<Vec<&'static Group>> {
    let mut made = Vec::new();
    let mut lost = Vec::new();
    for group in elements.groups() {
        let was_there = retry(|| {
            if is_intact(nft, group)? {
                return Ok(None);
            }
            build(nft, group).map(Some)
        })
        .map_err(|error| explain(group, error))?;
        match was_there {
            None => {}
            Some(was_there) => {
                lost.push(group);
                if !was_there {
                    made.push(group);
                }
            }
        }
    }
    if !lost.is_empty() {
        restore(nft, &lost, others());
    }
    Ok(made)
}

/// Adds an attachment's elements in one batch. An element that somebody else has is taken only from an
/// attachment that is not `alive`.
///
/// # Errors
/// [`Code::Conflict`] naming the holder's container; what the kernel refused.
pub fn add(
    nft: &mut Nft,
    key: &AttachmentKey,
    elements: &Elements,
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), Fault> {
    let mut changes = Change::for_elements(&elements.own, Change::create_elements);
    changes.extend(Change::for_elements(&elements.shared, Change::ensure_elements));
    for _ in 0..ATTEMPTS {
        let refusal = match nft.batch(changes.clone()) {
            Ok(()) => return Ok(()),
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
            return Err(refusal.into());
        }
        for (element, holder) in holders {
            give_way(nft, key, &element.text, &holder, alive)?;
        }
    }
    Err(NetError::from(Errno::EEXIST).into())
}

/// Removes everything of the attachment that holds an element, if it is gone.
///
/// # Errors
/// [`Code::Conflict`] if it is alive, naming its container.
pub fn give_way(
    nft: &mut Nft,
    key: &AttachmentKey,
    what: &str,
    holder: &Element,
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), Fault> {
    let (hash, container) = holder.comment.split_once(' ').unwrap_or((&holder.comment, "unknown"));
    if hash != key.hash() && (!is_hash(hash) || alive(hash)) {
        let conflict =
            format!("{what} is held by container {container}: choose another, or remove that container");
        return Err(Error::new(Code::Conflict, conflict).into());
    }
    log::warn!("{what}: removing what attachment {hash} of container {container} left");
    Ok(sweep(nft, |of| of == hash)?)
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
            let hash = element.comment.split(' ').next().unwrap_or_default();
            is_hash(hash) && is_chosen(hash)
        }));
    }
    Ok(found)
}

/// Deletes elements that are there.
///
/// # Errors
/// `ENOENT` when one of them is not there: then none is deleted. What else the kernel refused.
fn erase(nft: &mut Nft, elements: &[Element]) -> NlResult<()> {
    if elements.is_empty() {
        return Ok(());
    }
    nft.batch(Change::for_elements(elements, Change::remove_elements))
}

/// Deletes an attachment's elements: those it is known to have, or else those that name it.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn remove(nft: &mut Nft, key: &AttachmentKey, known: Option<&Elements>) -> NlResult<()> {
    if let Some(known) = known {
        match erase(nft, &known.own) {
            Err(error) if error.not_found() => {}
            other => return other,
        }
    }
    let hash = key.hash();
    sweep(nft, |of| of == hash)
}

/// Deletes the elements of the attachments that a predicate on their hashes chooses.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn sweep(nft: &mut Nft, is_chosen: impl Fn(&str) -> bool) -> NlResult<()> {
    retry(|| {
        let left = find(nft, &is_chosen)?;
        erase(nft, &left)
    })
}

/// Takes back groups that [`ensure`] made. The caller is alone on the host.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn undo(nft: &mut Nft, made: &[&'static Group]) -> NlResult<()> {
    for group in made {
        retry(|| {
            let mut changes = clear(nft, group)?;
            for set in group.sets {
                if nft.has_set(set)?.is_some() {
                    changes.push(Change::remove_set(set));
                }
            }
            if changes.is_empty() { Ok(()) } else { nft.batch(changes) }
        })?;
        match nft.batch(vec![Change::delete_table_if_empty(group.table)]) {
            Err(error) if error.errno == Errno::EBUSY || error.not_found() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Compares the kernel's state with what the attachment needs of it.
///
/// # Errors
/// The first difference, as a sentence that names the object.
pub fn check(nft: &mut Nft, key: &AttachmentKey, elements: &Elements) -> Result<(), String> {
    let unreadable = |error: NetError| format!("nftables cannot be read: {error}");
    for group in elements.groups() {
        for chain in group.chains {
            let place = format!("chain {} of table {}", chain.name, group.table);
            if !nft.has_chain(group.table, chain.name).map_err(unreadable)? {
                return Err(format!("{place} is missing"));
            }
            if !nft.is_placed(group.table, chain.name, chain.kind).map_err(unreadable)? {
                return Err(format!("{place} has another type, hook, priority or policy"));
            }
            let wanted = (chain.rules)();
            let found = nft.rules_in(group.table, chain.name).map_err(unreadable)?;
            if found.len() != wanted.len() {
                return Err(format!("{place} has {} rules, not {}", found.len(), wanted.len()));
            }
            if let Some(at) = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
                return Err(format!("rule {} of {place} differs", at + 1));
            }
        }
    }
    for wanted in elements.own.iter().chain(&elements.shared) {
        match nft.element(wanted).map_err(unreadable)? {
            None => {
                return Err(format!(
                    "set {} of table {} lacks {}",
                    wanted.set.name, wanted.set.table, wanted.text
                ));
            }
            Some(found)
                if found.data != wanted.data || found.key != wanted.key || found.end != wanted.end =>
            {
                return Err(format!("{wanted} is not as it was made"));
            }
            Some(found) if wanted.comment == owner(key) && found.comment != wanted.comment => {
                return Err(format!("{wanted} belongs to \"{}\"", found.comment));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What the comment of an attachment's elements is.
fn owner(key: &AttachmentKey) -> String {
    format!("{} {}", key.hash(), key.container_id)
}

fn is_hash(text: &str) -> bool {
    text.len() == crate::key::HASH_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether all groups are there, as Weft makes them.
///
/// # Errors
/// What the kernel says to the query.
pub fn is_whole(nft: &mut Nft) -> NlResult<bool> {
    for group in GROUPS {
        if !is_intact(nft, group)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_intact(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    let names: Vec<&str> = group.chains.iter().map(|chain| chain.name).collect();
    let wanted: Vec<u32> = group.chains.iter().map(|chain| chain.uses).collect();
    Ok(nft.uses(group.table, &names)? == Some(wanted))
}

/// Makes a group in place of what is left of it; sets that are as wanted stay, with their elements. Whether
/// anything was there.
fn build(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    let mut changes = clear(nft, group)?;
    let mut was_there = !changes.is_empty();
    changes.insert(0, Change::ensure_table(group.table));
    for set in group.sets {
        match nft.has_set(set)? {
            Some(true) => {
                was_there = true;
                continue;
            }
            Some(false) => {
                was_there = true;
                changes.push(Change::remove_set(set));
            }
            None => {}
        }
        changes.push(Change::create(set));
    }
    changes.extend(group.chains.iter().map(|chain| Change::new_chain(group.table, chain.name, chain.kind)));
    for chain in group.chains {
        changes.extend((chain.rules)().iter().map(|rule| Change::append(group.table, chain.name, rule)));
    }
    nft.batch(changes)?;
    Ok(was_there)
}

/// The changes that remove a group's chains. All are emptied first, as they jump to each other.
fn clear(nft: &mut Nft, group: &Group) -> NlResult<Vec<Change>> {
    let mut present = Vec::new();
    for chain in group.chains {
        if nft.has_chain(group.table, chain.name)? {
            present.push(chain.name);
        }
    }
    let flush = present.iter().map(|name| Change::flush_chain(group.table, name));
    let delete = present.iter().map(|name| Change::remove_chain(group.table, name));
    Ok(flush.chain(delete).collect())
}

/// Gives groups back the elements that attachments have in them.
fn restore(nft: &mut Nft, groups: &[&Group], others: Vec<Elements>) {
    let all = others.into_iter().flat_map(|elements| elements.own.into_iter().chain(elements.shared));
    let lost: Vec<Element> =
        all.filter(|element| groups.iter().any(|group| group.sets.contains(&element.set))).collect();
    for some in lost.chunks(AT_ONCE) {
        match nft.batch(Change::for_elements(some, Change::ensure_elements)) {
            Ok(()) => {}
            // One that cannot be put back must not keep out the others.
            Err(error) => {
                log::warn!("putting elements back one by one: {error}");
                one_by_one(nft, some);
            }
        }
    }
}

fn one_by_one(nft: &mut Nft, elements: &[Element]) {
    let mut told = BTreeSet::new();
    for element in elements {
        if let Err(error) = nft.batch(Change::ensure_elements(&[element]).into_iter().collect())
            && told.insert(element.comment.clone())
        {
            log::warn!("cannot put back {element} of attachment {}: {error}", element.comment);
        }
    }
}

/// Every object that a batch needs is made by the batch: what is not there is the kernel's part.
fn explain(group: &Group, error: NetError) -> NetError {
    if error.errno != Errno::ENOENT {
        return error;
    }
    let object = error.explanation.unwrap_or_default();
    let lacks = format!("{object}: the kernel lacks a module for the {} rules", group.name);
    NetError { errno: Errno::EOPNOTSUPP, explanation: Some(lacks) }
}
