//! Against the real kernel, each test in a network namespace of its own, and seen through the real nft.

use weft_net::nft::Tuple;

use super::*;
use crate::real_nft::{fresh_host, nft, ruleset};

fn key(container: &str) -> AttachmentKey {
    AttachmentKey {
        network: "net".parse().unwrap(),
        container_id: container.parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

/// An element of the first set of every group, so that all groups are needed.
fn some_of_all() -> Elements {
    let element = |group: &&Group| {
        let set = group.sets.iter().find(|set| set.data.is_empty() && !set.intervals).unwrap();
        let tuple = set.key.iter().fold(Tuple::default(), |tuple, field| match field {
            weft_net::nft::Type::Ifname => tuple.ifname("weft0"),
            weft_net::nft::Type::Address(weft_net::Family::V4) => tuple.address([10, 0, 0, 1].into()),
            weft_net::nft::Type::Address(weft_net::Family::V6) => tuple.address([0; 16].into()),
            weft_net::nft::Type::Mac => tuple.mac([2, 0, 0, 0, 0, 1].into()),
            weft_net::nft::Type::Protocol => tuple.protocol(6),
            weft_net::nft::Type::Port => tuple.port(80),
        });
        Element::new(set, tuple, "an element".into())
    };
    Elements { own: GROUPS.iter().map(element).collect(), shared: Vec::new() }
}

fn ensure_all(kernel: &mut Nft) -> Vec<&'static Group> {
    ensure(kernel, &some_of_all(), &mut Vec::new).unwrap()
}

/// Each rule as nft prints it, without what is around.
fn rules_of(table: &str, chain: &str) -> Vec<String> {
    let text = nft(&["list", "chain", table.split(' ').next().unwrap(), "weft", chain], "");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}");
    lines
        .filter(|line| {
            !line.starts_with("table") && !line.starts_with("chain") && !line.starts_with("comment")
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn what_is_made_is_intact() {
    let mut kernel = fresh_host();
    assert_eq!(ensure_all(&mut kernel).len(), GROUPS.len());
    let handles = nft(&["-a", "list", "ruleset"], "");
    assert!(ensure_all(&mut kernel).is_empty());
    assert_eq!(nft(&["-a", "list", "ruleset"], ""), handles, "nothing is made anew");
    check(&mut kernel, &key("a"), &Elements::default()).unwrap();
}

#[test]
fn a_ruleset_that_was_saved_and_loaded_again_is_intact() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let saved = ruleset();
    nft(&["flush", "ruleset"], "");
    nft(&["-f", "-"], &saved);
    assert_eq!(ruleset(), saved);
    assert!(ensure_all(&mut kernel).is_empty());
}

#[test]
fn nft_shows_the_host_ports_as_they_are_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    assert_eq!(
        rules_of("inet", "hostport"),
        [
            "dnat ip to ip daddr . meta l4proto . th dport map @hostport-at-v4",
            "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @hostport-v4",
            "dnat ip to ip daddr . meta l4proto . th dport map @hostport-range-v4",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostport-at-v6",
            "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @hostport-v6",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostport-range-v6",
        ]
    );
    assert_eq!(
        rules_of("inet", "hostport-in"),
        [
            "type nat hook prerouting priority dstnat + 10; policy accept;",
            "ip daddr 127.0.0.0/8 return",
            "fib daddr type local jump hostport",
        ]
    );
    assert_eq!(
        rules_of("inet", "hostport-masq"),
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            "ct status dnat ip saddr . ip daddr @hostport-same-v4 masquerade fully-random",
            "ct status dnat ip daddr @hostport-masq-v4 masquerade fully-random",
            "ct status dnat ip6 saddr . ip6 daddr @hostport-same-v6 masquerade fully-random",
            "ct status dnat ip6 daddr @hostport-masq-v6 masquerade fully-random",
            "ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random",
        ]
    );
    assert_eq!(
        rules_of("inet", "hostport-raw"),
        [
            "type filter hook prerouting priority raw; policy accept;",
            "iifname @hostport-localnet ip daddr 127.0.0.0/8 drop",
            "iifname @hostport-localnet ip saddr 127.0.0.0/8 drop",
        ]
    );
}

#[test]
fn altered_rules_are_made_anew_and_elements_stay() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let whole = ruleset();
    for group in GROUPS {
        let family = group.table.to_string();
        for chain in group.chains {
            for tampering in [
                "flush chain FAMILY CHAIN",
                "add rule FAMILY CHAIN accept",
                "insert rule FAMILY CHAIN accept",
            ] {
                let tampering = tampering.replace("FAMILY", &family).replace("CHAIN", chain.name);
                nft(&["-f", "-"], &tampering);
                assert!(check(&mut kernel, &key("a"), &elements).is_err(), "{tampering}");
                assert!(ensure_all(&mut kernel).is_empty(), "{tampering}: it was there");
                assert_eq!(ruleset(), whole, "{tampering}");
            }
        }
    }
}

#[test]
fn what_was_flushed_comes_back_with_the_elements_of_others() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let whole = ruleset();
    for tampering in ["flush ruleset", "flush table inet weft", "delete table inet weft"] {
        nft(&["-f", "-"], tampering);
        assert!(check(&mut kernel, &key("a"), &elements).is_err(), "{tampering}");
        ensure(&mut kernel, &elements, &mut || vec![elements.clone()]).unwrap();
        check(&mut kernel, &key("a"), &elements).unwrap();
        assert_eq!(ruleset(), whole, "{tampering}");
    }
}

#[test]
fn elements_are_found_by_the_hash_alone() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let empty = ruleset();
    let elements = some_of_all().of(&key("a"));
    for known in [None, Some(&elements)] {
        add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
        remove(&mut kernel, &key("b"), None).unwrap();
        check(&mut kernel, &key("a"), &elements).unwrap();
        remove(&mut kernel, &key("a"), known).unwrap();
        remove(&mut kernel, &key("a"), known).unwrap();
        assert_eq!(ruleset(), empty);
    }
}

#[test]
fn a_holder_gives_way_only_when_it_is_gone() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let (one, two) = (some_of_all().of(&key("one")), some_of_all().of(&key("two")));
    add(&mut kernel, &key("one"), &one, &|_| true).unwrap();
    let Err(Fault::Told(error)) = add(&mut kernel, &key("two"), &two, &|_| true) else {
        panic!("it was held");
    };
    assert_eq!(error.code, Code::Conflict);
    assert!(error.msg.contains("container one"), "{error}");
    add(&mut kernel, &key("two"), &two, &|_| false).unwrap();
    check(&mut kernel, &key("two"), &two).unwrap();
}

#[test]
fn a_new_group_is_taken_back_whole() {
    let mut kernel = fresh_host();
    let made = ensure_all(&mut kernel);
    undo(&mut kernel, &made).unwrap();
    undo(&mut kernel, &made).unwrap();
    assert_eq!(ruleset(), "");
}
