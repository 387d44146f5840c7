//! How an ADD begins: the locks, and what an earlier one of the attachment left.

use std::path::Path;
use std::rc::Rc;

use cni_protocol::{AddArgs, Code, Error};
use weft_state::{Lock, boot_dir};

use crate::detach;
use crate::holdings::erasure;
use crate::key::AttachmentKey;
use crate::locks;
use crate::record::{self, Content, Found, Record};
use crate::step::Journal;

/// Takes the locks and the record of an attachment. Nothing else is touched yet.
///
/// # Errors
/// [`Code::Conflict`] when it is attached already, [`Code::TryAgain`] when another call is at work on it.
pub fn open_journal(args: &Rc<AddArgs>, key: &AttachmentKey, state_dir: &Path) -> Result<Journal, Error> {
    let deadline = args.call.deadline;
    if !record::has_place(state_dir, &key.network)? {
        // Before there is a place, so that the next ADD does it where this one is killed.
        if let Err(error) = erasure::sweep_earlier_boots(state_dir, deadline) {
            log::warn!("what an earlier boot left in the ruleset cannot be removed: {error}");
        }
        boot_dir(state_dir, &key.network)?;
    }
    let host_lock = locks::share_host(state_dir, deadline)?;
    let network_lock = Lock::shared(&locks::network_lock(state_dir, &key.network), deadline)?;
    let record = Record::lock(state_dir, key, deadline)?;
    refuse_or_clean(&record, args, key, state_dir)?;
    Ok(Journal::new(args.clone(), state_dir, key.clone(), (host_lock, network_lock), record))
}

/// A record that is there already: of an attachment that is held, or of an ADD that was killed.
fn refuse_or_clean(
    record: &Record,
    args: &AddArgs,
    key: &AttachmentKey,
    state_dir: &Path,
) -> Result<(), Error> {
    let held = |why: &str| {
        Err(Error::new(Code::Conflict, format!("{key} {why}: call DEL for it before another ADD")))
    };
    match record.read()? {
        Found::Nothing => Ok(()),
        Found::Attached(Content { netns, .. }) => held(&format!("is attached already, in {netns}")),
        Found::Damaged => held(&format!("has a damaged record, {}", record.path().display())),
        Found::Begun(content) => {
            log::warn!("{key}: an ADD was killed; removing what it left");
            detach::remove(&args.call, key, state_dir, Some(&content))
        }
    }
}
