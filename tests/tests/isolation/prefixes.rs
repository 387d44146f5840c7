//! Rules about single addresses beside others that mean the same containers.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, Network, Pod, assert_way, command};

use crate::allow::with_labels;
use crate::{PORT, private};

const CLIENT: [&str; 2] = ["10.88.0.5", "fd00:88::5"];
const SERVER: [&str; 2] = ["10.88.0.6", "fd00:88::6"];
const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd00:88::/64"];

/// A container with addresses of its own, which goes by its name.
struct Member {
    network: Network,
    pod: Pod,
    result: Value,
}

impl Member {
    fn new(network: &Network, id: &str, addresses: [&str; 2]) -> Self {
        let network = network.clone().with(&json!({ "runtimeConfig": { "ips": addresses } }));
        let pod = Pod::named(id);
        Self { result: network.add(&pod), network, pod }
    }

    fn check(&self) {
        self.network.check(&self.pod, &self.result).done();
    }

    fn leave(self) {
        self.network.del(&self.pod);
    }
}

fn addresses(of: [&str; 2]) -> [IpAddr; 2] {
    of.map(|address| address.parse().expect("an address"))
}

/// Whether one port of the server is open to the client.
fn assert_open(is_open: bool, client: &Member, server: &Member, what: &str) {
    let mirror = Mirror::on(&server.pod, PORT);
    for at in addresses(SERVER) {
        assert_way(is_open, &mirror, &client.pod, at, what);
    }
}

/// That nothing else is open between the two.
fn assert_closed(client: &Member, server: &Member, what: &str) {
    let (closed, back) = (Mirror::on(&server.pod, PORT + 1), Mirror::on(&client.pod, PORT));
    for (at, from) in addresses(SERVER).into_iter().zip(addresses(CLIENT)) {
        assert!(closed.is_closed_to(&client.pod, (at, PORT + 1)), "another port of {at}, {what}");
        assert!(back.is_closed_to(&server.pod, (from, PORT)), "the other way round to {from}, {what}");
    }
}

/// Who has the addresses may be told by a prefix, and by a name besides. It lasts as long as the rule and both containers, whoever came
/// first and whoever leaves.
#[test]
fn a_way_that_is_open_to_single_addresses_is_open_as_long_as_both_are_there() {
    let prefix = |address: &str| json!({ "prefix": address });
    let rule = |from: &Value, to: &Value| json!({ "from": from, "to": to, "port": PORT });
    let (client, db) = (json!({ "container": "client" }), json!({ "label": "role=db" }));
    let named = || rule(&client, &db);
    let of = |rule: &dyn Fn(usize) -> Value| [0, 1].map(rule).to_vec();
    let single = of(&|at| rule(&prefix(CLIENT[at]), &prefix(SERVER[at])));
    let from_single = of(&|at| rule(&prefix(CLIENT[at]), &db));
    let to_single = of(&|at| rule(&client, &prefix(SERVER[at])));
    let from_all = of(&|at| rule(&prefix(SUBNETS[at]), &prefix(SERVER[at])));
    for (what, rules, is_for_heirs) in [
        ("two addresses", single, true),
        ("from an address and a name", [from_single, vec![named()]].concat(), true),
        ("to an address and a name", [to_single, vec![named()]].concat(), false),
        ("from all to an address and by a name", [vec![named()], from_all].concat(), true),
    ] {
        let host = Host::new();
        let network = private().with(&json!({ "allow": rules }));
        let client = || Member::new(&network, "client", CLIENT);
        let server = || Member::new(&with_labels(network.clone(), &[("role", "db")]), "db", SERVER);
        let flush = || {
            command("nft flush ruleset");
            // The next one has everybody's put back.
            Member::new(&network, "next", ["10.88.0.9", "fd00:88::9"]).leave();
        };
        for server_first in [true, false] {
            let what = |when: &str| format!("{what}, server first: {server_first}, {when}");
            let (web, db) = if server_first {
                let db = server();
                (client(), db)
            } else {
                let web = client();
                (web, server())
            };
            assert_open(true, &web, &db, &what("at first"));
            web.leave();
            db.check();
            flush();
            db.check();
            let heir = Member::new(&network, "heir", CLIENT);
            db.check();
            assert_open(is_for_heirs, &heir, &db, &what("an heir"));
            heir.leave();
            let web = client();
            assert_open(true, &web, &db, &what("the client again"));
            [&web, &db].into_iter().for_each(Member::check);
            db.leave();
            web.check();
            let db = server();
            assert_open(true, &web, &db, &what("the server again"));
            flush();
            [&web, &db].into_iter().for_each(Member::check);
            assert_open(true, &web, &db, &what("after a flush"));
            assert_closed(&web, &db, &what("after a flush"));
            web.leave();
            db.leave();
            network.gc(&[]);
            assert_eq!(host.ruleset().matches("elements").count(), 0, "{}", what("all gone"));
        }
    }
}
