//! Who holds a lock.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cni_protocol::{Code, Error};
use nix::sys::stat::{major, minor};

/// The error after waiting for a lock in vain.
pub(super) fn held(path: &Path, file: &File) -> Error {
    let by = file.metadata().ok().and_then(|meta| of(&meta)).unwrap_or_else(nobody);
    let remedy = "call again; if it hangs, end that process: the lock goes with it";
    Error::new(Code::TryAgain, format!("lock {}: held until the deadline by {by}; {remedy}", path.display()))
}

/// Who holds a file's lock, for a message.
#[must_use]
pub fn holder(path: &Path) -> String {
    fs::metadata(path).ok().and_then(|meta| of(&meta)).unwrap_or_else(nobody)
}

fn nobody() -> String {
    "a process that /proc/locks does not name".to_owned()
}

/// The first holder of the file's lock, as `pid 4711 (weft-ipam)`.
fn of(meta: &Metadata) -> Option<String> {
    let place = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF"; a waiter has "->" before FLOCK.
    let pid = locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let pid = (words.next() == Some("FLOCK")).then(|| words.nth(2))??;
        (words.next() == Some(place.as_str())).then_some(pid)
    })?;
    // The process that took the lock is named, also where only a process that it started still has it.
    Some(named(pid).unwrap_or_else(|| {
        let waits = |other: &str| locks.contains(&format!(" {other} {place} "));
        let heir = heir(meta, waits).unwrap_or_else(|| "a process".to_owned());
        format!("{heir}, started by pid {pid}, which has ended")
    }))
}

fn named(pid: &str) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("pid {pid} ({})", name.trim()))
}

/// A process that has the file open other than to wait for the lock.
fn heir(meta: &Metadata, waits: impl Fn(&str) -> bool) -> Option<String> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name().display().to_string());
    let has_it = |pid: &String| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut found = files.filter_map(|file| fs::metadata(file.path()).ok());
        found.any(|found| (found.dev(), found.ino()) == (meta.dev(), meta.ino()))
    };
    let mut others = pids.filter(|pid| *pid != own && pid.bytes().all(|byte| byte.is_ascii_digit()));
    others.find(|pid| has_it(pid) && !waits(pid)).and_then(|pid| named(&pid))
}
