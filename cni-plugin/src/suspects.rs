//! Whom the agent looks at, as something has happened to them.

use std::collections::BTreeSet;

use crate::key::{VETH_PREFIX, is_hash};
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
    /// Adds those of whom elements with these comments were.
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

    /// Adds the one of which a link of this name is the host end; whether it is any's.
    pub fn add_host_end(&mut self, name: &str) -> bool {
        let hash = name.strip_prefix(VETH_PREFIX).filter(|hash| is_hash(hash));
        if let (Some(hash), Self::These(hashes)) = (hash, self) {
            hashes.insert(hash.to_owned());
        }
        hash.is_some()
    }

    /// Whether it is one of them.
    pub fn has(&self, hash: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(hashes) => hashes.contains(hash),
        }
    }
}
