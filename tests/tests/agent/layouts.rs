//! Rules that another version of Weft made: an upgrade leaves them to the new one, with all that containers have in them.

use weft_tests::Host;

use super::*;

/// What rules of this version come to in another one's.
struct Layout {
    what: &'static str,
    /// Texts and what stands in their places.
    instead: &'static [(&'static str, &'static str)],
    /// Sets that it does not have.
    without: &'static [&'static str],
}

const LAYOUTS: [Layout; 10] = [
    Layout {
        what: "the guard knows ports by their names",
        instead: &[
            ("type iface_index . ether_addr . ipv4_addr", "type ifname . ether_addr . ipv4_addr"),
            ("iif . ether saddr . ip saddr @guard-v4", "iifname . ether saddr . ip saddr @guard-v4"),
            (
                "iif . arp saddr ether . arp saddr ip @guard-v4",
                "iifname . arp saddr ether . arp saddr ip @guard-v4",
            ),
        ],
        without: &[],
    },
    Layout {
        what: "ports of the host are of one protocol",
        instead: &[
            ("type inet_proto . inet_service : ipv4_addr", "type inet_service : ipv4_addr"),
            ("tcp . 8080", "8080"),
            ("tcp . 9080", "9080"),
            ("type inet_proto . inet_service : ipv6_addr", "type inet_service : ipv6_addr"),
            ("meta l4proto . th dport map @hostport-v4", "tcp dport map @hostport-v4"),
            ("meta l4proto . th dport map @hostport-v6", "tcp dport map @hostport-v6"),
        ],
        without: &[],
    },
    Layout {
        what: "networks are open to themselves by one protocol",
        instead: &[
            (
                "set inside-v4 {\n\t\ttype ipv4_addr . ipv4_addr",
                "set inside-v4 {\n\t\ttype ipv4_addr . ipv4_addr . inet_proto",
            ),
            ("10.88.0.0/24 . 10.88.0.0/24 comment", "10.88.0.0/24 . 10.88.0.0/24 . tcp comment"),
            ("ip saddr . ip daddr @inside-v4", "ip saddr . ip daddr . meta l4proto @inside-v4"),
        ],
        without: &[],
    },
    Layout {
        what: "what is allowed is of one protocol",
        instead: &[
            (
                "set allow-port-v4 {\n\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service",
                "set allow-port-v4 {\n\t\ttype ipv4_addr . ipv4_addr . inet_service",
            ),
            ("10.88.0.2 . 10.88.0.3 . tcp . 80", "10.88.0.2 . 10.88.0.3 . 80"),
            ("meta l4proto . th dport @allow-port-v4", "tcp dport @allow-port-v4"),
        ],
        without: &[],
    },
    Layout {
        what: "nobody looks up who holds what",
        instead: &[],
        without: &["hostport-addresses-v4", "hostport-addresses-v6", "allow-holders-v4", "allow-holders-v6"],
    },
    Layout {
        what: "it is noted of whom by which interface others hold something, and prefixes alone tell who is masqueraded",
        instead: &[
            (
                "ip daddr @hostport-hairpin-v4 ip saddr . ip daddr @hostport-same-v4",
                "ip saddr . ip daddr @hostport-same-v4",
            ),
            (
                "set allow-holders-v4 {\n\t\ttype ipv4_addr",
                "set allow-holders-v4 {\n\t\ttype ifname . ipv4_addr",
            ),
            ("\n10.88.0.2 comment", "\n\"eth0\" . 10.88.0.2 comment"),
            ("\n10.88.0.3 comment", "\n\"eth0\" . 10.88.0.3 comment"),
        ],
        without: &["hostport-hairpin-v4"],
    },
    Layout {
        what: "a part of the guard is off by the port's name",
        instead: &[
            ("set guard-off-rogue {\n\t\ttype iface_index", "set guard-off-rogue {\n\t\ttype ifname"),
            ("iif != @guard-off-rogue", "iifname != @guard-off-rogue"),
        ],
        without: &[],
    },
    Layout {
        what: "ports of private networks are known by their names",
        instead: &[
            (
                "set private-ports {\n\t\ttype devgroup\n\t\telements = {\n970959971 comment",
                "set private-ports {\n\t\ttype ifname\n\t\telements = {\n\"eth0\" comment",
            ),
            (
                "iifgroup @private-ports oifgroup @private-ports",
                "iifname @private-ports oifname @private-ports",
            ),
            ("\t\tiifname @private-links oifname @private-links drop\n", ""),
        ],
        without: &["private-links"],
    },
    Layout {
        what: "ports of private networks are nothing special, and the flow to a port is nobody's",
        instead: &[
            ("\t\tiifgroup @private-ports oifgroup @private-ports drop\n", ""),
            (
                "\t\tip daddr @hostport-hairpin-v4 ip saddr . ip daddr @hostport-same-v4 masquerade fully-random\n",
                "",
            ),
        ],
        without: &["private-ports", "hostport-same-v4"],
    },
    Layout {
        what: "whatever anybody translates is published",
        instead: &[
            (
                "\t\tct status dnat ct label 119 jump hostport-snat\n",
                "\t\tct status dnat jump hostport-snat\n\t\tct status dnat ip saddr 127.0.0.0/8 masquerade fully-random\n",
            ),
            (
                "\t\tct status dnat jump isolation-dialled\n",
                "\t\tct status dnat jump isolation-dialled\n\t\tct status dnat jump isolation-dialled\n",
            ),
            ("ct status dnat ct label 119 accept", "ct status dnat accept"),
            ("\t\tct label set 119\n", ""),
        ],
        without: &[],
    },
];

impl Layout {
    /// The rules of another version for the same containers.
    fn of(&self, rules: &str) -> String {
        // An element a line: the kernel has them in any order.
        let mut text = rules.replace("elements = { ", "elements = {\n").replace(", ", ",\n");
        for (this, other) in self.instead {
            assert!(text.contains(this), "no {this} in {text}");
            text = text.replace(this, other);
        }
        for set in self.without {
            let begin = text.find(&format!("\tset {set} {{")).unwrap_or_else(|| panic!("no {set} in {text}"));
            let end = begin + text[begin..].find("\t}\n").expect("the set's end") + 3;
            text.replace_range(begin..end, "");
        }
        format!("flush ruleset\n{text}")
    }
}

/// A network that has something in most sets, as have its containers: with ports from this one on.
fn network(first: u16) -> Network {
    let port = |number: u16| json!({ "hostPort": number, "containerPort": number, "protocol": "tcp" });
    let mut of_one_address = port(first + 1);
    of_one_address["hostIP"] = json!("127.0.0.1");
    let mut mappings = vec![port(first), of_one_address];
    mappings.extend((first + 100..first + 110).map(port));
    let from_web = |to: &str| json!({ "from": { "container": WEB }, "to": { "container": to }, "protocol": "tcp", "port": 80 });
    let rules = json!([
        from_web(DB),
        from_web(NEXT),
        { "from": { "prefix": "10.88.0.240/28" }, "to": { "prefix": "10.88.0.0/24" }, "protocol": "tcp", "port": 80 },
    ]);
    Network::dual().with(&json!({
        "ipMasq": true, "icc": false, "allow": rules, "guard": { "rogue": false }, "egress": { "deny": ["198.51.100.0/24"] },
        "runtimeConfig": { "portMappings": mappings },
    }))
}

const WEB: &str = "the-web";
const DB: &str = "the-db";
const NEXT: &str = "the-next";

/// A container, what it asked for, and what it got.
pub(super) type Attached = (Pod, Network, Value);

/// Two containers that may talk with each other, of which the second one holds this.
pub(super) fn attach(add: impl Fn(&Network, &Pod) -> Value) -> [Attached; 2] {
    [(WEB, 8080), (DB, 9080)].map(|(id, first)| {
        let (pod, network) = (Pod::named(id), network(first));
        let result = add(&network, &pod);
        (pod, network, result)
    })
}

#[test]
fn an_agent_that_starts_makes_them_its_own() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let attached = attach(|network, pod| network.add_call(pod).on(node).run().result());
    let check = |(pod, network, result): &Attached| network.check_call(pod, result).on(node).run();
    for layout in LAYOUTS {
        let file = "/run/other.nft";
        fs::write(file, layout.of(&node.command("nft list ruleset"))).expect("write rules");
        node.command(&format!("nft -f {file}"));
        check(&attached[1]).error_code(105);
        let agent = Weftd::with(node, &json!({ "networks": [] }));
        agent.ready();
        eventually(REPAIR, layout.what, || {
            attached.iter().all(|attached| check(attached).succeeded()).then_some(())
        });
    }
}

/// Of an agent that is of another version, here one that is held, CHECK says what to do.
#[test]
fn check_names_the_agent_that_leaves_them_so() {
    let fleet = Fleet::new(1);
    let (node, network) = (fleet.node(0), fleet.network(0));
    let (pod, result) = node.attach(&network);
    let check = || network.check_call(&pod, &result).on(node).run();
    check().done();
    let remedy = "restart weftd, which may be of another version, or else: DEL and ADD the container again";
    fleet.agents[0].daemon().freeze();
    node.command("nft flush table bridge weft");
    check().error_code(105).assert_names(&["ruleset", remedy]);
    fleet.agents[0].daemon().thaw();
    eventually(REPAIR, "it puts them back", || check().succeeded().then_some(()));
    fleet.agents[0].daemon().stop();
    node.command("nft flush table bridge weft");
    assert!(!check().error_code(105).msg.contains("weftd"));
}

#[test]
fn an_add_makes_those_its_own_that_it_needs() {
    let host = Host::new();
    let (next, more) = (Pod::named(NEXT), network(10_080));
    let attached = attach(Network::add);
    for layout in LAYOUTS {
        host.nft(&layout.of(&host.ruleset()));
        let (pod, network, result) = &attached[1];
        network.check(pod, result).error_code(105);
        let result = more.add(&next);
        let all = attached.iter().map(|(pod, network, result)| (pod, network, result));
        for (pod, network, result) in all.chain([(&next, &more, &result)]) {
            let reply = network.check(pod, result);
            assert!(reply.succeeded(), "{}: {}", layout.what, reply.stderr);
        }
        more.del(&next);
    }
}

/// How the set of ports is where there are none, without its elements.
const OF_ONE_PROTOCOL: Layout = Layout {
    what: "ports of the host are of one protocol",
    instead: &[
        ("type inet_proto . inet_service : ipv4_addr", "type inet_service : ipv4_addr"),
        ("meta l4proto . th dport map @hostport-v4", "tcp dport map @hostport-v4"),
    ],
    without: &[],
};

/// Else every look of the agent would lock all records, and a GC that comes at the same time would keep their attachments.
#[test]
fn an_agent_makes_also_those_its_own_that_nobody_needs() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let without_ports = Network::dual().with(&json!({ "icc": false }));
    let (stays, result) = node.attach(&without_ports);
    let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let with_ports = without_ports.clone().with(&json!({ "runtimeConfig": { "portMappings": [port] } }));
    let (leaves, _) = node.attach(&with_ports);
    with_ports.call("DEL").pod(&leaves).on(node).run().done();
    // In one order, whichever was made first.
    let rules = || {
        let text = node.command("nft list ruleset");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let made = rules();
    let file = "/run/other.nft";
    fs::write(file, OF_ONE_PROTOCOL.of(&node.command("nft list ruleset"))).expect("write rules");
    node.command(&format!("nft -f {file}"));
    assert_ne!(rules(), made);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    eventually(REPAIR, "the rules are as they were", || (rules() == made).then_some(()));
    let heals = || agent.metric(r#"weft_heals_total{network="",object="rules"}"#);
    eventually(REPAIR, "the agent is done", || heals().filter(|heals| *heals > 0.0));
    without_ports.check_call(&stays, &result).on(node).run().done();
    without_ports.gc_call(&[]).on(node).run().done();
    let port = result["interfaces"][1]["name"].as_str().expect("the port of the bridge");
    assert_eq!(node.link(port), None, "nobody had its record");
    assert_eq!(heals(), Some(1.0), "once is enough");
}

/// Whoever leaves before anybody has made them anew leaves nothing there.
#[test]
fn del_and_gc_take_what_is_a_containers_out_of_them() {
    for (layout, way) in
        LAYOUTS.iter().flat_map(|layout| ["DEL", "DEL, no record", "GC"].map(|way| (layout, way)))
    {
        let host = Host::new();
        let [(web, of_web, _), (db, of_db, result)] = attach(Network::add);
        host.nft(&layout.of(&host.ruleset()));
        match way {
            "GC" => of_web.gc(&[(&db.id, "eth0")]),
            _ => {
                if way != "DEL" {
                    command("find /run/weft -path */attachments/* -type f -delete");
                }
                of_web.del(&web);
            }
        }
        let rules = host.ruleset();
        let names = |word: &str| rules.split([' ', '\t', '\n', '"', ',']).any(|part| part == word);
        assert!(!names(WEB) && names(DB), "{}: {way} left {rules}", layout.what);
        if way != "DEL, no record" {
            // What others have with its address is known by its record.
            assert!(!names("10.88.0.2"), "{}: {way} left {rules}", layout.what);
            network(10_080).add(&web);
            of_db.check(&db, &result).done();
        }
    }
}
