//! What changes in the kernel, as it happens: `ip monitor` and `nft monitor`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use cni_protocol::Deadline;
use netlink_packet_core::NLMSG_ALIGNTO;
use netlink_sys::protocols;
use nix::errno::Errno;

use super::attribute::{find, text};
use super::error::NlResult;
use super::netconf::{self, NETCONFA_FORWARDING, NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL, RTM_NEWNETCONF};
use super::nft::{self, Table};
use super::socket::Socket;

// Groups of linux/rtnetlink.h (`enum rtnetlink_groups`) and linux/netfilter/nfnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const NFNLGRP_NFTABLES: u32 = 7;

// Message types of linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

const HEADER: usize = 16;
const IFLA_IFNAME: u16 = 3;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` and `NFTA_SET_ELEM_LIST_TABLE` of
/// linux/netfilter/nf_tables.h are all 1.
const NFTA_TABLE: u16 = 1;
/// `NFPROTO_INET` and `NFPROTO_BRIDGE` of linux/netfilter.h.
const NFPROTO: [(u8, Table); 2] = [(1, Table::Inet), (7, Table::Bridge)];

/// Something that has changed; what it is like now is to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link came, changed or went.
    Link { index: u32, name: String },
    /// An address of a link.
    Address { index: u32 },
    /// A neighbour or a forwarding entry of a link.
    Neighbour { index: u32 },
    /// A route: its destination's first address, and the link that it leads through, if only one.
    Route { destination: Option<IpAddr>, index: Option<u32> },
    /// Whether the host routes between its links, or what comes in by one link.
    Forwarding { index: Option<u32> },
    /// Something in an nftables table of this name, in the family of Weft's table.
    Table(Table, String),
    /// Elements were taken out of a set of such a table: their comments.
    Elements(Table, String, Vec<String>),
    /// Events were lost: anything may have changed.
    Lost,
}

/// A source of events, of the network namespace in which it was opened. To be read when poll(2) says so.
pub struct Events {
    socket: Socket,
    parse: fn(&[u8]) -> Option<Event>,
}

impl Events {
    /// `ip monitor link neigh address route netconf`.
    pub fn of_interfaces() -> NlResult<Self> {
        let groups = [
            RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF,
        ];
        Self::open(protocols::NETLINK_ROUTE, &groups, of_interface)
    }

    /// `nft monitor`.
    pub fn of_tables() -> NlResult<Self> {
        Self::open(protocols::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], of_table)
    }

    fn open(protocol: isize, groups: &[u32], parse: fn(&[u8]) -> Option<Event>) -> NlResult<Self> {
        // Nothing here waits, so there is no deadline to keep.
        let mut socket = Socket::open(protocol, Deadline::after(std::time::Duration::ZERO))?;
        socket.subscribe(groups)?;
        Ok(Self { socket, parse })
    }

    /// The events of the next datagram; nothing when none is there.
    pub fn take(&mut self) -> NlResult<Option<Vec<Event>>> {
        match self.socket.try_datagram() {
            Ok(datagram) => Ok(datagram.map(|bytes| messages(bytes).filter_map(self.parse).collect())),
            Err(error) if error.errno == Errno::ENOBUFS => Ok(Some(vec![Event::Lost])),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

/// The messages of a datagram, each with its header. One that claims to be longer than the rest ends them.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
        let next = length.next_multiple_of(usize::from(NLMSG_ALIGNTO));
        rest = rest.get(next..).unwrap_or_default();
        Some(message)
    })
}

fn of_interface(message: &[u8]) -> Option<Event> {
    let body = message.get(HEADER..)?;
    // The index stands at the same place in ifinfomsg, ifaddrmsg and ndmsg.
    let index = || Some(u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?));
    match u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?) {
        RTM_NEWLINK | RTM_DELLINK => {
            let name = find(body.get(16..)?, IFLA_IFNAME).unwrap_or_default();
            Some(Event::Link { index: index()?, name: text(name) })
        }
        RTM_NEWADDR | RTM_DELADDR => Some(Event::Address { index: index()? }),
        RTM_NEWNEIGH | RTM_DELNEIGH => Some(Event::Neighbour { index: index()? }),
        RTM_NEWROUTE | RTM_DELROUTE => {
            let attributes = body.get(12..)?;
            let oif = find(attributes, RTA_OIF).and_then(|bytes| bytes.try_into().ok());
            Some(Event::Route {
                destination: find(attributes, RTA_DST).and_then(address),
                index: oif.map(u32::from_ne_bytes),
            })
        }
        RTM_NEWNETCONF => {
            let attributes = body.get(netconf::HEADER..)?;
            find(attributes, NETCONFA_FORWARDING)?;
            match i32::from_ne_bytes(find(attributes, NETCONFA_IFINDEX)?.try_into().ok()?) {
                NETCONFA_IFINDEX_ALL => Some(Event::Forwarding { index: None }),
                index => Some(Event::Forwarding { index: Some(u32::try_from(index).ok()?) }),
            }
        }
        _ => None,
    }
}

fn of_table(message: &[u8]) -> Option<Event> {
    // After the header nfgenmsg, whose first byte is the family. The message that ends a batch names no table.
    let family = *message.get(HEADER)?;
    let name = find(message.get(HEADER + 4..)?, NFTA_TABLE)?;
    let (_, table) = NFPROTO.into_iter().find(|(number, _)| *number == family)?;
    let is_removal = message.get(4..6)? == nft::REMOVED_ELEMENTS.to_ne_bytes();
    Some(match is_removal {
        true => Event::Elements(table, text(name), nft::comments(message.get(HEADER + 4..)?).collect()),
        false => Event::Table(table, text(name)),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cni_protocol::MacAddr;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::nft::{Change, Element, Nft, Set, Tuple, Type};
    use crate::sysctl::Sysctl;
    use crate::{Family, Netlink};

    /// Waits for an event; what else happens meanwhile is passed over.
    fn expect(events: &mut Events, wanted: impl Fn(&Event) -> bool) {
        let mut seen = Vec::new();
        loop {
            while let Some(found) = events.take().unwrap() {
                if found.iter().any(&wanted) {
                    return;
                }
                seen.extend(found);
            }
            let ready =
                poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(2000_u16));
            assert_ne!(ready.unwrap(), 0, "no such event, only {seen:?}");
        }
    }

    fn netlink() -> Netlink {
        Netlink::open(Deadline::after(Duration::from_secs(5))).unwrap()
    }

    /// Each test is on a thread of its own, and the namespace is the thread's.
    fn fresh_namespace() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    }

    #[test]
    fn what_happens_to_a_link_is_seen() {
        fresh_namespace();
        let mut events = Events::of_interfaces().unwrap();
        let mut kernel = netlink();
        kernel.add_bridge("seen0", MacAddr::from([2, 0, 0, 0, 0, 1]), None).unwrap();
        let made = kernel.link("seen0").unwrap().unwrap().index;
        expect(&mut events, |event| *event == Event::Link { index: made, name: "seen0".into() });
        kernel.delete_link("seen0").unwrap();
        expect(&mut events, |event| *event == Event::Link { index: made, name: "seen0".into() });
    }

    #[test]
    fn addresses_and_routes_are_seen() {
        fresh_namespace();
        let mut events = Events::of_interfaces().unwrap();
        let mut kernel = netlink();
        kernel.set_up("lo").unwrap();
        let address = "192.0.2.1/24".parse().unwrap();
        kernel.add_address(1, address, true).unwrap();
        expect(&mut events, |event| *event == Event::Address { index: 1 });
        let network = Some("192.0.2.0".parse().unwrap());
        expect(
            &mut events,
            |event| matches!(event, Event::Route { destination, index: Some(1) } if *destination == network),
        );
    }

    #[test]
    fn forwarding_is_seen_in_both_families() {
        fresh_namespace();
        for family in Family::ALL {
            let of_loopback = Sysctl::forwarding_at(family, "lo");
            for (setting, index) in [(Sysctl::forwarding(family), None), (of_loopback, Some(1))] {
                let mut events = Events::of_interfaces().unwrap();
                let other = if setting.get().unwrap().as_deref() == Some("1") { "0" } else { "1" };
                setting.set(other).unwrap();
                expect(&mut events, |event| *event == Event::Forwarding { index });
            }
        }
    }

    #[test]
    fn changes_of_tables_are_seen_with_the_tables_name() {
        fresh_namespace();
        for table in [Table::Inet, Table::Bridge] {
            let mut events = Events::of_tables().unwrap();
            let mut nft = Nft::open(Deadline::after(Duration::from_secs(5))).unwrap();
            nft.batch(vec![Change::ensure_table(table)]).unwrap();
            expect(&mut events, |event| *event == Event::Table(table, "weft".into()));
        }
    }

    #[test]
    fn elements_that_are_taken_out_are_seen_with_their_comments() {
        fresh_namespace();
        let set =
            Set { table: Table::Inet, name: "seen", key: &[Type::Ifindex], data: &[], intervals: false };
        let mut elements =
            [1, 2].map(|port| Element::new(&set, Tuple::default().ifindex(port), port.to_string()));
        elements[0].set_comment("one");
        let mut nft = Nft::open(Deadline::after(Duration::from_secs(5))).unwrap();
        nft.batch(vec![Change::ensure_table(Table::Inet), Change::create(&set)]).unwrap();
        nft.batch(Change::for_elements(&elements, Change::create_elements)).unwrap();
        let mut events = Events::of_tables().unwrap();
        for element in &elements {
            nft.batch(Change::remove_elements(&[element]).into_iter().collect()).unwrap();
            expect(&mut events, |event| match event {
                Event::Elements(Table::Inet, name, comments) => {
                    name == "weft" && comments == std::slice::from_ref(&element.comment)
                }
                _ => false,
            });
        }
    }

    #[test]
    fn a_flood_that_does_not_fit_is_one_event() {
        fresh_namespace();
        let mut events = Events::of_interfaces().unwrap();
        let setting = Sysctl::forwarding(Family::V4);
        let mut lost = false;
        for round in 0..20_000 {
            setting.set(if round % 2 == 0 { "1" } else { "0" }).unwrap();
        }
        while let Some(found) = events.take().unwrap() {
            lost |= found.contains(&Event::Lost);
        }
        assert!(lost);
    }

    #[test]
    fn a_message_cut_anywhere_is_no_event() {
        let mut whole = vec![40, 0, 0, 0, 16, 0, 0, 0];
        whole.resize(40, 0);
        whole[32..].copy_from_slice(&[8, 0, 3, 0, b'l', b'o', 0, 0]);
        let event = Some(Event::Link { index: 0, name: "lo".into() });
        assert_eq!(messages(&whole).find_map(of_interface), event);
        for length in 0..40 {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
        }
        for parse in [of_interface, of_table] {
            for length in 0..whole.len() {
                let _anything_but_a_panic = parse(&whole[..length]);
            }
        }
    }
}
