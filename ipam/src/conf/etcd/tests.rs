use serde_json::json;

use super::*;

fn parse(ipam: Value) -> Result<EtcdConf, String> {
    let Value::Object(ipam) = ipam else { panic!("an object") };
    EtcdConf::parse(&ipam).map(|conf| conf.expect("etcd is there")).map_err(|error| error.msg)
}

fn none(_: &str) -> Option<String> {
    None
}

#[test]
fn without_the_key_the_network_is_of_this_host_alone() {
    for ipam in [json!({}), json!({"etcd": null})] {
        assert_eq!(EtcdConf::parse(ipam.as_object().unwrap()).unwrap(), None);
    }
}

#[test]
fn defaults_are_flannels() {
    let conf = parse(json!({"etcd": {"endpoints": ["http://192.0.2.1:2379"]}})).unwrap();
    assert_eq!((conf.prefix.as_str(), conf.ttl), ("/coreos.com/network", 86_400));
    assert_eq!((conf.timeout, conf.peer_refresh), (Duration::from_secs(2), Duration::from_secs(10)));
    assert_eq!((conf.tls, conf.login), (None, None));
    assert_eq!(conf.underlay, Underlay { choice: Choice::DefaultRoute, public: Vec::new() });
}

#[test]
fn endpoints_as_people_write_them() {
    for (given, read) in [
        ("HTTP://192.0.2.1:2379/", "http://192.0.2.1:2379"),
        ("http://[2001:db8::1]", "http://[2001:db8::1]"),
        ("http://[2001:db8::1]:2379/", "http://[2001:db8::1]:2379"),
        ("http://etcd-0.etcd_members.example", "http://etcd-0.etcd_members.example"),
    ] {
        assert_eq!(parse(json!({"etcd": {"endpoints": [given]}})).unwrap().endpoints, [read]);
    }
}

#[test]
fn everything_at_once() {
    let conf = parse(json!({
        "type": "weft-ipam",
        "etcd": {
            "endpoints": ["https://192.0.2.1:2379", "https://[2001:db8::1]:2379"], "prefix": "/net/",
            "caFile": "/ca", "certFile": "/cert", "keyFile": "/key",
            "username": "weft", "passwordFile": "/password", "timeout": 0.5
        },
        "iface": "eth1", "publicIP": "198.51.100.7", "publicIPv6": "2001:db8::7", "leaseTTL": 60, "peerRefresh": 0
    }))
    .unwrap();
    assert_eq!(conf.prefix, "/net");
    let tls = Tls { ca: "/ca".into(), client: Some(("/cert".into(), "/key".into())) };
    assert_eq!(conf.tls, Some(tls));
    let login = Login { username: "weft".into(), password_file: "/password".into() };
    assert_eq!(conf.login, Some(login));
    assert_eq!((conf.timeout, conf.peer_refresh), (Duration::from_millis(500), Duration::ZERO));
    assert_eq!(conf.underlay.choice, Choice::Interface("eth1".into()));
    assert_eq!(conf.underlay.public.len(), 2);
}

#[test]
fn what_cannot_be_meant_is_told_with_key_value_and_remedy() {
    let etcd = |key: &str, value: Value| {
        let mut ipam = json!({"etcd": {"endpoints": ["http://192.0.2.1:2379"]}});
        ipam["etcd"][key] = value;
        ipam
    };
    let host = |key: &str, value: Value| {
        let mut ipam = etcd("timeout", json!(1));
        ipam[key] = value;
        ipam
    };
    let tls = |more: Value| {
        let mut ipam = json!({"etcd": {"endpoints": ["https://192.0.2.1:2379"]}});
        ipam["etcd"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ipam
    };
    for (ipam, parts) in [
        (json!({"etcd": []}), vec!["ipam.etcd: []", "write {}"]),
        (etcd("endpoints", json!([])), vec!["endpoints", "WEFT_ETCD_ENDPOINTS", "/etc/weft/etcd.json"]),
        (etcd("endpoints", json!(["192.0.2.1:2379"])), vec!["endpoints[0]", "192.0.2.1:2379", "https://"]),
        (etcd("endpoints", json!(["http://a@b"])), vec!["endpoints[0]", "http://a@b"]),
        (etcd("endpoints", json!(["http://fd00::1:2379"])), vec!["endpoints[0]", "no URL"]),
        (etcd("endpoints", json!(["http://[fd00::g]:2379"])), vec!["endpoints[0]", "no URL"]),
        (etcd("endpoints", json!(["http://a:2379/v3"])), vec!["endpoints[0]", "no URL"]),
        (etcd("endpoints", json!(["http://a/v3:2379"])), vec!["endpoints[0]", "no URL"]),
        (
            etcd("endpoints", json!(["http://a", "http://192.0.2.1:99999"])),
            vec!["endpoints[1]", "99999", "65535"],
        ),
        (etcd("endpoints", json!(["http://a:0"])), vec!["endpoints[0]", "65535"]),
        (etcd("endpoints", json!(["http://a:+80"])), vec!["endpoints[0]", "no URL"]),
        (etcd("endpoints", json!(["http://a", "https://b"])), vec!["endpoints", "mixes"]),
        (etcd("endpoints", json!("http://a")), vec!["ipam.etcd.endpoints", "sequence"]),
        (etcd("prefix", json!("net")), vec!["prefix", "net", "slash"]),
        (etcd("prefix", json!("/")), vec!["prefix: \"/\"", "a slash and a name"]),
        (etcd("username", json!("u")), vec!["passwordFile", "username"]),
        (etcd("passwordFile", json!("/p")), vec!["username", "passwordFile"]),
        (etcd("caFile", json!("/ca")), vec!["endpoints", "https://"]),
        (etcd("timeout", json!(0)), vec!["timeout", "0.05 to 60"]),
        (etcd("endpoint", json!([])), vec!["endpoint", "did you mean \"endpoints\""]),
        (tls(json!({})), vec!["caFile", "missing"]),
        (tls(json!({"caFile": "/ca", "certFile": "/c"})), vec!["keyFile", "certFile"]),
        (tls(json!({"caFile": "/ca", "keyFile": "/k"})), vec!["certFile", "keyFile"]),
        (host("leaseTTL", json!(1)), vec!["leaseTTL", "1", "86400"]),
        (host("publicIP", json!("fd00::1")), vec!["publicIP", "fd00::1", "IPv4"]),
        (host("publicIPv6", json!("::1")), vec!["publicIPv6", "::1"]),
        (host("publicIP", json!("0.0.0.0")), vec!["publicIP", "0.0.0.0"]),
        (host("ifaceRegex", json!("(")), vec!["ifaceRegex", "("]),
        (host("ifaceCanReach", json!("there")), vec!["ifaceCanReach"]),
    ] {
        let error = parse(ipam.clone()).expect_err(&ipam.to_string());
        for part in parts {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
    let mut two = host("iface", json!("eth0"));
    two["ifaceRegex"] = json!("^eth");
    assert!(parse(two).unwrap_err().contains("keep the one"));
}

#[test]
fn configuration_before_environment_before_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.json");
    std::fs::write(&file, r#"{"endpoints": ["http://file"], "prefix": "/file", "username": "file"}"#)
        .unwrap();
    let environment = |name: &str| match name {
        "WEFT_ETCD_ENDPOINTS" => Some("http://one, http://two".to_owned()),
        "WEFT_ETCD_PREFIX" => Some("/environment".to_owned()),
        "WEFT_ETCD_TIMEOUT" => Some("1.5".to_owned()),
        "WEFT_ETCD_CAFILE" => Some(String::new()),
        _ => None,
    };
    let given = json!({"prefix": "/conf"});
    let merged = merged(given.as_object().unwrap(), environment, &file).unwrap();
    let wanted = json!({
        "endpoints": ["http://one", "http://two"], "prefix": "/conf", "username": "file", "timeout": 1.5
    });
    assert_eq!(Value::Object(merged), wanted);
}

#[test]
fn a_file_that_is_no_object_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.json");
    let none_given = Map::new();
    for text in ["", "[]", "{\"endpoints\": [}", "{\"endpoint\": []}"] {
        std::fs::write(&file, text).unwrap();
        let error = merged(&none_given, none, &file).unwrap_err();
        assert!(error.msg.contains("etcd.json"), "{}", error.msg);
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(merged(&none_given, none, &file).unwrap(), Map::new());
}
