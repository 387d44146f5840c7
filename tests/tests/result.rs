//! Every version of the specification has its own shape of a result, and each is understood as prevResult.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use serde_json::{Value, json};
use weft_tests::{Call, Host, Network, Pod, command, dist};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn network(version: &str) -> Network {
    Network::dual().with(&json!({ "cniVersion": version, "dns": { "nameservers": ["192.0.2.53"] } }))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn up_to_0_2_one_address_per_family() {
    let _host = Host::new();
    for version in ["0.1.0", "0.2.0"] {
        let pod = Pod::new();
        let result = network(version).add(&pod);
        assert_eq!(keys(&result), ["cniVersion", "dns", "ip4", "ip6"], "{version}");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ip4"]["ip"].as_str(), pod.addresses("eth0").first().map(String::as_str));
        assert_eq!(result["ip4"]["gateway"], "10.88.0.1");
        assert_eq!(result["ip6"]["gateway"], "fd00:88::1");
        assert_eq!(result["ip4"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(result["ip6"]["routes"][0]["dst"], "::/0");
    }
}

/// `cniVersion` absent means 0.1.0, by the specification's history.
#[test]
fn no_version_is_the_first() {
    let _host = Host::new();
    let network = Network::v4().with(&json!({ "cniVersion": null }));
    let result = network.add(&Pod::new());
    assert_eq!(result["ip4"]["gateway"], "10.88.0.1", "{result}");
}

#[test]
fn from_0_3_interfaces_and_lists() {
    let _host = Host::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new();
        let result = network(version).add(&pod);
        assert_eq!(keys(&result), ["cniVersion", "dns", "interfaces", "ips", "routes"], "{version}");
        assert_eq!(result["cniVersion"], version);
        let families: Vec<&Value> =
            result["ips"].as_array().unwrap().iter().map(|ip| &ip["version"]).collect();
        if version < "1" {
            assert_eq!(families, ["4", "6"], "{version}");
        } else {
            assert_eq!(families, [&Value::Null, &Value::Null], "{version}");
        }
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces[0]["name"], "weft0");
        assert_eq!(interfaces[2]["name"], "eth0");
        assert_eq!(interfaces[2]["sandbox"].as_str(), pod.path().to_str());
        assert_eq!(interfaces[2]["mac"], pod.link("eth0").unwrap()["address"]);
        assert!(interfaces[..2].iter().all(|link| link.get("sandbox").is_none_or(|sandbox| sandbox == "")));
        assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 2));
        let mtus: Vec<bool> = interfaces.iter().map(|link| link.get("mtu").is_some()).collect();
        assert_eq!(mtus, [version == "1.1.0"; 3], "{version}: mtu is of 1.1.0");
    }
}

/// A chain's configuration may have been raised since the container started.
#[test]
fn a_previous_result_of_any_version_is_understood() {
    let host = Host::new();
    for given in VERSIONS {
        for asked in VERSIONS {
            let pod = Pod::new();
            let result = network(given).add(&pod);
            let later = network(asked).previous(&result);
            if given >= "0.3" && asked >= "0.4" {
                later.call("CHECK").pod(&pod).run().done();
            }
            later.call("DEL").pod(&pod).run().done();
            assert!(pod.link("eth0").is_none(), "{given} {asked}");
        }
    }
    assert_eq!(host.ports("weft0"), Vec::<String>::new());
}

#[test]
fn commands_that_a_version_does_not_have() {
    let _host = Host::new();
    let pod = Pod::new();
    for version in VERSIONS {
        let network = network(version);
        let mut calls =
            vec![("GC", network.gc_call(&[]), "1.1.0"), ("STATUS", network.call("STATUS"), "1.1.0")];
        calls.push(("CHECK", network.check_call(&pod, &json!({})), "0.4.0"));
        for (command, call, since) in calls.into_iter().filter(|(_, _, since)| version < *since) {
            let error = call.run().error_code(1);
            error.assert_names(&[command, version, since]);
            assert_eq!(error.version, version);
        }
    }
}

#[test]
fn versions_of_both_plugins() {
    let _host = Host::new();
    for plugin in ["weft", "weft-ipam", "loopback", "flannel"] {
        for asked in VERSIONS {
            let conf = json!({ "cniVersion": asked }).to_string();
            let answer = Call::new(plugin, "VERSION", conf).run().result();
            assert_eq!(answer["cniVersion"], asked, "the answer is in the version that was asked in");
            assert_eq!(answer["supportedVersions"], json!(VERSIONS));
        }
        let help = Call::new(plugin, "", "").through(["env", "-u", "CNI_COMMAND"]);
        for option in ["--version", "--help"] {
            let script = format!("exec \"$0\" {option}");
            let reply = help.clone().through(["sh", "-c", &script]).run();
            assert!(reply.succeeded());
            let text = String::from_utf8(reply.stdout).unwrap();
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some(&*format!("{plugin} {}", env!("CARGO_PKG_VERSION"))));
            assert_eq!(lines.next(), Some(&*format!("CNI versions {}", VERSIONS.join(", "))), "{text}");
        }
    }
}

/// What is no plugin speaks no version of the specification.
#[test]
fn versions_of_agent_and_tool() {
    for program in ["weftd", "weftctl"] {
        let text = command(&format!("{} --version", dist().join(program).display()));
        assert_eq!(text, format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn an_unknown_version_is_refused_with_the_supported_ones() {
    let _host = Host::new();
    for version in ["2.0.0", "1.2.0", "0.5.0", "nonsense"] {
        let error = network(version).add_call(&Pod::new()).run().error();
        // What is no version at all cannot be decoded.
        assert_eq!(error.code, if version == "nonsense" { 6 } else { 1 }, "{error:?}");
        error.assert_names(&["1.1.0", "0.1.0"]);
        assert_eq!(error.version, "1.1.0");
    }
}
