//! DEL's part: how what an attachment holds is taken back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use cni_protocol::Deadline;
use weft_net::nft::Nft;
use weft_net::{Netlink, NlResult};

use super::hold::forgotten;
use crate::hostport;
use crate::isolation;
use crate::key::{AttachmentKey, host_veth_of};
use crate::locks::lock_meeting;
use crate::record::{self, Content};
use crate::ruleset::{self, Elements};

/// The end of what an attachment holds.
pub struct Erasure {
    nft: Nft,
    what: What,
    state_dir: PathBuf,
}

enum What {
    Known(Box<(Content, Elements)>),
    Searched,
}

impl AsFd for Erasure {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.nft.as_fd()
    }
}

impl Erasure {
    /// Opens the socket for it, unless there is nothing to erase.
    pub fn prepare(
        key: &AttachmentKey,
        known: Option<&Content>,
        state_dir: &Path,
        deadline: Deadline,
    ) -> NlResult<Option<Self>> {
        let known = known.map(|known| (known, known.holdings.elements(key)));
        let is_nothing = |(known, elements): &(&Content, Elements)| {
            elements.own.is_empty() && known.holdings.private().is_none()
        };
        if known.as_ref().is_some_and(is_nothing) {
            return Ok(None);
        }
        let Some(mut nft) = Nft::open_if_there(deadline)? else { return Ok(None) };
        let state_dir = state_dir.to_owned();
        if let Some((known, elements)) = known {
            let what = What::Known(Box::new((known.clone(), elements)));
            return Ok(Some(Self { nft, what, state_dir }));
        }
        let hash = key.hash();
        let found = ruleset::find(&mut nft, |of| of == hash)?;
        Ok((!found.is_empty()).then_some(Self { nft, what: What::Searched, state_dir }))
    }

    /// Erases it. Whoever closes the socket last waits for RCU, so a child should have it too.
    pub fn carry_out(mut self, key: &AttachmentKey) -> NlResult<()> {
        let What::Known(known) = &self.what else {
            return sweep(&mut self.nft, |hash| hash == key.hash());
        };
        let (content, elements) = known.as_ref();
        ruleset::remove(&mut self.nft, key, elements)?;
        if let Some(isolation) = content.holdings.private() {
            forget(&mut self.nft, &self.state_dir, key, content, &isolation.addresses)?;
        }
        if let Some(ports) = &content.holdings.ports {
            forgotten(ports.forget_own_flows(&mut self.nft));
        }
        Ok(())
    }
}

/// Erases what attachments of an earlier boot have in rules that somebody saved and loaded again: the addresses are others' by now.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn sweep_earlier_boots(state_dir: &Path, deadline: Deadline) -> NlResult<()> {
    let Some(mut nft) = Nft::open_if_there(deadline)? else { return Ok(()) };
    // Mostly nobody did, and there is nothing.
    let mut is_there = false;
    for first in ruleset::GROUPS.iter().filter_map(|group| group.sets.first()) {
        is_there |= nft.has_set(first)?.is_some();
    }
    if !is_there {
        return Ok(());
    }
    let links = names_of_links(&mut Netlink::open(deadline)?)?;
    sweep(&mut nft, |hash| is_dead(state_dir, &links, hash))
}

/// The names of the host's links.
///
/// # Errors
/// What the kernel says to the query.
pub fn names_of_links(netlink: &mut Netlink) -> NlResult<BTreeSet<String>> {
    Ok(netlink.links(None)?.into_iter().map(|link| link.name).collect())
}

/// Whether neither a link nor a record is left of an attachment. An ADD has its record first, so links have to be read before the elements
/// that are asked about.
pub fn is_dead(state_dir: &Path, links: &BTreeSet<String>, hash: &str) -> bool {
    !links.contains(&host_veth_of(hash)) && !record::exists(state_dir, hash)
}

/// Erases what the attachments chosen by their hashes have, and has their flows of UDP forgotten.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn sweep(nft: &mut Nft, is_chosen: impl Fn(&str) -> bool) -> NlResult<()> {
    let erased = ruleset::sweep(nft, is_chosen)?;
    forgotten(hostport::forget_flows_of(nft, &erased));
    Ok(())
}

/// Removes what others have with its addresses. An ADD that met the container before this may still add to that: the notes that it reads
/// stay, unless this has its lock. What others have is known from their records; the sets are looked through only where that is not all.
fn forget(
    nft: &mut Nft,
    state_dir: &Path,
    key: &AttachmentKey,
    content: &Content,
    addresses: &[IpAddr],
) -> NlResult<()> {
    let notes = isolation::notes(nft, addresses)?;
    if notes.is_empty() {
        return Ok(());
    }
    let Ok(_lock) = lock_meeting(state_dir, key, nft.deadline()) else {
        return isolation::forget(nft, addresses, true);
    };
    match isolation::held_by_others(state_dir, key, content) {
        Ok(Some(held)) => match ruleset::erase_what_is_there(nft, &[held, notes].concat()) {
            Err(error) if ruleset::is_misfit(&error) => isolation::forget(nft, addresses, false),
            other => other,
        },
        Ok(None) => isolation::forget(nft, addresses, false),
        Err(error) => {
            log::warn!("what others are allowed with {key} is not on file: {}", error.msg);
            isolation::forget(nft, addresses, false)
        }
    }
}
