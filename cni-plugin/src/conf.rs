//! The network configuration: raw as the runtime gives it, and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cni_protocol::{Code, Dns, Error, IfName, NetworkName, Route, decode};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};
use weft_net::BridgePort;
use weft_state::{data_dir, state_dir};

use guard::Part;
use isolation::IsolationPolicy;
use ports::PortPolicy;
use shaping::Shaping;

mod asked;
pub mod chained;
pub mod guard;
pub mod isolation;
mod keys;
pub mod names;
pub mod ports;
pub mod shaping;
pub mod tuning;

pub use asked::{Asked, chooses_addresses, requested_mac};

/// The default bridge.
const DEFAULT_BRIDGE: &str = "weft0";

/// Interfaces below this MTU carry no IPv4 (RFC 791).
const MTU_MIN: i64 = 68;
/// `ETH_MAX_MTU` of linux/if_ether.h.
const MTU_MAX: i64 = 65_535;

/// The keys of the reference bridge plugin, with its names, meanings and defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetConf {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    no_masquerade: Vec<IpNetwork>,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    enabledad: bool,
    disable_container_interface: bool,
    ipam: Option<Map<String, Value>>,
    dns: Option<Dns>,
    routes: Vec<Route>,
    interface_metrics: BTreeMap<String, u32>,
}

/// Whether the bridge is the containers' way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gateway {
    /// The bridge has no address.
    None,
    /// The bridge has the gateway's address in each subnet.
    Address,
    /// … and containers get a default route to it.
    DefaultRoute,
}

/// A network, checked: what every attachment to it has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub name: NetworkName,
    pub bridge: IfName,
    pub gateway: Gateway,
    /// Whether another address of a bridge's subnet is replaced instead of refused.
    pub force_address: bool,
    pub masquerade: bool,
    /// Destinations that see containers' own addresses all the same.
    pub no_masquerade: Vec<IpNetwork>,
    /// In bytes; `None` leaves the kernel's default.
    pub mtu: Option<u32>,
    pub hairpin: bool,
    pub promiscuous: bool,
    pub isolated: bool,
    /// Whether IPv6 addresses wait for duplicate address detection.
    pub duplicate_detection: bool,
    /// Whether the container's interface stays down.
    pub interface_down: bool,
    /// Takes the place of what the IPAM plugin says about DNS.
    pub dns: Option<Dns>,
    /// Routes of containers besides those of the IPAM plugin.
    pub routes: Vec<Route>,
    /// By the name of the container's interface: how its routes compare with others'.
    pub metrics: BTreeMap<String, u32>,
    /// Where the leases are of a network that spans hosts; `None` for one of this host alone.
    pub data_dir: Option<PathBuf>,
    /// All hosts' addresses in a network that spans hosts, once they are known.
    pub all_hosts: Vec<IpNetwork>,
    pub ports: PortPolicy,
    pub isolation: IsolationPolicy,
    /// The parts of the guard that are on.
    pub guard: BTreeSet<Part>,
    pub shaping: Shaping,
    /// The IPAM plugin's type; `None` for a network without addresses.
    pub ipam: Option<String>,
    /// What is there of the network also when its configuration is wrong.
    pub state_dir: PathBuf,
}

impl Network {
    /// Checks a configuration.
    ///
    /// # Errors
    /// An unknown or unbuilt key: [`Code::UnsupportedField`]; a value that is wrong by itself or beside
    /// another: [`Code::InvalidConfig`]. Both name key, value and remedy.
    pub fn parse(name: &NetworkName, conf: &Map<String, Value>) -> Result<Self, Error> {
        keys::refuse_unknown(conf)?;
        let raw: NetConf = decode(conf)?;
        let state_dir = state_dir(conf.get("stateDir"))?;
        let ipam = ipam(conf)?.map(|(plugin, _)| plugin.to_owned());
        refuse_contradictions(&raw, ipam.as_deref())?;
        Ok(Self {
            name: name.clone(),
            bridge: bridge_name(raw.bridge.as_deref())?,
            gateway: match (raw.is_gateway, raw.is_default_gateway) {
                (_, true) => Gateway::DefaultRoute,
                (true, false) => Gateway::Address,
                (false, false) => Gateway::None,
            },
            force_address: raw.force_address,
            masquerade: raw.ip_masq,
            no_masquerade: no_masquerade(&raw)?,
            mtu: mtu("mtu", raw.mtu)?,
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            isolated: raw.port_isolation,
            duplicate_detection: raw.enabledad,
            interface_down: raw.disable_container_interface,
            dns: raw.dns.filter(|dns| *dns != Dns::default()),
            routes: routes(raw.routes)?,
            metrics: raw.interface_metrics,
            ipam,
            data_dir: if spans_hosts(conf) { Some(data_dir(conf.get("dataDir"))?) } else { None },
            all_hosts: Vec::new(),
            ports: PortPolicy::parse(conf)?,
            isolation: IsolationPolicy::parse(conf)?,
            guard: guard::parts(conf)?,
            shaping: Shaping::of_network(conf)?,
            state_dir,
        })
    }
}

impl Network {
    /// How a container's port of the bridge is set. With br_netfilter a frame to a host port of the container itself is
    /// turned round on the bridge.
    pub fn port(&self, has_host_ports: bool) -> BridgePort {
        BridgePort {
            hairpin: self.hairpin || (has_host_ports && !self.promiscuous),
            isolated: self.isolated,
            forwards_bpdus: self.guard.contains(&Part::Rogue),
        }
    }
}

/// What the CNI conventions have for one container, `args.cni`.
fn conventions(conf: &Map<String, Value>) -> Option<&Map<String, Value>> {
    conf.get("args")?.get("cni")?.as_object()
}

fn routes(routes: Vec<Route>) -> Result<Vec<Route>, Error> {
    for (at, route) in routes.iter().enumerate() {
        if let Some((field, value, reason)) = route.problem() {
            return Err(Error::new(Code::InvalidConfig, format!("routes[{at}].{field} {value} {reason}")));
        }
    }
    Ok(routes)
}

/// Whether Weft's IPAM plugin leases a subnet of the network from etcd.
fn spans_hosts(conf: &Map<String, Value>) -> bool {
    let ipam = conf.get("ipam");
    let of_weft = ipam.and_then(|ipam| ipam.get("type")).is_some_and(|kind| kind == "weft-ipam");
    of_weft && ipam.and_then(|ipam| ipam.get("etcd")).is_some_and(|etcd| !etcd.is_null())
}

fn refuse_contradictions(raw: &NetConf, ipam: Option<&str>) -> Result<(), Error> {
    if raw.hairpin_mode && raw.promisc_mode {
        return Err(Error::new(
            Code::InvalidConfig,
            "hairpinMode and promiscMode are both true, and frames would come back twice: set one of them",
        ));
    }
    if let (true, Some(ipam)) = (raw.disable_container_interface, ipam) {
        return Err(Error::new(
            Code::InvalidConfig,
            format!(
                "disableContainerInterface is true, but an interface that is down cannot have the addresses \
                 of ipam.type \"{ipam}\": leave one of the two out"
            ),
        ));
    }
    match raw.ip_masq_backend.as_deref() {
        None | Some("" | "nftables") => Ok(()),
        Some(other) => Err(unsupported(
            "ipMasqBackend",
            &Value::String(other.to_owned()),
            "Weft masquerades by nftables only; set \"nftables\" or leave the key out",
        )),
    }
}

fn no_masquerade(raw: &NetConf) -> Result<Vec<IpNetwork>, Error> {
    if !raw.no_masquerade.is_empty() && !raw.ip_masq {
        let msg = "noMasquerade has prefixes, but ipMasq is false: set ipMasq to true or take them out";
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    match raw.no_masquerade.iter().find(|prefix| prefix.ip() != prefix.network()) {
        Some(wrong) => {
            let whole = format!("{}/{}", wrong.network(), wrong.prefix());
            Err(Error::new(
                Code::InvalidConfig,
                format!("noMasquerade has {wrong}, with host bits: write {whole}"),
            ))
        }
        None => Ok(raw.no_masquerade.clone()),
    }
}

/// Prefixes in a list; an address is a prefix of its own.
fn prefixes(key: &str, texts: &[String]) -> Result<Vec<IpNetwork>, Error> {
    let parse = |(at, text): (usize, &String)| {
        text.parse::<IpNetwork>().ok().ok_or_else(|| {
            let remedy = "give an address or a prefix, like 192.0.2.0/24";
            invalid(&format!("{key}[{at}]"), &Value::String(text.clone()), remedy)
        })
    };
    texts.iter().enumerate().map(parse).collect()
}

fn bridge_name(name: Option<&str>) -> Result<IfName, Error> {
    let name = name.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE);
    name.parse().map_err(|error: Error| {
        invalid("bridge", &Value::String(name.to_owned()), "give a valid interface name").detail(error.msg)
    })
}

fn mtu(key: &str, mtu: i64) -> Result<Option<u32>, Error> {
    match mtu {
        0 => Ok(None),
        MTU_MIN..=MTU_MAX => Ok(u32::try_from(mtu).ok()),
        _ => Err(invalid(key, &mtu.into(), "give 68 to 65535 bytes, or 0 for the kernel's default")),
    }
}

/// The IPAM plugin that asks a server by the container's interface, and whose addresses a client in there renews.
pub const DHCP: &str = "dhcp";
/// The type of an IPAM plugin, and what it is told of itself.
pub type Ipam<'a> = (&'a str, &'a Map<String, Value>);

/// Who manages a network's addresses; `None` where it has none.
///
/// # Errors
/// [`Code::InvalidConfig`] when `ipam` cannot be understood at all.
pub fn ipam(conf: &Map<String, Value>) -> Result<Option<Ipam<'_>>, Error> {
    match conf.get("ipam") {
        // Addresses are the business of the plugin before it.
        _ if conf.get("chained") == Some(&Value::Bool(true)) => Ok(None),
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(ipam)) => Ok(ipam_type(ipam)?.map(|plugin| (plugin, ipam))),
        Some(other) => Err(invalid("ipam", other, "give an object with a type, or leave ipam out")),
    }
}

fn ipam_type(ipam: &Map<String, Value>) -> Result<Option<&str>, Error> {
    match ipam.get("type") {
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name)),
        Some(Value::String(_)) => Ok(None),
        None if ipam.is_empty() => Ok(None),
        None => Err(Error::new(
            Code::InvalidConfig,
            "ipam has no type, so no plugin can be called: add \"type\": \"weft-ipam\"",
        )),
        Some(other) => {
            Err(invalid("ipam.type", other, "give the name of an IPAM plugin, like \"weft-ipam\""))
        }
    }
}

fn invalid(key: &str, value: &Value, remedy: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{key} is {value}: {remedy}"))
}

fn unsupported(key: &str, value: &Value, remedy: &str) -> Error {
    Error::new(Code::UnsupportedField, format!("key {key} with value {value} is not supported: {remedy}"))
}

#[cfg(test)]
mod tests;
