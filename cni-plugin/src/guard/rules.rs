//! The static rules of the guard.

use std::net::{IpAddr, Ipv6Addr};

use weft_net::Family;
use weft_net::nft::{ChainKind, Field, InetHookNumber, Load, Rule, Set, Table, Type};

use crate::ruleset::{Chain, Group};

const V4: Type = Type::Address(Family::V4);
const V6: Type = Type::Address(Family::V6);
/// `NF_BR_PRI_NAT_DST_BRIDGED` of linux/netfilter_bridge.h: before anything else takes notice of a frame.
const FIRST: i32 = -300;

// linux/if_ether.h
const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
const ETHER_ARP: [u8; 2] = [0x08, 0x06];
const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHER_VLAN: [u8; 2] = [0x81, 0x00];
const ETHER_QINQ: [u8; 2] = [0x88, 0xa8];
/// The addresses that are for bridges, 01:80:c2:00:00:00 to :0f (IEEE 802.1Q, table 8-1).
const TO_BRIDGES: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
const TO_BRIDGES_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];
const UDP: [u8; 1] = [17];
const ICMPV6: [u8; 1] = [58];
const DHCP_SERVER: [u8; 2] = 67_u16.to_be_bytes();
const DHCPV6_SERVER: [u8; 2] = 547_u16.to_be_bytes();
// RFC 4861 §4
const ROUTER_ADVERTISEMENT: [u8; 1] = [134];
const NEIGHBOUR_SOLICITATION: [u8; 1] = [135];
const NEIGHBOUR_ADVERTISEMENT: [u8; 1] = [136];
const REDIRECT: [u8; 1] = [137];

const fn set(name: &'static str, key: &'static [Type], intervals: bool) -> Set {
    Set { table: Table::Bridge, name, key, data: &[], intervals }
}

/// The ports that each part is on for.
pub(super) static MAC: Set = set("guard-mac", &[Type::Ifname], false);
pub(super) static IP: Set = set("guard-ip", &[Type::Ifname], false);
pub(super) static ARP: Set = set("guard-arp", &[Type::Ifname], false);
pub(super) static ND: Set = set("guard-nd", &[Type::Ifname], false);
pub(super) static ROGUE: Set = set("guard-rogue", &[Type::Ifname], false);
/// Port and what may come from it.
pub(super) static MACS: Set = set("guard-macs", &[Type::Ifname, Type::Mac], false);
pub(super) static ADDRESSES: [Set; 2] = [
    set("guard-addresses-v4", &[Type::Ifname, V4], false),
    set("guard-addresses-v6", &[Type::Ifname, V6], false),
];
pub(super) static PREFIXES: [Set; 2] = [
    set("guard-prefixes-v4", &[Type::Ifname, V4], true),
    set("guard-prefixes-v6", &[Type::Ifname, V6], true),
];
pub(super) static TARGETS: Set = set("guard-targets", &[Type::Ifname, Type::NdTarget], false);
pub(super) static TARGET_PREFIXES: Set = set("guard-target-prefixes", &[Type::Ifname, Type::NdTarget], true);

/// The guard's part of the table `bridge weft`.
pub static GROUP: Group = Group {
    name: "guard",
    table: Table::Bridge,
    sets: &[
        MAC, IP, ARP, ND, ROGUE, MACS, ADDRESSES[0], ADDRESSES[1], PREFIXES[0], PREFIXES[1], TARGETS,
        TARGET_PREFIXES,
    ],
    chains: &[
        Chain { name: "guard-arp", kind: ChainKind::Regular, rules: arp, uses: 6 },
        Chain { name: "guard-ip", kind: ChainKind::Regular, rules: ip, uses: 8 },
        Chain { name: "guard-nd", kind: ChainKind::Regular, rules: nd, uses: 3 },
        Chain { name: "guard-rogue", kind: ChainKind::Regular, rules: rogue, uses: 8 },
        Chain {
            name: "guard",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::PreRouting, priority: FIRST },
            rules: guard,
            uses: 5,
        },
    ],
};

const fn from(what: Load) -> [Load; 2] {
    [Load::Iifname, what]
}

fn guard() -> Vec<Rule> {
    let port = [Load::Iifname];
    vec![
        Rule::any().found(&port, &MAC).not_found(&from(Load::MacSource), &MACS).drop(),
        Rule::any().found(&port, &ROGUE).jump("guard-rogue"),
        Rule::any().is(Load::Protocol, &ETHER_ARP).found(&port, &ARP).jump("guard-arp"),
        Rule::any().found(&port, &IP).jump("guard-ip"),
        Rule::any()
            .is(Load::Protocol, &ETHER_IPV6)
            .is(Load::L4Protocol, &ICMPV6)
            .found(&port, &ND)
            .jump("guard-nd"),
    ]
}

/// A probe for an address has no sender (RFC 5227 §2.1.1).
fn arp() -> Vec<Rule> {
    // As nft does it: only then it prints the fields behind by their names.
    let begin = || Rule::any().is(Load::EtherType, &ETHER_ARP);
    vec![
        begin().not_found(&from(Load::ArpSenderMac), &MACS).drop(),
        begin().is(Load::ArpSender, &[0; 4]).give_back(),
        begin().found(&from(Load::ArpSender), &ADDRESSES[0]).give_back(),
        begin().found(&from(Load::ArpSender), &PREFIXES[0]).give_back(),
        Rule::any().drop(),
    ]
}

/// Who has no IPv6 address yet looks for others that have it, and joins groups, from the unspecified one (RFC 4862 §5.4).
fn ip() -> Vec<Rule> {
    let v4 = || Rule::any().is(Load::Protocol, &ETHER_IPV4);
    let v6 = || Rule::any().is(Load::Protocol, &ETHER_IPV6);
    let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    vec![
        v4().found(&from(Load::Source(Family::V4)), &ADDRESSES[0]).give_back(),
        v4().found(&from(Load::Source(Family::V4)), &PREFIXES[0]).give_back(),
        v4().drop(),
        v6().found(&from(Load::Source(Family::V6)), &ADDRESSES[1]).give_back(),
        v6().found(&from(Load::Source(Family::V6)), &PREFIXES[1]).give_back(),
        v6().is_in(Field::source(Family::V6), nobody, 128).is(Load::L4Protocol, &ICMPV6).give_back(),
        v6().drop(),
    ]
}

/// An advertisement, and a probe before an address is used, are for the container's own. The link-layer addresses in them
/// bind only what is its own.
fn nd() -> Vec<Rule> {
    let begin = |kind: &[u8]| {
        Rule::any().is(Load::Protocol, &ETHER_IPV6).is(Load::L4Protocol, &ICMPV6).is(Load::IcmpType, kind)
    };
    let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let target = from(Load::NdTarget);
    let forged = |rule: Rule| rule.not_found(&target, &TARGETS).not_found(&target, &TARGET_PREFIXES).drop();
    let probe = || {
        Rule::any()
            .is(Load::Protocol, &ETHER_IPV6)
            .is_in(Field::source(Family::V6), nobody, 128)
            .is(Load::L4Protocol, &ICMPV6)
            .is(Load::IcmpType, &NEIGHBOUR_SOLICITATION)
    };
    vec![forged(begin(&NEIGHBOUR_ADVERTISEMENT)), forged(probe())]
}

/// Tagged frames are what no other rule looks into.
fn rogue() -> Vec<Rule> {
    let udp_from = |ether_type: &[u8], port: &[u8]| {
        Rule::any()
            .is(Load::Protocol, ether_type)
            .is(Load::L4Protocol, &UDP)
            .is(Load::SourcePort, port)
            .drop()
    };
    let icmp = |kind: &[u8]| {
        Rule::any()
            .is(Load::Protocol, &ETHER_IPV6)
            .is(Load::L4Protocol, &ICMPV6)
            .is(Load::IcmpType, kind)
            .drop()
    };
    vec![
        Rule::any().is_masked(Load::MacDestination, &TO_BRIDGES_MASK, &TO_BRIDGES).drop(),
        Rule::any().is(Load::EtherType, &ETHER_VLAN).drop(),
        Rule::any().is(Load::EtherType, &ETHER_QINQ).drop(),
        udp_from(&ETHER_IPV4, &DHCP_SERVER),
        udp_from(&ETHER_IPV6, &DHCPV6_SERVER),
        icmp(&ROUTER_ADVERTISEMENT),
        icmp(&REDIRECT),
    ]
}
