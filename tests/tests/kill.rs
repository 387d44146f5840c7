//! Killed at any moment, a call leaves nothing that DEL would not clean.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use serde_json::json;
use weft_tests::{Call, Host, Network, Pod, Random, World};

/// How many calls die in one test.
const KILLS: u32 = 200;
/// How many times as many may be made for that, of which one in five comes to its end before, see [`Killer`].
const TRIES: u32 = 2;

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

/// Kills calls at random moments, until so many have died of it.
struct Killer {
    random: Random,
    wanted: u32,
    died: u32,
    made: u32,
    /// A call's moment lies within this time after its start. It follows what calls take at present, so that one in five comes to its end
    /// before: then moments are all over a call, and most of them in it.
    window: Duration,
}

impl Killer {
    fn new(wanted: u32, usual: Duration) -> Self {
        Self { random: Random::new(), wanted, died: 0, made: 0, window: usual }
    }

    /// Whether there are more to kill.
    fn goes_on(&self) -> bool {
        let Self { wanted, died, made, window, .. } = self;
        let goes_on = died < wanted;
        assert!(!goes_on || *made < wanted * TRIES, "only {died} of {made} calls died within {window:?}");
        goes_on
    }

    /// Kills a call: the plugin alone, as for want of memory, or with its children, as a control group ends. Returns whether it died of
    /// that.
    fn kill(&mut self, call: Call) -> bool {
        let moment = Duration::from_nanos(self.random.below(u64::try_from(self.window.as_nanos()).unwrap()));
        let with_children = self.random.below(2) == 0;
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
        let has_died = running.finish().status.signal() == Some(9);
        self.made += 1;
        self.died += u32::from(has_died);
        self.window = if has_died { self.window * 65 / 64 } else { self.window * 15 / 16 };
        has_died
    }
}

#[test]
fn add_then_del() {
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    let mut killer = Killer::new(KILLS, used.usual[0]);
    while killer.goes_on() {
        let has_died = killer.kill(network().add_call(&pod));
        network().del(&pod);
        if has_died {
            let after = format!("ADD killed, number {}, then DEL", killer.died);
            before.assert_unchanged(&used.host, &[&pod], &after);
        }
    }
}

/// The first ADD of a host also makes what containers share. What is left of that half-made must not disturb later.
#[test]
fn first_add_of_a_host_then_del() {
    let mut killer = Killer::new(KILLS / 4, Used::new().usual[0]);
    let whole = {
        let host = Host::new();
        let pod = Pod::named("again");
        network().add(&pod);
        network().del(&pod);
        World::of(&host, &[&pod])
    };
    // Each host's bridge has a MAC address of its own.
    let comparable = |line: &String| !line.contains("host link weft0 kind bridge");
    while killer.goes_on() {
        let host = Host::new();
        let pod = Pod::named("again");
        if !killer.kill(network().add_call(&pod)) {
            continue;
        }
        let number = killer.died;
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
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    let mut killer = Killer::new(KILLS / 2, used.usual[0]);
    while killer.goes_on() {
        if !killer.kill(network().add_call(&pod)) {
            network().del(&pod);
            continue;
        }
        let reply = network().add_call(&pod).run();
        if reply.succeeded() {
            network().check(&pod, &reply.result()).done();
        } else {
            // Killed after its last step, before the result was out: the attachment is whole and held.
            reply.error_code(103);
        }
        network().del(&pod);
        let after = format!("ADD killed, number {}, ADD, DEL", killer.died);
        before.assert_unchanged(&used.host, &[&pod], &after);
    }
}

#[test]
fn del_then_del() {
    let used = Used::new();
    let pod = Pod::new();
    network().add(&pod);
    network().del(&pod);
    let before = World::of(&used.host, &[&pod]);
    let mut killer = Killer::new(KILLS, used.usual[1]);
    while killer.goes_on() {
        network().add(&pod);
        if killer.kill(network().del_call(&pod)) {
            network().del(&pod);
            let after = format!("DEL killed, number {}, then DEL", killer.died);
            before.assert_unchanged(&used.host, &[&pod], &after);
        }
    }
}

/// GC does what DEL was not called for, also after another one that was killed.
#[test]
fn add_then_gc() {
    let used = Used::new();
    let (pod, alive) = (Pod::new(), Pod::new());
    // The port is the other container's.
    let without_port = network().with(&json!({ "runtimeConfig": { "portMappings": null } }));
    let result = without_port.add(&alive);
    network().add(&pod);
    network().gc(&[(&alive.id, "eth0")]);
    let before = World::of(&used.host, &[&pod, &alive]);
    let mut of_add = Killer::new(KILLS / 2, used.usual[0]);
    let mut of_gc = Killer::new(KILLS / 4, used.usual[1]);
    while of_add.goes_on() {
        of_add.kill(network().add_call(&pod));
        if of_gc.goes_on() {
            of_gc.kill(network().gc_call(&[(&alive.id, "eth0")]));
        }
        network().gc(&[(&alive.id, "eth0")]);
        let after = format!("ADD killed, number {}, then GC, number {}", of_add.died, of_gc.died);
        before.assert_unchanged(&used.host, &[&pod, &alive], &after);
    }
    assert!(!of_gc.goes_on(), "{} calls of GC died", of_gc.died);
    without_port.check(&alive, &result).done();
}
