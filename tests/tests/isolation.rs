//! Isolation: who reaches a container of which network, and who does not. Real connections; wherever nothing passes, the
//! same passes when the key says otherwise.

#[path = "isolation/allow.rs"]
mod allow;
#[path = "isolation/arrivals.rs"]
mod arrivals;
#[path = "isolation/closed.rs"]
mod closed;
#[path = "isolation/egress.rs"]
mod egress;
#[path = "isolation/moment.rs"]
mod moment;
#[path = "isolation/prefixes.rs"]
mod prefixes;
#[path = "isolation/subnets.rs"]
mod subnets;
#[path = "isolation/switched.rs"]
mod switched;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;
use weft_tests::frames::{BROADCAST, Frame, Wire};
use weft_tests::{Host, Mirror, Network, Outside, Pod, assert_way, command, ips, is_answered};

const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(5);

fn one() -> Network {
    Network::new("one", &["10.88.0.0/24", "fd00:88::/64"]).with(&json!({ "isDefaultGateway": true }))
}

fn other(bridge: &str) -> Network {
    Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": bridge, "isDefaultGateway": true }))
}

fn private() -> Network {
    one().with(&json!({ "icc": false }))
}

/// Attaches a container that serves, and returns its addresses of both families.
fn serve(network: &Network, pod: &Pod) -> (Mirror, Vec<IpAddr>) {
    let addresses = ips(&network.add(pod));
    (Mirror::on(pod, PORT), addresses)
}

#[test]
fn networks_are_closed_to_each_other_unless_both_are_open() {
    let host = Host::new();
    let (client, server) = (Pod::new(), Pod::new());
    for (one_says, other_says, is_open) in [
        (None, None, false),
        (Some("none"), None, false),
        (None, Some("none"), false),
        (Some("none"), Some("none"), true),
    ] {
        let says = |network: Network, says: Option<&str>| network.with(&json!({ "isolation": says }));
        let (one, other) = (says(one(), one_says), says(other("weft1"), other_says));
        one.add(&client);
        let (mirror, addresses) = serve(&other, &server);
        for address in addresses {
            let target = (address, PORT);
            assert!(mirror.seen(host.netns(), target).is_some(), "the host reaches {address}");
            assert!(mirror.seen(&server, target).is_some(), "the container reaches itself at {address}");
            assert_way(is_open, &mirror, &client, address, &format!("{one_says:?} to {other_says:?}"));
        }
        drop(mirror);
        one.del(&client);
        other.del(&server);
    }
}

#[test]
fn two_networks_on_one_bridge_are_closed_to_each_other_also_without_the_host_between() {
    let ways = Host::br_netfilter_ways().iter();
    for (br_netfilter, (says, is_open)) in
        ways.flat_map(|&way| [("network", false), ("none", true)].map(|says| (way, says)))
    {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let (client, server) = (Pod::new(), Pod::new());
        let says = json!({ "isolation": says });
        let (one, other) = (one().with(&says), other("weft0").with(&says));
        one.add(&client);
        let (mirror, addresses) = serve(&other, &server);
        // They talk on the link, as a container that wants to can.
        client.command("ip route add 10.99.0.0/24 dev eth0");
        server.command("ip route add 10.88.0.0/24 dev eth0");
        client.command("ip route add fd00:99::/64 dev eth0");
        server.command("ip route add fd00:88::/64 dev eth0");
        for address in addresses {
            assert_way(is_open, &mirror, &client, address, "on the link");
        }
        drop(mirror);
        one.del(&client);
        other.del(&server);
    }
}

#[test]
fn an_internal_network_has_no_way_out_and_none_in() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        let (client, server) = (Pod::new(), Pod::new());
        let way_out = Mirror::on(&outside, PORT);
        let peers = Outside::PEER.map(|peer| peer.parse::<IpAddr>().expect("an address"));
        for is_internal in [true, false] {
            let network = one().with(&json!({ "internal": is_internal, "ipMasq": true }));
            network.add(&client);
            let (mirror, addresses) = serve(&network, &server);
            for (address, peer) in addresses.into_iter().zip(peers) {
                assert!(mirror.seen(&client, (address, PORT)).is_some(), "inside, {address} is reached");
                assert_way(!is_internal, &way_out, &client, peer, "out");
                // Somebody outside who routes to the network by this host.
                let at = Outside::HOST[usize::from(address.is_ipv6())];
                let (prefix, family) =
                    if address.is_ipv6() { ("fd00:88::/64", "-6") } else { ("10.88.0.0/24", "-4") };
                outside.inside(|| command(&format!("ip {family} route replace {prefix} via {at}")));
                assert_way(!is_internal, &mirror, &outside, address, "in");
            }
            drop(mirror);
            network.del(&client);
            network.del(&server);
        }
    }
}

/// By its addresses on the bridge and by its others, with TCP and with UDP.
#[test]
fn services_of_the_host_can_be_kept_from_containers() {
    let host = Host::new();
    let _outside = host.outside();
    let client = Pod::new();
    let by_tcp = Mirror::on(host.netns(), PORT);
    for has_access in [false, true] {
        let network = one().with(&json!({ "hostAccess": has_access }));
        network.add(&client);
        for at in ["10.88.0.1", "fd00:88::1"].iter().chain(&Outside::HOST) {
            let at: IpAddr = at.parse().expect("an address");
            assert_way(has_access, &by_tcp, &client, at, "to the host");
            let by_udp = UdpSocket::bind((at, PORT)).expect("a socket");
            let time = if has_access { PATIENCE } else { Duration::from_millis(300) };
            by_udp.set_read_timeout(Some(time)).expect("a limit");
            assert_eq!(is_answered(&client, &by_udp, (at, PORT)), has_access, "to the host at {at} by UDP");
            client.assert_reaches(at);
        }
        let on_link = on_link_to_the_host(&host, &client);
        assert_eq!(on_link, has_access, "to the bridge's link-local address");
        network.del(&client);
    }
}

/// Whether a container reaches a service of the host at the bridge's link-local address.
fn on_link_to_the_host(host: &Host, from: &Pod) -> bool {
    let service = host.netns().inside(|| TcpListener::bind(("::", PORT + 1)).expect("a listener"));
    let target = on_link(&command("ip -6 -o addr show dev weft0 scope link"), from, PORT + 1);
    // Reachability is no service.
    from.command(&format!("ping -n -c 1 -W 3 {}%eth0", target.ip()));
    let time = Duration::from_millis(500);
    let reaches = || from.inside(|| TcpStream::connect_timeout(&target, time).is_ok());
    let reached = (0..3).any(|_| reaches());
    drop(service);
    reached
}

/// The link-local address that `ip` shows, as a container reaches it.
fn on_link(shown: &str, from: &Pod, port: u16) -> SocketAddr {
    let address = shown.split_whitespace().nth(3).and_then(|address| address.split('/').next());
    let address: Ipv6Addr = address.and_then(|address| address.parse().ok()).expect("a link-local address");
    let index = from.link("eth0").expect("an interface")["ifindex"].as_u64().expect("a number");
    SocketAddrV6::new(address, port, 0, u32::try_from(index).expect("a small number")).into()
}

#[test]
fn without_icc_containers_reach_each_other_neither_by_the_host_nor_on_the_link() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        let (client, server) = (Pod::new(), Pod::new());
        let network = private();
        let result = network.add(&client);
        host.set_br_netfilter(br_netfilter);
        let (mirror, addresses) = serve(&network, &server);
        for on_link in [false, true] {
            for address in &addresses {
                let what = format!("{address}, on the link: {on_link}, br_netfilter: {br_netfilter}");
                assert!(mirror.is_closed_to(&client, (*address, PORT)), "{what}");
                assert!(mirror.seen(host.netns(), (*address, PORT)).is_some(), "the host reaches {what}");
            }
            network.check(&client, &result).done();
            // More specific than the way by the gateway.
            client.command(&format!("ip route replace {}/32 dev eth0", addresses[0]));
            client.command(&format!("ip route replace {}/128 dev eth0", addresses[1]));
        }
    }
}

/// By no protocol that rules know, and by addresses that never leave a link.
#[test]
fn networks_that_share_a_bridge_hear_nothing_of_each_other() {
    for br_netfilter in Host::br_netfilter_ways() {
        for (says, is_open) in [("network", false), ("none", true)] {
            let host = Host::new();
            host.set_br_netfilter(*br_netfilter);
            let says = json!({ "isolation": says, "guard": false });
            let (one, other) = (one().with(&says), other("weft0").with(&says));
            let (sender, companion, stranger) = (Pod::new(), Pod::new(), Pod::new());
            one.add(&sender);
            one.add(&companion);
            let result = other.add(&stranger);
            let from = Wire::of(&sender);
            for (pod, hears) in [(&companion, true), (&stranger, is_open)] {
                let mut to = Wire::of(pod);
                for target in [to.mac, BROADCAST, [0x33, 0x33, 0, 0, 0, 1]] {
                    let frame = Frame::new(target, from.mac, 0x88b5, b"local experiment");
                    from.send(&frame);
                    let time = Duration::from_millis(if hears { 3000 } else { 200 });
                    assert_eq!(to.receives(&frame, time), hears, "{says}, to {target:x?}");
                }
                let service = pod.inside(|| TcpListener::bind(("::", PORT)).expect("a listener"));
                let shown = pod.command("ip -6 -o addr show dev eth0 scope link");
                let target = on_link(&shown, &sender, PORT);
                let time = Duration::from_millis(if hears { 3000 } else { 300 });
                let reaches = sender.inside(|| TcpStream::connect_timeout(&target, time).is_ok());
                assert_eq!(reaches, hears, "{says}, at {target}");
                drop(service);
            }
            other.check(&stranger, &result).done();
            let port = result["interfaces"][1]["name"].as_str().expect("a name");
            command(&format!("ip link set {port} group default"));
            other.check(&stranger, &result).any_error().assert_names(&["group 0"]);
        }
    }
}

/// Frames of no protocol that any rule knows, to one and to all. A network without addresses has nothing else.
#[test]
fn without_icc_no_frame_passes_from_container_to_container() {
    for (network, icc) in [(private(), false), (one(), true), (Network::new("flat", &[]), true)] {
        for icc in [icc, false] {
            let _host = Host::new();
            let network = network.clone().with(&json!({ "icc": icc, "guard": false }));
            let (sender, receiver) = (Pod::new(), Pod::new());
            network.add(&sender);
            let result = network.add(&receiver);
            for pod in [&sender, &receiver] {
                pod.command("ip link set eth0 up");
            }
            let (from, mut to) = (Wire::of(&sender), Wire::of(&receiver));
            for target in [to.mac, BROADCAST, [0x01, 0x00, 0x5e, 1, 2, 3]] {
                let frame = Frame::new(target, from.mac, 0x88b5, b"local experiment");
                from.send(&frame);
                let time = Duration::from_millis(if icc { 3000 } else { 200 });
                assert_eq!(to.receives(&frame, time), icc, "icc: {icc}, to {target:x?}");
            }
            network.check(&receiver, &result).done();
        }
    }
}

#[test]
fn a_published_port_is_for_all_containers_of_the_bridge_also_without_icc() {
    let with = |snat| Host::br_netfilter_ways().iter().map(move |is_on| (*is_on, snat));
    for (br_netfilter, snat) in with(true).chain(with(false)) {
        let host = Host::new();
        let _outside = host.outside();
        let publish = |port: u16| {
            let of = |protocol| json!({ "hostPort": port, "containerPort": PORT, "protocol": protocol });
            let mappings = json!({ "runtimeConfig": { "portMappings": [of("tcp"), of("udp")] } });
            private().with(&mappings).with(&json!({ "snat": snat }))
        };
        let (web, db, client, stranger) = (Pod::new(), Pod::new(), Pod::new(), Pod::new());
        let result = publish(8080).add(&web);
        host.set_br_netfilter(br_netfilter);
        let mirror = Mirror::on(&web, PORT);
        publish(8081).add(&db);
        private().add(&client);
        other("weft0").add(&stranger);
        let service = web.inside(|| UdpSocket::bind(("::", PORT)).expect("a socket"));
        let own = ips(&result);
        let gateways = ["10.88.0.1", "fd00:88::1"];
        for at in Outside::HOST.iter().chain(&gateways) {
            let at: IpAddr = at.parse().expect("an address");
            let places = [
                (&client, "one that publishes nothing"),
                (&db, "one that publishes"),
                (&stranger, "one of another network on the bridge"),
                (&web, "itself"),
            ];
            for (from, who) in places {
                // Without `snat` its own answer would come from itself.
                if !snat && who == "itself" {
                    continue;
                }
                let what = format!("{who} by {at}, br_netfilter: {br_netfilter}, snat: {snat}");
                assert!(mirror.seen(from, (at, 8080)).is_some(), "{what}");
                service.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
                assert!(is_answered(from, &service, (at, 8080)), "{what}, by UDP");
            }
        }
        for address in own {
            for from in [&client, &db, &stranger] {
                assert!(mirror.is_closed_to(from, (address, PORT)), "{address}, which nobody may ask itself");
                service.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
                assert!(!is_answered(from, &service, (address, PORT)), "{address}, by UDP");
            }
        }
        publish(8080).check(&web, &result).done();
    }
}

#[test]
fn a_flush_is_told_by_check_and_made_right_by_the_next_add() {
    let host = Host::new();
    let (client, server, third) = (Pod::new(), Pod::new(), Pod::new());
    let one = one();
    let result = one.add(&client);
    let (mirror, addresses) = serve(&other("weft1"), &server);
    one.check(&client, &result).done();
    host.nft("flush ruleset");
    assert!(mirror.seen(&client, (addresses[0], PORT)).is_some(), "nothing is between them");
    one.check(&client, &result).any_error().assert_names(&["isolation", "missing"]);
    one.add(&third);
    one.check(&client, &result).done();
    assert!(mirror.is_closed_to(&client, (addresses[0], PORT)), "also what another network has is back");
}
