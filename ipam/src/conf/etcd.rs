//! How etcd is reached and how this host shows itself there: the keys `etcd`, `iface`, `publicIP`, `leaseTTL` and so on
//! of `ipam`.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Code, Error};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{invalid, known};
use crate::underlay::{Choice, Underlay};

/// The keys of `ipam` that belong to `etcd`.
pub(super) const KEYS: [&str; 7] =
    ["iface", "ifaceRegex", "ifaceCanReach", "publicIP", "publicIPv6", "leaseTTL", "peerRefresh"];
/// The keys of `etcd`, each with the environment's variable for it.
const ETCD_KEYS: [(&str, &str); 8] = [
    ("endpoints", "WEFT_ETCD_ENDPOINTS"),
    ("prefix", "WEFT_ETCD_PREFIX"),
    ("caFile", "WEFT_ETCD_CAFILE"),
    ("certFile", "WEFT_ETCD_CERTFILE"),
    ("keyFile", "WEFT_ETCD_KEYFILE"),
    ("username", "WEFT_ETCD_USERNAME"),
    ("passwordFile", "WEFT_ETCD_PASSWORD_FILE"),
    ("timeout", "WEFT_ETCD_TIMEOUT"),
];
/// What neither configuration nor environment say is looked up here.
const FILE: &str = "/etc/weft/etcd.json";
/// Names another such file, for several hosts on one machine.
const FILE_ENV: &str = "WEFT_ETCD_FILE";
/// flannel's default.
const PREFIX: &str = "/coreos.com/network";
/// For one call to one endpoint.
const TIMEOUT: Duration = Duration::from_secs(2);
/// flannel's: a day.
const LEASE_TTL: u64 = 86_400;
/// etcd gives no shorter ones.
const LEASE_TTL_RANGE: std::ops::RangeInclusive<u64> = 2..=31_536_000;
const PEER_REFRESH: u64 = 10;

/// How etcd is reached, and how this host shows itself there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConf {
    /// One at least.
    pub endpoints: Vec<String>,
    /// Where in etcd the network is, without a slash at its end.
    pub prefix: String,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
    /// For one call to one endpoint.
    pub timeout: Duration,
    pub underlay: Underlay,
    /// In seconds.
    pub ttl: u64,
    /// How old the record of the other hosts gets until an ADD looks for news.
    pub peer_refresh: Duration,
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who vouches for the servers.
    pub ca: PathBuf,
    /// This host's certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    /// It has the password and nothing else; a line's end counts as none.
    pub password_file: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEtcd {
    #[serde(default)]
    endpoints: Vec<String>,
    prefix: Option<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    timeout: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHost {
    iface: Option<String>,
    iface_regex: Option<String>,
    iface_can_reach: Option<IpAddr>,
    #[serde(rename = "publicIP")]
    public_ip: Option<IpAddr>,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(rename = "leaseTTL")]
    lease_ttl: Option<u64>,
    peer_refresh: Option<u64>,
}

impl EtcdConf {
    /// The part of `ipam` that is about etcd; `None` without the key `etcd`.
    ///
    /// # Errors
    /// [`Code::UnsupportedField`] for an unknown key, [`Code::InvalidConfig`] with key, value and remedy,
    /// [`Code::Io`] when /etc/weft/etcd.json is there and cannot be read.
    pub fn parse(ipam: &Map<String, Value>) -> Result<Option<Self>, Error> {
        let given = match ipam.get("etcd") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(given)) => given,
            Some(other) => {
                return Err(invalid("ipam.etcd", other, "is no object; write {} or its keys"));
            }
        };
        let file = std::env::var_os(FILE_ENV).map_or_else(|| FILE.into(), PathBuf::from);
        let etcd = merged(given, |name| std::env::var(name).ok(), &file)?;
        let host: RawHost = read("ipam", &Value::Object(ipam.clone()))?;
        let etcd: RawEtcd = read("ipam.etcd", &Value::Object(etcd))?;
        Self::checked(etcd, host).map(Some)
    }

    /// The same for a network at another place in the same etcd.
    #[must_use]
    pub fn at(&self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self.clone() }
    }

    fn checked(etcd: RawEtcd, host: RawHost) -> Result<Self, Error> {
        let endpoints = checked_endpoints(&etcd.endpoints)?;
        let tls = checked_tls(&endpoints, etcd.ca_file, etcd.cert_file, etcd.key_file)?;
        let login = both(
            (etcd.username, etcd.password_file),
            [
                ("ipam.etcd.username", "is missing beside passwordFile; say whose password it is"),
                ("ipam.etcd.passwordFile", "is missing beside username; name a file with the password"),
            ],
        )?;
        let login = login.map(|(username, password_file)| Login { username, password_file });
        let given = etcd.prefix.as_deref().unwrap_or(PREFIX);
        let prefix = given.trim_end_matches('/');
        if !prefix.starts_with('/') {
            return Err(invalid(
                "ipam.etcd.prefix",
                format_args!("{given:?}"),
                "is not a slash and a name; write one such as \"/coreos.com/network\"",
            ));
        }
        let ttl = host.lease_ttl.unwrap_or(LEASE_TTL);
        if !LEASE_TTL_RANGE.contains(&ttl) {
            return Err(invalid(
                "ipam.leaseTTL",
                ttl,
                "is out of range; give 2 seconds to a year, such as 86400",
            ));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            tls,
            login,
            timeout: checked_timeout(etcd.timeout)?,
            underlay: checked_underlay(
                host.iface,
                host.iface_regex,
                host.iface_can_reach,
                [host.public_ip, host.public_ipv6],
            )?,
            ttl,
            peer_refresh: Duration::from_secs(host.peer_refresh.unwrap_or(PEER_REFRESH)),
            endpoints,
        })
    }
}

/// The keys of `etcd`: each from the configuration, else from the environment, else from the file.
fn merged(
    given: &Map<String, Value>,
    environment: impl Fn(&str) -> Option<String>,
    file: &Path,
) -> Result<Map<String, Value>, Error> {
    let keys = ETCD_KEYS.map(|(key, _)| key);
    known(Some(&Value::Object(given.clone())), "ipam.etcd", &keys)?;
    let mut etcd = from_file(file)?;
    known(Some(&Value::Object(etcd.clone())), &file.display().to_string(), &keys)?;
    for (key, variable) in ETCD_KEYS {
        if let Some(text) = environment(variable).filter(|text| !text.is_empty()) {
            let value = match key {
                "endpoints" => text.split(',').map(str::trim).collect(),
                "timeout" => text.parse::<f64>().map_or(Value::String(text), Value::from),
                _ => Value::String(text),
            };
            etcd.insert(key.to_owned(), value);
        }
    }
    etcd.extend(
        given.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
    );
    Ok(etcd)
}

fn from_file(file: &Path) -> Result<Map<String, Value>, Error> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => {
            let msg = format!("read {}: {error}: let only root read it, but let root", file.display());
            return Err(Error::new(Code::Io, msg));
        }
    };
    serde_json::from_str(&text).map_err(|error| {
        let msg = format!("{}: {error}: it has the keys of ipam.etcd, as one JSON object", file.display());
        Error::new(Code::InvalidConfig, msg)
    })
}

fn read<'de, T: Deserialize<'de>>(at: &str, value: &'de Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, cause) = (error.path().to_string(), error.inner().to_string());
        Error::new(Code::InvalidConfig, format!("{at}.{path}: {cause}; docs/ipam.md shows each key"))
    })
}

fn checked_endpoints(endpoints: &[String]) -> Result<Vec<String>, Error> {
    let example = "such as [\"https://192.0.2.1:2379\"]";
    if endpoints.is_empty() {
        let remedy = format!("gives none; write URLs {example}, here, in {} or in {FILE}", ETCD_KEYS[0].1);
        return Err(invalid("ipam.etcd.endpoints", "[]", &remedy));
    }
    let read = |(index, given): (usize, &String)| {
        endpoint(given).map_err(|reason| {
            let path = format!("ipam.etcd.endpoints[{index}]");
            invalid(&path, format_args!("{given:?}"), &format!("{reason}; write some {example}"))
        })
    };
    let endpoints: Vec<String> = endpoints.iter().enumerate().map(read).collect::<Result<_, Error>>()?;
    if endpoints.iter().any(|one| one.starts_with("https:") != endpoints[0].starts_with("https:")) {
        return Err(invalid(
            "ipam.etcd.endpoints",
            format_args!("{endpoints:?}"),
            "mixes http and https; use one of them",
        ));
    }
    Ok(endpoints)
}

/// One endpoint, its scheme in small letters and without a slash at its end; else why it is none.
fn endpoint(given: &str) -> Result<String, &'static str> {
    const NO_URL: &str = "is no URL of etcd";
    let (scheme, authority) = given.split_once("://").ok_or(NO_URL)?;
    let scheme = scheme.to_ascii_lowercase();
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = host_and_port(authority);
    let is_host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    let is_number = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if !["http", "https"].contains(&scheme.as_str()) || !is_host || !is_number {
        return Err(NO_URL);
    }
    if port.is_some_and(|port| port.parse::<NonZeroU16>().is_err()) {
        return Err("has a port that is not among 1 to 65535");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// The parts of what is behind the scheme. An IPv6 address is in brackets, as it has colons of its own.
pub(crate) fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Two keys of which each needs the other; for each, its path and what is wrong where it alone is missing.
fn both<A, B>(
    given: (Option<A>, Option<B>),
    [first, second]: [(&str, &str); 2],
) -> Result<Option<(A, B)>, Error> {
    let missing = |(path, what): (&str, &str)| Err(invalid(path, "null", what));
    match given {
        (None, None) => Ok(None),
        (Some(one), Some(other)) => Ok(Some((one, other))),
        (None, Some(_)) => missing(first),
        (Some(_), None) => missing(second),
    }
}

fn checked_tls(
    endpoints: &[String],
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Tls>, Error> {
    let client = both(
        (certificate, key),
        [
            ("ipam.etcd.certFile", "is missing beside keyFile; name the key's certificate"),
            ("ipam.etcd.keyFile", "is missing beside certFile; name the certificate's key"),
        ],
    )?;
    if !endpoints[0].starts_with("https:") {
        return if ca.is_some() || client.is_some() {
            Err(invalid(
                "ipam.etcd.endpoints",
                format_args!("{endpoints:?}"),
                "are without TLS, but there are certificates; write https://",
            ))
        } else {
            Ok(None)
        };
    }
    let Some(ca) = ca else {
        return Err(invalid(
            "ipam.etcd.caFile",
            "null",
            "is missing for https endpoints; name the file of the CA's certificate",
        ));
    };
    Ok(Some(Tls { ca, client }))
}

fn checked_timeout(seconds: Option<f64>) -> Result<Duration, Error> {
    match seconds {
        None => Ok(TIMEOUT),
        Some(seconds) if (0.05..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(other) => {
            Err(invalid("ipam.etcd.timeout", other, "is out of range; give 0.05 to 60 seconds for one call"))
        }
    }
}

fn checked_underlay(
    iface: Option<String>,
    regex: Option<String>,
    can_reach: Option<IpAddr>,
    public: [Option<IpAddr>; 2],
) -> Result<Underlay, Error> {
    let choice = match (iface, regex, can_reach) {
        (None, None, None) => Choice::DefaultRoute,
        (Some(iface), None, None) => Choice::Interface(iface),
        (None, Some(regex), None) => Choice::Matching(regex.parse().map_err(|error| {
            invalid(
                "ipam.ifaceRegex",
                format_args!("{regex:?}"),
                &format!("is no regular expression: {error}"),
            )
        })?),
        (None, None, Some(ip)) => Choice::CanReach(ip),
        _ => {
            let reason = "have more than one among them; keep the one that is meant";
            return Err(invalid("ipam", "iface, ifaceRegex and ifaceCanReach", reason));
        }
    };
    for (key, given, is_v4) in [("publicIP", public[0], true), ("publicIPv6", public[1], false)] {
        let wrong = |ip: &IpAddr| {
            ip.is_ipv4() != is_v4 || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()
        };
        if let Some(ip) = given.filter(wrong) {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            return Err(invalid(
                &format!("ipam.{key}"),
                ip,
                &format!("is no host's {family} address; write one by which other hosts reach this one"),
            ));
        }
    }
    Ok(Underlay { choice, public: public.into_iter().flatten().collect() })
}

#[cfg(test)]
mod tests;
