//! What several attachments need and none takes back.

use super::*;

/// What a container with a port has, whose subnet is this.
fn in_subnet(name: &str, number: u8, subnet: &str) -> Elements {
    let claim = serde_json::json!({
        "to": format!("10.88.0.{number}"), "at": null, "protocol": "tcp", "first": number, "last": number, "port": 80,
    });
    let ports = serde_json::json!({
        "claims": [claim], "same": [subnet], "masquerade": [], "sources": [], "localnet": null,
    });
    let ports: hostport::Ports = serde_json::from_value(ports).unwrap();
    ports.elements().of(&key(name))
}

/// Whichever comes first, and when all of it is put back.
#[test]
fn of_prefixes_that_meet_the_wider_one_serves_both() {
    let (narrow, wide) = (in_subnet("a", 2, "10.88.0.0/24"), in_subnet("b", 3, "10.88.0.0/16"));
    for all in [[&narrow, &wide], [&wide, &narrow]] {
        let mut kernel = fresh_host();
        ensure_all(&mut kernel);
        let assert_there = |kernel: &mut Nft| {
            all.into_iter().for_each(|elements| check(kernel, elements).unwrap());
            let set = nft(&["list", "set", "inet", "weft", "hostport-same-v4"], "");
            assert!(set.contains("10.88.0.0/16 . 10.88.0.0/16") && !set.contains("/24"), "{set}");
        };
        for (name, elements) in ["first", "second"].into_iter().zip(all) {
            add(&mut kernel, &key(name), elements, &|_| true).unwrap();
            check(&mut kernel, elements).unwrap();
        }
        assert_there(&mut kernel);
        let held = all.map(Elements::clone);
        assert!(!put_back(&mut kernel, &held).unwrap(), "all is there");
        nft(&["flush", "set", "inet", "weft", "hostport-same-v4"], "");
        assert!(put_back(&mut kernel, &held).unwrap());
        assert_there(&mut kernel);
        nft(&["flush", "ruleset"], "");
        ensure(&mut kernel, &held[0], &mut Vec::new(), &mut || Ok(held.to_vec())).unwrap();
        assert_there(&mut kernel);
    }
}
