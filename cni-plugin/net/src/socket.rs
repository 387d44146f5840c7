//! One netlink conversation at a time: a request, its answers, its acknowledgement.

mod batch;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use cni_protocol::Deadline;
use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlaBuffer,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket as RawSocket, protocols};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;

use super::error::{NetError, NlResult};

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's own words for what it refused.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Larger than any single datagram the kernel builds for a dump (linux/netlink.h caps them at 32 KiB).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// What a socket sends at once without being asked for more: net.core.wmem_default, half of it for the kernel's
/// own use.
const SEND_BUFFER: usize = 100 * 1024;
/// How often a dump that the kernel marked as inconsistent is asked for again.
const DUMP_ATTEMPTS: usize = 8;

/// A netlink socket. It stays in the network namespace it was opened in, whatever namespace the
/// process enters later.
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    deadline: Deadline,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a netlink protocol (`NETLINK_*`) in the current network namespace.
    ///
    /// # Errors
    /// What socket(2) and its options say.
    pub fn open(protocol: isize, deadline: Deadline) -> NlResult<Self> {
        // Neither bound nor connected: the kernel names the socket at its first use, and is itself the
        // default destination.
        let raw = RawSocket::new(protocol)?;
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        Ok(Self { raw, sequence: 0, deadline, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// When the command's time is over.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Sends one request and waits for its acknowledgement. Returns what the kernel answered before it.
    ///
    /// # Errors
    /// The kernel's refusal; `ETIMEDOUT` at the command's deadline.
    pub fn request<Q, A>(&mut self, message: Q, flags: u16) -> NlResult<Vec<A>>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.send(vec![(message, NLM_F_REQUEST | NLM_F_ACK | flags)])?;
        let mut answers = Vec::new();
        self.receive(self.sequence, &mut answers)?;
        Ok(answers)
    }

    /// Sends several requests, of which the last asks for an acknowledgement, and waits for that. After a refusal
    /// the answers to the others are thrown away.
    ///
    /// # Errors
    /// The first refusal; `ETIMEDOUT` at the command's deadline.
    pub(super) fn request_all<Q, A>(&mut self, messages: Vec<(Q, u16)>) -> NlResult<Vec<A>>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.send(messages)?;
        let mut answers = Vec::new();
        let outcome = self.receive(self.sequence, &mut answers);
        if outcome.is_err() {
            // The kernel answers while the requests are sent: whatever comes is there.
            self.discard_events()?;
        }
        outcome.map(|_| answers)
    }

    /// Asks for all objects that `filter` names, again when the kernel says that they changed meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal; `ETIMEDOUT` at the command's deadline; `EINTR` when the objects never stood still.
    pub fn dump<Q, A>(&mut self, filter: &Q) -> NlResult<Vec<A>>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(vec![(filter.clone(), NLM_F_REQUEST | NLM_F_DUMP)])?;
            let mut answers = Vec::new();
            if self.receive(self.sequence, &mut answers)? == Consistency::Whole {
                return Ok(answers);
            }
        }
        Err(NetError {
            errno: Errno::EINTR,
            explanation: Some("the objects kept changing while read".into()),
        })
    }

    /// Serialises the messages into one datagram and sends it; each message gets the next sequence number.
    pub(super) fn send<M: NetlinkSerializable>(&mut self, messages: Vec<(M, u16)>) -> NlResult<()> {
        let mut datagram = Vec::new();
        for (message, flags) in messages {
            self.sequence += 1;
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            header.sequence_number = self.sequence;
            let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            packet.finalize();
            let start = datagram.len();
            datagram.resize(start + packet.buffer_len().next_multiple_of(usize::from(NLMSG_ALIGNTO)), 0);
            packet.serialize(&mut datagram[start..]);
        }
        if datagram.len() > SEND_BUFFER {
            setsockopt(self, SndBufForce, &(2 * datagram.len()))?;
        }
        self.raw.send(&datagram, 0)?;
        Ok(())
    }

    /// Reads answers until the one that ends request `sequence`: an acknowledgement, an error or the end
    /// of a dump. Answers to earlier requests are errors that nobody waited for, and are returned too.
    pub(super) fn receive<A>(&mut self, sequence: u32, answers: &mut Vec<A>) -> NlResult<Consistency>
    where
        A: NetlinkDeserializable,
    {
        let mut consistency = Consistency::Whole;
        self.walk(|packet: NetlinkMessage<A>, bytes| {
            if packet.header.flags & NLM_F_DUMP_INTR != 0 {
                consistency = Consistency::Torn;
            }
            let is_the_last = packet.header.sequence_number == sequence;
            match packet.payload {
                NetlinkPayload::Error(answer) => match refusal(&answer, bytes) {
                    Some(error) => ControlFlow::Break(Err(error)),
                    None if is_the_last => ControlFlow::Break(Ok(consistency)),
                    None => ControlFlow::Continue(()),
                },
                // A dump that could not go on, since what it was reading is gone.
                NetlinkPayload::Done(done) if is_the_last && done.code < 0 => {
                    ControlFlow::Break(Err(Errno::from_raw(done.code.abs()).into()))
                }
                NetlinkPayload::Done(_) if is_the_last => ControlFlow::Break(Ok(consistency)),
                NetlinkPayload::InnerMessage(message) => {
                    answers.push(message);
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Continue(()),
            }
        })
    }

    /// Reads answers, and gives them to `take` with their bytes, until that has what it wants.
    fn walk<A, T>(
        &mut self,
        mut take: impl FnMut(NetlinkMessage<A>, &[u8]) -> ControlFlow<NlResult<T>>,
    ) -> NlResult<T>
    where
        A: NetlinkDeserializable,
    {
        loop {
            self.next_datagram()?;
            let mut offset = 0;
            while offset < self.buffer.len() {
                let bytes = &self.buffer[offset..];
                let packet = NetlinkMessage::<A>::deserialize(bytes).map_err(|error| undecodable(&error))?;
                let length = usize::try_from(packet.header.length).unwrap_or(usize::MAX).min(bytes.len());
                if let ControlFlow::Break(outcome) = take(packet, &bytes[..length]) {
                    return outcome;
                }
                offset += length.max(1).next_multiple_of(usize::from(NLMSG_ALIGNTO));
            }
        }
    }

    /// Reads the next answer. It is there already for most requests, which the kernel carries out while they
    /// are sent; so reading goes before waiting.
    fn next_datagram(&mut self) -> NlResult<()> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, MSG_DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.wait_readable()?,
                // Some message to this socket was lost; when another is there, that may be the answer.
                Err(error) if is_overflow(&error) && self.is_readable() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_readable(&self) -> bool {
        matches!(poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1..))
    }

    /// Blocks until something can be read, or until the command's deadline.
    fn wait_readable(&self) -> NlResult<()> {
        loop {
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], self.deadline.poll_timeout()) {
                Ok(0) => return Err(Errno::ETIMEDOUT.into()),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Joins multicast groups (`RTNLGRP_*`), for a socket that only waits for their events.
    pub fn subscribe(&mut self, groups: &[u32]) -> NlResult<()> {
        // The kernel sends no events to a socket without a name.
        self.raw.bind_auto()?;
        for group in groups {
            self.raw.add_membership(*group)?;
        }
        Ok(())
    }

    /// Blocks until an event came, and takes all that are there, but not for longer than a while. What happened is to be looked up:
    /// events can be lost.
    pub fn wait_for_events(&mut self, longest: Duration) -> NlResult<()> {
        let deadline = self.deadline;
        self.deadline = Deadline::after(longest.min(deadline.remaining()));
        let waited = self.wait_readable();
        self.deadline = deadline;
        match waited {
            Err(error) if error.errno == Errno::ETIMEDOUT && !deadline.expired() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.discard_events(),
        }
    }

    /// The next datagram, if one is there. `ENOBUFS`: some were lost.
    pub(super) fn try_datagram(&mut self) -> NlResult<Option<&[u8]>> {
        self.buffer.clear();
        match self.raw.recv(&mut self.buffer, MSG_DONTWAIT) {
            Ok(_) => Ok(Some(&self.buffer)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the events that are there.
    pub fn discard_events(&mut self) -> NlResult<()> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                // Events were lost.
                Err(error) if is_overflow(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[expect(unsafe_code, reason = "netlink-sys gives only the raw descriptor")]
        // SAFETY: the descriptor is open as long as `self.raw`, which the result borrows.
        unsafe {
            BorrowedFd::borrow_raw(self.raw.as_raw_fd())
        }
    }
}

fn is_overflow(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// Whether a dump is one moment's state.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Consistency {
    Whole,
    Torn,
}

fn undecodable(error: &DecodeError) -> NetError {
    NetError { errno: Errno::EBADMSG, explanation: Some(error.to_string()) }
}

/// What the kernel refused; `None` where it acknowledges.
fn refusal(answer: &ErrorMessage, bytes: &[u8]) -> Option<NetError> {
    let errno = Errno::from_raw(answer.code?.get().abs());
    Some(NetError { errno, explanation: explanation(bytes) })
}

/// The `NLMSGERR_ATTR_MSG` of a capped error message: header (16), errno (4), echoed header (16), attributes.
fn explanation(bytes: &[u8]) -> Option<String> {
    const ATTRIBUTES: usize = 16 + 4 + 16;
    let attributes = bytes.get(ATTRIBUTES..)?;
    NlasIterator::new(attributes).flatten().find_map(|nla: NlaBuffer<&[u8]>| {
        (nla.kind() == NLMSGERR_ATTR_MSG)
            .then(|| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned())
    })
}

/// An answer that nobody looks at.
struct Unread;

impl NetlinkDeserializable for Unread {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// A `NETLINK_ROUTE` socket; its verbs are in the sibling files.
pub struct Netlink {
    pub(super) socket: Socket,
}

impl Netlink {
    /// Opens a route socket in the current network namespace.
    pub fn open(deadline: Deadline) -> NlResult<Self> {
        let socket = Socket::open(protocols::NETLINK_ROUTE, deadline)?;
        // Lets a dump be filtered by the kernel instead of here.
        socket.raw.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket })
    }

    /// When the command's time is over.
    pub fn deadline(&self) -> Deadline {
        self.socket.deadline
    }

    /// Sends a request that the kernel only acknowledges.
    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> NlResult<()> {
        self.socket.request::<_, Unread>(message, flags).map(drop)
    }
}
