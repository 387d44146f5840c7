//! The subnet that a host leases from etcd: what stands in the store, who gets it, and what happens when etcd does not
//! answer as it ought to. Real etcd, real plugins, no agent.

mod lease {
    mod duplicates;
    mod ended;
    mod failures;
    mod identity;
    mod link;
    mod many;
    mod moved;
    mod pinned;
    mod prefixes;
    mod renumbered;
    mod siblings;
    mod status;
}

use std::fs;

use serde_json::{Value, json};
use weft_tests::{Access, Call, Cluster, CniError, Etcd, Lease, Network, Node, Pod, Reply};

const PREFIX: &str = "/coreos.com/network";
const CONFIG: &str = "/coreos.com/network/config";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const V4: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;
const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:43::/48", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#;

/// Hosts with an etcd, and a network that they lease subnets of by the IPAM plugin alone.
struct Fleet {
    cluster: Cluster,
    etcd: Etcd,
}

impl Fleet {
    fn new(hosts: u8, config: &str) -> Self {
        Self::of(Cluster::new(hosts), config)
    }

    fn of(cluster: Cluster, config: &str) -> Self {
        let etcd = cluster.etcd(1, Access::Open);
        etcd.put(CONFIG, config);
        Self { cluster, etcd }
    }

    fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    fn conf(&self, changes: &Value) -> Network {
        let ipam =
            json!({ "type": "weft-ipam", "etcd": { "endpoints": self.etcd.endpoints(), "prefix": PREFIX } });
        Network::new("pods", &[]).with(&json!({ "ipam": ipam })).with(changes)
    }

    fn ipam(&self, command: &str, node: usize, changes: &Value) -> Call {
        ipam(command, self.node(node), &self.conf(changes))
    }

    /// An ADD of the IPAM plugin for a new container.
    fn add(&self, node: usize, changes: &Value) -> Reply {
        self.ipam("ADD", node, changes).run_with_news()
    }

    #[track_caller]
    fn fails(&self, node: usize, changes: &Value, code: u64) -> CniError {
        self.add(node, changes).error_code(code)
    }

    /// The only record's key without the prefix, and its value.
    fn record(&self) -> (String, String) {
        let keys = self.keys();
        assert_eq!(keys.len(), 1, "{keys:?}");
        let value = self.etcd.get(&format!("{SUBNETS}{}", keys[0])).expect("the key was listed");
        (keys[0].clone(), value)
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.etcd.keys(SUBNETS);
        keys.iter().map(|key| key.trim_start_matches(SUBNETS).to_owned()).collect()
    }
}

fn ipam(command: &str, node: &Node, network: &Network) -> Call {
    let call = Call::new("weft-ipam", command, network.conf.to_string()).on(node);
    // The container need not live on: IPAM does nothing in it. Its namespace stays with the process of the call.
    let pod = Pod::new();
    let call = call.pod(&pod);
    std::mem::forget(pod);
    call
}

/// The addresses of a result, as text.
fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("a list");
    ips.iter().map(|ip| ip["address"].as_str().expect("an address").to_owned()).collect()
}

#[test]
fn record_and_addresses_of_an_overlay() {
    let fleet = Fleet::new(1, V4);
    let result = fleet.add(0, &json!({})).result();
    let (key, value) = fleet.record();
    let subnet = key.trim_end_matches(".0-24").to_owned();
    assert_eq!(addresses(&result), [format!("{subnet}.2/24")]);
    assert_eq!(result["ips"][0]["gateway"], format!("{subnet}.1"));
    assert_eq!(result["routes"], json!([{ "dst": "10.240.0.0/12" }]));
    let parsed: Value = serde_json::from_str(&value).expect("JSON");
    let mac = parsed["BackendData"]["VtepMAC"].as_str().expect("a MAC");
    // Locally administered, of one interface.
    assert!(mac.len() == 17 && matches!(mac.as_bytes()[1], b'2' | b'6' | b'a' | b'e'), "{mac}");
    // Byte for byte what flanneld writes, see flannel_peers.rs.
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let public = r#""PublicIP":"172.30.0.11","PublicIPv6":null"#;
    assert_eq!(value, format!(r#"{{{public},"BackendType":"vxlan","BackendData":{data}}}"#));
    let leases = fleet.etcd.leases();
    assert_eq!((leases.len(), leases[0].granted), (1, 86_400));
    let host = format!("{PREFIX}/weft/hosts/172.30.0.11");
    assert_eq!(leases[0].keys, [format!("{SUBNETS}{key}"), host.clone()]);
    // Who has the address, for a host that is given the same one.
    let holder: Value =
        serde_json::from_str(&fleet.etcd.get(&host).expect("the address's key")).expect("JSON");
    let eth0 = fleet.node(0).link("eth0").expect("the underlay");
    assert_eq!((&holder["subnet"], &holder["mac"]), (&json!(key), &eth0["address"]));
}

#[test]
fn records_of_both_families_of_ipv6_alone_and_of_plain_routes() {
    let fleet = Fleet::new(1, DUAL);
    let result = fleet.add(0, &json!({})).result();
    let (key, value) = fleet.record();
    assert!(
        key.starts_with("10.244.") && key.contains(".0-24&fd00:42:0:") && key.ends_with("::-64"),
        "{key}"
    );
    let start = r#"{"PublicIP":"172.30.0.11","PublicIPv6":"fd30::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":""#;
    assert!(
        value.starts_with(start) && value.contains(r#"},"BackendV6Data":{"VNI":1,"VtepMAC":""#),
        "{value}"
    );
    assert_eq!(addresses(&result).len(), 2);

    let fleet = Fleet::new(1, V6);
    fleet.add(0, &json!({})).result();
    let (key, value) = fleet.record();
    assert!(key.starts_with("0.0.0.0-0&fd00:43:0:") && key.ends_with("::-64"), "{key}");
    let start =
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd30::11","BackendType":"vxlan","BackendV6Data":{"VNI":1,"#;
    assert!(value.starts_with(start), "{value}");

    let fleet = Fleet::new(1, r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#);
    fleet.add(0, &json!({})).result();
    assert_eq!(fleet.record().1, r#"{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"host-gw"}"#);
}

/// Nothing is asked of etcd once the host has its subnet.
#[test]
fn containers_come_and_go_while_etcd_is_away() {
    let fleet = Fleet::new(1, V4);
    let first = addresses(&fleet.add(0, &json!({})).result());
    fleet.etcd.kill();
    // News of other hosts are due at once, and not to be had.
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    let add = fleet.ipam("ADD", 0, &due);
    let second = addresses(&add.clone().run().result());
    assert_ne!(first, second);
    fleet.ipam("STATUS", 0, &due).run().done();
    add.clone().env("CNI_COMMAND", "DEL").run().done();
}

#[test]
fn without_etcd_there_is_no_first_lease() {
    let fleet = Fleet::new(1, V4);
    fleet.etcd.kill();
    let reply = fleet.add(0, &json!({ "timeout": 4 }));
    // It has asked some ten times by then.
    assert_eq!(reply.stderr.matches("trying again").count(), 1, "{}", reply.stderr);
    reply.error_code(11).assert_names(&["172.30.0.2:2379", "refuses the connection", "etcd"]);
    fleet.ipam("STATUS", 0, &json!({})).run().error_code(50).assert_names(&["172.30.0.2:2379"]);
    assert!(!fleet.node(0).data_dir().join("pods/lease.json").exists());
}

/// A damaged file is a missing one: etcd still has the record.
#[test]
fn the_file_of_the_lease_is_a_copy() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let record = fleet.record();
    let file = fleet.node(0).data_dir().join("pods/lease.json");
    for content in ["", "{", "{}"] {
        fs::write(&file, content).expect("damage the lease's file");
        fleet.add(0, &json!({})).result();
        assert_eq!(fleet.record(), record);
    }
    fs::remove_dir_all(fleet.node(0).data_dir()).expect("remove all leases");
    fleet.add(0, &json!({})).result();
    assert_eq!(fleet.record(), record);
    assert_eq!(fleet.etcd.leases().len(), 1, "no start leaves a lease behind");
}

#[test]
fn an_add_renews_the_lease_when_half_of_it_is_over_and_looks_at_other_hosts() {
    let fleet = Fleet::new(1, V4);
    fleet.add(0, &json!({})).result();
    let directory = fleet.node(0).data_dir().join("pods");
    let lease = directory.join("lease.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&lease).expect("a lease")).expect("JSON") };
    let mut old = read();
    old["renewed"] = json!(old["renewed"].as_u64().expect("a time") - 50_000);
    fs::write(&lease, old.to_string()).expect("age the lease");
    // Nobody but an ADD will renew it here: whoever asks is told.
    let warned = || {
        let reply = fleet.ipam("STATUS", 0, &json!({})).run();
        reply.done();
        reply.stderr.contains("no weftd renews it")
    };
    assert!(warned());
    let other = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}}"#;
    fleet.etcd.put(&format!("{SUBNETS}10.250.9.0-24"), other);
    fleet.add(0, &json!({ "ipam": { "peerRefresh": 0 } })).result();
    assert!(read()["renewed"].as_u64() > old["renewed"].as_u64().map(|then| then + 40_000));
    assert!(!warned());
    let peers = fs::read_to_string(directory.join("peers.json")).expect("the other hosts");
    assert!(peers.contains("172.30.0.99"), "{peers}");
}

/// In etcd, too, and not before.
#[test]
fn etcds_lease_is_renewed_when_half_of_it_is_over() {
    let fleet = Fleet::new(1, V4);
    let short = json!({ "ipam": { "leaseTTL": 10, "peerRefresh": 0 } });
    let left = || fleet.etcd.leases()[0].remaining;
    fleet.add(0, &short).result();
    // Times are whole seconds here and there.
    for (limit, renewed) in [(8, false), (3, true)] {
        weft_tests::eventually(std::time::Duration::from_secs(10), "time goes by", || {
            (left() <= limit).then_some(())
        });
        let reply = fleet.add(0, &short);
        reply.result();
        assert_eq!(left() > limit, renewed, "{limit} {}", reply.stderr);
    }
    assert_eq!((fleet.keys().len(), fleet.etcd.leases().len()), (1, 1));
}

/// Also where the record hangs on a lease of flanneld's. A lease that lasts as long as it is to is kept, whosever it is.
#[test]
fn a_record_goes_on_with_a_lease_as_long_as_configured() {
    let fleet = Fleet::new(1, V4);
    let lasting = |ttl: u32| json!({ "ipam": { "leaseTTL": ttl, "peerRefresh": 0 } });
    fleet.add(0, &lasting(60)).result();
    let record = fleet.record();
    let key = format!("{SUBNETS}{}", record.0);
    let leases_of_record = || {
        let leases = fleet.etcd.leases().into_iter().filter(|lease| lease.keys.contains(&key));
        leases.collect::<Vec<Lease>>()
    };
    let on_file = || {
        let file = fleet.node(0).data_dir().join("pods/lease.json");
        serde_json::from_slice::<Value>(&fs::read(file).expect("a lease")).expect("JSON")["ttl"].clone()
    };
    for ttl in [600, 30, 60] {
        fleet.add(0, &lasting(ttl)).result();
        assert_eq!(fleet.record(), record);
        let leases = leases_of_record();
        assert_eq!((leases.len(), leases[0].granted), (1, u64::from(ttl)));
        assert_eq!(fleet.etcd.leases().len(), 1, "the former one has ended");
        assert_eq!(on_file(), json!(ttl));
        fleet.add(0, &lasting(ttl)).result();
        assert_eq!(leases_of_record()[0].id, leases[0].id, "and stays");
    }
    for theirs in [500, 60] {
        let lease = fleet.etcd.grant(theirs);
        // What somebody else has on it stays.
        fleet.etcd.put_leased("/else", "x", &lease);
        fleet.etcd.put_leased(&key, &record.1, &lease);
        fs::remove_file(fleet.node(0).data_dir().join("pods/lease.json")).expect("forget the lease");
        fleet.add(0, &lasting(60)).result();
        let now = leases_of_record();
        assert_eq!((now[0].granted, now[0].id == lease), (60, theirs == 60));
        assert_eq!(on_file(), json!(60));
        assert_eq!(fleet.etcd.get("/else").as_deref(), Some("x"));
    }
}

/// What is on file is enough for a container, and what is new is written when that can be done again.
#[test]
fn a_data_directory_that_takes_nothing_does_not_fail_a_later_add() {
    let fleet = Fleet::new(2, V4);
    let due = json!({ "ipam": { "peerRefresh": 0 } });
    let first = addresses(&fleet.add(0, &due).result());
    fleet.add(1, &due).result();
    let node = fleet.node(0);
    let directory = node.data_dir();
    let path = directory.display();
    let peers = || fs::read_to_string(directory.join("pods/peers.json")).expect("peers.json");
    node.command(&format!("mount --bind {path} {path}"));
    node.command(&format!("mount -o remount,bind,ro {path}"));
    let reply = fleet.add(0, &due);
    assert!(reply.stderr.contains("peers.json: Read-only"), "{}", reply.stderr);
    assert_eq!(addresses(&reply.result()), [first[0].replace(".2/", ".3/")]);
    assert!(!peers().contains("172.30.0.12"), "{}", peers());
    node.command(&format!("umount {path}"));
    fleet.add(0, &due).result();
    assert!(peers().contains("172.30.0.12"), "{}", peers());
}

/// Two networks of one etcd, and of one host.
#[test]
fn several_networks_one_prefix_each() {
    let fleet = Fleet::new(1, V4);
    fleet.etcd.put("/other/config", r#"{"Network": "10.96.0.0/12", "Backend": {"Type": "vxlan", "VNI": 2}}"#);
    let one = addresses(&fleet.add(0, &json!({})).result());
    let other = json!({ "name": "other", "ipam": { "etcd": { "prefix": "/other" } } });
    let two = addresses(&fleet.add(0, &other).result());
    assert!(one[0].starts_with("10.2") && !two[0].starts_with("10.2"), "{one:?} {two:?}");
    assert_eq!((fleet.keys().len(), fleet.etcd.keys("/other/subnets/").len()), (1, 1));
}

#[test]
fn what_local_ranges_are_given_by_contradicts_etcd() {
    let fleet = Fleet::new(1, V4);
    for (changes, part) in [
        (json!({ "subnet": "10.88.0.0/16" }), "ipam.subnet"),
        (json!({ "ranges": [[{ "subnet": "10.88.0.0/16" }]] }), "ipam.ranges"),
    ] {
        fleet.fails(0, &json!({ "ipam": changes }), 7).assert_names(&[part, "ipam.etcd"]);
    }
    let local = json!({ "ipam": { "etcd": null, "iface": "eth0", "subnet": "10.88.0.0/16" } });
    fleet.fails(0, &local, 2).assert_names(&["iface", "etcd"]);
}

/// Secrets need not be in the network's configuration, which everybody may read.
#[test]
fn how_etcd_is_reached_is_told_by_environment_or_file() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Password);
    etcd.put(CONFIG, V4);
    let node = cluster.node(0);
    fs::create_dir_all(node.directory()).expect("make the node's directory");
    let [file, password] = ["etcd.json", "password"].map(|name| node.directory().join(name));
    fs::write(&password, Etcd::PASSWORD).expect("write a password");
    let network = Network::new("pods", &[]).with(&json!({ "ipam": { "type": "weft-ipam", "etcd": {} } }));
    let call = || ipam("ADD", node, &network).env("WEFT_ETCD_FILE", &file);
    call().run().error_code(7).assert_names(&["endpoints", "WEFT_ETCD_ENDPOINTS"]);
    let login =
        json!({ "endpoints": ["http://192.0.2.1:1"], "username": Etcd::USER, "passwordFile": password });
    fs::write(&file, login.to_string()).expect("write the file");
    let call = || call().env("WEFT_ETCD_ENDPOINTS", etcd.endpoints().join(","));
    // Who logs in is in the file, and where in the environment, which comes before it.
    let first = addresses(&call().run().result());
    assert_eq!(etcd.keys(SUBNETS).len(), 1);
    fs::write(&file, "{").expect("damage the file");
    call().run().error().assert_names(&[file.to_str().expect("a path")]);
    assert!(first[0].ends_with(".2/24"), "{first:?}");
}
