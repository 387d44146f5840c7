//! Limits on the traffic of a container with one of another host.

use std::time::Duration;

use serde_json::json;
use weft_tests::{eventually, ips, transfer};

use crate::{DUAL, Fleet};

/// Bits per second.
const RATE: u32 = 4_000_000;
/// As many as pass in half a second.
const BYTES: usize = 250_000;

/// Of the time that the limited way takes, at most this part is the other one's. It takes some: answers to it go the limited way.
const SHARE: u32 = 4;

/// A limit never lets more through, however fast or slow the machine is, and each direction has its own: the other way is held
/// up by a busy machine now and then, and by a limit always.
#[test]
fn what_goes_to_another_host_is_limited_in_both_directions_and_families() {
    let fleet = Fleet::new(&[2], DUAL);
    let (far, of_far) = fleet.node(1).attach(&fleet.network);
    for direction in ["ingress", "egress"] {
        let bandwidth = json!({ "bandwidth": { format!("{direction}Rate"): RATE } });
        let network = fleet.network.clone().with(&json!({ "runtimeConfig": bandwidth }));
        let (near, _) = fleet.node(0).attach(&network);
        drop(fleet.node(1).attach(&fleet.network));
        for address in ips(&of_far) {
            let what = format!("the way that is not {direction} is free, with {address}");
            eventually(Duration::from_secs(20), &what, || {
                let [sent, received] = transfer(&near, &far, address, BYTES);
                let (limited, free) = if direction == "egress" { (sent, received) } else { (received, sent) };
                // A bucket's worth passes at once.
                assert!(limited >= Duration::from_millis(450), "{direction} with {address}: {limited:?}");
                (free < limited / SHARE).then_some(())
            });
        }
    }
}
