//! The record of an attachment: one file, which is also its lock.
//!
//! The lock is held for all of an ADD or DEL and passes to the IPAM plugin, so that a DEL after a kill
//! waits until an orphaned plugin has ended. Found unlocked and not `attached`, a record is what a killed
//! ADD left.

mod survey;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, NetworkName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_state::{Lock, boot_dir, boot_path, monotonic, read_at_once};

use crate::bridge::membership::Membership;
use crate::conf::names::Names;
use crate::conf::shaping::Shaping;
use crate::holdings::Holdings;
use crate::isolation::index;
use crate::key::AttachmentKey;
use crate::masquerade::Masquerade;
use crate::shaping::Limited;

pub use survey::{
    Attached, Locked, any_masquerade, attached, attached_of, contents, has_newer, others, up_to_date,
};

/// The directory of the records, below that of the boot.
const RECORDS: &str = "attachments";

/// What is on file of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
    /// For people: the path may name another namespace by now.
    pub netns: String,
    /// What the configuration had about the IPAM plugin: that one has the addresses, whatever the configuration has by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Map<String, Value>>,
    /// Set when all is done.
    pub attached: bool,
    /// What it has in the host's rules, once all is done.
    #[serde(default, skip_serializing_if = "Holdings::is_empty")]
    pub holdings: Holdings,
    /// What its network has masqueraded, once all is done.
    #[serde(default, skip_serializing_if = "Masquerade::is_nothing")]
    pub masquerade: Masquerade,
    /// The bridge that its host end is a port of, once all is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Membership>,
    /// How its traffic is limited, once all is done.
    #[serde(default, skip_serializing_if = "Shaping::is_none")]
    pub shaping: Shaping,
    /// The link of another plugin at which it is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<Limited>,
    /// Who the container is to people.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// Whether its DEL has begun: what others have with it may be gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_leaving: bool,
    /// When that was written: nanoseconds of the monotonic clock, of twenty digits so that the content
    /// has one length.
    since: String,
}

impl Content {
    /// What is to be on file of an attachment that begins.
    pub fn begun(key: &AttachmentKey, netns: &Path) -> Self {
        Self {
            container_id: key.container_id.to_string(),
            ifname: key.ifname.to_string(),
            netns: netns.display().to_string(),
            ipam: None,
            attached: false,
            holdings: Holdings::default(),
            masquerade: Masquerade::default(),
            membership: None,
            shaping: Shaping::default(),
            limited: None,
            names: Names::default(),
            is_leaving: false,
            since: String::new(),
        }
    }

    /// Says how far the attachment is, as of now.
    pub fn is_now(&mut self, attached: bool) {
        self.attached = attached;
        self.since = format!("{:020}", monotonic().as_nanos());
    }

    /// When it was written, on the clock of [`weft_state::started`].
    pub fn since(&self) -> Duration {
        Duration::from_nanos(self.since.parse().unwrap_or_default())
    }

    /// Whether its network is masqueraded by it, where what was written before some moment counts no more.
    pub fn is_masqueraded(&self, ended: Option<Duration>) -> bool {
        !self.masquerade.is_nothing() && ended.is_none_or(|ended| self.since() > ended)
    }

    /// The attachment that it speaks of.
    pub fn key(&self, network: &NetworkName) -> Option<AttachmentKey> {
        Some(AttachmentKey::new(network, &self.container_id.parse().ok()?, &self.ifname.parse().ok()?))
    }
}

/// An attachment's record, locked.
pub struct Record {
    lock: Lock,
    path: PathBuf,
}

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing was begun.
    Nothing,
    /// An ADD began and was killed.
    Begun(Content),
    /// The attachment is held.
    Attached(Content),
    /// Somebody else wrote or cut the file.
    Damaged,
}

impl Found {
    fn parse(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Nothing;
        }
        match serde_json::from_slice::<Content>(bytes) {
            Ok(content) if content.attached => Self::Attached(content),
            Ok(content) => Self::Begun(content),
            Err(_) => Self::Damaged,
        }
    }

    /// The attachment that it speaks of, as far as it says.
    pub fn key(&self, network: &NetworkName) -> Option<AttachmentKey> {
        self.content()?.key(network)
    }

    /// All that it says.
    pub fn content(&self) -> Option<&Content> {
        match self {
            Self::Attached(content) | Self::Begun(content) => Some(content),
            Self::Nothing | Self::Damaged => None,
        }
    }

    /// The addresses with which other containers may be allowed to talk.
    pub fn private_addresses(&self) -> Vec<IpAddr> {
        let holdings = match self {
            Self::Attached(content) => &content.holdings,
            Self::Begun(_) | Self::Nothing | Self::Damaged => return Vec::new(),
        };
        holdings.private().map(|isolation| isolation.addresses.clone()).unwrap_or_default()
    }
}

impl Record {
    /// Locks the attachment's record, made if there is none.
    ///
    /// # Errors
    /// [`Code::TryAgain`] when another call holds it until the deadline.
    pub fn lock(state_dir: &Path, key: &AttachmentKey, deadline: Deadline) -> Result<Self, Error> {
        let dir = boot_dir(state_dir, &key.network)?.join(RECORDS);
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(|error| io_error("create", &dir, &error))?;
        }
        let path = dir.join(key.hash());
        let lock = Lock::exclusive(&path, deadline).or_else(|error| match error.code {
            // What is no file cannot be opened as one. Looked at only then: mostly it is, or nothing is there.
            Code::Io if !find_or_clear(&path)? => Lock::exclusive(&path, deadline),
            _ => Err(error),
        })?;
        Ok(Self { lock, path })
    }

    /// The same where there is a record; a host without one gets none.
    pub fn lock_existing(
        state_dir: &Path,
        key: &AttachmentKey,
        deadline: Deadline,
    ) -> Result<Option<Self>, Error> {
        let path = boot_path(state_dir, &key.network)?.join(RECORDS).join(key.hash());
        if !find_or_clear(&path)? {
            return Ok(None);
        }
        Ok(Some(Self { lock: Lock::exclusive(&path, deadline)?, path }))
    }

    /// What the record says.
    pub fn read(&self) -> Result<Found, Error> {
        let bytes = self.lock.read().map_err(|error| io_error("read", &self.path, &error))?;
        Ok(Found::parse(&bytes))
    }

    /// Writes the content, in place, as the file is the lock. "false" is a byte longer than "true": the
    /// content is filled up to one length, so that a kill leaves the old record or the new one.
    /// With holdings it is longer; cut off in the middle of that, it counts as damaged, and DEL works without it.
    pub fn write(&self, content: &Content) -> Result<(), Error> {
        let written = serde_json::to_vec(content).map_err(io::Error::from).and_then(|mut bytes| {
            if content.attached {
                bytes.push(b' ');
            }
            self.lock.write(&bytes)
        });
        written.map_err(|error| io_error("write", &self.path, &error))
    }

    /// Whether processes started from now on keep the lock while they live.
    pub fn share_with_children(&self, share: bool) -> Result<(), Error> {
        self.lock.share_with_children(share)
    }

    /// Has processes that were given the lock lose it with this one.
    pub fn take_from_children(&self) {
        self.lock.take_from_children();
    }

    /// Has others know that its DEL has begun, where they may have anything with it. Else CHECK may find missing what goes with it.
    pub fn announce_leaving(&self, content: &Content) {
        if content.holdings.private().is_some()
            && let Err(error) = self.write(&Content { is_leaving: true, ..content.clone() })
        {
            log::warn!("{}", error.msg);
        }
    }

    /// Removes what leads others to it: from now on nothing is allowed with the attachment. What is left leads nowhere in the end, and
    /// GC removes it.
    pub fn hide(&self) {
        self.take_out_of_index(true);
    }

    fn take_out_of_index(&self, leaves: bool) {
        let take_out = || {
            let (Some(boot), Some(hash)) = (self.path.parent().and_then(Path::parent), self.path.file_name())
            else {
                return Ok(());
            };
            if !index::is_there(boot)? {
                return Ok(());
            }
            let found = Found::parse(&self.lock.read()?);
            index::take_out(boot, hash, found.content().filter(|content| content.attached), leaves)
        };
        let outcome: io::Result<()> = take_out();
        if let Err(error) = outcome {
            log::warn!("take {} out of the index of rules: {error}", self.path.display());
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the record.
    pub fn remove(self) -> Result<(), Error> {
        self.take_out_of_index(false);
        self.lock.remove_file()
    }
}

/// The hashes of all attachments of a network that have a record of this boot.
pub fn hashes(state_dir: &Path, network: &NetworkName) -> Result<Vec<String>, Error> {
    let dir = boot_path(state_dir, network)?.join(RECORDS);
    let entries = match fs::read_dir(&dir) {
        // What is no directory has no record in it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(|error| io_error("list", &dir, &error))?,
    };
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| io_error("list", &dir, &error))?;
    // What had to give way to a record is none.
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

/// Whether the record of a hash is there. What is no file is moved away from its place, or nobody could work there.
pub fn find_or_clear_place(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<bool, Error> {
    find_or_clear(&boot_path(state_dir, network)?.join(RECORDS).join(hash))
}

fn find_or_clear(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(false),
        Ok(found) if found.is_file() => return Ok(true),
        Ok(_) => {}
    }
    // Nobody knows whose it is; it goes with the boot's directory.
    let name = format!("no-record-{}", monotonic().as_nanos());
    let aside = path.parent().and_then(Path::parent).unwrap_or(path).join(name);
    log::warn!(
        "{} is no file, and becomes {}: it says nothing of its attachment",
        path.display(),
        aside.display()
    );
    match fs::rename(path, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("move away", path, &error)),
        _ => Ok(false),
    }
}

/// The record of a hash that [`hashes`] gave; `None` while an ADD or DEL holds it, and when it is gone by now.
pub fn try_lock(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<Option<Record>, Error> {
    let path = boot_path(state_dir, network)?.join(RECORDS).join(hash);
    Ok(Lock::try_exclusive(&path)?.map(|lock| Record { lock, path }))
}

/// Whether somebody is at work on the record of a hash, or it is gone by now.
pub fn is_held(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<bool, Error> {
    Ok(try_lock(state_dir, network, hash)?.is_none())
}

/// What the record of a hash says while somebody else holds it; one that is gone by now says nothing.
pub fn peek(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<Found, Error> {
    let path = boot_path(state_dir, network)?.join(RECORDS).join(hash);
    match read_at_once(&path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(Found::Damaged),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("read", &path, &error)),
        read => Ok(Found::parse(&read.unwrap_or_default())),
    }
}

/// Who has the record of a hash locked, for a message.
pub fn holder(state_dir: &Path, network: &NetworkName, hash: &str) -> Result<String, Error> {
    Ok(weft_state::holder(&boot_path(state_dir, network)?.join(RECORDS).join(hash)))
}

/// What is wrong with the record of an attachment that is there and in nobody's hands.
pub fn damage(state_dir: &Path, key: &AttachmentKey) -> Result<Option<String>, Error> {
    let path = boot_path(state_dir, &key.network)?.join(RECORDS).join(key.hash());
    let is_damaged = match peek(state_dir, &key.network, key.hash())? {
        Found::Damaged => true,
        // Cut off at its very beginning.
        Found::Nothing => path.exists(),
        Found::Begun(_) | Found::Attached(_) => false,
    };
    Ok(is_damaged.then(|| format!("its record {} is damaged", path.display())))
}

/// Whether an attachment of any network of the host has this hash.
pub fn exists(state_dir: &Path, hash: &str) -> bool {
    let path = |network: NetworkName| boot_path(state_dir, &network).map(|dir| dir.join(RECORDS).join(hash));
    networks(state_dir).into_iter().filter_map(|network| path(network).ok()).any(|path| path.exists())
}

/// Whether a network has had a record in this boot.
///
/// # Errors
/// As [`boot_path`].
pub fn has_place(state_dir: &Path, network: &NetworkName) -> Result<bool, Error> {
    Ok(boot_path(state_dir, network)?.join(RECORDS).is_dir())
}

/// The networks that have state on this host.
pub fn networks(state_dir: &Path) -> Vec<NetworkName> {
    all_networks(state_dir).unwrap_or_else(|error| {
        log::warn!("{}", error.msg);
        Vec::new()
    })
}

fn all_networks(state_dir: &Path) -> Result<Vec<NetworkName>, Error> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| io_error("list", state_dir, &error))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(
        Code::Io,
        format!("{what} {}: {error}: see that the state directory is writable and not full", path.display()),
    )
}
