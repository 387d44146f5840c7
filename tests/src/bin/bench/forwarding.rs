//! When a host's forwarding entries come and go: `bridge monitor fdb`, with the time.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

// linux/rtnetlink.h
const RTMGRP_NEIGH: u32 = 4;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
/// Room for what a thousand hosts make the kernel say.
const BUFFER: usize = 8 << 20;
/// Of nlmsghdr.
const HEADER: usize = 16;

/// The entries of one network namespace.
pub(crate) struct Entries {
    seen: Receiver<(Instant, bool)>,
}

impl Entries {
    /// From now on, in this thread's network namespace.
    pub(crate) fn watch() -> Self {
        let events =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .expect("a netlink socket");
        setsockopt(&events, sockopt::RcvBufForce, &BUFFER).expect("a large buffer needs root");
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_NEIGH)).expect("listen for neighbours");
        let (sender, seen) = channel();
        // It ends at the first event after nobody asks any more, or with the process.
        thread::spawn(move || {
            while let Some(found) = next(&events) {
                let now = Instant::now();
                if found.into_iter().any(|is_new| sender.send((now, is_new)).is_err()) {
                    return;
                }
            }
        });
        Self { seen }
    }

    /// When the last of so many new entries came.
    ///
    /// # Panics
    /// When they do not come in time.
    pub(crate) fn wait(&self, count: usize, patience: Duration) -> Instant {
        self.nth(true, count, patience)
    }

    /// Waits until an entry goes.
    ///
    /// # Panics
    /// When none goes in time.
    pub(crate) fn wait_gone(&self, patience: Duration) {
        self.nth(false, 1, patience);
    }

    fn nth(&self, wanted: bool, count: usize, patience: Duration) -> Instant {
        let end = Instant::now() + patience;
        let mut left = count;
        loop {
            let seen = self.seen.recv_timeout(end.saturating_duration_since(Instant::now()));
            let (when, is_new) = seen.unwrap_or_else(|error| panic!("{left} entries are missing: {error}"));
            left -= usize::from(is_new == wanted);
            if left == 0 {
                return when;
            }
        }
    }
}

/// For each message about a forwarding entry in the next datagram, whether the entry is new.
fn next(events: &OwnedFd) -> Option<Vec<bool>> {
    let mut buffer = vec![0; 1 << 16];
    let length = loop {
        match recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Err(error) => panic!("events were lost: {error}"),
            Ok(length) => break length,
        }
    };
    let mut rest = &buffer[..length];
    let mut found = Vec::new();
    while rest.len() > HEADER {
        let length = u32::from_ne_bytes(*rest.first_chunk()?);
        let length = usize::try_from(length).expect("a length").clamp(HEADER, rest.len());
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let is_forwarding = rest.get(HEADER).is_some_and(|family| i32::from(*family) == libc::AF_BRIDGE);
        if is_forwarding && matches!(kind, RTM_NEWNEIGH | RTM_DELNEIGH) {
            found.push(kind == RTM_NEWNEIGH);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}
