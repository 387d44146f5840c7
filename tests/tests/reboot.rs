//! No container outlives a boot, so nothing of the last boot may hold anything in this one, wherever the state was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use serde_json::json;
use weft_tests::{Host, Mirror, Network, Outside, Pod, World, command, ip, ips};

fn network() -> Network {
    // Room for one container only: a leaked address is a failed ADD.
    Network::new("tiny", &["10.88.0.0/30"]).with(&json!({ "isDefaultGateway": true, "ipMasq": true }))
}

#[test]
fn addresses_of_the_last_boot_are_free() {
    let host = Host::new();
    let mut boots = Vec::new();
    for _ in 0..3 {
        let mut pod = Pod::named("same");
        network().status().done();
        let result = network().add(&pod);
        assert_eq!(ip(&result).to_string(), "10.88.0.2");
        pod.assert_reaches([10, 88, 0, 1]);
        network().status().error_code(50);
        boots.push(host.sysctl("kernel/random/boot_id"));
        pod.die();
        host.reboot();
    }
    boots.dedup();
    assert_eq!(boots.len(), 3, "the testbed gave one boot ID twice");
    let pod = Pod::new();
    network().add(&pod);
    let files = command("find /run/weft -type f -not -name lock -not -name .lock");
    for boot in &boots {
        assert!(!files.contains(boot.as_str()), "files of boot {boot} are left:\n{files}");
    }
}

/// A runtime that comes up again deletes and collects what it remembers of the last boot.
#[test]
fn del_check_and_gc_of_the_last_boot() {
    let host = Host::new();
    let (mut old, mut older) = (Pod::new(), Pod::new());
    let other = Network::new("other", &["10.2.0.0/24"]);
    let result = network().add(&old);
    other.add(&older);
    old.die();
    older.die();
    host.reboot();
    let before = World::of(&host, &[]);
    assert!(!network().check(&old, &result).succeeded());
    network().previous(&result).call("DEL").pod(&old).run().done();
    network().del(&old);
    other.gc(&[]);
    let come: Vec<String> =
        before.differences(&World::of(&host, &[])).into_iter().filter(|line| line.starts_with('+')).collect();
    assert!(come.is_empty(), "{come:#?}");

    // The same container, started again.
    let again = Pod::named("again");
    let result = network().add(&again);
    network().check(&again, &result).done();
    network().gc(&[("again", "eth0")]);
    network().check(&again, &result).done();
    network().gc(&[]);
    network().status().done();
}

/// Whoever saves the table and loads it at boot has ports in it that lead to addresses which others get.
#[test]
fn ports_of_the_last_boot_lead_to_nobody_although_somebody_saved_the_rules() {
    let host = Host::new();
    let network = Network::dual();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let published = network.clone().with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
    let (mut old, next) = (Pod::new(), Pod::new());
    let result = published.add(&old);
    let saved = command("nft list table inet weft");
    old.die();
    host.reboot();
    let outside = host.outside();
    host.nft(&saved);
    assert!(host.ruleset().contains(&old.id));
    assert_eq!(ips(&network.add(&next)), ips(&result), "it has the addresses of the one before");
    let mirror = Mirror::on(&next, 80);
    for at in Outside::HOST.map(|at| at.parse().unwrap()) {
        assert!(mirror.is_closed_to(&outside, (at, 8080)), "the port of the last boot");
    }
    assert!(!host.ruleset().contains(&old.id), "{}", host.ruleset());
    // Also what nobody calls GC for: the port is free.
    let again = Pod::new();
    published.add(&again);
    let mirror = Mirror::on(&again, 80);
    for at in Outside::HOST.map(|at| at.parse().unwrap()) {
        assert!(mirror.seen(&outside, (at, 8080)).is_some(), "it is the new one's");
    }
}
