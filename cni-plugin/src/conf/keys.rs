//! Which keys there are: an unknown one is an error that names the nearest known one.

use cni_protocol::{Code, Error, nearest};
use serde_json::{Map, Value};

use super::{invalid, unsupported};

/// Every key that may stand in the configuration.
const KEYS: &[&str] = &[
    "allmulti", "allow", "args", "backend", "bridge", "capabilities", "chained", "cniVersion",
    "cni.dev/attachments", "cni.dev/valid-attachments", "dataDir", "disableContainerInterface", "dns",
    "egress", "egressBurst", "egressRate", "enabledad", "forceAddress", "guard", "hairpinMode", "hostAccess",
    "icc", "ingressBurst", "ingressRate", "interfaceMetrics", "internal", "ipMasq", "ipMasqBackend", "ipam",
    "isDefaultGateway", "isGateway", "isolation", "logFile", "logLevel", "mac", "macspoofchk", "masqAll",
    "mtu", "name", "noMasquerade", "portIsolation", "preserveDefaultVlan", "prevResult", "promisc",
    "promiscMode", "routes", "runtimeConfig", "shapedSubnets", "snat", "sources", "stateDir", "sysctl",
    "timeout", "txQLen", "type", "unshapedSubnets",
];

/// Keys of the reference plugins that ask for what Weft does not do yet: accepted while they ask for nothing.
const UNBUILT_KEYS: &[&str] = &["vlan", "vlanTrunk"];

/// Keys of the reference plugins that Weft does not have, with what to use instead.
const INSTEAD: &[(&str, &str)] = &[
    (
        "bandwidth",
        "it comes in runtimeConfig: add \"bandwidth\": true to \"capabilities\", or set ingressRate and egressRate",
    ),
    (
        "firewalldZone",
        "add the network's bridge to the zone with firewall-cmd; STATUS names the command where it is missing",
    ),
    (
        "ingressPolicy",
        "instead of \"same-bridge\" leave the key out, as networks are closed to each other unless isolation is \"none\"; instead of \"isolated\" set icc to false, instead of \"open\" set isolation to \"none\"",
    ),
    (
        "iptablesAdminChainName",
        "Weft has no chain of iptables; say who may talk with whom in isolation, allow, egress and sources",
    ),
    ("conditionsV4", "name the source prefixes that may use the ports in the key sources"),
    ("conditionsV6", "name the source prefixes that may use the ports in the key sources"),
    ("portMappings", "it comes in runtimeConfig: add \"portMappings\": true to \"capabilities\""),
    ("markMasqBit", "Weft needs no mark to masquerade; leave the key out"),
    ("externalSetMarkChain", "Weft needs no mark to masquerade; leave the key out"),
];

/// What a runtime may pass in `runtimeConfig`; `ipRanges` is for the IPAM plugin.
const CAPABILITIES: &[&str] = &["aliases", "bandwidth", "dns", "ipRanges", "ips", "mac", "portMappings"];

/// Refuses keys that nobody knows, and those that ask for what Weft does not do.
pub(super) fn refuse_unknown(conf: &Map<String, Value>) -> Result<(), Error> {
    for (key, value) in conf {
        let instead = INSTEAD.iter().find(|(name, _)| name == key).map(|(_, instead)| *instead);
        let unbuilt = UNBUILT_KEYS.contains(&key.as_str());
        let refused = instead.or(unbuilt.then_some("Weft does not do this yet; leave the key out"));
        match refused {
            Some(why) if asks_for_something(value) => return Err(unsupported(key, value, why)),
            Some(_) => {}
            None if KEYS.contains(&key.as_str()) => {}
            None => return Err(unknown(key, value)),
        }
    }
    let args = conf.get("args");
    let of = |whom: &str| args.and_then(|args| args.get(whom));
    for (key, settings) in [("args", args), ("args.cni", of("cni")), ("args.weft", of("weft"))] {
        if let Some(other) = settings.filter(|settings| !settings.is_object() && !settings.is_null()) {
            return Err(invalid(key, other, "give an object with settings of one container"));
        }
    }
    let Some(Value::Object(runtime)) = conf.get("runtimeConfig") else {
        return Ok(());
    };
    for (key, value) in runtime {
        if !CAPABILITIES.contains(&key.as_str()) && asks_for_something(value) {
            return Err(unsupported(
                &format!("runtimeConfig.{key}"),
                value,
                &format!(
                    "of capabilities Weft has {}; take {key} out of \"capabilities\"",
                    CAPABILITIES.join(", ")
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses keys of an object inside of the configuration that are not `known`.
pub(super) fn refuse_others(object: &str, fields: &Map<String, Value>, known: &[&str]) -> Result<(), Error> {
    let Some((key, value)) = fields.iter().find(|(key, _)| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let near = nearest(key, known)
        .map_or_else(|| format!("{object} has {}", known.join(", ")), |near| format!("did you mean {near}?"));
    Err(Error::new(Code::UnsupportedField, format!("unknown key {object}.{key} with value {value}: {near}")))
}

/// Whether a value differs from "no" in all its forms.
pub(super) fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::String(_) => true,
    }
}

fn unknown(key: &str, value: &Value) -> Error {
    let remedy = match nearest(key, KEYS) {
        Some(near) => format!("did you mean {near}?"),
        None => "take it out; docs/configuration.md lists every key".to_owned(),
    };
    Error::new(Code::UnsupportedField, format!("unknown key {key} with value {value}: {remedy}"))
}
