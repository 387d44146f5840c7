//! What is deleted or altered in the kernel comes back.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// How something is damaged, and how it looks when it is whole.
struct Damage {
    /// The metric that counts the repair.
    object: &'static str,
    /// What is run on the node.
    line: String,
    /// What is looked at, and what it says when all is well.
    look: &'static str,
    says: String,
}

fn damage(object: &'static str, line: &str, look: &'static str, says: &str) -> Damage {
    Damage { object, line: line.to_owned(), look, says: says.to_owned() }
}

/// The device and its settings, deleted or altered. What is looked at is of all devices: a line about one that is not
/// there would be an error.
fn damages_of_the_device(node: &Node) -> Vec<Damage> {
    let (mac, address) = (mac(node), subnet(node).replace("-24", ""));
    let up = format!("{DEVICE}: <BROADCAST,MULTICAST,UP");
    let of_device =
        |object, line: &str, look, says: &str| damage(object, &line.replace("{}", DEVICE), look, says);
    vec![
        of_device("link", "ip link del {}", "ip link", &format!("link/ether {mac}")),
        of_device("link", "ip link set {} down", "ip link", &up),
        of_device("mac", "ip link set {} address 02:00:00:00:00:01", "ip link", &format!("link/ether {mac}")),
        of_device("mtu", "ip link set {} mtu 1300", "ip link", &format!("{up},LOWER_UP> mtu 1450")),
        of_device("address", "ip addr flush dev {}", "ip addr", &format!("inet {address}/32")),
        of_device("address", "ip addr add 192.0.2.77/32 dev {}", "ip addr", &format!("inet {address}/32")),
        damage("forwarding", "sysctl -q -w net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward", "= 1"),
        damage("table", "nft flush ruleset", "nft list ruleset", "masq-pods"),
        damage("table", "nft flush set inet weft masq-pods-v4", "nft list ruleset", "10.240.0.0/12"),
    ]
}

/// What leads to a peer, deleted or altered.
fn damages_of_the_peer(peer: &Node) -> Vec<Damage> {
    let (mac, vtep, public) = (mac(peer), subnet(peer).replace("-24", ""), peer.ipv4);
    let fdb = format!("{mac} dev {DEVICE} dst {public} self permanent");
    let neighbour = format!("{vtep} dev {DEVICE} lladdr {mac} PERMANENT");
    let route = format!("{vtep}/24 via {vtep} dev {DEVICE} ");
    let other = "lladdr 02:00:00:00:00:01 nud permanent";
    let on = |line: String| format!("{line} dev {DEVICE}");
    vec![
        damage("fdb", &on(format!("bridge fdb del {mac} dst {public}")), "bridge fdb", &fdb),
        damage("fdb", &on(format!("bridge fdb replace {mac} dst 192.0.2.77")), "bridge fdb", &fdb),
        damage("neighbour", &on("ip neigh flush nud permanent".into()), "ip neigh", &neighbour),
        damage("neighbour", &on(format!("ip neigh replace {vtep} {other}")), "ip neigh", &neighbour),
        damage("route", &on("ip route flush".into()), "ip route", &route),
        damage("route", &format!("ip route replace {vtep}/24 dev eth0"), "ip route", &route),
    ]
}

#[test]
fn whatever_is_damaged_is_whole_again_and_traffic_flows() {
    let fleet = Fleet::of(2, CONFIG, &json!({ "ipMasq": true }));
    fleet.acquainted();
    let (one, _) = fleet.pod(0);
    let (_other, address) = fleet.pod(1);
    one.assert_reaches(address);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let heals = |object: &str| {
        agent.metric(&format!(r#"weft_heals_total{{network="pods",object="{object}"}}"#)).unwrap_or(0.0)
    };
    for Damage { object, line, look, says } in
        damages_of_the_device(node).into_iter().chain(damages_of_the_peer(fleet.node(1)))
    {
        let before = heals(object);
        let began = Instant::now();
        node.command(&line);
        eventually(REPAIR, &format!("after `{line}`, `{look}` says {says}"), || {
            node.command(look).contains(&says).then_some(())
        });
        eventually(REPAIR, &format!("a repair of {object} is counted after `{line}`"), || {
            (heals(object) > before).then_some(())
        });
        eventually(REPAIR.saturating_sub(began.elapsed()), &format!("traffic flows after `{line}`"), || {
            one.ping(address).status.success().then_some(())
        });
        assert!(!node.command(&format!("ip addr show dev {DEVICE}")).contains("192.0.2.77"), "{line}");
        assert!(!node.command(&format!("bridge fdb show dev {DEVICE}")).contains("192.0.2.77"), "{line}");
    }
    eventually(PATIENCE, "it is ready again", || (agent.ask("/readyz")?.status == 200).then_some(()));
}

/// The file for flannel's consumers is an object of the agent's too, but nobody tells of its end.
#[test]
fn the_subnet_file_comes_back() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let file = node.subnet_file();
    let whole = fs::read_to_string(&file).expect("subnet.env");
    for damage in ["", "FLANNEL_SUBNET=10.0.0.1/24\n"] {
        fs::write(&file, damage).expect("damage subnet.env");
        eventually(Duration::from_secs(12), "subnet.env is whole again", || {
            (fs::read_to_string(&file).expect("subnet.env") == whole).then_some(())
        });
    }
    // Its consumers need not be root, whatever an earlier agent thought.
    let mode = || fs::metadata(&file).expect("subnet.env").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o644);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("hide subnet.env");
    eventually(Duration::from_secs(12), "subnet.env is for everybody again", || {
        (mode() == 0o644).then_some(())
    });
}

/// Waits until the agent has seen its own changes; they are the last that make it look. How often it has by then.
fn settled(agent: &Weftd) -> f64 {
    let mut last = (syncs(agent), Instant::now());
    eventually(PATIENCE, "the agent has nothing to do", || {
        let now = syncs(agent);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(400)).then_some(now)
    })
}

/// Repairs end: its own changes are no reason to look again and again.
#[test]
fn a_repair_is_no_loop() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let before = settled(agent);
    node.command(&format!("ip link del {DEVICE}"));
    let heals = || agent.metric(r#"weft_heals_total{network="pods",object="route"}"#);
    eventually(REPAIR, "the device's loss is repaired", || heals().filter(|heals| *heals > 0.0));
    let after = settled(agent);
    assert!(after - before < 8.0, "{before} {after}");
}

/// What others do on the host is none of its business, and costs it nothing.
#[test]
fn changes_of_others_are_passed_over() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let before = settled(agent);
    node.command("ip link add other type bridge");
    node.command("ip addr add 198.51.100.1/24 dev other");
    node.command("ip link set other up");
    node.command("ip route add 203.0.113.0/24 dev other");
    node.command("nft add table inet other");
    node.command("ip link del other");
    assert!(settled(agent) - before <= 1.0, "at most the timer's turn");
    assert!(node.command("nft list tables").contains("other"));
}

#[test]
fn the_mtu_follows_the_underlay() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    for (underlay, overlay) in [(1400, 1350), (1500, 1450)] {
        node.command(&format!("ip link set eth0 mtu {underlay}"));
        eventually(REPAIR, "the device has the underlay's MTU less 50", || {
            (node.link(DEVICE)?["mtu"] == overlay).then_some(())
        });
        eventually(REPAIR, "subnet.env says so", || {
            (*node.subnet_env().get("FLANNEL_MTU")? == overlay.to_string()).then_some(())
        });
    }
}

/// Without the host's address nothing can be set up: that is said, and noticed when it is over.
#[test]
fn the_hosts_address_goes_and_comes_back() {
    let fleet = Fleet::new(2);
    fleet.acquainted();
    let (one, _) = fleet.pod(0);
    let (_other, address) = fleet.pod(1);
    one.assert_reaches(address);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let ready = |expected: u16| {
        eventually(REPAIR, &format!("/readyz answers {expected}"), || {
            (agent.ask("/readyz")?.status == expected).then_some(())
        });
    };
    node.command("ip addr del 172.30.0.11/24 dev eth0");
    ready(503);
    node.command("ip addr add 172.30.0.11/24 dev eth0");
    ready(200);
    one.assert_reaches(address);
}

/// Where lease and hosts cannot be put on file, everything else goes on, and it is said.
#[test]
fn a_full_disk_is_no_end() {
    let fleet = Fleet::new(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let directory = node.data_dir().join(Weftd::NETWORK);
    // Also root cannot write below a file.
    fs::rename(&directory, node.data_dir().join("away")).expect("move a directory");
    fs::write(&directory, "").expect("put a file in its place");
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_learns(node, REPAIR, "8e:00:00:00:00:01", true);
    eventually(REPAIR, "it is not ready and names the file", || {
        let answer = agent.ask("/readyz")?;
        (answer.status == 503 && answer.body.contains("peers.json")).then_some(())
    });
    node.command(&format!("ip link del {DEVICE}"));
    eventually(REPAIR, "the device is back", || node.link(DEVICE));
    fs::remove_file(&directory).expect("remove a file");
    eventually(REPAIR, "it is ready again", || (agent.ask("/readyz")?.status == 200).then_some(()));
    let peers = fs::read_to_string(directory.join("peers.json")).expect("peers.json");
    assert!(peers.contains("10.255.7.0-24"), "{peers}");
}

/// What an earlier agent left and the store does not confirm goes at the start; what it confirms stays untouched.
#[test]
fn stale_entries_go_at_the_start() {
    let mut fleet = Fleet::new(2);
    fleet.acquainted();
    let gone = format!("{SUBNETS}10.255.7.0-24");
    fleet.etcd.put(&gone, record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_learns(fleet.node(0), REPAIR, "8e:00:00:00:00:01", true);
    fleet.agents[0].daemon().kill();
    fleet.etcd.del(&gone);
    let node = fleet.node(0);
    // Left by an agent of older times: nobody's, of no record that any file remembers.
    node.command(&format!("bridge fdb add 8e:00:00:00:00:77 dst 172.30.0.77 dev {DEVICE}"));
    node.command(&format!("ip neigh add 10.250.1.0 lladdr 8e:00:00:00:00:77 nud permanent dev {DEVICE}"));
    node.command(&format!("ip route add 10.250.1.0/24 via 10.250.1.0 dev {DEVICE} onlink"));
    let index = node.link(DEVICE).expect("the device")["ifindex"].clone();
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    let node = fleet.node(0);
    eventually(REPAIR, "stale entries are gone", || (forwarding_entries(node) == 1).then_some(()));
    for stale in ["10.250.1.0", "10.255.7.0"] {
        for line in ["ip route", "ip neigh"] {
            eventually(REPAIR, &format!("{stale} is not in `{line}`"), || {
                (!node.command(line).contains(stale)).then_some(())
            });
        }
    }
    assert_eq!(node.link(DEVICE).expect("the device")["ifindex"], index, "the device is the same");
}

/// Host ports of containers, after a firewall's reload.
/// All networks of the host are its own: no etcd, no lease.
#[test]
fn rules_come_back_on_a_host_that_shares_no_network() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let rule = json!({ "from": { "prefix": "192.0.2.0/24" }, "to": { "prefix": "10.88.0.0/24" }, "protocol": "tcp", "port": 80 });
    let network = Network::dual().with(&json!({
        "icc": false, "allow": [rule], "egress": { "deny": ["198.51.100.0/24"] },
        "runtimeConfig": { "portMappings": [mapping] },
    }));
    let (pod, result) = node.attach(&network);
    let rules = || node.command("nft list ruleset");
    let check = || {
        let with_result = network.clone().with(&json!({ "prevResult": result }));
        with_result.call("CHECK").pod(&pod).on(node).run().succeeded()
    };
    assert!(check(), "{}", rules());
    for damage in [
        "nft flush ruleset",
        "nft delete table bridge weft",
        "nft flush chain inet weft isolation-inside",
        "nft insert rule bridge weft guard accept",
    ] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
    }
    let heals = agent.metric(r#"weft_heals_total{network="",object="rules"}"#);
    assert!(heals.is_some_and(|heals| heals >= 4.0), "{heals:?}");
}

#[test]
fn flushed_host_ports_come_back() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let network = fleet.network(0).with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
    let (pod, result) = node.attach(&network);
    let check = || {
        let with_result = network.clone().with(&json!({ "prevResult": result }));
        with_result.call("CHECK").pod(&pod).on(node).run().succeeded()
    };
    assert!(check());
    for damage in ["nft flush ruleset", "nft delete chain inet weft hostport-in"] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
    }
}
