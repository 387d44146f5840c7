//! 127.0.0.1 of the host, where containers have ports of it: `route_localnet` of the interface that leads to them.
//!
//! An interface is open as long as an attachment has a note in its directory, and whoever takes away the last one closes it. One
//! that was open before the first note came is somebody else's to close. Whoever changes notes holds the lock of the host's ports.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Deadline, IfName};
use weft_net::sysctl::Sysctl;

use crate::fault::Fault;
use crate::locks::{PORTS_DIR, lock_ports};

/// How long the agent waits for the lock, as it has one thread for all that it does.
const PATIENCE: Duration = Duration::from_millis(100);
/// In the directory of ports: a directory for each interface.
const NOTES: &str = "localnet";

/// Opens an interface for the attachment with this hash. The caller holds the lock.
pub fn open(state_dir: &Path, interface: &IfName, hash: &str) -> Result<(), Fault> {
    let setting = Sysctl::route_localnet(interface.as_str());
    let notes = notes(state_dir).join(interface.as_str());
    if !notes.is_dir() && setting.get()?.as_deref() == Some("1") {
        return Ok(());
    }
    fs::create_dir_all(&notes)?;
    File::create(notes.join(hash))?;
    setting.ensure("1")?;
    Ok(())
}

/// Opens an interface once more that was closed, or made anew, while attachments have notes of it; whether that was needed.
pub fn reopen(state_dir: &Path, interface: &str) -> Result<bool, Fault> {
    let (notes, setting) = (notes(state_dir).join(interface), Sysctl::route_localnet(interface));
    if !notes.is_dir() || setting.get()?.as_deref() == Some("1") {
        return Ok(false);
    }
    let _lock = lock_ports(state_dir, Deadline::after(PATIENCE))?;
    Ok(notes.is_dir() && setting.ensure("1")?)
}

/// Whether an interface is open, or ought to be.
pub fn is_open(state_dir: &Path, interface: &str) -> Result<bool, Fault> {
    let Ok(interface) = interface.parse::<IfName>() else { return Ok(false) };
    let is_noted = notes(state_dir).join(interface.as_str()).is_dir();
    Ok(is_noted || Sysctl::route_localnet(interface.as_str()).get()?.as_deref() == Some("1"))
}

/// Takes away the notes of attachments, and closes the interfaces of which none is left.
pub fn close(state_dir: &Path, hashes: &[impl AsRef<Path>], deadline: Deadline) -> Result<(), Fault> {
    let dir = notes(state_dir);
    if !dir.is_dir() {
        return Ok(());
    }
    let _lock = lock_ports(state_dir, deadline)?;
    for interface in fs::read_dir(&dir)? {
        let notes = interface?.path();
        for hash in hashes {
            match fs::remove_file(notes.join(hash)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        if fs::read_dir(&notes)?.next().is_none() {
            let name = notes.file_name().unwrap_or_default().to_string_lossy();
            Sysctl::route_localnet(&name).ensure("0")?;
            fs::remove_dir(&notes)?;
        }
    }
    Ok(())
}

/// The hashes of all that have notes.
pub fn holders(state_dir: &Path) -> io::Result<Vec<String>> {
    let interfaces = match fs::read_dir(notes(state_dir)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut holders = Vec::new();
    for interface in interfaces {
        // Its last note may go meanwhile, and the directory with it.
        let notes = match fs::read_dir(interface?.path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        for note in notes {
            holders.push(note?.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(holders)
}

fn notes(state_dir: &Path) -> PathBuf {
    state_dir.join(PORTS_DIR).join(NOTES)
}
