//! The static part of the ruleset: groups as they ought to be, made, compared and taken back.

use std::fmt;

use nix::errno::Errno;
use weft_net::nft::{ChainKind, Change, Element, Generation, Nft, Rule, Set, Table, retry, retry_in};
use weft_net::{NetError, NlResult};

use super::check::difference;
use super::idle::{is_idle, is_waiting};
use super::{Elements, GROUPS};

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

impl Group {
    /// The chains that packets come to by themselves.
    pub(super) fn at_hooks(&self) -> impl Iterator<Item = &'static Chain> {
        self.chains.iter().filter(|chain| matches!(chain.kind, ChainKind::Base { .. }))
    }
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

/// Whether no group is damaged. A missing group was never needed as long as another one of its table is whole:
/// whoever puts back one puts back all.
///
/// # Errors
/// What the kernel says to the query.
pub fn is_whole(nft: &mut Nft) -> NlResult<bool> {
    for table in [Table::Inet, Table::Bridge] {
        let mut intact = false;
        for group in GROUPS.iter().filter(|group| group.table == table) {
            if is_undamaged(nft, group)? {
                intact = true;
            } else if !is_absent(nft, group)? {
                return Ok(false);
            }
        }
        if !intact {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a group has all its sets, and its chains where these have something to decide.
fn is_undamaged(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    Ok((is_intact(nft, group)? || is_waiting(nft, group)?) && has_all_sets(nft, group)?)
}

/// Makes anew damaged groups of which attachments need nothing: [`ensure`](super::ensure) does not look at them, and one that stays
/// damaged is never whole. Whether there were any. An ADD may be at work: sets that are as wanted keep their elements.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn renew_others(nft: &mut Nft, needed: &Elements) -> NlResult<bool> {
    let needed = needed.groups();
    let mut renewed = false;
    for group in GROUPS.into_iter().filter(|group| !needed.contains(group)) {
        renewed |= renew(nft, group).map_err(|error| explain(group, error))?;
    }
    Ok(renewed)
}

fn renew(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    let is_fine = |nft: &mut Nft| Ok(is_undamaged(nft, group)? || is_absent(nft, group)?);
    // Mostly there is nothing to make, and so no need to know for which state.
    if retry(|| is_fine(nft))? {
        return Ok(false);
    }
    retry_in(nft, |nft, now| {
        if is_fine(nft)? {
            return Ok(false);
        }
        let present = present_elements(nft, group)?;
        build(nft, group, (&[], now), present.iter()).map(|_| true)
    })
}

/// Makes anew the chains that ADD takes for intact, as it counts the rules at hooks and reads none, and has packets come to them
/// again where somebody put a table to sleep. Whether there was anything. The
/// sets keep their elements, and nothing is open meanwhile. Where another version's sets are, elements have to be put back as well,
/// which is not for here: such a group is not whole.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn mend(nft: &mut Nft) -> NlResult<bool> {
    let mut mended = false;
    for table in [Table::Inet, Table::Bridge] {
        if nft.is_dormant(table)? {
            nft.batch(vec![Change::ensure_table(table)])?;
            mended = true;
        }
    }
    for group in GROUPS {
        mended |= retry(|| match is_altered(nft, group)? {
            true => {
                // After a flush in between, table, sets or chains are missing: this fails, and it is no alteration.
                let mut changes = clear(nft, group)?;
                changes.extend(chains_of(group, group.chains));
                nft.batch(changes).map(|()| true)
            }
            false => Ok(false),
        })
        .map_err(|error| explain(group, error))?;
    }
    Ok(mended)
}

/// Whether a group has all its sets, and at hooks as many rules as it ought to, but not these rules.
fn is_altered(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    Ok(is_intact(nft, group)? && has_all_sets(nft, group)? && difference(nft, group)?.is_some())
}

fn is_absent(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    if !present_chains(nft, group)?.is_empty() {
        return Ok(false);
    }
    for set in group.sets {
        if nft.has_set(set)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those of a group's chains that are there, intact or not.
fn present_chains(nft: &mut Nft, group: &Group) -> NlResult<Vec<&'static str>> {
    let mut present = Vec::new();
    for chain in group.chains {
        if nft.has_chain(group.table, chain.name)? {
            present.push(chain.name);
        }
    }
    Ok(present)
}

/// What anybody has in a group's sets.
pub(super) fn present_elements(nft: &mut Nft, group: &Group) -> NlResult<Vec<Element>> {
    let mut present = Vec::new();
    for set in group.sets {
        present.extend(nft.elements(set)?);
    }
    Ok(present)
}

/// Also those that no rule uses.
pub(super) fn has_all_sets(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    for set in group.sets {
        if nft.has_set(set)? != Some(true) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// By the chains at hooks, from which all others are reached: whoever takes a table or its rules takes these too.
pub(super) fn is_intact(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    let names: Vec<&str> = group.at_hooks().map(|chain| chain.name).collect();
    let wanted: Vec<u32> = group.at_hooks().map(|chain| chain.uses).collect();
    Ok(nft.uses(group.table, &names)? == Some(wanted))
}

/// Whether [`super::ensure`] would make these groups, without a change to anything.
///
/// # Errors
/// As [`super::ensure`].
pub fn rehearse(nft: &mut Nft, groups: &[&Group]) -> NlResult<()> {
    for group in groups {
        let rehearsed = retry(|| match is_intact(nft, group)? {
            true => Ok(()),
            false => blueprint(nft, group, group.chains).and_then(|(changes, _)| nft.rehearse(changes)),
        });
        rehearsed.map_err(|error| explain(group, error))?;
    }
    Ok(())
}

/// Makes a group with elements, as it is needed for others, if nobody has made it since the caller looked: it would go without the
/// chains that others have made it with. Whether anything of it was there.
pub(super) fn build<'a>(
    nft: &mut Nft,
    group: &Group,
    (elements, since): (&[Element], Generation),
    needed: impl Iterator<Item = &'a Element>,
) -> NlResult<bool> {
    let chains = if is_idle(nft, group, needed)? { &[] } else { group.chains };
    let (mut changes, was_there) = blueprint(nft, group, chains)?;
    changes.extend(Change::for_elements(elements, Change::ensure_elements));
    nft.batch_in(since, changes)?;
    Ok(was_there)
}

/// What makes a group with these chains in place of what is left of it; sets that are as wanted stay, with their
/// elements. Whether anything was there.
fn blueprint(nft: &mut Nft, group: &Group, chains: &[Chain]) -> NlResult<(Vec<Change>, bool)> {
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
    changes.extend(chains_of(group, chains));
    Ok((changes, was_there))
}

/// What makes chains of a group. All are there before the first rule is, as they jump to each other.
fn chains_of(group: &Group, chains: &[Chain]) -> Vec<Change> {
    let new = chains.iter().map(|chain| Change::new_chain(group.table, chain.name, chain.kind));
    let mut changes: Vec<Change> = new.collect();
    for chain in chains {
        changes.extend((chain.rules)().iter().map(|rule| Change::append(group.table, chain.name, rule)));
    }
    changes
}

/// The changes that remove a group's chains. All are emptied first, as they jump to each other.
fn clear(nft: &mut Nft, group: &Group) -> NlResult<Vec<Change>> {
    let present = present_chains(nft, group)?;
    let flush = present.iter().map(|name| Change::flush_chain(group.table, name));
    let delete = present.iter().map(|name| Change::remove_chain(group.table, name));
    Ok(flush.chain(delete).collect())
}

/// Takes back groups that [`super::ensure`] made. The caller is alone on the host.
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

/// Every object that a batch needs is made by the batch: what is not there is the kernel's part.
pub(super) fn explain(group: &Group, error: NetError) -> NetError {
    let what = match error.errno {
        Errno::ENOENT => "a module",
        Errno::EOPNOTSUPP => "CONFIG_NF_CONNTRACK_LABELS, or another option,",
        _ => return error,
    };
    let object = error.explanation.unwrap_or_default();
    let lacks = format!("{object}: the kernel lacks {what} for the {} rules", group.name);
    NetError { errno: Errno::EOPNOTSUPP, explanation: Some(lacks) }
}
