//! `hostIP`: a port of one of the host's addresses. At the others the host is there itself.

use std::net::{SocketAddrV6, TcpListener, TcpStream};

use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use weft_tests::{Host, Mirror, NetNs, Outside, Place, Pod, command, eventually};

use crate::{PATIENCE, addr, network, with};

/// The host's second addresses on the cable.
const SECOND: [&str; 2] = ["198.51.100.5", "2001:db8:ffff::5"];

fn at(ip: &str) -> Value {
    json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip })
}

fn second_addresses() {
    command(&format!("ip addr add {}/24 dev up0", SECOND[0]));
    command(&format!("ip addr add {}/64 dev up0 nodad", SECOND[1]));
}

/// A place reaches the container at these addresses of the host, and nothing at those.
#[track_caller]
fn assert_served(web: &Mirror, from: &impl Place, open: &[&str], closed: &[&str]) {
    for ip in open {
        assert!(web.seen(from, (addr(ip), 8080)).is_some(), "the container serves at {ip}");
    }
    for ip in closed {
        assert!(web.is_closed_to(from, (addr(ip), 8080)), "nobody serves at {ip}");
    }
}

#[test]
fn one_address_serves_and_the_others_are_the_hosts() {
    let host = Host::new();
    let outside = host.outside();
    second_addresses();
    let (web, neighbour) = (Pod::new(), Pod::new());
    let network = network();
    network.add(&neighbour);
    for (family, others) in [["10.88.0.1", "127.0.0.1"], ["fd00:88::1", "::1"]].iter().enumerate() {
        let (own, second) = (Outside::HOST[family], SECOND[family]);
        let published = with(&network, &[at(own)]);
        published.add(&web);
        let mirror = Mirror::on(&web, 80);
        assert_served(&mirror, &outside, &[own], &[second]);
        assert_served(&mirror, &neighbour, &[own], &[second, others[0]]);
        assert_served(&mirror, host.netns(), &[own], &[second, others[0], others[1]]);
        // The other family has no such port.
        assert_served(&mirror, &outside, &[], &[Outside::HOST[1 - family]]);
        // At the others a process of the host has the port; at this one the container keeps it.
        let hosts = Mirror::on(host.netns(), 8080);
        assert!(hosts.seen(&outside, (addr(second), 8080)).is_some(), "the host's own at {second}");
        assert!(hosts.seen(&neighbour, (addr(others[0]), 8080)).is_some(), "the host's own at {}", others[0]);
        assert_served(&mirror, &outside, &[own], &[]);
        published.del(&web);
        assert!(hosts.seen(&outside, (addr(own), 8080)).is_some(), "after DEL {own} is the host's again");
    }
}

#[test]
fn an_ipv4_address_in_ipv6_notation_is_the_ipv4_address() {
    let host = Host::new();
    let outside = host.outside();
    second_addresses();
    let web = Pod::new();
    let own = Outside::HOST[0];
    with(&network(), &[at(&format!("::ffff:{own}"))]).add(&web);
    let mirror = Mirror::on(&web, 80);
    assert_served(&mirror, &outside, &[own], &[SECOND[0], Outside::HOST[1]]);
    with(&network(), &[at(own)]).add_call(&Pod::new()).run().error_code(103).assert_names(&[&web.id, own]);
}

/// What comes to them comes from such an address, from which the kernel forwards nothing: there the port is the host's.
#[test]
fn link_local_addresses_are_the_hosts() {
    let host = Host::new();
    let outside = host.outside();
    let (web, neighbour) = (Pod::new(), Pod::new());
    with(&network(), &[json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" })]).add(&web);
    network().add(&neighbour);
    let hosts = host.netns().inside(|| TcpListener::bind(("::", 8080)).expect("listen"));
    hosts.set_nonblocking(true).expect("do not wait");
    let reaches = |from: &NetNs, at: &str, by: &str| {
        let words = command(&format!("ip -6 -o addr show dev {at} scope link"));
        let address = words.split_whitespace().nth(3).and_then(|text| text.split_once('/'));
        let address = address.and_then(|(ip, _)| ip.parse().ok()).expect("a link-local address");
        let connected = from.inside(|| {
            let scope = if_nametoindex(by).expect("a link");
            TcpStream::connect_timeout(&SocketAddrV6::new(address, 8080, 0, scope).into(), PATIENCE)
        });
        connected.unwrap_or_else(|error| panic!("to {address} of {at} by {by}: {error}"));
        eventually(PATIENCE, "the host is asked", || hosts.accept().ok());
    };
    reaches(outside.netns(), "up0", "eth0");
    reaches(neighbour.netns(), "weft0", "eth0");
    reaches(host.netns(), "up0", "up0");
}

/// Two containers have the same port at two addresses.
#[test]
fn each_address_has_its_container() {
    let host = Host::new();
    let outside = host.outside();
    second_addresses();
    for (own, other) in Outside::HOST.into_iter().zip(SECOND) {
        let (first, second) = (Pod::new(), Pod::new());
        let network = network();
        with(&network, &[at(own)]).add(&first);
        with(&network, &[at(other)]).add(&second);
        let (one, two) = (Mirror::on(&first, 80), Mirror::on(&second, 80));
        assert_served(&one, &outside, &[own], &[]);
        assert_served(&two, &outside, &[other], &[]);
        with(&network, &[at(own)]).del(&first);
        assert_served(&two, &outside, &[other], &[own]);
        with(&network, &[at(other)]).del(&second);
    }
}

/// For processes of this host alone.
#[test]
fn the_loopback_address_alone() {
    let host = Host::new();
    let outside = host.outside();
    let (web, neighbour) = (Pod::new(), Pod::new());
    let network = network();
    network.add(&neighbour);
    with(&network, &[at("127.0.0.1")]).add(&web);
    let mirror = Mirror::on(&web, 80);
    let own: &NetNs = host.netns();
    assert_served(&mirror, own, &["127.0.0.1"], &["127.0.0.2", "::1", "10.88.0.1", Outside::HOST[0]]);
    assert_served(&mirror, &outside, &[], &[Outside::HOST[0], Outside::HOST[1]]);
    assert_served(&mirror, &neighbour, &[], &["10.88.0.1", "fd00:88::1", Outside::HOST[0]]);
    // They do reach the host, and that port of it.
    let hosts = Mirror::on(own, 8080);
    for ip in Outside::HOST {
        assert!(hosts.seen(&outside, (addr(ip), 8080)).is_some(), "the host's own at {ip}");
        assert!(hosts.seen(&neighbour, (addr(ip), 8080)).is_some(), "the host's own at {ip}");
    }
    assert_served(&mirror, own, &["127.0.0.1"], &[]);
}
