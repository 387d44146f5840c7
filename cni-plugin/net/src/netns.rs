//! Network namespaces: `ip netns exec`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open so that it cannot go away meanwhile.
pub struct NetNs {
    fd: OwnedFd,
    /// Which namespace it is: the inode on nsfs. A path may name another one tomorrow.
    inode: u64,
}

impl NetNs {
    /// Opens the namespace that a path names: `/var/run/netns/NAME`, `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    /// The namespace that this process is in.
    pub fn current() -> io::Result<Self> {
        Self::of(cni_protocol::own_netns()?)
    }

    fn of(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { fd: file.into(), inode })
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Enters the namespace for good.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` inside the namespace and returns to `home`, whatever comes of the work: this process is
    /// single-threaded, and its next step must not happen in the wrong namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A return that fails ends in a panic, which rolls back what can
    /// be undone from anywhere and says so: nothing sensible can be done in a foreign namespace.
    pub fn run<T>(&self, home: &NetNs, work: impl FnOnce() -> T) -> io::Result<T> {
        let _inside = Inside::enter(self, home)?;
        Ok(work())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Inside<'a> {
    home: &'a NetNs,
}

impl<'a> Inside<'a> {
    fn enter(namespace: &NetNs, home: &'a NetNs) -> io::Result<Self> {
        setns(&namespace.fd, CloneFlags::CLONE_NEWNET)?;
        Ok(Self { home })
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.home.fd, CloneFlags::CLONE_NEWNET) {
            // Not a second panic while one unwinds: that would abort without the error JSON.
            assert!(std::thread::panicking(), "cannot return to the host's network namespace: {errno}");
        }
    }
}
