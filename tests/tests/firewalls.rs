//! Beside the firewalls of others: STATUS says what they drop and what lets it pass, and not one rule of theirs is changed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

#[path = "firewalls/at_the_end.rs"]
mod at_the_end;
#[path = "firewalls/firewalld.rs"]
mod firewalld;
#[path = "firewalls/reload.rs"]
mod reload;
#[path = "firewalls/uplinks.rs"]
mod uplinks;

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::json;
use weft_tests::{
    Dockerd, Host, Injection, Mirror, Network, Outside, Pod, Reply, assert_way, command,
    masqueraded as network,
};

/// A host with a way to everybody else.
fn connected() -> (Host, Outside) {
    let host = Host::new();
    let outside = host.outside();
    command("ip route add default via 198.51.100.2 dev up0");
    command("ip -6 route add default via 2001:db8:ffff::2 dev up0");
    (host, outside)
}

/// With a host port, by which the container's port 80 is reached.
fn published() -> Network {
    let mapping = json!({ "hostPort": 80, "containerPort": 80, "protocol": "tcp" });
    network().with(&json!({
        "capabilities": { "portMappings": true }, "runtimeConfig": { "portMappings": [mapping] }
    }))
}

/// Everything of others that filters, with the numbers that the kernel gave; without what counters counted.
fn foreign(host: &Host) -> String {
    assert!(host.link("up0").is_some(), "it is this host's");
    let everything = command("nft -s -a list ruleset");
    // Weft's own tables have come or not.
    let is_weft = |table: &str| table.starts_with("inet weft ") || table.starts_with("bridge weft ");
    let is_foreign = |table: &&str| !table.is_empty() && !is_weft(table);
    let tables = everything.trim_start_matches("table ").split("\ntable ").filter(is_foreign);
    let mut text: String = tables.map(|table| format!("{}\n", table.trim())).collect();
    for save in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        let family = if save.starts_with("ip6") { "ip6" } else { "ip" };
        // Reading a table of iptables-legacy makes it.
        if save.contains("legacy") && command(&format!("cat /proc/self/net/{family}_tables_names")).is_empty()
        {
            continue;
        }
        for line in command(save).lines().filter(|line| !line.starts_with('#')) {
            let line = if line.starts_with(':') { line.split(" [").next().unwrap() } else { line };
            writeln!(text, "{line}").unwrap();
        }
    }
    text
}

/// The remedies that STATUS names, carried out word by word.
#[track_caller]
fn follow(reply: &Reply, words: &[&str]) {
    let error = reply.error_code(51);
    error.assert_names(words);
    for line in error.msg.lines().chain(error.details.lines()) {
        if let Some((_, remedy)) = line.rsplit_once(" pass: ") {
            remedy.split(" && ").for_each(|line| drop(command(line)));
        }
    }
}

fn reaches(pod: &Pod, address: &str) -> bool {
    pod.ping(address.parse::<IpAddr>().unwrap()).status.success()
}

/// Whether others reach the container's host port.
#[track_caller]
fn assert_port(is_open: bool, web: &Mirror, outside: &Outside, what: &str) {
    for address in Outside::HOST {
        assert_way(is_open, web, outside, address.parse().unwrap(), what);
    }
}

/// Containers reach others, but nobody reaches their host ports: STATUS says so where they may have any, and what helps.
fn ports_behind(pod: &Pod, outside: &Outside, remedies: &[String]) {
    let web = Mirror::on(pod, 80);
    Outside::PEER.iter().for_each(|address| assert!(reaches(pod, address), "{address} answers"));
    assert_port(false, &web, outside, "behind the firewall");
    let reply = network().status();
    reply.done();
    assert!(!reply.stderr.contains("weft0"), "who has no host ports is not warned: {}", reply.stderr);
    let remedies = remedies.iter().map(String::as_str);
    let words: Vec<&str> = remedies.chain(["what comes from other networks to host ports"]).collect();
    follow(&published().status(), &words);
    published().status().done();
    assert_port(true, &web, outside, "after what STATUS named was done");
}

/// ADD, CHECK, DEL and STATUS beside what was loaded leave all of it byte for byte.
fn assert_untouched(host: &Host) {
    let before = foreign(host);
    let pod = Pod::new();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let network = network().with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
    let result = network.add(&pod);
    assert_eq!(foreign(host), before, "after ADD");
    network.check(&pod, &result).done();
    let _either_way = network.status();
    assert_eq!(foreign(host), before, "after STATUS");
    network.del(&pod);
    network.gc(&[]);
    assert_eq!(foreign(host), before, "after DEL and GC");
}

/// Containers are cut off, STATUS says so for each family and what helps; when that was done they are not.
fn behind((host, outside): (&Host, &Outside), suffix: &str, chains: [&str; 2]) {
    assert_untouched(host);
    let pod = Pod::new();
    published().add(&pod);
    for address in Outside::PEER {
        assert!(!reaches(&pod, address), "{address} is behind the firewall");
    }
    let shown = if suffix == "-legacy" { suffix } else { "" };
    // Of both families at once.
    let [v4, v6] = [("iptables", chains[0], "-i"), ("ip6tables", chains[1], "-o")]
        .map(|(program, chain, way)| format!("{program}{shown} -I {chain} {way} weft0 -j ACCEPT"));
    follow(&network().status(), &["FORWARD", &v4, &v6, "other networks"]);
    network().status().done();
    for address in Outside::PEER {
        assert!(reaches(&pod, address), "{address} after what STATUS named was done");
    }
    let mut remedies = Vec::new();
    for (program, chain) in ["iptables", "ip6tables"].iter().zip(chains) {
        command(&format!("{program}{suffix} -D {chain} -o weft0 -j ACCEPT"));
        command(&format!(
            "{program}{suffix} -I {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        ));
        remedies.push(format!("{program}{shown} -I {chain} -o weft0 -j ACCEPT"));
    }
    ports_behind(&pod, outside, &remedies);
    assert_untouched(host);
}

fn iptables(suffix: &str) {
    let (host, outside) = connected();
    for program in ["iptables", "ip6tables"] {
        command(&format!("{program}{suffix} -P FORWARD DROP"));
        command(&format!("{program}{suffix} -A FORWARD -m conntrack --ctstate INVALID -j DROP"));
    }
    behind((&host, &outside), suffix, ["FORWARD"; 2]);
}

#[test]
fn iptables_nft_with_policy_drop() {
    iptables("-nft");
}

#[test]
fn iptables_legacy_with_policy_drop() {
    iptables("-legacy");
}

fn docker(suffix: &str) {
    let (host, outside) = connected();
    let _dockerd = Dockerd::new(suffix);
    assert!(command(&format!("iptables{suffix} -S FORWARD")).contains("-P FORWARD DROP"), "as Docker has it");
    // Before version 27 it has no chain for users' rules of IPv6.
    let chains = ["iptables", "ip6tables"].map(|program| {
        let rules = command(&format!("{program}{suffix} -S"));
        if rules.contains("-N DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" }
    });
    assert_eq!(chains[0], "DOCKER-USER");
    behind((&host, &outside), suffix, chains);
}

#[test]
fn docker_by_iptables_nft() {
    docker("-nft");
}

#[test]
fn docker_by_iptables_legacy() {
    docker("-legacy");
}

#[test]
fn a_firewall_that_names_the_bridge_is_no_alarm() {
    let (host, _outside) = connected();
    for rules in [
        "iifname \"weft0\" accept; ct state established,related accept",
        "ct state established accept; iifname { \"br0\", \"weft0\" } oifname \"up0\" accept",
        "ct state { established, related } accept; iifname \"weft*\" jump ours",
        "oifname \"weft0\" accept; iifname != \"up0\" accept",
    ] {
        let text = format!(
            "table inet mine {{ chain ours {{ accept; }}; chain passing {{ type filter hook forward priority 0; policy drop; {rules}; }}; }}"
        );
        host.nft(&text);
        let reply = network().status();
        reply.done();
        assert!(!reply.stderr.contains("weft0"), "no warning either: {}", reply.stderr);
        let pod = Pod::new();
        network().add(&pod);
        Outside::PEER
            .iter()
            .for_each(|address| assert!(reaches(&pod, address), "{rules} lets {address} answer"));
        network().del(&pod);
        command("nft delete table inet mine");
    }
}

#[test]
fn host_ports_behind_a_table_of_nftables() {
    let (host, outside) = connected();
    host.nft(
        "table inet mine { chain passing { type filter hook forward priority 0; policy drop; iifname \"weft0\" accept; ct state established,related accept; }; }",
    );
    let pod = Pod::new();
    published().add(&pod);
    ports_behind(&pod, &outside, &["nft insert rule inet mine passing oifname weft0 accept".to_owned()]);
    command("nft delete table inet mine");
    // A firewall that accepts some ports only may mean those that there are, or not.
    host.nft(
        "table inet mine { chain passing { type filter hook forward priority 0; policy drop; iifname \"weft0\" accept; ct state established accept; tcp dport 80 accept; }; }",
    );
    let reply = published().status();
    reply.done();
    assert!(reply.stderr.contains("if host ports are closed to others: nft insert"), "{}", reply.stderr);
    let reply = network().status();
    reply.done();
    assert!(!reply.stderr.contains("weft0"), "{}", reply.stderr);
}

#[test]
fn a_firewall_that_lets_what_is_redirected_pass_is_no_alarm() {
    let (host, outside) = connected();
    let pod = Pod::new();
    published().add(&pod);
    let web = Mirror::on(&pod, 80);
    let assert_open = |what: &str| {
        let reply = published().status();
        reply.done();
        assert!(!reply.stderr.contains("weft0"), "no warning either: {}", reply.stderr);
        assert_port(true, &web, &outside, what);
    };
    for suffix in ["-nft", "-legacy"] {
        for program in ["iptables", "ip6tables"].map(|program| format!("{program}{suffix}")) {
            command(&format!("{program} -P FORWARD DROP"));
            command(&format!("{program} -A FORWARD -i weft0 -j ACCEPT"));
            command(&format!("{program} -A FORWARD -m conntrack --ctstate ESTABLISHED,DNAT -j ACCEPT"));
        }
        assert_open(suffix);
        for program in ["iptables", "ip6tables"].map(|program| format!("{program}{suffix}")) {
            command(&format!("{program} -P FORWARD ACCEPT"));
            command(&format!("{program} -F FORWARD"));
        }
    }
    for rule in ["ct status dnat accept", "iifname \"up0\" oifname \"weft0\" ct state new accept"] {
        let text = format!(
            "table inet mine {{ chain passing {{ type filter hook forward priority 0; policy drop; iifname \"weft0\" accept; ct state established accept; {rule}; }}; }}"
        );
        host.nft(&text);
        assert_open(rule);
        command("nft delete table inet mine");
    }
}

#[test]
fn a_table_of_nftables() {
    let (host, _outside) = connected();
    host.nft(
        "table inet mine { chain passing { type filter hook forward priority 0; policy drop; ct state established accept; iifname \"lan0\" accept; }; }",
    );
    assert_untouched(&host);
    follow(
        &network().status(),
        &["chain passing", "table inet mine", "nft insert rule inet mine passing iifname weft0 accept"],
    );
    network().status().done();
    // One family's table says nothing of the other, nor does a chain elsewhere or one that accepts.
    host.nft(
        "delete table inet mine
         table ip6 six { chain passing { type filter hook forward priority 0; policy drop; }; }
         table inet others { chain coming { type filter hook input priority 0; policy drop; iifname \"lo\" accept; }; }
         table ip open { chain passing { type filter hook forward priority 0; policy accept; }; }",
    );
    Network::v4().status().done();
    network().status().error_code(51).assert_names(&["table ip6 six"]);
    // A network of layer 2 only is not forwarded, and an internal one shall not be.
    Network::new("flat", &[]).status().done();
    network().with(&json!({ "internal": true })).status().done();
}

#[test]
fn what_cannot_be_told_is_a_warning() {
    let (host, _outside) = connected();
    for rules in [
        "iifname \"weft0\" ip saddr 10.0.0.0/8 accept; ct state established accept",
        "iifname vmap { \"weft0\" : accept }; ct state established accept",
        "meta mark 7 accept",
    ] {
        let text = format!(
            "table inet mine {{ chain passing {{ type filter hook forward priority 0; policy drop; {rules}; }}; }}"
        );
        host.nft(&text);
        let reply = Network::v4().status();
        reply.done();
        let told = reply.stderr;
        assert!(
            told.contains("may drop traffic of bridge weft0") && told.contains("nft insert rule"),
            "{told}"
        );
        command("nft delete table inet mine");
    }
}

/// Whether there are no rules or 200,000 is all the same to ADD and DEL: they send the same messages.
#[test]
fn many_foreign_rules_change_nothing() {
    let (host, _outside) = connected();
    let network = network().with(&json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }
    ] } }));
    let pod = Pod::new();
    network.add(&pod);
    network.del(&pod);
    let count = || Injection::work(&|| network.add_call(&pod), &|| network.del(&pod));
    let before = count();
    assert!(before["sendto"] > 10, "{before:?}");
    host.nft(
        "table ip many {
           chain passing { type filter hook forward priority -5; policy accept; }
           chain turned { type nat hook prerouting priority -110; }
         }",
    );
    // One transaction is one message, which without root cannot be large.
    for part in 0..400_u32 {
        let mut rules = String::new();
        for number in part * 500..(part + 1) * 500 {
            let chain = if number % 2 == 0 { "passing" } else { "turned" };
            let (third, last) = (number >> 8 & 255, number & 255);
            writeln!(rules, "add rule ip many {chain} ip saddr 203.{}.{third}.{last} counter", number >> 16)
                .unwrap();
        }
        host.nft(&rules);
    }
    assert_eq!(count(), before);
    network.status().done();
}

/// Published ports are the one way into it.
#[test]
fn of_an_internal_network_only_what_comes_to_host_ports_is_told() {
    let (_host, outside) = connected();
    let network = published().with(&json!({ "internal": true }));
    let pod = Pod::new();
    network.add(&pod);
    let web = Mirror::on(&pod, 80);
    assert_port(true, &web, &outside, "without a firewall");
    for program in ["iptables", "ip6tables"] {
        command(&format!("{program} -P FORWARD DROP"));
    }
    assert_port(false, &web, &outside, "behind the firewall");
    follow(
        &network.status(),
        &["what comes from other networks to host ports", "iptables -I FORWARD", "ip6tables -I FORWARD"],
    );
    network.status().done();
    assert_port(true, &web, &outside, "after what STATUS named was done");
}

/// Nothing else leaves it.
#[test]
fn of_an_internal_network_the_answers_of_host_ports_are_told_too() {
    let (host, outside) = connected();
    host.nft(
        "table inet mine { chain passing { type filter hook forward priority 0; policy drop; oifname \"weft0\" accept; }; }",
    );
    let network = published().with(&json!({ "internal": true }));
    let pod = Pod::new();
    network.add(&pod);
    let web = Mirror::on(&pod, 80);
    assert_port(false, &web, &outside, "whose answers are dropped");
    follow(
        &network.status(),
        &["the answers of host ports", "nft insert rule inet mine passing iifname weft0 accept"],
    );
    network.status().done();
    assert_port(true, &web, &outside, "after what STATUS named was done");
}
