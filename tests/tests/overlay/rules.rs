//! Host ports, isolation and guard on networks that span hosts: what they are where a network is of one host.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use weft_tests::frames::{ARP, BROADCAST, Frame, UDP, Wire, arp, packet, udp};
use weft_tests::{Mirror, NetNs, Network, Place, assert_way, eventually, ips, is_answered};

use crate::{DUAL, Fleet};

const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 80;
const OTHER: &str = r#"{"Network": "10.96.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:43::/48", "Backend": {"Type": "vxlan", "VNI": 2}}"#;

/// A second network of the fleet, on a bridge of its own.
fn other(fleet: &Fleet) -> Network {
    fleet.etcd.put("/other/config", OTHER);
    fleet.network.clone().with(&json!({
        "name": "other", "bridge": "weft1", "ipam": { "etcd": { "prefix": "/other" } }
    }))
}

/// The host's addresses on the underlay.
fn at(fleet: &Fleet, node: usize) -> [IpAddr; 2] {
    let node = fleet.node(node);
    [node.ipv4.into(), node.ipv6.into()]
}

/// Asks at an address and a port from a place: [`asked`].
type Asking<'a> = &'a dyn Fn((IpAddr, u16)) -> (Option<IpAddr>, bool);

/// By TCP and by UDP, whether the network masquerades or not.
#[test]
fn host_ports_are_reached_from_everywhere() {
    for masquerades in [true, false] {
        let mut fleet = Fleet::new(&[2], DUAL);
        fleet.network = fleet.network.with(&json!({ "ipMasq": masquerades }));
        let mapping =
            |protocol: &str| json!({ "hostPort": 8080, "containerPort": PORT, "protocol": protocol });
        let mappings = json!({ "runtimeConfig": { "portMappings": [mapping("tcp"), mapping("udp")] } });
        let published = fleet.network.clone().with(&mappings);
        let (web, result) = fleet.node(0).attach(&published);
        let (far, _) = fleet.node(1).attach(&fleet.network);
        let (near, _) = fleet.node(0).attach(&fleet.network);
        let theirs = other(&fleet);
        let (stranger, _) = fleet.node(1).attach(&theirs);
        // By this the host has a way back.
        let _way_back = fleet.node(0).attach(&theirs);
        let mirror = Mirror::on(&web, PORT);
        let service = web.inside(|| UdpSocket::bind(("::", PORT)).expect("a socket"));
        service.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let router = fleet.cluster.router().netns();
        let (host, far_host) = (fleet.node(0).netns(), fleet.node(1).netns());
        let places: [(&str, Asking<'_>); 7] = [
            ("outside", &|target| asked(&mirror, &service, router, target)),
            ("the host", &|target| asked(&mirror, &service, host, target)),
            ("the other host", &|target| asked(&mirror, &service, far_host, target)),
            ("a container of the host", &|target| asked(&mirror, &service, &near, target)),
            ("a container of the other host", &|target| asked(&mirror, &service, &far, target)),
            ("a container of another network", &|target| asked(&mirror, &service, &stranger, target)),
            ("the container itself", &|target| asked(&mirror, &service, &web, target)),
        ];
        for (family, at) in at(&fleet, 0).into_iter().enumerate() {
            for (who, asked) in places {
                let (seen, is_answered) = asked((at, 8080));
                assert!(
                    seen.is_some() && is_answered,
                    "{who} at {at}, ipMasq: {masquerades}: {seen:?}, {is_answered}"
                );
                if who == "outside" {
                    let routers: [IpAddr; 2] =
                        [[172, 30, 0, 1].into(), "fd30::1".parse().expect("an address")];
                    assert_eq!(seen, Some(routers[family]), "the client's address is kept");
                }
            }
            // By its own address it is a container of the network as before.
            let own = ips(&result)[family];
            assert!(mirror.seen(&far, (own, PORT)).is_some(), "{own} from the other host");
        }
        assert!(mirror.seen(host, ([127, 0, 0, 1].into(), 8080)).is_some(), "the host by 127.0.0.1");
        published.del_call(&web).on(fleet.node(0)).run().done();
        for at in at(&fleet, 0) {
            assert!(mirror.is_closed_to(&far, (at, 8080)), "after DEL nobody answers at {at}");
        }
    }
}

/// Whom a container sees where it is asked by TCP, and whether it can answer by UDP.
fn asked(
    mirror: &Mirror,
    service: &UdpSocket,
    from: &impl Place,
    target: (IpAddr, u16),
) -> (Option<IpAddr>, bool) {
    let by_udp = is_answered(from, service, target);
    (mirror.seen(from, target), by_udp)
}

/// On the same host and across hosts, also when one of the two hosts has lost its rules.
#[test]
fn networks_are_closed_to_each_other_across_hosts() {
    let fleet = Fleet::new(&[2], DUAL);
    let theirs = other(&fleet);
    for is_open in [false, true] {
        let says = json!({ "isolation": if is_open { "none" } else { "network" } });
        let (ours, theirs) = (fleet.network.clone().with(&says), theirs.clone().with(&says));
        let attach = |network: &Network| [0, 1].map(|node| fleet.node(node).attach(network));
        let (of_ours, of_theirs) = (attach(&ours), attach(&theirs));
        // By these each host has learnt of the other one.
        let more = [attach(&ours), attach(&theirs)];
        let servers = of_theirs.each_ref().map(|(pod, result)| (Mirror::on(pod, PORT), ips(result)));
        let own = of_ours.each_ref().map(|(pod, result)| (Mirror::on(pod, PORT), ips(result)));
        let assert_closed = |what: &str| {
            for (from, (client, _)) in of_ours.iter().enumerate() {
                for (to, (mirror, addresses)) in servers.iter().enumerate() {
                    for address in addresses {
                        assert_way(
                            is_open,
                            mirror,
                            client,
                            *address,
                            &format!("{what}: from host {from} to {to}"),
                        );
                    }
                }
                for (to, (mirror, addresses)) in own.iter().enumerate() {
                    for address in addresses {
                        assert_way(
                            true,
                            mirror,
                            client,
                            *address,
                            &format!("within, from host {from} to {to}"),
                        );
                    }
                }
            }
        };
        assert_closed("as it is");
        if !is_open {
            // The host of the one that is asked keeps it closed by itself.
            fleet.node(0).command("nft flush ruleset");
            for address in &servers[1].1 {
                assert!(
                    servers[1].0.is_closed_to(&of_ours[0].0, (*address, PORT)),
                    "to {address} on the other host"
                );
            }
            drop(fleet.node(0).attach(&ours));
            assert_closed("restored");
        }
        for (network, pods) in [(&ours, of_ours), (&theirs, of_theirs)] {
            for (node, (pod, _)) in pods.iter().enumerate() {
                network.del_call(pod).on(fleet.node(node)).run().done();
            }
        }
        drop(more);
    }
}

/// A container passes for nobody else: not for its neighbour, not for one of another host, not for the gateway; neither on the link nor
/// to another host.
#[test]
fn forged_packets_reach_neither_neighbours_nor_other_hosts() {
    for guard in [true, false] {
        let fleet = Fleet::new(&[2], DUAL);
        let guarded = fleet.network.clone().with(&json!({ "guard": guard }));
        let (attacker, result) = fleet.node(0).attach(&guarded);
        let (near, of_near) = fleet.node(0).attach(&fleet.network);
        let (far, of_far) = fleet.node(1).attach(&fleet.network);
        drop(fleet.node(0).attach(&fleet.network));
        let wire = Wire::of(&attacker);
        let bridge = Wire::open(fleet.node(0).netns(), "weft0").mac;
        let beside = Wire::of(&near).mac;
        for family in [0, 1] {
            let [me, near_at, far_at] = [&result, &of_near, &of_far].map(|result| ips(result)[family]);
            let gateway: IpAddr =
                result["ips"][family]["gateway"].as_str().expect("a gateway").parse().expect("an address");
            let to_near = ("the neighbour", near.netns(), near_at, beside);
            let to_far = ("the other host", far.netns(), far_at, bridge);
            for (who, netns, to, by) in [to_near, to_far] {
                let heard = |from: IpAddr| hears(&wire, netns, (from, to), by, me);
                for (whose, from) in
                    [("the gateway's", gateway), ("the neighbour's", near_at), ("the other host's", far_at)]
                {
                    // A host takes no packet from outside that has an address of its own.
                    if from == to || (!guard && from == gateway && by == bridge) {
                        continue;
                    }
                    assert_eq!(heard(from), !guard, "{who} hears {whose} address {from}, guard: {guard}");
                }
            }
        }
        let IpAddr::V4(gateway) =
            result["ips"][0]["gateway"].as_str().expect("a gateway").parse().expect("an address")
        else {
            panic!("{result}")
        };
        let mut seen = Wire::of(&near);
        let claim = Frame::new(BROADCAST, wire.mac, ARP, &arp(1, (wire.mac, gateway), ([0; 6], gateway)));
        wire.send(&claim);
        assert_eq!(seen.receives(&claim, if guard { Duration::from_millis(200) } else { PATIENCE }), !guard);
    }
}

/// Sends a datagram from an address, and then an honest one from the own; whether the first was heard.
fn hears(wire: &Wire, at: &NetNs, (from, to): (IpAddr, IpAddr), by: [u8; 6], own: IpAddr) -> bool {
    let socket = at.inside(|| UdpSocket::bind((to, 0)).expect("a socket"));
    socket.set_nonblocking(true).expect("do not wait");
    let port = socket.local_addr().expect("its port").port();
    let send = |from: IpAddr, text: &[u8]| {
        wire.send(&Frame::ip(by, wire.mac, &packet(from, to, UDP, 0, &udp(from, to, (9, port), text))));
    };
    send(from, b"forged");
    let mut is_forged = false;
    eventually(PATIENCE, "the honest one is heard", || {
        // The first one may be lost while its way is looked for.
        send(own, b"honest");
        let mut buffer = [0; 8];
        while let Ok(length) = socket.recv(&mut buffer) {
            match &buffer[..length] {
                b"forged" => is_forged = true,
                _ => return Some(()),
            }
        }
        None
    });
    is_forged
}
