//! MTUs that do not fit between hosts.

use super::*;

/// They are somebody's wish, and for containers of one host they hold; the log tells what fits. What goes to another host is told to
/// be smaller by the host, so a connection goes on.
#[test]
fn larger_than_what_fits_is_told_and_connections_go_on() {
    let fleet = Fleet::new(&[2], DUAL);
    let large = |keys: Value| fleet.network.clone().with(&keys);
    let attach = |network: &Network, node: usize| {
        let pod = Pod::new();
        let reply = network.add_call(&pod).on(fleet.node(node)).run();
        (ips(&reply.result()), pod, reply.stderr)
    };
    let (_, fits, told) = attach(&large(json!({ "args": { "cni": { "mtu": 1400 } } })), 0);
    assert!(!told.contains("1400"), "{told}");
    assert_eq!(fits.link("eth0").expect("an interface")["mtu"], 1400);
    for keys in [json!({ "args": { "cni": { "mtu": 9000 } } }), json!({ "mtu": 9000 })] {
        let (there, server, _) = attach(&large(keys.clone()), 1);
        let (_, client, told) = attach(&large(keys.clone()), 0);
        assert_eq!(client.link("eth0").expect("an interface")["mtu"], 9000);
        // What fits is the less of both families.
        for word in ["mtu", "9000", "1430"] {
            assert!(told.contains(word), "no {word} in {told}");
        }
        // By which each host learns of the other.
        for node in fleet.cluster.nodes() {
            drop(node.attach(&fleet.network));
        }
        for address in there {
            transfer(&client, &server, address, 10 << 20);
        }
    }
}
