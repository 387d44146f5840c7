//! The guard: what a container may claim to be. Real forged frames, and what arrives at a neighbour of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

#[path = "guard/files.rs"]
mod files;
#[path = "guard/forgeries.rs"]
mod forgeries;
#[path = "guard/lifecycle.rs"]
mod lifecycle;
#[path = "guard/moment.rs"]
mod moment;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{Frame, Wire};
use weft_tests::{Host, Network, Pod, command, dist, eventually, ips, script, transfer};

use forgeries::{
    ALL, Case, GATEWAY, GATEWAY6, Station, cases, claims, claims6, fragments, listening, superior,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A network with these parts of the guard switched off.
fn without(parts: &[&str]) -> Network {
    let guard: serde_json::Map<String, Value> =
        parts.iter().map(|part| ((*part).to_owned(), json!(false))).collect();
    Network::dual().with(&json!({ "guard": guard }))
}

/// A container on a network, and its wire.
fn attach(network: &Network, pod: &Pod) -> (Station, Wire) {
    let result = network.add(pod);
    (Station::of(&result), wire(&result, pod))
}

/// The wire of a container, as soon as its bridge forwards what it sends: the kernel notices a new carrier by itself.
fn wire(result: &Value, pod: &Pod) -> Wire {
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    eventually(Duration::from_secs(20), "the bridge forwards for the port", || {
        let port =
            &weft_tests::json(&format!("ip -j -d link show dev {veth}"))[0]["linkinfo"]["info_slave_data"];
        (port["state"] == "forwarding").then_some(())
    });
    Wire::open(pod.netns(), "eth0")
}

/// Sends forged frames and the honest ones of their kinds; those that no active part stops arrive.
fn assert_stopped(cases: Vec<Case>, wire: &Wire, seen: &mut Wire, off: &[&str]) {
    for case in cases {
        wire.send(&case.forged);
        wire.send(&case.honest);
        seen.wait_for(&case.honest, &format!("off {off:?}: the honest one next to: {}", case.name));
        if case.parts.iter().all(|part| off.contains(part)) {
            seen.wait_for(&case.forged, &format!("off {off:?}: nothing stops it: {}", case.name));
        } else {
            assert!(!seen.has_seen(&case.forged), "off {off:?}: it arrived: {}", case.name);
        }
    }
}

/// Also when the host's rules for IP see what the bridge forwards.
#[test]
fn forged_frames_do_not_arrive() {
    let host = Host::new();
    let (attacker, victim) = (Pod::new(), Pod::new());
    let (me, wire) = attach(&Network::dual(), &attacker);
    let (peer, mut seen) = attach(&Network::dual(), &victim);
    for br_netfilter in Host::br_netfilter_ways() {
        host.set_br_netfilter(*br_netfilter);
        assert_stopped(cases(me, peer), &wire, &mut seen, &[]);
    }
    host.set_br_netfilter(false);
    assert_stopped(fragments(me, peer), &wire, &mut seen, &[]);
}

/// Each part stops what is its part, and nothing else does.
#[test]
fn what_is_off_stops_nothing() {
    let host = Host::new();
    host.set_br_netfilter(false);
    let victim = Pod::new();
    let (peer, mut seen) = attach(&Network::dual(), &victim);
    // Of what is for bridges only the spanning tree protocol is forwarded where nothing else is said.
    command("ip link set weft0 type bridge group_fwd_mask 0x4000");
    let all = |me| [cases(me, peer), fragments(me, peer)].into_iter().flatten().collect();
    for off in [&["mac"][..], &["ip"], &["arp"], &["nd"], &["rogue"], &["ip", "nd"], ALL] {
        let attacker = Pod::new();
        let (me, wire) = attach(&without(off), &attacker);
        assert_stopped(all(me), &wire, &mut seen, off);
        without(off).del(&attacker);
    }
    let attacker = Pod::new();
    let (me, wire) = attach(&Network::dual().with(&json!({ "guard": false })), &attacker);
    assert_stopped(all(me), &wire, &mut seen, ALL);
}

/// Sends frames and then one that is honest; which of the first have arrived.
fn arrived(from: (Station, &Wire), to: (Station, &mut Wire), frames: &[Frame]) -> Vec<bool> {
    let ((me, wire), (peer, seen)) = (from, to);
    frames.iter().for_each(|frame| wire.send(frame));
    let last = claims(me, peer, me.v4).remove(0);
    wire.send(&last);
    seen.wait_for(&last, "an honest packet arrives");
    frames.iter().map(|frame| seen.has_seen(frame)).collect()
}

/// The MAC address that a container's kernel has for a neighbour.
fn neighbour(pod: &Pod, address: IpAddr) -> Option<String> {
    let list = pod.json(&format!("ip -j neigh show {address}"));
    list[0]["lladdr"].as_str().map(str::to_owned)
}

/// What everybody on the link is told by somebody who wants to be the gateway.
fn usurpation(me: Station, peer: Station) -> Vec<Frame> {
    [claims(me, peer, GATEWAY), claims6(me, peer, GATEWAY6)].into_iter().flatten().collect()
}

#[test]
fn the_gateways_address_cannot_be_claimed() {
    let host = Host::new();
    let (attacker, other, victim) = (Pod::new(), Pod::new(), Pod::new());
    let (peer, mut seen) = attach(&Network::dual(), &victim);
    let (me, wire) = attach(&Network::dual(), &attacker);
    let bridge = host.link("weft0").unwrap()["address"].as_str().unwrap().to_owned();
    let gateways: [IpAddr; 2] = [GATEWAY.into(), GATEWAY6.into()];
    gateways.into_iter().for_each(|gateway| victim.assert_reaches(gateway));
    for _ in 0..10 {
        let stopped = arrived((me, &wire), (peer, &mut seen), &usurpation(me, peer));
        assert!(!stopped.contains(&true), "{stopped:?}");
    }
    for gateway in gateways {
        assert_eq!(neighbour(&victim, gateway).as_ref(), Some(&bridge), "{gateway}");
    }
    // It is that easy where nothing stops it. The kernel keeps an entry of IPv4 for a second at least.
    let (me, wire) = attach(&Network::dual().with(&json!({ "guard": false })), &other);
    let mac = attacker_mac(&other);
    for gateway in gateways {
        eventually(PATIENCE, "the attacker is the gateway", || {
            usurpation(me, peer).iter().for_each(|frame| wire.send(frame));
            (neighbour(&victim, gateway).as_ref() == Some(&mac)).then_some(())
        });
    }
}

fn attacker_mac(pod: &Pod) -> String {
    pod.link("eth0").unwrap()["address"].as_str().unwrap().to_owned()
}

#[test]
fn allowed_addresses_and_no_others() {
    let _host = Host::new();
    let (router, victim) = (Pod::new(), Pod::new());
    let (peer, mut seen) = attach(&Network::dual(), &victim);
    let allowed = [
        "10.88.0.100", "10.99.0.0/30", "10.88.0.0/29", "10.88.0.200", "fd00:88::200", "fd00:88::100",
        "fd00:99::/126", "fd00:88::/120",
    ];
    let network = Network::dual().with(&json!({ "args": { "cni": { "allowedAddresses": allowed } } }));
    let (me, wire) = attach(&network, &router);
    let v4 = |address: &str| claims(me, peer, address.parse::<Ipv4Addr>().unwrap());
    let v6 = |address: &str| claims6(me, peer, address.parse::<Ipv6Addr>().unwrap());
    for (frames, goes) in [
        (v4("10.88.0.100"), true),
        (v4("10.88.0.101"), false),
        (v4("10.99.0.0"), true),
        (v4("10.99.0.3"), true),
        (v4("10.99.0.4"), false),
        (v4("10.88.0.7"), true),
        (v4("10.88.0.8"), false),
        // The gateway's address is nobody's, whatever prefix it is in.
        (v4("10.88.0.1"), false),
        (v6("fd00:88::100"), true),
        (v6("fd00:88::101"), false),
        (v6("fd00:99::3"), true),
        (v6("fd00:99::4"), false),
        (v6("fd00:88::ff"), true),
        (v6("fd00:88::1"), false),
    ] {
        let found = arrived((me, &wire), (peer, &mut seen), &frames);
        // An advertisement by its own address is stopped by its target.
        assert_eq!(found, vec![goes; found.len()], "{frames:?}");
    }
    // As keepalived does it.
    for address in ["10.88.0.200/24", "fd00:88::200/64"] {
        router.command(&format!(
            "ip addr add {address} dev eth0 {}",
            if address.contains(':') { "nodad" } else { "" }
        ));
        victim.assert_reaches(address.split('/').next().unwrap().parse::<IpAddr>().unwrap());
    }
    router.command("ip addr add 10.88.0.101/24 dev eth0");
    let silent = victim.ping(Ipv4Addr::new(10, 88, 0, 101));
    assert!(!silent.status.success(), "an address that is not allowed answers");
}

#[test]
fn a_dhcp_client_may_ask_where_there_is_dhcp() {
    let _host = Host::new();
    let (client, victim) = (Pod::new(), Pod::new());
    let (peer, mut seen) = attach(&Network::dual(), &victim);
    // Whoever gives the addresses: the network says that it is DHCP.
    let plugins = "/run/netns/.plugins";
    // The real one finds the interface there, too, by which it asks; what it begins before it has its configuration is not yet about that.
    let asks = r#"conf=$(cat)
[ "$CNI_COMMAND" != ADD ] || nsenter "--net=$CNI_NETNS" ip link show "$CNI_IFNAME" >&2 || exit 1
printf %s "$conf" |"#;
    script(plugins, "dhcp", &format!("{asks} {}", dist().join("weft-ipam").display()));
    let network = Network::dual().with(&json!({ "ipam": { "type": "dhcp" } }));
    let path = format!("{plugins}:{}", dist().display());
    let result = network.add_call(&client).env("CNI_PATH", &path).run().result();
    let (me, wire) = (Station::of(&result), wire(&result, &client));
    for case in cases(me, peer) {
        wire.send(&case.forged);
        wire.send(&case.honest);
        seen.wait_for(&case.honest, case.name);
        assert_eq!(seen.has_seen(&case.forged), case.name.starts_with("a DHCP client"), "{}", case.name);
    }
}

/// Without addresses nobody knows what is forged of them; whose frames they are is known all the same.
#[test]
fn layer_2_only() {
    let _host = Host::new();
    let (attacker, victim) = (Pod::new(), Pod::new());
    let network = Network::new("flat", &[]);
    let station = |pod: &Pod, last: u8| {
        let mut result = network.add(pod);
        let addresses = [format!("192.0.2.{last}/24"), format!("2001:db8::{last}/64")];
        result["ips"] = addresses.iter().map(|address| json!({ "address": address })).collect();
        (Station::of(&result), wire(&result, pod))
    };
    let ((me, wire), (peer, mut seen)) = (station(&attacker, 1), station(&victim, 2));
    assert_stopped(cases(me, peer), &wire, &mut seen, &["ip", "arp", "nd"]);
}

#[test]
fn beside_other_keys() {
    for keys in
        [json!({ "hairpinMode": true }), json!({ "promiscMode": true }), json!({ "isDefaultGateway": false })]
    {
        let _host = Host::new();
        let (attacker, victim) = (Pod::new(), Pod::new());
        let network = Network::dual().with(&keys);
        let (me, wire) = attach(&network, &attacker);
        let (peer, mut seen) = attach(&network, &victim);
        assert_stopped(cases(me, peer), &wire, &mut seen, &[]);
    }
    let _host = Host::new();
    let (isolated, down) = (Pod::new(), Pod::new());
    let network = Network::dual().with(&json!({ "portIsolation": true }));
    let result = network.add(&isolated);
    network.check(&isolated, &result).done();
    [IpAddr::from(GATEWAY), GATEWAY6.into()].into_iter().for_each(|gateway| isolated.assert_reaches(gateway));
    let network = Network::new("down", &[]).with(&json!({ "disableContainerInterface": true }));
    let result = network.add(&down);
    network.check(&down, &result).done();
    network.del(&down);
}

/// Containers that keep to their addresses do not notice.
#[test]
fn real_traffic() {
    for detection in [false, true] {
        let _host = Host::new();
        let (one, two) = (Pod::new(), Pod::new());
        let network = Network::dual().with(&json!({ "enabledad": detection }));
        network.add(&one);
        let result = network.add(&two);
        for address in ips(&result) {
            one.assert_reaches(address);
            // In fragments.
            one.command(&format!("ping -n -c 1 -W 3 -s 4000 {address}"));
            transfer(&one, &two, address, 3_000_000);
            let server = two.inside(|| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap());
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = one.inside(|| UdpSocket::bind(any).unwrap());
            client.send_to(b"a datagram", server.local_addr().unwrap()).unwrap();
            assert_eq!(server.recv(&mut [0; 64]).unwrap(), 10);
        }
        let link_local = Station::of(&result).link_local;
        one.command(&format!("ping -n -c 1 -W 3 {link_local}%eth0"));
    }
}

/// That somebody listens to a multicast group is of interest to a bridge that passes multicast on only then. On others the reports
/// go nowhere.
#[test]
fn reports_of_multicast_listeners() {
    let _host = Host::new();
    let (attacker, victim) = (Pod::new(), Pod::new());
    for snooping in [false, true] {
        command(&format!("ip link add weft0 type bridge mcast_snooping {}", u8::from(snooping)));
        let result = Network::dual().add(&attacker);
        let (me, wire) = (Station::of(&result), wire(&result, &attacker));
        let (peer, mut seen) = attach(&Network::dual(), &victim);
        let (report, echo) = listening(me, peer);
        wire.send(&report);
        wire.send(&echo);
        seen.wait_for(&echo, "what comes after the report");
        assert_eq!(seen.has_seen(&report), snooping);
        if !snooping {
            Network::dual().check(&attacker, &result).done();
            command("ip link set weft0 type bridge mcast_snooping 1");
            let error = Network::dual().check(&attacker, &result).error();
            assert!(error.msg.contains("multicast snooping"), "{error:?}");
        }
        for pod in [&attacker, &victim] {
            Network::dual().del(pod);
        }
        command("ip link delete weft0");
    }
}

#[test]
fn multicast_snooping_is_nothing_to_ipv4_alone() {
    let _host = Host::new();
    let pod = Pod::new();
    let result = Network::v4().add(&pod);
    command("ip link set weft0 type bridge mcast_snooping 1");
    Network::v4().check(&pod, &result).done();
}

/// A bridge of the administrator's that takes part in the spanning tree protocol would take in by itself what containers
/// say of it, past all rules (in a namespace like this one the kernel does nothing with it).
#[test]
fn what_bridges_tell_each_other_passes_the_rules() {
    let host = Host::new();
    command("ip link add weft0 type bridge stp_state 1 forward_delay 200");
    host.nft("table bridge watch { chain c { type filter hook prerouting priority -400; ether daddr 01:80:c2:00:00:00 counter; }\n }\n");
    let passed = || {
        let text = command("nft list table bridge watch");
        !text.contains("counter packets 0 ")
    };
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let open = without(&["rogue"]);
    let [victim, deaf, attacker] =
        [(&open, &pods[0]), (&open, &pods[1]), (&Network::dual(), &pods[2])].map(|(network, pod)| {
            let result = network.add(pod);
            network.check(pod, &result).done();
            (Station::of(&result), wire(&result, pod))
        });
    let (peer, mut seen) = victim;
    for ((me, wire), passes) in [(deaf, false), (attacker, true)] {
        let stopped = arrived((me, &wire), (peer, &mut seen), &[superior(me)]);
        assert_eq!(stopped, [false]);
        assert_eq!(passed(), passes);
    }
}
