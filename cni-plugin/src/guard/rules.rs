//! The static rules of the guard.
//!
//! An honest packet of IP pays one look-up: port, MAC address and IP address are one key. TCP is then through; other
//! protocols are checked for whether a container may say that. What is not found, or is no IP, goes a longer way.

use weft_net::Family;
use weft_net::nft::{ChainKind, InetHookNumber, Load, Rule, Set, Table, Type};

use crate::conf::guard::Part;
use crate::ruleset::{Chain, Group, V4, V6, of_family};

/// `NF_BR_PRI_NAT_DST_BRIDGED` of linux/netfilter_bridge.h, `dstnat`: before the bridge's own conntrack, and before
/// br_netfilter has packets go through the rules for IP.
const FIRST: i32 = -300;
/// The hook of frames that come in by a port; those of the bridge family have the numbers of `inet`.
const HOOK: InetHookNumber = InetHookNumber::PreRouting;

/// The target of a neighbour solicitation or advertisement (RFC 4861 §4.3): behind type, checksum and flags.
const TARGET: (Load, Type) = (Load::Transport { at: 8, len: 16 }, Type::Transport { at: 8, len: 16 });
/// The option behind the target, or in a router solicitation (§4.1) where the target would be: type, length in units of
/// 8 bytes, MAC address.
const OPTION: u8 = 24;
const OPTION_OF_RS: u8 = 8;
const SOURCE_OPTION: [u8; 2] = [1, 1];
const TARGET_OPTION: [u8; 2] = [2, 1];
/// The option by which a host recognises its own duplicate address detection (RFC 7527).
const NONCE_OPTION: [u8; 2] = [14, 1];
const MAC_LEN: u8 = 6;

const fn set(name: &'static str, key: &'static [Type], intervals: bool) -> Set {
    Set { table: Table::Bridge, name, key, data: &[], intervals }
}

/// Ports of bridges that are guarded: host ends of containers' veths.
pub(super) static PORTS: Set = set("guard", &[Type::Ifindex], false);
/// What a container behind a port is: its MAC address, alone and with each of its addresses.
pub(super) static MAC: Set = set("guard-mac", &[Type::Ifindex, Type::Mac], false);
pub(super) static OWN: [Set; 2] = [
    set("guard-v4", &[Type::Ifindex, Type::Mac, V4], false),
    set("guard-v6", &[Type::Ifindex, Type::Mac, V6], false),
];
/// Addresses that it may use with whatever MAC address it may use: of prefixes, and its own where MAC addresses are left out.
/// These sets have the port's name: numbers of interfaces are no interval for nft as they are in a packet.
pub(super) static MORE: [Set; 2] =
    [set("guard-more-v4", &[Type::Ifname, V4], true), set("guard-more-v6", &[Type::Ifname, V6], true)];
/// The same as IPv6's neighbour discovery has them, for which nft knows no names.
pub(super) static ND_MAC: Set =
    set("guard-nd-mac", &[Type::Ifindex, Type::Transport { at: OPTION + 2, len: MAC_LEN }], false);
pub(super) static ND_OWN: Set = set("guard-nd", &[Type::Ifindex, TARGET.1], false);
pub(super) static ND_MORE: Set = set("guard-nd-more", &[Type::Ifname, TARGET.1], true);
/// Ports behind which addresses come and go by DHCP.
pub(super) static DHCP: Set = set("guard-dhcp", &[Type::Ifindex], false);
/// Ports of bridges that pass multicast to every port. Reports of who listens to it would go to all of them too, and are for nobody
/// there: with a thousand containers they are more work than all else about the next one.
pub(super) static QUIET: Set = set("guard-quiet", &[Type::Ifindex], false);
/// Ports for which a part is off.
static OFF: [Set; 5] = [
    set("guard-off-mac", &[Type::Ifindex], false),
    set("guard-off-ip", &[Type::Ifindex], false),
    set("guard-off-arp", &[Type::Ifindex], false),
    set("guard-off-nd", &[Type::Ifindex], false),
    set("guard-off-rogue", &[Type::Ifindex], false),
];

/// The set of ports for which a part is off.
pub(super) const fn off(part: Part) -> &'static Set {
    &OFF[part as usize]
}

const fn regular(name: &'static str, rules: fn() -> Vec<Rule>, uses: u32) -> Chain {
    Chain { name, kind: ChainKind::Regular, rules, uses }
}

/// The guard's part of the table `bridge weft`.
pub static GROUP: Group = Group {
    name: "guard",
    table: Table::Bridge,
    sets: &[
        PORTS, MAC, OWN[0], OWN[1], MORE[0], MORE[1], ND_MAC, ND_OWN, ND_MORE, DHCP, QUIET, OFF[0], OFF[1],
        OFF[2], OFF[3], OFF[4],
    ],
    chains: &[
        regular("guard-nd-source", nd_source, 6),
        regular("guard-nd-target", nd_target, 5),
        regular("guard-solicit", solicitation, 8),
        regular("guard-advert", advertisement, 7),
        regular("guard-router", router_solicitation, 6),
        regular("guard-icmp6", icmp6, 8),
        regular("guard-ip6-known", ip6_known, 12),
        regular("guard-ip6", ip6, 6),
        regular("guard-ip-known", ip_known, 6),
        regular("guard-ip", ip, 5),
        regular("guard-arp", arp, 11),
        regular("guard-frames", frames, 9),
        Chain {
            name: "guard",
            kind: ChainKind::Base { kind: "filter", hook: HOOK, priority: FIRST },
            rules: ports,
            uses: 3,
        },
    ],
};

const IP: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IP6: [u8; 2] = [0x86, 0xdd];
const UNSPECIFIED: [u8; 16] = [0; 16];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The ports that servers answer to: RFC 2131 §4.1, RFC 8415 §7.2.
const DHCP_CLIENT: u16 = 68;
const DHCP6_CLIENT: u16 = 546;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// The next header of a fragment (RFC 8200 §4.5).
const FRAGMENT: u8 = 44;
/// The first byte behind the headers of IP. It cannot be compared with anything where it is not there.
const BEGINNING: Load = Load::Transport { at: 0, len: 1 };
/// `icmp type redirect`
const REDIRECT: u8 = 5;
// Types of ICMPv6 (RFC 4861, RFC 3810).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT6: u8 = 137;
const LISTENER_REPORT: u8 = 143;

fn ports() -> Vec<Rule> {
    let honest = |protocol: &[u8], source, own, chain| {
        let fields = [Load::Iif, Load::MacSource, source];
        Rule::any().is(Load::EtherType, protocol).found(&fields, own).goto(chain)
    };
    vec![
        honest(&IP, Load::Source(Family::V4), &OWN[0], "guard-ip-known"),
        honest(&IP6, Load::Source(Family::V6), &OWN[1], "guard-ip6-known"),
        Rule::any().found(&[Load::Iif], &PORTS).goto("guard-frames"),
    ]
}

fn frames() -> Vec<Rule> {
    let forged = Rule::any().not_found(&[Load::Iif, Load::MacSource], &MAC);
    // What bridges tell each other: IEEE 802.1D; CDP, VTP and DTP of Cisco's, and its spanning tree per VLAN (PVST+).
    let of_bridges = [
        ([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0], [0x01, 0x80, 0xc2, 0, 0, 0]),
        ([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc]),
    ]
    .map(|(mask, to)| unless_off(Rule::any().is_masked(Load::MacDestination, &mask, &to), Part::Rogue));
    let to_chain = [(IP, "guard-ip"), (IP6, "guard-ip6"), (ARP, "guard-arp")]
        .map(|(protocol, chain)| Rule::any().is(Load::EtherType, &protocol).goto(chain));
    // A tag would hide what is behind it.
    let tagged = [[0x81, 0x00], [0x88, 0xa8]].map(|tag| Rule::any().is(Load::EtherType, &tag).drop());
    let begin = [unless_off(forged, Part::Mac)];
    begin.into_iter().chain(to_chain).chain(tagged).chain(of_bridges).collect()
}

/// Packets with a source that is the container's.
fn ip_known() -> Vec<Rule> {
    let redirect = of(Family::V4).is(Load::L4Protocol, &[ICMP]).is(Load::IcmpType, &[REDIRECT]);
    vec![of_tcp().accept(), unless_off(to_udp(DHCP_CLIENT), Part::Rogue), unless_off(redirect, Part::Rogue)]
}

fn ip6_known() -> Vec<Rule> {
    vec![
        of_tcp().accept(),
        unless_off(to_udp(DHCP6_CLIENT), Part::Rogue),
        Rule::any().is(Load::L4Protocol, &[ICMP6]).jump("guard-icmp6"),
        // A first fragment whose headers go on in the next one would hide what it is (RFC 7112).
        Rule::any().is_not(BEGINNING, &[0]).give_back(),
        Rule::any().is(BEGINNING, &[0]).give_back(),
        of(Family::V6).is_not(Load::Ipv6Next, &[FRAGMENT]).drop(),
        of(Family::V6).is_masked(Load::FragmentOffset, &[0xff, 0xf8], &[0, 0]).drop(),
    ]
}

/// Packets that are not from the container's own MAC and IP address.
fn ip() -> Vec<Rule> {
    // A DHCP client that has no address yet (RFC 2131 §4.1).
    let client = from_nowhere(Family::V4).is(Load::L4Protocol, &[UDP]).is(Load::Ports, &[0, 68, 0, 67]);
    vec![
        more(Family::V4).goto("guard-ip-known"),
        if_off(Part::Ip).goto("guard-ip-known"),
        client.found(&[Load::Iif], &DHCP).accept(),
        Rule::any().drop(),
    ]
}

fn ip6() -> Vec<Rule> {
    // Duplicate address detection, whose target is looked at later, and the report that its group is listened to.
    let [detection, listening] = [SOLICITATION, LISTENER_REPORT].map(|kind| {
        let from_nowhere = from_nowhere(Family::V6).is(Load::L4Protocol, &[ICMP6]);
        from_nowhere.is(Load::IcmpType, &[kind]).goto("guard-ip6-known")
    });
    vec![
        more(Family::V6).goto("guard-ip6-known"),
        if_off(Part::Ip).goto("guard-ip6-known"),
        detection,
        listening,
        Rule::any().drop(),
    ]
}

fn arp() -> Vec<Rule> {
    let arp = || Rule::any().is(Load::Protocol, &ARP);
    // Addresses of other kinds have other lengths, which puts the sender's elsewhere.
    let wrong = [
        arp().is_not(Load::ArpHardware, &[0, 1]),
        arp().is_not(Load::ArpProtocol, &IP),
        arp().is_not(Load::ArpHardwareLen, &[6]),
        arp().is_not(Load::ArpProtocolLen, &[4]),
    ];
    let own = arp().found(&[Load::Iif, Load::ArpSenderMac, Load::ArpSender], &OWN[0]);
    let forged = arp().not_found(&[Load::Iif, Load::ArpSenderMac], &MAC);
    // A probe claims no address (RFC 5227 §2.1).
    let probe = arp().is(Load::ArpOperation, &[0, 1]).is(Load::ArpSender, &UNSPECIFIED[..4]);
    let more = arp().found(&[Load::Iifname, Load::ArpSender], &MORE[0]);
    let off = [if_off(Part::Arp).give_back()];
    let checks = [own.give_back(), forged.drop(), probe.give_back(), more.give_back(), Rule::any().drop()];
    off.into_iter().chain(wrong.map(Rule::drop)).chain(checks).collect()
}

fn icmp6() -> Vec<Rule> {
    let kind = |kind| of(Family::V6).is(Load::L4Protocol, &[ICMP6]).is(Load::IcmpType, &[kind]);
    vec![
        unless_off(kind(ROUTER_ADVERTISEMENT), Part::Rogue),
        unless_off(kind(REDIRECT6), Part::Rogue),
        kind(LISTENER_REPORT).found(&[Load::Iif], &QUIET).drop(),
        if_off(Part::Nd).give_back(),
        kind(SOLICITATION).jump("guard-solicit"),
        kind(ADVERTISEMENT).jump("guard-advert"),
        kind(ROUTER_SOLICITATION).jump("guard-router"),
    ]
}

/// Source and option make an entry in the neighbours' tables. With neither, it is duplicate address detection.
fn solicitation() -> Vec<Rule> {
    let somebody = of(Family::V6).is_not(Load::Source(Family::V6), &UNSPECIFIED);
    vec![
        behind_other_headers(),
        from_nowhere(Family::V6).jump("guard-nd-target"),
        somebody.jump("guard-nd-source"),
        of_length(24).give_back(),
        with_mac(32, OPTION, SOURCE_OPTION),
        of_length(32).is(Load::Transport { at: OPTION, len: 2 }, &NONCE_OPTION).give_back(),
        Rule::any().drop(),
    ]
}

/// Target and option make an entry in the neighbours' tables.
fn advertisement() -> Vec<Rule> {
    vec![
        behind_other_headers(),
        Rule::any().jump("guard-nd-source"),
        Rule::any().jump("guard-nd-target"),
        of_length(24).give_back(),
        with_mac(32, OPTION, TARGET_OPTION),
        Rule::any().drop(),
    ]
}

fn router_solicitation() -> Vec<Rule> {
    let somebody = of(Family::V6).is_not(Load::Source(Family::V6), &UNSPECIFIED);
    vec![
        behind_other_headers(),
        somebody.jump("guard-nd-source"),
        of_length(8).give_back(),
        with_mac(16, OPTION_OF_RS, SOURCE_OPTION),
        Rule::any().drop(),
    ]
}

fn nd_source() -> Vec<Rule> {
    let own = [Load::Iif, Load::MacSource, Load::Source(Family::V6)];
    vec![of(Family::V6).found(&own, &OWN[1]).give_back(), more(Family::V6).give_back(), Rule::any().drop()]
}

fn nd_target() -> Vec<Rule> {
    vec![
        Rule::any().found(&[Load::Iif, TARGET.0], &ND_OWN).give_back(),
        Rule::any().found(&[Load::Iifname, TARGET.0], &ND_MORE).give_back(),
        Rule::any().drop(),
    ]
}

/// Nobody who keeps to RFC 6980 accepts it behind an extension header, and options would be elsewhere.
fn behind_other_headers() -> Rule {
    of(Family::V6).is_not(Load::Ipv6Next, &[ICMP6]).drop()
}

/// `ip6 length LENGTH`: without options behind those that are looked at.
fn of_length(length: u8) -> Rule {
    of(Family::V6).is(Load::Ipv6Length, &[0, length])
}

/// Its one option is the container's MAC address.
fn with_mac(length: u8, at: u8, option: [u8; 2]) -> Rule {
    let mac = Load::Transport { at: at + 2, len: MAC_LEN };
    of_length(length)
        .is(Load::Transport { at, len: 2 }, &option)
        .found(&[Load::Iif, mac], &ND_MAC)
        .give_back()
}

fn of(family: Family) -> Rule {
    Rule::any().is(Load::Protocol, if family == Family::V4 { &IP } else { &IP6 })
}

fn of_tcp() -> Rule {
    Rule::any().is(Load::L4Protocol, &[TCP])
}

/// From an address that the container may use with whatever MAC address.
fn more(family: Family) -> Rule {
    let fields = [Load::Iifname, Load::Source(family)];
    of(family).found(&fields, of_family(&MORE, family))
}

fn from_nowhere(family: Family) -> Rule {
    let len = if family == Family::V4 { 4 } else { 16 };
    of(family).is(Load::Source(family), &UNSPECIFIED[..len])
}

fn to_udp(port: u16) -> Rule {
    Rule::any().is(Load::L4Protocol, &[UDP]).is(Load::DestinationPort, &port.to_be_bytes())
}

fn unless_off(rule: Rule, part: Part) -> Rule {
    rule.not_found(&[Load::Iif], off(part)).drop()
}

fn if_off(part: Part) -> Rule {
    Rule::any().found(&[Load::Iif], off(part))
}
