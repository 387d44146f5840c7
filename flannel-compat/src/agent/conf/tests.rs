use super::*;

const ETCD: &str = r#""etcd": {"endpoints": ["http://127.0.0.1:2379"]}"#;
const OTHER: &str = r#""etcd": {"endpoints": ["http://127.0.0.1:2379"], "prefix": "/other"}"#;

fn minimal(name: &str, more: &str) -> String {
    format!(r#"{{"networks": [{{"name": "{name}", {ETCD}{more}}}]}}"#)
}

fn parse(text: &str) -> Result<Conf, Error> {
    RawConf::parse("weftd.json", text)?.checked()
}

#[test]
fn the_shortest_configuration_has_flannels_defaults() {
    let conf = parse(&minimal("pods", "")).unwrap();
    let [network] = &conf.networks[..] else { panic!("{conf:?}") };
    assert_eq!(network.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert!(!network.ip_masq);
    assert_eq!(conf.listen, Listen::Tcp("127.0.0.1:9454".parse().unwrap()));
}

#[test]
fn every_key_arrives() {
    let network = r#"{"name": "pods", "etcd": {"endpoints": ["http://127.0.0.1:2379"], "prefix": "/n"},
        "iface": "eth1", "ifaceRegex": "eth.", "ifaceCanReach": "192.0.2.1", "publicIP": "192.0.2.2",
        "publicIPv6": "2001:db8::2", "leaseTTL": 60}"#;
    let raw: RawNetwork = serde_json::from_str(network).unwrap();
    let expected = serde_json::json!({
        "type": "weft-ipam", "etcd": {"endpoints": ["http://127.0.0.1:2379"], "prefix": "/n"},
        "iface": "eth1", "ifaceRegex": "eth.", "ifaceCanReach": "192.0.2.1", "publicIP": "192.0.2.2",
        "publicIPv6": "2001:db8::2", "leaseTTL": 60
    });
    assert_eq!(Value::Object(raw.ipam()), expected);
    let conf = parse(&format!(
        r#"{{"networks": [
            {{"name": "pods", {ETCD}, "ipMasq": true, "noMasquerade": ["192.0.2.0/24"], "subnetFile": "/run/a.env"}},
            {{"name": "other", {OTHER}, "subnetFile": "/run/b.env"}}],
            "listen": "unix:/run/weftd.sock", "stateDir": "/s", "dataDir": "/d", "logLevel": "debug"}}"#
    ))
    .unwrap();
    assert_eq!(conf.networks[0].no_masquerade, ["192.0.2.0/24".parse::<IpNetwork>().unwrap()]);
    assert_eq!(conf.networks[1].name.as_str(), "other");
    assert_eq!(conf.listen, Listen::Unix("/run/weftd.sock".into()));
    assert_eq!((conf.state_dir, conf.data_dir), ("/s".into(), "/d".into()));
    assert_eq!(conf.log_level, "debug");
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
    let with = |part: &str| format!(r#"{{"networks": [{{"name": "pods", {ETCD}}}], {part}}}"#);
    let network = |part: &str| minimal("pods", &format!(", {part}"));
    let two =
        |name: &str| format!(r#"{{"networks": [{{"name": "a", {ETCD}}}, {{"name": "{name}", {ETCD}}}]}}"#);
    for (text, parts) in [
        ("{}".to_owned(), ["networks is missing", "add one"]),
        ("{".to_owned(), ["weftd.json", "EOF"]),
        ("{} {}".to_owned(), ["more than one", "JSON"]),
        (r#"{"networks": [{}]}"#.to_owned(), ["networks[0].name", "give the network's name"]),
        (minimal("../x", ""), ["networks[0].name", "../x"]),
        (two("a"), ["networks[1].name", "rename"]),
        (two("b"), ["networks[1].subnetFile", "its own"]),
        (
            two("b").replacen("}}]", "}, \"subnetFile\": \"/run/b.env\"}]", 1),
            ["networks[1].etcd.prefix is /coreos.com/network, as that of network a", "its own"],
        ),
        (
            r#"{"networks": [{"name": "a", "etcd": {"endpoints": ["x"]}}]}"#.to_owned(),
            ["networks[0]", "endpoints"],
        ),
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

/// The defaults in docs/weftd.md are those of the code, as far as they are values and not told in words.
#[test]
fn a_documented_default_is_what_its_absence_means() {
    let whole: Value = serde_json::from_str(&minimal("pods", "")).unwrap();
    let tables = include_str!("../../../../docs/weftd.md").split("| key | meaning | default |\n").skip(1);
    let mut keys = Vec::new();
    for (place, table) in ["", "/networks/0"].into_iter().zip(tables) {
        for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
            let columns: Vec<&str> = row.split(" | ").collect();
            let key = columns[0].trim_matches(['|', ' ', '`', '*']);
            let default = columns[2].rsplit("else ").next().unwrap().trim_end_matches([' ', '|']);
            let value = match default.strip_prefix('`').and_then(|text| text.strip_suffix('`')) {
                Some(in_words) if in_words.contains('`') => continue,
                Some(quoted) => Value::from(quoted),
                None => match serde_json::from_str(default) {
                    Ok(value) => value,
                    Err(_in_words) => continue,
                },
            };
            let mut said = whole.clone();
            said.pointer_mut(place).unwrap()[key] = value;
            assert_eq!(parse(&said.to_string()), parse(&whole.to_string()), "{key}: {default}");
            keys.push(key);
        }
    }
    assert_eq!(keys, ["listen", "stateDir", "dataDir", "logLevel", "leaseTTL", "ipMasq", "subnetFile"]);
}
