//! Weft behind another interface plugin: `"chained": true`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cni_protocol::{Code, Error};
use serde_json::{Map, Value};
use weft_state::state_dir;

use super::guard::{Part, parts};
use super::invalid;
use super::isolation::IsolationPolicy;
use super::keys::{asks_for_something, refuse_unknown};
use super::ports::PortPolicy;
use super::shaping::Shaping;

/// The keys that are about an interface whoever made it, and those of every plugin.
const KEYS: &[&str] = &[
    "allow", "args", "backend", "capabilities", "chained", "cniVersion", "cni.dev/attachments",
    "cni.dev/valid-attachments", "egress", "egressBurst", "egressRate", "guard", "hostAccess", "icc",
    "ingressBurst", "ingressRate", "internal", "isolation", "logFile", "logLevel", "macspoofchk", "masqAll",
    "name", "prevResult", "runtimeConfig", "shapedSubnets", "snat", "sources", "stateDir", "timeout", "type",
    "unshapedSubnets",
];

/// What a runtime may pass.
const CAPABILITIES: &[&str] = &["aliases", "bandwidth", "portMappings"];

/// What Weft does with the interfaces of another plugin, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chained {
    pub ports: PortPolicy,
    pub shaping: Shaping,
    pub guard: BTreeSet<Part>,
    pub isolation: IsolationPolicy,
    /// The key that asks for the guard; without one, it is on where it can be.
    pub guard_wish: Option<Wish>,
    /// The keys that ask for isolation; without any, a network is closed where it can be.
    pub isolation_wishes: Vec<Wish>,
    pub state_dir: PathBuf,
}

/// A key that asks for what not every interface can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub key: &'static str,
    value: Value,
}

impl Wish {
    /// Those of some keys that ask for something, each told what asks for nothing.
    fn all(conf: &Map<String, Value>, keys: &[(&'static str, Value)]) -> Vec<Self> {
        let wish = |(key, nothing): &(&'static str, Value)| {
            let value =
                conf.get(*key).filter(|value| ![&Value::Null, &"".into(), nothing].contains(value))?;
            Some(Self { key, value: value.clone() })
        };
        keys.iter().filter_map(wish).collect()
    }

    /// Why an interface cannot have it, and what helps.
    pub fn refused(&self, why: &str) -> Error {
        Error::new(Code::InvalidConfig, format!("{} is {}, but {why}", self.key, self.value))
    }
}

/// Whether a configuration puts Weft behind another interface plugin.
///
/// # Errors
/// [`Code::InvalidConfig`] when `chained` is neither true nor false.
pub fn is_chained(conf: &Map<String, Value>) -> Result<bool, Error> {
    match conf.get("chained") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(chained)) => Ok(*chained),
        Some(other) => Err(invalid("chained", other, "give true or false")),
    }
}

impl Chained {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`Code::UnsupportedField`] for a key that nobody knows, and for one that is about an interface that Weft itself
    /// makes; [`Code::InvalidConfig`] for a value that cannot be meant.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        refuse_unknown(conf)?;
        refuse_others("", conf, KEYS)?;
        if let Some(Value::Object(runtime)) = conf.get("runtimeConfig") {
            refuse_others("runtimeConfig.", runtime, CAPABILITIES)?;
        }
        if let Some(Value::Object(own)) = conf.get("args").and_then(|args| args.get("weft")) {
            refuse_others("args.weft.", own, &["allow", "sources"])?;
        }
        let no = Value::Bool(false);
        let guards = [("guard", no.clone()), ("macspoofchk", no.clone())];
        let isolates = [
            ("isolation", Value::from("none")),
            ("icc", Value::Bool(true)),
            ("internal", no),
            ("egress", Value::Object(Map::new())),
            ("hostAccess", Value::Bool(true)),
        ];
        Ok(Self {
            ports: PortPolicy::parse(conf)?,
            shaping: Shaping::of_network(conf)?,
            guard: parts(conf)?,
            isolation: IsolationPolicy::parse(conf)?,
            guard_wish: Wish::all(conf, &guards).pop(),
            isolation_wishes: Wish::all(conf, &isolates),
            state_dir: state_dir(conf.get("stateDir"))?,
        })
    }
}

fn refuse_others(object: &str, fields: &Map<String, Value>, known: &[&str]) -> Result<(), Error> {
    let other =
        fields.iter().find(|(key, value)| !known.contains(&key.as_str()) && asks_for_something(value));
    other.map_or(Ok(()), |(key, value)| {
        let why = "is for interfaces that Weft makes, but with chained the plugin before it made the interface: \
                   take it out, or set it there";
        Err(Error::new(Code::UnsupportedField, format!("key {object}{key} with value {value} {why}")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: &Value) -> Result<Chained, Error> {
        Chained::parse(conf.as_object().unwrap())
    }

    #[test]
    fn keys_of_an_own_interface_are_refused_by_name() {
        let conf = |key: &str, value: Value| {
            let mut conf = json!({"name": "net", "type": "weft", "chained": true});
            conf[key] = value;
            conf
        };
        for (key, value) in [
            ("bridge", json!("weft0")),
            ("isGateway", json!(true)),
            ("ipMasq", json!(true)),
            ("mtu", json!(1400)),
            ("ipam", json!({"type": "weft-ipam"})),
            ("dns", json!({"domain": "example.org"})),
            ("sysctl", json!({"net.core.somaxconn": "1"})),
            ("routes", json!([{"dst": "10.0.0.0/8"}])),
            ("portIsolation", json!(true)),
        ] {
            let error = parse(&conf(key, value)).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField);
            assert!(
                error.msg.contains(&format!("key {key} ")) && error.msg.contains("chained"),
                "{}",
                error.msg
            );
        }
        let error = parse(&conf("runtimeConfig", json!({"mac": "02:00:00:00:00:01"}))).unwrap_err();
        assert!(error.msg.contains("runtimeConfig.mac"), "{}", error.msg);
        assert!(parse(&conf("chaind", json!(true))).unwrap_err().msg.contains("did you mean chained?"));
        // What asks for nothing is in nobody's way.
        for (key, value) in [("isGateway", json!(false)), ("ipam", json!({})), ("mtu", json!(0))] {
            parse(&conf(key, value)).unwrap();
        }
    }

    #[test]
    fn what_concerns_any_interface_is_read() {
        let conf = json!({
            "name": "net", "type": "weft", "chained": true, "sources": ["192.0.2.0/24"], "ingressRate": 8000,
            "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [], "aliases": ["web"]},
        });
        let chained = parse(&conf).unwrap();
        assert_eq!(chained.ports.sources.len(), 1);
        assert!(!chained.shaping.is_none());
    }

    #[test]
    fn what_is_asked_for_is_told_from_what_is_on_by_default() {
        let wishes = |conf: Value| {
            let conf = parse(&conf).unwrap();
            let keys = conf.isolation_wishes.iter().chain(&conf.guard_wish);
            keys.map(|wish| wish.key).collect::<Vec<_>>()
        };
        let nothing = json!({
            "guard": false, "macspoofchk": false, "isolation": "none", "icc": true, "internal": false, "egress": {},
            "hostAccess": true,
        });
        for conf in [json!({}), nothing, json!({"guard": null, "isolation": null})] {
            assert_eq!(wishes(conf), [""; 0]);
        }
        let all = json!({
            "guard": {"arp": false}, "isolation": "network", "icc": false, "internal": true,
            "egress": {"deny": ["192.0.2.0/24"]}, "hostAccess": false,
        });
        assert_eq!(wishes(all), ["isolation", "icc", "internal", "egress", "hostAccess", "guard"]);
        assert_eq!(wishes(json!({"macspoofchk": true})), ["macspoofchk"]);
        let error = parse(&json!({"guard": true})).unwrap().guard_wish.unwrap().refused("no");
        assert_eq!((error.code, error.msg.as_str()), (Code::InvalidConfig, "guard is true, but no"));
        assert!(parse(&json!({"guard": "on"})).is_err() && parse(&json!({"isolation": "all"})).is_err());
    }

    #[test]
    fn the_key_is_true_or_false() {
        let asked = |chained: Value| is_chained(json!({"chained": chained}).as_object().unwrap());
        assert!(asked(json!(true)).unwrap());
        assert!(!asked(json!(false)).unwrap() && !asked(json!(null)).unwrap());
        assert_eq!(asked(json!("true")).unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn an_ipam_plugin_is_never_called() {
        let conf = json!({"chained": true, "ipam": {"type": "host-local"}});
        assert_eq!(crate::conf::ipam(conf.as_object().unwrap()).unwrap(), None);
    }
}
