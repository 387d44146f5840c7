//! Where state is: as the configuration says, else the environment, else where it is on all hosts.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Error};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use serde_json::Value;

/// Where the state of one boot is: what the key `stateDir` has, else the environment's `WEFT_STATE_DIR`, else `/run/weft`, which is on a
/// tmpfs on most hosts.
///
/// # Errors
/// [`Code::InvalidConfig`] when that is no absolute path.
pub fn state_dir(told: Option<&Value>) -> Result<PathBuf, Error> {
    dir("stateDir", told, "WEFT_STATE_DIR", "/run/weft")
}

/// Where leases are, which must survive a reboot: what the key `dataDir` has, else the environment's `WEFT_DATA_DIR`, else `/var/lib/weft`.
///
/// # Errors
/// As [`state_dir`].
pub fn data_dir(told: Option<&Value>) -> Result<PathBuf, Error> {
    dir("dataDir", told, "WEFT_DATA_DIR", "/var/lib/weft")
}

fn dir(key: &str, told: Option<&Value>, variable: &str, default: &str) -> Result<PathBuf, Error> {
    match told.filter(|told| !told.is_null()) {
        Some(Value::String(dir)) if Path::new(dir).is_absolute() => Ok(dir.into()),
        Some(other) => Err(relative(key, other)),
        None => match std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from) {
            None => Ok(default.into()),
            Some(dir) if dir.is_absolute() => Ok(dir),
            Some(dir) => Err(relative(variable, &dir.display())),
        },
    }
}

fn relative(name: &str, found: &dyn Display) -> Error {
    Error::new(Code::InvalidConfig, format!("{name} is {found}: give an absolute path"))
}

/// Whether a directory can be made and written, or is there and can be: by the nearest of its ancestors that is there. Nothing is made.
///
/// # Errors
/// That ancestor, and what access(2) says of it, or `ENOTDIR`.
pub fn can_be_made(dir: &Path) -> Result<(), (PathBuf, Errno)> {
    let there = dir.ancestors().find(|dir| dir.symlink_metadata().is_ok()).unwrap_or(dir);
    let writable = access(there, AccessFlags::W_OK | AccessFlags::X_OK);
    let writable = writable.and_then(|()| if there.is_dir() { Ok(()) } else { Err(Errno::ENOTDIR) });
    writable.map_err(|errno| (there.to_owned(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_path_is_taken() {
        assert_eq!(data_dir(Some(&"/x".into())).unwrap(), Path::new("/x"));
        for wrong in [Value::from("x"), Value::from(""), Value::from(7)] {
            let error = state_dir(Some(&wrong)).unwrap_err();
            assert_eq!(
                (error.code, error.msg),
                (Code::InvalidConfig, format!("stateDir is {wrong}: give an absolute path"))
            );
        }
    }
}
