//! Groups whose chains are made when there is something for them to decide. A chain costs every packet of its hook, also
//! those on bridges where br_netfilter is in use, and one with `ct` has the kernel keep a record of all flows. Their sets are
//! there from the first attachment on, so whoever comes later sees who is there.

use cni_protocol::NetworkName;
use weft_net::NlResult;
use weft_net::nft::{Element, Nft, Set};

use super::group::{is_intact, present_elements};
use super::{Group, network};
use crate::isolation;

/// When a group's chains have nothing to decide.
pub struct Idle {
    pub group: &'static Group,
    /// Networks' elements in these sets alone decide nothing. An element of any other set does.
    pub sets: &'static [Set],
    /// Elements of two networks that meet in these sets do.
    pub meeting: &'static [Set; 2],
    /// They meet where so many bytes at the beginning of their keys are the same.
    pub common: usize,
}

/// Whether a group is as it ought to be for these elements, and for what others have in it.
///
/// # Errors
/// What the kernel says to the queries.
pub(super) fn is_ready<'a>(
    nft: &mut Nft,
    group: &Group,
    wanted: impl Iterator<Item = &'a Element>,
) -> NlResult<bool> {
    Ok(is_intact(nft, group)? || may_wait(nft, group, wanted)?)
}

/// Whether a group that is there can do without its chains.
///
/// # Errors
/// What the kernel says to the queries.
pub(super) fn may_wait<'a>(
    nft: &mut Nft,
    group: &Group,
    wanted: impl Iterator<Item = &'a Element>,
) -> NlResult<bool> {
    let Some(idle) = of(group) else { return Ok(false) };
    Ok(nft.has_set(&idle.meeting[0])? == Some(true) && is_idle(nft, group, wanted)?)
}

/// Whether a group can do without its chains at all.
pub(super) fn can_wait(group: &Group) -> bool {
    of(group).is_some()
}

/// Whether these elements alone give a group's chains nothing to decide.
pub(super) fn may_wait_without_a_look<'a>(
    group: &Group,
    mut wanted: impl Iterator<Item = &'a Element>,
) -> bool {
    let decides = |idle: &Idle, element: &Element| {
        group.sets.contains(&element.set) && !idle.sets.contains(&element.set)
    };
    of(group).is_some_and(|idle| !wanted.any(|element| decides(idle, element)))
}

/// Whether a group's chains have nothing to decide with these elements and those that are there.
///
/// # Errors
/// What the kernel says to the queries.
pub(super) fn is_idle<'a>(
    nft: &mut Nft,
    group: &Group,
    wanted: impl Iterator<Item = &'a Element>,
) -> NlResult<bool> {
    let Some(idle) = of(group) else { return Ok(false) };
    let wanted: Vec<&Element> = wanted.filter(|element| group.sets.contains(&element.set)).collect();
    if !may_wait_without_a_look(group, wanted.iter().copied()) {
        return Ok(false);
    }
    let present = idle.present(nft)?;
    let meeting = wanted.iter().copied().filter(|element| idle.meeting.contains(&element.set));
    Ok(!idle.do_meet(&present.iter().chain(meeting).collect::<Vec<_>>()))
}

/// Whether a network that is only closed is there already, and another container of it needs no chains.
///
/// # Errors
/// What the kernel says to the queries.
pub fn is_settled(nft: &mut Nft, group: &Group, name: &NetworkName) -> NlResult<bool> {
    let Some(idle) = of(group) else { return Ok(false) };
    let present = idle.present(nft)?;
    let is_there = present.iter().any(|element| network::is_of(element, name));
    Ok(is_there && !idle.do_meet(&present.iter().collect::<Vec<_>>()))
}

impl Idle {
    /// What all networks have in the sets in which they may meet.
    fn present(&self, nft: &mut Nft) -> NlResult<Vec<Element>> {
        let mut present = Vec::new();
        for set in self.meeting {
            present.extend(nft.elements(set)?);
        }
        Ok(present)
    }

    fn do_meet(&self, elements: &[&Element]) -> bool {
        let meet = |one: &Element, other: &Element| {
            network::of(one) != network::of(other)
                && one.key.bytes().iter().take(self.common).eq(other.key.bytes().iter().take(self.common))
        };
        elements.iter().any(|one| elements.iter().any(|other| meet(one, other)))
    }
}

/// Whether a group without its chains is as it ought to be for all that is in it.
///
/// # Errors
/// What the kernel says to the queries.
pub(super) fn is_waiting(nft: &mut Nft, group: &Group) -> NlResult<bool> {
    if !can_wait(group) {
        return Ok(false);
    }
    let present = present_elements(nft, group)?;
    may_wait(nft, group, present.iter())
}

fn of(group: &Group) -> Option<&'static Idle> {
    isolation::IDLE.iter().find(|idle| idle.group == group)
}
