//! Queueing disciplines: `tc qdisc`. Filters in front of them are in [`filter`].
//!
//! netlink-packet-route has the messages of `tc` and the options of its filters; those of `tbf` are made here.

mod bytes;
mod filter;

use std::fmt;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::error::NlResult;
use super::socket::Netlink;

pub use filter::{Filter, Hook};

/// A token bucket: `tbf` of net/sched/sch_tbf.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second that come in.
    pub rate: u64,
    /// How many bytes it holds: as much may pass at once after a silence.
    pub burst: u32,
    /// How many bytes may wait; more are dropped.
    pub queue: u32,
    /// The largest packet in bytes that passes whole. A larger one is divided where it consists of segments (GSO).
    pub packet: u32,
}

/// A token bucket as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundBucket {
    /// Bytes per second.
    pub rate: u64,
    /// What [`TokenBucket::burst`] takes at this rate, in nanoseconds; the kernel counts in 64 of them.
    pub burst_time: u64,
    pub queue: u32,
    /// Whether packets smaller than the burst are divided.
    pub divides: bool,
}

impl fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, self.rate, self.burst.into(), self.queue, self.divides())
    }
}

impl fmt::Display for FoundBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let burst = u128::from(self.burst_time) * u128::from(self.rate) / 1_000_000_000;
        describe(f, self.rate, burst, self.queue, self.divides)
    }
}

fn describe(f: &mut fmt::Formatter<'_>, rate: u64, burst: u128, queue: u32, divides: bool) -> fmt::Result {
    let small = if divides { ", with large packets divided" } else { "" };
    write!(f, "{rate} bytes per second, {burst} at once, {queue} waiting{small}")
}

impl TokenBucket {
    /// The kernel knows `burst` as the time that it takes, rounded.
    const ROUNDING: u64 = 2 * bytes::TICK;

    /// Whether a bucket that was found is this one.
    pub fn is(&self, found: &FoundBucket) -> bool {
        let burst_time = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        let near =
            u64::try_from(burst_time).is_ok_and(|time| time.abs_diff(found.burst_time) <= Self::ROUNDING);
        (self.rate, self.queue, self.divides()) == (found.rate, found.queue, found.divides) && near
    }

    fn divides(&self) -> bool {
        self.packet < self.burst
    }
}

impl Netlink {
    /// `tc qdisc add dev INDEX root handle 1: tbf rate RATE burst BURST limit QUEUE`, for packets smaller than the burst
    /// with `peakrate … mtu PACKET`: the kernel divides what is larger than the peak's bucket, and the peak is out of reach.
    pub fn add_token_bucket(&mut self, index: u32, bucket: &TokenBucket) -> NlResult<()> {
        let options = bytes::bucket(bucket).into_iter().map(TcOption::Other).collect();
        let message = qdisc(index, TcHandle::ROOT, TcHandle { major: 1, minor: 0 }, "tbf", options);
        self.request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `tc qdisc show dev INDEX root`; `None` when that is no token bucket.
    pub fn token_bucket(&mut self, index: u32) -> NlResult<Option<FoundBucket>> {
        let message = TcMessage::from_parts(header(index, TcHandle::ROOT, TcHandle::default()), Vec::new());
        // Kernels before 6.5 answer this only to those who ask for an echo.
        let answers: Vec<RouteNetlinkMessage> =
            self.socket.request(RouteNetlinkMessage::GetQueueDiscipline(message), NLM_F_ECHO)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => as_bucket(message),
            _ => None,
        }))
    }

    /// `tc qdisc del dev INDEX root handle 1: tbf`; whether there was one.
    pub fn delete_token_bucket(&mut self, index: u32) -> NlResult<bool> {
        let message = qdisc(index, TcHandle::ROOT, TcHandle { major: 1, minor: 0 }, "tbf", Vec::new());
        self.delete_qdisc(message)
    }

    /// `tc qdisc add dev INDEX clsact`: where filters can be.
    pub fn add_hooks(&mut self, index: u32) -> NlResult<()> {
        self.request(RouteNetlinkMessage::NewQueueDiscipline(hooks(index)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `tc qdisc del dev INDEX clsact`, with all filters; whether there was one.
    pub fn delete_hooks(&mut self, index: u32) -> NlResult<bool> {
        self.delete_qdisc(hooks(index))
    }

    /// The kernel has several ways to say that there is no such thing, or another in its place.
    fn delete_qdisc(&mut self, message: TcMessage) -> NlResult<bool> {
        match self.request(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `ip link add NAME mtu MTU type ifb`: a link that gives back what was redirected to it where it came from, after
    /// it has passed its queue.
    pub fn add_ifb(&mut self, name: &str, mtu: u32) -> NlResult<()> {
        let link = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
            .name(name.to_owned())
            .mtu(mtu)
            .build();
        self.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn header(index: u32, parent: TcHandle, handle: TcHandle) -> TcHeader {
    // The kernel's own type of an index is signed, and no index is negative.
    TcHeader { index: index.cast_signed(), parent, handle, ..TcHeader::default() }
}

fn hooks(index: u32) -> TcMessage {
    qdisc(index, TcHandle::CLSACT, TcHandle { major: u16::MAX, minor: 0 }, "clsact", Vec::new())
}

fn qdisc(index: u32, parent: TcHandle, handle: TcHandle, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut attributes = vec![TcAttribute::Kind(kind.to_owned())];
    if !options.is_empty() {
        attributes.push(TcAttribute::Options(options));
    }
    TcMessage::from_parts(header(index, parent, handle), attributes)
}

fn as_bucket(message: TcMessage) -> Option<FoundBucket> {
    let is_tbf = message.attributes.contains(&TcAttribute::Kind("tbf".to_owned()));
    let options = message.attributes.into_iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    // Options that netlink-packet-route does not know are one attribute, the nest itself.
    let nest = options.into_iter().find_map(|option| match option {
        TcOption::Other(nest) => Some(value_of(&nest)),
        _ => None,
    })?;
    is_tbf.then(|| bytes::found(&nest)).flatten()
}

fn value_of(attribute: &DefaultNla) -> Vec<u8> {
    use netlink_packet_core::Nla;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}
