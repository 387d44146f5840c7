//! The static rules of host ports.

use std::net::{IpAddr, Ipv6Addr};

use weft_net::Family;
use weft_net::nft::{ChainKind, Field, InetHookNumber, Load, Rule, Set, Table, Type};

use crate::conf::ports::PortPolicy;
use crate::ruleset::{Chain, FAMILIES, Group, V4, V6};

/// `NF_IP_PRI_NAT_DST` of linux/netfilter_ipv4.h, `dstnat`, and then some: rules of the host's own services, like
/// kube-proxy's, come first.
const AFTER_DSTNAT: i32 = -90;
/// `NF_IP_PRI_NAT_SRC`: `srcnat`.
const SRCNAT: i32 = 100;
/// `NF_IP_PRI_RAW`: before conntrack and address translation.
const RAW: i32 = -300;
/// `NF_IP_PRI_FILTER`.
const FILTER: i32 = 0;
/// The first byte of 127.0.0.0/8.
const LOOPBACK: [u8; 1] = [127];
/// fe80::/10
const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
/// ::1
const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

const fn set(name: &'static str, key: &'static [Type], data: &'static [Type], intervals: bool) -> Set {
    Set { table: Table::Inet, name, key, data, intervals }
}

/// Port of every address -> the container's address and port.
pub(super) static ANY: [Set; 2] = [
    set("hostport-v4", &[Type::Protocol, Type::Port], &[V4, Type::Port], false),
    set("hostport-v6", &[Type::Protocol, Type::Port], &[V6, Type::Port], false),
];
/// Port of one address -> the container's address and port.
pub(super) static AT: [Set; 2] = [
    set("hostport-at-v4", &[V4, Type::Protocol, Type::Port], &[V4, Type::Port], false),
    set("hostport-at-v6", &[V6, Type::Protocol, Type::Port], &[V6, Type::Port], false),
];
/// Ranges of ports -> the container's address; the port stays.
pub(super) static RANGES: [Set; 2] = [
    set("hostport-range-v4", &[V4, Type::Protocol, Type::Port], &[V4], true),
    set("hostport-range-v6", &[V6, Type::Protocol, Type::Port], &[V6], true),
];
/// The host's addresses that have or had a port alone: where to look when a port of every address is wanted. No rule asks it.
pub(super) static ADDRESSES: [Set; 2] =
    [set("hostport-addresses-v4", &[V4], &[], false), set("hostport-addresses-v6", &[V6], &[], false)];
/// Containers whose clients are masqueraded where they would be answered directly.
pub(super) static HAIRPIN: [Set; 2] =
    [set("hostport-hairpin-v4", &[V4], &[], false), set("hostport-hairpin-v6", &[V6], &[], false)];
/// Pairs of a prefix with itself: clients within it would be.
pub(super) static SAME: [Set; 2] =
    [set("hostport-same-v4", &[V4, V4], &[], true), set("hostport-same-v6", &[V6, V6], &[], true)];
/// Containers all of whose clients are masqueraded.
pub(super) static MASQUERADED: [Set; 2] =
    [set("hostport-masq-v4", &[V4], &[], false), set("hostport-masq-v6", &[V6], &[], false)];
/// Containers whose ports are for some sources only, and these sources.
pub(super) static LIMITED: [Set; 2] =
    [set("hostport-limited-v4", &[V4], &[], false), set("hostport-limited-v6", &[V6], &[], false)];
pub(super) static SOURCES: [Set; 2] =
    [set("hostport-sources-v4", &[V4, V4], &[], true), set("hostport-sources-v6", &[V6, V6], &[], true)];
/// Their ports to which ports of the host lead, and their networks, which ask these themselves as if nobody were left out.
pub(super) static LIMITED_PORTS: [Set; 2] = [
    set("hostport-limited-ports-v4", &[V4, Type::Protocol, Type::Port], &[], true),
    set("hostport-limited-ports-v6", &[V6, Type::Protocol, Type::Port], &[], true),
];
pub(super) static NEIGHBOURS: [Set; 2] = [
    set("hostport-neighbours-v4", &[V4, V4], &[], true),
    set("hostport-neighbours-v6", &[V6, V6], &[], true),
];
/// Bridges over which 127.0.0.1 of the host reaches containers.
pub(super) static LOCALNET: Set = set("hostport-localnet", &[Type::Ifname], &[], false);

/// Host ports' part of the table `inet weft`.
pub static GROUP: Group = Group {
    name: "host port",
    table: Table::Inet,
    sets: &[
        ANY[0], ANY[1], AT[0], AT[1], RANGES[0], RANGES[1], ADDRESSES[0], ADDRESSES[1], HAIRPIN[0],
        HAIRPIN[1], SAME[0], SAME[1], MASQUERADED[0], MASQUERADED[1], LOCALNET,
    ],
    chains: &[
        Chain { name: "hostport", kind: ChainKind::Regular, rules: to_containers, uses: 10 },
        Chain {
            name: "hostport-in",
            kind: ChainKind::Base { kind: "nat", hook: InetHookNumber::PreRouting, priority: AFTER_DSTNAT },
            rules: from_others,
            uses: 2,
        },
        Chain {
            name: "hostport-out",
            kind: ChainKind::Base { kind: "nat", hook: InetHookNumber::LocalOut, priority: AFTER_DSTNAT },
            rules: from_this_host,
            uses: 2,
        },
        Chain {
            name: "hostport-masq",
            kind: ChainKind::Base { kind: "nat", hook: InetHookNumber::PostRouting, priority: SRCNAT },
            rules: translated,
            uses: 1,
        },
        Chain { name: "hostport-snat", kind: ChainKind::Regular, rules: masqueraded, uses: 6 },
        Chain {
            name: "hostport-raw",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::PreRouting, priority: RAW },
            rules: loopback_stays_inside,
            uses: 2,
        },
    ],
};

/// What is needed where ports are for some sources only.
pub static SOURCES_GROUP: Group = Group {
    name: "host port sources",
    table: Table::Inet,
    sets: &[
        LIMITED[0], LIMITED[1], SOURCES[0], SOURCES[1], LIMITED_PORTS[0], LIMITED_PORTS[1], NEIGHBOURS[0],
        NEIGHBOURS[1],
    ],
    chains: &[
        Chain {
            name: "hostport-sources",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::Forward, priority: FILTER },
            rules: only_sources,
            uses: 4,
        },
        Chain { name: "hostport-limited", kind: ChainKind::Regular, rules: only_sources_of_ports, uses: 3 },
    ],
};

/// What ports of a network need.
pub fn groups(policy: &PortPolicy) -> Vec<&'static Group> {
    let limited = (!policy.sources.is_empty()).then_some(&SOURCES_GROUP);
    std::iter::once(&GROUP).chain(limited).collect()
}

/// What host ports led to a container. A flow that another has translated before the chains above, as kube-proxy for a Service,
/// comes to none of them; so those that come are given a label.
pub fn published() -> Rule {
    Rule::any().dnatted().labelled()
}

/// The kernel forwards nothing from a link-local address, and packets to one of the host's come from one: they are for the host.
fn to_containers() -> Vec<Rule> {
    let port = [Load::L4Protocol, Load::DestinationPort];
    let rules = FAMILIES.iter().flat_map(|&(family, at)| {
        let port_at = [Load::Destination(family), Load::L4Protocol, Load::DestinationPort];
        [
            Rule::of(family).dnat(family, &port_at, &AT[at]),
            Rule::of(family).dnat(family, &port, &ANY[at]),
            Rule::of(family).dnat(family, &port_at, &RANGES[at]),
        ]
    });
    let stays = Rule::of(Family::V6).is_in(Field::destination(Family::V6), LINK_LOCAL, 10).give_back();
    [stays, Rule::any().label()].into_iter().chain(rules).collect()
}

/// Nobody else has a way to 127.0.0.1: a neighbour that sends to it is not served (plugins#729).
fn from_others() -> Vec<Rule> {
    vec![
        Rule::of(Family::V4).is(Load::DestinationBlock, &LOOPBACK).give_back(),
        Rule::any().to_this_host().jump("hostport"),
    ]
}

/// The kernel routes nothing from ::1 to another link, and has no setting for it.
fn from_this_host() -> Vec<Rule> {
    vec![
        Rule::of(Family::V6).is(Load::Destination(Family::V6), &LOOPBACK_V6).give_back(),
        Rule::any().to_this_host().jump("hostport"),
    ]
}

fn translated() -> Vec<Rule> {
    vec![published().jump("hostport-snat")]
}

fn masqueraded() -> Vec<Rule> {
    let rules = FAMILIES.iter().flat_map(|&(family, at)| {
        let begin = || Rule::of(family);
        [
            begin()
                .found(&[Load::Destination(family)], &HAIRPIN[at])
                .found(&[Load::Source(family), Load::Destination(family)], &SAME[at])
                .masquerade(),
            begin().found(&[Load::Destination(family)], &MASQUERADED[at]).masquerade(),
        ]
    });
    let localhost =
        Rule::any().leaves_by(&LOCALNET).and_of(Family::V4).is(Load::SourceBlock, &LOOPBACK).masquerade();
    rules.chain([localhost]).collect()
}

/// What `route_localnet` of a bridge would let in: its containers' packets from or to 127.0.0.0/8. Every packet comes by
/// here, so what is cheap to see and rare comes first.
fn loopback_stays_inside() -> Vec<Rule> {
    [Load::DestinationBlock, Load::SourceBlock]
        .map(|field| Rule::of(Family::V4).is(field, &LOOPBACK).found(&[Load::Iifname], &LOCALNET).drop())
        .into()
}

/// Whoever has a way to the container's network by this host could ask the container itself, so the same rules apply.
fn only_sources() -> Vec<Rule> {
    let limited = FAMILIES.iter().map(|&(family, at)| {
        let port = [Load::Destination(family), Load::L4Protocol, Load::DestinationPort];
        let pair = [Load::Destination(family), Load::Source(family)];
        Rule::of(family)
            .found(&port, &LIMITED_PORTS[at])
            .not_found(&pair, &SOURCES[at])
            .not_found(&pair, &NEIGHBOURS[at])
            .drop()
    });
    [Rule::any().known().accept(), published().jump("hostport-limited")].into_iter().chain(limited).collect()
}

fn only_sources_of_ports() -> Vec<Rule> {
    let limited = FAMILIES.iter().map(|&(family, at)| {
        let pair = [Load::Destination(family), Load::Source(family)];
        Rule::of(family)
            .found(&[Load::Destination(family)], &LIMITED[at])
            .not_found(&pair, &SOURCES[at])
            .drop()
    });
    limited.collect()
}
