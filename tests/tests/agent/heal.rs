//! What is deleted or altered in the kernel comes back.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use super::*;

mod altered;
mod plain_routes;

/// How something is damaged, and how it looks when it is whole.
pub(super) struct Damage {
    /// The metric that counts the repair.
    object: &'static str,
    /// What is run on the node.
    line: String,
    /// What is looked at, and what one line of it says when all is well. What is looked at is of all devices: a line
    /// about one that is not there would be an error.
    look: String,
    says: Vec<String>,
}

fn damage<T: Into<String>>(
    object: &'static str,
    line: &str,
    look: &str,
    says: impl IntoIterator<Item = T>,
) -> Damage {
    let says = says.into_iter().map(Into::into).collect();
    Damage { object, line: line.to_owned(), look: look.to_owned(), says }
}

/// An address that is nobody's.
fn foreign(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.0.2.77",
        Family::V6 => "2001:db8::77",
    }
}

/// A family's device and settings, deleted or altered.
pub(super) fn damages_of_the_device(node: &Node, family: Family) -> Vec<Damage> {
    let (device, alone, foreign) = (family.device(), family.alone(), foreign(family));
    let (mac, address) = (family.mac(node), family.subnet(node).network());
    let name = format!("{device}: ");
    let ether = format!("link/ether {mac}");
    let mtu = format!("mtu {} ", 1500 - family.overhead());
    let address = [format!("{device} "), format!(" {address}/{alone} ")];
    let set = |what: &str| format!("ip link set {device} {what}");
    let (forwarding, set_of_prefixes, network) = match family {
        Family::V4 => ("net.ipv4.ip_forward", "masq-pods-v4", "10.240.0.0/12"),
        Family::V6 => ("net.ipv6.conf.all.forwarding", "masq-pods-v6", "fd00:4"),
    };
    let off = |setting: &str| {
        damage("forwarding", &format!("sysctl -q -w {setting}=0"), &format!("sysctl {setting}"), ["= 1"])
    };
    vec![
        damage("link", &format!("ip link del {device}"), "ip -o link", [&name, &ether]),
        damage("link", &set("down"), "ip -o link", [&name, "<BROADCAST,MULTICAST,UP,LOWER_UP>"]),
        damage("mac", &set("address 02:00:00:00:00:01"), "ip -o link", [&name, &ether]),
        damage("mtu", &set("mtu 1300"), "ip -o link", [&name, &mtu]),
        damage("address", &format!("ip addr flush dev {device}"), "ip -o addr", address.clone()),
        damage("address", &format!("ip addr add {foreign}/{alone} dev {device}"), "ip -o addr", address),
        off(forwarding),
        off(&family.forwarding(device)),
        off(&family.forwarding("weft0")),
        damage("table", "nft flush ruleset", "nft list ruleset", ["chain masq-pods"]),
        damage("table", &format!("nft flush set inet weft {set_of_prefixes}"), "nft list ruleset", [network]),
    ]
}

/// What leads to a peer, deleted or altered.
fn damages_of_the_peer(peer: &Node, family: Family) -> Vec<Damage> {
    let (device, flag, foreign) = (family.device(), family.flag(), foreign(family));
    let (mac, subnet, public) = (family.mac(peer), family.subnet(peer), family.address(peer));
    let vtep = subnet.network();
    let (ip, fdb) = (format!("ip {flag}"), "bridge fdb");
    let (neigh, route) = (format!("{ip} neigh"), format!("{ip} route"));
    let forwards = [format!("{mac} dev {device} dst {public} self permanent")];
    let neighbour = [format!("{vtep} dev {device} lladdr {mac} PERMANENT")];
    let routes = [format!("{subnet} via {vtep} dev {device} ")];
    let other = "lladdr 02:00:00:00:00:01 nud permanent";
    let on = |line: String| format!("{line} dev {device}");
    vec![
        damage("fdb", &on(format!("bridge fdb del {mac} dst {public}")), fdb, forwards.clone()),
        damage("fdb", &on(format!("bridge fdb replace {mac} dst {foreign}")), fdb, forwards),
        damage("neighbour", &on(format!("{neigh} flush nud permanent")), &neigh, neighbour.clone()),
        damage("neighbour", &on(format!("{neigh} replace {vtep} {other}")), &neigh, neighbour),
        damage("route", &on(format!("{route} flush")), &route, routes.clone()),
        damage("route", &format!("{route} replace {subnet} dev eth0"), &route, routes),
    ]
}

/// Waits until a container is answered; a request that was lost costs no more than a repair may take.
#[track_caller]
pub(super) fn reaches_in(limit: Duration, from: &Pod, to: IpAddr, after: &str) {
    eventually(limit, &format!("traffic flows after `{after}`"), || {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c", "1", "-W", "0.1", &to.to_string()]).stdout(Stdio::null());
        from.inside(|| ping.status().expect("run ping")).success().then_some(())
    });
}

/// Damages something of host 0: it is repaired in time and counted, and traffic flows.
#[track_caller]
pub(super) fn assert_repaired(
    fleet: &Fleet,
    Damage { object, line, look, says }: &Damage,
    from: &Pod,
    to: IpAddr,
) {
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let heals =
        || agent.metric(&format!(r#"weft_heals_total{{network="pods",object="{object}"}}"#)).unwrap_or(0.0);
    let (before, began) = (heals(), Instant::now());
    node.command(line);
    eventually(REPAIR, &format!("after `{line}`, `{look}` says {says:?}"), || {
        let whole = |text: &str| says.iter().all(|part| text.contains(part));
        node.command(look).lines().any(whole).then_some(())
    });
    reaches_in(REPAIR.saturating_sub(began.elapsed()).max(Duration::from_millis(500)), from, to, line);
    eventually(PATIENCE, &format!("a repair of {object} is counted after `{line}`"), || {
        (heals() > before).then_some(())
    });
}

/// Damages everything of one network, piece by piece.
fn whatever_is_damaged_is_whole_again(config: &str) {
    let fleet = Fleet::of(2, config, &json!({ "ipMasq": true }));
    fleet.acquainted();
    let (one, _) = fleet.pod_of_all(0);
    let (_other, addresses) = fleet.pod_of_all(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    for (family, address) in fleet.families.iter().copied().zip(addresses) {
        one.assert_reaches(address);
        let (device, foreign) = (family.device(), foreign(family));
        for damage in
            damages_of_the_device(node, family).into_iter().chain(damages_of_the_peer(fleet.node(1), family))
        {
            assert_repaired(&fleet, &damage, &one, address);
            for look in ["ip addr show", "bridge fdb show"] {
                let text = node.command(&format!("{look} dev {device}"));
                assert!(!text.contains(foreign), "{}: {text}", damage.line);
            }
        }
    }
    agent.ready();
}

#[test]
fn ipv4_is_whole_again() {
    whatever_is_damaged_is_whole_again(CONFIG);
}

#[test]
fn ipv6_alone_is_whole_again() {
    whatever_is_damaged_is_whole_again(V6);
}

#[test]
fn both_families_are_whole_again() {
    whatever_is_damaged_is_whole_again(DUAL);
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
        // It looks within a second after a change.
        (last.1.elapsed() > Duration::from_millis(1500)).then_some(now)
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
    let fleet = Fleet::of(1, DUAL, &json!({}));
    let node = fleet.node(0);
    for underlay in [1400, 1500] {
        node.command(&format!("ip link set eth0 mtu {underlay}"));
        for family in &fleet.families {
            eventually(REPAIR, "the device has the underlay's MTU less what it adds", || {
                (node.link(family.device())?["mtu"] == underlay - family.overhead()).then_some(())
            });
        }
        // What both families' packets have room for.
        let least = (underlay - Family::V6.overhead()).to_string();
        eventually(REPAIR, "subnet.env says so", || {
            (*node.subnet_env().get("FLANNEL_MTU")? == least).then_some(())
        });
    }
}

/// Without the host's address nothing can be set up: that is said, and noticed when it is over.
#[test]
fn the_hosts_address_goes_and_comes_back() {
    let fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    let (one, _) = fleet.pod_of_all(0);
    let (_other, addresses) = fleet.pod_of_all(1);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let ready = |expected: u16| {
        eventually(REPAIR, &format!("/readyz answers {expected}"), || {
            (agent.ask("/readyz")?.status == expected).then_some(())
        });
    };
    for (family, to) in fleet.families.iter().zip(addresses) {
        one.assert_reaches(to);
        let address = match family {
            Family::V4 => format!("{}/24", node.ipv4),
            Family::V6 => format!("{}/64", node.ipv6),
        };
        node.command(&format!("ip addr del {address} dev eth0"));
        ready(503);
        node.command(&format!("ip addr add {address} dev eth0"));
        ready(200);
        reaches_in(REPAIR, &one, to, "the address is back");
    }
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
    let mut fleet = Fleet::of(2, DUAL, &json!({}));
    fleet.acquainted();
    fleet.agents[0].daemon().kill();
    let node = fleet.node(0);
    // Left by an agent of older times: nobody's, of no record that any file remembers.
    let stale = [(Family::V4, "10.250.1.0", 24), (Family::V6, "fd00:42:0:77::", 64)];
    for (family, vtep, prefix) in stale {
        let device = family.device();
        let public = family.neighbour(77);
        for line in [
            format!("bridge fdb add 8e:00:00:00:00:77 dst {public} dev {device}"),
            format!("ip neigh add {vtep} lladdr 8e:00:00:00:00:77 nud permanent dev {device}"),
            format!("ip route add {vtep}/{prefix} via {vtep} dev {device} onlink"),
        ] {
            node.command(&line);
        }
    }
    // And a host that has gone meanwhile, which the file remembers.
    let gone = fleet.node(1);
    let gone = [Family::V4, Family::V6].map(|family| (family, family.subnet(gone).network().to_string()));
    let index = |family: Family| node.link(family.device()).expect("the device")["ifindex"].clone();
    let before = [Family::V4, Family::V6].map(index);
    fleet.agents[1].daemon().kill();
    let other = fleet.etcd.keys(SUBNETS).into_iter().find(|key| key.contains(&gone[0].1));
    fleet.etcd.del(&other.expect("the other host's key"));
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    let node = fleet.node(0);
    let stale = stale.map(|(family, vtep, _)| (family, vtep.to_owned()));
    for (family, vtep) in stale.into_iter().chain(gone) {
        let device = family.device();
        eventually(REPAIR, "stale entries are gone", || {
            (forwarding_entries(node, device) == 0).then_some(())
        });
        for line in ["route", "neigh"].map(|object| format!("ip {} {object}", family.flag())) {
            eventually(REPAIR, &format!("{vtep} is not in `{line}`"), || {
                (!node.command(&line).contains(&vtep)).then_some(())
            });
        }
    }
    let index = |family: Family| node.link(family.device()).expect("the device")["ifindex"].clone();
    assert_eq!([Family::V4, Family::V6].map(index), before, "the devices are the same");
}

/// All networks of the host are its own: no etcd, no lease.
#[test]
fn rules_come_back_on_a_host_that_shares_no_network() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let agent = Weftd::with(node, &json!({ "networks": [] }));
    agent.ready();
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let rule = json!({ "from": { "prefix": "10.88.0.240/28" }, "to": { "prefix": "10.88.0.0/24" }, "protocol": "tcp", "port": 80 });
    let network = Network::dual().with(&json!({
        "icc": false, "allow": [rule], "egress": { "deny": ["198.51.100.0/24"] }, "ipMasq": true,
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
        "nft delete chain inet weft masq-dual",
        "nft flush chain inet weft masq-dual",
        "nft flush set inet weft masq-dual-v6",
        "nft add table inet weft { flags dormant; }",
        "nft add table bridge weft { flags dormant; }",
    ] {
        node.command(damage);
        eventually(REPAIR, damage, || check().then_some(()));
    }
    let heals = || agent.metric(r#"weft_heals_total{network="",object="rules"}"#);
    eventually(REPAIR, "all are counted", || heals().filter(|heals| *heals >= 9.0));
}

/// Host ports of containers, after a firewall's reload.
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
