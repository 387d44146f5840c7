//! An etcd that asks who comes, for agents that stay connected.

use std::path::Path;
use std::process::Command;

use weft_tests::dist;

use super::*;

/// What `weftctl status` says on a node.
#[track_caller]
pub(super) fn status(node: &Node) -> String {
    let mut weftctl = Command::new(dist().join("weftctl"));
    weftctl.arg("--config").arg(node.directory().join("weftd.json")).arg("status").envs(node.env());
    let output = node.inside(|| weftctl.output().expect("run weftctl"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two hosts whose agents show certificates or a password.
fn pair(access: Access, login: impl Fn(&Etcd) -> Value) -> Fleet {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, access);
    etcd.put("/coreos.com/network/config", CONFIG);
    let changes = json!({ "etcd": login(&etcd) });
    let agents: Vec<Weftd> = cluster.nodes().iter().map(|node| Weftd::start(node, &etcd, &changes)).collect();
    agents.iter().for_each(Weftd::ready);
    let fleet = Fleet { agents, etcd, cluster, families: vec![Family::V4] };
    fleet.acquainted();
    fleet
}

/// Whether the agents and `weftctl` hear of what is new in etcd.
#[track_caller]
fn assert_heard(fleet: &Fleet, number: u8) {
    let mac = format!("8e:00:00:00:00:{number:02}");
    fleet.etcd.put(&format!("{SUBNETS}10.255.{number}.0-24"), record(&format!("172.30.0.{number}"), &mac));
    for node in fleet.cluster.nodes() {
        assert_learns(node, PATIENCE, &mac, true);
    }
    fleet.agents.iter().for_each(Weftd::ready);
    let node = fleet.node(0);
    let text = status(node);
    assert!(text.contains("answers, revision") && text.contains(&format!("172.30.0.{number}")), "{text}");
}

#[test]
fn certificates() {
    let fleet = pair(Access::Tls, |etcd| {
        let client = etcd.tls().client();
        json!({ "caFile": etcd.tls().ca(), "certFile": client.certificate, "keyFile": client.key })
    });
    assert_heard(&fleet, 90);
    fleet.etcd.restart();
    assert_heard(&fleet, 91);
    // Its certificate is over: the hosts go on, and say why they are alone.
    fleet.etcd.tls().expire_server();
    fleet.etcd.restart();
    for agent in &fleet.agents {
        eventually(PATIENCE, "it says what is wrong with etcd", || {
            agent.daemon().log().contains("has a certificate that has expired").then_some(())
        });
        agent.ready();
    }
}

/// What etcd gives for a password is worth nothing after etcd's restart.
#[test]
fn passwords() {
    let file = Path::new("/run/password");
    let fleet = pair(Access::Password, |_| {
        fs::write(file, Etcd::PASSWORD).expect("write a password");
        json!({ "username": Etcd::USER, "passwordFile": file })
    });
    assert_heard(&fleet, 90);
    fleet.etcd.restart();
    assert_heard(&fleet, 91);
}

/// In etcd first, and in the file later: the hosts go on meanwhile, and need no restart. etcd lets connected clients be, so its
/// restart ends the connections.
#[test]
fn a_password_that_is_changed() {
    let file = Path::new("/run/password");
    let fleet = pair(Access::Password, |etcd| {
        etcd.ctl(&["user", "add", "hosts:first"]);
        etcd.ctl(&["user", "grant-role", "hosts", "root"]);
        fs::write(file, "first").expect("write a password");
        json!({ "username": "hosts", "passwordFile": file })
    });
    assert_heard(&fleet, 90);
    fleet.etcd.set_password("hosts", "second");
    fleet.etcd.restart();
    for agent in &fleet.agents {
        eventually(PATIENCE, "it says what is wrong", || {
            agent.daemon().log().contains("does not know this user and password").then_some(())
        });
        agent.ready();
    }
    fs::write(file, "second").expect("write a password");
    assert_heard(&fleet, 91);
}

/// Who may use the other place alone goes on with what it knows of the network that it was in before, and asks at a pace.
#[test]
fn a_user_of_another_prefix_than_the_containers() {
    let file = Path::new("/run/password");
    let mut fleet = pair(Access::Password, |_| {
        fs::write(file, Etcd::PASSWORD).expect("write a password");
        json!({ "username": Etcd::USER, "passwordFile": file })
    });
    let (pod, (_other, address)) = (fleet.pod(0).0, fleet.pod(1));
    for words in [
        "role add new",
        "role grant-permission new --prefix=true readwrite /other/",
        &format!("user add new:{}", Etcd::PASSWORD.replace(' ', "-")),
        "user grant-role new new",
    ] {
        fleet.etcd.ctl(&words.split(' ').collect::<Vec<_>>());
    }
    assert!(fleet.agents[0].daemon().stop().success());
    let its_own = Path::new("/run/password.new");
    fs::write(its_own, Etcd::PASSWORD.replace(' ', "-")).expect("write a password");
    let changes = json!({ "etcd": { "prefix": "/other", "username": "new", "passwordFile": its_own } });
    let started = Instant::now();
    fleet.agents[0] = Weftd::start(fleet.node(0), &fleet.etcd, &changes);
    let agent = &fleet.agents[0];
    eventually(PATIENCE, "it says both", || {
        let answer = agent.ask("/readyz")?;
        let parts = ["put the former prefix back", "does not let this user read"];
        (answer.status == 503 && parts.iter().all(|part| answer.body.contains(part))).then_some(())
    });
    // The eighth comes after waits of 10, 20, 40, 80, 160, 320 and 450 ms at least.
    eventually(PATIENCE, "it has asked eight times", || {
        let failed = agent.metric(r#"weft_store_errors_total{network="pods"}"#)?;
        (failed >= 8.0).then_some(())
    });
    assert!(started.elapsed() > Duration::from_secs(1), "{}", agent.daemon().log());
    pod.assert_reaches(address);
}

/// As docs/ipam.md says: also the watch, which is of more than one key, asks for no more.
#[test]
fn a_user_with_the_rights_that_are_needed() {
    let prefix = format!("{}/", Weftd::PREFIX);
    let fleet = pair(Access::Password, |etcd| {
        etcd.ctl(&["role", "add", "host"]);
        etcd.ctl(&["role", "grant-permission", "host", "--prefix=true", "readwrite", &prefix]);
        etcd.ctl(&["user", "add", &format!("host:{}", Etcd::PASSWORD)]);
        etcd.ctl(&["user", "grant-role", "host", "host"]);
        let file = Path::new("/run/password");
        fs::write(file, Etcd::PASSWORD).expect("write a password");
        json!({ "username": "host", "passwordFile": file })
    });
    assert_heard(&fleet, 92);
    for agent in &fleet.agents {
        let failed = agent.metric(r#"weft_store_errors_total{network="pods"}"#).unwrap_or(0.0);
        assert!(failed == 0.0, "{}", agent.daemon().log());
    }
}
