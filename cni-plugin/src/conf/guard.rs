//! What a container may claim to be: `guard`, `macspoofchk`, and more addresses of one container.

use cni_protocol::{Code, Error, decode};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{conventions, invalid, keys, prefixes};

/// What frames of a container are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parts {
    /// The source MAC address.
    pub mac: bool,
    /// Source addresses of IPv4 and IPv6.
    pub ip: bool,
    /// The sender of ARP.
    pub arp: bool,
    /// What IPv6 neighbour discovery says to be the container's.
    pub nd: bool,
    /// Whether it behaves as no router, DHCP server, switch or trunk.
    pub rogue: bool,
}

impl Parts {
    const ALL: Self = Self { mac: true, ip: true, arp: true, nd: true, rogue: true };
    const NONE: Self = Self { mac: false, ip: false, arp: false, nd: false, rogue: false };

    /// Whether nothing is compared.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Those that need no addresses.
    #[must_use]
    pub fn without_addresses(self) -> Self {
        Self { ip: false, arp: false, nd: false, ..self }
    }

    /// Reads `guard` and `macspoofchk`.
    ///
    /// # Errors
    /// [`Code::UnsupportedField`] for an unknown part; [`Code::InvalidConfig`] for a value that cannot be meant, or two that
    /// contradict each other.
    pub(super) fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let parts = match conf.get("guard") {
            None | Some(Value::Null | Value::Bool(true)) => Self::ALL,
            Some(Value::Bool(false)) => Self::NONE,
            Some(Value::Object(parts)) => {
                keys::refuse_others("guard", parts, &["arp", "ip", "mac", "nd", "rogue"])?;
                decode(parts)?
            }
            Some(other) => {
                return Err(invalid("guard", other, "give true, false or an object like {\"arp\": false}"));
            }
        };
        match conf.get("macspoofchk") {
            None | Some(Value::Null | Value::Bool(false)) => Ok(parts),
            Some(Value::Bool(true)) if parts.mac => Ok(parts),
            Some(Value::Bool(true)) => Err(Error::new(
                Code::InvalidConfig,
                "macspoofchk is true, but guard leaves source MAC addresses alone: take one of the two out",
            )),
            Some(other) => Err(invalid("macspoofchk", other, "give true or false")),
        }
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self::ALL
    }
}

/// Addresses besides its own that one container may use, `args.cni.allowedAddresses`: for those that move between
/// containers, and for containers that route.
///
/// # Errors
/// [`Code::InvalidConfig`] for something else than a list of addresses and prefixes.
pub(super) fn allowed_addresses(conf: &Map<String, Value>) -> Result<Vec<IpNetwork>, Error> {
    let key = "args.cni.allowedAddresses";
    let Some(raw) = conventions(conf).and_then(|cni| cni.get("allowedAddresses")) else {
        return Ok(Vec::new());
    };
    let texts: Vec<String> = Vec::deserialize(raw)
        .ok()
        .ok_or_else(|| invalid(key, raw, "give a list of addresses and prefixes"))?;
    Ok(super::isolation::reduced(prefixes(key, &texts)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: &Value) -> Result<Parts, Error> {
        Parts::parse(conf.as_object().unwrap())
    }

    #[test]
    fn all_parts_are_on_but_those_that_are_off() {
        assert_eq!(parse(&json!({})).unwrap(), Parts::ALL);
        assert_eq!(parse(&json!({"guard": true, "macspoofchk": true})).unwrap(), Parts::ALL);
        assert!(parse(&json!({"guard": false})).unwrap().is_none());
        let parts = parse(&json!({"guard": {"arp": false}})).unwrap();
        assert_eq!(parts, Parts { arp: false, ..Parts::ALL });
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        for (conf, named) in [
            (json!({"guard": "on"}), "guard"),
            (json!({"guard": {"macs": true}}), "guard.macs"),
            (json!({"guard": {"mac": 1}}), "mac"),
            (json!({"guard": false, "macspoofchk": true}), "macspoofchk"),
            (json!({"macspoofchk": 1}), "macspoofchk"),
        ] {
            let error = parse(&conf).unwrap_err();
            assert!(error.msg.contains(named), "{conf}: {}", error.msg);
        }
        let conf = json!({"args": {"cni": {"allowedAddresses": ["10.0.0.0/33"]}}});
        assert!(allowed_addresses(conf.as_object().unwrap()).is_err());
    }
}
