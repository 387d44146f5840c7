//! Firewalls of others, as they are on a host whose flanneld made its way through them until the last boot.

use super::*;

/// Longer than the agent waits before it looks at what the kernel tells nothing of.
const NOTICE: Duration = Duration::from_secs(30);
const DROPS: &str = "drops what other hosts' containers send";
const GONE: &str = "no firewall of others is in the way any more";

#[test]
fn what_drops_the_networks_traffic_is_logged_when_it_changes() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let (one, other) = (fleet.pod(0), fleet.pod(1));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let said = |what: &str| agent.daemon().log().lines().filter(|line| line.contains(what)).count();
    // Of others' rules the kernel tells nothing: damage to something of its own has the agent look before its time.
    let is_said = |what: &str, times: usize| {
        eventually(NOTICE, &format!("{what:?} is said {times} times"), || {
            node.command("ip link set weft.1 mtu 1400");
            (said(what) == times).then_some(())
        });
    };
    // What containers send passes, and answers do.
    let bridge = fleet.network(0).conf["bridge"].as_str().map_or_else(|| "weft0".to_owned(), str::to_owned);
    node.command(&format!("iptables -A FORWARD -i {bridge} -j ACCEPT"));
    node.command("iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
    for times in 1..=2 {
        node.command("iptables -P FORWARD DROP");
        is_said(DROPS, times);
        assert!(!other.0.ping(one.1).status.success());
        agent.ready();
        if times == 1 {
            // It looks again, and says nothing again.
            let before = syncs(agent);
            eventually(NOTICE, "it has looked again", || (syncs(agent) >= before + 2.0).then_some(()));
        }
        assert_eq!((said(DROPS), said(GONE)), (times, times - 1));
        let log = agent.daemon().log();
        let line = log.lines().rfind(|line| line.contains(DROPS)).expect("a line");
        let (_, remedy) = line.rsplit_once(" pass: ").expect("a command");
        assert!(line.contains("WARN") && line.contains(&format!("bridge {bridge} ")), "{line}");
        remedy.split(" && ").for_each(|line| drop(node.command(line)));
        is_said(GONE, times);
        other.0.assert_reaches(one.1);
        for way in ["-i", "-o"] {
            node.command(&format!("iptables -D FORWARD {way} {bridge} -j ACCEPT"));
        }
        node.command("iptables -P FORWARD ACCEPT");
    }
    agent.ready();
}
