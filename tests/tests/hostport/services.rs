//! Ports beside what others translate: Services of Kubernetes, redirections.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;
use weft_tests::{Host, Mirror, Outside, Pod, command, ips};

use crate::{addr, mapping, network, with};

/// Addresses that are nobody's, as those of Services are.
const SERVICE: [&str; 2] = ["203.0.113.9", "2001:db8:aaaa::9"];

/// Has the host lead a port of a Service to one of a container, as kube-proxy does.
fn serve_by(host: &Host, port: u16, to: &[IpAddr], target: u16) {
    for ((family, service), to) in ["ip", "ip6"].into_iter().zip(SERVICE).zip(to) {
        let to = SocketAddr::new(*to, target);
        let rule = format!("{family} daddr {service} tcp dport {port} dnat to {to}");
        let chain = format!("chain of-{port} {{ type nat hook prerouting priority dstnat\n {rule}\n }}");
        host.nft(&format!("table {family} services {{ {chain}\n }}\n"));
    }
}

/// Also where the container's own port of the host has the number of the Service's.
#[test]
fn by_a_service_a_published_container_sees_its_clients() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        let (web, client) = (Pod::new(), Pod::new());
        let to = ips(&with(&network(), &[mapping(8080, 80)]).add(&web));
        let own = ips(&network().add(&client));
        host.set_br_netfilter(br_netfilter);
        let mirror = Mirror::on(&web, 80);
        for port in [8080, 9000] {
            serve_by(&host, port, &to, 80);
            // Without br_netfilter the container answers a neighbour directly, and not as the Service.
            let seen = SERVICE.map(|service| match br_netfilter {
                true => mirror.seen(&client, (addr(service), port)),
                false => None,
            });
            if br_netfilter {
                assert_eq!(seen, [Some(own[0]), Some(own[1])], "by port {port}");
            }
            for gateway in ["10.88.0.1", "fd00:88::1"].map(addr) {
                assert_eq!(mirror.seen(&client, (gateway, 8080)), Some(gateway), "by the port of the host");
            }
        }
    }
}

/// What another one translates opens nothing; what is published is open.
#[test]
fn a_service_opens_no_closed_network() {
    for &br_netfilter in Host::br_netfilter_ways() {
        for (keys, is_outside) in [(json!({ "icc": false }), false), (json!({ "internal": true }), true)] {
            let host = Host::new();
            host.set_br_netfilter(br_netfilter);
            let outside = host.outside();
            for ((family, service), at) in ["-4", "-6"].into_iter().zip(SERVICE).zip(Outside::HOST) {
                outside.inside(|| {
                    command(&format!("ip {family} route add {service} via {at}"));
                });
            }
            let (web, client) = (Pod::new(), Pod::new());
            let network = network().with(&keys);
            let to = ips(&with(&network, &[mapping(8080, 80)]).add(&web));
            network.add(&client);
            for port in [8080, 9000] {
                serve_by(&host, port, &to, 80);
            }
            let mirror = Mirror::on(&web, 80);
            for (service, at) in SERVICE.into_iter().zip(Outside::HOST) {
                let what = format!("{keys}, br_netfilter: {br_netfilter}, {service}");
                let closed = |port| match is_outside {
                    true => mirror.is_closed_to(&outside, (addr(service), port)),
                    false => mirror.is_closed_to(&client, (addr(service), port)),
                };
                assert!(closed(8080) && closed(9000), "{what}");
                let seen = match is_outside {
                    true => mirror.seen(&outside, (addr(at), 8080)),
                    false => mirror.seen(&client, (addr(at), 8080)),
                };
                assert!(seen.is_some(), "the published port is open, {what}");
            }
        }
    }
}

/// `sources` is about what is published, also where somebody asks by a Service.
#[test]
fn sources_hold_by_a_service_for_what_is_published_only() {
    let host = Host::new();
    let outside = host.outside();
    for ((family, service), at) in ["-4", "-6"].into_iter().zip(SERVICE).zip(Outside::HOST) {
        outside.inside(|| command(&format!("ip {family} route add {service} via {at}")));
    }
    let web = Pod::new();
    let limited = network().with(&json!({ "sources": ["192.0.2.0/24", "2001:db8:1::/48"] }));
    let to = ips(&with(&limited, &[mapping(8080, 80)]).add(&web));
    serve_by(&host, 8080, &to, 80);
    serve_by(&host, 8081, &to, 81);
    let (published, unpublished) = (Mirror::on(&web, 80), Mirror::on(&web, 81));
    for (service, peer) in SERVICE.map(addr).into_iter().zip(Outside::PEER) {
        assert!(published.is_closed_to(&outside, (service, 8080)), "{peer} is none of the sources");
        assert_eq!(unpublished.seen(&outside, (service, 8081)), Some(addr(peer)));
    }
}

/// Whoever redirects, before or after the host's ports are looked up.
#[test]
fn what_others_redirect_on_the_host_keeps_its_address() {
    let host = Host::new();
    let web = Pod::new();
    with(&network(), &[mapping(8080, 80)]).add(&web);
    let (service, published) = (Mirror::on(host.netns(), 8081), Mirror::on(&web, 80));
    for priority in [-100, 0] {
        let rule = "ip daddr 127.0.0.1 tcp dport 8888 redirect to :8081";
        host.nft(&format!(
            "table ip redirects {{ chain out {{ type nat hook output priority {priority}\n {rule}\n }}\n }}"
        ));
        let localhost = addr("127.0.0.1");
        assert_eq!(service.seen(host.netns(), (localhost, 8888)), Some(localhost), "at {priority}");
        assert!(published.seen(host.netns(), (localhost, 8080)).is_some());
        command("nft delete table ip redirects");
    }
}

/// kube-proxy with IPVS: the addresses of Services are the host's own, and what is for them is accepted before ports are looked up. The
/// port of one address takes none of it.
#[test]
fn services_at_addresses_of_the_host_are_left_to_it_by_a_port_of_one_address() {
    let host = Host::new();
    let outside = host.outside();
    command("ip link add kube-ipvs0 type veth peer name other-end");
    command("ip link set kube-ipvs0 up");
    command("ip link set other-end up");
    for ((family, service), at) in ["ip", "ip6"].into_iter().zip(SERVICE).zip(Outside::HOST) {
        command(&format!(
            "ip addr add {service} dev kube-ipvs0{}",
            if family == "ip6" { " nodad" } else { "" }
        ));
        let rule = format!("{family} daddr {service} accept");
        let chain = format!("chain of-services {{ type nat hook prerouting priority dstnat\n {rule}\n }}");
        host.nft(&format!("table {family} services {{ {chain}\n }}\n"));
        outside.inside(|| command(&format!("ip route add {service} via {at}")));
    }
    let web = Pod::new();
    let mappings = Outside::HOST.map(|at| {
        let mut of_one_address = mapping(8080, 80);
        of_one_address["hostIP"] = json!(at);
        of_one_address
    });
    with(&network(), &mappings).add(&web);
    let (service, published) = (Mirror::on(host.netns(), 8080), Mirror::on(&web, 80));
    for ((at, of_service), peer) in
        Outside::HOST.map(addr).into_iter().zip(SERVICE.map(addr)).zip(Outside::PEER)
    {
        assert_eq!(service.seen(&outside, (of_service, 8080)), Some(addr(peer)));
        assert_eq!(published.seen(&outside, (at, 8080)), Some(addr(peer)));
    }
}
