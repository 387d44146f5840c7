//! Whom the agent looks at, as something has happened to them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::key::hash_of_host_veth;
use crate::record;
use crate::ruleset;

/// Attachments of which something may be missing.
#[derive(Debug)]
pub enum Suspects {
    All,
    /// Of attachments, by their hashes.
    These(BTreeSet<String>),
}

impl Default for Suspects {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Suspects {
    /// Adds those that had elements with these comments.
    pub fn add_owners(&mut self, comments: &[String]) {
        for comment in comments {
            match (ruleset::owner_in(comment), &mut *self) {
                (_, Self::All) => return,
                (Some(hash), Self::These(hashes)) => drop(hashes.insert(hash.to_owned())),
                // A network's, or of several attachments.
                (None, Self::These(_)) => *self = Self::All,
            }
        }
    }

    /// Adds the one whose host end a link of this name is; whether there is one.
    pub fn add_host_end(&mut self, name: &str) -> bool {
        let hash = hash_of_host_veth(name);
        if let (Some(hash), Self::These(hashes)) = (hash, self) {
            hashes.insert(hash.to_owned());
        }
        hash.is_some()
    }

    /// Those at which somebody is at work: to be looked at when that is over, of which the kernel does not tell. All, where all are
    /// suspects: it matters to what their networks have, too.
    #[must_use]
    pub fn busy(&self, state_dir: &Path) -> Self {
        let mut busy = BTreeSet::new();
        for network in record::networks(state_dir) {
            let is_held = |hash: &str| record::is_held(state_dir, &network, hash).unwrap_or_default();
            let all = record::hashes(state_dir, &network).unwrap_or_default();
            busy.extend(all.into_iter().filter(|hash| self.has(hash) && is_held(hash)));
        }
        match self {
            Self::All if !busy.is_empty() => Self::All,
            _ => Self::These(busy),
        }
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        match (&mut *self, others) {
            (Self::These(hashes), Self::These(others)) => hashes.extend(others),
            _ => *self = Self::All,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::These(hashes) if hashes.is_empty())
    }

    /// Whether it is one of them.
    pub fn has(&self, hash: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(hashes) => hashes.contains(hash),
        }
    }
}
