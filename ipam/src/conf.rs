//! The configuration: what was written, and what it means once checked.

pub mod etcd;
mod leased;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::{Call, CniArgs, Code, Error, Route, Version, decode, nearest};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};
use weft_state::state_dir;

pub use leased::Leased;

use crate::pool::{Misplaced, Pools, Refusal};
use crate::range::{Invalid, Range, RangeSpec};
use crate::sticky;

const IPAM_KEYS: [&str; 13] = [
    "type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "resolvConf", "dataDir",
    "exclude", "etcd", "sticky", "stickyFor",
];
const RANGE_KEYS: [&str; 4] = ["subnet", "rangeStart", "rangeEnd", "gateway"];
const ROUTE_KEYS: [&str; 7] = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// The part of a network configuration that an IPAM plugin reads, as it was written. The names are
/// those of host-local.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    ipam: Option<RawIpam>,
    runtime_config: Option<RawRuntime>,
    args: Option<RawArgs>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIpam {
    // One range of one set, as it was written before `ranges` existed.
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
    ranges: Option<Vec<Vec<RawRange>>>,
    routes: Option<Vec<Route>>,
    resolv_conf: Option<String>,
    exclude: Option<Vec<String>>,
    sticky: Option<String>,
    sticky_for: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRuntime {
    ips: Option<Vec<String>>,
    ip_ranges: Option<Vec<Vec<RawRange>>>,
}

#[derive(Debug, Deserialize)]
struct RawArgs {
    cni: Option<RawCniArgs>,
}

#[derive(Debug, Deserialize)]
struct RawCniArgs {
    ips: Option<Vec<String>>,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Conf {
    /// The addresses to give.
    pub pools: Pools,
    /// The address asked for, per set of `pools`.
    pub requests: Vec<Option<IpAddr>>,
    /// Passed on in the result.
    pub routes: Vec<Route>,
    /// The file to read DNS settings from.
    pub resolv_conf: Option<PathBuf>,
    /// How long an address is kept for the name that had it, where addresses stay with names.
    pub sticky: Option<Duration>,
}

/// Where the reservations are: `ipam.dataDir`, else what the key `stateDir` has, else the environment's
/// `WEFT_STATE_DIR`, else /run/weft. DEL and GC read no more of the configuration than this, so that a
/// mistake in it cannot keep addresses held.
///
/// # Errors
/// [`Code::InvalidConfig`] when that is no absolute path.
pub fn reservations_dir(conf: &Map<String, Value>) -> Result<PathBuf, Error> {
    let Some(value) = data_dir_of_ipam(conf) else { return state_dir(conf.get("stateDir")) };
    let path = value.as_str().map(PathBuf::from).filter(|p| p.is_absolute());
    path.ok_or_else(|| invalid("ipam.dataDir", value, "is no absolute path; write one that starts with /"))
}

/// Where earlier versions, which took no heed of `stateDir` here, had the reservations: in the default
/// directory. Another host of this machine may have its own there.
pub(crate) fn former_reservations_dir(conf: &Map<String, Value>) -> Option<PathBuf> {
    let told = conf.get("stateDir").filter(|_| data_dir_of_ipam(conf).is_none())?;
    let former = state_dir(None).ok()?;
    state_dir(Some(told)).is_ok_and(|now| now != former).then_some(former)
}

fn data_dir_of_ipam(conf: &Map<String, Value>) -> Option<&Value> {
    conf.get("ipam").and_then(|ipam| ipam.get("dataDir")).filter(|v| !v.is_null() && *v != "")
}

impl Conf {
    /// Reads and checks everything that ADD needs.
    ///
    /// # Errors
    /// [`Code::UnsupportedField`] for an unknown key, [`Code::InvalidConfig`] for a value that cannot
    /// be; each names path, value and remedy.
    pub fn new(call: &Call, args: &CniArgs, leased: Option<&Leased>) -> Result<Self, Error> {
        check_keys(&call.conf)?;
        let raw: RawConf = decode(&call.conf)?;
        let Some(ipam) = raw.ipam else {
            return Err(invalid("ipam", "null", "is missing; give it a subnet, ranges or etcd"));
        };
        let runtime = raw.runtime_config.unwrap_or_default();
        let exclude = exclusions(ipam.exclude.as_deref().unwrap_or_default())?;
        let ranges = runtime.ip_ranges.as_deref().unwrap_or_default();
        let pools = match leased {
            Some(leased) => leased.pools(&ipam, ranges, exclude)?,
            None => pools(&ipam, ranges, exclude)?,
        };
        check_version(&pools, call.version)?;
        let in_args = raw.args.and_then(|a| a.cni).and_then(|c| c.ips);
        let wanted = requested(runtime.ips, in_args, args)?;
        Ok(Self {
            requests: assign(&pools, &wanted)?,
            pools,
            routes: leased::all_routes(checked_routes(ipam.routes.unwrap_or_default())?, leased),
            resolv_conf: ipam.resolv_conf.filter(|p| !p.is_empty()).map(PathBuf::from),
            sticky: sticky::time(ipam.sticky.as_deref(), ipam.sticky_for)?,
        })
    }
}

fn invalid(path: &str, value: impl std::fmt::Display, reason: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{path}: {value} {reason}"))
}

fn check_keys(conf: &Map<String, Value>) -> Result<(), Error> {
    let ipam = conf.get("ipam");
    let spans_hosts = ipam.and_then(|ipam| ipam.get("etcd")).is_some_and(|etcd| !etcd.is_null());
    let keys = if spans_hosts { [&IPAM_KEYS[..], &etcd::KEYS].concat() } else { IPAM_KEYS.to_vec() };
    known(ipam, "ipam", &keys)?;
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    for (i, route) in list(ipam.and_then(|v| v.get("routes"))).iter().enumerate() {
        known(Some(route), &format!("ipam.routes[{i}]"), &ROUTE_KEYS)?;
    }
    let configured = ("ipam.ranges", ipam.and_then(|v| v.get("ranges")));
    let runtime = ("runtimeConfig.ipRanges", conf.get("runtimeConfig").and_then(|v| v.get("ipRanges")));
    for (path, sets) in [configured, runtime] {
        for (i, set) in list(sets).iter().enumerate() {
            for (j, range) in list(Some(set)).iter().enumerate() {
                known(Some(range), &format!("{path}[{i}][{j}]"), &RANGE_KEYS)?;
            }
        }
    }
    Ok(())
}

fn known(value: Option<&Value>, path: &str, keys: &[&str]) -> Result<(), Error> {
    let unknown =
        value.and_then(Value::as_object).and_then(|o| o.iter().find(|(k, _)| !keys.contains(&k.as_str())));
    let Some((key, value)) = unknown else { return Ok(()) };
    let remedy = match nearest(key, keys) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("remove it; known are {}", keys.join(", ")),
    };
    Err(Error::new(
        Code::UnsupportedField,
        format!("{path}: unknown key {key:?} with value {value}: {remedy}"),
    ))
}

fn address(text: &str, path: &str) -> Result<IpAddr, Error> {
    let parsed = text.parse::<IpAddr>();
    parsed.map_err(|e| {
        invalid(
            path,
            format_args!("{text:?}"),
            &format!("is no IP address ({e}); write one such as 10.88.0.9 or fd00::9"),
        )
    })
}

/// An address, or one with a prefix length, which is not looked at: that of the subnet counts, as in
/// host-local.
fn address_of_request(text: &str, path: &str) -> Result<IpAddr, Error> {
    if text.contains('/') { Ok(network(text, path)?.ip()) } else { address(text, path) }
}

fn network(text: &str, path: &str) -> Result<IpNetwork, Error> {
    let parsed = text.split_once('/').and_then(|(ip, length)| {
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        let length = digits.then(|| length.parse().ok())??;
        IpNetwork::new(ip.parse().ok()?, length).ok()
    });
    let reason = "is no prefix; write one such as 10.88.0.0/16 or fd00::/64";
    parsed.ok_or_else(|| invalid(path, format_args!("{text:?}"), reason))
}

fn exclusions(texts: &[String]) -> Result<Vec<IpNetwork>, Error> {
    let one = |(i, text): (usize, &String)| {
        let path = format!("ipam.exclude[{i}]");
        if !text.contains('/') {
            return Ok(IpNetwork::from(address(text, &path)?));
        }
        let network = network(text, &path)?;
        if network.ip() == network.network() {
            return Ok(network);
        }
        let whole = format!("{}/{}", network.network(), network.prefix());
        Err(invalid(&path, network, &format!("has host bits set; write {whole} or the address alone")))
    };
    texts.iter().enumerate().map(one).collect()
}

/// The sets in the order of host-local: those of the runtime, the one outside `ranges`, `ranges`.
fn pools(ipam: &RawIpam, runtime: &[Vec<RawRange>], exclude: Vec<IpNetwork>) -> Result<Pools, Error> {
    let mut sets = checked_sets(runtime, "runtimeConfig.ipRanges")?;
    if let Some(range) = ipam.single_range() {
        sets.push(("ipam".to_owned(), vec![range.check("ipam")?]));
    }
    sets.extend(checked_sets(ipam.ranges.as_deref().unwrap_or_default(), "ipam.ranges")?);
    if sets.is_empty() {
        return Err(invalid(
            "ipam.ranges",
            "null",
            "gives no address; write at least one set such as [[{\"subnet\": \"10.88.0.0/16\"}]]",
        ));
    }
    let (paths, sets): (Vec<String>, Vec<Vec<Range>>) = sets.into_iter().unzip();
    Pools::new(&sets, exclude).map_err(|Misplaced { set, range, invalid }| {
        let path = &paths[set];
        // The one outside `ranges` is written without a list.
        let range = range.filter(|_| path != "ipam").map(|r| format!("[{r}]")).unwrap_or_default();
        wrong_range(&format!("{path}{range}"), &invalid)
    })
}

fn checked_sets(sets: &[Vec<RawRange>], path: &str) -> Result<Vec<(String, Vec<Range>)>, Error> {
    let set = |(i, set): (usize, &Vec<RawRange>)| {
        let path = format!("{path}[{i}]");
        let ranges = set.iter().enumerate().map(|(j, raw)| raw.check(&format!("{path}[{j}]")));
        Ok((path.clone(), ranges.collect::<Result<_, Error>>()?))
    };
    sets.iter().enumerate().map(set).collect()
}

fn wrong_range(path: &str, Invalid { key, value, reason }: &Invalid) -> Error {
    let path = if key.is_empty() { path.to_owned() } else { format!("{path}.{key}") };
    invalid(&path, value, reason)
}

impl RawIpam {
    fn single_range(&self) -> Option<RawRange> {
        let range = RawRange {
            subnet: self.subnet.clone(),
            range_start: self.range_start.clone(),
            range_end: self.range_end.clone(),
            gateway: self.gateway.clone(),
        };
        let given = [&range.subnet, &range.range_start, &range.range_end, &range.gateway];
        let is_given = given.into_iter().any(Option::is_some);
        is_given.then_some(range)
    }
}

impl RawRange {
    fn check(&self, path: &str) -> Result<Range, Error> {
        let subnet = self.subnet.as_deref().unwrap_or_default();
        if subnet.is_empty() {
            let path = format!("{path}.subnet");
            return Err(invalid(&path, "\"\"", "is missing; write one such as 10.88.0.0/16 or fd00::/64"));
        }
        // To host-local, an empty text is the same as none.
        let optional = |key: &str, text: &Option<String>| match text.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => address(text, &format!("{path}.{key}")).map(Some),
        };
        let spec = RangeSpec {
            subnet: network(subnet, &format!("{path}.subnet"))?,
            start: optional("rangeStart", &self.range_start)?,
            end: optional("rangeEnd", &self.range_end)?,
            gateway: optional("gateway", &self.gateway)?,
        };
        Range::new(&spec).map_err(|invalid| wrong_range(path, &invalid))
    }
}

/// The kernel would refuse these routes, but only after the container has its interface.
fn checked_routes(routes: Vec<Route>) -> Result<Vec<Route>, Error> {
    for (i, route) in routes.iter().enumerate() {
        if let Some((field, value, reason)) = route.problem() {
            return Err(invalid(&format!("ipam.routes[{i}].{field}"), value, &reason));
        }
    }
    Ok(routes)
}

/// Results up to 0.2.0 have room for one address of each family.
fn check_version(pools: &Pools, version: Version) -> Result<(), Error> {
    let of_v4 = pools.sets().iter().filter(|s| s.is_ipv4()).count();
    if version >= Version::V0_3_0 || (of_v4 <= 1 && pools.sets().len() - of_v4 <= 1) {
        return Ok(());
    }
    let reason = "has no room for two addresses of one family; set cniVersion to 0.3.0 or newer, or keep one set per family";
    Err(invalid("cniVersion", version, reason))
}

/// What is asked for, with the place it was asked in. The first source that names an address counts
/// alone, as the conventions have it: the capability, then `args`, then `CNI_ARGS`.
fn requested(
    capability: Option<Vec<String>>,
    in_args: Option<Vec<String>>,
    args: &CniArgs,
) -> Result<Vec<(String, IpAddr)>, Error> {
    for (path, texts) in [("runtimeConfig.ips", capability), ("args.cni.ips", in_args)] {
        let texts = texts.unwrap_or_default();
        if !texts.is_empty() {
            let one = |(i, text): (usize, &String)| {
                let path = format!("{path}[{i}]");
                address_of_request(text, &path).map(|ip| (path, ip))
            };
            return texts.iter().enumerate().map(one).collect();
        }
    }
    Ok(args.ips.iter().map(|ip| ("CNI_ARGS IP".to_owned(), *ip)).collect())
}

/// Which set has to give which of the addresses asked for.
fn assign(pools: &Pools, wanted: &[(String, IpAddr)]) -> Result<Vec<Option<IpAddr>>, Error> {
    let mut of_set: Vec<Option<IpAddr>> = vec![None; pools.sets().len()];
    for (path, ip) in wanted {
        if let Some(refusal) = pools.refusal(*ip) {
            let all = pools.sets().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(invalid(path, ip, &format!("{}; choose a free address of {all}", why(refusal))));
        }
        let Some(set) = pools.sets().iter().position(|s| s.gives(*ip)) else { continue };
        if let Some(other) = of_set[set].replace(*ip) {
            let reason = format!(
                "is in the same range set as {other}, and a set gives one address; ask for one of them"
            );
            return Err(invalid(path, ip, &reason));
        }
    }
    Ok(of_set)
}

fn why(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Outside => "lies outside all ranges of the network",
        Refusal::Gateway => "is a gateway of the network",
        Refusal::NetworkOrBroadcast => "is the network or broadcast address of a subnet",
        Refusal::Excluded => "is excluded by ipam.exclude",
    }
}

#[cfg(test)]
mod tests;
