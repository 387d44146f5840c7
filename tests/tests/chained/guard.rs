//! The guard at the port of another plugin's bridge: frames are sent for real.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{BROADCAST, Mac, Wire, arp, discovery, ethernet, ip, udp};
use weft_tests::{Host, Network, Pod, World, command, ips};

use crate::chain::Chain;
use crate::host_end;

const PATIENCE: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(150);
const FOREIGN_MAC: Mac = [2, 0, 0, 0, 0, 0x66];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, 1);
const FURTHER: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 100);
const ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;
const UNKNOWN: u8 = 253;

fn chain() -> Chain {
    Chain::new("chain", "br0", 97)
}

/// Two containers on the bridge, one of which means harm.
struct Link {
    from: Wire,
    to: Wire,
    own: (Ipv4Addr, Ipv6Addr),
    victim: (IpAddr, IpAddr),
}

impl Link {
    fn between(attacker: &Pod, victim: &Pod, results: [&Value; 2]) -> Self {
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = ips(results[0])[..] else { panic!("{}", results[0]) };
        let victims = ips(results[1]);
        Self {
            from: Wire::of(attacker),
            to: Wire::of(victim),
            own: (v4, v6),
            victim: (victims[0], victims[1]),
        }
    }

    fn passes(&self, frame: &[u8], time: Duration) -> bool {
        self.from.send(frame);
        self.to.receives(frame, time)
    }

    fn v4_from(&self, mac: Mac, source: Ipv4Addr) -> Vec<u8> {
        ip(self.to.mac, mac, source.into(), self.victim.0, UNKNOWN, b"weft")
    }

    fn v6_from(&self, mac: Mac, source: Ipv6Addr) -> Vec<u8> {
        ip(self.to.mac, mac, source.into(), self.victim.1, UNKNOWN, b"weft")
    }

    fn honest(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (mac, (v4, v6)) = (self.from.mac, self.own);
        let [a, b, c, d, e, f] = mac;
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f].into();
        let everybody = Ipv4Addr::BROADCAST.into();
        vec![
            ("IPv4", self.v4_from(mac, v4)),
            ("IPv6", self.v6_from(mac, v6)),
            ("IPv6 from the link-local address", self.v6_from(mac, link_local)),
            ("ARP", arp(mac, mac, v4)),
            ("a neighbour advertisement", discovery(mac, v6, ADVERTISEMENT, v6, 2)),
            // Whether the address was leased by DHCP is the other plugin's business.
            ("a DHCP client", udp(BROADCAST, mac, (Ipv4Addr::UNSPECIFIED.into(), everybody), (68, 67))),
        ]
    }

    fn forged(&self) -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let (mac, (v4, v6)) = (self.from.mac, self.own);
        let everybody = Ipv4Addr::BROADCAST.into();
        vec![
            ("mac", "IPv4 with another MAC", self.v4_from(FOREIGN_MAC, v4)),
            (
                "mac",
                "another protocol with another MAC",
                ethernet(self.to.mac, FOREIGN_MAC, 0x88b5, b"experiment"),
            ),
            ("ip", "IPv4 from the gateway's address", self.v4_from(mac, GATEWAY)),
            ("ip", "IPv6 from the gateway's address", self.v6_from(mac, GATEWAY6)),
            ("arp", "ARP for the gateway's address", arp(mac, mac, GATEWAY)),
            ("nd", "an advertisement of the gateway", discovery(mac, v6, ADVERTISEMENT, GATEWAY6, 2)),
            ("rogue", "a router advertisement", discovery(mac, v6, ROUTER_ADVERTISEMENT, v6, 1)),
            ("rogue", "a DHCP offer", udp(BROADCAST, mac, (v4.into(), everybody), (67, 68))),
        ]
    }
}

#[test]
fn forged_frames_are_dropped_unless_the_guard_or_its_part_is_off() {
    for (guard, off) in [(json!(null), None), (json!({ "ip": false }), Some("ip")), (json!(false), Some(""))]
    {
        let _host = Host::new();
        let (attacker, victim) = (Pod::new(), Pod::new());
        let chain = chain().with(&json!({ "guard": guard }));
        let results = [&attacker, &victim].map(|pod| chain.add(pod));
        let link = Link::between(&attacker, &victim, [&results[0], &results[1]]);
        for (what, frame) in link.honest() {
            assert!(link.passes(&frame, PATIENCE), "{what} is honest, with {guard}");
        }
        for (part, what, frame) in link.forged() {
            let is_open = off.is_some_and(|off| off.is_empty() || off == part);
            let time = if is_open { PATIENCE } else { SILENCE };
            assert_eq!(link.passes(&frame, time), is_open, "{part}: {what}, with {guard}");
        }
    }
}

#[test]
fn further_addresses_are_asked_for_by_args() {
    let _host = Host::new();
    let (attacker, victim) = (Pod::new(), Pod::new());
    // One that is allowed anyway makes no difference.
    let more = chain().with(&json!({ "args": { "cni": { "allowedAddresses": [FURTHER, "0.0.0.0"] } } }));
    let results = [more.add(&attacker), chain().add(&victim)];
    let link = Link::between(&attacker, &victim, [&results[0], &results[1]]);
    let mac = link.from.mac;
    assert!(link.passes(&link.v4_from(mac, FURTHER), PATIENCE));
    assert!(link.passes(&arp(mac, mac, FURTHER), PATIENCE));
    assert!(!link.passes(&link.v4_from(mac, GATEWAY), SILENCE));
}

#[test]
fn check_tells_what_is_missing_and_the_next_add_brings_it_back() {
    let host = Host::new();
    let (one, other) = (Pod::new(), Pod::new());
    let result = chain().add(&one);
    let network = chain().behind(&result);
    network.check(&one, &result).done();
    let port = host_end(&result);
    for (line, words) in [
        ("nft flush set inet weft closed-v4", ["closed-v4", "10.97.0.0/24"]),
        ("nft flush set bridge weft guard-mac", ["guard-mac", port]),
        ("nft flush ruleset", ["ruleset", "missing"]),
    ] {
        command(line);
        network.check(&one, &result).error_code(105).assert_names(&words);
    }
    let of_other = chain().add(&other);
    network.check(&one, &result).done();
    let link = Link::between(&one, &other, [&result, &of_other]);
    assert!(!link.passes(&arp(link.from.mac, link.from.mac, GATEWAY), SILENCE));
    assert!(link.passes(&link.v4_from(link.from.mac, link.own.0), PATIENCE));
    // At no port of a bridge nothing is compared.
    command(&format!("ip link set {port} nomaster"));
    network.check(&one, &result).error_code(105).assert_names(&[port, "no port of a bridge"]);
    assert!(host.ruleset().contains(port));
}

#[test]
fn del_and_gc_go_without_result_and_record() {
    let host = Host::new();
    let pod = Pod::new();
    let used = chain().add(&pod);
    chain().behind(&used).del(&pod);
    let before = World::of(&host, &[&pod]);
    let gone = |ways: &str| before.assert_unchanged(&host, &[&pod], ways);
    let again = chain().behind(&used);
    again.add(&pod);
    assert!(host.ruleset().contains(host_end(&used)));
    Network::new("chain", &[]).del(&pod);
    gone("DEL without prevResult and the key");
    for ways in ["DEL", "GC"] {
        again.add(&pod);
        for boot in fs::read_dir("/run/weft/chain").unwrap() {
            let records = boot.unwrap().path().join("attachments");
            if records.is_dir() {
                fs::remove_dir_all(records).unwrap();
            }
        }
        match ways {
            "DEL" => again.del(&pod),
            _ => again.gc(&[("another", "eth0")]),
        }
        gone(&format!("{ways} without a record"));
    }
    again.add(&pod);
    again.gc(&[("another", "eth0")]);
    gone("GC");
}
