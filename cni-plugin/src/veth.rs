//! Removal of a veth pair without waiting for what the kernel does after it is gone.
//!
//! `RTM_DELLINK` returns after ~15 ms, nearly all of it an RCU barrier that nobody but the kernel cares
//! for: the pair is gone from every table, in both namespaces, after ~0.5 ms. So a child process makes the
//! call, and this one waits for the link to be gone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use cni_protocol::{ContainerNetns, Deadline, move_away};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use weft_net::{Link, NetError, Netlink, NlResult, Socket};

use crate::child::{self, Child, Forked};
use crate::fault::failed;
use crate::holdings::company::{Company, Rest};
use crate::key::{AttachmentKey, VethEnd};
use crate::pod::Pod;

/// `RTNLGRP_LINK` of linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
/// How long a notification may be missing before the link is looked up: at many removals at once the
/// kernel drops notifications.
const RECHECK: Duration = Duration::from_millis(2);

/// A removal that has begun. With [`Company`], the child keeps the company's socket until this is dropped and the company has ended.
pub struct Removal {
    netlink: Netlink,
    notifications: Socket,
    links: Vec<Link>,
    report: OwnedFd,
    deadline: Deadline,
    _company: Option<Company>,
}

impl Removal {
    /// Begins to delete the links and their peers. `renamed` looks for the first where there is none of its name. `None`: there is no
    /// such link, and nobody to keep a socket open for.
    pub fn begin(
        names: &[String],
        renamed: impl FnOnce(&mut Netlink) -> Option<Link>,
        company: Option<Company>,
        deadline: Deadline,
    ) -> NlResult<Option<Self>> {
        let mut netlink = Netlink::open(deadline)?;
        let mut links = Vec::new();
        for name in names {
            links.extend(netlink.link(name)?);
        }
        if links.first().map(|link| &link.name) != names.first() {
            links.extend(renamed(&mut netlink));
        }
        if links.is_empty() && company.is_none() {
            return Ok(None);
        }
        let mut notifications = Socket::open(NETLINK_ROUTE, deadline)?;
        notifications.subscribe(&[RTNLGRP_LINK])?;
        let (report, from_child) = pipe2(OFlag::O_CLOEXEC)?;
        match child::fork()? {
            // To delete while the IPAM plugin starts.
            Forked::Parent { child } => move_away(child),
            Forked::Child(child) => {
                drop(report);
                delete_and_exit(child, &links, from_child, company, deadline);
            }
        }
        Ok(Some(Self { netlink, notifications, links, report, deadline, _company: company }))
    }

    /// Waits until the links are gone from their namespace, and with them their peers.
    pub fn wait(&mut self) -> NlResult<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        loop {
            if self.deadline.expired() {
                return Err(Errno::ETIMEDOUT.into());
            }
            let (notified, reported) = self.poll()?;
            if reported {
                return self.finish();
            }
            if notified {
                self.notifications.discard_events()?;
            }
            if self.is_gone()? {
                return Ok(());
            }
        }
    }

    fn poll(&self) -> NlResult<(bool, bool)> {
        let recheck = PollTimeout::try_from(RECHECK).unwrap_or(PollTimeout::ZERO);
        let mut fds = [
            PollFd::new(self.notifications.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.report.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, recheck) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok((false, false)),
            Err(errno) => return Err(errno.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Ok((ready(&fds[0]), ready(&fds[1])))
    }

    /// The child has ended: with its verdict, or killed without one.
    fn finish(&mut self) -> NlResult<()> {
        let mut verdict = [0; 4];
        let told = File::from(self.report.try_clone()?).read_exact(&mut verdict).is_ok();
        match i32::from_ne_bytes(verdict) {
            0 if told => Ok(()),
            errno if told => Err(Errno::from_raw(errno).into()),
            _ => delete(&mut self.netlink, &self.links),
        }
    }

    fn is_gone(&mut self) -> NlResult<bool> {
        while let Some(link) = self.links.last() {
            if self.netlink.link(&link.name)?.is_some_and(|found| found.index == link.index) {
                return Ok(false);
            }
            self.links.pop();
        }
        Ok(true)
    }
}

/// Deletes a link and waits until it is gone; a link that is not there is gone.
pub fn remove(name: &str, deadline: Deadline) -> NlResult<()> {
    Removal::begin(&[name.to_owned()], |_| None, None, deadline)?.map_or(Ok(()), |mut removal| removal.wait())
}

/// The host end to which somebody gave another name: a link of the container leads to it, and its MAC address says that it is the one.
pub fn renamed(host: &mut Netlink, key: &AttachmentKey, netns: &Path, deadline: Deadline) -> Option<Link> {
    let container = ContainerNetns::open(netns).ok()?;
    let mut find = || {
        let mut pod = Pod::open(&container, deadline)?;
        for peer in pod.netlink.links(None)?.iter().filter_map(|link| link.peer) {
            let found = host.link_at(peer)?.filter(|link| link.mac == Some(key.mac(VethEnd::Host)));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    };
    find().unwrap_or_else(|fault| {
        log::warn!("{}", failed(&format!("look for {} under another name", key.host_veth()), fault).msg);
        None
    })
}

/// Several at once wait for RCU once; one alone needs no group.
fn delete(netlink: &mut Netlink, links: &[Link]) -> NlResult<()> {
    match links {
        [link] => netlink.delete_link(&link.name),
        links => netlink.delete_links(&links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>()),
    }
}

/// The child's life.
fn delete_and_exit(
    child: Child,
    links: &[Link],
    report: OwnedFd,
    company: Option<Company>,
    deadline: Deadline,
) -> ! {
    // It is the parent that is at work on the ruleset, until it has done all or has been killed.
    let company = company.map(Company::given_up);
    let verdict = child
        .detached
        .map_err(NetError::from)
        .and_then(|()| delete(&mut Netlink::open(deadline)?, links))
        .map_or_else(|error| error.errno as i32, |()| 0);
    // The parent may have seen the link go and ended: then nobody reads this, and nobody needs it.
    let told = File::from(report).write_all(&verdict.to_ne_bytes()).is_ok();
    let has_stayed = company.map_or(Ok(()), Rest::stay).is_ok();
    child.exit(told && has_stayed)
}
