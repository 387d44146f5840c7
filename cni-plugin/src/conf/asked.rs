//! What is asked for one container: by the runtime in `runtimeConfig`, by a user in `args.weft`.

use cni_protocol::{Code, Error, decode, nearest};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ports::{Mapping, requested_mappings};
use super::prefixes;

/// Every key that may stand in `args.weft`.
const KEYS: &[&str] = &["sources"];

/// What is asked for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub mappings: Vec<Mapping>,
    /// Who may use its host ports, in place of the network's `sources`.
    pub sources: Option<Vec<IpNetwork>>,
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
    /// [`Code::UnsupportedField`] for an unknown key, [`Code::InvalidConfig`] for a value that cannot be meant.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let mappings = requested_mappings(conf)?;
        let Some(Value::Object(own)) = conf.get("args").and_then(|args| args.get("weft")) else {
            return Ok(Self { mappings, ..Self::default() });
        };
        if let Some((key, value)) = own.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            let near = nearest(key, KEYS).map_or_else(
                || format!("args.weft has {}", KEYS.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            return Err(Error::new(
                Code::UnsupportedField,
                format!("unknown key args.weft.{key} with value {value}: {near}"),
            ));
        }
        let raw: Raw = decode(own)?;
        let sources = raw.sources.map(|sources| prefixes("args.weft.sources", &sources)).transpose()?;
        Ok(Self { mappings, sources })
    }
}
