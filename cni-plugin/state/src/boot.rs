//! The directory of this boot.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cni_protocol::{Code, Error, NetworkName};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The variable by which a plugin tells the one that it executes what boot this is: asking the kernel again costs a hundredth of an
/// ADD. No environment outlives a boot.
pub const BOOT_ID_ENV: &str = "WEFT_BOOT_ID";

/// The kernel's random name of this boot, such as `3fdc1c41-07e8-4e7a-8a7c-4f3cf11c6fd1`. It is read
/// once: a process does not outlive it.
///
/// # Errors
/// [`Code::Io`] when the kernel's file cannot be read or holds no such name: /proc is not mounted.
pub fn boot_id() -> Result<&'static str, Error> {
    static ID: OnceLock<String> = OnceLock::new();
    match ID.get() {
        Some(id) => Ok(id),
        None => read_boot_id().map(|id| ID.get_or_init(|| id).as_str()),
    }
}

fn read_boot_id() -> Result<String, Error> {
    if let Some(told) = std::env::var(BOOT_ID_ENV).ok().filter(|id| is_boot_id(id)) {
        return Ok(told);
    }
    let text = fs::read_to_string(BOOT_ID).map_err(|e| {
        Error::new(Code::Io, format!("read the boot id from {BOOT_ID}: {e}; mount /proc and call again"))
    })?;
    let id = text.trim();
    if is_boot_id(id) {
        return Ok(id.to_owned());
    }
    Err(Error::new(
        Code::Io,
        format!("read the boot id from {BOOT_ID}: {id:?} is no boot id; mount /proc and call again"),
    ))
}

/// Whether a name has the form of a boot id; only such directories are ever removed.
fn is_boot_id(name: &str) -> bool {
    name.len() == 36
        && name.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Where the state of `network` in this boot is, or would be: `<root>/<network>/<boot id>`. Nothing
/// is created, so a command on a fresh host can look without leaving a trace.
///
/// # Errors
/// As [`boot_id`].
pub fn boot_path(root: &Path, network: &NetworkName) -> Result<PathBuf, Error> {
    Ok(root.join(network.as_str()).join(boot_id()?))
}

/// [`boot_path`], created with mode 0700 if it is not there. When it is created, the directories of
/// other boots beside it are removed: the containers they speak of ended with their boot.
///
/// # Errors
/// As [`boot_id`], and [`Code::Io`] when the directory cannot be created. A directory of another
/// boot that cannot be removed is only logged; it holds nothing that counts.
pub fn boot_dir(root: &Path, network: &NetworkName) -> Result<PathBuf, Error> {
    let dir = boot_path(root, network)?;
    if dir.is_dir() {
        return Ok(dir);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| {
        let remedy = "make its parent writable or choose another directory for the state";
        Error::new(Code::Io, format!("create the state directory {}: {e}; {remedy}", dir.display()))
    })?;
    if let Err(e) = remove_other_boots(&dir) {
        log::warn!("remove the state of earlier boots beside {}: {e}", dir.display());
    }
    Ok(dir)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the directory is Weft's own, with the name of a boot that ended"
)]
fn remove_other_boots(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let other = entry.file_name().to_str().is_some_and(is_boot_id) && entry.path() != dir;
        if !other {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => log::info!("removed the state of an earlier boot, {}", entry.path().display()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "00000000-1111-2222-3333-444444444444";

    fn network() -> NetworkName {
        "net".parse().unwrap()
    }

    #[test]
    fn the_boot_id_has_its_form() {
        assert!(is_boot_id(boot_id().unwrap()));
        for name in ["", "lock", "00000000x1111-2222-3333-444444444444", "..-..-"] {
            assert!(!is_boot_id(name), "{name}");
        }
    }

    #[test]
    fn the_path_is_not_created() {
        let root = tempfile::tempdir().unwrap();
        let path = boot_path(root.path(), &network()).unwrap();
        assert!(path.starts_with(root.path().join("net")));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_boots_go_and_everything_else_stays() {
        let root = tempfile::tempdir().unwrap();
        let beside = root.path().join("net");
        fs::create_dir_all(beside.join(OTHER).join("ipam/addr")).unwrap();
        fs::create_dir_all(beside.join("keep")).unwrap();
        fs::write(beside.join("lock"), b"").unwrap();
        let dir = boot_dir(root.path(), &network()).unwrap();
        assert!(dir.is_dir());
        assert!(!beside.join(OTHER).exists());
        assert!(beside.join("keep").is_dir() && beside.join("lock").is_file());
        assert_eq!(boot_dir(root.path(), &network()).unwrap(), dir);
    }

    #[test]
    fn a_directory_that_cannot_be_created_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("net"), b"a file where the directory should be").unwrap();
        let error = boot_dir(root.path(), &network()).unwrap_err();
        assert_eq!(error.code, Code::Io);
        assert!(error.msg.contains("net"), "{}", error.msg);
    }
}
