//! Networks with host ports that are configured anew, and what is left of ports when nobody is there any more.

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Outside, Pod};

use crate::{addr, mapping, network, with};

const NARROW: [&str; 2] = ["10.88.0.0/24", "fd00:88::/64"];
const WIDE: [&str; 2] = ["10.88.0.0/16", "fd00:88::/48"];

/// The network with these ranges, and a port.
fn published(subnets: [&str; 2], port: u16) -> Network {
    let ranges = subnets.map(|subnet| json!([{ "subnet": subnet }]));
    let keys = json!({ "forceAddress": true, "ipam": { "ranges": ranges } });
    with(&network().with(&keys), &[mapping(port, 80)])
}

/// The container answers at its port, also itself, by the host's address.
#[track_caller]
fn assert_serves(pod: &Pod, port: u16, outside: &Outside) {
    let mirror = Mirror::on(pod, 80);
    for at in Outside::HOST.map(addr) {
        assert!(mirror.seen(outside, (at, port)).is_some(), "outside at {at}, port {port}");
        assert!(mirror.seen(pod, (at, port)).is_some(), "itself at {at}, port {port}");
    }
}

/// Whether containers of the former ranges are gone, or there still.
#[test]
fn ranges_may_contain_the_former_ones_or_be_within() {
    for (before, after) in [(NARROW, WIDE), (WIDE, NARROW)] {
        for stays in [false, true] {
            let host = Host::new();
            let outside = host.outside();
            let (first, second) = (Pod::new(), Pod::new());
            let (one, two) = (published(before, 8080), published(after, 8081));
            one.add(&first);
            if !stays {
                one.del(&first);
            }
            let result = two.add(&second);
            two.check(&second, &result).done();
            assert_serves(&second, 8081, &outside);
            if stays {
                assert_serves(&first, 8080, &outside);
                one.del(&first);
            }
            two.del(&second);
            // A network takes its place under another name.
            let heir = one.clone().with(&json!({ "name": "heir" }));
            heir.add(&first);
            assert_serves(&first, 8080, &outside);
        }
    }
}

/// All elements of the sets and maps of host ports, as nft shows them.
pub(crate) fn elements() -> Vec<String> {
    let ruleset: Value = weft_tests::json("nft -j list table inet weft");
    let objects = ruleset["nftables"].as_array().expect("a list").iter();
    let sets = objects.filter_map(|object| object.get("set").or_else(|| object.get("map")));
    sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("hostport")))
        .flat_map(|set| {
            set["elem"].as_array().into_iter().flatten().map(|element| format!("{} {element}", set["name"]))
        })
        .collect()
}

/// Also what several containers need goes with the last of them.
#[test]
fn gc_leaves_no_element_that_nobody_needs() {
    let host = Host::new();
    let _outside = host.outside();
    let (first, second, stays) = (Pod::new(), Pod::new(), Pod::new());
    let at = |ip: &str, port: u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": ip });
    let range = |ip: &str, from: u16| -> Vec<Value> {
        let one = |port| json!({ "hostPort": port, "containerPort": port, "protocol": "tcp", "hostIP": ip });
        (from..from + 10).map(one).collect()
    };
    let limited = network().with(&json!({ "masqAll": true, "sources": ["192.0.2.0/24", "2001:db8::/32"] }));
    let all =
        [vec![mapping(8080, 80), at("10.88.0.1", 8081), at("fd00:88::1", 8081)], range("127.0.0.1", 9000)];
    let one = with(&limited, &all.concat());
    let two = with(&network(), &[vec![mapping(8082, 80)], range("fd00:88::1", 9100)].concat());
    one.add(&first);
    two.add(&second);
    one.del(&first);
    two.gc(&[]);
    assert_eq!(elements(), Vec::<String>::new());
    // Another network's containers keep what is theirs.
    let others =
        [vec![mapping(8083, 80), at(Outside::HOST[0], 8084)], range(Outside::HOST[1], 9200)].concat();
    let other = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true }));
    let other = with(&other, &others);
    let result = other.add(&stays);
    let before = elements();
    one.add(&first);
    one.gc(&[]);
    assert_eq!(elements(), before);
    other.check(&stays, &result).done();
    for wanted in [vec![mapping(8084, 80)], vec![mapping(9205, 80)]] {
        with(&network(), &wanted).add_call(&first).run().error_code(103).assert_names(&[&stays.id]);
    }
    // One that went without a word.
    other.gc(&[]);
    assert_eq!(elements(), Vec::<String>::new());
}
