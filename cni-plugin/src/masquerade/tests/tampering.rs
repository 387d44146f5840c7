//! What others do to the network's objects, by the real nft: each is found, named and healed.

use super::*;

/// What is done, and what is to be said about it.
fn cases() -> Vec<(String, &'static str)> {
    let v4 = "ip saddr @masq-net.a-v4 ip daddr != @masq-net.a-v4 ip daddr != 224.0.0.0/4 masquerade";
    let v6 =
        "ip6 saddr @masq-net.a-v6 ip6 daddr != @masq-net.a-v6 ip6 daddr != ff00::/8 masquerade fully-random";
    let rules = "flush chain inet weft masq-net.a\nadd rule inet weft masq-net.a";
    let chain = "delete chain inet weft masq-net.a\nadd chain inet weft masq-net.a";
    vec![
        ("flush ruleset".to_owned(), "chain masq-net.a of table inet weft is missing"),
        ("delete table inet weft".to_owned(), "chain masq-net.a of table inet weft is missing"),
        ("delete chain inet weft masq-net.a".to_owned(), "chain masq-net.a of table inet weft is missing"),
        (
            chain.to_owned(),
            "is \"a chain without a hook\", not \"type nat hook postrouting priority 100; policy accept\"",
        ),
        (
            format!("{chain} {{ type nat hook postrouting priority 101; }}"),
            "\"type nat hook postrouting priority 101; policy accept\"",
        ),
        (
            format!("{chain} {{ type nat hook input priority 100; }}"),
            "\"type nat hook localin priority 100; policy accept\"",
        ),
        (
            format!("{chain} {{ type filter hook postrouting priority 100; policy drop; }}"),
            "\"type filter hook postrouting priority 100; policy drop\"",
        ),
        ("flush chain inet weft masq-net.a".to_owned(), "has 0 rules, not 2"),
        ("insert rule inet weft masq-net.a accept".to_owned(), "has 3 rules, not 2"),
        (
            format!("{rules} {v4}\nadd rule inet weft masq-net.a {v6}"),
            "rule 1 of chain masq-net.a of table inet weft differs",
        ),
        (format!("{rules} {v4} random\nadd rule inet weft masq-net.a {v6}"), "rule 1 of"),
        (format!("{rules} {}\nadd rule inet weft masq-net.a {v6}", v4.replace("/4", "/5")), "rule 1 of"),
        (format!("{rules} {}\nadd rule inet weft masq-net.a {v6}", v4.replace("!= @", "@")), "rule 1 of"),
        (format!("{rules} notrack\nadd rule inet weft masq-net.a {v6}"), "rule 1 of"),
        (format!("{rules} {v4} fully-random\nadd rule inet weft masq-net.a counter"), "rule 2 of"),
        (
            "flush set inet weft masq-net.a-v4".to_owned(),
            "set masq-net.a-v4 of table inet weft lacks 10.88.0.0/16",
        ),
        (
            "flush set inet weft masq-net.a-v6".to_owned(),
            "set masq-net.a-v6 of table inet weft lacks fd00:88::/64",
        ),
        (
            "delete element inet weft masq-net.a-v4 { 10.88.0.0/16 }
             add element inet weft masq-net.a-v4 { 10.88.0.0/17, 10.88.128.0-10.88.255.254 }"
                .to_owned(),
            "lacks 10.88.0.0/16",
        ),
    ]
}

#[test]
fn tampering_is_found_and_healed() {
    let mut kernel = fresh_host();
    let (name, all) = (network("net.a"), prefixes(&["10.88.0.0/16", "fd00:88::/64"]));
    for (script, expected) in cases() {
        ensure(&mut kernel, &name, &all).unwrap();
        nft(&["-f", "-"], &script);
        let found = check(&mut kernel, &name, &all).expect_err(&script);
        assert!(found.contains(expected), "{script}: {found}");
        ensure(&mut kernel, &name, &all).unwrap_or_else(|error| panic!("{script}: {error}"));
        check(&mut kernel, &name, &all).unwrap();
        assert_eq!(ruleset(), FRESH, "{script}");
    }
}

#[test]
fn a_set_of_another_kind_is_found() {
    let mut kernel = fresh_host();
    let (name, all) = (network("n"), prefixes(&["10.88.0.0/16"]));
    ensure(&mut kernel, &name, &all).unwrap();
    let rules = nft(&["list", "chain", "inet", "weft", "masq-n"], "");
    let script = format!(
        "delete chain inet weft masq-n\ndelete set inet weft masq-n-v4
         add set inet weft masq-n-v4 {{ type ipv4_addr; }}\n{rules}"
    );
    nft(&["-f", "-"], &script);
    let found = check(&mut kernel, &name, &all).unwrap_err();
    assert!(found.contains("set masq-n-v4 of table inet weft does not hold IPv4 intervals"), "{found}");
}

#[test]
fn healing_keeps_the_prefixes_of_others() {
    let mut kernel = fresh_host();
    let name = network("n");
    let (theirs, mine) = (prefixes(&["10.1.0.0/16", "fd01::/64"]), prefixes(&["10.2.0.0/16"]));
    ensure(&mut kernel, &name, &theirs).unwrap();
    nft(&["flush", "chain", "inet", "weft", "masq-n"], "");
    let ensured = ensure(&mut kernel, &name, &mine).unwrap();
    assert_eq!(ensured, Ensured::Elements { added: intervals(&["10.2.0.0/16"]), replaced: Vec::new() });
    check(&mut kernel, &name, &theirs).unwrap();
    check(&mut kernel, &name, &mine).unwrap();
    undo(&mut kernel, &name, &ensured).unwrap();
    check(&mut kernel, &name, &theirs).unwrap();
    assert_eq!(elements("masq-n-v4"), ["10.1.0.0/16"]);
}
