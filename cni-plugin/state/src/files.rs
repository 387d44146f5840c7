//! Whole files and short names.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;
use sha2::{Digest as _, Sha256};

use crate::clock::monotonic;

/// What helps whoever could not open or lock a file.
pub(crate) fn remedy(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "too many files are open: raise the limit of who started this (LimitNOFILE) or of the host (fs.file-max)"
        }
        _ => {
            "see that its directory is there and writable, on a file system that is neither full nor read-only"
        }
    }
}

/// The content of a file. What would wait for a writer, as a FIFO that somebody put in its place, counts as empty.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read_at_once(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match file.and_then(|mut file| file.read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
        read => read.map(|_| bytes),
    }
}

/// Opens a file to write to, made if there is none (mode 0600). What is no file gives way.
///
/// # Errors
/// Those of open(2).
pub fn open_to_write(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A FIFO that nobody reads is not waited for.
    options.write(true).create(true).truncate(truncate).mode(0o600).custom_flags(libc::O_NONBLOCK);
    options.open(path).or_else(|error| match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => displace(path).and_then(|()| options.open(path)),
        _ => Err(error),
    })
}

/// Replaces what is no file with one. A directory with something in it is moved aside, and stays as long as its parent.
pub(crate) fn displace(path: &Path) -> io::Result<()> {
    let aside = path.with_file_name(format!(".no-file-{}", monotonic().as_nanos()));
    log::warn!("{} is no file, and gives way to one", path.display());
    fs::remove_file(path).or_else(|_| fs::remove_dir(path)).or_else(|_| fs::rename(path, aside))
}

/// Puts `bytes` at `path` so that a reader, at any time and after any kill, sees the old content or
/// the new, never a part. The file is readable by its owner only.
///
/// The temporary file stands beside `path` as `.<name>.<pid>.tmp`. A process killed between its two
/// steps leaves it there; it goes with its directory (see [`crate::boot_dir`]).
///
/// # Errors
/// Whatever the kernel says about creating, writing or renaming; the temporary file is then removed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, |_| Ok(()))
}

/// [`write_whole`] for a file that everybody may read (mode 0644, whatever the umask).
///
/// # Errors
/// As for [`write_whole`], and what chmod(2) says.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, |file| file.set_permissions(Permissions::from_mode(0o644)))
}

/// [`write_whole`] that also survives a power cut: the new content is on disk before it takes its name, and the name
/// before this returns.
///
/// # Errors
/// As for [`write_whole`], and what fsync(2) says.
pub fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, File::sync_all)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn replace(path: &Path, bytes: &[u8], finish: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| finish(&file)))
        .and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| {
        // The cause is what the caller must hear; the leftover is harmless.
        drop(fs::remove_file(&temporary));
    })
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Eleven characters of `[0-9a-z]` that stand for `parts`: with the prefix `weft` they fill the 15
/// bytes of an interface name, and they are the name of a directory or file.
///
/// They are taken from the SHA-256 of the parts, each preceded by its length, so that moving a
/// character from one part to the next gives another name. About 57 bits: among 100,000 attachments
/// of one host the chance of two equal names is below one in ten million.
#[must_use]
pub fn short_hash(parts: &[&str]) -> String {
    let mut number = hash(parts);
    let digit = |_| {
        let digit = DIGITS[(number % 36) as usize];
        number /= 36;
        char::from(digit)
    };
    (0..11).map(digit).collect()
}

/// The first 128 bits of the SHA-256 of some parts, each preceded by its length.
#[must_use]
pub fn hash(parts: &[&str]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).fold(0_u128, |n, b| n << 8 | u128::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_files_replace_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_whole(&path, b"one").unwrap();
        write_durable(&path, b"two, longer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two, longer");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_public_files_are_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write_public(&path, b"one").unwrap();
        assert_eq!(mode(), 0o644);
        write_whole(&path, b"two").unwrap();
        assert_eq!(mode(), 0o600);
        write_public(&path, b"three").unwrap();
        assert_eq!((mode(), fs::read(&path).unwrap().as_slice()), (0o644, &b"three"[..]));
        write_durable(&path, b"four").unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        // A directory that is not empty cannot be replaced by a file.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"").unwrap();
        assert!(write_whole(&path, b"x").is_err());
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_durable(Path::new("/"), b"x").is_err());
    }

    #[test]
    fn short_hashes_are_stable_and_mind_the_borders_of_parts() {
        let hash = short_hash(&["net", "container", "eth0"]);
        assert_eq!(hash.len(), 11);
        assert!(hash.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
        assert_eq!(hash, short_hash(&["net", "container", "eth0"]));
        assert_ne!(hash, short_hash(&["net", "containere", "th0"]));
        assert_ne!(short_hash(&["ab"]), short_hash(&["a", "b"]));
        assert_ne!(short_hash(&[]), short_hash(&[""]));
    }

    #[test]
    fn short_hash_never_changes_between_versions() {
        // DEL finds links and files by this name, also those of an older version of Weft.
        assert_eq!(short_hash(&["weft", "c1", "eth0"]), "tcjis0dgy5f");
    }
}
