//! The agent's configuration: `/etc/weft/weftd.json`, or flags for one network. Raw and checked are two types.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Error, NetworkName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft::conf::isolation::extent;
use weft_ipam::conf::etcd::EtcdConf;
use weft_state::{data_dir, state_dir};

/// Where flannel's consumers look unless told otherwise.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// A port that is registered to nobody; only this machine can reach it.
const LISTEN: &str = "127.0.0.1:9454";
const LOG_LEVEL: &str = "info";

/// The configuration as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawConf {
    pub networks: Option<Vec<RawNetwork>>,
    pub listen: Option<String>,
    pub state_dir: Option<Value>,
    pub data_dir: Option<Value>,
    pub log_level: Option<String>,
}

/// One network as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawNetwork {
    #[serde(default)]
    pub name: String,
    /// Read by the IPAM plugin's own parser, as it stands.
    #[serde(default)]
    pub etcd: Map<String, Value>,
    pub iface: Option<String>,
    pub iface_regex: Option<String>,
    pub iface_can_reach: Option<String>,
    #[serde(rename = "publicIP")]
    pub public_ip: Option<String>,
    #[serde(rename = "publicIPv6")]
    pub public_ipv6: Option<String>,
    #[serde(rename = "leaseTTL")]
    pub lease_ttl: Option<u64>,
    #[serde(default)]
    pub ip_masq: bool,
    #[serde(default)]
    pub no_masquerade: Vec<IpNetwork>,
    pub isolation: Option<String>,
    #[serde(default)]
    pub internal: bool,
    pub subnet_file: Option<PathBuf>,
}

/// The configuration, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Conf {
    /// No two of one name or with one file.
    pub networks: Vec<NetworkConf>,
    pub listen: Listen,
    pub state_dir: PathBuf,
    pub data_dir: PathBuf,
    /// As `WEFT_LOG`.
    pub log_level: String,
}

/// What the agent has to know of one network.
#[derive(Debug, PartialEq, Eq)]
pub struct NetworkConf {
    pub name: NetworkName,
    /// How etcd is reached, and how this host shows itself there.
    pub etcd: EtcdConf,
    /// Whether the agent masquerades what leaves the network.
    pub ip_masq: bool,
    /// Destinations for which it does not.
    pub no_masquerade: Vec<IpNetwork>,
    /// Whether other networks are kept from it, and whether all that is outside is, while no container of it is here to tell.
    pub closed: bool,
    pub internal: bool,
    pub subnet_file: PathBuf,
}

/// Where the agent answers questions about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl RawConf {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Code::Io`] when it cannot be read, [`Code::InvalidConfig`] with the path and what is wrong there.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let name = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            let remedy = "write it as docs/weftd.md shows, name another one with --config, or give the network with --name, \
                          --etcd-endpoints and --etcd-prefix in place of a file";
            Error::new(Code::Io, format!("read {name}: {error}: {remedy}"))
        })?;
        Self::parse(&name.to_string(), &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let raw = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let (path, cause) = (error.path(), error.inner());
            invalid(format!("{name}: {path}: {cause}: docs/weftd.md lists every key"))
        })?;
        reader.end().map_err(|error| invalid(format!("{name}: more than one JSON document: {error}")))?;
        Ok(raw)
    }

    /// Checks it.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] with key, value and remedy.
    pub fn checked(self) -> Result<Conf, Error> {
        let Some(all) = self.networks else {
            return Err(invalid(
                "networks is missing: add one such as {\"name\": \"pods\", \"etcd\": {}}, or write [] where all networks \
                 of the host are its own"
                    .into(),
            ));
        };
        let mut networks: Vec<NetworkConf> = Vec::new();
        for (index, raw) in all.into_iter().enumerate() {
            let network = raw.checked(&format!("networks[{index}]"))?;
            for other in &networks {
                network.check_beside(other, index)?;
            }
            networks.push(network);
        }
        Ok(Conf {
            networks,
            listen: self.listen.as_deref().unwrap_or(LISTEN).parse()?,
            state_dir: state_dir(self.state_dir.as_ref())?,
            data_dir: data_dir(self.data_dir.as_ref())?,
            log_level: self.log_level.map_or_else(|| Ok(LOG_LEVEL.to_owned()), checked_level)?,
        })
    }
}

fn checked_level(level: String) -> Result<String, Error> {
    match level.parse::<log::LevelFilter>() {
        Ok(_) => Ok(level),
        Err(_unknown) => {
            Err(invalid(format!("logLevel is {level:?}: use off, error, warn, info, debug or trace")))
        }
    }
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid(format!("{key} is {}: give an absolute path", path.display())))
}

impl RawNetwork {
    /// What the IPAM plugin finds under the key `ipam` of a CNI configuration.
    fn ipam(&self) -> Map<String, Value> {
        let optional = Optional {
            iface: self.iface.as_deref(),
            iface_regex: self.iface_regex.as_deref(),
            iface_can_reach: self.iface_can_reach.as_deref(),
            public_ip: self.public_ip.as_deref(),
            public_ipv6: self.public_ipv6.as_deref(),
            lease_ttl: self.lease_ttl,
        };
        let mut ipam = Map::from_iter([
            ("type".to_owned(), "weft-ipam".into()),
            ("etcd".to_owned(), Value::Object(self.etcd.clone())),
        ]);
        if let Ok(Value::Object(given)) = serde_json::to_value(optional) {
            ipam.extend(given);
        }
        ipam
    }

    fn checked(self, at: &str) -> Result<NetworkConf, Error> {
        let name: NetworkName = self.name.parse().map_err(|error: Error| {
            invalid(format!(
                "{at}.name is {:?}: {}: give the network's name in the CNI configuration",
                self.name, error.msg
            ))
        })?;
        if !self.ip_masq && !self.no_masquerade.is_empty() {
            return Err(invalid(format!(
                "{at}.noMasquerade has prefixes, but ipMasq is false: set ipMasq to true or take them out"
            )));
        }
        let isolation = self.isolation.as_deref().unwrap_or_default();
        let Some((closed, published_only)) = extent(isolation) else {
            let remedy = "give \"network\", \"closed\" or \"none\", as in the CNI configuration";
            return Err(invalid(format!("{at}.isolation is {isolation:?}: {remedy}")));
        };
        let etcd = EtcdConf::parse(&self.ipam())
            .and_then(|etcd| etcd.ok_or_else(|| invalid("etcd is missing".into())))
            .map_err(|error| Error::new(error.code, format!("{at}: {}", error.msg)))?;
        let subnet_file = self.subnet_file.unwrap_or_else(|| SUBNET_FILE.into());
        Ok(NetworkConf {
            name,
            etcd,
            ip_masq: self.ip_masq,
            no_masquerade: self.no_masquerade,
            closed,
            internal: self.internal || published_only,
            subnet_file: absolute(&format!("{at}.subnetFile"), subnet_file)?,
        })
    }
}

/// The keys that go to the IPAM plugin's parser beside `etcd`, if they are given.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Optional<'t> {
    #[serde(skip_serializing_if = "Option::is_none")]
    iface: Option<&'t str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iface_regex: Option<&'t str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iface_can_reach: Option<&'t str>,
    #[serde(rename = "publicIP", skip_serializing_if = "Option::is_none")]
    public_ip: Option<&'t str>,
    #[serde(rename = "publicIPv6", skip_serializing_if = "Option::is_none")]
    public_ipv6: Option<&'t str>,
    #[serde(rename = "leaseTTL", skip_serializing_if = "Option::is_none")]
    lease_ttl: Option<u64>,
}

impl NetworkConf {
    /// Two networks share neither name nor file, and not their place in one etcd: they would be one network there, with one subnet.
    fn check_beside(&self, other: &Self, index: usize) -> Result<(), Error> {
        if self.name == other.name {
            return Err(invalid(format!(
                "networks[{index}].name is {}, as another one's: rename one",
                self.name
            )));
        }
        if self.subnet_file == other.subnet_file {
            let (file, other) = (self.subnet_file.display(), &other.name);
            return Err(invalid(format!(
                "networks[{index}].subnetFile is {file}, as that of network {other}: give each its own"
            )));
        }
        let share_etcd = self.etcd.endpoints.iter().any(|endpoint| other.etcd.endpoints.contains(endpoint));
        if share_etcd && self.etcd.prefix == other.etcd.prefix {
            let (prefix, other) = (&self.etcd.prefix, &other.name);
            return Err(invalid(format!(
                "networks[{index}].etcd.prefix is {prefix}, as that of network {other}: give each its own"
            )));
        }
        Ok(())
    }
}

impl std::str::FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            return absolute("listen", path.into()).map(Self::Unix);
        }
        let address: SocketAddr = text.parse().map_err(|_no_address| {
            invalid(format!("listen is {text:?}: give ADDRESS:PORT such as {LISTEN}, or unix:/PATH"))
        })?;
        if !address.ip().is_loopback() {
            return Err(invalid(format!(
                "listen is {address}, which others can reach: use a loopback address such as {LISTEN}"
            )));
        }
        Ok(Self::Tcp(address))
    }
}

fn invalid(msg: String) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests;
