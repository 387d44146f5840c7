//! Host ports: the capability `portMappings`, and the keys beside it, as the reference portmap has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_protocol::{Code, Error, decode};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::isolation::reduced;
use super::{invalid, prefixes, unsupported};

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
    /// Whether every client is. As with portmap it has no effect without `snat`.
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
    backend: Option<String>,
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
        if let Some(other) = raw.backend.filter(|backend| !["", "nftables"].contains(&backend.as_str())) {
            let remedy = "Weft has nftables only, for host ports and for all else; set \"nftables\" or leave the key out";
            return Err(unsupported("backend", &other.into(), remedy));
        }
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
    let mappings = asked.iter().enumerate().map(|(at, raw)| mapping(at, raw)).collect::<Result<_, _>>()?;
    distinct(mappings)
}

/// The mappings in their order, without those that others say already: runtimes may give one twice, and one of every address also as
/// one of every address of a family. A port of one address is among those of every address, also where another container has these.
fn distinct(mut mappings: Vec<Mapping>) -> Result<Vec<Mapping>, Error> {
    mappings.sort_unstable();
    mappings.dedup();
    let place = |mapping: &Mapping| (mapping.host_ip, mapping.protocol, mapping.host_port);
    let mut kept: Vec<Mapping> = Vec::with_capacity(mappings.len());
    for mapping in &mappings {
        let find = |host_ip: Option<IpAddr>| {
            let place_there = (host_ip, mapping.protocol, mapping.host_port);
            mappings.binary_search_by_key(&place_there, place).ok().map(|at| &mappings[at])
        };
        let same = kept.last().filter(|last| place(last) == place(mapping));
        let of_all = mapping.host_ip.and_then(|_| find(None));
        let of_family = mapping.host_ip.and_then(|ip| find(Some(unspecified(ip))));
        for other in [same, of_all, of_family].into_iter().flatten() {
            if other.container_port != mapping.container_port {
                return Err(Error::new(
                    Code::InvalidConfig,
                    format!(
                        "runtimeConfig.portMappings has {mapping} twice, for container ports {} and {}: leave one out",
                        other.container_port, mapping.container_port
                    ),
                ));
            }
        }
        let is_wide = mapping.host_ip.is_some_and(|ip| ip.is_unspecified());
        if same.is_none() && !(is_wide && of_all.is_some()) {
            kept.push(*mapping);
        }
    }
    Ok(kept)
}

/// All addresses of the family.
fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Mappings of host port 81, by the host's address and the container's port.
    fn requested(mappings: &[(&str, u16)]) -> Result<Vec<Mapping>, Error> {
        let mapping =
            |(ip, port): &(&str, u16)| json!({ "hostPort": 81, "hostIP": ip, "containerPort": port });
        let mappings: Vec<Value> = mappings.iter().map(mapping).collect();
        requested_mappings(json!({ "runtimeConfig": { "portMappings": mappings } }).as_object().unwrap())
    }

    #[test]
    fn what_is_said_again_is_one_mapping() {
        for (mappings, kept) in [
            (&[("", 80), ("", 80)][..], 1),
            (&[("0.0.0.0", 80), ("", 80), ("::", 80)], 1),
            (&[("0.0.0.0", 80), ("::", 80), ("0.0.0.0", 80)], 2),
            (&[("192.0.2.1", 80), ("192.0.2.1", 80), ("192.0.2.2", 81)], 2),
        ] {
            assert_eq!(requested(mappings).unwrap().len(), kept, "{mappings:?}");
        }
    }

    #[test]
    fn a_port_that_leads_to_two_is_refused() {
        for mappings in [
            [("", 80), ("", 81)],
            [("", 80), ("0.0.0.0", 81)],
            [("::", 80), ("", 81)],
            [("192.0.2.1", 80), ("192.0.2.1", 81)],
            [("192.0.2.1", 80), ("::ffff:192.0.2.1", 81)],
            [("192.0.2.1", 80), ("", 81)],
            [("2001:db8::1", 80), ("", 81)],
            [("127.0.0.1", 80), ("0.0.0.0", 81)],
            [("::", 80), ("2001:db8::1", 81)],
        ] {
            let error = requested(&mappings).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{mappings:?}");
            for word in ["host port 81", "80", "leave one out"] {
                assert!(error.msg.contains(word), "{}", error.msg);
            }
        }
        for others in
            [[("0.0.0.0", 80), ("::", 81)], [("192.0.2.1", 80), ("::", 81)], [("192.0.2.1", 80), ("", 80)]]
        {
            assert_eq!(requested(&others).unwrap().len(), 2, "{others:?}");
        }
    }
}
