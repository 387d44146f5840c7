//! The plugin's configuration, and the delegate's that follows from it.

use std::path::{Path, PathBuf};

use cni_protocol::{Call, Code, Error, nearest};
use serde_json::{Map, Value, json};

use super::delegate::{Facts, HOST_LOCAL, WEFT, WEFT_IPAM, default_ipam};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";
/// The bridge that flannel's delegate makes unless told otherwise.
const BRIDGE: &str = "cni0";

const KEYS: &[&str] = &[
    "args", "capabilities", "cniVersion", "cni.dev/attachments", "cni.dev/valid-attachments", "dataDir",
    "delegate", "dns", "ipam", "logFile", "logLevel", "name", "prevResult", "runtimeConfig", "stateDir",
    "subnetFile", "timeout", "type",
];
/// What the delegate is told as it stands.
const PASSED_ON: &[&str] = &[
    "args", "cniVersion", "cni.dev/attachments", "cni.dev/valid-attachments", "dns", "name", "prevResult",
    "runtimeConfig",
];
/// Weft's own keys, for Weft as the delegate.
const WEFTS: &[&str] = &["logFile", "logLevel", "stateDir", "timeout"];

/// The configuration, checked.
#[derive(Debug)]
pub(super) struct FlannelConf {
    pub(super) subnet_file: PathBuf,
    pub(super) data_dir: PathBuf,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
}

impl FlannelConf {
    /// # Errors
    /// [`Code::UnsupportedField`] for an unknown key, [`Code::InvalidConfig`] with key, value and remedy.
    pub(super) fn parse(call: &Call) -> Result<Self, Error> {
        let conf = &call.conf;
        if let Some((key, value)) = conf.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            let remedy = match nearest(key, KEYS) {
                Some(near) => format!("did you mean {near}?"),
                None => "take it out, or put it into delegate; docs/flannel.md lists every key".to_owned(),
            };
            return Err(Error::new(
                Code::UnsupportedField,
                format!("unknown key {key} with value {value}: {remedy}"),
            ));
        }
        let delegate = object(conf, "delegate")?;
        for key in ["name", "ipam"] {
            if let Some(value) = delegate.get(key) {
                let remedy =
                    if key == "ipam" { "write it beside delegate" } else { "the network's is taken" };
                return Err(invalid(&format!("delegate.{key}"), value, &format!("take it out: {remedy}")));
            }
        }
        if let Some(other) = delegate.get("type").filter(|kind| !kind.is_string()) {
            return Err(invalid("delegate.type", other, "give a plugin's name, like \"bridge\""));
        }
        Ok(Self {
            subnet_file: path(conf, "subnetFile", SUBNET_FILE)?,
            data_dir: path(conf, "dataDir", DATA_DIR)?,
            ipam: object(conf, "ipam")?,
            delegate,
        })
    }

    /// What the delegate is told when it gives an address, or says whether it would.
    ///
    /// # Errors
    /// As [`default_ipam`].
    pub(super) fn delegate_to_give(&self, call: &Call, facts: &Facts) -> Result<Map<String, Value>, Error> {
        Ok(self.told(call, facts, self.ipam(call)?))
    }

    /// What it is told of attachments that are there, for which no store has to be found.
    pub(super) fn delegate(&self, call: &Call, facts: &Facts) -> Map<String, Value> {
        let ipam = self.ipam(call).unwrap_or_else(|_| {
            let mut ipam = self.ipam.clone();
            ipam.insert("type".into(), WEFT_IPAM.into());
            ipam
        });
        self.told(call, facts, ipam)
    }

    fn is_weft(&self) -> bool {
        matches!(self.delegate.get("type").and_then(Value::as_str), None | Some("bridge" | WEFT))
    }

    fn told(&self, call: &Call, facts: &Facts, mut ipam: Map<String, Value>) -> Map<String, Value> {
        let mut delegate = self.delegate.clone();
        if self.is_weft() {
            delegate.insert("type".into(), WEFT.into());
            delegate.entry("bridge").or_insert(BRIDGE.into());
            delegate.entry("isGateway").or_insert(true.into());
            copy(&call.conf, WEFTS, &mut delegate);
        }
        copy(&call.conf, PASSED_ON, &mut delegate);
        if let Some(ipmasq) = facts.ipmasq {
            // Either flannel masquerades, or the delegate does.
            delegate.entry("ipMasq").or_insert((!ipmasq).into());
        }
        if let Some(mtu) = facts.mtu {
            delegate.entry("mtu").or_insert(mtu.into());
        }
        extend(
            &mut ipam,
            "ranges",
            facts.subnets.iter().map(|subnet| {
                let subnet = format!("{}/{}", subnet.network(), subnet.prefix());
                json!([{ "subnet": subnet }])
            }),
        );
        extend(&mut ipam, "routes", facts.networks.iter().map(|network| json!({ "dst": network })));
        delegate.insert("ipam".into(), Value::Object(ipam));
        delegate
    }

    /// Who gives addresses, and what it is told before the host's are known.
    fn ipam(&self, call: &Call) -> Result<Map<String, Value>, Error> {
        let mut ipam = self.ipam.clone();
        if !ipam.contains_key("type") {
            let (kind, taken) = if self.is_weft() { default_ipam(call)? } else { (HOST_LOCAL, Vec::new()) };
            ipam.insert("type".into(), kind.into());
            extend(&mut ipam, "exclude", taken.iter().map(|ip| json!(ip)));
        }
        Ok(ipam)
    }
}

/// What the delegate was told when it made the attachment, with what the runtime says now.
pub(super) fn again(call: &Call, mut known: Map<String, Value>) -> Map<String, Value> {
    copy(&call.conf, PASSED_ON, &mut known);
    known
}

/// Adds to a list what is not in it.
fn extend(ipam: &mut Map<String, Value>, key: &str, values: impl Iterator<Item = Value>) {
    let mut list = ipam.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for value in values {
        if !list.contains(&value) {
            list.push(value);
        }
    }
    if !list.is_empty() {
        ipam.insert(key.into(), list.into());
    }
}

fn copy(from: &Map<String, Value>, keys: &[&str], to: &mut Map<String, Value>) {
    for key in keys {
        if let Some(value) = from.get(*key) {
            to.insert((*key).to_owned(), value.clone());
        }
    }
}

fn object(conf: &Map<String, Value>, key: &str) -> Result<Map<String, Value>, Error> {
    match conf.get(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object.clone()),
        Some(other) => Err(invalid(key, other, "give an object")),
    }
}

fn path(conf: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, Error> {
    match conf.get(key) {
        None | Some(Value::Null) => Ok(default.into()),
        Some(Value::String(text)) if text.is_empty() => Ok(default.into()),
        Some(Value::String(text)) if Path::new(text).is_absolute() => Ok(text.into()),
        Some(other) => Err(invalid(key, other, "give an absolute path")),
    }
}

fn invalid(key: &str, value: &Value, remedy: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{key} is {value}: {remedy}"))
}
