//! What is asked for one container: by the runtime in `runtimeConfig`, by a user in `args.weft`.

use std::net::IpAddr;

use cni_protocol::{CniArgs, Code, Dns, Error, MacAddr, decode, decode_part};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::guard::allowed_addresses;
use super::isolation::{Allow, Peer, allow_rules, reduced};
use super::names::Names;
use super::ports::{Mapping, requested_mappings};
use super::shaping::Shaping;
use super::tuning::Tuning;
use super::{conventions, invalid, keys, prefixes};

/// Every key that may stand in `args.weft`.
const KEYS: &[&str] = &["allow", "sources"];

/// What is asked for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub mappings: Vec<Mapping>,
    /// Who may use its host ports, in place of the network's `sources`.
    pub sources: Option<Vec<IpNetwork>>,
    /// Whom it may talk with where the network's `icc` is off.
    pub allow: Vec<Allow>,
    /// What it may use besides its own addresses.
    pub allowed_addresses: Vec<IpNetwork>,
    pub shaping: Shaping,
    pub tuning: Tuning,
    /// How it resolves names, as far as that differs from the network's other containers.
    pub dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    sources: Option<Vec<String>>,
    allow: Vec<Map<String, Value>>,
}

impl Asked {
    /// Reads it out of a configuration.
    ///
    /// # Errors
    /// An unknown key; a value that cannot be meant.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let asked = Self {
            mappings: requested_mappings(conf)?,
            shaping: Shaping::requested(conf)?,
            tuning: Tuning::parse(conf)?,
            dns: dns(conf)?,
            sources: None,
            allow: Vec::new(),
            allowed_addresses: allowed_addresses(conf)?,
        };
        let Some(Value::Object(own)) = conf.get("args").and_then(|args| args.get("weft")) else {
            return Ok(asked);
        };
        keys::refuse_others("args.weft", own, KEYS)?;
        let raw: Raw = decode_part("args.weft", own)?;
        let sources = raw.sources.map(|sources| prefixes("args.weft.sources", &sources)).transpose()?;
        let sources = sources.map(reduced);
        let allow = allow_rules("args.weft.allow", &raw.allow, Some(&Peer::Own))?;
        Ok(Self { sources, allow, ..asked })
    }

    /// Sees that the container's rules are about it. Whose the addresses of a prefix will be is not known yet.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`]: one of them would allow nothing.
    pub fn refuse_rules_of_others(&self, container_id: &str, names: &Names) -> Result<(), Error> {
        let may_mean_it = |side: &Peer| match side {
            Peer::Own | Peer::Prefix(_) => true,
            other => other.names(container_id, names),
        };
        let is_of_others = |rule: &Allow| !may_mean_it(&rule.from) && !may_mean_it(&rule.to);
        let Some(at) = self.allow.iter().position(is_of_others) else { return Ok(()) };
        let msg = format!(
            "args.weft.allow[{at}] is about other containers only: leave out the side that is this one, or have the rule in the \
             network's allow"
        );
        Err(Error::new(Code::InvalidConfig, msg))
    }
}

/// The MAC address asked for, by the conventions' order: `runtimeConfig.mac`, `args.cni.mac`, `CNI_ARGS` MAC; then the
/// tuning plugin's `mac`.
///
/// # Errors
/// [`Code::InvalidConfig`] for text that is no unicast MAC address.
pub fn requested_mac(conf: &Map<String, Value>, args: &CniArgs) -> Result<Option<MacAddr>, Error> {
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        mac: Option<String>,
        runtime_config: Option<Runtime>,
    }
    #[derive(Debug, Deserialize)]
    struct Runtime {
        mac: Option<String>,
    }
    let raw: Raw = decode(conf)?;
    let convention = match conventions(conf).and_then(|cni| cni.get("mac")) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => return Err(invalid("args.cni.mac", other, "give a text, like \"02:00:00:00:00:01\"")),
    };
    let asked = [
        ("runtimeConfig.mac", raw.runtime_config.and_then(|config| config.mac)),
        ("args.cni.mac", convention),
    ];
    let asked = asked.into_iter().find_map(|(key, mac)| Some((key, mac.filter(|mac| !mac.is_empty())?)));
    let of_network = raw.mac.filter(|mac| args.mac.is_none() && !mac.is_empty()).map(|mac| ("mac", mac));
    let mac = match asked.or(of_network) {
        None => args.mac,
        Some((key, text)) => Some(
            text.parse::<MacAddr>()
                .map_err(|error| Error { msg: format!("{key}: {}", error.msg), ..error })?,
        ),
    };
    match mac {
        Some(mac) if mac.octets()[0] & 1 == 1 || mac.octets() == [0; 6] => Err(Error::new(
            Code::InvalidConfig,
            format!("the MAC address {mac} cannot be an interface's: give a unicast address other than zero"),
        )),
        mac => Ok(mac),
    }
}

/// Whether an attachment's addresses are chosen, so that another container can have had them a moment ago: asked for by the
/// runtime or the user, kept for a name (`ipam.sticky`), or those of the configuration (the IPAM plugin `static`). What a
/// pool gives comes round late, unless the pool is small; to announce all of it would be fifteen system calls more in every ADD, and
/// a broadcast to every port of the bridge. Whatever else is there is for the IPAM plugin to judge.
pub fn chooses_addresses(conf: &Map<String, Value>, args: &CniArgs) -> bool {
    let ipam = conf.get("ipam");
    let asked = [
        conf.get("runtimeConfig").and_then(|config| config.get("ips")),
        conventions(conf).and_then(|cni| cni.get("ips")),
        ipam.and_then(|ipam| ipam.get("sticky")),
    ];
    !args.ips.is_empty()
        || asked.into_iter().flatten().any(keys::asks_for_something)
        || ipam.and_then(|ipam| ipam.get("type")).is_some_and(|kind| kind == "static")
}

/// The capability `dns`, whose names differ from the result's.
fn dns(conf: &Map<String, Value>) -> Result<Dns, Error> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Runtime {
        dns: Option<Requested>,
    }
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Requested {
        servers: Option<Vec<String>>,
        searches: Option<Vec<String>>,
        options: Option<Vec<String>>,
    }
    let Some(Value::Object(runtime)) = conf.get("runtimeConfig") else { return Ok(Dns::default()) };
    let asked = decode_part::<Runtime>("runtimeConfig", runtime)?.dns.unwrap_or_default();
    let nameservers = asked.servers.unwrap_or_default();
    // A zone may follow, as in fe80::1%eth0.
    let is_address =
        |server: &&String| server.split('%').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
    if let Some(wrong) = nameservers.iter().find(|server| !is_address(server)) {
        return Err(invalid(
            "runtimeConfig.dns.servers",
            &wrong.as_str().into(),
            "give addresses of name servers",
        ));
    }
    Ok(Dns {
        nameservers,
        domain: None,
        search: asked.searches.unwrap_or_default(),
        options: asked.options.unwrap_or_default(),
    })
}
