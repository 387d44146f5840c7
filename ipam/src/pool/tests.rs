use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::range::RangeSpec;

fn range(subnet: &str) -> Range {
    spec(subnet, None, None, None).unwrap()
}

fn spec(
    subnet: &str,
    start: Option<&str>,
    end: Option<&str>,
    gateway: Option<&str>,
) -> Result<Range, Invalid> {
    let subnet = network(subnet);
    Range::new(&RangeSpec { subnet, start: start.map(ip), end: end.map(ip), gateway: gateway.map(ip) })
}

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn pools(sets: &[Vec<Range>], exclude: &[&str]) -> Pools {
    Pools::new(sets, exclude.iter().map(|t| t.parse().unwrap()).collect()).unwrap()
}

fn ips(set: &RangeSet, last: Option<&str>, n: usize) -> Vec<String> {
    set.after(last.map(|l| l.parse().unwrap())).take(n).map(|ip| ip.to_string()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_ends_of_a_subnet_and_the_gateway_are_not_given() {
    for (subnet, total, first, gateway) in [
        ("10.0.0.0/24", 253_u128, "10.0.0.2", Some("10.0.0.1")),
        ("10.0.0.0/30", 1, "10.0.0.2", Some("10.0.0.1")),
        ("10.0.0.0/31", 1, "10.0.0.1", Some("10.0.0.0")),
        ("10.0.0.7/32", 1, "10.0.0.7", None),
        ("10.0.0.0/8", (1 << 24) - 3, "10.0.0.2", Some("10.0.0.1")),
        ("fd00::/64", (1 << 64) - 2, "fd00::2", Some("fd00::1")),
        ("fd00::/16", (1 << 112) - 2, "fd00::2", Some("fd00::1")),
        ("fd00::/126", 2, "fd00::2", Some("fd00::1")),
        ("fd00::/127", 1, "fd00::1", Some("fd00::")),
        ("fd00::7/128", 1, "fd00::7", None),
    ] {
        let pools = pools(&[vec![range(subnet)]], &[]);
        let set = &pools.sets()[0];
        assert_eq!(set.total(), total, "{subnet}");
        assert_eq!(ips(set, None, 1), [first], "{subnet}");
        let range = set.range_of(ip(first)).unwrap();
        assert_eq!(range.gateway(), gateway.map(ip), "{subnet}");
        assert_eq!(range.subnet().to_string(), subnet);
    }
}

#[test]
fn the_order_goes_on_behind_the_last_one_and_around() {
    let ranges = vec![
        spec("10.0.0.0/24", Some("10.0.0.10"), Some("10.0.0.11"), None).unwrap(),
        spec("10.0.1.0/24", Some("10.0.1.0"), Some("10.0.1.2"), None).unwrap(),
    ];
    let pools = pools(&[ranges], &[]);
    let set = &pools.sets()[0];
    // 10.0.1.0 is the network, 10.0.1.1 the gateway.
    assert_eq!(ips(set, None, 9), ["10.0.0.10", "10.0.0.11", "10.0.1.2"]);
    assert_eq!(ips(set, Some("10.0.0.10"), 9), ["10.0.0.11", "10.0.1.2", "10.0.0.10"]);
    assert_eq!(ips(set, Some("10.0.0.11"), 9), ["10.0.1.2", "10.0.0.10", "10.0.0.11"]);
    assert_eq!(ips(set, Some("10.0.1.2"), 9), ["10.0.0.10", "10.0.0.11", "10.0.1.2"]);
    // Of another configuration, or the other family.
    assert_eq!(ips(set, Some("10.9.9.9"), 1), ["10.0.0.10"]);
    assert_eq!(ips(set, Some("fd00::1"), 1), ["10.0.0.10"]);
}

#[test]
fn exclusions_are_cut_out_and_never_walked() {
    let pools = pools(&[vec![range("fd00::/64")], vec![range("10.0.0.0/29")]], &["fd00::/65", "10.0.0.4"]);
    assert_eq!(ips(&pools.sets()[0], None, 1), ["fd00::8000:0:0:0"]);
    assert_eq!(ips(&pools.sets()[1], None, 9), ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"]);
    for (address, refusal) in [
        ("10.0.0.4", Some(Refusal::Excluded)),
        ("10.0.0.1", Some(Refusal::Gateway)),
        ("10.0.0.0", Some(Refusal::NetworkOrBroadcast)),
        ("10.0.0.7", Some(Refusal::NetworkOrBroadcast)),
        ("10.0.0.8", Some(Refusal::Outside)),
        ("fd00::3", Some(Refusal::Excluded)),
        ("fd00::", Some(Refusal::NetworkOrBroadcast)),
        ("10.0.0.2", None),
    ] {
        assert_eq!(pools.refusal(ip(address)), refusal, "{address}");
    }
}

#[test]
fn the_gateway_of_one_range_is_not_given_by_another() {
    let low = spec("10.0.0.0/24", Some("10.0.0.2"), Some("10.0.0.4"), Some("10.0.0.9")).unwrap();
    let high = spec("10.0.0.0/24", Some("10.0.0.8"), Some("10.0.0.10"), Some("10.0.0.3")).unwrap();
    let pools = pools(&[vec![low], vec![high]], &[]);
    assert_eq!(ips(&pools.sets()[0], None, 9), ["10.0.0.2", "10.0.0.4"]);
    assert_eq!(ips(&pools.sets()[1], None, 9), ["10.0.0.8", "10.0.0.10"]);
}

#[test]
fn wrong_ranges_are_refused_with_key_and_value() {
    type Case = (
        &'static str,
        Option<&'static str>,
        Option<&'static str>,
        Option<&'static str>,
        &'static str,
        &'static str,
    );
    let cases: [Case; 18] = [
        ("10.0.0.1/24", None, None, None, "subnet", "10.0.0.0/24"),
        ("fd00::1/64", None, None, None, "subnet", "fd00::/64"),
        ("224.0.0.0/24", None, None, None, "subnet", "multicast"),
        ("127.0.0.0/8", None, None, None, "subnet", "loopback"),
        ("0.0.0.0/0", None, None, None, "subnet", "0.0.0.0/8"),
        ("0.0.0.0/24", None, None, None, "subnet", "0.0.0.0/8"),
        ("255.255.255.0/24", None, None, None, "subnet", "broadcast"),
        ("fe80:1::/64", None, None, None, "subnet", "link-local"),
        ("ff02::/64", None, None, None, "subnet", "multicast"),
        ("::/0", None, None, None, "subnet", "::/127"),
        ("::ffff:10.0.0.0/120", None, None, None, "subnet", "IPv4 in IPv6"),
        ("10.0.0.0/24", Some("10.0.1.1"), None, None, "rangeStart", "outside subnet"),
        ("10.0.0.0/24", None, Some("10.0.1.1"), None, "rangeEnd", "outside subnet"),
        ("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8"), None, "rangeStart", "10.0.0.8, before"),
        ("10.0.0.0/24", None, None, Some("10.0.1.1"), "gateway", "outside subnet"),
        ("10.0.0.0/24", None, None, Some("fd00::1"), "gateway", "outside subnet"),
        ("10.0.0.0/24", None, None, Some("10.0.0.255"), "gateway", "broadcast"),
        ("10.0.0.0/24", Some("fd00::1"), None, None, "rangeStart", "outside subnet"),
    ];
    for (subnet, start, end, gateway, key, part) in cases {
        let invalid = spec(subnet, start, end, gateway).unwrap_err();
        assert_eq!(invalid.key, key, "{invalid:?}");
        assert!(invalid.reason.contains(part), "{invalid:?}");
        assert!(!invalid.value.is_empty(), "{invalid:?}");
    }
    assert!(spec("240.0.0.0/24", None, None, None).is_ok(), "routed by Linux");
}

#[test]
fn wrong_sets_are_refused_with_their_place() {
    let refused = |sets: &[Vec<Range>], exclude: &[&str]| {
        Pools::new(sets, exclude.iter().map(|t| t.parse().unwrap()).collect()).unwrap_err()
    };
    let overlapping = refused(&[vec![range("10.0.0.0/24")], vec![range("10.0.0.0/16")]], &[]);
    assert_eq!((overlapping.set, overlapping.range), (1, Some(0)));
    assert!(overlapping.invalid.reason.contains("10.0.0.0/24"), "{overlapping:?}");
    let mixed = refused(&[vec![range("10.0.0.0/24"), range("fd00::/64")]], &[]);
    assert_eq!((mixed.set, mixed.range), (0, Some(1)));
    assert!(refused(&[vec![]], &[]).invalid.reason.contains("holds no range"));
    let full = refused(&[vec![range("10.0.0.0/30")]], &["10.0.0.2"]);
    assert!(full.invalid.reason.contains("no address left"), "{full:?}");
    let gateway = spec("10.0.0.7/32", None, None, Some("10.0.0.7")).unwrap();
    assert!(refused(&[vec![gateway]], &[]).invalid.reason.contains("no address left"));
}

#[test]
fn a_set_shows_itself() {
    let ranges = vec![range("10.0.0.0/24"), spec("10.1.0.0/16", Some("10.1.2.3"), None, None).unwrap()];
    let pools = pools(&[ranges], &[]);
    assert_eq!(pools.sets()[0].to_string(), "10.0.0.0/24 and 10.1.0.0/16 from 10.1.2.3 to 10.1.255.254");
}

prop_compose! {
    /// A small subnet somewhere in 10.0.0.0/8 or fd00::/16, with a start and end in it.
    fn any_range()(v4 in any::<bool>(), base in any::<u16>(), len in 24_u8..=32, a in any::<u8>(), b in any::<u8>(), at in any::<u8>())
        -> Range {
        let (prefix, size) = (if v4 { len } else { len + 96 }, 1_u32 << (32 - len));
        let within = |n: u8| u32::from(n) % size;
        let address = |n: u32| -> IpAddr {
            let low = (u32::from(base) << 8) + n;
            if v4 { std::net::Ipv4Addr::from(0x0a00_0000 + low).into() }
            else { std::net::Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(low)).into() }
        };
        let subnet = IpNetwork::new(address(0), prefix).unwrap();
        let (start, end) = (within(a.min(b)), within(a.max(b)));
        let (start, end) = (start.min(end), start.max(end));
        let gateway = Some(address(within(at)));
        let spec = RangeSpec { subnet, start: Some(address(start)), end: Some(address(end)), gateway };
        Range::new(&spec).or_else(|_| Range::new(&RangeSpec { gateway: None, ..spec })).unwrap()
    }
}

fn any_set() -> impl Strategy<Value = Pools> {
    let exclude = prop::collection::vec(any_range().prop_map(|r| r.subnet()), 0..3);
    (prop::collection::vec(any_range(), 1..4), exclude)
        .prop_filter_map("overlaps or nothing left", |(ranges, exclude)| Pools::new(&[ranges], exclude).ok())
}

proptest! {
    #[test]
    fn every_address_once_and_none_that_must_not_be(pools in any_set(), nth in any::<prop::sample::Index>()) {
        let set = &pools.sets()[0];
        let all: Vec<IpAddr> = set.after(None).collect();
        prop_assert_eq!(all.len() as u128, set.total());
        let unique: HashSet<IpAddr> = all.iter().copied().collect();
        prop_assert_eq!(unique.len(), all.len());
        for ip in &all {
            let range = set.range_of(*ip).unwrap();
            prop_assert!(range.subnet().contains(*ip) && set.gives(*ip));
            prop_assert_ne!(range.gateway(), Some(*ip));
            prop_assert_eq!(pools.refusal(*ip), None);
            if range.subnet().is_ipv4() && range.subnet().prefix() < 31 {
                prop_assert_ne!(range.subnet().broadcast(), *ip);
                prop_assert_ne!(range.subnet().network(), *ip);
            }
        }
        // From any of them on: the same addresses, rotated so that this one is the last.
        let at = nth.index(all.len());
        let rotated: Vec<IpAddr> = set.after(Some(all[at])).collect();
        let expected: Vec<IpAddr> = all[at + 1..].iter().chain(&all[..=at]).copied().collect();
        prop_assert_eq!(rotated, expected);
    }

    /// A pool used as the store uses it: take the next free one, give some back, until it is full.
    #[test]
    fn never_twice_until_full(pools in any_set(), frees in prop::collection::vec(any::<u8>(), 0..40)) {
        let set = &pools.sets()[0];
        let (mut held, mut last, mut frees) = (Vec::new(), None, frees.into_iter());
        loop {
            let Some(next) = set.after(last).take(held.len() + 1).find(|ip| !held.contains(ip)) else { break };
            held.push(next);
            last = Some(next);
            if let Some(free) = frees.next().filter(|f| f % 2 == 0) {
                held.swap_remove(usize::from(free) % held.len());
            }
        }
        prop_assert_eq!(held.len() as u128, set.total());
    }

    #[test]
    fn a_refusal_for_exactly_what_is_not_given(pools in any_set(), low in any::<u32>()) {
        let near = pools.sets()[0].after(None).next().unwrap();
        let ip = match near {
            IpAddr::V4(ip) => IpAddr::from(std::net::Ipv4Addr::from(u32::from(ip).wrapping_add(low % 512).wrapping_sub(256))),
            IpAddr::V6(ip) => IpAddr::from(std::net::Ipv6Addr::from(u128::from(ip).wrapping_add(u128::from(low % 512)).wrapping_sub(256))),
        };
        prop_assert_eq!(pools.refusal(ip).is_none(), pools.sets()[0].after(None).any(|given| given == ip));
    }
}

proptest! {
    /// Cut in blocks the order is the same: nothing twice, nothing left out, no piece in two blocks.
    #[test]
    fn pieces_are_the_order_cut_at_blocks(
        bits in 20_u8..=30,
        offset in 0_u32..4096,
        excluded in prop::collection::vec(0_u32..4096, 0..4),
        last in prop::option::of(0_u32..4096),
    ) {
        let base = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0));
        let subnet = IpNetwork::new(std::net::Ipv4Addr::from(base + offset).into(), bits).unwrap();
        let subnet = format!("{}/{bits}", subnet.network());
        let exclude: Vec<String> =
            excluded.iter().map(|n| std::net::Ipv4Addr::from(base + n).to_string()).collect();
        let exclude = exclude.iter().map(|text| text.parse().unwrap()).collect();
        let Ok(pools) = Pools::new(&[vec![range(&subnet)]], exclude) else { return Ok(()) };
        let set = &pools.sets()[0];
        let last = last.map(|n| std::net::Ipv4Addr::from(base + n).into());
        let pieces: Vec<Span> = set.pieces_after(last).collect();
        prop_assert!(pieces.iter().all(|piece| piece.first <= piece.last && piece.first >> 8 == piece.last >> 8));
        let of_pieces = pieces.iter().flat_map(|piece| piece.first..=piece.last).map(|n| address(set.family(), n));
        prop_assert!(of_pieces.eq(set.after(last)));
        prop_assert_eq!(set.after(last).collect::<HashSet<_>>().len() as u128, set.total());
    }
}
