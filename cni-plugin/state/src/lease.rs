//! What a host remembers of a network that spans hosts: its lease, and the other hosts as last seen.
//!
//! ```text
//! <dataDir>/<network>/lease.json    what this host leased
//! <dataDir>/<network>/peers.json    the hosts of the network, this one among them
//! <dataDir>/<network>/taken.json    that another host owns the leased subnet now; mostly not there
//! <dataDir>/<network>/tried         when a plugin asked the store last, and whether that said that the lease is wrong
//! <dataDir>/<network>/asked         when STATUS did last, without being told so
//! ```
//!
//! Written by whoever talks to the store, the IPAM plugin or the agent; read by everybody, so that containers come and
//! go while the store is away. Both survive a reboot. The records are kept as they stand in the store and are checked
//! whenever they are read: neither the store nor the disk is trusted.

mod lost;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cni_protocol::{Code, Error, NetworkName};
use log::Level;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Lock, read_at_once, write_durable};

/// The environment variable by which STATUS of the interface plugin tells that of `weft-ipam` the address to other hosts that no interface
/// has, where nothing connects this host with them yet: an ADD fails then unless it moves the host to another address.
pub const UNCONNECTED_ENV: &str = "WEFT_UNCONNECTED";
/// How far ahead of now a lease may have been renewed, in seconds: the clock is set back by as much now and then.
const AHEAD: u64 = 5;

/// What this host leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostLease {
    /// Where in the store the network is: `/coreos.com/network`.
    pub prefix: String,
    /// The network's configuration under which it was leased, as it stood in the store.
    pub config: String,
    /// The last part of the key of this host's record: `10.240.34.0-24`.
    pub key: String,
    /// The value of this host's record.
    pub value: String,
    /// The store's number of the lease that the addresses' keys hang on, and the record unless it is pinned; 0 in a file of
    /// an earlier version, of a pinned record, and -1 once that has ended.
    pub lease_id: i64,
    /// See [`HostLease::is_pinned`].
    #[serde(default)]
    pub pinned: bool,
    /// How long the lease lasts after it was last renewed, in seconds.
    pub ttl: u64,
    /// When it was last renewed, in seconds since 1970.
    pub renewed: u64,
    /// The addresses that packets to other hosts leave with, at most one of each family: not the record's own
    /// where the record has the address of a router in front of this host.
    #[serde(default)]
    pub local: Vec<IpAddr>,
    /// The configuration by which these were found, as text; empty in a lease of an earlier version.
    #[serde(default)]
    pub underlay: String,
    /// What this host put at its public addresses' keys, which tells it from another one with the same address; empty
    /// when it put nothing.
    #[serde(default)]
    pub holder: String,
}

/// The hosts of a network as last seen in the store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Peers {
    /// The store's revision of this state.
    pub revision: i64,
    /// Values by the last part of their keys.
    pub records: BTreeMap<String, String>,
    /// The revisions that made the keys; a record that is renewed keeps its own. Keys that the store has lost have none.
    #[serde(default)]
    pub created: BTreeMap<String, i64>,
    /// Since when the store has lacked hosts that it has lost and that are waited for, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// That another host owns the subnet in which containers of this host live: it was cut off for longer than its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The last part of the key: the subnet.
    pub key: String,
    /// The other host, by its public addresses.
    pub owner: String,
    /// When it was noticed, in seconds since 1970.
    pub since: u64,
}

impl HostLease {
    /// The lease on file; `None` when this host has none, or when the file is damaged, which costs a look into the
    /// store.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be read.
    pub fn read(data_dir: &Path, network: &NetworkName) -> Result<Option<Self>, Error> {
        read(&file(data_dir, network, "lease.json"))
    }

    /// What this host's other networks have on file, with their directories.
    ///
    /// # Errors
    /// [`Code::Io`] when the directory or a file in it cannot be read.
    pub fn others(data_dir: &Path, network: &NetworkName) -> Result<Vec<(PathBuf, Self)>, Error> {
        let entries = match std::fs::read_dir(data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failed("read", data_dir, &error))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", data_dir, &error))?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<NetworkName>().ok());
            if let Some(other) = name.filter(|name| name != network)
                // Whoever has it says so; others look often.
                && let Some(lease) = read_as(&file(data_dir, &other, "lease.json"), Level::Debug)?
            {
                found.push((entry.path(), lease));
            }
        }
        Ok(found)
    }

    /// Puts the lease on file, so that it survives a power cut. The store has just said what it is: what was said before is over.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub fn write(&self, data_dir: &Path, network: &NetworkName) -> Result<(), Error> {
        write(&file(data_dir, network, "lease.json"), self)?;
        remove(&tried_file(data_dir, network))
    }

    /// Takes the lease off the file, when it was given up.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be removed.
    pub fn forget(data_dir: &Path, network: &NetworkName) -> Result<(), Error> {
        ["lease.json", "peers.json", "taken.json", "tried", "asked"]
            .into_iter()
            .try_for_each(|name| remove(&file(data_dir, network, name)))
    }

    /// Whether somebody has pinned the subnet: the record hangs on no lease and never ends. That lease is of the addresses'
    /// keys alone.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pinned || self.lease_id == 0
    }

    /// How long the lease lasts from now on, if nobody renews it; zero once it ended, or where that is not known. By the wall clock, as
    /// it has to be known after a reboot.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        if self.is_undated() {
            return Duration::ZERO;
        }
        Duration::from_secs(self.renewed.saturating_add(self.ttl).saturating_sub(since_1970().as_secs()))
    }

    /// Whether it was renewed at a time that has not come yet: the clock was wrong then, or is now.
    #[must_use]
    pub fn is_undated(&self) -> bool {
        self.renewed > since_1970().as_secs().saturating_add(AHEAD)
    }

    /// The same as one that has ended, whatever time it had left: etcd gives this host no subnet any more.
    #[must_use]
    pub fn ended(&self) -> Self {
        // etcd gives positive ones.
        let lease_id = if self.lease_id == 0 { -1 } else { self.lease_id };
        Self { renewed: 0, ttl: self.ttl.max(1), pinned: false, lease_id, ..self.clone() }
    }

    /// Whether it was made to be one that has ended, which no lease was from its beginning.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.renewed == 0
    }

    /// Whether that time is over, so that other hosts drop this one and anybody may have its subnet by now. That of a pinned
    /// subnet never is.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.is_pinned() && self.remaining().is_zero()
    }
}

impl Taken {
    /// What helps.
    pub const REMEDY: &str = "move the containers away, then stop weftd, `weftctl leave`, start weftd";

    /// What is on file; `None` as long as this host's subnet is its own.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be read.
    pub fn read(data_dir: &Path, network: &NetworkName) -> Result<Option<Self>, Error> {
        read(&file(data_dir, network, "taken.json"))
    }

    /// Puts it on file, for STATUS.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub fn write(&self, data_dir: &Path, network: &NetworkName) -> Result<(), Error> {
        write(&file(data_dir, network, "taken.json"), self)
    }

    /// What whoever wants to attach a container is told.
    #[must_use]
    pub fn error(&self, code: Code) -> Error {
        let Self { key, owner, .. } = self;
        Error::new(
            code,
            format!(
                "subnet {key} of this host belongs to {owner} now, its containers are cut off: {}",
                Self::REMEDY
            ),
        )
    }

    /// Takes it off the file: the subnet is this host's again.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be removed.
    pub fn forget(data_dir: &Path, network: &NetworkName) -> Result<(), Error> {
        remove(&file(data_dir, network, "taken.json"))
    }
}

impl Peers {
    /// The revision that made a key. Of records that cannot all be believed, the one with the smallest is: it was there first. A record
    /// that the store has lost takes nothing from those that it has.
    #[must_use]
    pub fn made(&self, key: &str) -> i64 {
        self.created.get(key).copied().unwrap_or(i64::MAX)
    }

    /// The hosts on file; `None` when there is no such file, or when it is damaged.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be read.
    pub fn read(data_dir: &Path, network: &NetworkName) -> Result<Option<Self>, Error> {
        read(&file(data_dir, network, "peers.json"))
    }

    /// Puts the hosts on file.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub fn write(&self, data_dir: &Path, network: &NetworkName) -> Result<(), Error> {
        write(&file(data_dir, network, "peers.json"), self)
    }
}

/// Time since 1970 by the wall clock.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The file whose lock the node agent holds alone while it lives: `<stateDir>/<network>/agent.lock`.
#[must_use]
pub fn agent_lock(state_dir: &Path, network: &NetworkName) -> PathBuf {
    state_dir.join(network.as_str()).join("agent.lock")
}

/// Whether the network's agent lives: it looks after peers and the lease then, and nobody else has to.
///
/// # Errors
/// [`Code::Io`] when the lock's file cannot be opened.
pub fn agent_lives(state_dir: &Path, network: &NetworkName) -> Result<bool, Error> {
    let path = agent_lock(state_dir, network);
    Ok(path.exists() && Lock::try_shared(&path)?.is_none())
}

/// The files of the lease and of the other hosts. Both are replaced whole, so they have changed when another file is
/// there.
#[must_use]
pub fn lease_files(data_dir: &Path, network: &NetworkName) -> [PathBuf; 2] {
    ["lease.json", "peers.json"].map(|name| file(data_dir, network, name))
}

/// The file of the last attempt of a plugin to ask the store. Without one nothing speaks against the lease on file.
#[must_use]
pub fn tried_file(data_dir: &Path, network: &NetworkName) -> PathBuf {
    file(data_dir, network, "tried")
}

/// Has the next ADD ask the store, however short ago one did in vain: it cannot go on without. A file that cannot be changed is left to
/// its time.
pub fn forget_attempt(data_dir: &Path, network: &NetworkName) {
    let file = File::options().write(true).open(tried_file(data_dir, network));
    if let Err(error) = file.and_then(|file| file.set_modified(UNIX_EPOCH))
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("network {network}: note that etcd is to be asked: {error}");
    }
}

/// The file of the last question of STATUS, which keeps no ADD from asking.
#[must_use]
pub fn asked_file(data_dir: &Path, network: &NetworkName) -> PathBuf {
    file(data_dir, network, "asked")
}

fn file(data_dir: &Path, network: &NetworkName, name: &str) -> PathBuf {
    data_dir.join(network.as_str()).join(name)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    read_as(path, Level::Warn)
}

/// Tells in the log at this level when the file is damaged.
fn read_as<T: DeserializeOwned>(path: &Path, level: Level) -> Result<Option<T>, Error> {
    let bytes = match read_at_once(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed("read", path, &error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            log::log!(level, "{} is damaged and passed over: {error}", path.display());
            Ok(None)
        }
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)
        .and_then(|()| serde_json::to_vec(value).map_err(io::Error::from))
        .and_then(|bytes| write_durable(path, &bytes))
        .map_err(|error| failed("write", path, &error))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

fn failed(step: &str, path: &Path, cause: &io::Error) -> Error {
    let remedy = "see that the file system of dataDir is there, writable and not full";
    Error::new(Code::Io, format!("{step} {}: {cause}: {remedy}", path.display()))
}

#[cfg(test)]
mod tests;
