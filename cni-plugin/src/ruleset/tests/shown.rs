//! The rules as nft shows them.

use super::*;

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
fn nft_shows_the_host_ports_as_they_are_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    assert_eq!(
        rules_of("inet", "hostport"),
        [
            "ip6 daddr fe80::/10 return",
            "ct label set 119",
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
            "ct status dnat ct label 119 jump hostport-snat",
        ]
    );
    assert_eq!(
        rules_of("inet", "hostport-snat"),
        [
            "ip daddr @hostport-hairpin-v4 ip saddr . ip daddr @hostport-same-v4 masquerade fully-random",
            "ip daddr @hostport-masq-v4 masquerade fully-random",
            "ip6 daddr @hostport-hairpin-v6 ip6 saddr . ip6 daddr @hostport-same-v6 masquerade fully-random",
            "ip6 daddr @hostport-masq-v6 masquerade fully-random",
            "oifname @hostport-localnet ip saddr 127.0.0.0/8 masquerade fully-random",
        ]
    );
    assert_eq!(
        rules_of("inet", "hostport-raw"),
        [
            "type filter hook prerouting priority raw; policy accept;",
            "ip daddr 127.0.0.0/8 iifname @hostport-localnet drop",
            "ip saddr 127.0.0.0/8 iifname @hostport-localnet drop",
        ]
    );
}

#[test]
fn nft_shows_the_guard_as_it_is_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    assert_eq!(
        rules_of("bridge", "guard"),
        [
            "type filter hook prerouting priority dstnat; policy accept;",
            "iif . ether saddr . ip saddr @guard-v4 goto guard-ip-known",
            "iif . ether saddr . ip6 saddr @guard-v6 goto guard-ip6-known",
            "iif @guard goto guard-frames",
        ]
    );
    assert_eq!(
        rules_of("bridge", "guard-frames"),
        [
            "iif . ether saddr != @guard-mac iif != @guard-off-mac drop",
            "ether type ip goto guard-ip",
            "ether type ip6 goto guard-ip6",
            "ether type arp goto guard-arp",
            "ether type 8021q drop",
            "ether type 8021ad drop",
            "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 iif != @guard-off-rogue drop",
            "ether daddr & ff:ff:ff:ff:ff:fe == 01:00:0c:cc:cc:cc iif != @guard-off-rogue drop",
        ]
    );
    assert_eq!(
        rules_of("bridge", "guard-ip"),
        [
            "iifname . ip saddr @guard-more-v4 goto guard-ip-known",
            "iif @guard-off-ip goto guard-ip-known",
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 iif @guard-dhcp accept",
            "drop",
        ]
    );
    assert_eq!(
        rules_of("bridge", "guard-solicit"),
        [
            "ip6 nexthdr != ipv6-icmp drop",
            "ip6 saddr :: jump guard-nd-target",
            "ip6 saddr != :: jump guard-nd-source",
            "ip6 length 24 return",
            "ip6 length 32 @th,192,16 0x101 iif . @th,208,48 @guard-nd-mac return",
            "ip6 length 32 @th,192,16 0xe01 return",
            "drop",
        ]
    );
}

#[test]
fn nft_shows_isolation_as_it_is_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    assert_eq!(
        rules_of("inet", "isolation"),
        [
            "type filter hook forward priority filter; policy accept;",
            "ct state established,related accept",
            "ip daddr 224.0.0.0/24 accept",
            "ip daddr 255.255.255.255 accept",
            "ip6 daddr fe80::/10 accept",
            "ip6 daddr ff02::/16 accept",
            "ct status dnat jump isolation-dialled",
            "ip saddr . ip daddr @inside-v4 jump isolation-inside",
            "ip saddr . ip daddr @egress-deny-v4 drop",
            "ip saddr . ip daddr @limited-v4 jump isolation-limited",
            "ip6 saddr . ip6 daddr @inside-v6 jump isolation-inside",
            "ip6 saddr . ip6 daddr @egress-deny-v6 drop",
            "ip6 saddr . ip6 daddr @limited-v6 jump isolation-limited",
            "ct status dnat ct label 119 accept",
            "ip daddr . ip saddr @closed-v4 ip saddr . ip daddr @networks-v4 drop",
            "ip saddr . ip daddr @closed-v4 ip daddr . ip saddr @networks-v4 drop",
            "ip daddr . ip saddr @internal-v4 drop",
            "ip6 daddr . ip6 saddr @closed-v6 ip6 saddr . ip6 daddr @networks-v6 drop",
            "ip6 saddr . ip6 daddr @closed-v6 ip6 daddr . ip6 saddr @networks-v6 drop",
            "ip6 daddr . ip6 saddr @internal-v6 drop",
        ]
    );
    let inside = rules_of("inet", "isolation-inside");
    assert_eq!(inside.first().map(String::as_str), Some("ct status dnat ct label 119 accept"));
    assert_eq!(
        inside.get(3).map(String::as_str),
        Some("ip saddr . ip daddr . meta l4proto . th dport @allow-port-v4 accept")
    );
    assert_eq!(inside.last().map(String::as_str), Some("drop"));
    assert_eq!(
        rules_of("inet", "isolation-redirect")[1..],
        [
            "icmp type redirect ip daddr . ip saddr @private-v4 drop",
            "icmpv6 type nd-redirect ip6 daddr . ip6 saddr @private-v6 drop",
        ]
    );
    let bridged = rules_of("bridge", "isolation");
    assert_eq!(
        bridged[1..7],
        [
            "meta pkttype host accept",
            "iifgroup @private-ports oifgroup @private-ports drop",
            "iifgroup . oifgroup @inside-ports accept",
            "oifgroup @closed-ports iifgroup @networks-ports drop",
            "iifgroup @closed-ports oifgroup @networks-ports drop",
            "iifname @private-links oifname @private-links drop",
        ]
    );
    assert_eq!(bridged.len(), 13);
    assert_eq!(
        rules_of("bridge", "isolation-host")[1..],
        ["meta l4proto ipv6-icmp accept", "iifgroup @hostless-ports ip6 saddr fe80::/10 drop",]
    );
}

#[test]
fn nft_shows_egress_as_it_is_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    assert_eq!(
        rules_of("inet", "isolation-limited"),
        [
            "ip saddr . ip daddr @egress-allow-v4 return",
            "ip saddr . ct original ip daddr @egress-allow-v4 return",
            "ip6 saddr . ip6 daddr @egress-allow-v6 return",
            "ip6 saddr . ct original ip6 daddr @egress-allow-v6 return",
            "drop",
        ]
    );
    assert_eq!(
        rules_of("inet", "isolation-dialled"),
        [
            "ip saddr . ct original ip daddr @egress-deny-v4 drop",
            "ip6 saddr . ct original ip6 daddr @egress-deny-v6 drop",
        ]
    );
    assert_eq!(
        rules_of("inet", "isolation-host")[4..],
        [
            "ip saddr . ip daddr @hostless-v4 drop",
            "ip6 saddr . ip6 daddr @hostless-v6 drop",
            "ct status dnat jump isolation-dialled",
            "ip saddr . ip daddr @egress-deny-v4 drop",
            "ip6 saddr . ip6 daddr @egress-deny-v6 drop",
        ]
    );
}

#[test]
fn nft_shows_who_may_use_ports_as_it_is_meant() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let limited = |ip: &str, version: &str| {
        format!(
            "{ip} daddr @hostport-limited-{version} {ip} daddr . {ip} saddr != @hostport-sources-{version} drop"
        )
    };
    let of = |ip: &str, version: &str| {
        format!(
            "{ip} daddr . meta l4proto . th dport @hostport-limited-ports-{version} {ip} daddr . {ip} saddr != @hostport-sources-{version} {ip} daddr . {ip} saddr != @hostport-neighbours-{version} drop"
        )
    };
    let shown = rules_of("inet", "hostport-sources");
    assert_eq!(shown[1], "ct state established,related accept");
    assert_eq!(shown[2], "ct status dnat ct label 119 jump hostport-limited");
    assert_eq!(shown[3..], [of("ip", "v4"), of("ip6", "v6")]);
    assert_eq!(rules_of("inet", "hostport-limited"), [limited("ip", "v4"), limited("ip6", "v6")]);
}
