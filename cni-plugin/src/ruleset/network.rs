//! What networks have in the ruleset, besides their attachments: it is replaced when it was made for another
//! configuration of the network.

use std::collections::BTreeSet;

use cni_protocol::NetworkName;
use weft_net::NlResult;
use weft_net::nft::{Change, Element, Nft, retry};
use weft_state::short_hash;

use crate::isolation::GROUPS;

/// How the comments of all networks' elements begin.
const OWNER: &str = "network ";

/// Writes on a network's elements whose they are, and a mark of them all: one that bears it tells that the others are there.
pub fn mark(elements: &mut [Element], network: &NetworkName) {
    let all: Vec<&str> = elements.iter().flat_map(|element| [element.set.name, &element.text]).collect();
    let comment = format!("{}{} {network}", owner(network), short_hash(&all));
    elements.iter_mut().for_each(|element| element.set_comment(&comment));
}

/// How the comment of a network's elements begins; the network's name, which may be longer than a comment, ends it.
fn owner(network: &NetworkName) -> String {
    format!("{OWNER}{} ", short_hash(&[network.as_str()]))
}

/// What tells a network's elements from those of others.
pub(super) fn of(element: &Element) -> Option<&str> {
    element.comment.strip_prefix(OWNER)?.split(' ').next()
}

/// Whether an element is a network's.
pub fn is_of(element: &Element, network: &NetworkName) -> bool {
    element.comment.starts_with(&owner(network))
}

/// Makes sure that a network has these elements, which are marked, and no others. Returns those that it had instead;
/// `None` where nothing was to do.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn ensure(nft: &mut Nft, wanted: &[Element]) -> NlResult<Option<Vec<Element>>> {
    let Some(first) = wanted.first() else { return Ok(None) };
    let owner: String = first.comment.split_inclusive(' ').take(2).collect();
    retry(|| if has(nft, wanted)? { Ok(None) } else { replace(nft, &owner, wanted).map(Some) })
}

/// Whether a network has these elements, which are marked.
///
/// # Errors
/// What the kernel says to the query.
pub fn has(nft: &mut Nft, wanted: &[Element]) -> NlResult<bool> {
    let Some(first) = wanted.first() else { return Ok(true) };
    Ok(nft.element(first)?.is_some_and(|found| found.comment == first.comment))
}

/// Whether a network has any elements.
///
/// # Errors
/// What the kernel says to the queries.
pub fn is_there(nft: &mut Nft, network: &NetworkName) -> NlResult<bool> {
    Ok(!find(nft, &owner(network), &[])?.is_empty())
}

/// Gives a network back what it had, or nothing.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn restore(nft: &mut Nft, network: &NetworkName, before: &[Element]) -> NlResult<()> {
    retry(|| replace(nft, &owner(network), before).map(drop))
}

fn replace(nft: &mut Nft, owner: &str, wanted: &[Element]) -> NlResult<Vec<Element>> {
    let before = find(nft, owner, wanted)?;
    let mut changes = Change::for_elements(&before, Change::remove_elements);
    changes.extend(Change::for_elements(wanted, Change::create_elements));
    if !changes.is_empty() {
        nft.batch(changes)?;
    }
    Ok(before)
}

/// What tells the networks, other than this one, that have addresses in common with what it wants.
///
/// # Errors
/// What the kernel says to the queries.
pub fn owners_of_the_same(
    nft: &mut Nft,
    network: &NetworkName,
    wanted: &[Element],
) -> NlResult<BTreeSet<String>> {
    let found = find(nft, &owner(network), wanted)?;
    Ok(found.iter().filter(|element| !is_of(element, network)).filter_map(of).map(str::to_owned).collect())
}

/// Whether it is one of those.
pub fn is_any_of(network: &NetworkName, owners: &BTreeSet<String>) -> bool {
    owners.contains(&short_hash(&[network.as_str()]))
}

/// A network's elements, and those in the way of what it wants: of networks that were, with overlapping subnets.
fn find(nft: &mut Nft, owner: &str, wanted: &[Element]) -> NlResult<Vec<Element>> {
    let mut found = Vec::new();
    for set in GROUPS.iter().flat_map(|group| group.sets) {
        let is_meant = |element: &Element| {
            element.comment.starts_with(owner)
                || element.comment.starts_with(OWNER) && wanted.iter().any(|wanted| wanted.overlaps(element))
        };
        found.extend(nft.elements(set)?.into_iter().filter(is_meant));
    }
    Ok(found)
}
