//! Which containers of a network its rules are about, without reading the records of all of them.
//!
//! In the directory of the network's boot there is one for each name or label, with an empty file for each container: `has-…`
//! those that have it, `asks-…` those with a rule by which they may talk with whoever has it. The latter are there for all containers as long as
//! the whole is; one of the former is made of the records when it is first asked for, and kept up from then on. It is only ever
//! added to under the lock of the meeting, before the container is on record as attached. A file says where to look, no more:
//! one whose record is gone, or says something else, is no harm. Whoever leaves is taken out first, and is among the `leaving` as
//! long as it may hold what it was allowed with others: those that leave too look there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Error, NetworkName};
use weft_net::nft::ATTEMPTS;
use weft_state::{boot_dir, boot_path, short_hash};

use super::allow::{Member, holds_with_others};
use crate::key::AttachmentKey;
use crate::record::{self, Content, Found};

/// The index, in the directory of the network's boot, and one in the making.
const INDEX: &str = "allow";
const NEW: &str = "allow.new";
const HAS: &str = "has-";
const ASKS: &str = "asks-";
const LEAVING: &str = "leaving";

/// What is on file of the containers with which this one may be allowed something. This one is entered for those that come
/// later. The caller holds the lock of the meeting.
///
/// # Errors
/// [`Code::Io`].
pub(super) fn meet(state_dir: &Path, key: &AttachmentKey, own: &Member) -> Result<Vec<Content>, Error> {
    let index = ensure(state_dir, &key.network, own)?;
    let met = told("read", &index.dir, index.find(key.hash(), own))?;
    told("add to", &index.dir, index.enter(key.hash(), own))?;
    let mut contents = Vec::new();
    for hash in met {
        // A record that is only begun is of a killed ADD: any other would hold the lock. What leads nowhere is GC's, and tells
        // those that leave that something may be left in the rules.
        if let Found::Attached(content) = record::peek(state_dir, &key.network, &hash)? {
            contents.push(content);
        }
    }
    Ok(contents)
}

/// What is on file of those that may hold something by which they talk with a container. `None`: of one of them nothing whole is on
/// file, so only the kernel knows. The caller holds the lock of the meeting, and the container is in nobody's way any more.
///
/// # Errors
/// [`Code::Io`].
pub(super) fn holders(
    state_dir: &Path,
    key: &AttachmentKey,
    own: &Member,
) -> Result<Option<Vec<Content>>, Error> {
    let index = ensure(state_dir, &key.network, own)?;
    let met = told("read", &index.dir, index.find(key.hash(), own))?;
    let leaving = told("read", &index.dir, index.leaving(key.hash()))?;
    let mut contents = Vec::new();
    for hash in met.union(&leaving) {
        match record::peek(state_dir, &key.network, hash)? {
            Found::Attached(content) => contents.push(content),
            // What it held went before its record.
            Found::Nothing if leaving.contains(hash) && !record::exists(state_dir, hash) => {}
            Found::Nothing | Found::Begun(_) | Found::Damaged => return Ok(None),
        }
    }
    Ok(Some(contents))
}

/// The network's index, with all that a container asks for.
fn ensure(state_dir: &Path, network: &NetworkName, own: &Member) -> Result<Index, Error> {
    let boot = boot_dir(state_dir, network)?;
    let index = Index { dir: boot.join(INDEX) };
    let members = || members(state_dir, network);
    if !told("look for", &index.dir, is_there(&boot))? {
        let new = Index { dir: boot.join(NEW) };
        told("make", &index.dir, new.fill(&members()?).and_then(|()| fs::rename(&new.dir, &index.dir)))?;
    }
    for asked in own.asks() {
        let dir = index.has(&asked);
        if !told("look for", &dir, dir.try_exists())? {
            let new = index.dir.join(NEW);
            let all = members()?;
            let have = all.iter().filter(|(_, member)| member.terms().contains(&asked));
            told("make", &dir, fill(&new, have.map(|(hash, _)| hash.as_str()), &dir))?;
        }
    }
    Ok(index)
}

/// Has the next container make the index anew.
///
/// # Errors
/// [`Code::Io`].
pub fn discard(state_dir: &Path, network: &NetworkName) -> Result<(), Error> {
    let index = Index { dir: boot_path(state_dir, network)?.join(INDEX) };
    let discard = || {
        for dir in entries(&index.dir)? {
            for file in entries(&dir)? {
                gone(fs::remove_file(file))?;
            }
            gone(fs::remove_dir(&dir))?;
        }
        gone(fs::remove_dir(&index.dir))
    };
    told("remove", &index.dir, discard())
}

/// Whether a network has an index, in the directory of its boot.
///
/// # Errors
/// Those of stat(2).
pub fn is_there(boot: &Path) -> io::Result<bool> {
    boot.join(INDEX).try_exists()
}

/// Takes a container out. What is on file of it says where it is; without that it is looked for. While it `leaves`, those that leave
/// too find what it holds with them.
///
/// # Errors
/// Those of unlink(2).
pub fn take_out(boot: &Path, hash: &OsStr, content: Option<&Content>, leaves: bool) -> io::Result<()> {
    let index = Index { dir: boot.join(INDEX) };
    let leaving = index.dir.join(LEAVING);
    if leaves && content.is_none_or(holds_with_others) {
        put(&leaving, hash)?;
    }
    match content.map(Member::of) {
        Some(Some(member)) => index.take_out(hash, &member)?,
        Some(None) => {}
        None => index.take_out_anywhere(hash)?,
    }
    if leaves { Ok(()) } else { gone(fs::remove_file(leaving.join(hash))) }
}

/// Takes out what is of no container that is there, and of none that has a record. No ADD of the network is at work.
///
/// # Errors
/// [`Code::Io`].
pub fn sweep(state_dir: &Path, network: &NetworkName, is_there: impl Fn(&str) -> bool) -> Result<(), Error> {
    let boot = boot_path(state_dir, network)?;
    let is_of_nobody = |file: &Path| {
        let hash = file.file_name().and_then(|hash| hash.to_str());
        !hash.is_some_and(|hash| is_there(hash) || record::exists(state_dir, hash))
    };
    let sweep = |dir: &Path| {
        for dir in entries(dir)? {
            for file in entries(&dir)?.into_iter().filter(|file| is_of_nobody(file)) {
                gone(fs::remove_file(file))?;
            }
            // What is empty is made anew when it is asked for.
            unless_in_use(fs::remove_dir(&dir))?;
        }
        Ok(())
    };
    [INDEX, NEW].map(|name| boot.join(name)).iter().try_for_each(|dir| told("clean up", dir, sweep(dir)))
}

struct Index {
    dir: PathBuf,
}

impl Index {
    fn has(&self, term: &str) -> PathBuf {
        self.dir.join(format!("{HAS}{}", short_hash(&[term])))
    }

    fn asks(&self, term: &str) -> PathBuf {
        self.dir.join(format!("{ASKS}{}", short_hash(&[term])))
    }

    /// Enters what containers ask for, of a network that has no index.
    fn fill(&self, members: &[(String, Member)]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        members.iter().try_for_each(|(hash, member)| self.ask(hash, member))
    }

    /// Those that a container asks for, and those that ask for it.
    fn find(&self, hash: &str, own: &Member) -> io::Result<BTreeSet<String>> {
        let (asked, terms) = (own.asks(), own.terms());
        let dirs = asked.iter().map(|term| self.has(term)).chain(terms.iter().map(|term| self.asks(term)));
        let mut found = BTreeSet::new();
        for dir in dirs {
            found.extend(hashes(&dir)?);
        }
        found.remove(hash);
        Ok(found)
    }

    /// The others that leave.
    fn leaving(&self, hash: &str) -> io::Result<BTreeSet<String>> {
        let mut found = hashes(&self.dir.join(LEAVING))?;
        found.remove(hash);
        Ok(found)
    }

    fn enter(&self, hash: &str, own: &Member) -> io::Result<()> {
        for term in own.terms() {
            // Nobody asked for it so far.
            gone(File::create(self.has(&term).join(hash)).map(drop))?;
        }
        self.ask(hash, own)
    }

    fn ask(&self, hash: &str, own: &Member) -> io::Result<()> {
        own.asks().iter().try_for_each(|term| put(&self.asks(term), hash.as_ref()))
    }

    fn take_out(&self, hash: &OsStr, member: &Member) -> io::Result<()> {
        for term in member.terms() {
            gone(fs::remove_file(self.has(&term).join(hash)))?;
        }
        for term in member.asks() {
            gone(fs::remove_file(self.asks(&term).join(hash)))?;
            unless_in_use(fs::remove_dir(self.asks(&term)))?;
        }
        Ok(())
    }

    /// The same for one of which nothing is known.
    fn take_out_anywhere(&self, hash: &OsStr) -> io::Result<()> {
        let dirs = entries(&self.dir)?.into_iter().filter(|dir| !dir.ends_with(LEAVING));
        dirs.into_iter().try_for_each(|dir| gone(fs::remove_file(dir.join(hash))))
    }
}

/// The network's containers and their hashes.
fn members(state_dir: &Path, network: &NetworkName) -> Result<Vec<(String, Member)>, Error> {
    let all = record::contents(state_dir, network)?;
    let member = |content: &Content| Some((content.key(network)?.hash().to_owned(), Member::of(content)?));
    Ok(all.iter().filter_map(member).collect())
}

/// Makes a directory with these files, whole or not at all.
fn fill<'a>(new: &Path, files: impl Iterator<Item = &'a str>, dir: &Path) -> io::Result<()> {
    there(fs::create_dir(new))?;
    for file in files {
        File::create(new.join(file))?;
    }
    fs::rename(new, dir)
}

/// Puts an empty file into a directory, which may come and go.
fn put(dir: &Path, hash: &OsStr) -> io::Result<()> {
    // As often as it may go with a container before a file is in it.
    for _ in 0..ATTEMPTS {
        match File::create(dir.join(hash)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => there(fs::create_dir(dir))?,
            created => return created.map(drop),
        }
    }
    File::create(dir.join(hash)).map(drop)
}

fn hashes(dir: &Path) -> io::Result<BTreeSet<String>> {
    let name = |file: PathBuf| Some(file.file_name()?.to_str()?.to_owned());
    Ok(entries(dir)?.into_iter().filter_map(name).collect())
}

/// What is in a directory; nothing where there is none.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    unless(outcome, &[io::ErrorKind::NotFound])
}

fn there(outcome: io::Result<()>) -> io::Result<()> {
    unless(outcome, &[io::ErrorKind::AlreadyExists])
}

fn unless_in_use(outcome: io::Result<()>) -> io::Result<()> {
    unless(outcome, &[io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty])
}

fn unless(outcome: io::Result<()>, fine: &[io::ErrorKind]) -> io::Result<()> {
    match outcome {
        Err(error) if fine.contains(&error.kind()) => Ok(()),
        other => other,
    }
}

fn told<T>(what: &str, dir: &Path, outcome: io::Result<T>) -> Result<T, Error> {
    outcome.map_err(|error| {
        let remedy = "see that the state directory is writable and not full";
        Error::new(Code::Io, format!("{what} {}: {error}: {remedy}", dir.display()))
    })
}

#[cfg(test)]
mod tests;
