//! Against the real kernel, each test in a network namespace of its own, and seen through the real nft.

use proptest::prelude::*;

use super::*;
use crate::real_nft::{fresh_host, nft, open, ruleset};

mod tampering;

const FRESH: &str = "\
table inet weft {
	set masq-net.a-v4 {
		type ipv4_addr
		flags interval
		elements = { 10.88.0.0/16 }
	}

	set masq-net.a-v6 {
		type ipv6_addr
		flags interval
		elements = { fd00:88::/64 }
	}

	chain masq-net.a {
		comment \"managed by weft\"
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @masq-net.a-v4 ip daddr != @masq-net.a-v4 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip6 saddr @masq-net.a-v6 ip6 daddr != @masq-net.a-v6 ip6 daddr != ff00::/8 masquerade fully-random
	}
}
";

/// With the handles, which tell whether an object was made anew.
fn handles() -> String {
    nft(&["-a", "list", "ruleset"], "")
}

fn elements(set: &str) -> Vec<String> {
    let text = nft(&["list", "set", "inet", "weft", set], "");
    let Some((_, list)) = text.split_once("elements = {") else {
        return Vec::new();
    };
    list.split_once('}').unwrap().0.split(',').map(|one| one.trim().to_owned()).collect()
}

fn network(name: &str) -> NetworkName {
    name.parse().unwrap()
}

fn prefixes(texts: &[&str]) -> Masquerade {
    Masquerade { prefixes: texts.iter().map(|text| text.parse().unwrap()).collect(), exempt: Vec::new() }
}

fn intervals(texts: &[&str]) -> Vec<Interval> {
    prefixes(texts).prefixes.into_iter().map(Interval::from).collect()
}

#[test]
fn available_here() {
    fresh_host().available().unwrap();
}

#[test]
fn nft_shows_what_was_meant() {
    let mut kernel = fresh_host();
    let (name, all) = (network("net.a"), prefixes(&["10.88.0.1/16", "fd00:88::1/64"]));
    assert_eq!(ensure(&mut kernel, &name, &all).unwrap(), Ensured::Network);
    assert_eq!(ruleset(), FRESH);
    check(&mut kernel, &name, &all).unwrap();
}

#[test]
fn a_ruleset_that_was_saved_and_loaded_again_is_intact() {
    let mut kernel = fresh_host();
    let (name, all) = (network("net.a"), prefixes(&["10.88.0.0/16", "fd00:88::/64"]));
    ensure(&mut kernel, &name, &all).unwrap();
    let saved = ruleset();
    nft(&["flush", "ruleset"], "");
    nft(&["-f", "-"], &saved);
    check(&mut kernel, &name, &all).unwrap();
    assert_eq!(ensure(&mut kernel, &name, &all).unwrap(), Ensured::Nothing);
}

#[test]
fn what_is_there_is_not_touched() {
    let mut kernel = fresh_host();
    let (name, all) = (network("net.a"), prefixes(&["10.88.0.0/16", "fd00:88::/64"]));
    ensure(&mut kernel, &name, &all).unwrap();
    let before = handles();
    for again in
        [all, prefixes(&["10.88.7.0/24", "10.88.0.9/32"]), prefixes(&["fd00:88::/80"]), prefixes(&[])]
    {
        assert_eq!(ensure(&mut kernel, &name, &again).unwrap(), Ensured::Nothing);
        check(&mut kernel, &name, &again).unwrap();
    }
    assert_eq!(handles(), before);
}

#[test]
fn prefixes_are_added_and_taken_back() {
    let mut kernel = fresh_host();
    let name = network("n");
    // Neighbours without a gap, single addresses, the ends of the address space.
    let first = prefixes(&["10.0.0.0/25", "10.0.0.128/25", "0.0.0.0/24", "255.255.255.0/24", "10.1.1.1/32"]);
    ensure(&mut kernel, &name, &first).unwrap();
    check(&mut kernel, &name, &first).unwrap();
    let before = ruleset();

    let wider = prefixes(&["10.0.0.0/8", "10.0.0.0/16", "fd00::/64", "ffff::/16"]);
    let ensured = ensure(&mut kernel, &name, &wider).unwrap();
    let expected = Ensured::Elements {
        added: intervals(&["10.0.0.0/8", "fd00::/64", "ffff::/16"]),
        replaced: intervals(&["10.0.0.0/25", "10.0.0.128/25", "10.1.1.1/32"]),
    };
    assert_eq!(ensured, expected);
    assert_eq!(elements("masq-n-v4").len(), 3);
    check(&mut kernel, &name, &wider).unwrap();
    check(&mut kernel, &name, &first).unwrap();

    undo(&mut kernel, &name, &ensured).unwrap();
    assert_eq!(ruleset(), before);
    undo(&mut kernel, &name, &ensured).unwrap();
    assert_eq!(ruleset(), before);
    assert!(
        check(&mut kernel, &name, &wider)
            .unwrap_err()
            .contains("masq-n-v4 of table inet weft lacks 10.0.0.0/8")
    );
}

#[test]
fn everything_at_once_is_an_interval_too() {
    let mut kernel = fresh_host();
    let (name, all) = (network("n"), prefixes(&["0.0.0.0/0", "::/0"]));
    ensure(&mut kernel, &name, &all).unwrap();
    check(&mut kernel, &name, &all).unwrap();
    assert_eq!(ensure(&mut kernel, &name, &prefixes(&["10.0.0.0/8"])).unwrap(), Ensured::Nothing);
}

#[test]
fn a_new_network_is_taken_back_whole() {
    let mut kernel = fresh_host();
    let (one, two) = (network("one"), network("two"));
    let all = prefixes(&["10.88.0.0/16"]);
    ensure(&mut kernel, &one, &all).unwrap();
    let before = ruleset();
    let ensured = ensure(&mut kernel, &two, &all).unwrap();
    assert_eq!(ensured, Ensured::Network);
    undo(&mut kernel, &two, &ensured).unwrap();
    assert_eq!(ruleset(), before);
    undo(&mut kernel, &two, &ensured).unwrap();
    undo(&mut kernel, &one, &Ensured::Network).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn removal_is_idempotent_and_touches_one_network() {
    let mut kernel = fresh_host();
    let all = prefixes(&["10.88.0.0/16", "fd00:88::/64"]);
    remove(&mut kernel, &network("net.a")).unwrap();
    assert_eq!(ruleset(), "");
    ensure(&mut kernel, &network("net.a"), &all).unwrap();
    // Its name ends as the name of another's set does.
    let neighbour = network("net.a-v4");
    ensure(&mut kernel, &neighbour, &all).unwrap();
    remove(&mut kernel, &neighbour).unwrap();
    remove(&mut kernel, &neighbour).unwrap();
    assert_eq!(ruleset(), FRESH);
}

#[test]
fn foreign_tables_stay_byte_for_byte() {
    let mut kernel = fresh_host();
    let script = "add table ip weft
        add set ip weft masq-n-v4 { type inet_service; }
        add chain ip weft masq-n
        add rule ip weft masq-n counter
        add table inet other
        add chain inet other c { type nat hook postrouting priority srcnat; }
        add rule inet other c ip saddr 10.0.0.0/8 masquerade
        add table inet weft
        add chain inet weft theirs
        add rule inet weft theirs ip saddr 10.0.0.1 drop
        add set inet weft masq-m-v4 { type ipv4_addr; }";
    nft(&["-f", "-"], script);
    let before = handles();
    let (name, all) = (network("n"), prefixes(&["10.88.0.0/16", "fd00::/64"]));
    ensure(&mut kernel, &name, &all).unwrap();
    nft(&["flush", "chain", "inet", "weft", "masq-n"], "");
    ensure(&mut kernel, &name, &all).unwrap();
    remove(&mut kernel, &name).unwrap();
    assert_eq!(handles(), before);
}

#[test]
fn the_longest_names_fit() {
    let mut kernel = fresh_host();
    let (name, all) = (network(&"x".repeat(200)), prefixes(&["10.0.0.0/8", "fd00::/64"]));
    assert_eq!(ensure(&mut kernel, &name, &all).unwrap(), Ensured::Network);
    assert_eq!(ensure(&mut kernel, &name, &all).unwrap(), Ensured::Nothing);
    check(&mut kernel, &name, &all).unwrap();
    remove(&mut kernel, &name).unwrap();
    assert_eq!(ruleset(), "table inet weft {\n}\n");
}

/// Runs `work` in several threads of this namespace, all at the same time.
fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = std::sync::Barrier::new(count);
    std::thread::scope(|scope| {
        let run = |index| {
            start.wait();
            work(index)
        };
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn one_of_many_makes_the_network() {
    let mut kernel = fresh_host();
    let (name, all) = (network("net.a"), prefixes(&["10.88.0.0/16", "fd00:88::/64"]));
    for _ in 0..20 {
        let outcomes = at_once(8, |_| ensure(&mut open(), &name, &all).unwrap());
        let makers = outcomes.iter().filter(|outcome| **outcome == Ensured::Network).count();
        let others = outcomes.iter().filter(|outcome| **outcome == Ensured::Nothing).count();
        assert_eq!((makers, others), (1, 7));
        assert_eq!(ruleset(), FRESH);
        remove(&mut kernel, &name).unwrap();
    }
}

#[test]
fn many_add_overlapping_prefixes() {
    let mut kernel = fresh_host();
    let name = network("n");
    for _ in 0..20 {
        let wanted =
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.2.0.0/16", "10.1.1.0/25"];
        at_once(wanted.len(), |index| {
            let mine = prefixes(&[wanted[index]]);
            ensure(&mut open(), &name, &mine).unwrap();
            check(&mut open(), &name, &mine).unwrap();
        });
        assert_eq!(elements("masq-n-v4"), ["10.0.0.0/8"]);
        remove(&mut kernel, &name).unwrap();
    }
}

#[test]
fn a_refusal_names_the_change_and_leaves_nothing() {
    let mut kernel = fresh_host();
    let changes = vec![
        Change::ensure_table(Table::Inet),
        Change::delete_set("a"),
        Change::delete_chain("b"),
        Change::create_chain("c", &chain()),
    ];
    let error = kernel.batch(changes).unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    assert!(error.to_string().contains("delete set a of table inet weft"), "{error}");
    assert_eq!(ruleset(), "");
    // The kernel's other refusals are not taken for answers to what follows.
    kernel.available().unwrap();
    ensure(&mut kernel, &network("n"), &prefixes(&["10.0.0.0/8"])).unwrap();
}

/// Prefixes of 8 addresses, so that many of them meet.
fn any_prefix() -> impl Strategy<Value = Interval> {
    (0_u8..8, 29_u8..=32)
        .prop_map(|(host, length)| Interval::from(IpNetwork::new([10, 0, 0, host].into(), length).unwrap()))
}

proptest! {
    /// Whatever is there and whatever is wanted: the sets' elements stay disjoint, as the kernel demands,
    /// nothing that was covered is lost, and taking back gives what was there.
    #[test]
    fn edits_keep_intervals_disjoint(
        first in proptest::collection::vec(any_prefix(), 0..6),
        second in proptest::collection::vec(any_prefix(), 0..6),
    ) {
        let present = uncovered(&[], first);
        let added = uncovered(&present, second.clone());
        let replaced = overlapped(present.clone(), &added);
        let mut result: Vec<_> = present.iter().filter(|one| !replaced.contains(one)).copied().collect();
        result.extend(&added);
        for (position, one) in result.iter().enumerate() {
            prop_assert!(!result[position + 1..].iter().any(|other| other.overlaps(one)));
        }
        for one in present.iter().chain(&second) {
            prop_assert!(result.iter().any(|other| other.covers(one)));
        }
    }
}

#[test]
fn exempt_destinations_are_conditions_of_the_rule() {
    let mut kernel = fresh_host();
    let name = network("n");
    let exempt = Masquerade {
        exempt: prefixes(&["192.0.2.0/24", "198.51.100.128/25", "2001:db8::/33"]).prefixes,
        ..prefixes(&["10.0.0.0/8", "fd00::/64"])
    };
    assert_eq!(ensure(&mut kernel, &name, &exempt).unwrap(), Ensured::Network);
    assert_eq!(ensure(&mut kernel, &name, &exempt).unwrap(), Ensured::Nothing);
    check(&mut kernel, &name, &exempt).unwrap();
    let rules = ruleset();
    for part in ["ip daddr != 192.0.2.0/24", "ip daddr != 198.51.100.128/25", "ip6 daddr != 2001:db8::/33"] {
        assert!(rules.contains(part), "{rules}");
    }
    // Taken out of the configuration: the rules are made anew, the prefixes stay.
    let none = prefixes(&["10.0.0.0/8"]);
    assert!(check(&mut kernel, &name, &none).unwrap_err().contains("differs"));
    ensure(&mut kernel, &name, &none).unwrap();
    check(&mut kernel, &name, &none).unwrap();
    assert!(!ruleset().contains("192.0.2.0/24") && ruleset().contains("fd00::/64"));
}

#[test]
fn a_rehearsal_changes_nothing_and_is_refused_like_the_real_thing() {
    let mut kernel = fresh_host();
    let name = network("n");
    let wanted = prefixes(&["10.0.0.0/8", "fd00::/64"]);
    let before = ruleset();
    rehearse(&mut kernel, &name, &wanted).unwrap();
    assert_eq!(ruleset(), before);
    ensure(&mut kernel, &name, &wanted).unwrap();
    nft(&["add", "rule", "inet", "weft", "masq-n", "accept"], "");
    let before = ruleset();
    rehearse(&mut kernel, &name, &wanted).unwrap();
    assert_eq!(ruleset(), before);
    // A missing chain is refused as an expression that the kernel lacks would be.
    let missing = Change::add_rule("not-there", &Rule::of(Family::V4).masquerade());
    assert_eq!(kernel.rehearse(vec![missing]).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(ruleset(), before);
}
