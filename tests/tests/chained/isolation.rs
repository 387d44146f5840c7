//! Who reaches a container whose interface another plugin made. Real connections.

use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::frames::{Frame, Wire};
use weft_tests::{Host, Mirror, Network, Outside, Pod, World, assert_way, command, ips};

use crate::behind;
use crate::chain::Chain;
use crate::kinds::{macvlan, routed};

const PORT: u16 = 80;

fn one() -> Chain {
    Chain::new("one", "br0", 97)
}

fn other(bridge: &str) -> Chain {
    Chain::new("other", bridge, 98)
}

#[test]
fn networks_are_closed_to_each_other_unless_both_are_open() {
    for (says, other_says, is_open) in
        [(None, None, false), (Some("none"), None, false), (Some("none"), Some("none"), true)]
    {
        let host = Host::new();
        let (client, neighbour, server, own) = (Pod::new(), Pod::new(), Pod::new(), Pod::new());
        let other = other("br1").with(&json!({ "isolation": other_says }));
        other.add(&client);
        other.add(&neighbour);
        server.command("ip link set lo up");
        // One that Weft made itself.
        let of_weft = Network::dual().with(&json!({ "isolation": other_says }));
        of_weft.add(&own);
        let addresses = ips(&one().with(&json!({ "isolation": says })).add(&server));
        let mirror = Mirror::on(&server, PORT);
        let of_neighbour = Mirror::on(&neighbour, PORT);
        for address in addresses {
            assert_way(is_open, &mirror, &client, address, "from another network");
            assert_way(is_open, &mirror, &own, address, "from one of Weft's own");
            assert_way(true, &mirror, host.netns(), address, "from the host");
            assert_way(true, &mirror, &server, address, "from itself");
        }
        for address in neighbour.addresses("eth0") {
            let address = address.split('/').next().unwrap().parse().unwrap();
            assert_way(true, &of_neighbour, &client, address, "within a network");
        }
    }
}

#[test]
fn two_networks_on_one_bridge_are_closed_to_each_other_also_without_the_host_between() {
    // The host is the gateway of one of them; in the other it has to be asked for.
    for (says, is_open) in [(Some("network"), false), (None, true)] {
        let _host = Host::new();
        let (client, server) = (Pod::new(), Pod::new());
        one().add(&client);
        let other =
            other("br0").on(&json!({ "isDefaultGateway": false })).with(&json!({ "isolation": says }));
        let addresses = ips(&other.add(&server));
        let mirror = Mirror::on(&server, PORT);
        client.command("ip route add 10.98.0.0/24 dev eth0");
        server.command("ip route add 10.97.0.0/24 dev eth0");
        client.command("ip route add fd00:98::/64 dev eth0");
        server.command("ip route add fd00:97::/64 dev eth0");
        for address in addresses {
            assert_way(is_open, &mirror, &client, address, &format!("{says:?}"));
        }
    }
}

#[test]
fn ways_out_and_services_of_the_host() {
    for (keys, [to_first, to_second, to_host]) in [
        (json!({}), [true, true, true]),
        (json!({ "internal": true }), [false, false, true]),
        (json!({ "egress": { "deny": [Outside::PEER[0]] } }), [false, true, true]),
        (json!({ "egress": { "allow": [Outside::PEER[0]] } }), [true, false, true]),
        (json!({ "hostAccess": false }), [true, true, false]),
    ] {
        let host = Host::new();
        let outside = host.outside();
        for route in
            ["ip route add 10.97.0.0/24 via 198.51.100.1", "ip route add fd00:97::/64 via 2001:db8:ffff::1"]
        {
            outside.inside(|| command(route));
        }
        let pod = Pod::new();
        let chain = one().with(&keys);
        let result = chain.add(&pod);
        let (theirs, own) = (Mirror::on(&outside, PORT), Mirror::on(host.netns(), PORT));
        for (at, is_open) in Outside::PEER.iter().zip([to_first, to_second]) {
            assert_way(is_open, &theirs, &pod, at.parse().unwrap(), &keys.to_string());
        }
        assert_way(to_host, &own, &pod, "10.97.0.1".parse().unwrap(), &keys.to_string());
        chain.behind(&result).check(&pod, &result).done();
        chain.behind(&result).clone().with(&json!({ "prevResult": null })).status().done();
    }
}

#[test]
fn without_icc_containers_of_one_bridge_reach_each_other_neither_on_it_nor_by_the_host() {
    for is_gateway in [true, false] {
        let host = Host::new();
        let (client, server) = (Pod::new(), Pod::new());
        let private = one().on(&json!({ "isDefaultGateway": is_gateway })).with(&json!({ "icc": false }));
        let result = private.add(&client);
        let addresses = ips(&private.add(&server));
        let mirror = Mirror::on(&server, PORT);
        for (address, length, gateway) in [(addresses[0], 32, "10.97.0.1"), (addresses[1], 128, "fd00:97::1")]
        {
            assert_way(false, &mirror, &client, address, "on the bridge");
            if is_gateway {
                client.command(&format!("ip route add {address}/{length} via {gateway}"));
                assert_way(false, &mirror, &client, address, "by the host");
                assert_way(true, &mirror, host.netns(), address, "from the host");
            }
        }
        let checked = private.behind(&result);
        checked.check(&client, &result).done();
        command("nft flush set bridge weft private-links");
        checked.check(&client, &result).error_code(105).assert_names(&["private-links", "lacks veth"]);
    }
}

#[test]
fn icc_is_for_containers_that_are_there_as_for_those_that_come() {
    let host = Host::new();
    host.set_br_netfilter(false);
    let says = |icc: bool| one().with(&json!({ "icc": icc }));
    let (first, second) = (Pod::new(), Pod::new());
    let [of_first, of_second] = [&first, &second].map(|pod| ips(&says(true).add(pod)));
    let (at_first, at_second) = (Mirror::on(&first, PORT), Mirror::on(&second, PORT));
    for icc in [true, false, true, false] {
        let (chain, next) = (says(icc), Pod::new());
        let result = chain.add(&next);
        let (at_next, of_next) = (Mirror::on(&next, PORT), ips(&result));
        for (from, to, mirror, addresses, who) in [
            (&first, &second, &at_second, &of_second, "between those that were there"),
            (&first, &next, &at_next, &of_next, "to one that came"),
            (&next, &first, &at_first, &of_first, "from one that came"),
        ] {
            for address in addresses {
                assert_way(icc, mirror, from, *address, &format!("icc: {icc}, {who}"));
            }
            // One way, and of no protocol that rules know.
            let (sent, mut received) = (Wire::of(from), Wire::of(to));
            let frame = Frame::new(received.mac, sent.mac, 0x88b5, b"local experiment");
            sent.send(&frame);
            let time = Duration::from_millis(if icc { 3000 } else { 200 });
            assert_eq!(received.receives(&frame, time), icc, "icc: {icc}, a frame {who}");
        }
        chain.behind(&result).check(&next, &result).done();
        chain.behind(&result).del(&next);
    }
}

#[test]
fn rules_that_could_not_let_pass_anything_are_refused() {
    let host = Host::new();
    let client = Pod::new();
    let private = one().with(&json!({ "icc": false }));
    let previous = private.previous(&client);
    let before = World::of(&host, &[&client]);
    let refused = |chain: &Chain, words: &[&str]| {
        chain.behind(&previous).add_call(&client).run().error_code(7).assert_names(words);
        before.assert_unchanged(&host, &[&client], &words.join(" "));
    };
    let rule = json!([{ "from": { "prefix": "10.97.0.0/24" }, "to": { "prefix": "10.97.0.0/24" } }]);
    refused(&private.clone().with(&json!({ "allow": rule })), &["allow", "on the bridge", "without chained"]);
    let own_rule = json!({ "weft": { "allow": [{ "from": { "container": "web" } }] } });
    refused(&private.with(&json!({ "args": own_rule })), &["args.weft.allow", "without chained"]);
    refused(&one().with(&json!({ "args": own_rule })), &["args.weft.allow", "icc"]);
}

/// Nothing passes between containers there but by the host, so all of it can be had.
#[test]
fn behind_a_pair_without_a_bridge_containers_talk_as_they_are_allowed() {
    let host = Host::new();
    let (web, db, cache) = (Pod::new(), Pod::new(), Pod::new());
    let keys = json!({ "icc": false, "allow": [
        { "from": { "container": &web.id }, "to": { "container": &db.id }, "port": PORT },
    ] });
    let attach = |pod: &Pod, number| {
        let previous = routed(pod, (96, number));
        (behind(&previous, &keys), behind(&previous, &keys).add(pod))
    };
    let (network, result) = attach(&web, 2);
    let (of_db, of_cache) = (attach(&db, 3).1, attach(&cache, 4).1);
    let (at_db, at_cache) = (Mirror::on(&db, PORT), Mirror::on(&cache, PORT));
    for again in [false, true] {
        assert_way(true, &at_db, &web, ips(&of_db)[0], "what is allowed");
        assert_way(false, &at_db, &cache, ips(&of_db)[0], "from another one");
        assert_way(false, &at_cache, &web, ips(&of_cache)[0], "to another one");
        network.check(&web, &result).done();
        if !again {
            command("nft flush ruleset");
            Network::v4().add(&Pod::new());
        }
    }
    network.del(&web);
    assert!(!host.ruleset().contains("10.96.0.2"), "{}", host.ruleset());
}

#[test]
fn subnets_are_gathered_from_containers_as_the_other_plugin_gives_them() {
    let _host = Host::new();
    let (first, second, stranger) = (Pod::new(), Pod::new(), Pod::new());
    other("br1").add(&stranger);
    let results = [routed(&first, (96, 2)), routed(&second, (95, 2))];
    let [of_first, of_second] = results.clone().map(|previous| behind(&previous, &json!({})));
    of_first.add(&first);
    of_second.add(&second);
    let [one, two] = results.clone().map(|result| ips(&result)[0]);
    let (at_first, at_second) = (Mirror::on(&first, PORT), Mirror::on(&second, PORT));
    for what in ["as they came", "after a flush and another container"] {
        of_first.check(&first, &results[0]).done();
        of_second.check(&second, &results[1]).done();
        assert_way(true, &at_first, &second, one, what);
        assert_way(true, &at_second, &first, two, what);
        assert_way(false, &at_first, &stranger, one, what);
        assert_way(false, &at_second, &stranger, two, what);
        command("nft flush ruleset");
        of_second.del(&second);
        of_second.add(&second);
    }
}

/// Asked for where it cannot be had, it is refused; by default such interfaces go on as they did.
#[test]
fn what_an_interface_cannot_have_is_refused() {
    let host = Host::new();
    let unrouted = one().on(&json!({ "isDefaultGateway": false }));
    let whole = Network::new("chain", &[]);
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let [on_bridge, on_pair, above] = &pods;
    let asked: [(&str, Value); 9] = [
        ("guard", json!(true)),
        ("guard", json!({ "arp": false })),
        ("macspoofchk", json!(true)),
        ("isolation", json!("network")),
        ("isolation", json!("closed")),
        ("icc", json!(false)),
        ("internal", json!(true)),
        ("egress", json!({ "deny": ["192.0.2.0/24"] })),
        ("hostAccess", json!(false)),
    ];
    let can = |pod: &Pod, key: &str, value: &Value| match key {
        "guard" | "macspoofchk" => pod.id == on_bridge.id,
        "isolation" if value == "closed" => pod.id == on_pair.id,
        "isolation" | "icc" => pod.id != above.id,
        _ => pod.id == on_pair.id,
    };
    for (pod, previous) in
        pods.iter().zip([unrouted.previous(on_bridge), routed(on_pair, (96, 2)), macvlan(above)])
    {
        for (key, value) in &asked {
            let network = behind(&previous, &json!({ *key: value }));
            let reply = network.add_call(pod).run();
            if can(pod, key, value) {
                assert_eq!(reply.result(), previous, "{key} behind {previous}");
                network.del(pod);
            } else {
                reply.error_code(7).assert_names(&[key, &value.to_string(), "leave it out"]);
            }
            whole.gc(&[]);
        }
        let network = behind(&previous, &json!({}));
        network.add(pod);
        assert_eq!(
            host.ruleset().contains("10.96.0.0/24"),
            pod.id == on_pair.id,
            "a subnet that the host routes"
        );
        for subnet in ["10.95.0.0/24", "10.97.0.0/24"] {
            assert!(!host.ruleset().contains(subnet), "a subnet that others route: {}", host.ruleset());
        }
        whole.gc(&[]);
    }
}
