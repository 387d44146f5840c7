//! An ADD's way to the host's rules, and what it has seen of them.

use cni_protocol::Deadline;
use weft_net::NlResult;
use weft_net::nft::{Element, Nft, retry};

use super::group::is_intact;
use super::idle::{can_wait, is_ready, may_wait_without_a_look};
use super::{Elements, Group, is_misfit, network};

/// The rules of the host.
pub struct Rules {
    pub nft: Nft,
    seen: Vec<(&'static Group, Seen)>,
    /// Whether what the network has in the rules was there already, as its configuration has it now.
    settled: bool,
    /// The mark of the elements that this was asked for.
    mark: Option<String>,
    /// Whether something was not there that a quick look does not miss.
    distrusted: bool,
}

/// How a group was when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Intact,
    WithoutChains,
    Altered,
}

impl Rules {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// As [`Nft::open`].
    pub fn open(deadline: Deadline) -> NlResult<Self> {
        Ok(Self {
            nft: Nft::open(deadline)?,
            seen: Vec::new(),
            settled: false,
            mark: None,
            distrusted: false,
        })
    }

    /// Looks at groups that will be needed: for when there is nothing else to do.
    ///
    /// # Errors
    /// What the kernel says to the queries.
    pub fn look_at(&mut self, groups: impl IntoIterator<Item = &'static Group>) -> NlResult<()> {
        for group in groups {
            let first = group.at_hooks().next().filter(|_| can_wait(group));
            let seen = match first {
                Some(first) if !self.nft.has_chain(group.table, first.name)? => Seen::WithoutChains,
                _ if is_intact(&mut self.nft, group)? => Seen::Intact,
                _ => Seen::Altered,
            };
            self.seen.push((group, seen));
        }
        Ok(())
    }

    /// Forgets what was seen: it is different now.
    pub fn forget(&mut self) {
        self.seen.clear();
        (self.settled, self.mark, self.distrusted) = (false, None, false);
    }

    /// Asks anew for what the network has: somebody who had the lock may have changed it.
    pub fn look_again(&mut self) {
        self.mark = None;
    }

    /// What was seen cannot be all: nothing is ready until it was looked at set by set.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Looks whether a network has these elements, which are marked, and no others. Whoever makes it so asks again, so once is
    /// enough.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn look_for(&mut self, network: &[Element]) -> NlResult<bool> {
        let mark = network.first().map(|first| first.comment.clone());
        if mark.is_none() || self.mark != mark {
            self.settled = match network::has(&mut self.nft, network) {
                Err(error) if is_misfit(&error) => {
                    self.distrust();
                    false
                }
                found => found?,
            };
            self.mark = mark;
        }
        Ok(self.settled)
    }

    /// Whether the groups that these elements need are as they ought to be, for them and for what others have there.
    ///
    /// # Errors
    /// What the kernel says to the queries.
    pub fn are_ready_for(&mut self, elements: &Elements) -> NlResult<bool> {
        if self.distrusted {
            return Ok(false);
        }
        for group in elements.groups() {
            if !self.is_ready(group, elements)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a settled network has nobody to be kept from, whoever comes later makes the chains: as long as there are
    /// none, nobody came.
    fn is_ready(&mut self, group: &'static Group, wanted: &Elements) -> NlResult<bool> {
        match self.seen.iter().find(|(seen, _)| *seen == group) {
            Some((_, Seen::Intact)) => Ok(true),
            Some((_, Seen::WithoutChains))
                if self.settled && may_wait_without_a_look(group, wanted.all()) =>
            {
                Ok(true)
            }
            _ => retry(|| is_ready(&mut self.nft, group, wanted.all())),
        }
    }
}
