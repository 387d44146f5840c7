//! Is a path a container's network namespace?

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::statfs::{FsType, fstatfs};

/// The namespace that this process is in: the host's.
const OWN: &str = "/proc/self/ns/net";

/// `NSFS_MAGIC` of linux/magic.h: the file system in which the kernel keeps namespaces.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

mod ioctl {
    // NS_GET_NSTYPE of linux/nsfs.h.
    nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 0x3));
}

/// Checks that a path is a network namespace other than this process' own.
///
/// # Errors
/// The reason in words.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let found = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    // Opening a FIFO or a device could wait or have an effect; a namespace is a plain file.
    if !found.is_file() {
        return Err(format!("{shown} is no network namespace but a {}", kind(&found)));
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| format!("{shown}: {error}"))?;
    if !is_network_namespace(&file) {
        return Err(format!("{shown} is no network namespace but another file"));
    }
    let theirs = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
    let own = std::fs::metadata(OWN).map_err(|error| format!("{OWN}: {error}"))?;
    if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) {
        return Err(format!("{shown} is the host's own network namespace, not a container's"));
    }
    Ok(())
}

fn is_network_namespace(file: &File) -> bool {
    if fstatfs(file).map(|fs| fs.filesystem_type()) != Ok(NSFS_MAGIC) {
        return false;
    }
    #[expect(unsafe_code, reason = "the kernel tells the kind of a namespace by ioctl only")]
    // SAFETY: the descriptor is open while the call lasts, and NS_GET_NSTYPE has no argument.
    let kind = unsafe { ioctl::ns_get_nstype(file.as_raw_fd()) };
    kind == Ok(libc::CLONE_NEWNET)
}

fn kind(metadata: &std::fs::Metadata) -> &'static str {
    if metadata.is_dir() { "directory" } else { "special file" }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A new network namespace: it lives as long as the file is open.
    pub(crate) fn other_netns() -> (File, PathBuf) {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        (file, path)
    }

    #[test]
    fn only_another_network_namespace() {
        let (_file, path) = other_netns();
        check(&path).unwrap();
        assert!(check(Path::new("/proc/1/ns/../../self/ns/net")).unwrap_err().contains("host's own"));
        assert!(check(Path::new("/nowhere")).unwrap_err().contains("/nowhere"));
        assert!(check(Path::new("/proc/self/ns/mnt")).unwrap_err().contains("no network namespace"));
        assert!(check(Path::new("/proc/self/status")).unwrap_err().contains("no network namespace"));
        assert!(check(Path::new("/")).unwrap_err().contains("directory"));
        assert!(check(Path::new("/dev/null")).unwrap_err().contains("special file"));
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(check(&fifo).unwrap_err().contains("special file"));
    }
}
