//! There is no moment in which a container's link is open and its rules do not stand.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::json;
use weft_tests::frames::{Flood, Frame, Mac};
use weft_tests::{Host, Network, Pod, command, eventually};

use crate::forgeries::{Case, Station, cases};
use crate::{PATIENCE, attach};

/// How often a container comes. The first moment is a matter of microseconds.
const ROUNDS: usize = 30;

const MAC: Mac = [2, 0, 0, 0, 0, 0x42];
const ADDRESSES: [&str; 2] = ["10.88.0.77", "fd00:88::77"];

/// Who the container will be: frames are made for it before it is there.
fn station() -> Station {
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = ADDRESSES.map(|ip| ip.parse().unwrap()) else { unreachable!() };
    // By its MAC address (RFC 4291, appendix A).
    Station { mac: MAC, v4, v6, link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x42) }
}

/// A container floods its neighbour with forged frames of every kind from the moment on in which its link is up, also where the
/// rules are lost when it comes. None arrives, and each does where the guard is off.
#[test]
fn not_one_forged_frame_passes_while_a_container_comes() {
    for guard in [true, false] {
        let _host = Host::new();
        let victim = Pod::new();
        let (peer, mut seen) = attach(&Network::dual(), &victim);
        let asked =
            json!({ "guard": guard, "runtimeConfig": { "ips": ADDRESSES, "mac": "02:00:00:00:00:42" } });
        let network = Network::dual().with(&asked);
        for round in 0..if guard { ROUNDS } else { 1 } {
            let cases: Vec<Case> = cases(station(), peer);
            let honest: Frame = cases[0].honest.clone();
            let frames = cases.iter().map(|case| case.forged.clone()).chain([honest.clone()]).collect();
            let attacker = Pod::new();
            if round % 2 == 1 {
                command("nft flush ruleset");
            }
            seen.forget();
            let flood = Flood::begin(attacker.netns(), "eth0", frames);
            network.add(&attacker);
            seen.wait_for(&honest, "what is honest among what is forged");
            for case in &cases {
                if guard {
                    assert!(!seen.has_seen(&case.forged), "round {round}: it arrived: {}", case.name);
                } else if !case.name.starts_with("what ") {
                    eventually(PATIENCE, case.name, || seen.has_seen(&case.forged).then_some(()));
                }
            }
            assert!(flood.end() > 0);
            network.del(&attacker);
        }
    }
}
