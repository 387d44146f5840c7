//! Records that are no host's, or none that can be reached: each is told, and harms nobody.

use super::*;

/// Records that are no host's are counted and named once, and harm nobody.
#[test]
fn records_that_are_no_hosts_are_rejected() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let own = subnet(node);
    let good = ("10.255.7.0-24", record("172.30.0.99", "8e:00:00:00:00:01"));
    let bad = [
        ("10.255.8.0-24", "nonsense".to_owned()),
        ("10.255.9.0-24", record("0.0.0.0", "8e:00:00:00:00:02")),
        ("10.255.10.0-24", record("172.30.0.98", "8e:00:00:00:00")),
        ("10.255.12.0-24", "{\"BackendType\": \"x\\n2026-01-01 ERROR forged\"}".to_owned()),
        ("not-a-subnet", record("172.30.0.97", "8e:00:00:00:00:03")),
        ("192.0.2.0-24", record("172.30.0.96", "8e:00:00:00:00:04")),
        // Of another size, with the good one's and many other subnets in it; and one that does not begin where one may.
        ("10.255.0.0-16", record("172.30.0.92", "8e:00:00:00:00:08")),
        ("10.255.7.128-24", record("172.30.0.91", "8e:00:00:00:00:09")),
        ("10.255.13.0-24", record("172.30.0.11", "8e:00:00:00:00:06")),
        // Before the good one, in the order of keys, but later.
        ("10.250.70.0-24", record("172.30.0.94", "8e:00:00:00:00:01")),
    ];
    for (key, value) in [&good].into_iter().chain(&bad) {
        fleet.etcd.put(&format!("{SUBNETS}{key}"), value);
    }
    // What is no text, at a place where nobody looks.
    let (start, end) = (r#"{"Note":""#, record("172.30.0.90", "8e:00:00:00:00:0a").replacen('{', r#"","#, 1));
    let no_text = [start.as_bytes(), b"\xff", end.as_bytes()].concat();
    fleet.etcd.put(&format!("{SUBNETS}10.255.14.0-24"), no_text);
    // Two keys that share a subnet: this host's own.
    let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:07"}"#;
    let both = format!(
        r#"{{"PublicIP":"172.30.0.93","PublicIPv6":"fd30::93","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
    );
    fleet.etcd.put(&format!("{SUBNETS}{own}&fd00:42:0:1::-64"), both);
    assert_learns(node, REPAIR, "8e:00:00:00:00:01 dst 172.30.0.99", true);
    assert_eq!(forwarding_entries(node, DEVICE), 1);
    eventually(REPAIR, "twelve records are rejected", || {
        let text = fleet.agents[0].ask("/metrics")?.body;
        let rejected = text
            .lines()
            .filter(|line| line.starts_with("weft_peers{") && !line.contains(r#"state="valid""#))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap());
        (rejected.sum::<f64>() == 12.0).then_some(())
    });
    assert_eq!(subnet(node), own);
    // Later records do not make it say so again.
    fleet.etcd.put(&format!("{SUBNETS}10.255.11.0-24"), record("172.30.0.95", "8e:00:00:00:00:05"));
    assert_learns(node, REPAIR, "8e:00:00:00:00:05", true);
    let log = fleet.agents[0].daemon().log();
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "{log}");
    assert!(log.contains("forged"), "{log}");
    for (key, _) in &bad {
        assert_eq!(log.lines().filter(|line| line.contains(key)).count(), 1, "{key}: {log}");
    }
}

/// Whoever takes another host's VTEP by a record of its own gets nothing, wherever its key stands, and neither does that host lose
/// anything by its renewals, which put its record again.
#[test]
fn who_comes_later_takes_nothing_from_who_is_there() {
    let mut fleet = Fleet::new(1);
    let lease = fleet.etcd.grant(600);
    let (key, value) = (format!("{SUBNETS}10.250.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    let assert_stays = |fleet: &Fleet, after: &str| {
        let node = fleet.node(0);
        assert_learns(node, REPAIR, "8e:00:00:00:00:02", true);
        let entries = node.command(&format!("bridge fdb show dev {DEVICE}"));
        assert!(
            entries.contains("8e:00:00:00:00:01 dst 172.30.0.99") && !entries.contains("172.30.0.94"),
            "{after}: {entries}"
        );
    };
    fleet.etcd.put(&key, &value);
    assert_learns(fleet.node(0), REPAIR, "8e:00:00:00:00:01 dst 172.30.0.99", true);
    for newcomer in ["10.249.1.0-24", "10.251.1.0-24"] {
        fleet.etcd.put(&format!("{SUBNETS}{newcomer}"), record("172.30.0.94", "8e:00:00:00:00:01"));
    }
    // Seen after them.
    fleet.etcd.put(&format!("{SUBNETS}10.252.1.0-24"), record("172.30.0.98", "8e:00:00:00:00:02"));
    assert_stays(&fleet, "a newcomer");
    // As flanneld renews.
    fleet.etcd.put_leased(&key, &value, &lease);
    fleet.etcd.put(&format!("{SUBNETS}10.252.2.0-24"), record("172.30.0.97", "8e:00:00:00:00:03"));
    assert_learns(fleet.node(0), REPAIR, "8e:00:00:00:00:03", true);
    assert_stays(&fleet, "a renewal");
    fleet.agents[0].daemon().stop();
    fleet.agents[0] = Weftd::up(fleet.node(0), &fleet.etcd);
    assert_stays(&fleet, "a start");
    // It goes, and whoever comes next in time has it.
    fleet.etcd.del(&key);
    assert_learns(fleet.node(0), REPAIR, "8e:00:00:00:00:01 dst 172.30.0.94", true);
}

/// Records to whose addresses no route can lead, before and after a good one.
#[test]
fn addresses_that_the_kernel_refuses_keep_no_other_host_out() {
    let fleet = Fleet::of(1, r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#, &json!({}));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    node.command("ip addr add 172.30.0.66/24 dev eth0");
    // Broadcast on an address of the interface that is not the underlay's: only the kernel knows.
    node.command("ip addr add 172.30.0.129/26 broadcast 172.30.0.191 dev eth0");
    let record =
        |public: &str| format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    let bad = [
        ("10.255.1.0-24", "172.30.0.255", "a broadcast address"),
        ("10.255.2.0-24", "172.30.0.0", "the address of the link"),
        ("10.255.3.0-24", "172.30.0.66", "another address of this host"),
        ("10.255.4.0-24", "172.30.0.191", "refused by the kernel"),
        ("10.255.70.0-24", "172.31.0.99", "not on the link"),
    ];
    let good = [("10.255.5.0-24", "172.30.0.98"), ("10.255.7.0-24", "172.30.0.99")];
    for (key, public) in
        bad.iter().map(|(key, public, _)| (key, public)).chain(good.iter().map(|(k, p)| (k, p)))
    {
        fleet.etcd.put(&format!("{SUBNETS}{key}"), record(public));
    }
    for (key, public) in good {
        let route = format!("{} via {public} dev eth0", key.replace('-', "/"));
        eventually(REPAIR, &route, || node.command("ip route show proto 119").contains(&route).then_some(()));
    }
    assert_eq!(node.command("ip route show proto 119").lines().count(), good.len());
    let told = access::status(node);
    for (state, hosts) in
        [("not reached, a broadcast address", 1), ("not reached, not on the link", 1), ("followed", 3)]
    {
        assert_eq!(told.matches(state).count(), hosts, "{told}");
    }
    assert_eq!(agent.ask("/readyz").expect("an answer").status, 200);
    // What it looks at again and again is said once, and is no repair. Looks may keep a distance of a second where they cost much.
    let looks = syncs(agent);
    eventually(PATIENCE, "it looks again", || {
        node.command("ip route flush proto 119");
        (syncs(agent) > looks + 2.0).then_some(())
    });
    assert_eq!(agent.metric(r#"weft_peers{network="pods",state="valid"}"#), Some(2.0));
    let log = agent.daemon().log();
    for (key, _, kind) in bad {
        let counted = agent.metric(&format!(r#"weft_peers{{network="pods",state="{kind}"}}"#));
        assert_eq!(counted, Some(1.0), "{kind}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(key)).collect();
        assert!(lines.len() == 1 && lines[0].contains(kind), "{key}: {log}");
    }
    agent.ready();
}

/// Also where nothing could be looked at meanwhile.
#[test]
fn what_is_wrong_with_a_record_is_said_once() {
    let fleet = Fleet::of(1, r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#, &json!({}));
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    let record = r#"{"PublicIP":"172.31.0.99","PublicIPv6":null,"BackendType":"host-gw"}"#;
    fleet.etcd.put(&format!("{SUBNETS}10.255.70.0-24"), record);
    let counted = || agent.metric(r#"weft_peers{network="pods",state="not on the link"}"#);
    let ready = |status: u16| {
        let answers = || (agent.ask("/readyz")?.status == status).then_some(());
        eventually(REPAIR, &format!("/readyz answers {status}"), answers);
    };
    eventually(REPAIR, "it is counted", || (counted()? == 1.0).then_some(()));
    for _ in 0..2 {
        node.command("ip addr del 172.30.0.11/24 dev eth0");
        ready(503);
        assert_eq!(counted(), Some(1.0), "nothing better is known");
        node.command("ip addr add 172.30.0.11/24 dev eth0");
        ready(200);
    }
    let log = agent.daemon().log();
    assert_eq!(log.lines().filter(|line| line.contains("10.255.70.0-24")).count(), 1, "{log}");
    // Unless it goes and comes again.
    fleet.etcd.del(&format!("{SUBNETS}10.255.70.0-24"));
    eventually(REPAIR, "it is not counted any more", || {
        counted().is_none_or(|count| count == 0.0).then_some(())
    });
    fleet.etcd.put(&format!("{SUBNETS}10.255.70.0-24"), record);
    eventually(REPAIR, "it is said again", || {
        (agent.daemon().log().matches("\"10.255.70.0-24\"").count() == 2).then_some(())
    });
}

/// A host that comes from flanneld, whose record shares a subnet of IPv6 with an older one: it has no lease of which it could be said
/// that another host has it. Either remedy helps.
#[test]
fn a_host_without_a_lease_says_that_it_gives_way_and_to_whom() {
    let (elder, own) = ("10.244.1.0-24&fd00:42:0:31::-64", "10.244.6.0-24&fd00:42:0:31::-64");
    let record = |host: u8| {
        let data = |family: u8| format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:{family:02x}:{host:02x}"}}"#);
        format!(
            r#"{{"PublicIP":"172.30.0.{host}","PublicIPv6":"fd30::{host}","BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#,
            data(4),
            data(6)
        )
    };
    let env = "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.244.6.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48\n\
               FLANNEL_IPV6_SUBNET=fd00:42:0:31::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";
    for goes in [true, false] {
        let cluster = Cluster::new(1);
        let (etcd, node) = (cluster.etcd(1, Access::Open), cluster.node(0));
        etcd.put("/coreos.com/network/config", DUAL);
        etcd.put(&format!("{SUBNETS}{elder}"), record(99));
        etcd.put_leased(&format!("{SUBNETS}{own}"), record(11), &etcd.grant(86_400));
        fs::create_dir_all(node.directory()).expect("make the node's directory");
        fs::write(node.subnet_file(), env).expect("write flanneld's file");
        let agent = Weftd::start(node, &etcd, &json!({}));
        let parts = [own, "172.30.0.99 and fd30::99", &format!("etcdctl del {SUBNETS}{elder}"), "subnet.env"];
        eventually(PATIENCE, "readiness is false and names the owner", || {
            let answer = agent.ask("/readyz")?;
            (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
        });
        let said = agent.daemon().log().lines().filter(|line| line.contains(parts[2])).count();
        assert_eq!(said, 1, "{}", agent.daemon().log());
        if goes {
            etcd.del(&format!("{SUBNETS}{elder}"));
            agent.ready();
        } else {
            agent.daemon().stop();
            fs::remove_file(node.subnet_file()).expect("remove subnet.env");
            Weftd::up(node, &etcd);
        }
        assert_eq!(subnet(node) == "10.244.6.0-24", goes);
    }
}

/// Keys of anybody, as many as a store may have: the others are followed all the same, and the log stays readable.
#[test]
fn ten_thousand_keys_that_do_not_belong_there() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let keys: Vec<String> = (0..10_000).map(|number| format!("{SUBNETS}10.240.{number}-nonsense")).collect();
    for part in keys.chunks(100) {
        fleet.etcd.put_all(part.iter().map(|key| (key.as_str(), "{]")));
    }
    fleet.etcd.put(&format!("{SUBNETS}10.255.7.0-24"), record("172.30.0.99", "8e:00:00:00:00:01"));
    assert_learns(node, PATIENCE, "8e:00:00:00:00:01 dst 172.30.0.99", true);
    let lines = fleet.agents[0].daemon().log().lines().count();
    assert!(lines < 40, "{lines} lines");
    fleet.agents[0].ready();
}

/// Whatever gives the addresses: nobody would reach a container that came now.
#[test]
fn the_cni_type_flannel_attaches_nothing_in_a_subnet_that_another_host_has() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let key = format!("{SUBNETS}{}", subnet(node));
    let conf = |ipam: &str, data_dir: Value| {
        let books = node.directory().join("books");
        json!({
            "cniVersion": "1.1.0", "name": Weftd::NETWORK, "type": "flannel", "subnetFile": node.subnet_file(),
            "dataDir": data_dir, "delegate": { "isDefaultGateway": true, "bridge": "cni0" },
            "ipam": { "type": ipam, "dataDir": books },
        })
    };
    let confs = [
        conf("weft-ipam", Value::Null),
        conf("host-local", Value::Null),
        conf("weft-ipam", json!(node.directory().join("flannel"))),
    ];
    let path = std::env::join_paths([weft_tests::dist(), weft_tests::peers()]).expect("a path");
    let call = |command: &str, conf: &Value| {
        Call::any("flannel", command, conf.to_string()).pod(&Pod::new()).on(node).env("CNI_PATH", &path).run()
    };
    fleet.etcd.put(&key, record("172.30.0.99", "8e:00:00:00:00:01"));
    eventually(PATIENCE, "the agent has seen it", || {
        fleet.agents[0].ask("/readyz")?.body.contains("172.30.0.99").then_some(())
    });
    for conf in &confs {
        call("ADD", conf).error_code(103).assert_names(&["172.30.0.99", "etcdctl del", "weftctl leave"]);
        call("STATUS", conf).error_code(51).assert_names(&["172.30.0.99"]);
    }
    fleet.etcd.del(&key);
    fleet.agents[0].ready();
    for conf in &confs {
        call("STATUS", conf).done();
    }
}
