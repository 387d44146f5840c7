//! By which interfaces others are reached.

use serde_json::json;
use weft_tests::{Host, Network, Outside, Pod, command};

use crate::{follow, network, reaches};

/// Nothing says there by which interface others are reached, but that it is no bridge of containers.
#[test]
fn a_host_without_a_default_route_is_no_excuse() {
    let host = Host::new();
    let _outside = host.outside();
    let other = Network::new("other", &["10.99.0.0/24", "fd00:99::/64"]).with(&json!({ "bridge": "weft1" }));
    let (pod, neighbour) = (Pod::new(), Pod::new());
    other.add(&neighbour);
    network().add(&pod);
    let reaches_all = || Outside::PEER.iter().all(|address| reaches(&pod, address));
    assert!(reaches_all(), "without a firewall");
    for program in ["iptables", "ip6tables"] {
        command(&format!("{program} -P FORWARD DROP"));
        // Remedies for the other network.
        command(&format!("{program} -I FORWARD -i weft1 -j ACCEPT"));
        command(&format!("{program} -I FORWARD -o weft1 -j ACCEPT"));
    }
    assert!(Outside::PEER.iter().all(|address| !reaches(&pod, address)), "behind the firewall");
    follow(&network().status(), &["iptables -I FORWARD -i weft0", "ip6tables -I FORWARD -o weft0"]);
    network().status().done();
    assert!(reaches_all(), "after what STATUS named was done");
    // A bridge with something else on it can be meant.
    command("ip link add br0 type bridge");
    command("ip link add tunnel0 master br0 type vxlan id 7 dstport 4789");
    for program in ["iptables", "ip6tables"] {
        for way in ["i", "o"] {
            command(&format!("{program} -R FORWARD {} -{way} br0 -j ACCEPT", 1 + usize::from(way == "o")));
        }
    }
    let reply = network().status();
    reply.done();
    assert!(reply.stderr.contains("may drop traffic of bridge weft0"), "{}", reply.stderr);
}
