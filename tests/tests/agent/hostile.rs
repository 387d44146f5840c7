//! Records that are no hosts, in networks of either family and both.

use weft_tests::records::{apart, of_a_host, of_none};

use super::*;

const CONFIGS: [&str; 3] = [
    CONFIG,
    r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#,
    DUAL,
];

/// So many records are named in a minute.
const LINES: usize = 20;

fn rejected(agent: &Weftd) -> Option<f64> {
    let text = agent.ask("/metrics")?.body;
    let others = |line: &&str| line.starts_with("weft_peers{") && !line.contains(r#"state="valid""#);
    Some(text.lines().filter(others).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// Each is told once, and half a host is none: whoever is whole is reached, and that is all.
#[test]
fn whatever_is_wrong_with_a_record_harms_nobody() {
    for config in CONFIGS {
        let fleet = Fleet::of(1, &apart(config), &json!({}));
        let (node, agent) = (fleet.node(0), &fleet.agents[0]);
        let (good, mut bad) = (of_a_host(&fleet.families), of_none(&fleet.families));
        // This host's own addresses, one at a time.
        let (_, value) = &good;
        for (family, number) in fleet.families.iter().zip(0..) {
            let own = value.replace(&family.neighbour(99).to_string(), &family.address(node).to_string());
            let own = own.replace(":99\"", ":98\"");
            bad.push((good.0.replace("99", &format!("{}", 97 - number)), own));
        }
        for (key, value) in bad.iter().chain([&good]) {
            fleet.etcd.put(&format!("{SUBNETS}{key}"), value);
        }
        for family in &fleet.families {
            let (device, public) = (family.device(), family.neighbour(99));
            let to_good = format!("8e:00:00:00:00:99 dst {public} ");
            eventually(REPAIR, "the good one is followed", || {
                node.command(&format!("bridge fdb show dev {device}")).contains(&to_good).then_some(())
            });
            assert_eq!(forwarding_entries(node, device), 1, "{config}");
            let routes = node.command(&format!("ip {} route show dev {device}", family.flag()));
            assert_eq!(routes.matches(" via ").count(), 1, "{routes}");
        }
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let all = bad.len() as f64;
        eventually(REPAIR, &format!("{all} records are rejected"), || {
            (rejected(agent)? == all).then_some(())
        });
        let log = agent.daemon().log();
        let named = |(key, _): &(String, String)| {
            let quoted = format!("{key:?} is passed over");
            log.lines().filter(|line| line.contains(&quoted)).count()
        };
        let named: Vec<usize> = bad.iter().map(named).collect();
        assert!(named.iter().all(|lines| *lines <= 1), "{log}");
        assert_eq!(named.iter().sum::<usize>(), bad.len().min(LINES), "{log}");
        agent.ready();
    }
}
