//! Host ports: the capability `portMappings`, and the keys beside it, as the reference portmap has them.

use std::fmt;
use std::net::IpAddr;

use cni_protocol::{Code, Error, decode};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::isolation::reduced;
use super::{invalid, prefixes};

/// A transport protocol with ports, by its IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl Protocol {
    /// Reads a name, in small or capital letters.
    pub fn parse(key: &str, text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(invalid(key, &text.into(), "give tcp, udp or sctp")),
        }
    }
}

/// What a network says of host ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    /// Whether a client of the container's own subnet, and the host at 127.0.0.1, are masqueraded.
    pub snat: bool,
    /// Whether every client is. As with portmap it says nothing without `snat`.
    pub masquerade_all: bool,
    /// Who may use the ports: everybody where it is empty.
    pub sources: Vec<IpNetwork>,
}

/// One mapping, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// `None`: every address of the host, of both families.
    pub host_ip: Option<IpAddr>,
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} host port {}", self.protocol, self.host_port)?;
        self.host_ip.map_or(Ok(()), |ip| write!(f, " of {ip}"))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    snat: Option<bool>,
    masq_all: bool,
    sources: Option<Vec<String>>,
    runtime_config: Option<Runtime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    port_mappings: Option<Vec<RawMapping>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMapping {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP")]
    host_ip: Option<String>,
}

impl PortPolicy {
    pub(super) fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let raw: Raw = decode(conf)?;
        Ok(Self {
            snat: raw.snat.unwrap_or(true),
            masquerade_all: raw.masq_all,
            sources: reduced(prefixes("sources", raw.sources.as_deref().unwrap_or_default())?),
        })
    }
}

/// The mappings that the runtime asks for.
///
/// # Errors
/// [`Code::InvalidConfig`] for a port, protocol or address that cannot be meant, and for two mappings of the same
/// host port.
pub fn requested_mappings(conf: &Map<String, Value>) -> Result<Vec<Mapping>, Error> {
    let raw: Raw = decode(conf)?;
    let asked = raw.runtime_config.and_then(|config| config.port_mappings).unwrap_or_default();
    let mut mappings =
        asked.iter().enumerate().map(|(at, raw)| mapping(at, raw)).collect::<Result<Vec<_>, _>>()?;
    mappings.sort_unstable();
    for pair in mappings.windows(2) {
        if let [one, other] = pair
            && (one.host_ip, one.protocol, one.host_port) == (other.host_ip, other.protocol, other.host_port)
        {
            return Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "runtimeConfig.portMappings has {one} twice, for container ports {} and {}: leave one out",
                    one.container_port, other.container_port
                ),
            ));
        }
    }
    Ok(mappings)
}

fn mapping(at: usize, raw: &RawMapping) -> Result<Mapping, Error> {
    let key = |name: &str| format!("runtimeConfig.portMappings[{at}].{name}");
    let port = |name: &str, value: i64| {
        u16::try_from(value)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| invalid(&key(name), &value.into(), "give a port from 1 to 65535"))
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let host_ip = given(&raw.host_ip)
        .map(|text| {
            let ip = text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
            ip.filter(|ip| !ip.is_multicast()).ok_or_else(|| {
                invalid(&key("hostIP"), &text.into(), "give an address of this host, or leave it out")
            })
        })
        .transpose()?;
    Ok(Mapping {
        host_ip,
        protocol: given(&raw.protocol)
            .map_or(Ok(Protocol::Tcp), |text| Protocol::parse(&key("protocol"), &text))?,
        host_port: port("hostPort", raw.host_port)?,
        container_port: port("containerPort", raw.container_port)?,
    })
}
