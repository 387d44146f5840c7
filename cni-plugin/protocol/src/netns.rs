//! A container's network namespace, and the host's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{FsType, fstatfs};

/// The namespace that this thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` of linux/magic.h: the file system in which the kernel keeps namespaces.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

mod ioctl {
    // NS_GET_NSTYPE of linux/nsfs.h.
    nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 0x3));
    // SIOCGSKNS of linux/sockios.h.
    nix::ioctl_none_bad!(siocgskns, 0x894c);
}

/// Opens the network namespace that this thread is in: a plugin's host. A caller that may administer it gets it from a
/// socket; /proc, which everybody may ask, makes half a dozen directories for the answer and takes ten times as long.
///
/// # Errors
/// What socket(2) says, and open(2) where /proc has to be asked.
pub fn own() -> io::Result<File> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    #[expect(unsafe_code, reason = "no crate has this ioctl")]
    // SAFETY: the descriptor is open while the call lasts, and SIOCGSKNS has no argument.
    let Ok(namespace) = (unsafe { ioctl::siocgskns(socket.as_raw_fd()) }) else {
        return File::open(OWN);
    };
    #[expect(unsafe_code, reason = "a descriptor fresh from the kernel is a number that somebody has to own")]
    // SAFETY: the kernel has just made the descriptor, so nothing else owns or closes it.
    Ok(unsafe { File::from_raw_fd(namespace) })
}

/// A container's network namespace: open since it was looked at, so whatever becomes of the path, it is this one.
#[derive(Debug, Clone)]
pub struct ContainerNetns {
    path: PathBuf,
    file: Rc<File>,
    host: Rc<File>,
}

impl ContainerNetns {
    /// Opens a namespace other than this process' own.
    ///
    /// # Errors
    /// The reason in words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let (file, host) = open(path)?;
        Ok(Self { path: path.to_owned(), file: Rc::new(file), host: Rc::new(host) })
    }

    /// As the runtime named it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn file(&self) -> Rc<File> {
        Rc::clone(&self.file)
    }

    /// The namespace of the process that opened it.
    #[must_use]
    pub fn host(&self) -> Rc<File> {
        Rc::clone(&self.host)
    }
}

fn open(path: &Path) -> Result<(File, File), String> {
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
    let host = own().map_err(|error| format!("{OWN}: {error}"))?;
    let ours = host.metadata().map_err(|error| format!("{OWN}: {error}"))?;
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Err(format!("{shown} is the host's own network namespace, not a container's"));
    }
    Ok((file, host))
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
        assert_eq!(ContainerNetns::open(&path).unwrap().path(), path);
        let check = |path| ContainerNetns::open(path).map(drop);
        assert!(check(Path::new("/proc/1/ns/../../self/ns/net")).unwrap_err().contains("host's own"));
        assert!(check(Path::new("/nowhere")).unwrap_err().contains("/nowhere"));
        assert!(check(Path::new("/proc/self/ns/mnt")).unwrap_err().contains("no network namespace"));
        assert!(check(Path::new("/proc/self/status")).unwrap_err().contains("no network namespace"));
        assert!(check(Path::new("/")).unwrap_err().contains("directory"));
        assert!(check(Path::new("/dev/null")).unwrap_err().contains("special file"));
    }

    #[test]
    fn the_own_namespace_is_that_of_the_thread() {
        let inode = |file: io::Result<File>| file.unwrap().metadata().unwrap().ino();
        let both = || (inode(own()), inode(File::open(OWN)));
        let there = std::thread::scope(|scope| {
            let elsewhere = || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                both()
            };
            scope.spawn(elsewhere).join().unwrap()
        });
        let here = both();
        assert_eq!(here.0, here.1);
        assert_eq!(there.0, there.1);
        assert_ne!(here.0, there.0);
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(ContainerNetns::open(&fifo).unwrap_err().contains("special file"));
    }
}
