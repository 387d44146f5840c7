//! Network namespaces of the testbed.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as this value and its clones, or as long as something else holds it.
#[derive(Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// The namespace that this thread is in.
    pub fn current() -> Self {
        let file = File::open("/proc/thread-self/ns/net").expect("a thread has a network namespace");
        Self { fd: Arc::new(file.into()) }
    }

    /// A new, empty namespace, as a runtime makes it for a container: only `lo`, and that is down.
    pub fn create() -> Self {
        let home = Self::current();
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root or a user namespace");
        let created = Self::current();
        home.enter();
        created
    }

    /// Moves this thread into the namespace.
    pub(crate) fn enter(&self) {
        setns(self.fd.as_ref(), CloneFlags::CLONE_NEWNET).expect("enter a network namespace of the testbed");
    }

    /// Does something inside the namespace: sockets that are opened and processes that are started there stay there.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _home = Return(Self::current());
        self.enter();
        work()
    }

    /// A path by which other processes reach the namespace while this value lives.
    pub fn path(&self) -> PathBuf {
        Path::new("/proc")
            .join(std::process::id().to_string())
            .join("fd")
            .join(self.fd.as_raw_fd().to_string())
    }
}

/// Brings the thread back, also when the work panics.
struct Return(NetNs);

impl Drop for Return {
    fn drop(&mut self) {
        self.0.enter();
    }
}
