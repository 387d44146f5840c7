//! What somebody took out of sets that are there, or altered.

use std::collections::BTreeMap;

use weft_net::NlResult;
use weft_net::nft::{Change, Element, Nft};

use super::{Elements, GROUPS, of_group, one_by_one, owner_in};

/// Puts back elements that are not in their sets, or not as they were; whether there were any.
///
/// # Errors
/// What the kernel says to the queries, and of what it does not take; what it takes is back.
pub fn put_back(nft: &mut Nft, held: &[Elements]) -> NlResult<bool> {
    let (mut altered, mut missing) = (Vec::new(), Vec::new());
    for group in GROUPS {
        let all = of_group(group, held);
        for set in group.sets {
            let mut wanted = all.iter().filter(|element| element.set == *set).peekable();
            if wanted.peek().is_none() {
                continue;
            }
            let present = nft.elements(set)?;
            let places: BTreeMap<_, &Element> =
                present.iter().map(|element| ((&element.key, &element.end), element)).collect();
            for element in wanted {
                match places.get(&(&element.key, &element.end)) {
                    Some(found) if is_altered(found, element) => altered.push((*found).clone()),
                    Some(_) => continue,
                    None if is_covered(element, &present) => continue,
                    None => {}
                }
                missing.push(element.clone());
            }
        }
    }
    if missing.is_empty() {
        return Ok(false);
    }
    let mut changes = Change::for_elements(&altered, Change::remove_elements);
    changes.extend(Change::for_elements(&missing, Change::ensure_elements));
    match nft.batch(changes) {
        // One that cannot be put back must not keep out the others.
        Err(error) if !one_by_one(nft, &missing) => Err(error),
        _ => Ok(true),
    }
}

/// Whether somebody altered an attachment's element. What another attachment has by now is that one's.
fn is_altered(found: &Element, wanted: &Element) -> bool {
    let owner = owner_in(&wanted.comment);
    let is_anothers = owner.is_some() && owner_in(&found.comment).is_some_and(|other| Some(other) != owner);
    let is_another = found.data != wanted.data || (owner.is_some() && found.comment != wanted.comment);
    is_another && !is_anothers
}

/// Whether what is no attachment's own is part of what is there, as a subnet of a network that has more.
fn is_covered(element: &Element, present: &[Element]) -> bool {
    owner_in(&element.comment).is_none() && present.iter().any(|found| found.covers(element))
}
