//! Elements that several attachments need and none takes back. Of two that meet, as prefixes that were a network's at different times may,
//! the wider one serves both.

use weft_net::NlResult;
use weft_net::nft::{Change, Element, Nft};

/// Those of the elements that no other one covers, each once.
pub(super) fn widest(elements: impl Iterator<Item = Element>) -> Vec<Element> {
    let mut kept: Vec<Element> = Vec::new();
    for element in elements {
        if !kept.iter().any(|kept| kept.covers(&element)) {
            kept.retain(|kept| !element.covers(kept));
            kept.push(element);
        }
    }
    kept
}

/// What makes the sets cover all that is wanted where elements are in the way; `None` where there are none.
pub(super) fn make_way(nft: &mut Nft, wanted: &[Element]) -> NlResult<Option<Vec<Change>>> {
    let (mut left, mut narrower) = (Vec::new(), Vec::new());
    let mut is_in_the_way = false;
    for element in widest(wanted.iter().cloned()) {
        let mut others = nft.elements(&element.set)?;
        others.retain(|other| other.overlaps(&element) && !other.is_at(&element));
        is_in_the_way |= !others.is_empty();
        if !others.iter().any(|other| other.covers(&element)) {
            narrower.extend(others);
            left.push(element);
        }
    }
    let mut changes = Change::for_elements(&narrower, Change::remove_elements);
    changes.extend(Change::for_elements(&left, Change::ensure_elements));
    Ok(is_in_the_way.then_some(changes))
}
