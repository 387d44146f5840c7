//! Every kind of frame that the guard knows: what a container may send, next to what it may not.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use weft_tests::frames::{
    ARP, BROADCAST, Frame, ICMP, ICMP6, Mac, UDP, arp, icmp, icmp6, lladdr_option, packet, udp,
};
use weft_tests::ips;

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1);
/// An address that is nobody's.
const STRANGER: Mac = [2, 0, 0, 0, 0, 0x99];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Somebody on the link.
#[derive(Clone, Copy)]
pub(crate) struct Station {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) link_local: Ipv6Addr,
}

impl Station {
    /// Who a container is, by the result of its ADD.
    pub(crate) fn of(result: &Value) -> Self {
        let text = result["interfaces"][2]["mac"].as_str().expect("a MAC address");
        let octets: Vec<u8> = text.split(':').map(|hex| u8::from_str_radix(hex, 16).expect("hex")).collect();
        let mac: Mac = octets.try_into().expect("six bytes");
        let [a, b, c, d, e, f] = mac;
        let addresses = ips(result);
        let v4 =
            addresses.iter().find_map(|ip| if let std::net::IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let v6 =
            addresses.iter().find_map(|ip| if let std::net::IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        Self {
            mac,
            v4: v4.expect("an IPv4 address"),
            v6: v6.expect("an IPv6 address"),
            link_local: Ipv6Addr::new(
                0xfe80,
                0,
                0,
                0,
                word(a ^ 2, b),
                word(c, 0xff),
                word(0xfe, d),
                word(e, f),
            ),
        }
    }
}

/// A forged frame, and an honest one of the same kind.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The parts of the guard each of which stops it.
    pub(crate) parts: &'static [&'static str],
    pub(crate) forged: Frame,
    pub(crate) honest: Frame,
}

pub(crate) const ALL: &[&str] = &["mac", "ip", "arp", "nd", "rogue"];

fn case(name: &'static str, parts: &'static [&'static str], forged: Frame, honest: Frame) -> Case {
    Case { name, parts, forged, honest }
}

/// What `me` may send to `peer` and what it may not.
pub(crate) fn cases(me: Station, peer: Station) -> Vec<Case> {
    [
        addresses(me, peer),
        arps(me, peer),
        advertisements(me, peer),
        solicitations(me, peer),
        rogues(me, peer),
        hidden(me, peer),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn addresses(me: Station, peer: Station) -> Vec<Case> {
    let v4 = |mac, from: Ipv4Addr| {
        Frame::ip(peer.mac, mac, &packet(from, peer.v4, UDP, 0, &udp(from, peer.v4, (9, 9), b"v4")))
    };
    let v6 = |mac, from: Ipv6Addr| {
        Frame::ip(peer.mac, mac, &packet(from, peer.v6, UDP, 0, &udp(from, peer.v6, (9, 9), b"v6")))
    };
    // For experiments (IEEE 802).
    let other = |mac| Frame::new(peer.mac, mac, 0x88b5, b"neither IP nor ARP");
    let nowhere = Ipv4Addr::UNSPECIFIED;
    let discover = packet(
        nowhere,
        Ipv4Addr::BROADCAST,
        UDP,
        0,
        &udp(nowhere, Ipv4Addr::BROADCAST, (68, 67), b"discover"),
    );
    // Duplicate address detection (RFC 4862 §5.4.2).
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let question = icmp6(unspecified, ALL_NODES, 135, &[&[0; 4], &me.v6.octets()[..]].concat());
    let detection = packet(unspecified, ALL_NODES, ICMP6, 0, &question);
    vec![
        case("IPv4 with another MAC address", &["mac"], v4(STRANGER, me.v4), v4(me.mac, me.v4)),
        case("IPv6 with another MAC address", &["mac"], v6(STRANGER, me.v6), v6(me.mac, me.v6)),
        case("another protocol with another MAC address", &["mac"], other(STRANGER), other(me.mac)),
        case("IPv4 from the gateway's address", &["ip"], v4(me.mac, GATEWAY), v4(me.mac, me.v4)),
        case("IPv4 from far away", &["ip"], v4(me.mac, Ipv4Addr::new(192, 0, 2, 1)), v4(me.mac, me.v4)),
        case("IPv6 from the gateway's address", &["ip"], v6(me.mac, GATEWAY6), v6(me.mac, me.v6)),
        case(
            "IPv6 from the peer's link-local address",
            &["ip"],
            v6(me.mac, peer.link_local),
            v6(me.mac, me.link_local),
        ),
        case(
            "IPv6 from no address",
            &["ip"],
            v6(me.mac, unspecified),
            Frame::ip(ALL_NODES_MAC, me.mac, &detection),
        ),
        case(
            "a DHCP client where there is no DHCP",
            &["ip"],
            Frame::ip(BROADCAST, me.mac, &discover),
            v4(me.mac, me.v4),
        ),
    ]
}

fn arps(me: Station, peer: Station) -> Vec<Case> {
    let frame = |packet: &[u8]| Frame::new(peer.mac, me.mac, ARP, packet);
    let from = |mac, ip| arp(2, (mac, ip), (peer.mac, peer.v4));
    let ask = |ip| arp(1, (me.mac, ip), ([0; 6], peer.v4));
    let mut long = from(me.mac, me.v4);
    long[4] = 8;
    let announce = |ip| Frame::new(BROADCAST, me.mac, ARP, &arp(1, (me.mac, ip), ([0; 6], ip)));
    vec![
        case(
            "ARP with another MAC address outside",
            &["mac"],
            Frame::new(peer.mac, STRANGER, ARP, &from(me.mac, me.v4)),
            frame(&from(me.mac, me.v4)),
        ),
        case(
            "an answer that has the gateway's address",
            &["arp"],
            frame(&from(me.mac, GATEWAY)),
            frame(&from(me.mac, me.v4)),
        ),
        case("an announcement of the gateway's address", &["arp"], announce(GATEWAY), announce(me.v4)),
        case("a question by somebody else", &["arp"], frame(&ask(GATEWAY)), frame(&ask(me.v4))),
        case(
            "ARP with another MAC address inside",
            &["arp"],
            frame(&from(STRANGER, me.v4)),
            frame(&ask(Ipv4Addr::UNSPECIFIED)),
        ),
        case(
            "an answer from no address",
            &["arp"],
            frame(&from(me.mac, Ipv4Addr::UNSPECIFIED)),
            frame(&from(me.mac, me.v4)),
        ),
        case("ARP with long addresses", &["arp"], frame(&long), frame(&from(me.mac, me.v4))),
    ]
}

/// Messages of neighbour discovery about a target, with options.
fn nd(me: Station, peer: Station) -> impl Fn(Ipv6Addr, u8, Ipv6Addr, &[u8]) -> Frame {
    move |from, kind, target, options| {
        let body = [&[0; 4][..], &target.octets(), options].concat();
        Frame::ip(peer.mac, me.mac, &packet(from, peer.v6, ICMP6, 0, &icmp6(from, peer.v6, kind, &body)))
    }
}

fn advertisements(me: Station, peer: Station) -> Vec<Case> {
    let advert = |from, target, options: &[u8]| nd(me, peer)(from, 136, target, options);
    let (mine, other) = (lladdr_option(2, me.mac), lladdr_option(2, STRANGER));
    let both = [&mine[..], &other].concat();
    let honest = || advert(me.v6, me.v6, &mine);
    let body = [&[0; 4][..], &me.v6.octets(), &mine].concat();
    // Destination options: the next header, no more than 8 bytes, padding.
    let behind = [&[ICMP6, 0, 1, 4, 0, 0, 0, 0][..], &icmp6(me.v6, peer.v6, 136, &body)].concat();
    let behind = Frame::ip(peer.mac, me.mac, &packet(me.v6, peer.v6, 60, 0, &behind));
    let link_local = advert(me.link_local, me.link_local, &mine);
    let gateways = advert(GATEWAY6, GATEWAY6, &mine);
    let short = advert(me.v6, me.v6, &[]);
    vec![
        case("an advertisement of the gateway's address", &["nd"], advert(me.v6, GATEWAY6, &mine), honest()),
        case("an advertisement from the gateway", &["ip", "nd"], gateways, short),
        case("an advertisement with another MAC address", &["nd"], advert(me.v6, me.v6, &other), link_local),
        case("an advertisement with two MAC addresses", &["nd"], advert(me.v6, me.v6, &both), honest()),
        case("an advertisement behind another header", &["nd"], behind, honest()),
    ]
}

fn solicitations(me: Station, peer: Station) -> Vec<Case> {
    let ask = |from, target, options: &[u8]| nd(me, peer)(from, 135, target, options);
    let rs = |options: &[u8]| {
        let message = icmp6(me.link_local, peer.v6, 133, &[&[0; 4][..], options].concat());
        Frame::ip(peer.mac, me.mac, &packet(me.link_local, peer.v6, ICMP6, 0, &message))
    };
    let (mine, other) = (lladdr_option(1, me.mac), lladdr_option(1, STRANGER));
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let nowhere = Ipv6Addr::UNSPECIFIED;
    let with = |options: &[u8]| ask(me.v6, peer.v6, options);
    let detection = |target, options: &[u8]| ask(nowhere, target, options);
    vec![
        case("a solicitation with another MAC address", &["nd"], with(&other), with(&mine)),
        case("a solicitation from the gateway", &["ip", "nd"], ask(GATEWAY6, peer.v6, &mine), with(&[])),
        case(
            "detection of somebody else's address",
            &["nd"],
            detection(GATEWAY6, &[]),
            detection(me.v6, &nonce),
        ),
        case(
            "detection of the peer's link-local address",
            &["nd"],
            detection(peer.link_local, &nonce),
            detection(me.link_local, &[]),
        ),
        case("a router solicitation with another MAC address", &["nd"], rs(&other), rs(&mine)),
    ]
}

fn rogues(me: Station, peer: Station) -> Vec<Case> {
    let frame = |packet: &[u8]| Frame::ip(peer.mac, me.mac, packet);
    let v6 = |kind, length| icmp6(me.link_local, peer.v6, kind, &vec![0; length]);
    let icmp6 = |next, payload: &[u8]| frame(&packet(me.link_local, peer.v6, next, 0, payload));
    let advertisement = v6(134, 12);
    let behind_options = [&[ICMP6, 0, 1, 4, 0, 0, 0, 0][..], &advertisement].concat();
    let echo = icmp6(ICMP6, &v6(128, 12));
    let dhcp = |ports| frame(&packet(me.v4, peer.v4, UDP, 0, &udp(me.v4, peer.v4, ports, b"offer")));
    let dhcp6 = |ports| {
        frame(&packet(me.link_local, peer.v6, UDP, 0, &udp(me.link_local, peer.v6, ports, b"advertise")))
    };
    let icmp4 = |kind| frame(&packet(me.v4, peer.v4, ICMP, 0, &icmp(kind, 1, &[10, 88, 0, 9, 0, 0, 0, 0])));
    // LLC of the spanning tree protocol (IEEE 802.1D §9), in a frame with a length.
    let bpdu = [&[0x42, 0x42, 3][..], &[0; 35]].concat();
    let to_bridges = |last| Frame::new([1, 0x80, 0xc2, 0, 0, last], me.mac, 38, &bpdu);
    let elsewhere = || Frame::new([1, 0x80, 0xc2, 0, 1, 0], me.mac, 38, &bpdu);
    // Cisco's, behind SNAP: the spanning tree of a VLAN, and CDP.
    let of_cisco = |last, protocol: [u8; 2], what: &[u8]| {
        let snap = [&[0xaa, 0xaa, 3, 0, 0, 0x0c][..], &protocol, what].concat();
        Frame::new([1, 0, 0x0c, 0xcc, 0xcc, last], me.mac, 50, &snap)
    };
    let pvst = |last| of_cisco(last, [0x01, 0x0b], &[0; 42]);
    let cdp = |last| of_cisco(last, [0x20, 0x00], &[2; 42]);
    let lldp = Frame::new([1, 0x80, 0xc2, 0, 0, 0xe], me.mac, 0x88cc, b"lldp");
    vec![
        case("a router advertisement", &["rogue"], icmp6(ICMP6, &advertisement), echo),
        case(
            "a router advertisement behind another header",
            &["rogue"],
            icmp6(60, &behind_options),
            icmp6(ICMP6, &v6(128, 8)),
        ),
        case("a redirect of IPv6", &["rogue"], icmp6(ICMP6, &v6(137, 36)), icmp6(ICMP6, &v6(129, 36))),
        case("a redirect of IPv4", &["rogue"], icmp4(5), icmp4(3)),
        case("a DHCP server's answer", &["rogue"], dhcp((67, 68)), dhcp((68, 67))),
        case("a DHCPv6 server's answer", &["rogue"], dhcp6((547, 546)), dhcp6((546, 547))),
        case("what bridges tell each other", &["rogue"], to_bridges(0), elsewhere()),
        case("what a bridge tells of itself", &["rogue"], lldp, elsewhere()),
        case("what bridges tell each other of a VLAN", &["rogue"], pvst(0xcd), pvst(0xce)),
        case("what a switch tells of itself", &["rogue"], cdp(0xcc), cdp(0xce)),
    ]
}

/// What would hide what is inside: dropped while anything is guarded.
fn hidden(me: Station, peer: Station) -> Vec<Case> {
    let plain =
        || Frame::ip(peer.mac, me.mac, &packet(me.v4, peer.v4, UDP, 0, &udp(me.v4, peer.v4, (9, 9), b"tag")));
    vec![
        case("a tag without a VLAN", ALL, plain().tagged(0x8100, 0), plain()),
        case("a VLAN", ALL, plain().tagged(0x8100, 5), plain()),
        case("two tags", ALL, plain().tagged(0x8100, 0).tagged(0x88a8, 0), plain()),
    ]
}

/// Parts of packets. Where the host puts packets together (br_netfilter with conntrack), these alone go nowhere.
pub(crate) fn fragments(me: Station, peer: Station) -> Vec<Case> {
    let later = |from| Frame::ip(peer.mac, me.mac, &packet(from, peer.v4, UDP, 2, b"rest of a datagram"));
    // A fragment header: the next header, offset 0 and more to come, a number.
    let first = |next, payload: &[u8]| {
        let part = [&[next, 0, 0, 1, 0, 0, 0, 7][..], payload].concat();
        Frame::ip(peer.mac, me.mac, &packet(me.link_local, peer.v6, 44, 0, &part))
    };
    let message = |kind| icmp6(me.link_local, peer.v6, kind, &[0; 12]);
    let datagram = udp(me.link_local, peer.v6, (9, 9), b"12345678");
    // Destination options that go on in the next one.
    let cut = [ICMP6, 30, 1, 244, 0, 0, 0, 0];
    vec![
        case("a later fragment", &["ip"], later(GATEWAY), later(me.v4)),
        case(
            "the first part of a router advertisement",
            &["rogue"],
            first(ICMP6, &message(134)),
            first(ICMP6, &message(128)),
        ),
        case("a first fragment without its protocol", ALL, first(60, &cut), first(UDP, &datagram)),
    ]
}

/// What says that an IPv4 address is the sender's: a packet from it, and an answer to whoever asks for it.
pub(crate) fn claims(me: Station, peer: Station, address: Ipv4Addr) -> Vec<Frame> {
    let datagram = udp(address, peer.v4, (9, 9), b"v4");
    vec![
        Frame::ip(peer.mac, me.mac, &packet(address, peer.v4, UDP, 0, &datagram)),
        Frame::new(peer.mac, me.mac, ARP, &arp(2, (me.mac, address), (peer.mac, peer.v4))),
    ]
}

/// The same for IPv6, where whoever answers may also have another address.
pub(crate) fn claims6(me: Station, peer: Station, address: Ipv6Addr) -> Vec<Frame> {
    let datagram = udp(address, peer.v6, (9, 9), b"v6");
    let from = |from: Ipv6Addr| {
        // Flags: it takes the place of what was known.
        let body = [&[0x20, 0, 0, 0][..], &address.octets(), &lladdr_option(2, me.mac)].concat();
        let message = icmp6(from, peer.v6, 136, &body);
        Frame::ip(peer.mac, me.mac, &packet(from, peer.v6, ICMP6, 0, &message))
    };
    vec![
        Frame::ip(peer.mac, me.mac, &packet(address, peer.v6, UDP, 0, &datagram)),
        from(address),
        from(me.v6),
    ]
}

/// A message of the spanning tree protocol (IEEE 802.1D §9.3.1) by which the sender is the root: the smallest number wins.
pub(crate) fn superior(me: Station) -> Frame {
    let id = [&[0, 0][..], &me.mac].concat();
    // LLC; protocol, version, type, flags; root, cost, bridge, port; age, longest age, interval and delay in 1/256 s.
    let times = [0, 0, 20, 0, 2, 0, 15, 0];
    let bpdu = [&[0x42, 0x42, 3, 0, 0, 0, 0, 0][..], &id, &[0; 4], &id, &[0x80, 1], &times].concat();
    Frame::new([1, 0x80, 0xc2, 0, 0, 0], me.mac, 38, &bpdu)
}

/// A report of somebody who listens to a multicast group (RFC 3810 §5.2), and an honest frame.
pub(crate) fn listening(me: Station, peer: Station) -> (Frame, Frame) {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x99);
    // One record: from now on everything that is sent to the group.
    let body = [&[0, 0, 0, 1, 4, 0, 0, 0][..], &group.octets()].concat();
    // Behind an option for routers (RFC 2711).
    let payload = [&[ICMP6, 0, 5, 2, 0, 0, 1, 0][..], &icmp6(me.link_local, routers, 143, &body)].concat();
    let report =
        Frame::ip([0x33, 0x33, 0, 0, 0, 0x16], me.mac, &packet(me.link_local, routers, 0, 0, &payload));
    let echo = packet(me.v6, peer.v6, ICMP6, 0, &icmp6(me.v6, peer.v6, 128, &[0; 8]));
    (report, Frame::ip(peer.mac, me.mac, &echo))
}
