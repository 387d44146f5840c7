//! Whatever a configuration has for a key: a meaning, or an error that names it.

use proptest::prelude::*;

use super::documented::{Meaning, rows};
use super::*;

fn scalar() -> impl Strategy<Value = Value> {
    const TEXTS: &[&str] = &[
        "", " ", "\0", "ü", "..", "a/b", "%s", "true", "eth0", "weft0", "none", "tcp", "80-90", "9-1",
        "role=db", "net.a", "10.1.2.3", "10.0.0.0/8", "10.1.2.3/8", "10.0.0.0/33", "fd00::1", "fd00::/64",
        "::ffff:10.0.0.1", "224.0.0.1", "02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "/run/x",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1..70_000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(TEXTS).prop_map(Value::from),
        ".*".prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    const KEYS: &[&str] = &[
        "type", "subnet", "dst", "gw", "from", "to", "container", "label", "prefix", "port", "key", "value",
        "allow", "deny", "mac", "ip", "cni", "weft", "hostPort", "containerPort", "servers", "ranges",
        "etcd", "sticky",
    ];
    let key = prop_oneof![prop::sample::select(KEYS).prop_map(str::to_owned), ".{0,4}"];
    scalar().prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// The paths to all that is inside of a value, each as keys and numbers.
fn paths(value: &Value, here: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, inner)| (key.replace('/', "~1"), inner)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, inner)| (at.to_string(), inner)).collect(),
        _ => Vec::new(),
    };
    let below = |(key, inner): &(String, &Value)| {
        let path = format!("{here}/{key}");
        [vec![path.clone()], paths(inner, &path)].concat()
    };
    inner.iter().flat_map(below).collect()
}

/// The example of a documented key, and a place in it.
fn place() -> impl Strategy<Value = (Value, String)> {
    let examples: Vec<Value> = rows().map(|(_, _, example)| example).collect();
    let places = examples
        .iter()
        .flat_map(|example| paths(example, "").into_iter().map(|path| (example.clone(), path)));
    prop::sample::select(places.collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn another_value_has_a_meaning_or_is_refused_by_key_and_value((mut conf, path) in place(), value in value()) {
        conf["name"] = "net".into();
        *conf.pointer_mut(&path).unwrap() = value.clone();
        let error = match Meaning::of(&conf) {
            Ok(meaning) => {
                meaning.survives_records();
                return Ok(());
            }
            Err(error) => error,
        };
        // As far as objects lead: errors about lists may tell of the whole.
        let keys: Vec<&str> = path.split('/').skip(1).take_while(|key| key.parse::<u8>().is_err()).collect();
        let key = keys.join(".");
        prop_assert!([Code::InvalidConfig, Code::UnsupportedField].contains(&error.code), "{}: {}", conf, error);
        prop_assert!(error.msg.contains(&key), "{}: {}", conf, error);
        let told = match &value {
            // Of what is inside of it, the part that is wrong is named, and nothing where something has to be.
            Value::Array(_) | Value::Object(_) | Value::Null => true,
            Value::String(text) => {
                [text, &value.to_string(), &format!("{text:?}")].into_iter().any(|told| error.msg.contains(told))
            }
            other => error.msg.contains(&other.to_string()),
        };
        prop_assert!(told || error.msg.contains("is not valid: "), "{}: {}", conf, error);
    }

    #[test]
    fn any_values_at_once_have_a_meaning_or_one_is_refused(
        fields in prop::collection::btree_map(
            prop::sample::select(rows().map(|(key, ..)| key).filter(|key| !key.contains('.')).collect::<Vec<_>>()),
            value(),
            1..6,
        ),
    ) {
        let conf = json!(fields);
        match Meaning::of(&conf) {
            Ok(meaning) => meaning.survives_records(),
            Err(error) => prop_assert!(fields.keys().any(|key| error.msg.contains(key)), "{}: {}", conf, error),
        }
    }

    #[test]
    fn another_key_is_refused_with_its_value_and_a_key_that_there_is(
        place in prop::sample::select(&["", "guard", "egress", "args.weft", "runtimeConfig.bandwidth"][..]),
        key in "[a-zA-Z]{1,12}|[a-z]{0,2}(egressBurst|isGateway|allow|sources|rogue|mac|deny|mtu|icc)[a-zA-Z]{1,2}",
        value in value().prop_filter("asks for something", keys::asks_for_something),
    ) {
        let with = |key: &str| {
            let inner = json!({key: value.clone()});
            let whole = place.rsplit('.').filter(|part| !part.is_empty()).fold(inner, |inner, part| json!({part: inner}));
            Meaning::of(&whole).err().map(|error| error.msg).unwrap_or_default()
        };
        let full = |key: &str| if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
        let unknown = |key: &str| format!("unknown key {} with value {value}: ", full(key));
        let said = with(&key);
        let Some(remedy) = said.strip_prefix(&unknown(&key)) else {
            prop_assert!(!said.starts_with("unknown key"), "{}", said);
            return Ok(());
        };
        if let Some(meant) = remedy.strip_prefix("did you mean ") {
            let meant = meant.trim_end_matches('?');
            prop_assert!(!with(meant).starts_with(&unknown(meant)), "{}: {}", key, said);
        }
    }
}
