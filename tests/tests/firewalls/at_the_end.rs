//! Firewalls that let pass by default what none of their rules drops.

use weft_tests::command;

use crate::{behind, connected, published};

/// As iptables-services has it: the last rule rejects what none before it accepts.
fn iptables_services(suffix: &str) {
    let (host, outside) = connected();
    for program in ["iptables", "ip6tables"] {
        let append = format!("{program}{suffix} -A FORWARD");
        command(&format!("{append} -m state --state RELATED,ESTABLISHED -j ACCEPT"));
        command(&format!("{append} -j REJECT"));
    }
    behind((&host, &outside), suffix, ["FORWARD"; 2]);
}

#[test]
fn iptables_nft_that_rejects_at_the_end() {
    iptables_services("-nft");
}

#[test]
fn iptables_legacy_that_rejects_at_the_end() {
    iptables_services("-legacy");
}

/// What drops some packets and accepts all others is no alarm, whether it can be told which or not.
#[test]
fn a_firewall_that_drops_some_is_no_alarm() {
    let (host, _outside) = connected();
    for rules in [
        "meta mark 7 drop",
        "ip saddr 203.0.113.0/24 reject",
        "ct state invalid drop; iifname \"lan0\" drop",
        "iifname vmap { \"lan0\" : drop }",
    ] {
        host.nft(&format!(
            "table inet mine {{ chain passing {{ type filter hook forward priority 0; policy accept; {rules}; }}; }}"
        ));
        let reply = published().status();
        reply.done();
        assert!(!reply.stderr.contains("weft0"), "{rules}: {}", reply.stderr);
        command("nft delete table inet mine");
    }
}
