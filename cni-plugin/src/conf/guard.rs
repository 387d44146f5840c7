//! Which parts of the guard are on.

use std::collections::BTreeSet;

use cni_protocol::{Code, Error};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{conventions, invalid, keys, prefixes};

/// A part of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Source MAC addresses.
    Mac,
    /// Source IP addresses.
    Ip,
    /// Senders in ARP.
    Arp,
    /// Senders in IPv6's neighbour discovery.
    Nd,
    /// Router advertisements, redirects, answers of DHCP servers, what bridges tell each other.
    Rogue,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Mac, Self::Ip, Self::Arp, Self::Nd, Self::Rogue];
    const NAMES: &'static [&'static str] = &["mac", "ip", "arp", "nd", "rogue"];
}

/// Reads out of a configuration which parts are on: all, unless `guard` says otherwise.
///
/// # Errors
/// An unknown part; a value that is neither true nor false; `macspoofchk` of the reference bridge beside a `guard`
/// without MAC addresses.
pub fn parts(conf: &Map<String, Value>) -> Result<BTreeSet<Part>, Error> {
    let remedy = "give true, false, or an object like {\"ip\": false} with the parts that are off";
    let mut on = BTreeSet::from(Part::ALL);
    match conf.get("guard") {
        None | Some(Value::Null | Value::Bool(true)) => {}
        Some(Value::Bool(false)) => on.clear(),
        Some(Value::Object(parts)) => {
            keys::refuse_others("guard", parts, Part::NAMES)?;
            for (part, name) in Part::ALL.iter().zip(Part::NAMES) {
                match parts.get(*name) {
                    None | Some(Value::Null | Value::Bool(true)) => {}
                    Some(Value::Bool(false)) => {
                        on.remove(part);
                    }
                    Some(other) => {
                        return Err(invalid(&format!("guard.{name}"), other, "give true or false"));
                    }
                }
            }
        }
        Some(other) => return Err(invalid("guard", other, remedy)),
    }
    match conf.get("macspoofchk") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(on),
        Some(Value::Bool(true)) if on.contains(&Part::Mac) => Ok(on),
        Some(Value::Bool(true)) => Err(Error::new(
            Code::InvalidConfig,
            "macspoofchk is true, but guard leaves MAC addresses out: set guard.mac to true, or leave macspoofchk out",
        )),
        Some(other) => Err(invalid("macspoofchk", other, "give true or false")),
    }
}

/// Further addresses that one container may use.
///
/// # Errors
/// [`Code::InvalidConfig`] for what is no address and no prefix.
pub fn allowed_addresses(conf: &Map<String, Value>) -> Result<Vec<IpNetwork>, Error> {
    const KEY: &str = "args.cni.allowedAddresses";
    let remedy = "give a list of addresses or prefixes, like [\"192.0.2.10\"]";
    let texts = match conventions(conf).and_then(|cni| cni.get("allowedAddresses")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => serde_json::from_value::<Vec<String>>(list.clone())
            .ok()
            .ok_or_else(|| invalid(KEY, list, remedy))?,
    };
    let allowed = prefixes(KEY, &texts)?;
    match allowed.iter().find(|prefix| prefix.ip() != prefix.network()) {
        None => Ok(allowed),
        Some(wrong) => {
            let whole = format!("{}/{}", wrong.network(), wrong.prefix());
            let msg = format!(
                "{KEY} has {wrong}, with host bits: write {} for the address or {whole} for all of the prefix",
                wrong.ip()
            );
            Err(Error::new(Code::InvalidConfig, msg))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn on(conf: &Value) -> Result<Vec<Part>, Error> {
        parts(conf.as_object().unwrap()).map(|parts| parts.into_iter().collect())
    }

    #[test]
    fn all_is_on_unless_it_is_said() {
        for conf in [json!({}), json!({"guard": true}), json!({"guard": {}}), json!({"guard": null})] {
            assert_eq!(on(&conf).unwrap(), Part::ALL, "{conf}");
        }
        assert_eq!(on(&json!({"guard": false, "macspoofchk": false})).unwrap(), []);
        let some =
            json!({"guard": {"ip": false, "arp": false, "nd": false, "rogue": true}, "macspoofchk": true});
        assert_eq!(on(&some).unwrap(), [Part::Mac, Part::Rogue]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (conf, code, parts) in [
            (json!({"guard": "yes"}), Code::InvalidConfig, ["guard is \"yes\"", "give true, false"]),
            (json!({"guard": {"mac": 1}}), Code::InvalidConfig, ["guard.mac is 1", "true or false"]),
            (json!({"guard": {"macs": true}}), Code::UnsupportedField, ["guard.macs", "did you mean mac?"]),
            (json!({"guard": false, "macspoofchk": true}), Code::InvalidConfig, ["macspoofchk", "guard"]),
            (
                json!({"guard": {"mac": false}, "macspoofchk": true}),
                Code::InvalidConfig,
                ["macspoofchk", "guard"],
            ),
            (json!({"macspoofchk": "on"}), Code::InvalidConfig, ["macspoofchk is \"on\"", "true or false"]),
        ] {
            let error = on(&conf).expect_err(&conf.to_string());
            assert_eq!(error.code, code, "{conf}");
            assert!(parts.iter().all(|part| error.msg.contains(part)), "{conf}: {}", error.msg);
        }
    }

    #[test]
    fn allowed_addresses_are_whole_prefixes() {
        let parse = |list: Value| {
            allowed_addresses(json!({"args": {"cni": {"allowedAddresses": list}}}).as_object().unwrap())
        };
        let allowed = parse(json!(["192.0.2.10", "2001:db8::/64"])).unwrap();
        assert_eq!(allowed, ["192.0.2.10/32", "2001:db8::/64"].map(|text| text.parse().unwrap()));
        for (list, part) in [
            (json!("192.0.2.10"), "give a list"),
            (json!([7]), "give a list"),
            (json!(["here"]), "allowedAddresses[0]"),
            (json!(["192.0.2.10/24"]), "192.0.2.0/24"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.msg.contains("allowedAddresses") && error.msg.contains(part), "{}", error.msg);
        }
    }
}
