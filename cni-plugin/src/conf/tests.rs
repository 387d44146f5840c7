use cni_protocol::{CniArgs, MacAddr};
use serde_json::json;

use super::*;

fn name() -> NetworkName {
    "net".parse().unwrap()
}

fn parse(conf: &Value) -> Result<Network, Error> {
    let mut whole = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft"});
    if let (Value::Object(whole), Value::Object(conf)) = (&mut whole, conf) {
        whole.extend(conf.clone());
    }
    let Value::Object(whole) = whole else { unreachable!("made as an object") };
    Network::parse(&name(), &whole)
}

fn refused(conf: &Value) -> Error {
    parse(conf).expect_err(&conf.to_string())
}

#[test]
fn defaults_are_the_reference_bridges_but_for_its_name() {
    let network = parse(&json!({})).unwrap();
    assert_eq!(network.bridge.as_str(), "weft0");
    assert_eq!(network.gateway, Gateway::None);
    assert_eq!((network.mtu, network.masquerade, network.hairpin), (None, false, false));
    assert_eq!(network.ipam, None);
    assert_eq!(network.dns, None);
}

#[test]
fn a_default_gateway_is_a_gateway() {
    assert_eq!(parse(&json!({"isGateway": true})).unwrap().gateway, Gateway::Address);
    assert_eq!(parse(&json!({"isDefaultGateway": true})).unwrap().gateway, Gateway::DefaultRoute);
    let both = json!({"isDefaultGateway": true, "isGateway": false});
    assert_eq!(parse(&both).unwrap().gateway, Gateway::DefaultRoute);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    let error = refused(&json!({"isGatway": true}));
    assert_eq!(error.code, Code::UnsupportedField);
    for part in ["isGatway", "true", "isGateway"] {
        assert!(error.msg.contains(part), "{}", error.msg);
    }
}

#[test]
fn unbuilt_keys_are_refused_unless_they_ask_for_nothing() {
    for conf in [
        json!({"vlan": 100}),
        json!({"vlanTrunk": [{"id": 1}]}),
        json!({"portMappings": [{"hostPort": 80, "containerPort": 80}]}),
        json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
        json!({"bandwidth": {"ingressRate": 1000}}),
        json!({"ipMasqBackend": "iptables"}),
    ] {
        assert_eq!(refused(&conf).code, Code::UnsupportedField, "{conf}");
    }
    for conf in [
        json!({"vlan": 0, "vlanTrunk": [], "macspoofchk": false, "preserveDefaultVlan": true}),
        json!({"runtimeConfig": {"portMappings": [], "ips": ["10.0.0.2/24"], "bandwidth": null}}),
        json!({"ipMasqBackend": "nftables"}),
    ] {
        parse(&conf).unwrap();
    }
}

#[test]
fn values_are_refused_by_key_value_and_remedy() {
    for (conf, key) in [
        (json!({"mtu": -5}), "mtu is -5"),
        (json!({"mtu": 70000}), "mtu is 70000"),
        (json!({"bridge": "a/b"}), "bridge is \"a/b\""),
        (json!({"bridge": "sixteen-letters-"}), "bridge is"),
        (json!({"ipam": "host-local"}), "ipam is"),
        (json!({"ipam": {"subnet": "10.0.0.0/24"}}), "ipam has no type"),
        (json!({"ipam": {"type": 7}}), "ipam.type is 7"),
        (json!({"args": ["cni"]}), "args is [\"cni\"]"),
        (json!({"args": {"cni": "mac"}}), "args.cni is \"mac\""),
        (json!({"args": {"weft": 7}}), "args.weft is 7"),
        (json!({"stateDir": "run"}), "stateDir is"),
        (json!({"hairpinMode": true, "promiscMode": true}), "hairpinMode and promiscMode"),
        (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), "disableContainerInterface"),
    ] {
        let error = refused(&conf);
        assert_eq!(error.code, Code::InvalidConfig, "{conf}");
        assert!(error.msg.contains(key), "{conf}: {}", error.msg);
    }
}

#[test]
fn a_wrong_type_names_its_path() {
    let error = refused(&json!({"dns": {"nameservers": "1.1.1.1"}}));
    assert!(error.msg.contains("dns.nameservers"), "{}", error.msg);
}

#[test]
fn an_empty_ipam_is_a_network_of_layer_2() {
    for ipam in [json!({}), json!(null), json!({"type": ""})] {
        assert_eq!(parse(&json!({"ipam": ipam})).unwrap().ipam, None);
    }
}

#[test]
fn the_mac_is_taken_in_the_conventions_order() {
    let args = CniArgs { mac: Some(MacAddr::from([2, 0, 0, 0, 0, 1])), ..CniArgs::default() };
    let mac =
        |conf: Value| requested_mac(conf.as_object().unwrap(), &args).map(|mac| mac.unwrap().to_string());
    let runtime = json!({"mac": "02:00:00:00:00:03"});
    let conventions = json!({"cni": {"mac": "02:00:00:00:00:02"}});
    assert_eq!(mac(json!({"runtimeConfig": runtime, "args": conventions})).unwrap(), "02:00:00:00:00:03");
    assert_eq!(mac(json!({"args": conventions})).unwrap(), "02:00:00:00:00:02");
    assert_eq!(mac(json!({})).unwrap(), "02:00:00:00:00:01");
    for bad in ["nonsense", "01:00:00:00:00:01", "00:00:00:00:00:00"] {
        assert_eq!(mac(json!({"runtimeConfig": {"mac": bad}})).unwrap_err().code, Code::InvalidConfig);
    }
}

mod any;
mod documented;
