//! What DEL, GC, CHECK and STATUS know of the guard.

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, World, command};

/// All elements of the guard's sets, as nft shows them.
fn elements() -> Vec<String> {
    let ruleset: Value = weft_tests::json("nft -j list table bridge weft");
    let sets = ruleset["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("set"));
    let sets = sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("guard")));
    let mut found: Vec<String> = sets
        .flat_map(|set| {
            set["elem"].as_array().into_iter().flatten().map(|element| format!("{} {element}", set["name"]))
        })
        .collect();
    found.sort();
    found
}

fn everything() -> Network {
    let allowed = json!({ "args": { "cni": { "allowedAddresses": ["10.77.0.0/24", "fd00:77::/64"] } } });
    Network::dual().with(&allowed).with(&json!({ "guard": { "rogue": false } }))
}

#[test]
fn nothing_is_left_by_del_and_gc() {
    let host = Host::new();
    let (first, second, third) = (Pod::new(), Pod::new(), Pod::new());
    // The static part is there from the first attachment on.
    everything().add(&first);
    everything().del(&first);
    everything().gc(&[]);
    assert_eq!(elements(), Vec::<String>::new());
    let before = World::of(&host, &[]);
    everything().add(&first);
    Network::dual().add(&second);
    assert!(elements().iter().any(|element| element.contains(&first.id)));
    assert!(elements().iter().any(|element| element.contains(&second.id)));
    // With the record or without it.
    for entry in std::fs::read_dir("/run/weft/dual").unwrap() {
        let records = entry.unwrap().path().join("attachments");
        if records.is_dir() {
            for record in std::fs::read_dir(records).unwrap() {
                std::fs::write(record.unwrap().path(), "cut off").unwrap();
            }
        }
    }
    everything().del(&first);
    assert!(!elements().iter().any(|element| element.contains(&first.id)), "{:?}", elements());
    Network::dual().gc(&[]);
    assert_eq!(elements(), Vec::<String>::new());
    everything().add(&third);
    everything().gc(&[(&third.id, "eth0")]);
    assert!(elements().iter().all(|element| element.contains(&third.id)), "{:?}", elements());
    assert!(!elements().is_empty());
    everything().gc(&[]);
    before.assert_unchanged(&host, &[], "ADD, DEL and GC");
}

#[test]
fn what_was_flushed_is_told_and_comes_back() {
    let host = Host::new();
    let (first, second, third) = (Pod::new(), Pod::new(), Pod::new());
    let port = json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } });
    let one = everything().with(&port);
    let result = one.add(&first);
    one.check(&first, &result).done();
    let whole = (elements(), command("nft list table inet weft"));
    for (tampering, missing) in [
        ("flush ruleset", "table inet weft"),
        ("delete table bridge weft", "table bridge weft"),
        ("flush chain bridge weft guard", "chain guard"),
    ] {
        command(&format!("nft {tampering}"));
        one.check(&first, &result).error_code(105).assert_names(&[missing]);
        // One that has no ports itself.
        Network::dual().add(&second);
        one.check(&first, &result).done();
        Network::dual().del(&second);
        assert_eq!((elements(), command("nft list table inet weft")), whole, "{tampering}");
    }
    // One that fails takes nobody's away again.
    command("nft flush ruleset");
    let taken = port.clone();
    let error = Network::dual().with(&taken).add_call(&third).run().error_code(103);
    error.assert_names(&["8080", &first.id]);
    one.check(&first, &result).done();
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    command(&format!("nft delete element bridge weft guard-v4 {{ \"{veth}\" . {mac} . 10.88.0.2 }}"));
    one.check(&first, &result).error_code(105).assert_names(&["guard-v4", veth, "10.88.0.2"]);
    drop(host);
}

/// A table of an administrator's with the guard's names in it is in the way, and STATUS says so before ADD does.
#[test]
fn status_knows_when_add_would_fail() {
    let host = Host::new();
    let pod = Pod::new();
    host.nft(
        "table bridge weft { set guard { type ipv4_addr; }\n chain mine { ip saddr @guard drop; }\n }\n",
    );
    let before = World::of(&host, &[&pod]);
    Network::v4().status().error_code(50).assert_names(&["guard"]);
    Network::v4().add_call(&pod).run().error().assert_names(&["guard"]);
    before.assert_unchanged(&host, &[&pod], "STATUS and an ADD that failed");
    let off = Network::v4().with(&json!({ "guard": false }));
    off.status().done();
    off.add(&pod);
    off.del(&pod);
    command("nft flush ruleset");
    Network::v4().status().done();
    assert!(!host.ruleset().contains("guard"), "STATUS changes nothing");
    Network::v4().add(&pod);
}

#[test]
fn what_cannot_be_meant() {
    let _host = Host::new();
    let pod = Pod::new();
    for (keys, code, parts) in [
        (json!({ "guard": 1 }), 7, ["guard is 1", "true, false"]),
        (json!({ "guard": { "mc": false } }), 2, ["guard.mc", "mac"]),
        (json!({ "guard": { "mac": false }, "macspoofchk": true }), 7, ["macspoofchk", "guard.mac"]),
        (json!({ "args": { "cni": { "allowedAddresses": ["10.88.0.1"] } } }), 7, ["10.88.0.1", "gateway"]),
        (
            json!({ "args": { "cni": { "allowedAddresses": ["10.88.0.9/24"] } } }),
            7,
            ["10.88.0.9", "10.88.0.0/24"],
        ),
    ] {
        Network::v4().with(&keys).add_call(&pod).run().error_code(code).assert_names(&parts);
    }
    Network::v4().with(&json!({ "macspoofchk": true })).add(&pod);
}
