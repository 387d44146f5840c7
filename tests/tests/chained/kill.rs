//! Killed at any moment, a chained call leaves nothing that DEL or GC would not take away.

use std::time::{Duration, Instant};

use weft_tests::{Call, Pod, Random, World};

use crate::{behind, bridged, other_port, used_host, wishes};

const KILLS: u32 = 60;

fn kill(call: Call, usual: Duration, random: &mut Random) {
    let moment = Duration::from_nanos(random.below(u64::try_from(usual.as_nanos()).unwrap()));
    let start = Instant::now();
    let running = call.start();
    while start.elapsed() < moment {
        std::hint::spin_loop();
    }
    running.kill();
    running.finish();
}

#[test]
fn add_and_del_then_add_or_del_or_gc() {
    let mut random = Random::new();
    let host = used_host();
    let (pod, stays) = (Pod::new(), Pod::new());
    behind(&bridged(&stays, "1.1.0"), &other_port()).add(&stays);
    let previous = bridged(&pod, "1.1.0");
    let network = behind(&previous, &wishes());
    let start = Instant::now();
    network.add(&pod);
    let usual = start.elapsed();
    network.del(&pod);
    let before = World::of(&host, &[&pod]);
    for number in 0..KILLS {
        kill(network.add_call(&pod), usual, &mut random);
        match number % 3 {
            0 => {
                let reply = network.add_call(&pod).run();
                if reply.succeeded() {
                    network.check(&pod, &reply.result()).done();
                } else {
                    reply.error_code(103).assert_names(&["attached already"]);
                }
                kill(network.del_call(&pod), usual, &mut random);
                network.del(&pod);
            }
            1 => network.del(&pod),
            _ => network.gc(&[("another", "eth0"), (&stays.id, "eth0")]),
        }
        before.assert_unchanged(&host, &[&pod], &format!("ADD killed, number {number}"));
    }
}
