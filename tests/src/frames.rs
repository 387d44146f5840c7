//! Ethernet frames as a container that means harm sends them, and who receives them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::pod::Pod;

/// A MAC address.
pub type Mac = [u8; 6];
/// To everybody.
pub const BROADCAST: Mac = [0xff; 6];

/// `eth0` of a container, by frames.
pub struct Wire {
    socket: OwnedFd,
    pub mac: Mac,
}

impl Wire {
    /// Opens it.
    pub fn of(pod: &Pod) -> Self {
        let link = pod.link("eth0").expect("eth0");
        let mac = parse_mac(link["address"].as_str().expect("a MAC address"));
        let socket = pod.inside(|| {
            let socket =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let socket = socket.expect("a packet socket");
            bind(socket.as_raw_fd(), &address("eth0")).expect("bind to eth0");
            socket
        });
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).expect("a limit");
        Self { socket, mac }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        let mut padded = frame.to_vec();
        padded.resize(frame.len().max(60), 0);
        send(self.socket.as_raw_fd(), &padded, MsgFlags::empty()).expect("send a frame");
    }

    /// Whether a frame arrives that begins so, within a time.
    pub fn receives(&self, frame: &[u8], time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut buffer = [0; 2048];
        while Instant::now() < end {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if buffer[..length].starts_with(frame) => return true,
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("receive a frame: {error}"),
            }
        }
        false
    }
}

fn address(ifname: &str) -> LinkAddr {
    let index = if_nametoindex(ifname).expect("an interface");
    let raw = nix::libc::sockaddr_ll {
        sll_family: u16::try_from(nix::libc::AF_PACKET).expect("a family"),
        sll_protocol: u16::try_from(nix::libc::ETH_P_ALL).expect("a protocol").to_be(),
        sll_ifindex: i32::try_from(index).expect("an index"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of_val(&raw)).expect("a length");
    // SAFETY: the structure is a whole address of this family, and its length is told.
    #[expect(unsafe_code, reason = "nix makes no address of a packet socket from its parts")]
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) }.expect("an address")
}

fn parse_mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
    bytes.try_into().expect("six bytes")
}

/// A frame around something.
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, content: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), content].concat()
}

/// A frame with a tag of a VLAN (IEEE 802.1Q).
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

/// `sender` is at `mac`: an ARP announcement (RFC 826, RFC 5227).
pub fn arp(from: Mac, mac: Mac, sender: Ipv4Addr) -> Vec<u8> {
    let ip = sender.octets();
    ethernet(BROADCAST, from, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &ip, &[0; 6], &ip].concat())
}

/// An IP packet with a payload of a protocol.
pub fn ip(to: Mac, from: Mac, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header =
                [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat();
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            ethernet(to, from, 0x0800, &[&header[..], payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = [
                &[0x60, 0, 0, 0][..],
                &length.to_be_bytes(),
                &[protocol, 255],
                &source.octets(),
                &destination.octets(),
            ]
            .concat();
            ethernet(to, from, 0x86dd, &[&header[..], payload].concat())
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
}

/// A UDP packet from one port to another, without a checksum in IPv4 and with a wrong one in IPv6: nobody takes it in.
pub fn udp(to: Mac, from: Mac, addresses: (IpAddr, IpAddr), ports: (u16, u16)) -> Vec<u8> {
    let payload = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &[0, 12, 0, 0], b"weft"].concat();
    ip(to, from, addresses.0, addresses.1, 17, &payload)
}

/// An ICMPv6 message of neighbour discovery (RFC 4861): to all nodes, about a target at a link-layer address.
pub fn discovery(from: Mac, source: Ipv6Addr, kind: u8, target: Ipv6Addr, option: u8) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[option, 1], &from].concat();
    let length = u32::try_from(message.len()).expect("a short message");
    let pseudo =
        [&source.octets()[..], &all_nodes.octets(), &length.to_be_bytes(), &[0, 0, 0, 58], &message].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    ip([0x33, 0x33, 0, 0, 0, 1], from, source.into(), all_nodes.into(), 58, &message)
}

/// The Internet's checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
