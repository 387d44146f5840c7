//! STATUS knows when an ADD with a port would fail.

use serde_json::json;
use weft_tests::{Host, Pod, World, command};

use crate::{mapping, network, with};

/// Something of an administrator's that has names of Weft's is in the way, and STATUS says so before ADD does.
#[test]
fn names_that_somebody_else_has() {
    let host = Host::new();
    let pod = Pod::new();
    let capable = json!({ "capabilities": { "portMappings": true } });
    let (plain, able) = (network(), network().with(&capable));
    let limited = able.clone().with(&json!({ "sources": ["192.0.2.0/24"] }));
    let chain = "table inet weft { chain hostport { }\n chain mine { jump hostport; }\n }\n";
    let set = "table inet weft { set hostport-sources-v4 { type ipv4_addr; }\n chain mine { ip saddr @hostport-sources-v4 drop; }\n }\n";
    for (theirs, refused, others) in [(chain, &able, vec![&plain]), (set, &limited, vec![&plain, &able])] {
        host.nft(theirs);
        let before = World::of(&host, &[&pod]);
        refused.status().error_code(50).assert_names(&["hostport"]);
        with(refused, &[mapping(8080, 80)]).add_call(&pod).run().error().assert_names(&["hostport"]);
        before.assert_unchanged(&host, &[&pod], "STATUS and an ADD that failed");
        others.into_iter().for_each(|network| network.status().done());
        command("nft flush ruleset");
        refused.status().done();
        assert!(!host.ruleset().contains("hostport"), "STATUS changes nothing");
    }
    with(&limited, &[mapping(8080, 80)]).add(&pod);
    limited.status().done();
}
