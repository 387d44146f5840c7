//! What `weftctl status` says that is wrong.

use super::*;

/// Whether the agent has found it, or an ADD where there is none; until it is over.
#[test]
fn status_of_a_host_whose_subnet_another_one_has() {
    for with_agent in [true, false] {
        let fleet = Fleet::new(1);
        let node = fleet.node(0);
        let network = Weftd::network(&fleet.etcd).with(&json!({ "ipam": { "peerRefresh": 0 } }));
        let agent = with_agent.then(|| Weftd::up(node, &fleet.etcd));
        let (pod, _result) = node.attach(&network);
        let owner = || fleet.status(0)["takenBy"].clone();
        let says_taken = || fleet.says(0, "status").contains("TAKEN");
        assert!(owner() == Value::Null && !says_taken());

        let key = fleet.etcd.keys(SUBNETS)[0].clone();
        let data = r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:01"}"#;
        let other = r#""PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan""#;
        fleet.etcd.put(&key, format!(r#"{{{other},"BackendData":{data}}}"#));
        if agent.is_none() {
            let error = network.add_call(&Pod::new()).on(node).run().error_code(103);
            error.assert_names(&["172.30.0.99", "weftctl leave"]);
        }
        let seen = || owner().as_str()?.contains("172.30.0.99 (").then_some(());
        eventually(PATIENCE, "it is seen", seen);
        let subnet = key.trim_start_matches(SUBNETS);
        let status = fleet.status(0);
        assert_eq!((&status["lease"]["key"], &status["agent"]), (&json!(subnet), &json!(with_agent)));
        let text = fleet.says(0, "status");
        let line = format!("etcdctl del {key}");
        for part in
            [subnet, "TAKEN by 172.30.0.99", &line, "cut off", "then stop weftd, weftctl leave, start weftd"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("leased for") && !text.contains("renews it"), "{text}");

        if agent.is_some() {
            // The other one gives it up.
            fleet.etcd.del(&key);
            eventually(PATIENCE, "it is this host's again", || (owner() == Value::Null).then_some(()));
        } else {
            network.del_call(&pod).on(node).run().done();
            // A Weft host says who it is.
            let me =
                r#""subnet":"","host":"b","mac":null,"instance":"b","boot":"b","netns":1,"keeper":"agent""#;
            fleet.etcd.put(&format!("{}/weft/hosts/172.30.0.99", Weftd::PREFIX), format!("{{{me}}}"));
            let said = fleet.says(0, "leave");
            assert!(said.contains("that of 172.30.0.99 now, and stays") && !said.contains(&line), "{said}");
            assert!(fleet.etcd.get(&key).is_some(), "the other one keeps it");
        }
        assert!(owner() == Value::Null && !says_taken());
    }
}

/// That the prefix was changed is known without etcd, and what else is wrong is said beside it.
#[test]
fn status_of_a_host_that_is_told_another_prefix() {
    let fleet = Fleet::new(1);
    let (_pod, _result) = fleet.node(0).attach(&Weftd::network(&fleet.etcd));
    let key = fleet.etcd.keys(SUBNETS)[0].clone();
    let remedy = "put the former prefix back, or remove these containers";
    let says = |parts: &[&str]| {
        let text = fleet.says(0, "--etcd-prefix /other status");
        let trouble = text.lines().find(|line| line.contains("trouble")).expect("a line");
        assert!(parts.iter().all(|part| trouble.contains(part)), "{text}");
        trouble.to_owned()
    };
    assert!(!says(&[Weftd::PREFIX, "/other", remedy]).contains("not in etcd"));
    fleet.etcd.del(&key);
    says(&[remedy, &format!("{key} is not in etcd as this host has put it")]);
    fleet.etcd.stop();
    says(&[Weftd::PREFIX, "/other", remedy]);
}

/// A configuration that hosts cannot follow is said where people look, with an agent and without.
#[test]
fn status_of_a_host_whose_network_is_configured_wrongly() {
    for with_agent in [true, false] {
        let fleet = Fleet::new(1);
        let node = fleet.node(0);
        let agent = with_agent.then(|| Weftd::up(node, &fleet.etcd));
        let (_pod, _result) = node.attach(&Weftd::network(&fleet.etcd));
        let key = fleet.etcd.keys(SUBNETS).remove(0);
        let subnet = key.trim_start_matches(SUBNETS);
        let assert_well = || {
            assert_eq!(fleet.status(0)["trouble"], Value::Null);
            assert!(!fleet.says(0, "status").contains("trouble"));
        };
        assert_well();
        let longer = V4.replace("/12\"", "/12\", \"SubnetLen\": 25");
        let comma = V4.replace("}}", "},}");
        for (config, parts) in [
            (DUAL, vec![CONFIG, "of IPv4 and IPv6 now", subnet, "weftctl leave"]),
            (&longer, vec![CONFIG, subnet, "weftctl leave"]),
            (&comma, vec![CONFIG, "no JSON"]),
            (&V4.replace("vxlan", "wireguard"), vec![CONFIG, "Backend.Type", "wireguard"]),
            ("", vec![CONFIG, "is not in etcd"]),
        ] {
            if config.is_empty() {
                fleet.etcd.del(CONFIG);
            } else {
                fleet.etcd.put(CONFIG, config);
            }
            let (told, text) = (fleet.status(0)["trouble"].to_string(), fleet.says(0, "status"));
            let line = text.lines().find(|line| line.starts_with("  trouble ")).unwrap_or_default();
            for part in parts {
                assert!(
                    told.contains(part) && line.contains(part),
                    "{config}: {part} is not in {told}\n{text}"
                );
            }
            assert!(text.contains(subnet) && text.contains("as it ought to be"), "{text}");
        }
        fleet.etcd.put(CONFIG, V4);
        assert_well();
        if agent.is_none() {
            fleet.etcd.del(&key);
            let told = fleet.status(0)["trouble"].to_string();
            assert!(told.contains(&key) && told.contains("next ADD"), "{told}");
        }
    }
}
