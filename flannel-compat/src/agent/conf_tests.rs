use super::*;

fn parse(text: &str) -> Result<Conf, Error> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weftd.json");
    std::fs::write(&file, text).unwrap();
    RawConf::read(&file)?.checked()
}

#[test]
fn the_shortest_configuration_has_flannels_defaults() {
    let conf = parse(r#"{"networks": [{"name": "pods"}]}"#).unwrap();
    let [network] = &conf.networks[..] else { panic!("{conf:?}") };
    assert_eq!(network.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert!(!network.ip_masq);
    assert_eq!(Value::Object(network.ipam.clone()), serde_json::json!({"type": "weft-ipam", "etcd": {}}));
    assert_eq!(conf.listen, Listen::Tcp("127.0.0.1:9454".parse().unwrap()));
}

#[test]
fn every_key_arrives() {
    let conf = parse(
        r#"{"networks": [{"name": "pods", "etcd": {"endpoints": ["http://127.0.0.1:2379"], "prefix": "/n"},
            "iface": "eth1", "ifaceRegex": "eth.", "ifaceCanReach": "192.0.2.1", "publicIP": "192.0.2.2",
            "publicIPv6": "2001:db8::2", "leaseTTL": 60, "ipMasq": true, "noMasquerade": ["192.0.2.0/24"],
            "subnetFile": "/run/a.env"}, {"name": "other", "subnetFile": "/run/b.env"}],
            "listen": "unix:/run/weftd.sock", "stateDir": "/s", "dataDir": "/d", "logLevel": "debug"}"#,
    )
    .unwrap();
    let expected = serde_json::json!({
        "type": "weft-ipam", "etcd": {"endpoints": ["http://127.0.0.1:2379"], "prefix": "/n"},
        "iface": "eth1", "ifaceRegex": "eth.", "ifaceCanReach": "192.0.2.1", "publicIP": "192.0.2.2",
        "publicIPv6": "2001:db8::2", "leaseTTL": 60
    });
    assert_eq!(Value::Object(conf.networks[0].ipam.clone()), expected);
    assert_eq!(conf.networks[0].no_masquerade, ["192.0.2.0/24".parse::<IpNetwork>().unwrap()]);
    assert_eq!(conf.networks[1].name.as_str(), "other");
    assert_eq!(conf.listen, Listen::Unix("/run/weftd.sock".into()));
    assert_eq!((conf.state_dir, conf.data_dir), ("/s".into(), "/d".into()));
    assert_eq!(conf.log_level.as_deref(), Some("debug"));
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
    let with = |part: &str| format!(r#"{{"networks": [{{"name": "pods"}}], {part}}}"#);
    let network = |part: &str| format!(r#"{{"networks": [{{"name": "pods", {part}}}]}}"#);
    for (text, parts) in [
        ("{}".to_owned(), ["networks is empty", "add one"]),
        ("{".to_owned(), ["weftd.json", "EOF"]),
        ("{} {}".to_owned(), ["more than one", "JSON"]),
        (r#"{"networks": [{}]}"#.to_owned(), ["networks[0].name", "give the network's name"]),
        (r#"{"networks": [{"name": "../x"}]}"#.to_owned(), ["networks[0].name", "../x"]),
        (r#"{"networks": [{"name": "a"}, {"name": "a"}]}"#.to_owned(), ["networks[1].name", "rename"]),
        (r#"{"networks": [{"name": "a"}, {"name": "b"}]}"#.to_owned(), ["networks[1].subnetFile", "its own"]),
        (network(r#""ifaec": "eth0""#), ["networks[0].ifaec", "unknown field"]),
        (network(r#""leaseTTL": -1"#), ["networks[0].leaseTTL", "-1"]),
        (network(r#""noMasquerade": ["192.0.2.0/24"]"#), ["noMasquerade", "set ipMasq"]),
        (network(r#""noMasquerade": ["192.0.2.0/99"]"#), ["networks[0].noMasquerade[0]", "192.0.2.0/99"]),
        (network(r#""subnetFile": "run/x""#), ["networks[0].subnetFile", "absolute"]),
        (with(r#""listne": "x""#), ["listne", "unknown field"]),
        (with(r#""listen": "0.0.0.0:80""#), ["0.0.0.0:80", "loopback"]),
        (with(r#""listen": "localhost:80""#), ["localhost:80", "ADDRESS:PORT"]),
        (with(r#""listen": "unix:weftd.sock""#), ["weftd.sock", "absolute"]),
        (with(r#""logLevel": "loud""#), ["logLevel", "loud"]),
        (with(r#""stateDir": "s""#), ["stateDir", "absolute"]),
        (with(r#""dataDir": "d""#), ["dataDir", "absolute"]),
    ] {
        let error = parse(&text).unwrap_err().msg;
        for part in parts {
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = RawConf::read(Path::new("/nonexistent/weftd.json")).unwrap_err();
    assert!(error.msg.contains("/nonexistent/weftd.json") && error.msg.contains("--config"), "{}", error.msg);
}
