//! GC removes what no longer lives, of its own network, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, Running, World, command, hold, ip, masqueraded as network, script};

#[path = "gc/circumstances.rs"]
mod circumstances;
#[path = "gc/entries.rs"]
mod entries;

/// The list entry of a container's `eth0`.
fn live(pod: &Pod) -> (&str, &str) {
    (&pod.id, "eth0")
}

#[test]
fn the_dead_go_and_the_living_stay() {
    let host = Host::new();
    let network = network();
    let (alive, mut dead, unmounted) = (Pod::new(), Pod::new(), Pod::new());
    let result = network.add(&alive);
    let before = World::of(&host, &[&alive]);
    network.add(&dead);
    network.add_call(&alive).ifname("eth1").run().result();
    network.add(&unmounted);
    dead.die();

    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC");
    assert!(unmounted.link("eth0").is_none(), "its runtime does not know it");
    network.check(&alive, &result).done();
    alive.assert_reaches([10, 88, 0, 1]);
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC again");
}

/// What is spoiled of an attachment, given ADD's result.
type Spoil = (&'static str, fn(&Value));

#[test]
fn remains_of_every_kind() {
    let host = Host::new();
    let network = network();
    let alive = Pod::new();
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    let spoils: [Spoil; 5] = [
        ("a veth without a record", |_| {
            command("find /run/weft -path *attachments* -type f -newer /run/marker -delete");
        }),
        ("a veth without record and reservation", |_| {
            command("find /run/weft -type f -newer /run/marker -delete");
        }),
        ("a record without a veth", |result| {
            command(&format!("ip link delete {}", result["interfaces"][1]["name"].as_str().unwrap()));
        }),
        ("a veth with another name", |result| {
            let name = result["interfaces"][1]["name"].as_str().unwrap();
            command(&format!("ip link set {name} down name renamed0"));
        }),
        ("a veth off its bridge", |result| {
            command(&format!("ip link set {} nomaster", result["interfaces"][1]["name"].as_str().unwrap()));
        }),
    ];
    for (what, spoil) in spoils {
        fs::write("/run/marker", "").unwrap();
        let pod = Pod::new();
        let result = network.add(&pod);
        spoil(&result);
        fs::remove_file("/run/marker").unwrap();
        network.gc(&[live(&alive)]);
        before.assert_unchanged(&host, &[&alive], what);
        assert!(pod.link("eth0").is_none(), "{what}");
    }
}

/// The link cannot say whose it is, only of which network.
#[test]
fn names_too_long_for_a_link() {
    let host = Host::new();
    let long = Network::new(&"n".repeat(190), &["10.88.0.0/24"]);
    let (alive, other) = (Pod::named(&"a".repeat(64)), Pod::new());
    Network::new("other", &["10.89.0.0/24"]).with(&json!({ "bridge": "other0" })).add(&other);
    long.add(&alive);
    let before = World::of(&host, &[&alive, &other]);
    for record in ["there", "lost"] {
        let known = records();
        let dead = Pod::named(&"d".repeat(64));
        let result = long.add(&dead);
        let name = result["interfaces"][1]["name"].as_str().unwrap();
        assert!(host.link(name).unwrap()["ifalias"].is_null());
        if record == "lost" {
            records().difference(&known).for_each(|record| fs::remove_file(record).unwrap());
        }
        long.gc(&[live(&alive)]);
        before.assert_unchanged(&host, &[&alive, &other], &format!("GC, the record is {record}"));
    }
}

#[test]
fn corrupt_records() {
    let host = Host::new();
    let network = network();
    let alive = Pod::new();
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    for content in ["", "{", "\u{0}\u{0}", "[]", "{\"container\":5}"] {
        let pod = Pod::new();
        let known = records();
        network.add(&pod);
        for record in records().difference(&known) {
            fs::write(record, content).unwrap();
        }
        network.gc(&[live(&alive)]);
        before.assert_unchanged(&host, &[&alive], &format!("GC with a record of {content:?}"));
    }
    let pod = Pod::new();
    let known = records();
    network.add(&pod);
    for record in records().difference(&known) {
        fs::remove_file(record).unwrap();
        fs::create_dir(record).unwrap();
    }
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC with a directory for a record");
}

/// The addresses go back to where they came from.
#[test]
fn another_ipam_since_the_container_came() {
    let host = Host::new();
    let network = network();
    let alive = Pod::new();
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    for change in [json!({ "ipam": null }), json!({ "ipam": { "dataDir": "/run/elsewhere" } })] {
        network.add(&Pod::new());
        network.clone().with(&change).gc(&[live(&alive)]);
        before.assert_unchanged(&host, &[&alive], &format!("GC with {change}"));
    }
}

/// The files of all attachments.
fn records() -> BTreeSet<String> {
    let list = command("find /run/weft -path *attachments* -type f -not -name lock");
    list.lines().map(str::to_owned).collect()
}

/// The directories of all reservations, by their owners.
fn reservations() -> BTreeSet<String> {
    let list = command("find /run/weft -mindepth 5 -maxdepth 5 -path */ipam/owner/* -type d");
    list.lines().map(str::to_owned).collect()
}

/// An absent list never means "delete all".
#[test]
fn a_list_that_is_none_deletes_nothing() {
    let host = Host::new();
    let network = network();
    let pod = Pod::new();
    let result = network.add(&pod);
    let before = World::of(&host, &[&pod]);
    network.call("GC").run().done();
    before.assert_unchanged(&host, &[&pod], "GC without a list");
    for list in [
        json!("all"),
        json!(5),
        json!({}),
        json!([null]),
        json!(["pod"]),
        json!([{}]),
        json!([{ "containerID": "a" }]),
        json!([{ "containerID": "", "ifname": "eth0" }]),
        json!([{ "containerID": "a", "ifname": "a/b" }]),
        json!([{ "containerID": 5, "ifname": "eth0" }]),
    ] {
        let call = network.clone().with(&json!({ "cni.dev/valid-attachments": list })).call("GC");
        let error = call.run().error();
        assert!([6, 7].contains(&error.code), "{list}: {error:?}");
        before.assert_unchanged(&host, &[&pod], &format!("GC with {list}"));
    }
    network
        .call("GC")
        .stdin(network.conf.to_string().replacen('{', "{\"cni.dev/valid-attachments\":null,", 1))
        .run()
        .done();
    before.assert_unchanged(&host, &[&pod], "GC with null");
    network.check(&pod, &result).done();
}

#[test]
fn the_older_name_of_the_list() {
    let _host = Host::new();
    let network = network();
    let (alive, dead) = (Pod::new(), Pod::new());
    let result = network.add(&alive);
    network.add(&dead);
    let list = json!({ "cni.dev/attachments": [{ "containerID": alive.id, "ifname": "eth0" }] });
    network.clone().with(&list).call("GC").run().done();
    network.check(&alive, &result).done();
    assert!(dead.link("eth0").is_none());
}

#[test]
fn an_empty_list_takes_the_networks_rules_and_nobody_elses() {
    let host = Host::new();
    host.nft("table inet foreign { chain c { type nat hook postrouting priority 90; ip saddr 10.1.2.3 masquerade; }; }");
    let network = network();
    let other = Network::new("other", &["10.2.0.0/24"]).with(&json!({ "bridge": "other0", "ipMasq": true }));
    let (pod, stranger) = (Pod::new(), Pod::new());
    network.add(&pod);
    let result = other.add(&stranger);
    let others = World::of(&host, &[&stranger]);

    network.gc(&[]);
    let differences = others.differences(&World::of(&host, &[&stranger]));
    let foreign: Vec<&String> =
        differences.iter().filter(|line| !line.starts_with("- ") || line.contains("other")).collect();
    assert!(foreign.is_empty(), "GC touched what is not its own: {foreign:#?}");
    assert!(!host.ruleset().contains("masq-dual"), "{}", host.ruleset());
    assert!(pod.link("eth0").is_none());
    other.check(&stranger, &result).done();
    stranger.assert_reaches([10, 2, 0, 1]);

    // The network can be used again.
    let result = network.add(&pod);
    network.check(&pod, &result).done();
}

/// One failure does not keep the rest from being cleaned, and is reported.
#[test]
fn it_goes_on_after_an_error_and_reports_it() {
    let host = Host::new();
    let network = network();
    let (alive, dead) = (Pod::new(), Pod::new());
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    network.add(&dead);
    let answer = "echo '{\"cniVersion\":\"1.1.0\",\"code\":119,\"msg\":\"the store is on fire\"}'; exit 1";
    script("/run/netns/.broken", "weft-ipam", answer);

    let reply = network.gc_call(&[live(&alive)]).env("CNI_PATH", "/run/netns/.broken").run();
    reply.error().assert_names(&["weft-ipam", "the store is on fire"]);
    assert!(dead.link("eth0").is_none(), "the interface is cleaned although the address is not");
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC after a GC that failed");
}

/// A DEL, or the IPAM plugin of an ADD that was killed: what it is about is not in the list, and is that one's.
#[test]
fn what_somebody_is_at_work_on_stays_and_is_told() {
    let host = Host::new();
    let network = network();
    let (alive, busy) = (Pod::new(), Pod::new());
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    let others = records();
    network.add(&busy);
    let record = hold(records().difference(&others).next().unwrap());
    let reply = network.gc_call(&[live(&alive)]).run();
    reply.done();
    let told = format!("is left to pid {} (", std::process::id());
    assert!(reply.stderr.contains(&told), "{}", reply.stderr);
    assert!(busy.link("eth0").is_some());
    drop(record);
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC when nobody is at work any more");
}

/// Puts something in a record's place that cannot be removed.
fn obstruct(record: &str) {
    fs::remove_file(record).unwrap();
    fs::create_dir(record).unwrap();
    command(&format!("mount -t tmpfs tmpfs {record}"));
}

/// One attachment that cannot be removed does not keep the others.
#[test]
fn what_cannot_be_removed_is_reported_and_the_rest_is_gone() {
    let host = Host::new();
    let network = network();
    let (alive, broken, dead) = (Pod::new(), Pod::new(), Pod::new());
    let result = network.add(&alive);
    let before = World::of(&host, &[&alive]);
    let others = records();
    network.add(&broken);
    let record = records().difference(&others).next().unwrap().clone();
    network.add(&dead);
    obstruct(&record);

    let reply = network.gc_call(&[live(&alive)]).run();
    reply.error_code(106).assert_names(&[&record]);
    assert!(broken.link("eth0").is_some(), "nobody could tell whose it is");
    assert!(dead.link("eth0").is_none(), "another one is gone");
    network.check(&alive, &result).done();
    command(&format!("umount {record}"));
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC after a GC that failed");
}

/// Several things that cannot be removed, of both plugins: one error has a line for each, and the rest is gone.
#[test]
fn all_that_could_not_be_done_is_in_one_error() {
    let host = Host::new();
    let network = network();
    let [alive, first, second, third, dead] = [(); 5].map(|()| Pod::new());
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    let new = |pod: &Pod, files: fn() -> BTreeSet<String>| {
        let others = files();
        network.add(pod);
        files().difference(&others).next().unwrap().clone()
    };
    // Nobody can read of whom these are, and what is in the reservation cannot be removed as a file is.
    let spoiled = [new(&first, records), new(&second, records)];
    spoiled.iter().for_each(|record| obstruct(record));
    let obstacle = format!("{}/10.88.0.99", new(&third, reservations));
    fs::create_dir_all(format!("{obstacle}/x")).unwrap();
    network.add(&dead);

    let error = network.gc_call(&[live(&alive)]).run().error_code(106);
    assert!(error.msg.starts_with("GC of network dual left something: "), "{error:?}");
    // The first one is in the message, and each has a line of its own; the IPAM plugin tells of its own at DEL and at GC.
    let problems: Vec<&str> = [error.msg.as_str()].into_iter().chain(error.details.lines()).collect();
    let whose = format!("give back the addresses of interface eth0 of container {}", third.id);
    for part in [
        spoiled[0].as_str(),
        &spoiled[1],
        &whose,
        "weft-ipam GC: collect garbage",
        &format!("weft-ipam DEL: remove {obstacle}: "),
        &format!("weft-ipam GC: remove {obstacle}: "),
    ] {
        let named = problems.iter().filter(|problem| problem.contains(part)).count();
        assert_eq!(named, 1, "{part}: {problems:#?}");
    }
    assert!(dead.link("eth0").is_none() && third.link("eth0").is_none(), "what can be removed is");
    // A DEL has what the IPAM plugin says, too.
    let error = network.del_call(&third).run().error_code(106);
    error.assert_names(&[&format!("weft-ipam DEL: remove {obstacle}: "), "next DEL or GC"]);

    spoiled.iter().for_each(|record| drop(command(&format!("umount {record}"))));
    fs::remove_dir(format!("{obstacle}/x")).unwrap();
    network.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC after a GC that failed");
}

/// A runtime that collects while it attaches: what is attached is whole or gone, never half, and the addresses of
/// what is listed are never freed.
#[test]
fn racing_add() {
    let host = Host::new();
    let network = Network::v4();
    for round in 0..12 {
        let (listed, unlisted): (Vec<Pod>, Vec<Pod>) = (0..8).map(|_| (Pod::new(), Pod::new())).unzip();
        let valid: Vec<(&str, &str)> = listed.iter().map(live).collect();
        let mut adds: Vec<(&Pod, Running)> = Vec::new();
        let mut collections = Vec::new();
        for (one, other) in listed.iter().zip(&unlisted) {
            adds.push((one, network.add_call(one).start()));
            collections.push(network.gc_call(&valid).start());
            adds.push((other, network.add_call(other).start()));
        }
        let results: Vec<(&Pod, Value)> =
            adds.into_iter().map(|(pod, add)| (pod, add.finish().result())).collect();
        collections.into_iter().for_each(|gc| gc.finish().done());

        let mut addresses = Vec::new();
        for (pod, result) in &results {
            if listed.iter().any(|listed| listed.id == pod.id) || pod.link("eth0").is_some() {
                let check = network.check(pod, result);
                assert!(check.succeeded(), "round {round}: {} is half gone: {:?}", pod.id, check.error());
                addresses.push(ip(result));
            }
        }
        let count = addresses.len();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), count, "round {round}: an address was given twice");
        network.gc(&[]);
        assert_eq!(host.ports("weft0"), Vec::<String>::new());
    }
}
