//! Network namespaces: `ip netns exec`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;

use cni_protocol::ContainerNetns;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::sched::{CloneFlags, setns};

use crate::{Netlink, NlResult};

/// A network namespace, held open so that it cannot go away meanwhile.
#[derive(Debug, Clone)]
pub struct NetNs(Rc<File>);

impl NetNs {
    /// A container's.
    pub fn of(container: &ContainerNetns) -> Self {
        Self(container.file())
    }

    /// The namespace of the container's host.
    pub fn host_of(container: &ContainerNetns) -> Self {
        Self(container.host())
    }

    /// The namespace that this process is in.
    pub fn current() -> io::Result<Self> {
        Ok(Self(Rc::new(cni_protocol::own_netns()?)))
    }

    /// Enters the namespace for good.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
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
        self.0.as_fd()
    }
}

impl Netlink {
    /// `ip netns list-id`: the number that the socket's namespace has for another one. A new one gets the smallest that is free.
    /// `None` where the two have nothing to do with each other.
    pub fn number_of(&mut self, netns: &NetNs) -> NlResult<Option<u32>> {
        let mut query = NsidMessage::default();
        query.attributes = vec![NsidAttribute::Fd(netns.as_fd().as_raw_fd().cast_unsigned())];
        let answers = self.socket.request(RouteNetlinkMessage::GetNsId(query), 0)?;
        let attributes = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => Some(&message.attributes),
            _ => None,
        });
        Ok(attributes.flatten().find_map(|attribute| match attribute {
            NsidAttribute::Id(number) => u32::try_from(*number).ok(),
            _ => None,
        }))
    }
}

struct Inside<'a> {
    home: &'a NetNs,
}

impl<'a> Inside<'a> {
    fn enter(namespace: &NetNs, home: &'a NetNs) -> io::Result<Self> {
        setns(&namespace.0, CloneFlags::CLONE_NEWNET)?;
        Ok(Self { home })
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.home.0, CloneFlags::CLONE_NEWNET) {
            // Not a second panic while one unwinds: that would abort without the error JSON.
            assert!(std::thread::panicking(), "cannot return to the host's network namespace: {errno}");
        }
    }
}
