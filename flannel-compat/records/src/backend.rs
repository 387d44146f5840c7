//! How packets get to another host: the `Backend` of a network's configuration.
//!
//! Source: pkg/backend/vxlan/vxlan.go and pkg/backend/hostgw/hostgw.go of flannel v0.28.

use cni_protocol::canonicalize_keys;
use serde::Deserialize;
use serde_json::Value;

use crate::ConfigError;

/// The kernel's default port of old, which flannel keeps; IANA's is 4789.
const DEFAULT_PORT: u16 = 8472;

/// A VXLAN network identifier (RFC 7348 §5): 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The identifier with this number; `None` for more than 24 bits.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number < 1 << 24).then_some(Self(number))
    }

    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for Vni {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The way of a network's packets from host to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    Vxlan(Vxlan),
    /// Plain routes to the hosts, which share one layer 2 segment.
    HostGw,
}

/// What the hosts of a VXLAN network agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Whether the device learns addresses from what it receives.
    pub learning: bool,
    /// Whether hosts of the same layer 2 segment are reached by plain routes.
    pub direct_routing: bool,
    /// Of the packets between hosts, in bytes; `None`: that of the underlay. The device's is less by the encapsulation.
    pub mtu: Option<u32>,
    /// The first bytes of every VTEP's address, where the network wants them so.
    pub mac_prefix: Option<[u8; 2]>,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self {
            vni: Vni(1),
            port: DEFAULT_PORT,
            learning: false,
            direct_routing: false,
            mtu: None,
            mac_prefix: None,
        }
    }
}

impl Vxlan {
    /// What a packet between hosts has before the container's, in bytes: outer IP and UDP headers, VXLAN header, inner
    /// Ethernet header (RFC 7348 §5).
    #[must_use]
    pub const fn encapsulation(ipv4: bool) -> u32 {
        if ipv4 { 50 } else { 70 }
    }
}

impl Backend {
    /// The name in `Backend.Type` and `BackendType`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    pub(crate) fn from_json(value: Option<Value>, ipv6: bool) -> Result<Self, ConfigError> {
        let Some(mut value) = value.filter(|value| !value.is_null()) else {
            // flannel's own default, udp, needs a daemon in every packet's way.
            return Err(ConfigError::value(
                "Backend",
                "is missing",
                "add \"Backend\": {\"Type\": \"vxlan\"}",
            ));
        };
        if let Value::Object(fields) = &mut value {
            canonicalize_keys(fields, &KEYS);
        }
        let raw: RawBackend = serde_path_to_error::deserialize(&value)
            .map_err(|error| ConfigError::value("Backend", &error.to_string(), "correct it"))?;
        match raw.kind.to_ascii_lowercase().as_str() {
            "host-gw" => Ok(Self::HostGw),
            "vxlan" => Ok(Self::Vxlan(raw.vxlan(ipv6)?)),
            _ => Err(ConfigError::value(
                "Backend.Type",
                &format!("{:?} is not among those that Weft has", raw.kind),
                "use vxlan or host-gw",
            )),
        }
    }
}

/// The keys of [`RawBackend`]. flannel reads them in any case.
const KEYS: [&str; 8] = ["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "MacPrefix"];

#[derive(Debug, Deserialize)]
struct RawBackend {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "Port")]
    port: Option<u16>,
    #[serde(rename = "MTU")]
    mtu: Option<u32>,
    #[serde(rename = "GBP", default)]
    group_policy: bool,
    #[serde(rename = "Learning", default)]
    learning: bool,
    #[serde(rename = "DirectRouting", default)]
    direct_routing: bool,
    #[serde(rename = "MacPrefix")]
    mac_prefix: Option<String>,
}

impl RawBackend {
    fn vxlan(self, ipv6: bool) -> Result<Vxlan, ConfigError> {
        if self.group_policy {
            return Err(ConfigError::value("Backend.GBP", "true is not supported", "take it out"));
        }
        let default = Vxlan::default();
        let vni = match self.vni {
            None => default.vni,
            Some(number) => Vni::new(number).filter(|vni| vni.0 != 0).ok_or_else(|| {
                ConfigError::value("Backend.VNI", &format!("{number} is no VNI"), "use 1 to 16777215")
            })?,
        };
        Ok(Vxlan {
            vni,
            port: self.port.filter(|port| *port != 0).unwrap_or(default.port),
            learning: self.learning,
            direct_routing: self.direct_routing,
            mtu: self.mtu.filter(|mtu| *mtu != 0).map(|mtu| checked_mtu(mtu, ipv6)).transpose()?,
            mac_prefix: self
                .mac_prefix
                .filter(|text| !text.is_empty())
                .as_deref()
                .map(mac_prefix)
                .transpose()?,
        })
    }
}

/// Room for the encapsulation and what interfaces must carry of IPv4 (RFC 791) or IPv6 (RFC 8200 §5), and no more than
/// a link may have.
fn checked_mtu(mtu: u32, ipv6: bool) -> Result<u32, ConfigError> {
    let least = Vxlan::encapsulation(!ipv6) + if ipv6 { 1280 } else { 68 };
    if (least..=65_535).contains(&mtu) {
        return Ok(mtu);
    }
    Err(ConfigError::value(
        "Backend.MTU",
        &format!(
            "{mtu} is out of range: packets between hosts have an encapsulation of 50 bytes, with IPv6 of 70"
        ),
        &format!("use {least} to 65535, or leave it out"),
    ))
}

/// flannel's form: two bytes in hex, `"0E-2A"` or `"0e:2a"`.
fn mac_prefix(text: &str) -> Result<[u8; 2], ConfigError> {
    let refuse = || {
        ConfigError::value(
            "Backend.MacPrefix",
            &format!("{text:?} is no prefix"),
            "use two bytes like \"0E-2A\"",
        )
    };
    let (first, second) = text.split_once(['-', ':']).ok_or_else(refuse)?;
    let byte = |text: &str| {
        let hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(text, 16).ok())?
    };
    match (byte(first), byte(second)) {
        // The address must be one that a single interface may have.
        (Some(first), Some(second)) if first & 1 == 0 => Ok([first, second]),
        _ => Err(refuse()),
    }
}
