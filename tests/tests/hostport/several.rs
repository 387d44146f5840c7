//! A container on several networks, each of which is told all its ports, as podman does it.

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, NetNs, Network, Outside, Pod};

use crate::{addr, mapping, network, with};

/// Another network, of both families.
fn second() -> Network {
    Network::new("second", &["10.99.0.0/24", "fd00:99::/64"])
        .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }))
}

/// Attaches a container's `eth1`.
fn add_eth1(network: &Network, pod: &Pod) -> Value {
    network.add_call(pod).ifname("eth1").run().result()
}

/// A port, one of an address, a range.
fn all_kinds() -> Vec<Value> {
    let at = json!({ "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": Outside::HOST[0] });
    let range = (9000..9010).map(|port| mapping(port, port));
    [mapping(8080, 80), at].into_iter().chain(range).collect()
}

#[test]
fn ports_stay_at_the_interface_that_has_them() {
    let host = Host::new();
    let _outside = host.outside();
    let own: &NetNs = host.netns();
    let web = Pod::new();
    let (one, two) = (with(&network(), &all_kinds()), with(&second(), &all_kinds()));
    let first = one.add(&web);
    let later = add_eth1(&two, &web);
    let (at_80, at_9005) = (Mirror::on(&web, 80), Mirror::on(&web, 9005));
    let [v4, v6] = Outside::HOST.map(addr);
    let assert_served = |is_served: bool, when: &str| {
        for (mirror, target) in [
            (&at_80, (v4, 8080)),
            (&at_80, (v6, 8080)),
            (&at_80, (v4, 8081)),
            (&at_80, (addr("127.0.0.1"), 8080)),
            (&at_9005, (v4, 9005)),
            (&at_9005, (v6, 9005)),
        ] {
            let is_as_expected = match is_served {
                true => mirror.seen(own, target).is_some(),
                false => mirror.is_closed_to(own, target),
            };
            assert!(is_as_expected, "{target:?} {when}: {}", host.ruleset());
        }
    };
    let check = |network: &Network, result: &Value, ifname: &str| {
        network.check_call(&web, result).ifname(ifname).run().done();
    };
    assert_served(true, "with both");
    check(&one, &first, "eth0");
    check(&two, &later, "eth1");
    assert_eq!(host.sysctl("net/ipv4/conf/weft1/route_localnet"), "0", "no port is at that bridge");
    // Another container hears who has them.
    let other = Pod::new();
    two.add_call(&other).run().error_code(103).assert_names(&[&web.id, "9000-9009"]);
    two.del_call(&web).ifname("eth1").run().done();
    assert_served(true, "without the second");
    check(&one, &first, "eth0");
    let later = add_eth1(&two, &web);
    one.del(&web);
    assert_served(false, "they go with the attachment that has them");
    check(&two, &later, "eth1");
    two.add(&other);
}

/// What the first network has no address for is at the second one.
#[test]
fn each_family_is_at_the_first_interface_that_has_it() {
    let host = Host::new();
    let _outside = host.outside();
    let web = Pod::new();
    with(&Network::v4(), &all_kinds()).add(&web);
    let two = with(&second(), &all_kinds());
    let later = add_eth1(&two, &web);
    let mirror = Mirror::on(&web, 80);
    for at in Outside::HOST {
        assert!(mirror.seen(host.netns(), (addr(at), 8080)).is_some(), "at {at}");
    }
    two.check_call(&web, &later).ifname("eth1").run().done();
    two.del_call(&web).ifname("eth1").run().done();
    assert!(mirror.seen(host.netns(), (addr(Outside::HOST[0]), 8080)).is_some(), "the first one's stays");
    assert!(mirror.is_closed_to(host.netns(), (addr(Outside::HOST[1]), 8080)), "the second one's is gone");
}
