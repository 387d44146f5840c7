//! etcd that does not answer as it ought to: each way of it has a message of its own.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::{Access, Cluster, Etcd, Network, Reply, eventually};

use super::super::{CONFIG, PREFIX, SUBNETS, V4, ipam};
use super::identity::record;

/// One host beside an etcd of some kind.
struct Guarded {
    cluster: Cluster,
    etcd: Etcd,
}

impl Guarded {
    fn new(members: u8, access: Access) -> Self {
        let cluster = Cluster::new(1);
        let etcd = cluster.etcd(members, access);
        etcd.put(CONFIG, V4);
        Self { cluster, etcd }
    }

    fn network(&self, etcd: &Value) -> Network {
        let ipam =
            json!({ "type": "weft-ipam", "etcd": { "endpoints": self.etcd.endpoints(), "prefix": PREFIX } });
        Network::new("pods", &[])
            .with(&json!({ "timeout": 20, "ipam": ipam }))
            .with(&json!({ "ipam": { "etcd": etcd } }))
    }

    fn tls(&self) -> Value {
        let client = self.etcd.tls().client();
        json!({ "caFile": self.etcd.tls().ca(), "certFile": client.certificate, "keyFile": client.key })
    }

    #[track_caller]
    fn works(&self, etcd: &Value) {
        ipam("ADD", self.cluster.node(0), &self.network(etcd)).run().result();
    }

    #[track_caller]
    fn fails(&self, etcd: &Value, code: u64, parts: &[&str]) {
        let error = ipam("ADD", self.cluster.node(0), &self.network(etcd)).run().error_code(code);
        error.assert_names(parts);
        assert!(self.etcd.keys(SUBNETS).is_empty());
    }

    /// Takes what was leased back, for the next case.
    fn forget(&self) {
        for key in self.etcd.keys(SUBNETS) {
            self.etcd.del(&key);
        }
        for directory in [self.cluster.node(0).data_dir(), self.cluster.node(0).state_dir()] {
            fs::remove_dir_all(directory).expect("forget what is on file");
        }
    }
}

#[test]
fn certificates() {
    let guarded = Guarded::new(1, Access::Tls);
    let good = guarded.tls();
    guarded.works(&good);
    guarded.forget();
    let with = |key: &str, value: Value| {
        let mut etcd = good.clone();
        etcd[key] = value;
        etcd
    };
    guarded.fails(
        &with("caFile", json!(guarded.etcd.tls().foreign_ca())),
        11,
        &["not from the CA", "caFile"],
    );
    guarded.fails(&with("caFile", json!("/nowhere.crt")), 7, &["caFile", "/nowhere.crt"]);
    guarded.fails(&json!({ "caFile": good["caFile"] }), 11, &["certFile"]);
    let foreign = guarded.etcd.tls().foreign_client();
    let foreign =
        json!({ "caFile": good["caFile"], "certFile": foreign.certificate, "keyFile": foreign.key });
    guarded.fails(&foreign, 11, &["does not accept this host's certificate", "certFile"]);
    let expired = guarded.etcd.tls().expired_client();
    let expired =
        json!({ "caFile": good["caFile"], "certFile": expired.certificate, "keyFile": expired.key });
    // By its alert etcd does not tell that from another CA.
    guarded.fails(&expired, 11, &["this host's certificate", "certFile", "expired"]);
    let plain: Vec<String> =
        guarded.etcd.endpoints().iter().map(|endpoint| endpoint.replace("https:", "http:")).collect();
    guarded.fails(&json!({ "endpoints": plain }), 11, &["172.30.0.2:2379"]);
    guarded.etcd.tls().expire_server();
    guarded.etcd.restart();
    guarded.fails(&good, 11, &["has expired", "clock"]);
}

#[test]
fn passwords() {
    let guarded = Guarded::new(1, Access::Password);
    let file = guarded.cluster.node(0).directory().join("password");
    fs::create_dir_all(guarded.cluster.node(0).directory()).expect("make the node's directory");
    let login = json!({ "username": Etcd::USER, "passwordFile": file });
    fs::write(&file, "wrong").expect("write a password");
    guarded.fails(&login, 7, &["does not know this user and password", "passwordFile"]);
    guarded.fails(&json!({}), 7, &["wants a user", "username"]);
    fs::write(&file, format!("{}\n", Etcd::PASSWORD)).expect("write a password");
    guarded.works(&login);
}

/// What it could do without that right, it takes back.
#[test]
fn a_user_who_may_only_read() {
    let guarded = Guarded::new(1, Access::Password);
    for words in [
        &["role", "add", "reader"][..],
        &["role", "grant-permission", "reader", "--prefix=true", "read", PREFIX],
        &["user", "add", &format!("reader:{}", Etcd::PASSWORD)],
        &["user", "grant-role", "reader", "reader"],
    ] {
        guarded.etcd.ctl(words);
    }
    let file = guarded.cluster.node(0).directory().join("password");
    fs::create_dir_all(guarded.cluster.node(0).directory()).expect("make the node's directory");
    fs::write(&file, Etcd::PASSWORD).expect("write a password");
    let login = json!({ "username": "reader", "passwordFile": file });
    let parts = ["does not let this user read and write", "grant-permission"];
    let status = || ipam("STATUS", guarded.cluster.node(0), &guarded.network(&login)).run();
    status().error_code(50).assert_names(&parts);
    guarded.fails(&login, 7, &parts);
    assert!(guarded.etcd.leases().is_empty());
    // Nor is there one beside a pinned record.
    let pinned = format!("{SUBNETS}10.241.7.0-24");
    guarded.etcd.put(&pinned, record("172.30.0.11"));
    status().error_code(50).assert_names(&parts);
    ipam("ADD", guarded.cluster.node(0), &guarded.network(&login)).run().error_code(7).assert_names(&parts);
    assert!(guarded.etcd.leases().is_empty());
    guarded.etcd.del(&pinned);
    guarded.etcd.ctl(&["role", "grant-permission", "reader", "--prefix=true", "readwrite", PREFIX]);
    let before = guarded.etcd.revision();
    status().done();
    assert_eq!((guarded.etcd.revision(), guarded.etcd.leases().len()), (before, 0), "nothing was put");
    guarded.works(&login);
    assert_eq!(guarded.etcd.leases().len(), 1);
}

#[test]
fn a_frozen_endpoint_costs_its_timeout_and_the_next_one_answers() {
    let guarded = Guarded::new(3, Access::Open);
    let follower = (0..3).find(|number| guarded.etcd.leader() != Some(*number)).expect("two of three follow");
    // The first one that is asked.
    let mut endpoints = guarded.etcd.endpoints();
    // Each member has two addresses.
    endpoints.rotate_left(follower * 2);
    guarded.etcd.members()[follower].freeze();
    let start = Instant::now();
    let etcd = json!({ "endpoints": endpoints, "timeout": 0.4 });
    let network = guarded.network(&etcd).with(&json!({ "timeout": 20 }));
    ipam("ADD", guarded.cluster.node(0), &network).run().result();
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    guarded.etcd.members()[follower].thaw();
}

#[test]
fn frozen_altogether() {
    let guarded = Guarded::new(1, Access::Open);
    guarded.etcd.freeze();
    let network = guarded.network(&json!({ "timeout": 0.2 }));
    let error = ipam("ADD", guarded.cluster.node(0), &network).run().error_code(11);
    error.assert_names(&["172.30.0.2:2379", "gave no answer within 200ms"]);
    guarded.etcd.thaw();
    assert!(guarded.etcd.keys(SUBNETS).is_empty());
}

/// Its host is down, or a firewall drops what is for it: TCP gets no answer, also within the time that a call has by default.
#[test]
fn out_of_reach() {
    let guarded = Guarded::new(1, Access::Open);
    let network = guarded.network(&json!({})).with(&json!({ "timeout": 8 }));
    guarded.etcd.members()[0].cable().cut();
    let error = ipam("ADD", guarded.cluster.node(0), &network).run().error_code(11);
    let meaning = "takes no connection: see whether its host and etcd are up and no firewall is between";
    for endpoint in guarded.etcd.endpoints() {
        error.assert_names(&[format!("{endpoint} {meaning}").as_str()]);
    }
    assert!(!error.msg.contains("Error"), "{}", error.msg);
    guarded.etcd.members()[0].cable().join();
    ipam("ADD", guarded.cluster.node(0), &network).run().result();
}

/// However long one call may take: each endpoint gets its part of the command's time, and an answer that is no answer is told before the
/// runtime, or the plugin of the interface, has ended the call.
#[test]
fn frozen_endpoints_are_named_within_the_commands_time() {
    let guarded = Guarded::new(3, Access::Open);
    guarded.etcd.freeze();
    let (node, network) =
        (guarded.cluster.node(0), guarded.network(&json!({})).with(&json!({ "timeout": 4 })));
    let endpoints = guarded.etcd.endpoints();
    let names: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let pod = weft_tests::Pod::new();
    let adds = network.clone().with(&json!({ "isGateway": true })).add_call(&pod).on(node);
    for (call, code) in [(ipam("ADD", node, &network), 11), (ipam("STATUS", node, &network), 50), (adds, 11)]
    {
        let start = Instant::now();
        call.run().error_code(code).assert_names(&names);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
    guarded.etcd.thaw();
}

#[test]
fn a_name_that_nobody_knows() {
    let guarded = Guarded::new(1, Access::Open);
    let endpoint = "http://etcd.weft.invalid:2379";
    let error = json!({ "endpoints": [endpoint], "timeout": 0.2 });
    guarded.fails(&error, 11, &[endpoint, "has a name that cannot be looked up", "DNS"]);
    // One that is known, written as people do.
    let hosts = guarded.cluster.node(0).directory().join("hosts");
    fs::create_dir_all(guarded.cluster.node(0).directory()).expect("make the node's directory");
    fs::write(&hosts, "172.30.0.2 etcd.weft.invalid\n").expect("write a name");
    weft_tests::command(&format!("mount --bind {} /etc/hosts", hosts.display()));
    guarded.works(&json!({ "endpoints": ["HTTP://etcd.weft.invalid:2379/"] }));
}

#[test]
fn the_leader_dies_and_a_member_after_the_other_is_refused() {
    let guarded = Guarded::new(3, Access::Open);
    let leader = eventually(Duration::from_secs(10), "a leader", || guarded.etcd.leader());
    guarded.etcd.members()[leader].kill();
    // The election is not over yet; the command's time is long enough for it.
    let network = guarded.network(&json!({})).with(&json!({ "timeout": 40 }));
    ipam("ADD", guarded.cluster.node(0), &network).run().result();
}

/// Asks a member that follows while it waits for a leader that has stopped to answer, and how that ended: the members have chosen
/// another one meanwhile.
fn asked_while_the_leader_changes(guarded: &Guarded, command: &str) -> Reply {
    let leader = eventually(Duration::from_secs(20), "a leader", || guarded.etcd.leader());
    // Each member has two addresses.
    let endpoint = &guarded.etcd.endpoints()[(leader + 1) % 3 * 2];
    let network = guarded.network(&json!({ "endpoints": [endpoint], "timeout": 20 }));
    let call = ipam(command, guarded.cluster.node(0), &network.with(&json!({ "timeout": 40 })));
    guarded.etcd.members()[leader].freeze();
    let reply = call.run();
    guarded.etcd.thaw();
    let meets = format!("{endpoint} has just changed its leader: repeat the call");
    assert!(reply.stderr.contains(&meets), "{}", reply.stderr);
    reply
}

/// Whoever asks once is told; an ADD asks again, and has its lease by the new one.
#[test]
fn the_leader_changes_during_a_question() {
    let mut guarded = Guarded::new(3, Access::Open);
    guarded.etcd = guarded.etcd.slow_to_elect();
    let error = asked_while_the_leader_changes(&guarded, "STATUS").error_code(50);
    error.assert_names(&["read the network", "http://172.30.0."]);
    let reply = asked_while_the_leader_changes(&guarded, "ADD");
    reply.result();
    assert!(reply.stderr.contains("trying again"), "{}", reply.stderr);
    assert_eq!((guarded.etcd.keys(SUBNETS).len(), guarded.etcd.leases().len()), (1, 1));
}

#[test]
fn most_members_are_gone() {
    let guarded = Guarded::new(3, Access::Open);
    for member in &guarded.etcd.members()[1..] {
        member.kill();
    }
    let network = guarded.network(&json!({ "timeout": 1 }));
    let error = ipam("ADD", guarded.cluster.node(0), &network).run().error_code(11);
    error.assert_names(&["refuses the connection", "172.30.0.2:2379"]);
}

/// It can be read as ever.
#[test]
fn an_etcd_without_space() {
    let mut guarded = Guarded::new(1, Access::Open);
    guarded.etcd = guarded.etcd.with_room_for(1 << 16);
    let value = "x".repeat(8000);
    eventually(Duration::from_secs(20), "etcd is full", || {
        (!guarded.etcd.attempt(&["put", "/else", &value]).status.success()).then_some(())
    });
    let parts = ["172.30.0.2:2379", "has no space left", "etcdctl alarm disarm"];
    let status = ipam("STATUS", guarded.cluster.node(0), &guarded.network(&json!({}))).run();
    status.error_code(50).assert_names(&parts);
    guarded.fails(&json!({}), 11, &parts);
    assert!(guarded.etcd.leases().is_empty());
    guarded.etcd.compact();
    guarded.etcd.ctl(&["alarm", "disarm"]);
    guarded.works(&json!({}));
}

/// The history is gone; what is there now is all that an ADD needs.
#[test]
fn compaction_is_no_trouble() {
    let guarded = Guarded::new(1, Access::Open);
    guarded.works(&json!({}));
    guarded.etcd.compact();
    let due = guarded.network(&json!({})).with(&json!({ "ipam": { "peerRefresh": 0 } }));
    let reply = ipam("ADD", guarded.cluster.node(0), &due).run();
    reply.result();
}
