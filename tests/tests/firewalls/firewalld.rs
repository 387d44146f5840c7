//! firewalld, which rejects what nobody has let pass.

use weft_tests::{Firewalld, Host, Mirror, Outside, Pod, command};

use crate::{assert_port, assert_untouched, connected, follow, network, published, reaches};

#[test]
fn firewalld_rejects_until_the_bridge_has_a_zone() {
    let (host, outside) = connected();
    let _firewalld = Firewalld::new();
    assert_untouched(&host);
    let pod = Pod::new();
    let result = published().add(&pod);
    let web = Mirror::on(&pod, 80);
    for address in Outside::PEER {
        assert!(!reaches(&pod, address), "{address} is behind the firewall");
    }
    assert_port(true, &web, &outside, "what is redirected is accepted first");
    let remedy = "firewall-cmd --permanent --zone=trusted --add-interface=weft0 && firewall-cmd --reload";
    follow(&published().status(), &["what containers send", "filter_FORWARD", "firewalld", remedy]);
    let reply = published().status();
    reply.done();
    assert!(!reply.stderr.contains("firewalld"), "no warning either: {}", reply.stderr);
    for address in Outside::PEER {
        assert!(reaches(&pod, address), "{address} after what STATUS named was done");
    }
    assert_port(true, &web, &outside, "after what STATUS named was done");
    published().check(&pod, &result).done();
    forward_strictly(&host);
    assert_port(false, &web, &outside, "what is redirected is rejected");
    network().status().done();
    follow(
        &published().status(),
        &["to host ports", "firewalld", "StrictForwardPorts=no", "firewall-cmd --reload"],
    );
    published().status().done();
    assert_eq!(std::fs::read_to_string(FIREWALLD_CONF).unwrap(), "StrictForwardPorts=no\n");
    assert_port(true, &web, &outside, "after what STATUS named was done");
    // Ports that firewalld redirects itself may be those that there are, or not.
    forward_strictly(&host);
    host.nft(
        "insert rule inet firewalld filter_FORWARD_dnat meta l4proto tcp ct original proto-dst 80 accept",
    );
    let reply = published().status();
    reply.done();
    let doubts = reply.stderr.matches("if host ports are closed to others: sed -i").count();
    assert_eq!(doubts, 1, "once for both families: {}", reply.stderr);
    // GC takes what the container holds, so this is last.
    assert_untouched(&host);
}

const FIREWALLD_CONF: &str = "/etc/firewalld/firewalld.conf";

/// What firewalld makes where its setting StrictForwardPorts says yes, which older versions do not know. In place of the rule that
/// accepts all that is redirected it has a jump to a chain with the ports that it redirects itself, and the rest is rejected there.
fn forward_strictly(host: &Host) {
    std::fs::write(FIREWALLD_CONF, "StrictForwardPorts=yes\n").unwrap();
    let rules = command("nft -a list chain inet firewalld filter_FORWARD");
    let rule = rules.lines().find(|line| line.contains("ct status dnat accept"));
    let (_, handle) = rule.and_then(|line| line.rsplit_once("# handle ")).expect("it has this rule");
    host.nft(&format!(
        "add chain inet firewalld filter_FORWARD_dnat
         add rule inet firewalld filter_FORWARD_dnat reject with icmpx admin-prohibited
         replace rule inet firewalld filter_FORWARD handle {handle} ct status dnat jump filter_FORWARD_dnat"
    ));
}
