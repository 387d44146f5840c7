//! A bridge whose network has got another subnet.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use weft_tests::{Host, Pod, command, hold, ip};

use crate::{add, call, check, del, with};

fn network(kind: &str, subnet: u8) -> Value {
    let ipam = json!({ "type": "host-local", "dataDir": "/run/hl", "subnet": format!("10.{subnet}.0.0/24") });
    with(&crate::network(kind, &ipam), &json!({ "ipMasq": true, "ipMasqBackend": "nftables" }))
}

fn forced(conf: &Value) -> Value {
    with(conf, &json!({ "forceAddress": true }))
}

/// What is there besides is what containers need: as long as there is none, it is the same.
#[test]
fn with_force_address_it_has_the_new_gateway_alone() {
    for kind in ["bridge", "weft"] {
        let host = Host::new();
        let (one, two) = (Pod::new(), Pod::new());
        let (before, after) = (network(kind, 97), forced(&network(kind, 98)));
        let result = add(&before, &one);
        del(&before, &one, &result);
        let result = add(&after, &two);
        check(&after, &two, &result).done();
        assert_eq!(host.addresses("br0"), ["10.98.0.1/24"], "{kind}");
        assert!(two.ping([10, 98, 0, 1]).status.success(), "{kind}");
        let rules = host.ruleset();
        assert!(rules.contains("10.98.0.") && !rules.contains("10.97.0."), "{kind}: {rules}");
    }
}

/// Networks may share a bridge, and one may have several subnets: what containers have as their gateway stays theirs.
#[test]
fn gateways_of_containers_stay() {
    let host = Host::new();
    let (one, other, two, three) = (Pod::new(), Pod::new(), Pod::new(), Pod::new());
    let neighbours = with(&network("weft", 99), &json!({ "name": "neighbours" }));
    let result = add(&network("weft", 97), &one);
    let theirs = add(&neighbours, &other);
    let after = forced(&network("weft", 98));
    add(&after, &two);
    assert_eq!(host.addresses("br0"), ["10.97.0.1/24", "10.99.0.1/24", "10.98.0.1/24"]);
    assert!(host.ruleset().contains("10.97.0.0/24"), "{}", host.ruleset());
    for (pod, gateway) in [(&one, [10, 97, 0, 1]), (&other, [10, 99, 0, 1]), (&two, [10, 98, 0, 1])] {
        assert!(pod.ping(gateway).status.success(), "{gateway:?}");
    }
    check(&network("weft", 97), &one, &result).done();
    // When they are gone, the next other subnet finds nobody who needs theirs.
    del(&network("weft", 97), &one, &result);
    del(&neighbours, &other, &theirs);
    let last = add(&forced(&network("weft", 96)), &three);
    assert_eq!(host.addresses("br0"), ["10.98.0.1/24", "10.96.0.1/24"]);
    assert!(!host.ruleset().contains("10.97.0.0/24"), "{}", host.ruleset());
    assert!(three.ping(ip(&last)).status.success() && two.ping([10, 98, 0, 1]).status.success());
}

/// Those of former subnets whose last container leaves later go with GC.
#[test]
fn gc_ends_what_former_subnets_had_masqueraded() {
    let _host = Host::new();
    let (one, two) = (Pod::new(), Pod::new());
    let result = add(&network("weft", 97), &one);
    let after = network("weft", 98);
    let second = add(&after, &two);
    let gc = |valid: &[&Pod]| {
        let attachment = |pod: &&Pod| json!({ "containerID": pod.id, "ifname": "eth0" });
        let valid: Vec<Value> = valid.iter().map(attachment).collect();
        call(&with(&after, &json!({ "cni.dev/valid-attachments": valid })), "GC").run().done();
        command("nft list set inet weft masq-interop-v4")
    };
    let has = |rules: &str| ["10.97.0.0/24", "10.98.0.0/24"].map(|prefix| rules.contains(prefix));
    assert_eq!(has(&gc(&[&one, &two])), [true, true]);
    del(&after, &one, &result);
    assert_eq!(has(&gc(&[&two])), [false, true]);
    check(&after, &two, &second).done();
}

/// What a container on its way needs is not on file yet.
#[test]
fn while_another_comes_all_stay() {
    let host = Host::new();
    let (one, two) = (Pod::new(), Pod::new());
    let result = add(&network("weft", 97), &one);
    del(&network("weft", 97), &one, &result);
    let records = command("find /run/weft/interop -name attachments -type d");
    let record = Path::new(records.trim()).join("00000000000");
    fs::write(&record, "").expect("write a record");
    let _held = hold(&record);
    add(&forced(&network("weft", 98)), &two);
    assert_eq!(host.addresses("br0"), ["10.97.0.1/24", "10.98.0.1/24"]);
    assert!(host.ruleset().contains("10.97.0.0/24"), "{}", host.ruleset());
}

/// Without the key they stay, where the reference has an error.
#[test]
fn without_the_key_addresses_of_other_subnets_stay() {
    let host = Host::new();
    let (one, two) = (Pod::new(), Pod::new());
    let result = add(&network("weft", 97), &one);
    del(&network("weft", 97), &one, &result);
    add(&network("weft", 98), &two);
    assert_eq!(host.addresses("br0"), ["10.97.0.1/24", "10.98.0.1/24"]);
    assert!(!host.ruleset().contains("10.97.0.0/24"), "{}", host.ruleset());
}
