//! The result of ADD, in the terms of the newest version; `shape.rs` has how the older ones write it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};

/// What an ADD made. Its serde form is version 1.1.0's without `cniVersion`; a runtime is answered with
/// [`AddResult::to_json`].
///
/// Source: CNI specification 1.1.0, section 5 "ADD Success".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Absent from the result of an IPAM plugin.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub ips: Vec<IpConfig>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub routes: Vec<Route>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub dns: Dns,
}

/// An interface of an attachment, in the container or on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    /// The hardware address as text: a chained plugin's interface may have one that is not Ethernet's.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace as `CNI_NETNS` had it; `None` on the host.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    #[serde(
        default,
        rename = "pciID",
        deserialize_with = "empty_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub pci_id: Option<String>,
}

/// An address of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with its subnet's prefix length; the bits of the host are kept.
    #[serde(with = "cidr")]
    pub address: IpNetwork,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The index of the address' interface. Another plugin may have written one that does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    #[serde(with = "cidr")]
    pub dst: IpNetwork,
    /// The next hop; without one a gateway of the addresses may be used.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The TCP segment size to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric: lower goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// 0 global, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// What the kernel would refuse: the field, its value, and why with the remedy.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String, String)> {
        let dst = self.dst;
        if dst.ip() != dst.network() {
            let reason = format!("has host bits set; write {}/{}", dst.network(), dst.prefix());
            return Some(("dst", dst.to_string(), reason));
        }
        let gw = self.gw?;
        if gw.is_ipv4() != dst.is_ipv4() {
            let reason = format!("is not of the family of {dst}; use a gateway of the same one");
            return Some(("gw", gw.to_string(), reason));
        }
        let no_router = gw.is_multicast() || gw.is_loopback() || gw.is_unspecified();
        no_router
            .then(|| ("gw", gw.to_string(), "is the address of no router; use a unicast address".to_owned()))
    }

    /// A route to a prefix with nothing else said of it.
    #[must_use]
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// How the container resolves names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Go writes an empty list or struct as `null` at times.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go writes an absent address or name as `""` at times.
pub(crate) fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}"))))
        .transpose()
}

/// Addresses with a prefix length. Stricter than `IpNetwork`'s own form, which takes "10.0.0.1" for a /32
/// and netmasks for prefix lengths.
pub(crate) mod cidr {
    use std::net::IpAddr;

    use ipnetwork::IpNetwork;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(network: &IpNetwork, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(network)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNetwork, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is no address with a prefix length, like 10.1.0.5/16"))
        })
    }

    fn parse(text: &str) -> Option<IpNetwork> {
        let (address, prefix) = text.split_once('/')?;
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let address: IpAddr = address.parse().ok()?;
        IpNetwork::new(address, prefix.parse().ok()?).ok()
    }
}
