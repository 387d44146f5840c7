//! 127.0.0.1 of the host: its own processes reach containers by it, and nobody reaches the host by it.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Outside, Pod, command};

use crate::{addr, mapping, network, with};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// 127.0.0.1 is reached by this host, and by nobody who sends packets for it. That a rule is what keeps them out
/// shows when it is taken away.
#[test]
fn it_is_closed_to_neighbours() {
    let host = Host::new();
    let (web, attacker) = (Pod::new(), Pod::new());
    with(&network(), &[mapping(8080, 80)]).add(&web);
    network().add(&attacker);
    assert_eq!(host.sysctl("net/ipv4/conf/weft0/route_localnet"), "1");
    let served = Mirror::on(&web, 80);
    let local = Mirror::on(host.netns(), 7000);
    attacker.inside(|| {
        command("ip addr flush dev lo");
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("let 127.0.0.0/8 out");
        command("ip route add 127.0.0.1/32 via 10.88.0.1");
    });
    assert!(served.seen(host.netns(), (LOCALHOST, 8080)).is_some(), "the container serves");
    assert!(local.seen(host.netns(), (LOCALHOST, 7000)).is_some(), "the host serves");
    assert!(served.seen(&attacker, (addr("10.88.0.1"), 8080)).is_some(), "the attacker reaches the host");
    assert!(local.is_closed_to(&attacker, (LOCALHOST, 7000)), "the host's own service");
    assert!(served.is_closed_to(&attacker, (LOCALHOST, 8080)), "the container's port");
    command("nft flush chain inet weft hostport-raw");
    assert!(local.seen(&attacker, (LOCALHOST, 7000)).is_some(), "the attacker's packets do arrive");
    assert!(served.is_closed_to(&attacker, (LOCALHOST, 8080)), "there is no port for who sends to 127.0.0.1");
    command("nft flush chain inet weft hostport-in");
    command("nft add rule inet weft hostport-in fib daddr type local jump hostport");
    assert!(served.seen(&attacker, (LOCALHOST, 8080)).is_some(), "without that rule there is one");
}

/// The kernel's door is opened where it is needed, and only there.
#[test]
fn a_bridge_routes_it_only_where_a_mapping_needs_it() {
    let host = Host::new();
    let _outside = host.outside();
    let at = |ip: &str| json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip });
    let routed = |network: &Network, mappings: &[Value]| {
        let pod = Pod::new();
        with(network, mappings).add(&pod);
        let routed = host.sysctl("net/ipv4/conf/weft0/route_localnet");
        let closed = Mirror::on(&pod, 80).is_closed_to(host.netns(), (LOCALHOST, 8080));
        with(network, mappings).del(&pod);
        (routed, !closed)
    };
    let closed = ("0".to_owned(), false);
    assert_eq!(routed(&network(), &[]), closed, "no port");
    assert_eq!(routed(&network(), &[at(Outside::HOST[0])]), closed, "a port of another address");
    assert_eq!(routed(&network(), &[at(Outside::HOST[1]), at("::")]), closed, "ports of IPv6");
    let plain = network().with(&json!({ "snat": false }));
    assert_eq!(routed(&plain, &[mapping(8080, 80)]), closed, "nobody is masqueraded");
    for ip in ["127.0.0.1", "0.0.0.0"] {
        assert_eq!(routed(&network(), &[at(ip)]), ("1".to_owned(), true), "a port of {ip}");
    }
}

/// It is closed again with the last container that has a port of it, however that goes, and whatever others of the bridge there are.
#[test]
fn a_bridge_is_closed_with_the_last_port_of_it() {
    let host = Host::new();
    let routed = || host.sysctl("net/ipv4/conf/weft0/route_localnet");
    let other = Network::new("other", &["10.99.0.0/24"]).with(&json!({ "isDefaultGateway": true }));
    let (plain, mut web, second) = (Pod::new(), Pod::new(), Pod::new());
    network().add(&plain);
    let (one, two) = (with(&network(), &[mapping(8080, 80)]), with(&other, &[mapping(8081, 80)]));
    one.add(&web);
    two.add(&second);
    one.del(&web);
    assert_eq!(routed(), "1", "the other network's container has a port");
    let served = Mirror::on(&second, 80);
    assert!(served.seen(host.netns(), (LOCALHOST, 8081)).is_some());
    two.del(&second);
    assert_eq!(routed(), "0", "DEL");
    // By the key alone.
    one.add(&web);
    command("find /run/weft -path */attachments/* -delete");
    one.del(&web);
    assert_eq!(routed(), "0", "DEL without a record");
    one.add(&web);
    web.unmount();
    one.gc(&[(&plain.id, "eth0")]);
    assert_eq!(routed(), "0", "GC");
    web = Pod::new();
    // Of two that go at once one is the last.
    for _ in 0..5 {
        one.add(&web);
        two.add(&second);
        let going = [one.del_call(&web).start(), two.del_call(&second).start()];
        going.into_iter().for_each(|del| del.finish().done());
        assert_eq!(routed(), "0", "two at once");
    }
    // Somebody else needs it.
    host.set_sysctl("net/ipv4/conf/weft0/route_localnet", "1");
    one.add(&web);
    one.del(&web);
    assert_eq!(routed(), "1", "it was open before");
}
