use std::time::Duration;

use cni_protocol::Deadline;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn call(conf: &Value, version: Version) -> Call {
    Call {
        version,
        network: "net".parse().unwrap(),
        conf: conf.as_object().unwrap().clone(),
        stdin: Vec::new(),
        cni_path: Vec::new(),
        deadline: Deadline::after(Duration::from_secs(60)),
    }
}

fn conf(conf: &Value) -> Result<Conf, Error> {
    Conf::new(&call(conf, Version::V1_1_0), &CniArgs::default(), None)
}

fn sets(conf: &Conf) -> Vec<String> {
    conf.pools.sets().iter().map(ToString::to_string).collect()
}

#[test]
fn sets_come_in_the_order_of_host_local() {
    let conf = conf(&json!({
        "ipam": {"type": "weft-ipam", "subnet": "10.2.0.0/24", "gateway": "10.2.0.9", "rangeStart": "",
            "ranges": [[{"subnet": "10.3.0.0/24"}, {"subnet": "10.4.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/etc/resolv.conf", "dataDir": "/d", "exclude": ["10.3.0.7"]},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]},
    }))
    .unwrap();
    assert_eq!(sets(&conf), ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24 and 10.4.0.0/24", "fd00::/64"]);
    assert_eq!(conf.routes.len(), 1);
    assert_eq!(conf.resolv_conf, Some("/etc/resolv.conf".into()));
    assert_eq!(conf.requests, [None; 4]);
}

#[test]
fn an_empty_or_null_value_is_none() {
    let conf = conf(&json!({
        "ipam": {"subnet": "10.2.0.0/24", "rangeEnd": "", "gateway": null, "ranges": null, "routes": null,
            "resolvConf": "", "exclude": null},
        "runtimeConfig": null, "args": null,
    }))
    .unwrap();
    assert_eq!(sets(&conf), ["10.2.0.0/24"]);
    assert_eq!(conf.resolv_conf, None);
}

#[test]
fn an_unknown_key_is_named_with_value_and_nearest() {
    for (conf_json, parts) in [
        (json!({"ipam": {"subnets": "10.0.0.0/8"}}), ["ipam:", "\"subnets\"", "10.0.0.0/8", "\"subnet\""]),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/8"}, {"rangestart": 5}]]}}),
            ["ipam.ranges[0][1]", "\"rangestart\"", "5", "\"rangeStart\""],
        ),
        (
            json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "via": "10.0.0.1"}]}}),
            ["ipam.routes[0]", "\"via\"", "10.0.0.1", "known are"],
        ),
        (
            json!({"ipam": {}, "runtimeConfig": {"ipRanges": [[{"gatway": "x"}]]}}),
            ["runtimeConfig.ipRanges[0][0]", "\"gatway\"", "x", "\"gateway\""],
        ),
    ] {
        let error = conf(&conf_json).unwrap_err();
        assert_eq!(error.code, Code::UnsupportedField, "{error}");
        for part in parts {
            assert!(error.msg.contains(part), "{part}: {error}");
        }
    }
}

fn refused(cases: &[(Value, Vec<&str>)]) {
    for (conf_json, parts) in cases {
        let error = conf(conf_json).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{error}");
        for part in parts {
            assert!(error.msg.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn a_wrong_value_is_named_with_its_path() {
    let of_range = |range: Value| json!({"ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}], [range]]}});
    refused(&[
        (json!({}), vec!["ipam", "missing"]),
        (json!({"ipam": {}}), vec!["ipam.ranges", "at least one"]),
        (json!({"ipam": {"ranges": [[]]}}), vec!["ipam.ranges[0]:", "no range"]),
        (json!({"ipam": {"gateway": "10.0.0.1"}}), vec!["ipam.subnet", "missing"]),
        (json!({"ipam": {"subnet": "10.0.0.1/24"}}), vec!["ipam.subnet:", "10.0.0.1/24", "host bits"]),
        (of_range(json!({})), vec!["ipam.ranges[1][0].subnet", "missing"]),
        (
            of_range(json!({"subnet": "10.0.0.0"})),
            vec!["ipam.ranges[1][0].subnet", "\"10.0.0.0\"", "no prefix"],
        ),
        (of_range(json!({"subnet": "10.0.0.0/255.0.0.0"})), vec!["subnet", "no prefix"]),
        (of_range(json!({"subnet": "10.0.0.0/33"})), vec!["subnet", "no prefix"]),
        (of_range(json!({"subnet": 7})), vec!["ipam.ranges[1][0].subnet", "7"]),
        (of_range(json!({"subnet": "224.0.0.0/8"})), vec!["ipam.ranges[1][0].subnet", "multicast"]),
        (
            of_range(json!({"subnet": "10.0.0.0/24", "gateway": "x"})),
            vec!["ipam.ranges[1][0].gateway", "\"x\"", "no IP address"],
        ),
        (
            of_range(json!({"subnet": "10.0.0.0/24", "gateway": "fd00::1"})),
            vec!["ipam.ranges[1][0].gateway", "fd00::1", "outside"],
        ),
        (
            of_range(json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"})),
            vec!["ipam.ranges[1][0].rangeStart", "10.0.0.9", "10.0.0.8"],
        ),
        (of_range(json!({"subnet": "10.9.0.0/16"})), vec!["ipam.ranges[1][0]:", "overlaps", "10.9.0.0/24"]),
    ]);
}

#[test]
fn what_does_not_fit_together_is_named_with_its_path() {
    refused(&[
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}}),
            vec!["ipam.ranges[0][1].subnet", "fd00::/64", "set of its own"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24", "exclude": ["10.0.0.5/30"]}}),
            vec!["ipam.exclude[0]", "10.0.0.4/30"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24", "exclude": ["10.0.0.0/24"]}}),
            vec!["ipam:", "no address left"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "10.1.2.3/8"}]}}),
            vec!["ipam.routes[0].dst", "10.0.0.0/8"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}}),
            vec!["ipam.routes[0].gw", "fd00::1", "family"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "224.0.0.1"}]}}),
            vec!["ipam.routes[0].gw", "unicast"],
        ),
        (
            json!({"ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": ["10.0.0.x"]}}),
            vec!["runtimeConfig.ips[0]", "10.0.0.x"],
        ),
    ]);
}

fn asking(ips: &Value, args: &Value, of_args: &[&str]) -> Result<Vec<Option<String>>, Error> {
    let ipam =
        json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]], "exclude": ["10.0.0.99"]});
    let conf = json!({"ipam": ipam, "runtimeConfig": {"ips": ips}, "args": {"cni": {"ips": args}}});
    let args = CniArgs {
        ips: of_args.iter().map(|t| t.parse().ok()).collect::<Option<_>>().unwrap_or_default(),
        ..CniArgs::default()
    };
    let conf = Conf::new(&call(&conf, Version::V1_1_0), &args, None)?;
    Ok(conf.requests.iter().map(|r| r.map(|ip| ip.to_string())).collect())
}

#[test]
fn the_first_source_that_asks_counts_alone() {
    let (v4, v6) = (|n| Some(format!("10.0.0.{n}")), |n| Some(format!("fd00::{n}")));
    let ips = json!(["10.0.0.5/24"]);
    let args = json!(["10.0.0.6", "fd00::6"]);
    assert_eq!(asking(&ips, &args, &["fd00::7"]).unwrap(), [v4(5), None]);
    assert_eq!(asking(&json!([]), &args, &["fd00::7"]).unwrap(), [v4(6), v6(6)]);
    assert_eq!(asking(&Value::Null, &Value::Null, &["fd00::7"]).unwrap(), [None, v6(7)]);
    assert_eq!(asking(&Value::Null, &Value::Null, &[]).unwrap(), [None, None]);
}

#[test]
fn an_address_that_cannot_be_asked_for_is_refused_with_the_reason() {
    for (ip, reason) in [
        ("10.0.1.5", "outside"),
        ("10.0.0.1", "gateway"),
        ("10.0.0.255/24", "broadcast"),
        ("10.0.0.99", "ipam.exclude"),
        ("fd00::", "network"),
    ] {
        let error = asking(&json!([ip]), &Value::Null, &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains(reason) && error.msg.contains("runtimeConfig.ips[0]"), "{error}");
    }
    let error = asking(&json!(["10.0.0.5", "10.0.0.6"]), &Value::Null, &[]).unwrap_err();
    assert!(error.msg.contains("10.0.0.5") && error.msg.contains("10.0.0.6"), "{error}");
}

#[test]
fn old_results_have_room_for_one_address_per_family() {
    let two_of_v4 = json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}]]}});
    let dual = json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}});
    for version in Version::ALL {
        let new = |conf| Conf::new(&call(conf, version), &CniArgs::default(), None);
        assert_eq!(new(&two_of_v4).is_ok(), version >= Version::V0_3_0, "{version}");
        assert!(new(&dual).is_ok(), "{version}");
    }
}

#[test]
fn the_data_directory_has_to_be_absolute() {
    let of = |value: Value| reservations_dir(json!({"ipam": {"dataDir": value}}).as_object().unwrap());
    assert_eq!(of(json!("/var/lib/x")).unwrap(), PathBuf::from("/var/lib/x"));
    for wrong in [json!("x/y"), json!(7)] {
        let error = of(wrong.clone()).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("ipam.dataDir") && error.msg.contains(&wrong.to_string()), "{error}");
    }
    assert_eq!(of(json!("")).unwrap(), of(Value::Null).unwrap());
}

#[test]
fn the_state_directory_has_the_reservations_unless_ipam_says_otherwise() {
    let of = |conf: Value| {
        let conf = conf.as_object().cloned().unwrap();
        (reservations_dir(&conf).map_err(|error| error.msg), former_reservations_dir(&conf))
    };
    let default = state_dir(None).unwrap();
    assert_eq!(of(json!({})), (Ok(default.clone()), None));
    assert_eq!(of(json!({"stateDir": default})), (Ok(default.clone()), None));
    assert_eq!(of(json!({"stateDir": "/s"})), (Ok("/s".into()), Some(default)));
    assert_eq!(of(json!({"stateDir": "/s", "ipam": {"dataDir": "/d"}})), (Ok("/d".into()), None));
    let relative = "stateDir is \"s\": give an absolute path";
    assert_eq!(of(json!({"stateDir": "s"})), (Err(relative.to_owned()), None));
}

/// The defaults in docs/ipam.md are those of the code, as far as they are values and not told in words.
#[test]
fn a_documented_default_is_what_its_absence_means() {
    let page = include_str!("../../../docs/ipam.md");
    let rows = |table: &str, default: usize| {
        let (_, table) = page.split_once(table).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.filter_map(|row| {
            let columns: Vec<&str> = row.split(" | ").collect();
            let text = columns[default].rsplit("else ").next()?.trim_end_matches([' ', '|']);
            let value = match text.strip_prefix('`').and_then(|text| text.strip_suffix('`')) {
                Some(quoted) => json!(quoted),
                None => json!(text.parse::<u64>().ok()?),
            };
            Some((columns[0].trim_matches(['|', ' ', '`']), value))
        })
        .collect::<Vec<_>>()
    };
    let leased = Leased {
        subnets: vec!["10.0.0.0/24".parse().unwrap()],
        networks: vec!["10.0.0.0/16".parse().unwrap()],
    };
    let whole = json!({"ipam": {"etcd": {"endpoints": ["http://127.0.0.1:2379"]}, "sticky": "name"}});
    let meaning = |document: &Value| {
        let call = call(document, Version::V1_1_0);
        let conf = Conf::new(&call, &CniArgs::default(), Some(&leased)).unwrap();
        let etcd = etcd::EtcdConf::parse(document["ipam"].as_object().unwrap()).unwrap();
        (conf, etcd, reservations_dir(&call.conf).unwrap())
    };
    let of_ipam = [rows("| key | meaning | default | example |", 2), rows("| key of `ipam` |", 2)].concat();
    let mut keys = Vec::new();
    for (place, rows) in [("/ipam", of_ipam), ("/ipam/etcd", rows("| key of `etcd` |", 2))] {
        for (key, default) in rows {
            let with = |value: Value| {
                let mut document = whole.clone();
                document.pointer_mut(place).unwrap()[key] = value;
                meaning(&document)
            };
            assert_eq!(with(default.clone()), meaning(&whole), "{key}: {default}");
            let other = default.as_u64().map_or_else(|| json!("/other"), |number| json!(number + 1));
            assert_ne!(with(other), meaning(&whole), "{key}");
            keys.push(key);
        }
    }
    assert_eq!(keys, ["dataDir", "stickyFor", "leaseTTL", "peerRefresh", "prefix", "timeout"]);
}

/// Any value, of the forms that the keys have and others.
fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(
            &["", "10.2.0.0/24", "10.2.0.7", "10.2.0.7/24", "fd00::/64", "10.0.0.0/33", "/x", "name"][..]
        )
        .prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    let key = prop::sample::select(&["subnet", "rangeStart", "gateway", "dst", "gw", "other"][..]);
    scalar.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..3).prop_map(|fields| json!(fields)),
        ]
    })
}

/// The paths to all that is inside of a value.
fn paths(value: &Value, here: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, inner)| (key.clone(), inner)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, inner)| (at.to_string(), inner)).collect(),
        _ => Vec::new(),
    };
    let below = |(key, inner): &(String, &Value)| {
        let path = format!("{here}/{key}");
        [vec![path.clone()], paths(inner, &path)].concat()
    };
    inner.iter().flat_map(below).collect()
}

/// Two networks with every key, one of which leases its subnet, and a place in one of them.
fn any_place() -> impl Strategy<Value = (Value, String)> {
    let of_host = json!({
        "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.9", "gateway": "10.1.0.1",
            "ranges": [[{"subnet": "10.2.0.0/24", "gateway": "10.2.0.1"}], [{"subnet": "fd00::/64"}]], "dataDir": "/d",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}], "resolvConf": "/r", "exclude": ["10.2.0.7"],
            "sticky": "name", "stickyFor": 60},
        "runtimeConfig": {"ips": ["10.1.0.6"], "ipRanges": [[{"subnet": "10.3.0.0/24"}]]}, "args": {"cni": {"ips": []}},
    });
    let leased = json!({"ipam": {
        "etcd": {"endpoints": ["https://192.0.2.1:2379"], "prefix": "/n", "caFile": "/ca", "certFile": "/c", "keyFile": "/k",
            "username": "u", "passwordFile": "/p", "timeout": 1},
        "iface": "eth1", "publicIP": "192.0.2.2", "publicIPv6": "2001:db8::2", "leaseTTL": 60, "peerRefresh": 1,
    }});
    let places = [of_host, leased]
        .map(|conf| paths(&conf, "").into_iter().map(|path| (conf.clone(), path)).collect::<Vec<_>>());
    prop::sample::select(places.concat())
}

proptest! {
    #[test]
    fn another_value_has_a_meaning_or_is_refused_by_its_key((mut document, path) in any_place(), value in any_value()) {
        *document.pointer_mut(&path).unwrap() = value.clone();
        let call = call(&document, Version::V1_1_0);
        let leased = Leased { subnets: vec!["10.0.0.0/24".parse().unwrap()], networks: Vec::new() };
        let ipam = document["ipam"].as_object().cloned().unwrap_or_default();
        let spans_hosts = ipam.get("etcd").is_some_and(|etcd| !etcd.is_null());
        let checked = etcd::EtcdConf::parse(&ipam)
            .and_then(|_etcd| Conf::new(&call, &CniArgs::default(), spans_hosts.then_some(&leased)))
            .and_then(|_conf| reservations_dir(&call.conf));
        let Err(error) = checked else { return Ok(()) };
        prop_assert!([Code::InvalidConfig, Code::UnsupportedField].contains(&error.code), "{}: {}", document, error);
        // As far as objects lead: errors about lists may tell of the whole.
        let key = |path: &str| {
            let keys = path.split('/').skip(1).take_while(|key| key.parse::<u8>().is_err());
            keys.collect::<Vec<_>>().join(".")
        };
        // What is excluded or asked for may make another key's value wrong.
        let others = paths(&document, "").iter().map(|path| key(path)).filter(|key| key.contains('.')).collect::<Vec<_>>();
        let msg = error.msg.replace(": unknown key \"", ".");
        let is_named = others.iter().chain([&key(&path)]).any(|key| msg.contains(key));
        prop_assert!(is_named, "{}: {}", document, error);
    }
}
