//! Whether all that an attachment needs of the ruleset is there.

use weft_net::nft::{Nft, Table};
use weft_net::{NetError, NlResult};

use super::group::is_intact;
use super::idle::may_wait;
use super::{Chain, Elements, Group};

/// Compares the kernel's state with what the attachment needs of it.
///
/// # Errors
/// The first difference, as a sentence that names the object.
pub fn check(nft: &mut Nft, elements: &Elements) -> Result<(), String> {
    let unreadable = |error: NetError| format!("nftables cannot be read: {error}");
    for group in elements.groups() {
        asleep(nft, group.table).map_err(unreadable)?.map_or(Ok(()), Err)?;
        if may_wait(nft, group, elements.all()).map_err(unreadable)? {
            continue;
        }
        if let Some(difference) = difference(nft, group).map_err(unreadable)? {
            let chain = group.at_hooks().next().filter(|_| is_intact(nft, group) == Ok(true));
            let flush =
                |chain: &Chain| format!(" (call `nft flush chain {} {}` first)", group.table, chain.name);
            return Err(difference + &chain.map(flush).unwrap_or_default());
        }
    }
    for wanted in elements.all() {
        match nft.element(wanted).map_err(unreadable)? {
            None => {
                return Err(format!(
                    "set {} of table {} lacks {}",
                    wanted.set.name, wanted.set.table, wanted.text
                ));
            }
            Some(found) if wanted.comment.is_empty() && found.covers(wanted) => {}
            Some(found)
                if found.data != wanted.data || found.key != wanted.key || found.end != wanted.end =>
            {
                return Err(format!("{wanted} is not as it was made"));
            }
            Some(found) if !wanted.comment.is_empty() && found.comment != wanted.comment => {
                return Err(format!("{wanted} belongs to \"{}\"", found.comment));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What is said of a table that no packet comes to.
///
/// # Errors
/// What the kernel says to the query.
pub fn asleep(nft: &mut Nft, table: Table) -> NlResult<Option<String>> {
    let says = || {
        format!("table {table} is dormant, so none of its rules counts (call `nft add table {table}` first)")
    };
    Ok(nft.is_dormant(table)?.then(says))
}

/// How the chains of a group differ from what Weft makes.
pub(super) fn difference(nft: &mut Nft, group: &Group) -> NlResult<Option<String>> {
    for chain in group.chains {
        let place = format!("chain {} of table {}", chain.name, group.table);
        if !nft.has_chain(group.table, chain.name)? {
            return Ok(Some(format!("{place} is missing")));
        }
        if !nft.is_placed(group.table, chain.name, chain.kind)? {
            return Ok(Some(format!("{place} has another type, hook, priority or policy")));
        }
        let wanted = (chain.rules)();
        let found = nft.rules_in(group.table, chain.name)?;
        if found.len() != wanted.len() {
            return Ok(Some(format!("{place} has {} rules, not {}", found.len(), wanted.len())));
        }
        if let Some(at) = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
            return Ok(Some(format!("rule {} of {place} differs", at + 1)));
        }
    }
    Ok(None)
}
