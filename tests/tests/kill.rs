//! Killed at any moment, a call leaves nothing that DEL would not clean.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::time::{Duration, Instant};

use serde_json::json;
use weft_tests::{Call, Host, Network, Pod, Random, World};

/// How many times a call is killed in one test.
const KILLS: u32 = 200;

/// Its containers may talk with each other by rules.
fn network() -> Network {
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "udp" });
    let limits = json!({ "ingressRate": 10_000_000, "egressRate": 10_000_000 });
    let app = json!({ "label": "part=app" });
    Network::dual()
        .with(&json!({ "ipMasq": true, "runtimeConfig": { "portMappings": [mapping], "bandwidth": limits } }))
        .with(&json!({ "icc": false, "allow": [{ "from": app, "to": app, "port": 80 }] }))
        .with(&json!({ "args": { "cni": { "labels": [{ "key": "part", "value": "app" }] } } }))
}

/// A host on which the network was used once, and how long a call of ADD and of DEL usually takes there.
struct Used {
    host: Host,
    usual: [Duration; 2],
}

impl Used {
    fn new() -> Self {
        let host = Host::new();
        let mut usual = [Duration::ZERO; 2];
        for _ in 0..5 {
            let pod = Pod::new();
            let start = Instant::now();
            network().add(&pod);
            let added = Instant::now();
            network().del(&pod);
            usual = [usual[0].max(added - start), usual[1].max(added.elapsed())];
        }
        Self { host, usual }
    }
}

/// Kills a call at a random moment before its usual end: the plugin alone, as for want of memory, or with its
/// children, as a control group ends. Returns whether it came to its end before.
fn kill(call: Call, usual: Duration, random: &mut Random) -> bool {
    let moment = Duration::from_nanos(random.below(u64::try_from(usual.as_nanos()).unwrap()));
    let with_children = random.below(2) == 0;
    let start = Instant::now();
    let running = call.start();
    // A sleep would end tens of microseconds late, which is a good part of ADD.
    while start.elapsed() < moment {
        std::hint::spin_loop();
    }
    if with_children {
        running.kill_group();
    } else {
        running.kill();
    }
    running.finish().succeeded()
}

#[test]
fn add_then_del() {
    let mut random = Random::new();
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    let mut ended = 0;
    for number in 0..KILLS {
        ended += u32::from(kill(network().add_call(&pod), used.usual[0], &mut random));
        network().del(&pod);
        before.assert_unchanged(&used.host, &[&pod], &format!("ADD killed, number {number}, then DEL"));
    }
    assert!(ended < KILLS * 9 / 10, "{ended} of {KILLS} calls ended before they were killed");
}

/// The first ADD of a host also makes what containers share. What is left of that half-made must not disturb later.
#[test]
fn first_add_of_a_host_then_del() {
    let mut random = Random::new();
    let usual = Used::new().usual[0];
    let whole = {
        let host = Host::new();
        let pod = Pod::named("again");
        network().add(&pod);
        network().del(&pod);
        World::of(&host, &[&pod])
    };
    // Each host's bridge has a MAC address of its own.
    let comparable = |line: &String| !line.contains("host link weft0 kind bridge");
    for number in 0..KILLS / 4 {
        let host = Host::new();
        let pod = Pod::named("again");
        kill(network().add_call(&pod), usual, &mut random);
        network().del(&pod);
        let left = World::of(&host, &[&pod]);
        for trace in ["kind veth", "kind ifb", "/attachments/", "/ipam/addr", "/ipam/owner"] {
            assert!(
                left.matching(trace).is_empty(),
                "number {number}, after DEL: {:?}",
                left.matching(trace)
            );
        }
        network().add(&pod);
        network().del(&pod);
        let differences = whole.differences(&World::of(&host, &[&pod])).into_iter().filter(comparable);
        let differences: Vec<String> = differences.collect();
        assert!(differences.is_empty(), "first ADD killed, number {number}, DEL, ADD, DEL: {differences:#?}");
    }
}

/// A runtime may try ADD again without a DEL between: it succeeds, or it is told what is held and DEL helps.
#[test]
fn add_then_add() {
    let mut random = Random::new();
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    for number in 0..KILLS / 2 {
        let ended = kill(network().add_call(&pod), used.usual[0], &mut random);
        if !ended {
            let reply = network().add_call(&pod).run();
            if reply.succeeded() {
                network().check(&pod, &reply.result()).done();
            } else {
                // Killed after its last step, before the result was out: the attachment is whole and held.
                reply.error_code(103);
            }
        }
        network().del(&pod);
        before.assert_unchanged(&used.host, &[&pod], &format!("ADD killed, number {number}, ADD, DEL"));
    }
}

#[test]
fn del_then_del() {
    let mut random = Random::new();
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    for number in 0..KILLS {
        network().add(&pod);
        kill(network().del_call(&pod), used.usual[1], &mut random);
        network().del(&pod);
        before.assert_unchanged(&used.host, &[&pod], &format!("DEL killed, number {number}, then DEL"));
    }
}

/// GC does what DEL was not called for.
#[test]
fn add_then_gc() {
    let mut random = Random::new();
    let used = Used::new();
    let (pod, alive) = (Pod::new(), Pod::new());
    // The port is the other container's.
    let without_port = network().with(&json!({ "runtimeConfig": { "portMappings": null } }));
    let result = without_port.add(&alive);
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod, &alive]);
    for number in 0..KILLS / 2 {
        kill(network().add_call(&pod), used.usual[0], &mut random);
        if random.below(2) == 0 {
            kill(network().gc_call(&[(&alive.id, "eth0")]), used.usual[1], &mut random);
        }
        network().gc(&[(&alive.id, "eth0")]);
        before.assert_unchanged(
            &used.host,
            &[&pod, &alive],
            &format!("ADD killed, number {number}, then GC"),
        );
    }
    without_port.check(&alive, &result).done();
}
