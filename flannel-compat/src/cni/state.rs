//! What a delegate was told when it made an attachment, for when it has to undo it: by container and interface, so that
//! a container can be in a network twice.
//!
//! ```text
//! <dataDir>/<container ID>@<ifname>    the delegate's configuration
//! <dataDir>/<container ID>             the same, by flannel's own plugin: read, and removed with the attachment
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, ContainerId, Error, IfName, NetworkName, ValidAttachment};
use serde_json::{Map, Value};

use super::conf::FlannelConf;

/// One attachment's.
#[derive(Debug)]
pub(super) struct State {
    own: PathBuf,
    flannels: PathBuf,
}

impl State {
    pub(super) fn of(conf: &FlannelConf, container: &ContainerId, ifname: &IfName) -> Self {
        Self {
            own: conf.data_dir.join(format!("{container}@{ifname}")),
            flannels: conf.data_dir.join(container.as_str()),
        }
    }

    /// What is known; `None` when nothing is, or when it is damaged: then the network's configuration has to do.
    ///
    /// # Errors
    /// [`Code::Io`] when a file is there and cannot be read.
    pub(super) fn read(&self) -> Result<Option<Map<String, Value>>, Error> {
        Ok(read(&self.own)?.or(read(&self.flannels)?))
    }

    /// # Errors
    /// [`Code::Io`] when it cannot be written.
    pub(super) fn write(&self, delegate: &Map<String, Value>) -> Result<(), Error> {
        let text = Value::Object(delegate.clone()).to_string();
        let directory = self.own.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .and_then(|()| weft_state::write_whole(&self.own, text.as_bytes()))
            .map_err(|error| failed("write", &self.own, &error))
    }

    /// Removes what [`State::read`] reads. flannel's own file is by container alone, so beside one of this plugin's it is another
    /// interface's.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be removed; that it is not there is none.
    pub(super) fn remove(&self) -> Result<(), Error> {
        if remove(&self.own)? { Ok(()) } else { remove(&self.flannels).map(drop) }
    }
}

/// An attachment that is gone, and what the delegate was told.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) container: String,
    pub(super) ifname: String,
    pub(super) known: Map<String, Value>,
    pub(super) state: State,
}

/// The attachments of a network that are known here and not valid any more.
///
/// # Errors
/// [`Code::Io`] when a file cannot be read.
pub(super) fn gone(
    conf: &FlannelConf,
    network: &NetworkName,
    valid: &[ValidAttachment],
) -> Result<Vec<Gone>, Error> {
    let directory = &conf.data_dir;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", directory, &error)),
    };
    let mut gone = Vec::new();
    for entry in entries {
        let own = entry.map_err(|error| failed("read", directory, &error))?.path();
        let Some((container, ifname)) = own.file_name().and_then(|name| name.to_str()?.split_once('@'))
        else {
            continue;
        };
        let is_valid =
            valid.iter().any(|one| one.container_id.as_str() == container && one.ifname.as_str() == ifname);
        if let Some(known) = read(&own)?
            && known.get("name").is_some_and(|name| name == network.as_str())
            && !is_valid
        {
            let (container, ifname) = (container.to_owned(), ifname.to_owned());
            let state = State { flannels: directory.join(&container), own };
            gone.push(Gone { container, ifname, known, state });
        }
    }
    Ok(gone)
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, &error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(known) => Ok(Some(known)),
        Err(error) => {
            log::warn!("{} is damaged and passed over: {error}", path.display());
            Ok(None)
        }
    }
}

/// Whether it was there.
fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path, &error)),
    }
}

fn failed(step: &str, path: &Path, error: &std::io::Error) -> Error {
    let remedy = "see that dataDir is there, writable and not full";
    Error::new(Code::Io, format!("{step} {}: {error}: {remedy}", path.display()))
}
