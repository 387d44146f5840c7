//! What a host writes of itself into the store: at `<prefix>/subnets/<key>` its public addresses and how it is
//! reached. The key names the subnets.
//!
//! Source: pkg/subnet/subnet.go (`MakeSubnetKey`, `ParseSubnetKey`, `LeaseAttrs`) and
//! pkg/backend/vxlan/vxlan.go (`vxlanLeaseAttrs`) of flannel v0.28.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Vni;

/// One host of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// One of each family that the host has, IPv4 first; one at least.
    segments: Vec<Segment>,
    pub transport: Transport,
}

/// One family's part of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The subnet of the host's containers.
    pub subnet: IpNetwork,
    /// The host's own address.
    pub public: IpAddr,
    /// The address of the host's VXLAN device; `None` without VXLAN.
    pub vtep: Option<MacAddr>,
}

/// How the host is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Vxlan(Vni),
    HostGw,
}

/// Why a key and its value are no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the key is no subnet")]
    Key,
    #[error("the value is no record: {0}")]
    Value(String),
    #[error("{key} is {value}, {reason}")]
    Field { key: &'static str, value: String, reason: &'static str },
    #[error("backend type {0:?} is none of Weft's")]
    Backend(String),
}

/// flannel's JSON, with its keys in its order.
#[derive(Debug, Serialize, Deserialize)]
struct Attributes {
    #[serde(rename = "PublicIP", default = "unspecified")]
    public: Ipv4Addr,
    #[serde(rename = "PublicIPv6", default)]
    public_v6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType")]
    backend_type: String,
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
    #[serde(rename = "BackendV6Data", default, skip_serializing_if = "Option::is_none")]
    data_v6: Option<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VxlanData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

fn unspecified() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

impl HostRecord {
    /// A host with these segments, one of each family at most and one at least.
    ///
    /// # Errors
    /// What [`HostRecord::parse`] would refuse in the record.
    pub fn new(mut segments: Vec<Segment>, transport: Transport) -> Result<Self, RecordError> {
        segments.sort_by_key(|segment| segment.subnet.is_ipv6());
        let families: Vec<bool> = segments.iter().map(|segment| segment.subnet.is_ipv4()).collect();
        if !matches!(families[..], [_] | [true, false]) {
            return Err(RecordError::Key);
        }
        for segment in &segments {
            segment.check(transport)?;
        }
        Ok(Self { segments, transport })
    }

    /// Reads the last part of a key and its value.
    ///
    /// # Errors
    /// What is wrong with them: everything in the store may have been written by anybody.
    pub fn parse(key: &str, value: &str) -> Result<Self, RecordError> {
        let attributes: Attributes =
            serde_json::from_str(value).map_err(|error| RecordError::Value(error.to_string()))?;
        let subnets = parse_key(key).ok_or(RecordError::Key)?;
        let vxlan = match attributes.backend_type.as_str() {
            "vxlan" => true,
            "host-gw" => false,
            other => return Err(RecordError::Backend(other.to_owned())),
        };
        let mut vni = None;
        let mut segments = Vec::new();
        for subnet in subnets {
            let (public, data) = if subnet.is_ipv4() {
                (Some(IpAddr::V4(attributes.public)), &attributes.data)
            } else {
                (attributes.public_v6.map(IpAddr::V6), &attributes.data_v6)
            };
            let public = public.ok_or(RecordError::Field {
                key: "PublicIPv6",
                value: "null".into(),
                reason: "but the key has an IPv6 subnet",
            })?;
            let vtep = if vxlan { Some(vtep(data.as_ref(), &mut vni)?) } else { None };
            segments.push(Segment { subnet, public, vtep });
        }
        Self::new(segments, vni.map_or(Transport::HostGw, Transport::Vxlan))
    }

    /// The segments, IPv4 first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The last part of the key, as flannel writes it: `10.240.34.0-24`, `10.244.65.0-24&fd00:42:0:31::-64`,
    /// `0.0.0.0-0&fd00:43:0:12::-64`.
    #[must_use]
    pub fn key(&self) -> String {
        key_of(&self.segments.iter().map(|segment| segment.subnet).collect::<Vec<_>>())
    }

    /// The value, as flannel writes it.
    #[must_use]
    pub fn value(&self) -> String {
        let mut attributes = Attributes {
            public: Ipv4Addr::UNSPECIFIED,
            public_v6: None,
            backend_type: match self.transport {
                Transport::Vxlan(_) => "vxlan".into(),
                Transport::HostGw => "host-gw".into(),
            },
            data: None,
            data_v6: None,
        };
        for segment in &self.segments {
            let data = match (self.transport, segment.vtep) {
                (Transport::Vxlan(vni), Some(mac)) => {
                    serde_json::to_value(VxlanData { vni: vni.number(), mac: mac.to_string() }).ok()
                }
                _ => None,
            };
            match segment.public {
                IpAddr::V4(public) => (attributes.public, attributes.data) = (public, data),
                IpAddr::V6(public) => (attributes.public_v6, attributes.data_v6) = (Some(public), data),
            }
        }
        serde_json::to_string(&attributes).unwrap_or_default()
    }
}

impl Segment {
    fn check(&self, transport: Transport) -> Result<(), RecordError> {
        let public_key = if self.subnet.is_ipv4() { "PublicIP" } else { "PublicIPv6" };
        let refuse = |key, value: String, reason| Err(RecordError::Field { key, value, reason });
        if self.subnet.prefix() == 0 || self.subnet.ip() != self.subnet.network() {
            return Err(RecordError::Key);
        }
        if self.public.is_ipv4() != self.subnet.is_ipv4() {
            return refuse(public_key, self.public.to_string(), "of another family than the subnet");
        }
        let broadcast = self.public == IpAddr::V4(Ipv4Addr::BROADCAST);
        if self.public.is_unspecified()
            || self.public.is_multicast()
            || self.public.is_loopback()
            || broadcast
        {
            return refuse(public_key, self.public.to_string(), "the address of no host");
        }
        match (transport, self.vtep) {
            (Transport::Vxlan(_), None) => {
                refuse("BackendData", "missing".into(), "but vxlan needs a VtepMAC")
            }
            (Transport::Vxlan(_), Some(mac)) if mac.octets()[0] & 1 == 1 || mac.octets() == [0; 6] => {
                refuse("VtepMAC", mac.to_string(), "the address of no interface")
            }
            _ => Ok(()),
        }
    }
}

/// The VTEP's address; the VNI must be the same in both families.
fn vtep(data: Option<&Value>, vni: &mut Option<Vni>) -> Result<MacAddr, RecordError> {
    let data: VxlanData = VxlanData::deserialize(data.unwrap_or(&Value::Null))
        .map_err(|error| RecordError::Value(format!("BackendData: {error}")))?;
    let refuse = |reason| RecordError::Field { key: "VNI", value: data.vni.to_string(), reason };
    let found = Vni::new(data.vni).ok_or_else(|| refuse("more than 24 bits"))?;
    if vni.replace(found).is_some_and(|other| other != found) {
        return Err(refuse("another one for IPv6 than for IPv4"));
    }
    data.mac.parse().map_err(|_not_six_bytes: cni_protocol::Error| RecordError::Field {
        key: "VtepMAC",
        value: data.mac.clone(),
        reason: "no MAC address",
    })
}

/// The last part of the key of these subnets, IPv4 first.
#[must_use]
pub(crate) fn key_of(subnets: &[IpNetwork]) -> String {
    let part = |subnet: &IpNetwork| format!("{}-{}", subnet.network(), subnet.prefix());
    match subnets {
        [only] if only.is_ipv6() => format!("0.0.0.0-0&{}", part(only)),
        _ => subnets.iter().map(part).collect::<Vec<_>>().join("&"),
    }
}

/// The subnets that the last part of a key names, IPv4 first; `None` when it is no such key.
#[must_use]
pub fn parse_key(key: &str) -> Option<Vec<IpNetwork>> {
    let (v4, v6) = key.split_once('&').map_or((key, None), |(v4, v6)| (v4, Some(v6)));
    let part = |text: &str| {
        let (address, length) = text.split_once('-')?;
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        IpNetwork::new(address.parse().ok()?, digits.then(|| length.parse().ok())??).ok()
    };
    let v4 = part(v4).filter(IpNetwork::is_ipv4)?;
    let mut subnets = Vec::new();
    // "0.0.0.0-0" stands for no IPv4.
    if v4.prefix() != 0 {
        subnets.push(v4);
    }
    if let Some(v6) = v6 {
        subnets.push(part(v6).filter(IpNetwork::is_ipv6)?);
    }
    (!subnets.is_empty()).then_some(subnets)
}

#[cfg(test)]
mod tests;
