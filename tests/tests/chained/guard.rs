//! The guard at the port of another plugin's bridge: frames are sent for real.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{
    ARP, BROADCAST, Frame, ICMP6, Mac, UDP, Wire, arp, icmp6, lladdr_option, packet, udp,
};
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

    fn passes(&mut self, frame: &Frame, time: Duration) -> bool {
        self.from.send(frame);
        self.to.receives(frame, time)
    }

    fn v4_from(&self, mac: Mac, source: Ipv4Addr) -> Frame {
        Frame::ip(self.to.mac, mac, &packet(source, self.victim.0, UNKNOWN, 0, b"weft"))
    }

    fn v6_from(&self, mac: Mac, source: Ipv6Addr) -> Frame {
        Frame::ip(self.to.mac, mac, &packet(source, self.victim.1, UNKNOWN, 0, b"weft"))
    }

    fn honest(&self) -> Vec<(&'static str, Frame)> {
        let (mac, (v4, v6)) = (self.from.mac, self.own);
        let [a, b, c, d, e, f] = mac;
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f].into();
        vec![
            ("IPv4", self.v4_from(mac, v4)),
            ("IPv6", self.v6_from(mac, v6)),
            ("IPv6 from the link-local address", self.v6_from(mac, link_local)),
            ("ARP", announced(mac, v4)),
            ("a neighbour advertisement", discovery(mac, v6, ADVERTISEMENT, v6, 2)),
            // Whether the address was leased by DHCP is the other plugin's business.
            ("a DHCP client", broadcast(mac, Ipv4Addr::UNSPECIFIED, (68, 67))),
        ]
    }

    fn forged(&self) -> Vec<(&'static str, &'static str, Frame)> {
        let (mac, (v4, v6)) = (self.from.mac, self.own);
        vec![
            ("mac", "IPv4 with another MAC", self.v4_from(FOREIGN_MAC, v4)),
            (
                "mac",
                "another protocol with another MAC",
                Frame::new(self.to.mac, FOREIGN_MAC, 0x88b5, b"experiment"),
            ),
            ("ip", "IPv4 from the gateway's address", self.v4_from(mac, GATEWAY)),
            ("ip", "IPv6 from the gateway's address", self.v6_from(mac, GATEWAY6)),
            ("arp", "ARP for the gateway's address", announced(mac, GATEWAY)),
            ("nd", "an advertisement of the gateway", discovery(mac, v6, ADVERTISEMENT, GATEWAY6, 2)),
            ("rogue", "a router advertisement", discovery(mac, v6, ROUTER_ADVERTISEMENT, v6, 1)),
            ("rogue", "a DHCP offer", broadcast(mac, v4, (67, 68))),
        ]
    }
}

/// A container announces that it has an address.
fn announced(mac: Mac, address: Ipv4Addr) -> Frame {
    Frame::new(BROADCAST, mac, ARP, &arp(1, (mac, address), ([0; 6], address)))
}

/// A datagram to everybody.
fn broadcast(mac: Mac, from: Ipv4Addr, ports: (u16, u16)) -> Frame {
    let everybody = Ipv4Addr::BROADCAST;
    Frame::ip(BROADCAST, mac, &packet(from, everybody, UDP, 0, &udp(from, everybody, ports, b"weft")))
}

/// A message of neighbour discovery to all nodes.
fn discovery(mac: Mac, from: Ipv6Addr, kind: u8, target: Ipv6Addr, option: u8) -> Frame {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let body = [&[0x20, 0, 0, 0][..], &target.octets(), &lladdr_option(option, mac)].concat();
    let message = icmp6(from, all_nodes, kind, &body);
    Frame::ip([0x33, 0x33, 0, 0, 0, 1], mac, &packet(from, all_nodes, ICMP6, 0, &message))
}

#[test]
fn forged_frames_are_dropped_unless_the_guard_or_its_part_is_off() {
    for (guard, off) in [(json!(null), None), (json!({ "ip": false }), Some("ip")), (json!(false), Some(""))]
    {
        let _host = Host::new();
        let (attacker, victim) = (Pod::new(), Pod::new());
        let chain = chain().with(&json!({ "guard": guard }));
        let results = [&attacker, &victim].map(|pod| chain.add(pod));
        let mut link = Link::between(&attacker, &victim, [&results[0], &results[1]]);
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
    let mut link = Link::between(&attacker, &victim, [&results[0], &results[1]]);
    let mac = link.from.mac;
    let frame = link.v4_from(mac, FURTHER);
    assert!(link.passes(&frame, PATIENCE));
    let frame = announced(mac, FURTHER);
    assert!(link.passes(&frame, PATIENCE));
    let frame = link.v4_from(mac, GATEWAY);
    assert!(!link.passes(&frame, SILENCE));
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
    let mut link = Link::between(&one, &other, [&result, &of_other]);
    let frame = announced(link.from.mac, GATEWAY);
    assert!(!link.passes(&frame, SILENCE));
    let frame = link.v4_from(link.from.mac, link.own.0);
    assert!(link.passes(&frame, PATIENCE));
    // Where there is no port of a bridge nothing is compared.
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
