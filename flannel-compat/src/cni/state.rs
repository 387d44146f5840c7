//! What a delegate was told when it made an attachment, for when it has to undo it: by container and interface, so that
//! a container can be in a network twice.
//!
//! ```text
//! <dataDir>/<container ID>@<ifname>    the delegate's configuration, and when it was done with it
//! <dataDir>/<container ID>             the configuration alone, by flannel's own plugin: read, and removed with its attachment
//! <dataDir>/.<network>.lock            what all ADDs of the network share, and its GC has alone
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Call, Code, ContainerId, Error, IfName, NetworkName, ValidAttachment};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft::key::AttachmentKey;
use weft::record::find_or_clear_place;
use weft_state::{Lock, boot_id, monotonic, started, state_dir};

use super::conf::FlannelConf;

/// One attachment's.
#[derive(Debug)]
pub(super) struct State {
    own: PathBuf,
    /// Where it may speak of this attachment.
    flannels: Option<PathBuf>,
}

/// What a file says.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    delegate: Map<String, Value>,
    /// Not there while the delegate is at work, nor after it was killed at that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attached: Option<Moment>,
}

/// When it was attached.
#[derive(Debug, Serialize, Deserialize)]
struct Moment {
    boot: String,
    /// On the clock of [`started`].
    since: Duration,
}

impl Known {
    /// flannel's own plugin writes the configuration alone, in which there always is a type.
    fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        let map: Map<String, Value> = serde_json::from_slice(bytes)?;
        if map.contains_key("type") {
            return Ok(Self { delegate: map, attached: None });
        }
        serde_json::from_value(Value::Object(map))
    }

    fn is_of(&self, network: &NetworkName) -> bool {
        self.delegate.get("name").is_some_and(|name| name == network.as_str())
    }

    /// Whether it was attached after this command began, so that the runtime's list cannot have it.
    fn is_younger(&self) -> bool {
        let later =
            |moment: &Moment| moment.since > started() && boot_id().is_ok_and(|boot| boot == moment.boot);
        self.attached.as_ref().is_some_and(later)
    }
}

impl State {
    /// flannel's own file is by container alone: it is another interface's where it names another network, or where this plugin or
    /// Weft has this one on file.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be told whose it is.
    pub(super) fn of(
        conf: &FlannelConf,
        call: &Call,
        container: &ContainerId,
        ifname: &IfName,
    ) -> Result<Self, Error> {
        let own = conf.data_dir.join(format!("{container}@{ifname}"));
        let flannels = conf.data_dir.join(container.as_str());
        let is_this_ones = flannels.exists()
            && !own.exists()
            && read(&flannels)?.is_none_or(|known| known.is_of(&call.network))
            && !is_wefts(call, container, ifname)?;
        Ok(Self { own, flannels: is_this_ones.then_some(flannels) })
    }

    /// What is known; `None` when nothing is, or when it is damaged: then the network's configuration has to do.
    ///
    /// # Errors
    /// [`Code::Io`] when a file is there and cannot be read.
    pub(super) fn read(&self) -> Result<Option<Map<String, Value>>, Error> {
        let flannels = self.flannels.as_deref().map_or(Ok(None), read)?;
        Ok(read(&self.own)?.or(flannels).map(|known| known.delegate))
    }

    /// Notes what the delegate is told, before it is.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub(super) fn begin(&self, delegate: &Map<String, Value>) -> Result<(), Error> {
        self.write(&Known { delegate: delegate.clone(), attached: None })
    }

    /// Notes that it has done what it was told.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub(super) fn attached(&self, delegate: &Map<String, Value>) -> Result<(), Error> {
        let moment = Moment { boot: boot_id()?.to_owned(), since: monotonic() };
        self.write(&Known { delegate: delegate.clone(), attached: Some(moment) })
    }

    fn write(&self, known: &Known) -> Result<(), Error> {
        serde_json::to_vec(known)
            .map_err(std::io::Error::from)
            .and_then(|text| weft_state::write_whole(&self.own, &text))
            .map_err(|error| failed("write", &self.own, &error))
    }

    /// Removes what [`State::read`] reads.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be removed; one that is not there is no error.
    pub(super) fn remove(&self) -> Result<(), Error> {
        remove(&self.own)?;
        self.flannels.as_deref().map_or(Ok(()), remove)
    }
}

/// What an ADD that notes something here holds. Delegates inherit it: should this process be killed alone, GC waits for them.
///
/// # Errors
/// [`Code::TryAgain`] when a GC has it until the deadline, [`Code::Io`] when there is no place for it.
pub(super) fn share_lock(conf: &FlannelConf, call: &Call) -> Result<Lock, Error> {
    let directory = &conf.data_dir;
    fs::create_dir_all(directory).map_err(|error| failed("create", directory, &error))?;
    let lock = Lock::shared(&lock_of(conf, &call.network), call.deadline)?;
    lock.share_with_children(true)?;
    Ok(lock)
}

/// What GC holds to keep ADDs out: one under way would not be in the runtime's list. `None` where there never was one.
///
/// # Errors
/// [`Code::TryAgain`] when an ADD has it until the deadline.
pub(super) fn lock_out_adds(conf: &FlannelConf, call: &Call) -> Result<Option<Lock>, Error> {
    let path = lock_of(conf, &call.network);
    path.exists().then(|| Lock::exclusive(&path, call.deadline)).transpose()
}

fn lock_of(conf: &FlannelConf, network: &NetworkName) -> PathBuf {
    conf.data_dir.join(format!(".{network}.lock"))
}

/// An attachment that is gone, and what the delegate was told.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) attachment: ValidAttachment,
    pub(super) delegate: Map<String, Value>,
    pub(super) state: State,
}

/// What is known of a network's attachments that are not in the runtime's list.
#[derive(Debug, Default)]
pub(super) struct Unlisted {
    pub(super) gone: Vec<Gone>,
    /// Attached after the runtime wrote the list.
    pub(super) kept: Vec<ValidAttachment>,
}

/// # Errors
/// [`Code::Io`] when a file cannot be read.
pub(super) fn unlisted(
    conf: &FlannelConf,
    network: &NetworkName,
    valid: &[ValidAttachment],
) -> Result<Unlisted, Error> {
    let directory = &conf.data_dir;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Unlisted::default()),
        Err(error) => return Err(failed("read", directory, &error)),
    };
    let mut unlisted = Unlisted::default();
    for entry in entries {
        let own = entry.map_err(|error| failed("read", directory, &error))?.path();
        let Some(attachment) = attachment_of(&own).filter(|one| !valid.contains(one)) else { continue };
        let Some(known) = read(&own)? else { continue };
        if !known.is_of(network) {
            continue;
        }
        if known.is_younger() {
            unlisted.kept.push(attachment);
        } else {
            let state = State { own, flannels: None };
            unlisted.gone.push(Gone { attachment, delegate: known.delegate, state });
        }
    }
    Ok(unlisted)
}

/// Whose file it is, if it is one of this plugin's.
fn attachment_of(path: &Path) -> Option<ValidAttachment> {
    let (container, ifname) = path.file_name()?.to_str()?.split_once('@')?;
    Some(ValidAttachment { container_id: container.parse().ok()?, ifname: ifname.parse().ok()? })
}

fn read(path: &Path) -> Result<Option<Known>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, &error)),
    };
    match Known::parse(&bytes) {
        Ok(known) => Ok(Some(known)),
        Err(error) => {
            log::warn!("{} is damaged and passed over: {error}", path.display());
            Ok(None)
        }
    }
}

/// Whether Weft attached it, which needs nothing of what is kept here for other delegates.
fn is_wefts(call: &Call, container: &ContainerId, ifname: &IfName) -> Result<bool, Error> {
    let key = AttachmentKey::new(&call.network, container, ifname);
    find_or_clear_place(&state_dir(call.conf.get("stateDir"))?, &call.network, key.hash())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

fn failed(step: &str, path: &Path, error: &std::io::Error) -> Error {
    let remedy = "see that dataDir is there, writable and not full";
    Error::new(Code::Io, format!("{step} {}: {error}: {remedy}", path.display()))
}
