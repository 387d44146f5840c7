//! The key `allow`: who reaches whom where `icc` is off, as far as rules let it.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::sctp::{Chunk, Endpoint, Packet};
use weft_tests::{Call, Host, Injection, Mirror, Network, Pod, command, ips, is_answered};

use crate::{PATIENCE, PORT, one, private, serve};

const SILENCE: Duration = Duration::from_millis(200);

pub(crate) fn with_labels(network: Network, labels: &[(&str, &str)]) -> Network {
    let labels: Vec<Value> =
        labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    network.with(&json!({ "args": { "cni": { "labels": labels } } }))
}

#[test]
fn rules_open_a_way_between_containers_whoever_comes_first() {
    let _host = Host::new();
    let rules = json!({ "allow": [
        { "from": { "container": "shop/web" }, "to": { "label": "role=db" }, "port": PORT },
    ] });
    let web = |network: &Network, pod: &Pod| {
        network.add_call(pod).args("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;IgnoreUnknown=1").run().result();
    };
    for server_first in [true, false] {
        let (client, server, stranger) = (Pod::new(), Pod::new(), Pod::new());
        let network = private().with(&rules);
        let db = with_labels(network.clone(), &[("role", "db")]);
        let serving = server_first.then(|| serve(&db, &server));
        web(&network, &client);
        network.add(&stranger);
        let (mirror, addresses) = serving.unwrap_or_else(|| serve(&db, &server));
        let closed = Mirror::on(&server, PORT + 1);
        for address in addresses {
            assert!(
                mirror.seen(&client, (address, PORT)).is_some(),
                "{address}, server first: {server_first}"
            );
            assert!(closed.is_closed_to(&client, (address, PORT + 1)), "another port of {address}");
            assert!(mirror.is_closed_to(&stranger, (address, PORT)), "a stranger to {address}");
        }
        let back = Mirror::on(&client, PORT);
        for address in client.addresses("eth0") {
            let address = address.split('/').next().expect("an address").parse().expect("an address");
            assert!(back.is_closed_to(&server, (address, PORT)), "not the other way round");
        }
        for pod in [&client, &server, &stranger] {
            network.del(pod);
        }
    }
}

/// An association from a container to a port, as far as both ends see each other; whether they do.
fn associates(client: (&Pod, IpAddr), server: (&Pod, IpAddr), port: u16, time: Duration) -> bool {
    let end = |(pod, address): (&Pod, IpAddr)| pod.inside(|| Endpoint::at(address));
    let (from, to) = (end(client), end(server));
    from.send(server.1, &Packet { from: 40_000, to: port, tag: 0, chunk: Chunk::Init(0x11) });
    let Some((seen, arrived)) = to.receive(time) else { return false };
    assert_eq!((seen, arrived.to, arrived.chunk), (client.1, port, Chunk::Init(0x11)));
    let answer = Packet { from: port, to: 40_000, tag: 0x11, chunk: Chunk::InitAck(0x22) };
    to.send(seen, &answer);
    assert_eq!(from.receive(PATIENCE), Some((server.1, answer)), "the answer passes, as conntrack knows it");
    true
}

/// Whether a question by UDP is heard and answered. An answer comes back only by what the kernel knows of the question.
fn answers(client: &Pod, server: (&Pod, IpAddr), port: u16, time: Duration) -> bool {
    let service = server.0.inside(|| UdpSocket::bind((server.1, port)).expect("a socket"));
    service.set_read_timeout(Some(time)).expect("a limit");
    is_answered(client, &service, (server.1, port))
}

/// One port of one protocol is open from one container to another, answers pass, and nothing else does: no other port, not the other
/// way round, for nobody else, and by no other protocol.
#[test]
fn datagrams_and_associations_pass_as_they_are_allowed() {
    for (protocol, ports) in [("udp", json!(PORT)), ("sctp", json!("80-89"))] {
        let _host = Host::new();
        let rules = json!({ "allow": [{ "from": { "container": "web" }, "to": { "label": "role=db" },
            "protocol": protocol, "port": ports }] });
        let network = private().with(&rules);
        let (web, db, stranger) = (Pod::named("web"), Pod::new(), Pod::new());
        let [web_at, db_at, stranger_at] = [
            ips(&network.add(&web)),
            ips(&with_labels(network.clone(), &[("role", "db")]).add(&db)),
            ips(&network.add(&stranger)),
        ];
        for family in [0, 1] {
            let web = (&web, web_at[family]);
            let db = (&db, db_at[family]);
            let stranger = (&stranger, stranger_at[family]);
            for (what, client, server, port, passes) in [
                ("as allowed", web, db, PORT, true),
                ("another port", web, db, 90, false),
                ("the other way round", db, web, PORT, false),
                ("a stranger", stranger, db, PORT, false),
            ] {
                let what = format!("{what}: {protocol} {ports} to {}", server.1);
                let time = |passes: bool| if passes { PATIENCE } else { SILENCE };
                let by_udp = passes && protocol == "udp";
                assert_eq!(answers(client.0, server, port, time(by_udp)), by_udp, "by UDP, {what}");
                let by_sctp = passes && protocol == "sctp";
                assert_eq!(associates(client, server, port, time(by_sctp)), by_sctp, "by SCTP, {what}");
            }
        }
    }
}

/// Whether others are 3 or 100: who is meant by no rule, by the network's, by its own, and by one that another brought.
#[test]
fn what_is_allowed_costs_the_same_however_many_containers_there_are() {
    let _host = Host::new();
    let rules = json!({ "allow": [
        { "from": { "container": "web" }, "to": { "label": "role=db" }, "port": PORT },
        { "from": { "prefix": "fd00:88::f000/116" }, "to": { "prefix": "fd00:88::/64" } },
    ] });
    let network = private().with(&rules);
    let named = |name: &str| format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};IgnoreUnknown=1");
    let own = json!({ "args": { "weft": { "allow": [{ "to": { "label": "role=db" } }] } } });
    let (plain, own) = (network.clone(), network.clone().with(&own));
    let ask = json!({ "args": { "weft": { "allow": [{ "from": { "container": "cache" } }] } } });
    let pod = Pod::new();
    let calls: [(&str, &dyn Fn() -> Call); 4] = [
        ("meant by no rule", &|| plain.add_call(&pod)),
        ("meant by the network's", &|| plain.add_call(&pod).args(&named("web"))),
        ("with a rule of its own", &|| own.add_call(&pod)),
        ("meant by another's", &|| plain.add_call(&pod).args(&named("cache"))),
    ];
    let mut present = vec![Pod::new(), Pod::new(), Pod::new()];
    with_labels(network.clone(), &[("role", "db")]).add(&present[0]);
    network.clone().with(&ask).add(&present[1]);
    network.add(&present[2]);
    let count = || {
        calls.map(|(who, call)| {
            // What is made once was made.
            call().run().result();
            network.del(&pod);
            (who, Injection::work(call, &|| network.del(&pod)))
        })
    };
    let before = count();
    assert!(before.iter().all(|(_, work)| work["sendto"] > 10), "{before:?}");
    present.extend((0..97).map(|_| Pod::new()));
    present[3..].iter().for_each(|pod| drop(network.add(pod)));
    for ((who, before), (_, after)) in before.into_iter().zip(count()) {
        assert_eq!(after, before, "{who}");
    }
}

/// Whether others are 3 or 100: the DEL of one that rules mean, which others hold something with.
#[test]
fn to_forget_what_was_allowed_costs_the_same_however_many_containers_there_are() {
    let _host = Host::new();
    let rules =
        json!({ "allow": [{ "from": { "label": "role=web" }, "to": { "label": "role=db" }, "port": PORT }] });
    let network = private().with(&rules);
    let [web, db] = ["web", "db"].map(|role| with_labels(network.clone(), &[("role", role)]));
    let (client, servers) = (Pod::new(), [Pod::new(), Pod::new(), Pod::new()]);
    // Two hold something with it, and it with the third.
    db.add(&servers[0]);
    let count = || {
        web.add(&client);
        servers[1..].iter().for_each(|server| drop(db.add(server)));
        let work = Injection::ruleset_work(web.del_call(&client));
        servers[1..].iter().for_each(|server| network.del(server));
        work
    };
    count();
    let before = count();
    assert!(before["asked of nftables"] > 4, "{before:?}");
    // Others that rules mean, and others that none means.
    let lone = with_labels(
        private().with(&json!({ "args": { "weft": { "allow": [{ "to": { "label": "role=lone" } }] } } })),
        &[("role", "lone")],
    );
    let others: Vec<Pod> = (0..97).map(|_| Pod::new()).collect();
    for (number, pod) in others.iter().enumerate() {
        if number < 10 {
            lone.add(pod)
        } else {
            network.add(pod)
        };
    }
    assert_eq!(count(), before);
}

/// Each two of them are brought together by one of the two, and nothing of it is left.
#[test]
fn containers_that_come_and_go_at_once_all_meet() {
    let host = Host::new();
    let rules =
        json!({ "allow": [{ "from": { "label": "role=web" }, "to": { "label": "role=db" }, "port": PORT }] });
    let networks = ["web", "db"].map(|role| with_labels(private().with(&rules), &[("role", role)]));
    let pods: Vec<(&Network, Pod)> = (0..16).map(|number| (&networks[number % 2], Pod::new())).collect();
    let marked = |set: &str| command(&format!("nft list set inet weft {set}")).matches("comment").count();
    for round in 0..3 {
        let adds: Vec<_> = pods.iter().map(|(network, pod)| network.add_call(pod).start()).collect();
        adds.into_iter().for_each(|call| drop(call.finish().result()));
        for set in ["allow-port-v4", "allow-port-v6"] {
            assert_eq!(marked(set), 8 * 8, "round {round}, {set}");
        }
        let dels: Vec<_> = pods.iter().map(|(network, pod)| network.del_call(pod).start()).collect();
        dels.into_iter().for_each(|call| call.finish().done());
        for set in ["allow-port-v4", "allow-port-v6", "allow-holders-v4", "allow-holders-v6"] {
            assert_eq!(marked(set), 0, "round {round}, {set}");
        }
        let files = command("find /run/weft -path */allow/* -type f");
        assert_eq!(files, "", "round {round}");
    }
    networks[0].gc(&[]);
    assert_eq!(host.ruleset().matches("elements").count(), 0, "{}", host.ruleset());
}

#[test]
fn one_container_can_bring_rules_of_its_own() {
    let _host = Host::new();
    let (client, server, stranger) = (Pod::new(), Pod::new(), Pod::new());
    let own = |rule: Value| private().with(&json!({ "args": { "weft": { "allow": [rule] } } }));
    private().add(&stranger);
    own(json!({ "to": { "label": "role=db" } })).add(&client);
    let v4: IpAddr = "10.88.0.2".parse().expect("an address");
    let allows_v4 = json!({ "from": { "prefix": "10.88.0.2/31" }, "port": "70-90" });
    let network = with_labels(own(allows_v4), &[("role", "db")]);
    let (mirror, addresses) = serve(&network, &server);
    for address in &addresses {
        assert!(mirror.seen(&client, (*address, PORT)).is_some(), "all ports are open to who may have all");
        assert!(client.ping(*address).status.success());
    }
    assert_eq!(ips(&json!({ "ips": [{ "address": stranger.addresses("eth0")[0] }] })), [v4]);
    assert_eq!(mirror.seen(&stranger, (addresses[0], PORT)), Some(v4), "by its prefix");
    assert!(mirror.is_closed_to(&stranger, (addresses[1], PORT)), "IPv6 was not allowed");
    assert!(!stranger.ping(addresses[0]).status.success(), "nor was anything but those ports");
}

#[test]
fn who_gets_an_address_later_does_not_get_what_was_allowed_with_it() {
    let host = Host::new();
    let (server, keeper) = (Pod::new(), Pod::new());
    let network = private().with(&json!({ "allow": [
        { "from": { "container": "client" }, "to": { "label": "role=db" } }] }));
    let (client, heir) = (Pod::named("client"), Pod::named("heir"));
    let addresses = ips(&network.add(&client));
    let (mirror, at) = serve(&with_labels(network.clone(), &[("role", "db")]), &server);
    network.add(&keeper);
    assert!(mirror.seen(&client, (at[0], PORT)).is_some());
    network.del(&client);
    let again = network.clone().with(&json!({ "runtimeConfig": { "ips": addresses } }));
    assert_eq!(ips(&again.add(&heir)), addresses);
    for address in at {
        assert!(mirror.is_closed_to(&heir, (address, PORT)), "{address}");
    }
    for pod in [&heir, &server, &keeper] {
        network.del(pod);
    }
    network.gc(&[]);
    assert_eq!(host.ruleset().matches("elements").count(), 0, "{}", host.ruleset());
}

/// The server holds what the client, which came first, is allowed: also when the client is gone, and another has its address.
#[test]
fn what_is_put_back_is_only_what_is_allowed_still() {
    let _host = Host::new();
    let (server, client, heir) = (Pod::new(), Pod::named("client"), Pod::named("heir"));
    let network = private().with(&json!({ "allow": [
        { "from": { "container": "client" }, "to": { "label": "role=db" } },
        { "from": { "prefix": "10.88.0.250/32" }, "to": { "label": "role=db" } }] }));
    let addresses = ips(&network.add(&client));
    let db = with_labels(network.clone(), &[("role", "db")]);
    let result = db.add(&server);
    let mirror = Mirror::on(&server, PORT);
    let at = ips(&result);
    assert!(mirror.seen(&client, (at[0], PORT)).is_some());
    network.del(&client);
    db.check(&server, &result).done();
    let again = network.clone().with(&json!({ "runtimeConfig": { "ips": addresses } }));
    assert_eq!(ips(&again.add(&heir)), addresses);
    db.check(&server, &result).done();
    let allowed =
        || ["v4", "v6"].map(|family| command(&format!("nft list set inet weft allow-all-{family}")));
    let before = allowed();
    command("nft flush ruleset");
    // The next one has everybody's put back.
    let next = Pod::new();
    network.add(&next);
    network.del(&next);
    assert_eq!(allowed(), before);
    db.check(&server, &result).done();
    for address in &at {
        assert!(mirror.is_closed_to(&heir, (*address, PORT)), "{address}");
    }
    // Another one that is meant by the same rule holds the same from now on.
    network.del(&heir);
    drop(client);
    let second = Pod::named("client");
    let its = again.add(&second);
    for (pod, network, result) in [(&server, &db, &result), (&second, &again, &its)] {
        network.check(pod, result).done();
    }
    assert!(mirror.seen(&second, (at[0], PORT)).is_some());
    command("nft flush ruleset");
    network.add(&next);
    for (pod, network, result) in [(&server, &db, &result), (&second, &again, &its)] {
        network.check(pod, result).done();
    }
}

/// What others hold with a container that leaves is found also where their records do not tell it.
#[test]
fn nothing_is_left_for_the_heir_of_one_whose_partner_has_no_record() {
    let _host = Host::new();
    let network = private().with(&json!({ "allow": [
        { "from": { "container": "client" }, "to": { "label": "role=db" } }] }));
    let db = with_labels(network.clone(), &[("role", "db")]);
    let (client, server) = (Pod::named("client"), Pod::new());
    network.add(&client);
    db.add(&server);
    let files = command(&format!("grep -rl {} /run/weft", server.id));
    let record = files.lines().find(|path| path.contains("/attachments/")).expect("a record");
    let held = || command("nft list set inet weft allow-all-v4").matches("comment").count();
    assert_eq!(held(), 1);
    let lost = std::fs::read(record).expect("a record");
    for damaged in [None, Some(&lost[..lost.len() / 2])] {
        match damaged {
            None => std::fs::remove_file(record).expect("lose the record"),
            Some(half) => std::fs::write(record, half).expect("cut the record"),
        }
        // Whoever comes meanwhile, and a GC, do not have it forgotten.
        let other = Pod::new();
        db.add(&other);
        let valid = [&client, &server, &other].map(|pod| (pod.id.as_str(), "eth0"));
        network.gc(&valid);
        network.del(&client);
        assert_eq!(held(), 0);
        for pod in [&server, &other] {
            db.del(pod);
        }
        network.add(&client);
        db.add(&server);
        assert_eq!(held(), 1);
    }
}

#[test]
fn check_tells_nothing_of_what_goes_with_others_that_leave() {
    let _host = Host::new();
    let rules =
        json!({ "allow": [{ "from": { "label": "role=web" }, "to": { "label": "role=db" }, "port": PORT }] });
    let [db, web] = ["db", "web"].map(|role| with_labels(private().with(&rules), &[("role", role)]));
    let (server, client) = (Pod::new(), Pod::new());
    for _ in 0..15 {
        db.add(&server);
        // The second one has what is allowed between the two.
        let result = web.add(&client);
        let leaving = db.del_call(&server).start();
        for _ in 0..3 {
            web.check(&client, &result).done();
        }
        leaving.finish().done();
        web.check(&client, &result).done();
        web.del(&client);
    }
}

#[test]
fn rules_that_cannot_work_are_refused_by_name() {
    let _host = Host::new();
    let pod = Pod::new();
    let rule = json!({ "to": { "container": "db" } });
    let own = |network: Network| network.with(&json!({ "args": { "weft": { "allow": [rule.clone()] } } }));
    own(one()).add_call(&pod).run().error_code(7).assert_names(&["args.weft.allow", "icc"]);
    let no_gateway = private().with(&json!({ "isGateway": false, "isDefaultGateway": false }));
    own(no_gateway).add_call(&pod).run().error_code(7).assert_names(&["allow", "isGateway"]);
    let [web, db] = ["web", "db"].map(|name| json!({ "container": name }));
    let of_others = json!({ "args": { "weft": { "allow": [{ "to": web }, { "from": web, "to": db }] } } });
    let of_others = private().with(&of_others);
    of_others.add_call(&pod).run().error_code(7).assert_names(&["args.weft.allow[1]", "other containers"]);
    of_others.add(&Pod::named("web"));
    let unknown = one().with(&json!({ "egress": { "allowed": [] } }));
    unknown.add_call(&pod).run().error_code(2).assert_names(&["egress.allowed", "allow"]);
}
