//! Random mutations of a configuration: whatever comes, an answer by the specification and a clean world.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, Random, World};

const CASES: u32 = 400;

/// A configuration that uses every key.
fn full() -> Network {
    Network::dual().with(&json!({
        "isGateway": true, "forceAddress": true, "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400,
        "hairpinMode": true, "promiscMode": false, "portIsolation": false, "enabledad": false,
        "disableContainerInterface": false, "timeout": 10, "logLevel": "info",
        "dns": { "nameservers": ["192.0.2.53"], "domain": "d", "search": ["s"], "options": ["o"] },
        "args": { "cni": { "ips": ["10.88.0.20"], "mac": "02:00:00:00:00:20" } },
        "runtimeConfig": { "mac": "02:00:00:00:00:21" },
        "capabilities": { "mac": true, "ips": true },
        "ipam": {
            "ranges": [
                [{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.99", "gateway": "10.88.0.1" }],
                [{ "subnet": "fd00:88::/64" }],
            ],
            "routes": [{ "dst": "192.0.2.0/24", "gw": "10.88.0.9" }],
            "exclude": ["10.88.0.11/32"],
        },
    }))
}

/// Values that have broken some program before.
fn strange(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(65_536),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!(" "),
        json!("\u{0}"),
        json!("ü"),
        json!("../../etc/passwd"),
        json!("%s%n"),
        json!("x".repeat(5000)),
        json!("0.0.0.0/0"),
        json!("255.255.255.255"),
        json!("10.88.0.0/33"),
        json!("::/0"),
        json!("fe80::1"),
        json!("::ffff:10.0.0.1"),
        json!("10.88.0.1"),
        json!("weft0"),
        json!("lo"),
        json!([]),
        json!([[]]),
        json!([null]),
        json!({}),
        json!({ "": {} }),
        json!([{}]),
        json!([[{}]]),
        json!("nonsense"),
        json!("127.0.0.1/8"),
        json!("fd00:88::/128"),
    ];
    random.pick(&values).clone()
}

/// JSON pointers of every value in a document.
fn pointers(value: &Value, here: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, inner)| (key.replace('/', "~1"), inner)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, inner)| (index.to_string(), inner)).collect()
        }
        _ => Vec::new(),
    };
    for (key, inner) in children {
        let path = format!("{here}/{key}");
        pointers(inner, &path, found);
        found.push(path);
    }
}

/// One change somewhere: a strange value, a key too many, a letter more.
fn mutate(conf: &mut Value, random: &mut Random) {
    let mut paths = Vec::new();
    pointers(conf, "", &mut paths);
    let place = conf.pointer_mut(random.pick::<String>(&paths)).unwrap();
    match (random.below(4), place) {
        (0, Value::Object(object)) => drop(object.insert("surplus".to_owned(), strange(random))),
        (0, Value::Array(items)) => items.push(strange(random)),
        (1, Value::String(text)) => text.push(*random.pick(&['0', '/', '.', ':', ' ', '\n', '"', 'é'])),
        (1, Value::Array(items)) => items.extend(items.clone()),
        (_, place) => *place = strange(random),
    }
}

#[test]
fn mutated_configurations() {
    let mut random = Random::new();
    let mut stage: Option<(Host, Pod, World)> = None;
    let mut attached = 0;
    for _ in 0..CASES {
        let (host, pod, before) = stage.take().unwrap_or_else(|| {
            let (host, pod) = (Host::new(), Pod::new());
            let before = World::of(&host, &[&pod]);
            (host, pod, before)
        });
        let mut network = full();
        for _ in 0..=random.below(2) {
            mutate(&mut network.conf, &mut random);
        }
        // These say where files go: outside of the test's own directories is nobody's business.
        network = network.with(
            &json!({ "logFile": null, "stateDir": null, "ipam": { "dataDir": null, "resolvConf": null } }),
        );
        let call = network.add_call(&pod);
        let what = call.describe();
        let reply = call.run();
        assert!(!reply.stderr.contains("panicked"), "{what}\n{}", reply.stderr);
        if reply.succeeded() {
            attached += 1;
            serde_json::from_slice::<Value>(&reply.stdout).unwrap_or_else(|error| panic!("{what}: {error}"));
            let del = network.del_call(&pod).run();
            assert!(del.succeeded(), "{what}\nDEL: {del:?}");
            let left = World::of(&host, &[&pod]);
            assert!(
                left.matching("file /run/weft").is_empty(),
                "{what}\nleft: {:?}",
                left.matching("file /run/weft")
            );
            assert!(pod.link("eth0").is_none(), "{what}");
        } else {
            reply.error();
            before.assert_unchanged(&host, &[&pod], &what);
            stage = Some((host, pod, before));
        }
    }
    assert!(attached > CASES / 50, "only {attached} of {CASES} were good: mutations hide each other");
}

/// The other commands with the same mutations: no panic, no signal, and DEL changes nothing on a fresh host.
#[test]
fn mutated_configurations_of_other_commands() {
    let mut random = Random::new();
    let (host, pod) = (Host::new(), Pod::new());
    let before = World::of(&host, &[&pod]);
    let result = json!({
        "cniVersion": "1.1.0", "interfaces": [{ "name": "weft0" }, { "name": "v" }, { "name": "eth0", "sandbox": "x" }],
        "ips": [{ "address": "10.88.0.20/24", "gateway": "10.88.0.1", "interface": 2 }], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let list = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for _ in 0..CASES {
        let mut network = full().with(&json!({ "prevResult": result, "cni.dev/valid-attachments": list }));
        mutate(&mut network.conf, &mut random);
        let command = *random.pick(&["DEL", "CHECK", "GC", "STATUS", "VERSION"]);
        let call = network.call(command).pod(&pod);
        let what = call.describe();
        let reply = call.run();
        assert!(!reply.stderr.contains("panicked"), "{what}\n{}", reply.stderr);
        if !reply.succeeded() {
            reply.error();
        }
        before.assert_unchanged(&host, &[&pod], &what);
    }
}
