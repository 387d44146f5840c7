//! The static rules of isolation, in both tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_net::Family;
use weft_net::nft::{ChainKind, Field, InetHookNumber, Load, Rule, Set, Table, Type};

use crate::hostport::published;
use crate::ruleset::{Chain, FAMILIES, Group, Idle, V4, V6};

/// `NF_IP_PRI_FILTER`, and `NF_BR_PRI_FILTER_BRIDGED` of linux/netfilter_bridge.h.
const FILTER: i32 = 0;
const FILTER_BRIDGED: i32 = -200;
/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
const ICMP: [(Family, [u8; 1]); 2] = [(Family::V4, [1]), (Family::V6, [58])];
/// The types of redirects: RFC 792, RFC 4861 §4.5.
const REDIRECT: [[u8; 1]; 2] = [[5], [137]];
/// `ETH_P_IP`, `ETH_P_IPV6`.
const ETHER_TYPES: [(Family, [u8; 2]); 2] = [(Family::V4, [0x08, 0x00]), (Family::V6, [0x86, 0xdd])];

/// Of linux/if.h.
const IFNAMSIZ: usize = 16;

/// What never leaves a link (RFC 5771 §4, RFC 919, RFC 4291 §2.5.6 and §2.7). Neighbours are found by it, and where
/// br_netfilter is in use frames on a bridge pass these rules too.
const ON_LINK: [(IpAddr, u8); 4] = [
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 24),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0)), 16),
];

const fn pairs(table: Table, v4: &'static str, v6: &'static str) -> [Set; 2] {
    [
        Set { table, name: v4, key: &[V4, V4], data: &[], intervals: true },
        Set { table, name: v6, key: &[V6, V6], data: &[], intervals: true },
    ]
}

const fn services(v4: &'static str, v6: &'static str, intervals: bool) -> [Set; 2] {
    let table = Table::Inet;
    [
        Set { table, name: v4, key: &[V4, V4, Type::Protocol, Type::Port], data: &[], intervals },
        Set { table, name: v6, key: &[V6, V6, Type::Protocol, Type::Port], data: &[], intervals },
    ]
}

const fn groups(name: &'static str, key: &'static [Type]) -> Set {
    Set { table: Table::Bridge, name, key, data: &[], intervals: false }
}

const fn addresses(v4: &'static str, v6: &'static str) -> [Set; 2] {
    let table = Table::Inet;
    [
        Set { table, name: v4, key: &[V4], data: &[], intervals: false },
        Set { table, name: v6, key: &[V6], data: &[], intervals: false },
    ]
}

/// Pairs of subnets of one network.
pub(super) static INSIDE: [Set; 2] = pairs(Table::Inet, "inside-v4", "inside-v6");
// Pairs of a network's subnet with everything, as a set of intervals has two fields at least.
/// All networks.
pub(super) static NETWORKS: [Set; 2] = pairs(Table::Inet, "networks-v4", "networks-v6");
/// Those that are closed to the others.
pub(super) static CLOSED: [Set; 2] = pairs(Table::Inet, "closed-v4", "closed-v6");
/// Those that nobody outside comes into.
pub(super) static INTERNAL: [Set; 2] = pairs(Table::Inet, "internal-v4", "internal-v6");
/// Those whose containers talk with each other only as allowed.
pub(super) static PRIVATE: [Set; 2] = pairs(Table::Inet, "private-v4", "private-v6");
/// Those whose containers use no service of the host.
pub(super) static HOSTLESS: [Set; 2] = pairs(Table::Inet, "hostless-v4", "hostless-v6");
/// Those whose containers go out only as allowed.
pub(super) static LIMITED: [Set; 2] = pairs(Table::Inet, "limited-v4", "limited-v6");
/// A network's subnet and where its containers may go, or may not go.
pub(super) static WAYS_OUT: [Set; 2] = pairs(Table::Inet, "egress-allow-v4", "egress-allow-v6");
pub(super) static NO_WAYS_OUT: [Set; 2] = pairs(Table::Inet, "egress-deny-v4", "egress-deny-v6");
/// The same three on the bridges, where two networks can share one. Ports tell whose a frame is, also one that never leaves its link;
/// addresses tell it where a container's port is another plugin's.
pub(super) static PORTS_INSIDE: Set = groups("inside-ports", &[Type::Ifgroup, Type::Ifgroup]);
pub(super) static PORTS_OF_NETWORKS: Set = groups("networks-ports", &[Type::Ifgroup]);
pub(super) static PORTS_CLOSED: Set = groups("closed-ports", &[Type::Ifgroup]);
pub(super) static BRIDGE_INSIDE: [Set; 2] = pairs(Table::Bridge, "inside-v4", "inside-v6");
pub(super) static BRIDGE_NETWORKS: [Set; 2] = pairs(Table::Bridge, "networks-v4", "networks-v6");
pub(super) static BRIDGE_CLOSED: [Set; 2] = pairs(Table::Bridge, "closed-v4", "closed-v6");
/// A bridge and the subnets that networks have on it.
pub(super) static BRIDGES: [Set; 2] = [
    Set { table: Table::Bridge, name: "bridges-v4", key: &[Type::Ifname, V4], data: &[], intervals: true },
    Set { table: Table::Bridge, name: "bridges-v6", key: &[Type::Ifname, V6], data: &[], intervals: true },
];
/// The ports of bridges whose containers talk with each other only as allowed.
pub(super) static PRIVATE_PORTS: Set = groups("private-ports", &[Type::Ifgroup]);
/// The same ports, by their names, where another plugin made them: these are in no group of the network's.
pub(super) static PRIVATE_LINKS: Set =
    Set { table: Table::Bridge, name: "private-links", key: &[Type::Ifname], data: &[], intervals: false };
/// The ports of bridges whose containers use no service of the host.
pub(super) static HOSTLESS_PORTS: Set = groups("hostless-ports", &[Type::Ifgroup]);

/// From container to container, one port.
pub(super) static PORT: [Set; 2] = services("allow-port-v4", "allow-port-v6", false);
/// … several ports.
pub(super) static PORTS: [Set; 2] = services("allow-ports-v4", "allow-ports-v6", true);
/// … everything.
pub(super) static ALL: [Set; 2] = [
    Set { table: Table::Inet, name: "allow-all-v4", key: &[V4, V4], data: &[], intervals: false },
    Set { table: Table::Inet, name: "allow-all-v6", key: &[V6, V6], data: &[], intervals: false },
];
/// From a prefix to a container, from a container to a prefix.
pub(super) static FROM: [Set; 2] = services("allow-from-v4", "allow-from-v6", true);
pub(super) static TO: [Set; 2] = services("allow-to-v4", "allow-to-v6", true);

// Which addresses the sets above have with containers' addresses on both sides; no rule asks them. Whoever gets an address looks
// here, as an element cannot be found by one side of it.
/// Those of containers that hold such elements.
pub(super) static HOLDERS: [Set; 2] = addresses("allow-holders-v4", "allow-holders-v6");
/// Those on the other side.
pub(super) static PARTNERS: [Set; 2] = addresses("allow-partners-v4", "allow-partners-v6");

/// Isolation's part of the table `inet weft`.
pub static GROUP: Group = Group {
    name: "isolation",
    table: Table::Inet,
    sets: &[
        INSIDE[0], INSIDE[1], NETWORKS[0], NETWORKS[1], CLOSED[0], CLOSED[1], INTERNAL[0], INTERNAL[1],
        PRIVATE[0], PRIVATE[1], HOSTLESS[0], HOSTLESS[1], LIMITED[0], LIMITED[1], WAYS_OUT[0], WAYS_OUT[1],
        NO_WAYS_OUT[0], NO_WAYS_OUT[1], PORT[0], PORT[1], PORTS[0], PORTS[1], ALL[0], ALL[1], FROM[0],
        FROM[1], TO[0], TO[1], HOLDERS[0], HOLDERS[1], PARTNERS[0], PARTNERS[1],
    ],
    chains: &[
        Chain { name: "isolation-inside", kind: ChainKind::Regular, rules: inside, uses: 16 },
        Chain { name: "isolation-limited", kind: ChainKind::Regular, rules: limited, uses: 7 },
        Chain { name: "isolation-dialled", kind: ChainKind::Regular, rules: dialled, uses: 4 },
        Chain {
            name: "isolation",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::Forward, priority: FILTER },
            rules: forwarded,
            uses: 19,
        },
        Chain {
            name: "isolation-host",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::LocalIn, priority: FILTER },
            rules: to_the_host,
            uses: 8,
        },
        Chain {
            name: "isolation-redirect",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::LocalOut, priority: FILTER },
            rules: no_redirects,
            uses: 2,
        },
    ],
};

/// Isolation's part of the table `bridge weft`.
pub static BRIDGE_GROUP: Group = Group {
    name: "isolation on bridges",
    table: Table::Bridge,
    sets: &[
        PORTS_INSIDE, PORTS_OF_NETWORKS, PORTS_CLOSED, BRIDGE_INSIDE[0], BRIDGE_INSIDE[1],
        BRIDGE_NETWORKS[0], BRIDGE_NETWORKS[1], BRIDGE_CLOSED[0], BRIDGE_CLOSED[1], BRIDGES[0], BRIDGES[1],
        PRIVATE_PORTS, HOSTLESS_PORTS, PRIVATE_LINKS,
    ],
    chains: &[
        Chain {
            name: "isolation",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::Forward, priority: FILTER_BRIDGED },
            rules: bridged,
            uses: 12,
        },
        Chain {
            name: "isolation-host",
            kind: ChainKind::Base { kind: "filter", hook: InetHookNumber::LocalIn, priority: FILTER_BRIDGED },
            rules: on_link_to_the_host,
            uses: 2,
        },
    ],
};

/// A network that is only closed has nobody to be closed to where it is alone: on the host, on a bridge.
pub static IDLE: [Idle; 2] = [
    Idle {
        group: &GROUP,
        sets: &[INSIDE[0], INSIDE[1], NETWORKS[0], NETWORKS[1], CLOSED[0], CLOSED[1]],
        meeting: &NETWORKS,
        common: 0,
    },
    Idle {
        group: &BRIDGE_GROUP,
        sets: &[
            PORTS_INSIDE, PORTS_OF_NETWORKS, PORTS_CLOSED, BRIDGE_INSIDE[0], BRIDGE_INSIDE[1],
            BRIDGE_NETWORKS[0], BRIDGE_NETWORKS[1], BRIDGE_CLOSED[0], BRIDGE_CLOSED[1], BRIDGES[0],
            BRIDGES[1],
        ],
        meeting: &BRIDGES,
        common: IFNAMSIZ,
    },
];

const fn there(family: Family) -> [Load; 2] {
    [Load::Source(family), Load::Destination(family)]
}

const fn back(family: Family) -> [Load; 2] {
    [Load::Destination(family), Load::Source(family)]
}

/// To where a container may not go.
fn denied(&(family, at): &(Family, usize)) -> Rule {
    Rule::of(family).found(&there(family), &NO_WAYS_OUT[at]).drop()
}

/// The same, by the address that it was sent to where the host has translated this.
fn dialled() -> Vec<Rule> {
    let dialled = FAMILIES.iter().map(|&(family, at)| {
        Rule::of(family).found(&[Load::Source(family), Load::Dialled(family)], &NO_WAYS_OUT[at]).drop()
    });
    dialled.collect()
}

fn to_dialled() -> Rule {
    Rule::any().dnatted().jump("isolation-dialled")
}

/// From containers that go out only as allowed. What conntrack does not know has one address to be allowed by.
fn limited() -> Vec<Rule> {
    let allowed = FAMILIES.iter().flat_map(|&(family, at)| {
        let dialled = [Load::Source(family), Load::Dialled(family)];
        let allowed = |way: &[Load; 2]| Rule::of(family).found(way, &WAYS_OUT[at]).give_back();
        [allowed(&there(family)), allowed(&dialled)]
    });
    allowed.chain([Rule::any().drop()]).collect()
}

/// What begins outside goes to a published port or to a network that lets it in; where it may go is asked before that.
fn forwarded() -> Vec<Rule> {
    let of_network = FAMILIES.iter().flat_map(|of @ &(family, at)| {
        let begin = || Rule::of(family);
        [
            begin().found(&there(family), &INSIDE[at]).jump("isolation-inside"),
            denied(of),
            begin().found(&there(family), &LIMITED[at]).jump("isolation-limited"),
        ]
    });
    let from_others = FAMILIES.iter().flat_map(|&(family, at)| {
        let begin = || Rule::of(family);
        [
            begin().found(&back(family), &CLOSED[at]).found(&there(family), &NETWORKS[at]).drop(),
            begin().found(&there(family), &CLOSED[at]).found(&back(family), &NETWORKS[at]).drop(),
            begin().found(&back(family), &INTERNAL[at]).drop(),
        ]
    });
    let on_link = ON_LINK.iter().map(|(prefix, length)| {
        let family = Family::of(*prefix);
        Rule::of(family).is_in(Field::destination(family), *prefix, *length).accept()
    });
    [Rule::any().known().accept()]
        .into_iter()
        .chain(on_link)
        .chain([to_dialled()])
        .chain(of_network)
        .chain([published().accept()])
        .chain(from_others)
        .collect()
}

/// From one container of a network to another. A published port is everybody's; what others translate has to be allowed.
fn inside() -> Vec<Rule> {
    let allowed = FAMILIES.iter().flat_map(|&(family, at)| {
        let service =
            [Load::Source(family), Load::Destination(family), Load::L4Protocol, Load::DestinationPort];
        let begin = || Rule::of(family);
        [
            begin().not_found(&back(family), &PRIVATE[at]).accept(),
            begin().found(&there(family), &ALL[at]).accept(),
            begin().found(&service, &PORT[at]).accept(),
            begin().found(&service, &PORTS[at]).accept(),
            begin().found(&service, &FROM[at]).accept(),
            begin().found(&service, &TO[at]).accept(),
        ]
    });
    [published().accept()].into_iter().chain(allowed).chain([Rule::any().drop()]).collect()
}

/// Reachability and path MTU are no services, and IPv6 finds its neighbours by ICMP. Without the family, as nft leaves it out
/// when it prints these rules, and would load others.
fn to_the_host() -> Vec<Rule> {
    let icmp = ICMP.map(|(_, protocol)| Rule::any().is(Load::L4Protocol, &protocol).accept());
    let services = FAMILIES.map(|(family, at)| Rule::of(family).found(&there(family), &HOSTLESS[at]).drop());
    let denied = [to_dialled()].into_iter().chain(FAMILIES.iter().map(denied));
    [Rule::any().known().accept()].into_iter().chain(icmp).chain(services).chain(denied).collect()
}

/// A link-local address is no network's, so the chain in the inet table does not know whose it is: here the port tells. Here nothing
/// tells answers from questions, so the host gets no answers to what it asks by such an address, either. In the order and as far as
/// nft prints and loads them.
fn on_link_to_the_host() -> Vec<Rule> {
    let [_, (_, icmp)] = ICMP;
    let [_, (family, ether_type)] = ETHER_TYPES;
    let [_, _, (link_local, length), _] = ON_LINK;
    vec![
        Rule::any().is(Load::L4Protocol, &icmp).accept(),
        Rule::any()
            .found(&[Load::Iifgroup], &HOSTLESS_PORTS)
            .is(Load::Protocol, &ether_type)
            .is_in(Field::source(family), link_local, length)
            .drop(),
    ]
}

/// Containers that reach each other only by the host must not be told of a shorter way.
fn no_redirects() -> Vec<Rule> {
    ICMP.iter()
        .zip(REDIRECT)
        .zip(&PRIVATE)
        .map(|(((family, protocol), redirect), private)| {
            Rule::of(*family)
                .is(Load::L4Protocol, protocol)
                .is(Load::IcmpType, &redirect)
                .found(&back(*family), private)
                .drop()
        })
        .collect()
}

/// A frame that was for the bridge and goes on to another port was turned round by br_netfilter. Address translation in
/// the inet table sent it to a container of the same bridge, and the chain there says whether it may go.
fn bridged() -> Vec<Rule> {
    let translated = Rule::any().to_bridge().accept();
    let [came, goes] = [Load::Iifgroup, Load::Oifgroup];
    let by_port = [
        Rule::any().found(&[came], &PRIVATE_PORTS).found(&[goes], &PRIVATE_PORTS).drop(),
        Rule::any().found(&[came, goes], &PORTS_INSIDE).accept(),
        Rule::any().found(&[goes], &PORTS_CLOSED).found(&[came], &PORTS_OF_NETWORKS).drop(),
        Rule::any().found(&[came], &PORTS_CLOSED).found(&[goes], &PORTS_OF_NETWORKS).drop(),
        Rule::any().found(&[Load::Iifname], &PRIVATE_LINKS).leaves_by(&PRIVATE_LINKS).drop(),
    ];
    let rules = ETHER_TYPES.iter().zip(FAMILIES).flat_map(|((family, ether_type), (_, at))| {
        let begin = || Rule::any().is(Load::Protocol, ether_type);
        [
            begin().found(&there(*family), &BRIDGE_INSIDE[at]).accept(),
            begin()
                .found(&back(*family), &BRIDGE_CLOSED[at])
                .found(&there(*family), &BRIDGE_NETWORKS[at])
                .drop(),
            begin()
                .found(&there(*family), &BRIDGE_CLOSED[at])
                .found(&back(*family), &BRIDGE_NETWORKS[at])
                .drop(),
        ]
    });
    [translated].into_iter().chain(by_port).chain(rules).collect()
}
