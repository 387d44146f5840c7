//! Reservations on disk, made so that a process may be killed between any two instructions.
//!
//! ```text
//! <dataDir>/<network>/<boot id>/ipam/
//!     lock                 held by whoever changes or reads anything below
//!     addr/<ip>            one file per address held: who holds it, as JSON
//!     owner/<hash>/<ip>    the same files again (hard links), by container and interface
//!     pending/<hash>/<ip>  the same for an ADD that is under way, or was killed
//!     last.<set>           the address last given from a range set
//!     full/                which blocks of addresses are all held, see [`crate::full`]
//!     name/ kept/          addresses that stay with names, see [`crate::sticky`]
//! ```
//!
//! An ADD works in `pending/<hash>`: it writes each record there, links it to `addr/<ip>` (which
//! exactly one can do) and at the end renames the directory into `owner/`, which is the commit.
//! Because all of this happens under the lock, whoever finds something in `pending/` knows that its
//! process is dead and that nobody was ever told the address. DEL removes each address before its
//! link by owner: killed between the two, the next DEL finds the rest.
//!
//! The content of a record serves messages, the order of GC and ADD, and DEL where links are lost; names
//! and links say who owns an address. A record that is empty or garbage therefore loses nothing.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Deadline, Error, NetworkName};
use serde::Serialize;
use weft_state::{Lock, boot_dir, boot_path, open_to_write, read_at_once};

use crate::record::{Owner, Record, repair_record};

/// The reservations of one network, locked for as long as the value lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Lock,
}

impl Store {
    /// The store of `network` under `root`, created if it is not there.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be created, [`Code::TryAgain`] when it is locked until `deadline`.
    pub fn create(root: &Path, network: &NetworkName, deadline: Deadline) -> Result<Self, Error> {
        let dir = store_path(root, network)?;
        if !is_whole(&dir) {
            boot_dir(root, network)?;
            make_parts(&dir)?;
        }
        let _lock = Lock::exclusive(&dir.join("lock"), deadline)?;
        Ok(Self { dir, _lock })
    }

    /// The store of `network` under `root`, or `None` if nothing was ever reserved in it. Creates
    /// nothing, so that a command on a fresh host leaves no trace.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn open(root: &Path, network: &NetworkName, deadline: Deadline) -> Result<Option<Self>, Error> {
        let dir = store_path(root, network)?;
        if !is_whole(&dir) {
            if !dir.is_dir() {
                return Ok(None);
            }
            make_parts(&dir)?;
        }
        let _lock = Lock::exclusive(&dir.join("lock"), deadline)?;
        Ok(Some(Self { dir, _lock }))
    }

    /// The directory of the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn part(&self, part: &str, name: &str) -> PathBuf {
        let mut path = self.dir.join(part);
        path.push(name);
        path
    }

    pub(crate) fn address_file(&self, ip: IpAddr) -> PathBuf {
        self.part("addr", &ip.to_string())
    }

    /// The addresses `owner` holds; none if it has no finished reservation.
    ///
    /// # Errors
    /// [`Code::Io`] when its directory cannot be read.
    pub fn held_by(&self, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
        addresses_in(&self.part("owner", owner.hash()))
    }

    /// All addresses held, finished or not: one pass over the directory.
    ///
    /// # Errors
    /// [`Code::Io`] when the directory cannot be read.
    pub fn used(&self) -> Result<HashSet<IpAddr>, Error> {
        Ok(addresses_in(&self.dir.join("addr"))?.into_iter().collect())
    }

    /// Who holds `ip`, in words for a message.
    #[must_use]
    pub fn holder(&self, ip: IpAddr) -> String {
        let path = self.address_file(ip);
        match Record::read(&path) {
            Some(record) => record.owner().to_string(),
            None => format!("an attachment whose record {} is damaged (GC frees it)", path.display()),
        }
    }

    /// The address last given from the range set with this index; `None` if there is none or the
    /// file is damaged, which only means that the search begins at the beginning.
    #[must_use]
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        read_text(&self.dir.join(format!("last.{set}"))).trim().parse().ok()
    }

    /// Remembers the address last given.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be written.
    pub fn set_last(&self, set: usize, ip: IpAddr) -> Result<(), Error> {
        let path = self.dir.join(format!("last.{set}"));
        // Always of one length and in one write: there is never a part of an address, which would
        // be another address.
        let text = format!("{:<45}\n", ip.to_string());
        open_to_write(&path, false)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .map_err(|e| failed("write", &path, &e))
    }

    /// Frees everything that `owner` holds, finished or not, and what of `hints` has its record but
    /// no link by owner any more; where it lacks links, whatever has its record. Returns what could not be freed.
    pub fn release(&self, owner: &Owner, hints: &[IpAddr]) -> Vec<String> {
        let [pending, finished] = ["pending", "owner"].map(|part| self.part(part, owner.hash()));
        let has_links = |dir| addresses_in(dir).is_ok_and(|held| !held.is_empty());
        let had_links = has_links(&pending) || has_links(&finished);
        let mut left = self.sweep(&pending);
        let is_whole = self.keep(&finished);
        left.extend(self.sweep(&finished));
        // An owner without any link may have lost all, and be known by records alone; mostly this is a second call.
        let unlinked = if had_links && is_whole { Vec::new() } else { self.unlinked(&mut left) };
        for name in hints.iter().map(ToString::to_string).chain(unlinked) {
            let path = self.part("addr", &name);
            if Record::read(&path).is_some_and(|r| r.owner() == *owner) {
                log::warn!("{owner}: {name} had lost its link by owner, freed by its record");
                note(&mut left, "remove", &path, self.remove_address(&name));
            }
        }
        left
    }

    /// The names of addresses without a link by owner.
    fn unlinked(&self, left: &mut Vec<String>) -> Vec<String> {
        let dir = self.dir.join("addr");
        let mut names = names_in(&dir).unwrap_or_else(|e| {
            left.push(trouble("read", &dir, &e));
            None
        });
        let is_alone = |name: &String| fs::symlink_metadata(dir.join(name)).is_ok_and(|m| m.nlink() == 1);
        names.as_mut().into_iter().for_each(|names| names.retain(is_alone));
        names.unwrap_or_default()
    }

    /// Frees a finished reservation; its addresses are kept for the name that has them. Returns what could not be freed.
    pub(crate) fn free(&self, dir: &Path) -> Vec<String> {
        self.keep(dir);
        self.sweep(dir)
    }

    /// Removes a directory by owner with the addresses its links stand for. Returns what stayed.
    pub(crate) fn sweep(&self, dir: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let names = match names_in(dir) {
            Ok(names) => names,
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                note(&mut left, "remove", dir, remove_file(dir));
                return left;
            }
            Err(e) => return vec![trouble("read", dir, &e)],
        };
        let Some(names) = names else { return left };
        let hash = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        for name in names {
            let (link, address) = (dir.join(&name), self.part("addr", &name));
            if stands_for(&link, &address, hash) {
                note(&mut left, "remove", &address, self.remove_address(&name));
            } else if fs::symlink_metadata(&address).is_ok() {
                log::warn!("{}: {name} is held by another, left alone", dir.display());
            }
            note(&mut left, "remove", &link, remove_file(&link));
        }
        note(&mut left, "remove", dir, ignore_missing(fs::remove_dir(dir)));
        left
    }

    /// Frees what killed ADDs left unfinished, except for one owner: nobody was told these addresses.
    /// Called when a pool looks exhausted or an address asked for is held.
    ///
    /// # Errors
    /// [`Code::Io`] when the store cannot be read.
    pub fn reclaim_unfinished(&self, except: Option<&Owner>) -> Result<(), Error> {
        let pending = self.dir.join("pending");
        let names = names_in(&pending).map_err(|e| failed("read", &pending, &e))?;
        for name in names.unwrap_or_default() {
            if except.is_some_and(|o| o.hash() == name) {
                continue;
            }
            log::info!("freeing the unfinished reservation {name}");
            for left in self.sweep(&pending.join(name)) {
                log::warn!("{left}");
            }
        }
        Ok(())
    }

    /// Whether `owner` holds `ip` by both names. A record that is damaged is written anew on the
    /// way: here its owner is known.
    ///
    /// # Errors
    /// In words, what was found instead.
    pub fn verify(&self, owner: &Owner, ip: IpAddr) -> Result<(), String> {
        let link = self.part("owner", owner.hash()).join(ip.to_string());
        let address = self.address_file(ip);
        if fs::symlink_metadata(&link).is_err() {
            let holder = fs::symlink_metadata(&address).map(|_| self.holder(ip));
            return Err(match holder {
                Ok(holder) => format!("{ip} is held by {holder}"),
                Err(_) => format!("{ip} is not reserved"),
            });
        }
        if fs::symlink_metadata(&address).is_err() {
            return Err(format!("{ip} is reserved, but {} is missing", address.display()));
        }
        if !stands_for(&link, &address, owner.hash()) {
            return Err(format!("{ip} is held by {}", self.holder(ip)));
        }
        repair_record(owner, &address);
        Ok(())
    }

    /// Whether the store can be written, by writing.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot.
    pub fn probe(&self) -> Result<(), Error> {
        let path = self.dir.join("probe");
        fs::write(&path, b"probe")
            .and_then(|()| fs::remove_file(&path))
            .map_err(|e| failed("write", &path, &e))
    }
}

/// The addresses held in `network` at a moment, read without waiting for the lock: for statistics.
///
/// # Errors
/// [`Code::Io`] when the directory cannot be read.
pub fn glance(root: &Path, network: &NetworkName) -> Result<Vec<IpAddr>, Error> {
    addresses_in(&store_path(root, network)?.join("addr"))
}

/// An address that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    pub address: IpAddr,
    /// Empty when the record is damaged, as is the interface's name.
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
    /// How long it has been held, in seconds.
    pub age: u64,
}

/// The addresses held in `network` at a moment with their holders, in order: for people.
///
/// # Errors
/// [`Code::Io`] when the directory cannot be read.
pub fn list(root: &Path, network: &NetworkName) -> Result<Vec<Held>, Error> {
    let mut addresses = glance(root, network)?;
    addresses.sort();
    let directory = store_path(root, network)?.join("addr");
    let held = |address: IpAddr| match Record::read(&directory.join(address.to_string())) {
        Some(record) => record.held(address),
        None => Held { address, container_id: String::new(), ifname: String::new(), age: 0 },
    };
    Ok(addresses.into_iter().map(held).collect())
}

fn store_path(root: &Path, network: &NetworkName) -> Result<PathBuf, Error> {
    Ok(boot_path(root, network)?.join("ipam"))
}

/// `owner` is made last: where it is, the others are, unless somebody removed one.
fn is_whole(dir: &Path) -> bool {
    dir.join("owner").is_dir()
}

pub(crate) fn make_parts(dir: &Path) -> Result<(), Error> {
    ["", "addr", "pending", "owner"].iter().try_for_each(|part| make_dir(&dir.join(part)))
}

/// The text of a file; none where there is no such file.
pub(crate) fn read_text(path: &Path) -> String {
    String::from_utf8(read_at_once(path).unwrap_or_default()).unwrap_or_default()
}

pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    match private_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed("create", path, &e)),
        _ => Ok(()),
    }
}

/// The names in a directory; `None` if there is no such directory.
pub(crate) fn names_in(dir: &Path) -> io::Result<Option<Vec<String>>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map(Some)
}

pub(crate) fn addresses_in(dir: &Path) -> Result<Vec<IpAddr>, Error> {
    match names_in(dir) {
        Ok(names) => Ok(names.unwrap_or_default().iter().filter_map(|n| n.parse().ok()).collect()),
        // Garbage in place of a directory by owner: GC and DEL remove it, it holds nothing.
        Err(e) if e.kind() == ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(e) => Err(failed("read", dir, &e)),
    }
}

/// Whether a link by owner and an address file belong together: they are one file, or, where a
/// backup or a copy has torn the link, the record names the same owner.
fn stands_for(link: &Path, address: &Path, hash: &str) -> bool {
    same_file(link, address) || Record::read(address).is_some_and(|r| r.owner().hash() == hash)
}

fn same_file(a: &Path, b: &Path) -> bool {
    let place = |path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).ok();
    place(a).is_some_and(|p| place(b) == Some(p))
}

/// Removes a file, or an empty directory that is in its place.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    ignore_missing(match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => fs::remove_dir(path),
        other => other,
    })
}

pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn trouble(step: &str, path: &Path, cause: &io::Error) -> String {
    format!("{step} {}: {cause}", path.display())
}

pub(crate) fn note(left: &mut Vec<String>, step: &str, path: &Path, result: io::Result<()>) {
    if let Err(e) = result {
        left.push(trouble(step, path, &e));
    }
}

pub(crate) fn failed(step: &str, path: &Path, cause: &io::Error) -> Error {
    let remedy = "see that the file system of dataDir is there, writable and not full, and call again";
    Error::new(Code::Io, format!("{}; {remedy}", trouble(step, path, cause)))
}

#[cfg(test)]
mod tests;
