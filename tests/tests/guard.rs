//! The guard against forged frames. Each is sent for real; whoever it is meant for listens. With the part switched off the
//! same frame arrives, and the honest one of its kind arrives always.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{BROADCAST, Mac, Wire, arp, discovery, ethernet, ip, tagged, udp};
use weft_tests::{Host, Network, Pod, ips};

const PATIENCE: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(150);
const FOREIGN_MAC: Mac = [2, 0, 0, 0, 0, 0x66];
const FOREIGN_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const FOREIGN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1);
const ADVERTISEMENT: u8 = 136;
const SOLICITATION: u8 = 135;
const UNKNOWN: u8 = 253;

struct Bench {
    host: Host,
    attacker: Pod,
    victim: Pod,
    from: Wire,
    to: Wire,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Bench {
    fn new(changes: &Value) -> Self {
        let host = Host::new();
        let (attacker, victim) = (Pod::new(), Pod::new());
        let network = Network::dual();
        let addresses = ips(&network.clone().with(changes).add(&attacker));
        network.add(&victim);
        let (from, to) = (Wire::of(&attacker), Wire::of(&victim));
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses[..] else { panic!("{addresses:?}") };
        Self { host, attacker, victim, from, to, v4, v6 }
    }

    fn passes(&self, frame: &[u8], time: Duration) -> bool {
        self.from.send(frame);
        // The kernel gives a tag apart from the frame.
        let seen =
            if frame[12..14] == [0x81, 0] { [&frame[..12], &frame[16..]].concat() } else { frame.to_vec() };
        self.to.receives(&seen, time)
    }

    /// An IPv4 packet from the attacker to the victim that says to be from somebody.
    fn v4_from(&self, mac: Mac, source: Ipv4Addr) -> Vec<u8> {
        ip(self.to.mac, mac, source.into(), self.victim_address(false), UNKNOWN, b"weft")
    }

    fn v6_from(&self, mac: Mac, source: Ipv6Addr) -> Vec<u8> {
        ip(self.to.mac, mac, source.into(), self.victim_address(true), UNKNOWN, b"weft")
    }

    fn victim_address(&self, v6: bool) -> IpAddr {
        let own = self.victim.addresses("eth0");
        let text = own[usize::from(v6)].split('/').next().expect("an address");
        text.parse().expect("an address")
    }

    /// What the attacker says honestly.
    fn honest(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mac = self.from.mac;
        let link_local = Ipv6Addr::from([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            mac[0] ^ 2,
            mac[1],
            mac[2],
            0xff,
            0xfe,
            mac[3],
            mac[4],
            mac[5],
        ]);
        let nobody = Ipv6Addr::UNSPECIFIED;
        vec![
            ("IPv4", self.v4_from(mac, self.v4)),
            ("IPv6", self.v6_from(mac, self.v6)),
            ("IPv6 from the link-local address", self.v6_from(mac, link_local)),
            ("another protocol", ethernet(self.to.mac, mac, 0x88b5, b"experiment")),
            ("ARP", arp(mac, mac, self.v4)),
            ("an ARP probe", arp(mac, mac, Ipv4Addr::UNSPECIFIED)),
            ("a neighbour advertisement", discovery(mac, self.v6, ADVERTISEMENT, self.v6, 2)),
            ("a neighbour solicitation", discovery(mac, self.v6, SOLICITATION, FOREIGN_V6, 1)),
            ("a probe for an own address", discovery(mac, nobody, SOLICITATION, self.v6, 14)),
            ("a DHCP client", udp(BROADCAST, mac, (self.v4.into(), Ipv4Addr::BROADCAST.into()), (68, 67))),
        ]
    }

    /// What is forged, and the part of the guard that keeps it away.
    fn forged(&self) -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let mac = self.from.mac;
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into();
        let (v4, v6): (IpAddr, IpAddr) = (self.v4.into(), self.v6.into());
        let to_bridges: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
        let nobody = Ipv6Addr::UNSPECIFIED;
        vec![
            ("mac", "IPv4 with another MAC", self.v4_from(FOREIGN_MAC, self.v4)),
            (
                "mac",
                "another protocol with another MAC",
                ethernet(self.to.mac, FOREIGN_MAC, 0x88b5, b"experiment"),
            ),
            ("ip", "IPv4 from the gateway's address", self.v4_from(mac, FOREIGN_V4)),
            ("ip", "IPv6 from the gateway's address", self.v6_from(mac, FOREIGN_V6)),
            (
                "ip",
                "IPv6 from another link-local address",
                self.v6_from(mac, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
            ),
            ("arp", "ARP for the gateway's address", arp(mac, mac, FOREIGN_V4)),
            ("arp", "ARP with another MAC inside", arp(mac, FOREIGN_MAC, self.v4)),
            ("nd", "an advertisement of the gateway", discovery(mac, self.v6, ADVERTISEMENT, FOREIGN_V6, 2)),
            ("nd", "a probe for the gateway's address", discovery(mac, nobody, SOLICITATION, FOREIGN_V6, 14)),
            ("rogue", "a router advertisement", discovery(mac, self.v6, 134, self.v6, 1)),
            ("rogue", "a redirect", discovery(mac, self.v6, 137, self.v6, 2)),
            ("rogue", "a DHCP offer", udp(BROADCAST, mac, (v4, Ipv4Addr::BROADCAST.into()), (67, 68))),
            ("rogue", "a DHCPv6 answer", udp([0x33, 0x33, 0, 0, 0, 1], mac, (v6, all), (547, 546))),
            ("rogue", "a frame for bridges", ethernet(to_bridges, mac, 0x88cc, b"lldp")),
            ("rogue", "a tagged frame", tagged(&self.v4_from(mac, self.v4))),
        ]
    }
}

#[test]
fn forged_frames_are_dropped_and_honest_ones_pass() {
    let bench = Bench::new(&json!({}));
    for (what, frame) in bench.honest() {
        assert!(bench.passes(&frame, PATIENCE), "{what} is honest");
    }
    for (part, what, frame) in bench.forged() {
        assert!(!bench.passes(&frame, SILENCE), "{part}: {what} is forged");
    }
    bench.attacker.assert_reaches(FOREIGN_V4);
    bench.attacker.assert_reaches(FOREIGN_V6);
    bench.attacker.assert_reaches(bench.victim_address(true));
}

#[test]
fn each_part_keeps_its_own_frames_away_and_lets_them_pass_when_it_is_off() {
    for off in ["mac", "ip", "arp", "nd", "rogue"] {
        // The bridge itself keeps what is for bridges, unless it is told to pass it on; it may not be told that for STP.
        let bench = Bench::new(&json!({ "guard": { off: false } }));
        bench.host.netns().inside(|| {
            weft_tests::command("ip link set weft0 type bridge group_fwd_mask 0x4000");
        });
        for (part, what, frame) in bench.forged() {
            let is_off = part == off;
            let time = if is_off { PATIENCE } else { SILENCE };
            assert_eq!(bench.passes(&frame, time), is_off, "without {off}, {part}: {what}");
        }
        for (what, frame) in bench.honest() {
            assert!(bench.passes(&frame, PATIENCE), "without {off}: {what} is honest");
        }
    }
}

#[test]
fn nobody_takes_the_gateways_place_in_a_neighbours_table() {
    for (guard, is_taken) in [(true, false), (false, true)] {
        let bench = Bench::new(&json!({ "guard": guard }));
        bench.victim.assert_reaches(FOREIGN_V4);
        let entry = || bench.victim.command(&format!("ip neigh show {FOREIGN_V4}"));
        let before = entry();
        let forged = arp(bench.from.mac, bench.from.mac, FOREIGN_V4);
        // An entry is locked for a second after it was confirmed.
        bench
            .victim
            .inside(|| std::fs::write("/proc/sys/net/ipv4/neigh/eth0/locktime", "0").expect("unlock"));
        assert_eq!(bench.passes(&forged, if is_taken { PATIENCE } else { SILENCE }), is_taken);
        let hardware = |entry: &str| entry.split("lladdr ").nth(1).map(|rest| rest[..17].to_owned());
        assert_eq!(hardware(&entry()) != hardware(&before), is_taken, "{before} became {}", entry());
    }
}

#[test]
fn a_container_may_use_more_addresses_when_that_is_asked_for() {
    let more = json!(["10.88.0.100", "fd00:88::100", "203.0.113.0/24", "fd99::/64"]);
    let bench = Bench::new(&json!({ "args": { "cni": { "allowedAddresses": more } } }));
    let mac = bench.from.mac;
    let (vip, vip6) = (Ipv4Addr::new(10, 88, 0, 100), Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 0x100));
    let routed6 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 9);
    for frame in [
        bench.v4_from(mac, vip),
        bench.v6_from(mac, vip6),
        arp(mac, mac, vip),
        discovery(mac, vip6, ADVERTISEMENT, vip6, 2),
        bench.v4_from(mac, Ipv4Addr::new(203, 0, 113, 9)),
        bench.v6_from(mac, routed6),
        discovery(mac, routed6, ADVERTISEMENT, routed6, 2),
    ] {
        assert!(bench.passes(&frame, PATIENCE));
    }
    for frame in [
        bench.v4_from(mac, Ipv4Addr::new(10, 88, 0, 101)),
        bench.v4_from(mac, Ipv4Addr::new(203, 0, 114, 9)),
        arp(mac, mac, FOREIGN_V4),
    ] {
        assert!(!bench.passes(&frame, SILENCE));
    }
}

#[test]
fn a_container_without_addresses_is_known_by_its_mac() {
    let host = Host::new();
    let (attacker, victim) = (Pod::new(), Pod::new());
    let network = Network::new("l2", &[]);
    network.add(&attacker);
    network.add(&victim);
    let (from, to) = (Wire::of(&attacker), Wire::of(&victim));
    let packet =
        |mac| ip(to.mac, mac, FOREIGN_V4.into(), Ipv4Addr::new(10, 88, 0, 2).into(), UNKNOWN, b"weft");
    from.send(&packet(from.mac));
    assert!(to.receives(&packet(from.mac), PATIENCE), "its addresses are its own business");
    from.send(&packet(FOREIGN_MAC));
    assert!(!to.receives(&packet(FOREIGN_MAC), SILENCE));
    network.del(&attacker);
    network.del(&victim);
    assert_eq!(host.ruleset().matches("elements").count(), 0, "{}", host.ruleset());
}

#[test]
fn check_tells_what_is_missing_and_the_next_add_brings_it_back() {
    let host = Host::new();
    let (one, other) = (Pod::new(), Pod::new());
    let network = Network::dual();
    let result = network.add(&one);
    host.nft("flush set bridge weft guard-macs");
    network.check(&one, &result).any_error().assert_names(&["guard-macs"]);
    host.nft("flush ruleset");
    network.add(&other);
    network.check(&one, &result).done();
    let (from, to) = (Wire::of(&one), Wire::of(&other));
    from.send(&arp(from.mac, from.mac, FOREIGN_V4));
    assert!(!to.receives(&arp(from.mac, from.mac, FOREIGN_V4), SILENCE));
    network.gc(&[]);
    assert_eq!(host.ruleset().matches("elements").count(), 0, "{}", host.ruleset());
}
