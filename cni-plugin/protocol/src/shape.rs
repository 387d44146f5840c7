//! How each version of the specification writes a result.
//!
//! 0.1.0 and 0.2.0 have one address per family with its routes, 0.3.0 to 0.4.0 have lists with the family
//! written beside each address, 1.0.0 drops that, and 1.1.0 adds MTU, socket, PCI device and the details of
//! routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::node::Node;
use crate::result::{cidr, empty_is_none, null_is_empty};
use crate::{AddResult, Code, Dns, Error, IpConfig, Route, Version};

/// What 1.1.0 added to an interface and to a route.
const NEW_IN_INTERFACE: [&str; 3] = ["mtu", "socketPath", "pciID"];
const NEW_IN_ROUTE: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// The result of 0.1.0 and 0.2.0.
#[derive(Deserialize)]
struct Legacy {
    #[serde(default)]
    ip4: Option<LegacyIp>,
    #[serde(default)]
    ip6: Option<LegacyIp>,
    #[serde(default, deserialize_with = "null_is_empty")]
    dns: Dns,
}

#[derive(Deserialize)]
struct LegacyIp {
    #[serde(with = "cidr")]
    ip: IpNetwork,
    #[serde(default, deserialize_with = "empty_is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "null_is_empty")]
    routes: Vec<Route>,
}

impl AddResult {
    /// Reads a result in the shape of its own `cniVersion`. A result without one is taken for 0.1.0 when it
    /// has `ip4` or `ip6`, and else for a newer one, as the specification's own examples are.
    ///
    /// # Errors
    /// [`Code::Decode`] with the JSON path of what cannot be understood, [`Code::IncompatibleVersion`] for a
    /// version that Weft does not speak.
    pub fn from_json(json: &Value) -> Result<Self, Error> {
        let stated = match json.get("cniVersion") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.parse::<Version>()?),
            Some(other) => {
                return Err(Error::new(
                    Code::Decode,
                    format!("cniVersion of a result is {other}, not a text"),
                ));
            }
        };
        let version = stated.unwrap_or_else(|| {
            let legacy = json.get("ip4").is_some() || json.get("ip6").is_some();
            if legacy { Version::V0_1_0 } else { Version::NEWEST }
        });
        if version <= Version::V0_2_0 {
            return read::<Legacy>(json)?.into_result();
        }
        if version <= Version::V0_4_0 {
            check_families(json)?;
        }
        read(json)
    }

    /// Writes the result as a version wants it. What the version has no place for is left out: in 0.1.0 and
    /// 0.2.0 interfaces, and all but the first address of a family.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut json = if version <= Version::V0_2_0 { self.to_legacy() } else { self.to_lists(version) };
        json.insert("cniVersion".to_owned(), version.as_str().into());
        Value::Object(json)
    }

    fn to_lists(&self, version: Version) -> Map<String, Value> {
        let mut json = to_map(self);
        if version < Version::V1_1_0 {
            remove_from_each(&mut json, "interfaces", &NEW_IN_INTERFACE);
            remove_from_each(&mut json, "routes", &NEW_IN_ROUTE);
        }
        if version <= Version::V0_4_0
            && let Some(Value::Array(ips)) = json.get_mut("ips")
        {
            for (item, ip) in ips.iter_mut().zip(&self.ips) {
                item["version"] = family(ip.address).into();
            }
        }
        json
    }

    fn to_legacy(&self) -> Map<String, Value> {
        let mut json = Map::new();
        for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4) else {
                continue;
            };
            let mut item = Map::new();
            item.insert("ip".to_owned(), ip.address.to_string().into());
            if let Some(gateway) = ip.gateway {
                item.insert("gateway".to_owned(), gateway.to_string().into());
            }
            let routes = self.routes.iter().filter(|route| route.dst.is_ipv4() == is_ipv4);
            let routes: Vec<Value> = routes.map(|route| Value::Object(to_map(route))).collect();
            item.insert("routes".to_owned(), Value::Array(routes));
            remove_from_each(&mut item, "routes", &NEW_IN_ROUTE);
            json.insert(key.to_owned(), Value::Object(item));
        }
        json.insert("dns".to_owned(), Value::Object(to_map(&self.dns)));
        json
    }
}

impl Legacy {
    fn into_result(self) -> Result<AddResult, Error> {
        let mut result = AddResult { dns: self.dns, ..AddResult::default() };
        for (key, is_ipv4, ip) in [("ip4", true, self.ip4), ("ip6", false, self.ip6)] {
            let Some(ip) = ip else { continue };
            if ip.ip.is_ipv4() != is_ipv4 {
                return Err(Error::new(
                    Code::Decode,
                    format!("{key}.ip of a result is {}, an address of the other family", ip.ip),
                ));
            }
            result.ips.push(IpConfig { address: ip.ip, gateway: ip.gateway, interface: None });
            result.routes.extend(ip.routes);
        }
        Ok(result)
    }
}

/// 0.3.0 to 0.4.0 name each address' family beside it; the two must agree.
fn check_families(json: &Value) -> Result<(), Error> {
    for (index, ip) in json.get("ips").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let (Some(version), Some(address)) = (ip.get("version"), ip.get("address").and_then(Value::as_str))
        else {
            continue;
        };
        let family = if address.contains(':') { "6" } else { "4" };
        if version != family {
            return Err(Error::new(
                Code::Decode,
                format!("ips[{index}].version of a result is {version}, but its address is {address}"),
            ));
        }
    }
    Ok(())
}

fn family(address: IpNetwork) -> &'static str {
    if address.is_ipv4() { "4" } else { "6" }
}

fn read<T: DeserializeOwned>(json: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(Node(json)).map_err(|error| {
        Error::new(Code::Decode, format!("{} of a result cannot be decoded: {}", error.path(), error.inner()))
    })
}

/// Serialises one of this crate's structs, which are maps with texts for keys.
fn to_map(item: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(item) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn remove_from_each(json: &mut Map<String, Value>, list: &str, keys: &[&str]) {
    if let Some(Value::Array(items)) = json.get_mut(list) {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
}
