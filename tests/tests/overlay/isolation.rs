//! The keys of isolation on networks that span hosts. Wherever nothing passes, the same passes when the key says otherwise.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft_tests::{Family, Mirror, Network, Pod, assert_way, ips, is_answered};

use crate::{DUAL, Fleet};

const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);
const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A container that serves, and where.
struct Server {
    pod: Pod,
    result: Value,
    mirror: Mirror,
}

impl Server {
    fn on(fleet: &Fleet, node: usize, network: &Network) -> Self {
        Self::of(fleet, node, network, Pod::new())
    }

    fn of(fleet: &Fleet, node: usize, network: &Network, pod: Pod) -> Self {
        let result = network.add_call(&pod).on(fleet.node(node)).run().result();
        Self { mirror: Mirror::on(&pod, PORT), pod, result }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        ips(&self.result)
    }

    /// Its host's subnets.
    fn subnets(&self) -> Vec<IpNetwork> {
        let address = |ip: &Value| ip["address"].as_str().expect("an address").parse::<IpNetwork>();
        let subnet = |ip: &Value| {
            let address = address(ip).expect("an address with its prefix length");
            IpNetwork::new(address.network(), address.prefix()).expect("the same length")
        };
        self.result["ips"].as_array().expect("a list").iter().map(subnet).collect()
    }
}

/// A container on each of the two hosts. By others that came and went, the hosts have learnt of each other.
fn pair(fleet: &Fleet, network: &Network) -> [Server; 2] {
    let pair = [0, 1].map(|node| Server::on(fleet, node, network));
    drop([0, 1].map(|node| fleet.node(node).attach(network)));
    pair
}

/// The router's addresses: somebody outside of the network.
fn router() -> [IpAddr; 2] {
    [Family::V4, Family::V6].map(|family| family.neighbour(1))
}

/// Names and labels are those of the own host's containers, prefixes those of others.
#[test]
fn without_icc_containers_of_two_hosts_reach_each_other_as_they_are_allowed() {
    let fleet = Fleet::new(&[2], DUAL);
    let [here, there] = pair(&fleet, &fleet.network).map(|server| server.subnets());
    let both = |rule: &dyn Fn(usize) -> Value| -> Vec<Value> { (0..2).map(rule).collect() };
    let by_prefixes = both(
        &|of| json!({ "from": { "prefix": here[of] }, "to": { "prefix": there[of] }, "port": PORT, "protocol": "tcp" }),
    );
    let leave = both(
        &|of| json!({ "from": { "container": "web" }, "to": { "prefix": there[of] }, "port": PORT, "protocol": "tcp" }),
    );
    let arrive = both(
        &|of| json!({ "from": { "prefix": here[of] }, "to": { "container": "db" }, "port": PORT, "protocol": "tcp" }),
    );
    let by_names = [leave, arrive].concat();
    let whole = ["10.244.0.0/16", "fd00:42::/48"].map(|prefix| json!({ "prefix": prefix }));
    let by_one = both(&|of| json!({ "from": whole[of], "to": whole[of], "port": PORT, "protocol": "tcp" }));
    let private = |rules: &[Value]| json!({ "icc": false, "allow": rules });
    for (what, keys, web_to_db, other_to_db, everywhere, anything) in [
        ("by prefixes", private(&by_prefixes), true, true, false, false),
        ("by one prefix for all", private(&by_one), true, true, true, false),
        ("by names", private(&by_names), true, false, false, false),
        ("by no rule", private(&[]), false, false, false, false),
        ("with icc", json!({}), true, true, true, true),
    ] {
        let network = fleet.network.clone().with(&keys);
        let web = Server::of(&fleet, 0, &network, Pod::named("web"));
        let other = Server::on(&fleet, 0, &network);
        let db = Server::of(&fleet, 1, &network, Pod::named("db"));
        let closed = Mirror::on(&db.pod, PORT + 1);
        for family in [0, 1] {
            let [at_web, at_other, at_db] = [&web, &other, &db].map(|server| server.addresses()[family]);
            assert_way(web_to_db, &db.mirror, &web.pod, at_db, &format!("{what}: web to db"));
            assert_way(other_to_db, &db.mirror, &other.pod, at_db, &format!("{what}: another to db"));
            assert_way(anything, &closed, &web.pod, at_db, &format!("{what}: another port"));
            assert_way(everywhere, &web.mirror, &db.pod, at_web, &format!("{what}: the other way round"));
            assert_way(everywhere, &other.mirror, &web.pod, at_other, &format!("{what}: on one host"));
        }
        for (node, server) in [(0, &web), (0, &other), (1, &db)] {
            network.del_call(&server.pod).on(fleet.node(node)).run().done();
        }
    }
}

#[test]
fn an_internal_or_closed_network_is_one_network_on_all_its_hosts() {
    let fleet = Fleet::new(&[2], DUAL);
    let way_out = Mirror::on(fleet.cluster.router().netns(), PORT);
    let on_other_host = Mirror::on(fleet.node(1).netns(), PORT);
    for (keys, goes_out, comes_in) in [
        (json!({ "internal": true }), false, false),
        (json!({ "isolation": "closed" }), true, false),
        (json!({}), true, true),
    ] {
        let network = fleet.network.clone().with(&json!({ "ipMasq": true })).with(&keys);
        let [client, server] = pair(&fleet, &network);
        for (of, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let other_host = family.address(fleet.node(1));
            assert_way(true, &server.mirror, &client.pod, server.addresses()[of], "inside");
            assert_way(goes_out, &way_out, &client.pod, router()[of], "out");
            assert_way(goes_out, &on_other_host, &client.pod, other_host, "to the other host's underlay");
            // Somebody outside who routes to the network by its host.
            let subnet = server.subnets()[of];
            weft_tests::command(&format!("ip {} route replace {subnet} via {other_host}", family.flag()));
            let outside = fleet.cluster.router().netns();
            assert_way(comes_in, &server.mirror, outside, server.addresses()[of], "in");
        }
        for (node, server) in [&client, &server].into_iter().enumerate() {
            network.del_call(&server.pod).on(fleet.node(node)).run().done();
        }
    }
}

#[test]
fn egress_is_what_leaves_the_network_and_not_what_leaves_the_host() {
    let fleet = Fleet::new(&[2], DUAL);
    let way_out = Mirror::on(fleet.cluster.router().netns(), PORT);
    let [v4, v6] = router();
    for (egress, passes) in [
        (json!({ "deny": EVERYWHERE }), [false, false]),
        (json!({ "deny": [v4] }), [false, true]),
        (json!({ "allow": [v4] }), [true, false]),
        (json!({ "allow": EVERYWHERE, "deny": [format!("{v6}/128")] }), [true, false]),
        (json!({}), [true, true]),
    ] {
        let network = fleet.network.clone().with(&json!({ "egress": egress, "ipMasq": true }));
        let pair = pair(&fleet, &network);
        let [client, server] = &pair;
        for of in [0, 1] {
            assert_way(true, &server.mirror, &client.pod, server.addresses()[of], "to the other host");
            assert_way(passes[of], &way_out, &client.pod, router()[of], &egress.to_string());
        }
        for (node, server) in pair.iter().enumerate() {
            network.del_call(&server.pod).on(fleet.node(node)).run().done();
        }
    }
}

/// Neither of the own host nor of another one, by TCP and by UDP.
#[test]
fn services_of_all_hosts_can_be_kept_from_containers() {
    let fleet = Fleet::new(&[2], DUAL);
    let services = [0, 1].map(|node| Mirror::on(fleet.node(node).netns(), PORT));
    for has_access in [false, true] {
        let network = fleet.network.clone().with(&json!({ "hostAccess": has_access }));
        let pair = pair(&fleet, &network);
        let [client, server] = &pair;
        for (of, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let gateways = pair.each_ref().map(|server| {
                let gateway = server.result["ips"][of]["gateway"].as_str().expect("a gateway");
                gateway.parse::<IpAddr>().expect("an address")
            });
            let targets = [
                ("its gateway", 0, gateways[0]),
                ("its host's underlay", 0, family.address(fleet.node(0))),
                ("the other host's gateway", 1, gateways[1]),
                ("the other host's underlay", 1, family.address(fleet.node(1))),
            ];
            for (what, node, at) in targets {
                assert_way(has_access, &services[node], &client.pod, at, what);
                let by_udp = fleet.node(node).inside(|| UdpSocket::bind((at, PORT)).expect("a socket"));
                by_udp.set_read_timeout(Some(if has_access { PATIENCE } else { SILENCE })).expect("a limit");
                assert_eq!(is_answered(&client.pod, &by_udp, (at, PORT)), has_access, "{what}, {at}, by UDP");
                client.pod.assert_reaches(at);
            }
            assert_way(true, &server.mirror, &client.pod, server.addresses()[of], "a container");
        }
        for (node, server) in pair.iter().enumerate() {
            network.del_call(&server.pod).on(fleet.node(node)).run().done();
        }
    }
}

/// A rule of `allow` about others would open nothing.
#[test]
fn a_rule_about_addresses_outside_of_the_network_is_refused() {
    let fleet = Fleet::new(&[1], DUAL);
    drop(fleet.node(0).attach(&fleet.network));
    let private = fleet.network.clone().with(&json!({ "icc": false }));
    let rule = json!([{ "from": { "prefix": "192.0.2.0/24" }, "to": { "label": "role=db" } }]);
    for (key, change) in [
        ("allow", json!({ "allow": rule })),
        ("args.weft.allow", json!({ "args": { "weft": { "allow": rule } } })),
    ] {
        let network = private.clone().with(&change);
        let words = [&format!("{key} has the prefix 192.0.2.0/24"), "10.244.0.0/16", "portMappings"];
        let pod = Pod::new();
        network.add_call(&pod).on(fleet.node(0)).run().error_code(7).assert_names(&words);
        if key == "allow" {
            network.call("STATUS").on(fleet.node(0)).run().error_code(50).assert_names(&words);
        }
    }
}

#[test]
fn containers_of_other_hosts_ask_a_container_itself_whatever_its_sources_are() {
    let fleet = Fleet::new(&[2], DUAL);
    let mapping = json!({ "hostPort": 8080, "containerPort": PORT, "protocol": "tcp" });
    let keys = json!({ "sources": ["192.0.2.1"], "runtimeConfig": { "portMappings": [mapping] } });
    let [client, _] = pair(&fleet, &fleet.network);
    let server = Server::on(&fleet, 1, &fleet.network.clone().with(&keys));
    let outside = fleet.cluster.router().netns();
    for (of, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let (address, subnet) = (server.addresses()[of], server.subnets()[of]);
        assert_way(true, &server.mirror, &client.pod, address, "from the other host");
        let by = family.address(fleet.node(1));
        weft_tests::command(&format!("ip {} route replace {subnet} via {by}", family.flag()));
        assert_way(false, &server.mirror, outside, address, "from outside of the network");
    }
}
