//! The first two packets of an SCTP association (RFC 9260), by raw IP sockets: the kernel need not have SCTP for them, and
//! whether ports and checksum are right is to be seen.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// A packet with one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub from: u16,
    pub to: u16,
    /// Of the receiver; zero in the first packet.
    pub tag: u32,
    pub chunk: Chunk,
}

/// How an association begins. Both carry the tag by which their sender is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Init(u32),
    InitAck(u32),
}

/// One end, at an address of the namespace that the thread is in.
pub struct Endpoint {
    socket: OwnedFd,
    is_v4: bool,
}

impl Endpoint {
    /// Opens it: it gets what is for this address.
    pub fn at(address: IpAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp);
        let socket = socket.expect("a raw socket");
        bind(socket.as_raw_fd(), &whole(address))
            .unwrap_or_else(|error| panic!("bind to {address}: {error}"));
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).expect("a limit");
        Self { socket, is_v4: address.is_ipv4() }
    }

    /// Sends a packet.
    pub fn send(&self, to: IpAddr, packet: &Packet) {
        sendto(self.socket.as_raw_fd(), &packet.bytes(), &whole(to), MsgFlags::empty())
            .unwrap_or_else(|error| panic!("send to {to}: {error}"));
    }

    /// The next packet and who sent it, if one comes within a time.
    ///
    /// # Panics
    /// When its checksum is wrong: nobody would take it in.
    pub fn receive(&self, time: Duration) -> Option<(IpAddr, Packet)> {
        let end = Instant::now() + time;
        let mut buffer = [0; 2048];
        while Instant::now() < end {
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    // Of IPv4 the header comes along.
                    let begin = if self.is_v4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
                    let from = from.expect("who sent it");
                    let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
                    let from = v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())));
                    return Some((from.expect("an address"), Packet::parse(&buffer[begin..length])));
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("receive a packet: {error}"),
            }
        }
        None
    }
}

/// Raw sockets have no ports.
fn whole(address: IpAddr) -> SockaddrStorage {
    SocketAddr::new(address, 0).into()
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let (kind, own, more): (u8, _, &[u8]) = match self.chunk {
            Chunk::Init(own) => (1, own, &[]),
            // With the cookie that it must have (RFC 9260 §3.3.3.1).
            Chunk::InitAck(own) => (2, own, &[0, 7, 0, 8, 0x77, 0x65, 0x66, 0x74]),
        };
        let length = u16::try_from(20 + more.len()).expect("a short chunk");
        let mut bytes = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([kind, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(own.to_be_bytes());
        // The window, streams out and in, the first sequence number.
        bytes.extend(65_536_u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend(more);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut unsummed = bytes.to_vec();
        unsummed[8..12].fill(0);
        assert_eq!(bytes[8..12], crc32c(&unsummed).to_le_bytes(), "the checksum of {bytes:02x?}");
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(short(at)) << 16 | u32::from(short(at + 2));
        let chunk = match bytes[12] {
            1 => Chunk::Init(long(16)),
            2 => Chunk::InitAck(long(16)),
            other => panic!("a chunk of type {other}"),
        };
        Self { from: short(0), to: short(2), tag: long(4), chunk }
    }
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of this sum.
    #[test]
    fn the_sum_is_that_of_others() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() {
        for chunk in [Chunk::Init(7), Chunk::InitAck(8)] {
            let packet = Packet { from: 1, to: 65_535, tag: 0xfedc_ba98, chunk };
            assert_eq!(Packet::parse(&packet.bytes()), packet);
        }
    }
}
