//! Objects that are there, and say something else than they ought to.

use super::*;

/// What is looked at after each damage, and what none of it says then.
const LOOKS: [&str; 3] = ["ip -o link show", "bridge fdb show", "ip route show"];
const ALTERED: [&str; 8] =
    [" master ", " port ", " vni ", " via eth0", " mtu 1290", " src ", " tos ", " metric 7 "];

fn alterations(node: &Node, peer: &Node, family: Family) -> Vec<Damage> {
    let (device, flag) = (family.device(), family.flag());
    let (mac, subnet, public) = (family.mac(peer), family.subnet(peer), family.address(peer));
    let vtep = subnet.network();
    let link = format!("{device}: ");
    let fdb = format!("{mac} dev {device} dst {public} self permanent");
    let route = format!("ip {flag} route");
    let way = format!("{subnet} via {vtep} dev {device}");
    let forward = |detour: &str| {
        let line = format!("bridge fdb replace {mac} dst {public} {detour} dev {device}");
        damage("fdb", &line, "bridge fdb", [&fdb])
    };
    let lead = |verb: &str, more: &str| {
        damage("route", &format!("{route} {verb} {way} onlink {more}"), &route, [&format!("{way} ")])
    };
    let router = family.neighbour(1);
    let hops = format!("nexthop via {vtep} dev {device} onlink nexthop via {router} dev eth0");
    let mut all = vec![
        damage("link", &format!("ip link set {device} master weft0"), "ip -o link", [&link]),
        forward("port 9999"),
        forward("vni 7"),
        forward("via eth0"),
        lead("replace", "mtu 1290"),
        lead("replace", &format!("src {}", family.address(node))),
        lead("add", "metric 7 mtu 1290"),
        damage("route", &format!("{route} replace {subnet} {hops}"), &route, [&format!("{way} ")]),
    ];
    // The kernel's IPv6 looks at no such thing.
    all.extend((family == Family::V4).then(|| lead("add", "tos 0x10")));
    all
}

#[test]
fn what_is_altered_is_whole_again() {
    let fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let (one, _) = fleet.pod_of_all(0);
    let (_other, addresses) = fleet.pod_of_all(1);
    let node = fleet.node(0);
    for (family, address) in fleet.families.iter().copied().zip(addresses) {
        for damage in alterations(node, fleet.node(1), family) {
            assert_repaired(&fleet, &damage, &one, address);
            eventually(REPAIR, &format!("nothing is left of `{}`", damage.line), || {
                let said = LOOKS.map(|look| {
                    let look = look.replace("ip route", &format!("ip {} route", family.flag()));
                    node.command(&format!("{look} dev {}", family.device()))
                });
                let left = ALTERED.iter().any(|part| said.iter().any(|text| text.contains(part)));
                (!left).then_some(())
            });
        }
    }
    fleet.agents[0].ready();
}

/// What policy routing has beside the main table is somebody's own: it stands for nothing that is to be there, and goes nowhere.
#[test]
fn a_route_in_another_table_stays() {
    let fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let heals = || agent.metric(r#"weft_heals_total{network="pods",object="route"}"#).unwrap_or(0.0);
    for family in fleet.families.iter().copied() {
        let (device, subnet, route) =
            (family.device(), family.subnet(fleet.node(1)), format!("ip {} route", family.flag()));
        let way = format!("via {} dev {device}", subnet.network());
        let nobodys = match family {
            Family::V4 => "10.255.99.0/24",
            Family::V6 => "fd00:42:0:ff99::/64",
        };
        let before = heals();
        for dst in [subnet.to_string(), nobodys.to_owned()] {
            node.command(&format!("{route} add {dst} {way} onlink table 100"));
        }
        settled(agent);
        assert_eq!(heals(), before, "{family:?}");
        node.command(&format!("{route} del {subnet} dev {device}"));
        eventually(REPAIR, "the main table's is back", || {
            node.command(&route).contains(&format!("{subnet} {way} ")).then_some(())
        });
        settled(agent);
        assert_eq!(heals(), before + 1.0, "{family:?}");
        let there = node.command(&format!("{route} show table 100"));
        assert_eq!(there.lines().filter(|line| line.contains(&way)).count(), 2, "{there}");
    }
}
