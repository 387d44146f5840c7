//! What the records of many attachments say.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use cni_protocol::{Error, NetworkName};
use weft_state::{ManyFiles, boot_path};

use super::{Content, Found, RECORDS, Record, all_networks, hashes, networks, peek, try_lock};
use crate::isolation;
use crate::key::{AttachmentKey, host_veth_of};
use crate::masquerade::{self, Masquerade};

/// What is on file of a network's containers, whoever holds the records.
pub fn contents(state_dir: &Path, network: &NetworkName) -> Result<Vec<Content>, Error> {
    let mut contents = Vec::new();
    for hash in hashes(state_dir, network)? {
        if let Found::Attached(content) = peek(state_dir, network, &hash)? {
            contents.push(content);
        }
    }
    Ok(contents)
}

/// What is on file of an attachment that is held, with what it holds now: some that were there when it came may be gone.
pub fn up_to_date(state_dir: &Path, key: &AttachmentKey) -> Result<Option<Content>, Error> {
    let Found::Attached(mut content) = peek(state_dir, &key.network, key.hash())? else { return Ok(None) };
    if isolation::holds_with_others(&content) {
        isolation::leave_out_the_gone(&mut content, &contents(state_dir, &key.network)?);
    }
    Ok(Some(content))
}

/// Whether an attachment of any network, other than one with this hash, has been made since a moment of the monotonic clock. A record that
/// cannot be read may be one.
pub fn has_newer(state_dir: &Path, than: Duration, own: &str) -> bool {
    networks(state_dir).into_iter().any(|network| {
        let is_newer = |hash: String| match peek(state_dir, &network, &hash) {
            Ok(Found::Attached(content)) => content.since() > than,
            Ok(Found::Begun(_) | Found::Nothing) => false,
            Ok(Found::Damaged) | Err(_) => true,
        };
        hashes(state_dir, &network).unwrap_or_default().into_iter().filter(|hash| hash != own).any(is_newer)
    })
}

/// What is on file of all attachments of some networks, but for one's own; `None` where it does not tell all, as somebody is at work or a record
/// cannot be read.
pub fn others(state_dir: &Path, networks: &[NetworkName], own: Option<&str>) -> Option<Vec<Content>> {
    let mut found = Vec::new();
    for network in networks {
        for hash in hashes(state_dir, network).ok()?.into_iter().filter(|hash| Some(hash.as_str()) != own) {
            match peek(state_dir, network, &hash).ok()? {
                Found::Attached(content) => found.push(content),
                Found::Damaged => return None,
                // What a killed ADD left needs nothing.
                Found::Nothing | Found::Begun(_) => drop(try_lock(state_dir, network, &hash).ok()??),
            }
        }
    }
    Some(found)
}

/// An attachment with what it holds now, and its record, locked.
pub struct Locked {
    pub key: AttachmentKey,
    pub content: Content,
    _record: Record,
}

/// Several of them.
#[derive(Default)]
pub struct Attached {
    all: Vec<Locked>,
    /// Other files are opened while these are.
    _many: Option<ManyFiles>,
}

impl Deref for Attached {
    type Target = [Locked];

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

/// The attachments of all networks of the host that are attached and in nobody's hands.
///
/// # Errors
/// As [`attached_of`].
pub fn attached(state_dir: &Path) -> Result<Attached, Error> {
    attached_of(state_dir, |_| true)
}

/// Of those, the ones whose hash is chosen.
///
/// # Errors
/// [`Code::Io`](cni_protocol::Code::Io) where nobody can tell what some of them hold, as for want of open files: their containers would be left
/// without. A record that is damaged says nothing, however often it is asked, and keeps out nobody.
pub fn attached_of(state_dir: &Path, is_chosen: impl Fn(&str) -> bool) -> Result<Attached, Error> {
    let mut found = Attached { all: Vec::new(), _many: Some(ManyFiles::allow()) };
    for network in all_networks(state_dir)? {
        let mut locked = Vec::new();
        for hash in hashes(state_dir, &network)?.into_iter().filter(|hash| is_chosen(hash)) {
            let path = boot_path(state_dir, &network)?.join(RECORDS).join(&hash);
            let record = match try_lock(state_dir, &network, &hash) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(_) if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) => {
                    warn_of_loss(&path, &hash, None);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match record.read() {
                Ok(Found::Attached(content)) if let Some(key) = content.key(&network) => {
                    locked.push(Locked { key, content, _record: record });
                }
                Ok(Found::Nothing | Found::Begun(_)) => {}
                damaged => warn_of_loss(&path, &hash, damaged.err()),
            }
        }
        let ended = masquerade::ending::ended(state_dir, &network);
        let is_needed = locked.iter().any(|one| isolation::holds_with_others(&one.content));
        let all = if is_needed { contents(state_dir, &network)? } else { Vec::new() };
        for Locked { content, .. } in &mut locked {
            isolation::leave_out_the_gone(content, &all);
            if !content.is_masqueraded(ended) {
                content.masquerade = Masquerade::default();
            }
        }
        found.all.append(&mut locked);
    }
    Ok(found)
}

/// Tells in the log that what an attachment has in the rules is not known.
fn warn_of_loss(path: &Path, hash: &str, error: Option<Error>) {
    let why = error.map_or_else(|| format!("{} is damaged", path.display()), |error| error.msg);
    log::warn!(
        "{why}: what its container had in the rules is not put back; DEL and ADD the container again: the alias of link \
         {} names it",
        host_veth_of(hash)
    );
}

/// What a network has masqueraded, as one of a few attachments has it on file: some may be from before it had anything. Where all of
/// many are, that is for the next ADD to find.
pub fn any_masquerade(state_dir: &Path, network: &NetworkName) -> Option<Masquerade> {
    const FEW: usize = 16;
    let ended = masquerade::ending::ended(state_dir, network);
    let mut hashes = hashes(state_dir, network).ok()?.into_iter().take(FEW);
    hashes.find_map(|hash| match peek(state_dir, network, &hash) {
        Ok(Found::Attached(content)) if content.is_masqueraded(ended) => Some(content.masquerade),
        _ => None,
    })
}
