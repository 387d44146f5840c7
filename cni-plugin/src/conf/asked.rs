//! What is asked for one container: by the runtime in `runtimeConfig`, by a user in `args.weft`.

use std::net::IpAddr;

use cni_protocol::{Code, Dns, Error, decode_part};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::guard::allowed_addresses;
use super::isolation::{Allow, Peer, allow_rules, reduced};
use super::names::Names;
use super::ports::{Mapping, requested_mappings};
use super::shaping::Shaping;
use super::tuning::Tuning;
use super::{invalid, keys, prefixes};

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
    /// What else than its own addresses it may use.
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
