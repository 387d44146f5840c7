//! `/run/flannel/subnet.env`: what a host leased, for the plugins on it.
//!
//! Source: `WriteSubnetFile` of pkg/subnet/subnet.go in flannel v0.28; that there may be several networks, of which flanneld writes one:
//! `loadFlannelSubnetEnv` of flannel.go in its CNI plugin v1.7.

use std::fmt;
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::host::key_of;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    pub ipv4: Option<Leased<Ipv4Network>>,
    pub ipv6: Option<Leased<Ipv6Network>>,
    /// In bytes, of the containers' interfaces.
    pub mtu: u32,
    /// Whether traffic that leaves the network is masqueraded.
    pub ipmasq: bool,
}

/// One family's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased<N> {
    /// All hosts' addresses; at least one.
    pub networks: Vec<N>,
    /// This host's, written with the address of its gateway: `10.240.34.1/24`.
    pub subnet: N,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("line {line}: \"{text}\" is no KEY=VALUE: restart flanneld, which writes the file anew")]
    NoAssignment { line: usize, text: String },
    #[error("{key}={value} is wrong: {cause}; restart flanneld, which writes the file anew")]
    Value { key: String, value: String, cause: String },
    #[error("{0} is missing: restart flanneld, which writes the file anew")]
    Missing(&'static str),
}

impl SubnetEnv {
    /// The last part of the key that the host's record has, or had: `10.240.34.0-24`.
    #[must_use]
    pub fn key(&self) -> String {
        let ipv4 = self.ipv4.as_ref().map(|leased| IpNetwork::V4(leased.subnet));
        let ipv6 = self.ipv6.as_ref().map(|leased| IpNetwork::V6(leased.subnet));
        key_of(&ipv4.into_iter().chain(ipv6).collect::<Vec<_>>())
    }
}

impl FromStr for SubnetEnv {
    type Err = ParseError;

    /// Reads the file. Keys of later versions of flannel are passed over.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut env = Values::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let Some((key, value)) = line.trim().split_once('=') else {
                return Err(ParseError::NoAssignment { line: number + 1, text: line.to_owned() });
            };
            env.set(key, value)?;
        }
        let missing = ParseError::Missing;
        let ipv4 = pair(env.networks, env.subnet, "FLANNEL_NETWORK", "FLANNEL_SUBNET")?;
        let ipv6 = pair(env.networks_v6, env.subnet_v6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(missing("FLANNEL_SUBNET"));
        }
        Ok(Self {
            ipv4,
            ipv6,
            mtu: env.mtu.ok_or(missing("FLANNEL_MTU"))?,
            ipmasq: env.ipmasq.unwrap_or(false),
        })
    }
}

#[derive(Default)]
struct Values {
    networks: Option<Vec<Ipv4Network>>,
    subnet: Option<Ipv4Network>,
    networks_v6: Option<Vec<Ipv6Network>>,
    subnet_v6: Option<Ipv6Network>,
    mtu: Option<u32>,
    ipmasq: Option<bool>,
}

impl Values {
    fn set(&mut self, key: &str, value: &str) -> Result<(), ParseError> {
        match key {
            "FLANNEL_NETWORK" => self.networks = Some(parse_all(key, value)?),
            "FLANNEL_SUBNET" => self.subnet = Some(parse(key, value)?),
            "FLANNEL_IPV6_NETWORK" => self.networks_v6 = Some(parse_all(key, value)?),
            "FLANNEL_IPV6_SUBNET" => self.subnet_v6 = Some(parse(key, value)?),
            "FLANNEL_MTU" => self.mtu = Some(parse(key, value)?),
            "FLANNEL_IPMASQ" => self.ipmasq = Some(parse(key, value)?),
            _ => {}
        }
        Ok(())
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(key: &str, value: &str) -> Result<T, ParseError> {
    value.parse().map_err(|cause: T::Err| ParseError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        cause: cause.to_string(),
    })
}

fn parse_all<T: FromStr<Err: fmt::Display>>(key: &str, values: &str) -> Result<Vec<T>, ParseError> {
    values.split(',').map(|value| parse(key, value)).collect()
}

fn pair<N>(
    networks: Option<Vec<N>>,
    subnet: Option<N>,
    network_key: &'static str,
    subnet_key: &'static str,
) -> Result<Option<Leased<N>>, ParseError> {
    match (networks, subnet) {
        (Some(networks), Some(subnet)) => Ok(Some(Leased { networks, subnet })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(ParseError::Missing(network_key)),
        (Some(_), None) => Err(ParseError::Missing(subnet_key)),
    }
}

impl fmt::Display for SubnetEnv {
    /// Writes the file as flanneld does, key by key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Leased { networks, subnet }) = &self.ipv4 {
            writeln!(f, "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={subnet}", list(networks))?;
        }
        if let Some(Leased { networks, subnet }) = &self.ipv6 {
            writeln!(f, "FLANNEL_IPV6_NETWORK={}\nFLANNEL_IPV6_SUBNET={subnet}", list(networks))?;
        }
        writeln!(f, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.ipmasq)
    }
}

fn list(networks: &[impl fmt::Display]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.65.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:31::1/64\n\
        FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn round_trip_of_each_family_and_both() {
        let lines: Vec<&str> = DUAL.lines().collect();
        for kept in [&lines[..], &[&lines[..2], &lines[4..]].concat(), &lines[2..]] {
            let text = kept.join("\n") + "\n";
            assert_eq!(text.parse::<SubnetEnv>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn several_networks_are_a_list() {
        let text = DUAL.replace("/16\n", "/16,10.245.0.0/16\n").replace("/48\n", "/48,fd00:43::/48\n");
        let env: SubnetEnv = text.parse().unwrap();
        assert_eq!(env.to_string(), text);
        assert_eq!((env.ipv4.unwrap().networks.len(), env.ipv6.unwrap().networks.len()), (2, 2));
    }

    #[test]
    fn the_gateways_address_is_kept() {
        let env: SubnetEnv = DUAL.parse().unwrap();
        assert_eq!(env.ipv4.unwrap().subnet.ip().to_string(), "10.244.65.1");
    }

    #[test]
    fn the_records_key() {
        let lines: Vec<&str> = DUAL.lines().collect();
        for (kept, key) in [
            (&lines[..], "10.244.65.0-24&fd00:42:0:31::-64"),
            (&[&lines[..2], &lines[4..]].concat(), "10.244.65.0-24"),
            (&lines[2..], "0.0.0.0-0&fd00:42:0:31::-64"),
        ] {
            assert_eq!(kept.join("\n").parse::<SubnetEnv>().unwrap().key(), key);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=10.0.0.1/24\nFLANNEL_MTU=1450", "FLANNEL_NETWORK is missing"),
            ("FLANNEL_NETWORK=10.0.0.0/16\nFLANNEL_MTU=1450", "FLANNEL_SUBNET is missing"),
            ("FLANNEL_NETWORK=10.0.0.0/16\nFLANNEL_SUBNET=10.0.0.1/24", "FLANNEL_MTU is missing"),
            ("FLANNEL_NETWORK=10.0.0.0/99", "FLANNEL_NETWORK=10.0.0.0/99 is wrong"),
            ("FLANNEL_NETWORK=10.0.0.0/16,10.1.0.0/x", "FLANNEL_NETWORK=10.1.0.0/x is wrong"),
            ("FLANNEL_NETWORK=10.0.0.0/16,", "FLANNEL_NETWORK= is wrong"),
            ("FLANNEL_MTU=big", "FLANNEL_MTU=big is wrong"),
            ("nonsense", "line 1"),
        ] {
            let error = text.parse::<SubnetEnv>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
