//! The floor that `hack/bench` compares ADD with: the netlink messages without which no container has an
//! address, from a process that does nothing else. No configuration, no checks, no state, no result, no undo.
//!
//! `floor NETNS BRIDGE HOST-IFNAME IFNAME ADDRESS PREFIX-LENGTH GATEWAY`; the bridge exists. IPv4 only.

use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Nested attribute of IFLA_INFO_DATA that describes a veth's other end (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [netns, bridge, host_ifname, ifname, address, prefix, gateway] = arguments.as_slice() else {
        return Err(invalid("usage: floor NETNS BRIDGE HOST-IFNAME IFNAME ADDRESS PREFIX-LENGTH GATEWAY"));
    };
    let address: Ipv4Addr = address.parse().map_err(|_| invalid("ADDRESS is no IPv4 address"))?;
    let gateway: Ipv4Addr = gateway.parse().map_err(|_| invalid("GATEWAY is no IPv4 address"))?;
    let prefix: u8 = prefix.parse().map_err(|_| invalid("PREFIX-LENGTH is no number"))?;

    let netns = File::open(netns)?;
    let host = open()?;
    request(&host, veth(&netns, if_nametoindex(bridge.as_str())?, host_ifname, ifname))?;

    setns(&netns, CloneFlags::CLONE_NEWNET)?;
    let container = open()?;
    let index = if_nametoindex(ifname.as_str())?;
    request(&container, up(1))?;
    request(&container, up(index))?;
    request(&container, new_address(index, address, prefix))?;
    request(&container, default_route(index, gateway))
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?)
}

/// Sends one message and reads its acknowledgement.
fn request(socket: &OwnedFd, message: Message) -> io::Result<()> {
    send(socket.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // nlmsghdr (16 bytes), then nlmsgerr, which starts with a negative errno or 0.
    let errno = answer[..length]
        .get(16..20)
        .map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match errno {
        Some(0) => Ok(()),
        Some(errno) => Err(Error::from_raw_os_error(-errno)),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// `ip link add HOST up master BRIDGE type veth peer name CONTAINER netns NETNS`
fn veth(netns: &File, bridge: u32, host_ifname: &str, ifname: &str) -> Message {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    message.link_header(0, libc::IFF_UP as u32);
    message.text(libc::IFLA_IFNAME, host_ifname);
    message.attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
    message.one_queue();
    message.nest(libc::IFLA_LINKINFO, |message| {
        message.text(libc::IFLA_INFO_KIND, "veth");
        message.nest(libc::IFLA_INFO_DATA, |message| {
            message.nest(VETH_INFO_PEER, |message| {
                message.link_header(0, 0);
                message.text(libc::IFLA_IFNAME, ifname);
                message.attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                message.one_queue();
            });
        });
    });
    message
}

/// `ip link set dev INDEX up`
fn up(index: u32) -> Message {
    let mut message = Message::new(libc::RTM_NEWLINK, 0);
    message.link_header(index, libc::IFF_UP as u32);
    message
}

/// `ip addr add ADDRESS/PREFIX dev INDEX`
fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Message {
    let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    message.put(&[libc::AF_INET as u8, prefix, 0, libc::RT_SCOPE_UNIVERSE]);
    message.put(&index.to_ne_bytes());
    message.attribute(libc::IFA_LOCAL, &address.octets());
    message.attribute(libc::IFA_ADDRESS, &address.octets());
    message
}

/// `ip route add default via GATEWAY dev INDEX`
fn default_route(index: u32, gateway: Ipv4Addr) -> Message {
    let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
    message.put(&[libc::AF_INET as u8, 0, 0, 0, table, protocol, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST]);
    message.put(&0_u32.to_ne_bytes());
    message.attribute(libc::RTA_GATEWAY, &gateway.octets());
    message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    message
}

/// A netlink message being written: header, payload, attributes aligned to four bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut message = Self(vec![0; 4]);
        message.put(&kind.to_ne_bytes());
        message.put(&flags.to_ne_bytes());
        // Sequence number and port: one request is under way at a time, and the kernel knows who asks.
        message.put(&[0; 8]);
        message
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A struct ifinfomsg; `up` is IFF_UP or nothing.
    fn link_header(&mut self, index: u32, up: u32) {
        self.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        self.put(&index.to_ne_bytes());
        self.put(&up.to_ne_bytes());
        self.put(&up.to_ne_bytes());
    }

    fn one_queue(&mut self) {
        self.attribute(libc::IFLA_NUM_TX_QUEUES, &1_u32.to_ne_bytes());
        self.attribute(libc::IFLA_NUM_RX_QUEUES, &1_u32.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.nest(kind, |message| message.put(&[text.as_bytes(), &[0]].concat()));
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |message| message.put(value));
    }

    fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        content(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}
