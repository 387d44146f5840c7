//! `isolation: "closed"`: nobody comes in from outside but by published ports, as with Docker.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Outside, Pod, assert_way, command, ips};

use crate::{PORT, one, other};

fn says(isolation: Option<&str>) -> Network {
    one().with(&json!({ "isolation": isolation, "ipMasq": true }))
}

fn publish(network: &Network, port: u16) -> Network {
    let mapping = json!({ "hostPort": port, "containerPort": PORT, "protocol": "tcp" });
    network.clone().with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }))
}

/// Has the outside know the way to the network by this host.
fn route(outside: &Outside) {
    for (prefix, at) in ["10.88.0.0/24", "fd00:88::/64"].into_iter().zip(Outside::HOST) {
        outside.inside(|| command(&format!("ip route replace {prefix} via {at}")));
    }
}

#[test]
fn from_outside_only_published_ports_are_reached() {
    for &br_netfilter in Host::br_netfilter_ways() {
        let host = Host::new();
        host.set_br_netfilter(br_netfilter);
        let outside = host.outside();
        route(&outside);
        let (web, client, stranger) = (Pod::new(), Pod::new(), Pod::new());
        let peers = Outside::PEER.map(|peer| peer.parse::<IpAddr>().expect("an address"));
        other("weft1").add(&stranger);
        for (isolation, is_open) in [(None, true), (Some("closed"), false)] {
            let network = says(isolation);
            let result: Value = publish(&network, 8080).add(&web);
            network.add(&client);
            let (served, unpublished) = (Mirror::on(&web, PORT), Mirror::on(&web, PORT + 1));
            let (way_out, of_host) = (Mirror::on(&outside, PORT), Mirror::on(host.netns(), PORT));
            for (at, address) in ips(&result).into_iter().enumerate() {
                let what = format!("{isolation:?}, br_netfilter: {br_netfilter}");
                let gateway = ["10.88.0.1", "fd00:88::1"][at].parse().expect("an address");
                let published = (Outside::HOST[at].parse().expect("an address"), 8080);
                assert_way(is_open, &served, &outside, address, &what);
                assert_way(is_open, &unpublished, &outside, address, &what);
                assert_eq!(served.seen(&outside, published), Some(peers[at]), "the published port, {what}");
                assert!(served.seen(&stranger, published).is_some(), "for another network, too, {what}");
                assert_way(false, &served, &stranger, address, "the other network asks the container");
                assert_way(true, &way_out, &client, peers[at], "out");
                assert_way(true, &unpublished, &client, address, "within the network");
                assert_way(true, &of_host, &client, gateway, "to the host");
                assert_way(true, &unpublished, host.netns(), address, "from the host");
            }
            publish(&network, 8080).check(&web, &result).done();
            drop((served, unpublished));
            network.del(&web);
            network.del(&client);
        }
    }
}

/// The configuration of the last ADD says what is open.
#[test]
fn it_takes_hold_and_ends_with_the_configuration() {
    let host = Host::new();
    let outside = host.outside();
    route(&outside);
    let web = Pod::new();
    let address = ips(&says(None).add(&web))[0];
    let mirror = Mirror::on(&web, PORT);
    for (isolation, is_open) in [(None, true), (Some("closed"), false), (Some("network"), true)] {
        let next = Pod::new();
        says(isolation).add(&next);
        assert_way(is_open, &mirror, &outside, address, &format!("{isolation:?}"));
        says(isolation).del(&next);
    }
}
