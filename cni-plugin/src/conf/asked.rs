//! What is asked for one container: by the runtime in `runtimeConfig`, by a user in `args.weft`.

use cni_protocol::{Error, decode};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ports::{Mapping, requested_mappings};
use super::shaping::Shaping;
use super::{keys, prefixes};

/// Every key that may stand in `args.weft`.
const KEYS: &[&str] = &["sources"];

/// What is asked for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub mappings: Vec<Mapping>,
    /// Who may use its host ports, in place of the network's `sources`.
    pub sources: Option<Vec<IpNetwork>>,
    pub shaping: Shaping,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    sources: Option<Vec<String>>,
}

impl Asked {
    /// Reads it out of a configuration.
    ///
    /// # Errors
    /// An unknown key; a value that cannot be meant.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let mappings = requested_mappings(conf)?;
        let shaping = Shaping::requested(conf)?;
        let Some(Value::Object(own)) = conf.get("args").and_then(|args| args.get("weft")) else {
            return Ok(Self { mappings, shaping, ..Self::default() });
        };
        keys::refuse_others("args.weft", own, KEYS)?;
        let raw: Raw = decode(own)?;
        let sources = raw.sources.map(|sources| prefixes("args.weft.sources", &sources)).transpose()?;
        Ok(Self { mappings, sources, shaping })
    }
}
