//! Who reaches whom after a flush of all rules, by what passes: the same as before.

use weft_tests::{Mirror, NetNs};

use super::*;

const PORT: u16 = 80;
const LOCALHOST: &str = "127.0.0.1";
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd00:88::1"];
const OF_PLAIN: [&str; 2] = ["10.99.0.1", "fd00:99::1"];

/// A container with a server.
struct Member {
    network: Network,
    pod: Pod,
    result: Value,
    mirror: Mirror,
}

impl Member {
    fn new(node: &Node, network: Network, keys: &Value, pod: Pod) -> Self {
        let network = network.with(keys);
        let result = network.add_call(&pod).on(node).run().result();
        Self { mirror: Mirror::on(&pod, PORT), network, pod, result }
    }

    fn is_whole(&self, node: &Node) -> bool {
        self.network.check_call(&self.pod, &self.result).on(node).run().succeeded()
    }
}

/// One that is open or closed: to a server, from somebody, at an address.
struct Way<'a> {
    what: &'static str,
    is_open: bool,
    server: &'a Mirror,
    from: &'a NetNs,
    to: (IpAddr, u16),
}

impl Way<'_> {
    #[track_caller]
    fn assert(&self, when: &str) {
        let is_as_expected = match self.is_open {
            true => self.server.seen(self.from, self.to).is_some(),
            false => self.server.is_closed_to(self.from, self.to),
        };
        assert!(is_as_expected, "{when}, {} to {:?}: open is {}", self.what, self.to, self.is_open);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A network whose keys forbid things, one that forbids nothing, and one that is internal.
struct Networks<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    web: Member,
    db: Member,
    /// One that a rule means by its address, and one that none means.
    by_prefix: Member,
    other: Member,
    plain: Member,
    attacker: Member,
    secret: [Member; 2],
    way_out: Mirror,
    of_host: Mirror,
    closed: Mirror,
}

impl<'a> Networks<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let node = cluster.node(0);
        let db = || json!({ "label": "role=db" });
        let rule = |from: Value| json!({ "from": from, "to": db(), "port": PORT });
        let [v4_rule, v6_rule] =
            ["10.88.0.240/28", "fd00:88::fa"].map(|prefix| rule(json!({ "prefix": prefix })));
        let [v4, v6] = [Family::V4, Family::V6].map(|family| family.neighbour(1));
        let keys = json!({
            "icc": false, "allow": [rule(json!({ "container": "web" })), v4_rule, v6_rule],
            "hostAccess": false, "egress": { "deny": [v4, v6] }, "ipMasq": true,
        });
        let shop = || Network::dual().with(&keys);
        let plain = || {
            Network::new("plain", &["10.99.0.0/24", "fd00:99::/64"])
                .with(&json!({ "bridge": "weft1", "isDefaultGateway": true, "ipMasq": true }))
        };
        let secret = || {
            Network::new("secret", &["10.77.0.0/24", "fd00:77::/64"]).with(
                &json!({ "bridge": "weft2", "isDefaultGateway": true, "ipMasq": true, "internal": true }),
            )
        };
        let publish = |port: u16| {
            let mapping = json!({ "hostPort": port, "containerPort": PORT, "protocol": "tcp" });
            json!({ "portMappings": [mapping] })
        };
        let labels = json!({ "labels": [{ "key": "role", "value": "db" }] });
        let db = json!({ "args": { "cni": labels, "weft": { "sources": [v4, v6] } }, "runtimeConfig": publish(8080) });
        let other = json!({ "args": { "weft": { "sources": ["192.0.2.0/24", "2001:db8::/64"] } }, "runtimeConfig": publish(8081) });
        let by_prefix = json!({ "runtimeConfig": { "ips": ["10.88.0.250", "fd00:88::fa"] } });
        let member = |network: Network, keys: &Value| Member::new(node, network, keys, Pod::new());
        let web = Member::new(node, shop(), &json!({}), Pod::named("web"));
        let db = member(shop(), &db);
        let attacker = member(plain(), &json!({}));
        attacker.pod.inside(|| {
            command("ip addr flush dev lo");
            fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("let 127.0.0.0/8 out");
            command("ip route add 127.0.0.1/32 via 10.99.0.1");
        });
        Self {
            cluster,
            node,
            closed: Mirror::on(&db.pod, PORT + 1),
            web,
            db,
            by_prefix: member(shop(), &by_prefix),
            other: member(shop(), &other),
            plain: member(plain(), &json!({ "runtimeConfig": publish(8082) })),
            attacker,
            secret: [(); 2].map(|()| member(secret(), &json!({}))),
            way_out: Mirror::on(cluster.router().netns(), PORT),
            of_host: Mirror::on(node.netns(), 7000),
        }
    }

    fn are_whole(&self) -> bool {
        let Self { web, db, by_prefix, other, plain, attacker, secret: [one, two], .. } = self;
        [web, db, by_prefix, other, plain, attacker, one, two].iter().all(|member| member.is_whole(self.node))
    }

    /// All that keys say of a family.
    fn ways(&self, of: usize) -> Vec<Way<'_>> {
        let family = [Family::V4, Family::V6][of];
        let (host, out) = (family.address(self.node), (family.neighbour(1), PORT));
        let at = |member: &Member| ips(&member.result)[of];
        let of_host = |gateways: [&str; 2]| (address(gateways[of]), 7000);
        let router = self.cluster.router().netns();
        let [web, by_prefix, other, plain, secret] =
            [&self.web, &self.by_prefix, &self.other, &self.plain, &self.secret[0]]
                .map(|member| member.pod.netns());
        let db = (at(&self.db), PORT);
        let own = (at(&self.secret[1]), PORT);
        [
            ("allow by name", true, &self.db.mirror, web, db),
            ("allow by prefix", true, &self.db.mirror, by_prefix, db),
            ("icc, by no rule", false, &self.db.mirror, other, db),
            ("icc, at another port", false, &self.closed, web, (db.0, PORT + 1)),
            ("isolation", false, &self.db.mirror, plain, db),
            ("egress.deny", false, &self.way_out, web, out),
            ("no egress", true, &self.way_out, plain, out),
            ("hostAccess", false, &self.of_host, web, of_host(GATEWAYS)),
            ("no hostAccess", true, &self.of_host, plain, of_host(OF_PLAIN)),
            ("sources, one of them", true, &self.db.mirror, router, (host, 8080)),
            ("sources, none of them", false, &self.other.mirror, router, (host, 8081)),
            ("internal, inside", true, &self.secret[1].mirror, secret, own),
            ("internal, out", false, &self.way_out, secret, out),
        ]
        .into_iter()
        .map(|(what, is_open, server, from, to)| Way { what, is_open, server, from, to })
        .collect()
    }

    /// 127.0.0.1 of the host, which its bridge routes for a port of it.
    fn local_ways(&self) -> [Way<'_>; 3] {
        let (host, attacker) = (self.node.netns(), self.attacker.pod.netns());
        [
            ("the host", true, &self.plain.mirror, host, 8082),
            ("a neighbour", false, &self.plain.mirror, attacker, 8082),
            ("a neighbour", false, &self.of_host, attacker, 7000),
        ]
        .map(|(what, is_open, server, from, port)| Way {
            what,
            is_open,
            server,
            from,
            to: (address(LOCALHOST), port),
        })
    }

    fn assert_ways(&self, when: &str) {
        let all = [0, 1].into_iter().flat_map(|of| self.ways(of)).chain(self.local_ways());
        all.for_each(|way| way.assert(when));
    }
}

#[test]
fn what_is_closed_and_what_is_open_is_so_again_after_a_flush() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let networks = Networks::new(&cluster);
    assert_eq!(node.sysctl("net/ipv4/conf/weft1/route_localnet"), "1");
    networks.assert_ways("at first");
    node.command("nft flush ruleset");
    eventually(REPAIR, "all is back", || networks.are_whole().then_some(()));
    networks.assert_ways("after a flush");
}
