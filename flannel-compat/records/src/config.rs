//! The configuration of a network, which its operator puts at `<prefix>/config`.
//!
//! Source: pkg/subnet/config.go of flannel v0.28.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use cni_protocol::{canonicalize_keys, not_unicast};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Deserialize;
use serde_json::Value;

use crate::Backend;
use crate::correction::without_comments;

/// A network that spans hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// One of each family that the network has, IPv4 first.
    pools: Vec<Pool>,
    pub backend: Backend,
}

/// One family's addresses, cut into subnets of one size, of which each host leases one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    network: IpNetwork,
    subnet_len: u8,
    /// The numbers of the first and the last subnet that is leased, counted from the network's own.
    first: u128,
    last: u128,
}

/// Why a configuration is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("it is no JSON: {0}: correct it there")]
    Json(String),
    #[error("it has comments, which JSON has not: take out what begins with {0}")]
    Comment(&'static str),
    #[error("{key}: {problem}: {remedy}")]
    Value { key: String, problem: String, remedy: String },
}

impl ConfigError {
    pub(crate) fn value(key: &str, problem: &str, remedy: &str) -> Self {
        Self::Value { key: key.to_owned(), problem: problem.to_owned(), remedy: remedy.to_owned() }
    }
}

/// The keys of [`RawConfig`]. flannel reads them in any case.
pub(crate) const KEYS: [&str; 11] = [
    "EnableIPv4", "EnableIPv6", "Network", "IPv6Network", "SubnetLen", "SubnetMin", "SubnetMax",
    "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend",
];

#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(rename = "EnableIPv4", default = "yes")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6", default)]
    enable_ipv6: bool,
    #[serde(rename = "Network")]
    network: Option<Ipv4Network>,
    #[serde(rename = "IPv6Network")]
    ipv6_network: Option<Ipv6Network>,
    #[serde(rename = "SubnetLen", default)]
    subnet_len: u8,
    #[serde(rename = "SubnetMin")]
    subnet_min: Option<Ipv4Addr>,
    #[serde(rename = "SubnetMax")]
    subnet_max: Option<Ipv4Addr>,
    #[serde(rename = "IPv6SubnetLen", default)]
    ipv6_subnet_len: u8,
    #[serde(rename = "IPv6SubnetMin")]
    ipv6_subnet_min: Option<Ipv6Addr>,
    #[serde(rename = "IPv6SubnetMax")]
    ipv6_subnet_max: Option<Ipv6Addr>,
    #[serde(rename = "Backend")]
    backend: Option<Value>,
}

fn yes() -> bool {
    true
}

impl NetworkConfig {
    /// Reads a configuration as it stands in the store.
    ///
    /// # Errors
    /// What is wrong, with key, value and remedy.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut value: Value =
            serde_json::from_str(text).map_err(|error| match without_comments(text).1 {
                Some(comment) => ConfigError::Comment(comment),
                None => ConfigError::Json(error.to_string()),
            })?;
        if let Value::Object(fields) = &mut value {
            canonicalize_keys(fields, &KEYS);
        }
        let raw: RawConfig = serde_path_to_error::deserialize(&value).map_err(|error| {
            ConfigError::value(&error.path().to_string(), &error.inner().to_string(), "correct the value")
        })?;
        raw.checked()
    }

    /// The pools, IPv4 before IPv6; one at least.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The pool of the family of `address`.
    #[must_use]
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.network.is_ipv4() == address.is_ipv4())
    }
}

impl RawConfig {
    fn checked(self) -> Result<NetworkConfig, ConfigError> {
        let mut pools = Vec::new();
        if self.enable_ipv4 {
            let given = RawPool {
                keys: ["Network", "SubnetLen", "SubnetMin", "SubnetMax"],
                network: self.network.map(Into::into),
                subnet_len: self.subnet_len,
                min: self.subnet_min.filter(|min| !min.is_unspecified()).map(Into::into),
                max: self.subnet_max.filter(|max| !max.is_unspecified()).map(Into::into),
            };
            pools.push(given.checked(Sizes { bits: 32, longest: 30, usual: 24, largest_network: 28 })?);
        }
        if self.enable_ipv6 {
            let given = RawPool {
                keys: ["IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"],
                network: self.ipv6_network.map(Into::into),
                subnet_len: self.ipv6_subnet_len,
                min: self.ipv6_subnet_min.filter(|min| !min.is_unspecified()).map(Into::into),
                max: self.ipv6_subnet_max.filter(|max| !max.is_unspecified()).map(Into::into),
            };
            pools.push(given.checked(Sizes { bits: 128, longest: 126, usual: 64, largest_network: 124 })?);
        }
        if pools.is_empty() {
            return Err(ConfigError::value(
                "EnableIPv4",
                "and EnableIPv6 are both false, so the network has no addresses",
                "enable one of them",
            ));
        }
        Ok(NetworkConfig { pools, backend: Backend::from_json(self.backend, self.enable_ipv6)? })
    }
}

/// The limits of a family, in bits.
#[derive(Clone, Copy)]
struct Sizes {
    bits: u8,
    /// A subnet must have room for a gateway and a container.
    longest: u8,
    /// What a subnet gets unless told otherwise.
    usual: u8,
    /// A longer prefix than this leaves no four subnets.
    largest_network: u8,
}

/// One family's keys, as they were written.
struct RawPool {
    /// The names of network, length, first and last.
    keys: [&'static str; 4],
    network: Option<IpNetwork>,
    subnet_len: u8,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

impl RawPool {
    fn checked(self, sizes: Sizes) -> Result<Pool, ConfigError> {
        let [network_key, len_key, min_key, max_key] = self.keys;
        let Some(network) = self.network else {
            let example = if sizes.bits == 32 { "10.244.0.0/16" } else { "fd00:42::/48" };
            return Err(ConfigError::value(
                network_key,
                "is missing",
                &format!("add one such as {example:?}"),
            ));
        };
        // flannel takes a network with host bits; here it would have two names.
        let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
        if let Some(overlaps) = not_unicast(network) {
            let remedy = "use a network of unicast addresses";
            return Err(ConfigError::value(network_key, &format!("{network} {overlaps}"), remedy));
        }
        let length = network.prefix();
        if length > sizes.largest_network {
            return Err(ConfigError::value(
                network_key,
                &format!("{network} has no room for four subnets"),
                &format!("use a prefix of {} bits at most", sizes.largest_network),
            ));
        }
        let subnet_len = match self.subnet_len {
            0 if length + 2 <= sizes.usual => sizes.usual,
            0 => length + 2,
            given if given > sizes.longest || given < length + 2 => {
                return Err(ConfigError::value(
                    len_key,
                    &format!("{given} does not cut {network} into four subnets with room for containers"),
                    &format!("use {} to {}", length + 2, sizes.longest),
                ));
            }
            given => given,
        };
        let mut pool = Pool { network, subnet_len, first: 1, last: 0 };
        // The first subnet stays free, as with flannel: its address is the network's own.
        pool.last = (1_u128 << (subnet_len - length)) - 1;
        if let Some(min) = self.min {
            pool.first = pool.bound(min_key, min)?;
        }
        if let Some(max) = self.max {
            pool.last = pool.bound(max_key, max)?;
        }
        if pool.first > pool.last {
            let first = pool.subnet(pool.first).ip();
            return Err(if self.min.is_some() {
                ConfigError::value(min_key, &format!("{first} is behind {max_key}"), "swap them")
            } else {
                let problem = format!("{network} has no subnet up to there, as its first is {first}");
                ConfigError::value(max_key, &problem, "use a later one, or leave it out")
            });
        }
        Ok(pool)
    }
}

/// What no subnet of a network may have of the link of an interface with this address: all of the link's. Of a link that has the whole
/// network, which was carved out of it then, only the interface's own.
#[must_use]
pub fn kept_by_link(network: IpNetwork, address: IpNetwork) -> IpNetwork {
    let is_carved_out = address.prefix() < network.prefix() && address.contains(network.ip());
    if is_carved_out { address.ip().into() } else { address }
}

/// Whether two prefixes have addresses in common.
#[must_use]
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

impl Pool {
    /// All hosts' addresses.
    #[must_use]
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// The prefix length of each subnet.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// How many subnets are leased at most.
    #[must_use]
    pub fn count(&self) -> u128 {
        self.last - self.first + 1
    }

    /// The subnet at a place from 0 to [`Pool::count`] - 1; a place behind that counts from the beginning again.
    #[must_use]
    pub fn at(&self, place: u128) -> IpNetwork {
        self.subnet(self.first + place % self.count())
    }

    /// The places at which subnets have addresses of `other`, whatever its size.
    #[must_use]
    pub fn places(&self, other: IpNetwork) -> Option<RangeInclusive<u128>> {
        let network = self.network;
        let from = other.network().max(network.network());
        let to = other.broadcast().min(network.broadcast());
        if other.is_ipv4() != network.is_ipv4() || from > to {
            return None;
        }
        let (first, last) = (self.number(from).max(self.first), self.number(to).min(self.last));
        (first <= last).then(|| first - self.first..=last - self.first)
    }

    /// Whether `subnet` is one of those that a host may have: of the right size, in the network. One outside of
    /// `SubnetMin` to `SubnetMax` is: these say what is chosen, and may have been changed.
    #[must_use]
    pub fn has(&self, subnet: IpNetwork) -> bool {
        subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.prefix() == self.subnet_len
            && subnet.ip() == subnet.network()
            && self.network.contains(subnet.ip())
    }

    fn subnet(&self, number: u128) -> IpNetwork {
        let address = match self.network.network() {
            IpAddr::V4(base) => {
                let offset = number << (32 - self.subnet_len);
                IpAddr::V4(Ipv4Addr::from_bits(
                    base.to_bits().wrapping_add(u32::try_from(offset).unwrap_or(0)),
                ))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(
                base.to_bits().wrapping_add(number << (128 - self.subnet_len)),
            )),
        };
        IpNetwork::new(address, self.subnet_len).unwrap_or(self.network)
    }

    /// The number of the subnet that begins at `address`.
    fn bound(&self, key: &str, address: IpAddr) -> Result<u128, ConfigError> {
        let subnet = IpNetwork::new(address, self.subnet_len)
            .ok()
            .filter(|subnet| self.has(*subnet))
            .ok_or_else(|| {
                ConfigError::value(
                    key,
                    &format!("{address} is not where a /{} of {} begins", self.subnet_len, self.network),
                    "use a subnet's first address",
                )
            })?;
        Ok(self.number(subnet.ip()))
    }

    /// The number of the subnet that has `address`, which is one of the network.
    fn number(&self, address: IpAddr) -> u128 {
        match (address, self.network.network()) {
            (IpAddr::V4(ip), IpAddr::V4(base)) => {
                u128::from(ip.to_bits() - base.to_bits()) >> (32 - self.subnet_len)
            }
            (IpAddr::V6(ip), IpAddr::V6(base)) => (ip.to_bits() - base.to_bits()) >> (128 - self.subnet_len),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests;
