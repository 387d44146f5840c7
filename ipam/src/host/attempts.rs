//! When this host has asked etcd for news, and when it is to ask again.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cni_protocol::{Code, Error};
use weft_state::lease::{HostLease, Taken, asked_file, lease_files, tried_file};

use super::{Host, is_half_over};

/// What the file of the last attempt says. Without one nothing speaks against the lease on file.
#[derive(Clone, Copy)]
pub(super) struct Tried {
    /// Whether etcd has said last that the lease is wrong.
    pub(super) is_in_doubt: bool,
    /// Whether it is time for another attempt.
    pub(super) is_old: bool,
}

impl Host<'_> {
    pub(super) fn tried(&self) -> Tried {
        let file = fs::metadata(self.tried_file());
        let is_in_doubt = file.as_ref().is_ok_and(|file| file.len() > 0);
        Tried { is_in_doubt, is_old: self.is_old(file) }
    }

    /// Whether the other hosts or the lease ought to be looked at.
    pub(super) fn is_due(&self, lease: &HostLease, tried: Tried) -> bool {
        let [_, peers] = lease_files(&self.data_dir, self.network);
        tried.is_old && (tried.is_in_doubt || is_half_over(lease) || self.is_old(fs::metadata(peers)))
    }

    /// Whether STATUS ought to ask, which takes note of no answer but that the lease is wrong.
    pub(super) fn is_to_be_asked(&self, lease: &HostLease, tried: Tried) -> bool {
        (tried.is_in_doubt || self.is_due(lease, tried)) && self.is_old(fs::metadata(self.asked()))
    }

    /// Whether a file was written so long ago that it is time to ask again, or is not there. One from the future (the clock was set back)
    /// is old.
    fn is_old(&self, file: io::Result<Metadata>) -> bool {
        let written = file.and_then(|file| file.modified()).ok();
        let age = written.and_then(|then| SystemTime::now().duration_since(then).ok());
        age.is_none_or(|age| age >= self.etcd.peer_refresh)
    }

    /// A file whose time is that of the last attempt since a lease was put on file: an etcd that is away costs one ADD of many its
    /// patience. It has a content from when etcd has said that the lease is wrong until it says otherwise, and the time 0 after an attempt
    /// that came to no good end.
    fn tried_file(&self) -> PathBuf {
        tried_file(&self.data_dir, self.network)
    }

    /// The same of STATUS, in a file of its own: what STATUS asks renews no lease, and is to keep no ADD from that.
    fn asked(&self) -> PathBuf {
        asked_file(&self.data_dir, self.network)
    }

    pub(super) fn note_attempt(&self) {
        note(&self.tried_file(), |tried| tried.set_modified(SystemTime::now()));
    }

    /// Notes that STATUS asks, before it does: of a lease that comes into doubt meanwhile the next one asks, too.
    pub(super) fn note_question(&self) {
        note(&self.asked(), |asked| asked.set_modified(SystemTime::now()));
    }

    /// Notes that the lease on file is wrong. Each STATUS asks whether it still is.
    pub(super) fn doubt(&self) {
        // A byte that was never written takes no room on a disk that may be full.
        note(&self.tried_file(), |tried| tried.set_len(1).and_then(|()| tried.set_modified(UNIX_EPOCH)));
        if let Err(error) = fs::remove_file(self.asked())
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("remove {}: {error}", self.asked().display());
        }
    }

    /// Notes that the subnet is this host's, and that there is more to ask.
    pub(super) fn note_interest(&self) {
        note(&self.tried_file(), |tried| tried.set_len(0).and_then(|()| tried.set_modified(UNIX_EPOCH)));
    }

    /// Notes that it is right, or as right as it can be.
    pub(super) fn trust(&self) {
        note(&self.tried_file(), |tried| {
            tried.set_len(0).and_then(|()| tried.set_modified(SystemTime::now()))
        });
    }

    /// That another host has the subnet, or may have it, says more than that etcd cannot be asked whether it still has.
    pub(super) fn or_known(&self, error: Error, taken: Option<Taken>, code: Code) -> Error {
        if error.code != Code::TryAgain {
            return error;
        }
        match taken {
            Some(taken) => taken.error(code).detail(error.msg),
            None if self.tried().is_in_doubt => {
                let why = "etcd said last that the lease on file is not right any more: no address is given before it answers again";
                error.detail(why)
            }
            None => error,
        }
    }
}

fn note(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    if let Err(error) = file.and_then(|file| write(&file)) {
        log::warn!("write {}: {error}", path.display());
    }
}
