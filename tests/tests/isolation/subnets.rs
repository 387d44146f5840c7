//! Which subnets a network has, and that no two have addresses in common.

use super::*;

/// `one` with other ranges, as somebody configures it anew while containers of the former ranges are there.
fn moved() -> Network {
    let ranges = json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]]);
    one().with(&json!({ "ipam": { "ranges": ranges } }))
}

#[test]
fn what_a_network_says_holds_for_containers_of_its_former_ranges() {
    let host = Host::new();
    let (server, stranger, newcomer, last) = (Pod::new(), Pod::new(), Pod::new(), Pod::new());
    let result = one().add(&server);
    let (mirror, addresses) = (Mirror::on(&server, PORT), ips(&result));
    other("weft1").add(&stranger);
    let assert_closed = |when: &str| {
        for address in &addresses {
            assert_way(false, &mirror, &stranger, *address, when);
        }
    };
    assert_closed("before");
    let of_newcomer = moved().add(&newcomer);
    assert_closed("when the ranges are others");
    let inside = Mirror::on(&newcomer, PORT + 1);
    for address in ips(&of_newcomer) {
        assert!(inside.seen(&server, (address, PORT + 1)).is_some(), "one network, whatever its ranges");
    }
    one().check(&server, &result).done();
    moved().check(&newcomer, &of_newcomer).done();
    host.nft("flush ruleset");
    moved().add(&last);
    assert_closed("when all was lost and put back");
    moved().del(&newcomer);
    one().check(&server, &result).done();
    assert_closed("when one of the others is gone");
    // What a network says last is for all of it.
    moved().del(&last);
    let open = json!({ "isolation": "none" });
    moved().with(&open).add(&last);
    other("weft1").with(&open).add(&newcomer);
    for address in &addresses {
        assert_way(true, &mirror, &newcomer, *address, "when both are open");
    }
    // The former ranges are given up with the last container that has an address of them.
    one().del(&server);
    let heir = Network::new("heir", &["10.88.0.0/24", "fd00:88::/64"]).with(&json!({ "bridge": "weft2" }));
    command("ip link del weft0");
    heir.status().done();
    heir.add(&server);
}

#[test]
fn networks_have_no_addresses_in_common() {
    let host = Host::new();
    let (first, second) = (Pod::named("first"), Pod::new());
    one().add(&first);
    // A part of it on another bridge, and all of it under another name.
    let part = Network::new("part", &["10.88.0.0/25"]).with(&json!({ "bridge": "weft1" }));
    let renamed = one().with(&json!({ "name": "renamed" }));
    for network in [&part, &renamed] {
        network.add_call(&second).run().error_code(103).assert_names(&["one", "first", "same name"]);
        network.status().error_code(50).assert_names(&["one", "first"]);
    }
    host.nft("flush ruleset");
    renamed.add_call(&second).run().error_code(103).assert_names(&["one", "first"]);
    one().del(&first);
    for network in [&part, &renamed] {
        network.status().done();
        network.add(&second);
        network.del(&second);
    }
}
