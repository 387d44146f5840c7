//! Ethernet frames as a container that means harm sends them, honest ones, and the packet sockets by which they leave and are
//! seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::netns::NetNs;
use crate::pod::Pod;
use crate::wait::eventually;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Who everybody on a link is.
pub const BROADCAST: Mac = [0xff; 6];
pub const ARP: u16 = 0x0806;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// How long a frame may take within one machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// A frame that can be told from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    /// What no other frame has.
    unique: Vec<u8>,
}

impl Frame {
    /// A frame with an EtherType, or a length where it is below 1536. Behind the payload follow bytes that no other frame
    /// has.
    pub fn new(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Self {
        Self::with(to, from, kind, [payload, b"mark", &number().to_be_bytes()].concat())
    }

    /// A frame with an IP packet, of [`packet`]. Nothing is behind that: br_netfilter cuts it off.
    pub fn ip(to: Mac, from: Mac, packet: &[u8]) -> Self {
        let kind = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
        Self::with(to, from, kind, packet.to_vec())
    }

    fn with(to: Mac, from: Mac, kind: u16, payload: Vec<u8>) -> Self {
        Self { bytes: [&to, &from, &kind.to_be_bytes()[..], &payload].concat(), unique: payload }
    }

    /// The same with a VLAN tag of this EtherType.
    #[must_use]
    pub fn tagged(mut self, kind: u16, vlan: u16) -> Self {
        let tag = [kind.to_be_bytes(), vlan.to_be_bytes()].concat();
        self.bytes.splice(12..12, tag);
        self
    }
}

/// A number that nothing else got.
fn number() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A packet socket: it sends frames as they are, and sees every frame that arrives.
pub struct Wire {
    socket: OwnedFd,
    /// The interface's own address.
    pub mac: Mac,
    seen: Vec<Vec<u8>>,
}

impl Wire {
    /// Opens one on an interface of a namespace.
    pub fn open(netns: &NetNs, ifname: &str) -> Self {
        let (socket, mac) = netns.inside(|| {
            let link = link(ifname).unwrap_or_else(|| panic!("no interface {ifname}"));
            (bound(&link), link.addr().expect("a MAC address"))
        });
        Self { socket, mac, seen: Vec::new() }
    }

    /// Opens one on `eth0` of a container.
    pub fn of(pod: &Pod) -> Self {
        Self::open(pod.netns(), "eth0")
    }

    /// Sends a frame.
    pub fn send(&self, frame: &Frame) {
        let sent = send(self.socket.as_raw_fd(), &frame.bytes, MsgFlags::empty()).expect("send a frame");
        assert_eq!(sent, frame.bytes.len());
    }

    /// Waits until a frame has arrived.
    #[track_caller]
    pub fn wait_for(&mut self, frame: &Frame, what: &str) {
        eventually(PATIENCE, what, || self.has_seen(frame).then_some(()));
    }

    /// Whether a frame arrives within a time.
    pub fn receives(&mut self, frame: &Frame, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if self.has_seen(frame) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Forgets what has arrived until now.
    pub fn forget(&mut self) {
        self.take_in();
        self.seen.clear();
    }

    /// Whether a frame has arrived until now.
    pub fn has_seen(&mut self, frame: &Frame) -> bool {
        self.take_in();
        self.seen.iter().any(|seen| seen.windows(frame.unique.len()).any(|bytes| bytes == frame.unique))
    }

    fn take_in(&mut self) {
        let mut buffer = vec![0; 65_536];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => self.seen.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => break,
                Err(error) => panic!("receive frames: {error}"),
            }
        }
    }
}

/// Frames that somebody in a container sends without a pause, from the moment on in which its interface takes any.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// Begins to try. There need be no such interface yet.
    pub fn begin(netns: &NetNs, ifname: &'static str, frames: Vec<Frame>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, is_over) = (netns.clone(), Arc::clone(&stop));
        let flood = move || {
            let mut socket = None;
            let mut sent = 0;
            for frame in frames.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                if socket.is_none() {
                    socket = link(ifname).map(|link| bound(&link));
                }
                let Some(socket) = &socket else { continue };
                match send(socket.as_raw_fd(), &frame.bytes, MsgFlags::empty()) {
                    Ok(_) => sent += 1,
                    // It is down, or full.
                    Err(Errno::ENETDOWN | Errno::ENOBUFS | Errno::EAGAIN) => thread::yield_now(),
                    Err(error) => panic!("send a frame: {error}"),
                }
            }
            sent
        };
        Self { stop, thread: thread::spawn(move || netns.inside(flood)) }
    }

    /// Ends it. Returns how many frames were sent.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the frames' sender")
    }
}

/// The address of an interface of this thread's namespace, which names the interface to a packet socket.
fn link(ifname: &str) -> Option<LinkAddr> {
    getifaddrs().expect("list interfaces").find_map(|interface| {
        let link = interface.address.and_then(|address| address.as_link_addr().copied());
        link.filter(|_| interface.interface_name == ifname)
    })
}

fn bound(link: &LinkAddr) -> OwnedFd {
    let all = SockProtocol::EthAll;
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, all);
    let socket = socket.expect("a packet socket");
    bind(socket.as_raw_fd(), link).expect("bind to an interface");
    socket
}

/// An ARP packet (RFC 826): 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes()].concat();
    [&head[..], &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

/// An IP packet of either family, told from all before by its identification or its flow label. Where
/// `fragment` is not zero it is of IPv4's header: flags, and offset in units of 8 bytes.
pub fn packet(
    from: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    match (from.into(), to.into()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(20 + payload.len()).expect("a small packet").to_be_bytes();
            let [high, low] = fragment.to_be_bytes();
            let [_, _, id @ ..] = number().to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], id[0], id[1], high, low, 64, protocol, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [&header[..], payload].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(payload.len()).expect("a small packet").to_be_bytes();
            // Neighbours believe nothing that may have passed a router (RFC 4861 §7.1).
            let [_, label @ ..] = number().to_be_bytes();
            let header = [0x60, label[0] & 0xf, label[1], label[2], length[0], length[1], protocol, 255];
            [&header[..], &from.octets(), &to.octets(), payload].concat()
        }
        (from, to) => panic!("{from} and {to} are of different families"),
    }
}

/// A UDP datagram, with its checksum.
pub fn udp(from: impl Into<IpAddr>, to: impl Into<IpAddr>, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a small datagram");
    let numbers = [ports.0, ports.1, length, 0];
    let header: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    summed([&header[..], payload].concat(), 6, &pseudo_header(from.into(), to.into(), UDP))
}

/// An ICMP message, with its checksum: the body begins behind that.
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    summed([&[kind, code, 0, 0], body].concat(), 2, &[])
}

/// An ICMPv6 message, with its checksum: the body begins behind that.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    summed([&[kind, 0, 0, 0], body].concat(), 2, &pseudo_header(from.into(), to.into(), ICMP6))
}

/// Has a router on a link tell everybody there that it leads everywhere, for half an hour (RFC 4861 §4.2), until somebody has heard
/// it: a host that has just come up may not listen yet.
#[track_caller]
pub fn advertise_router(netns: &NetNs, ifname: &str, mut is_heard: impl FnMut() -> bool) {
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Hop limit, flags, and seconds; how long neighbours count as there is not said.
    let body = [&[64, 0][..], &1800_u16.to_be_bytes(), &[0; 8]].concat();
    let message = packet(ROUTER, ALL_NODES, ICMP6, 0, &icmp6(ROUTER, ALL_NODES, 134, &body));
    let wire = Wire::open(netns, ifname);
    eventually(PATIENCE, "a router is heard", || {
        wire.send(&Frame::ip([0x33, 0x33, 0, 0, 0, 1], wire.mac, &message));
        is_heard().then_some(())
    });
}

/// An option of neighbour discovery with a MAC address: 1 is the sender's, 2 the target's (RFC 4861 §4.6.1).
pub fn lladdr_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

/// Writes the checksum into a message, whose pseudo header has the length left out.
fn summed(mut message: Vec<u8>, at: usize, pseudo_header: &[u8]) -> Vec<u8> {
    let mut all = pseudo_header.to_vec();
    if !all.is_empty() {
        all.extend(u32::try_from(message.len()).expect("a small message").to_be_bytes());
    }
    all.extend(&message);
    let sum = checksum(&all).to_be_bytes();
    message[at..at + 2].copy_from_slice(&sum);
    message
}

/// Addresses and protocol, in an order of its own: a sum has none.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8) -> Vec<u8> {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    [octets(from), octets(to), vec![0, 0, 0, protocol]].concat()
}

/// The Internet's checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}
