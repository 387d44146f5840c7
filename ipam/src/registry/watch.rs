//! What changes in etcd, as it happens.

use cni_protocol::{Code, Error};
use etcd_client::{EventType, WatchStream};

use super::failure::explain;
use super::{Registry, text};

/// What a watch says.
#[derive(Debug)]
pub enum Watched {
    /// Hosts' values by key, with the revisions that made the keys, `None` where it is gone; and the network's configuration if that
    /// has changed.
    Changes { revision: i64, records: Vec<(String, Option<(String, i64)>)>, config: Option<Option<String>> },
    /// History is gone: take everything anew.
    Compacted,
}

/// The changes of a network's records and configuration.
pub struct Watch {
    stream: WatchStream,
    config_key: String,
    subnets: String,
    endpoint: String,
}

impl Watch {
    pub(super) fn new(stream: WatchStream, registry: &Registry) -> Self {
        Self {
            stream,
            config_key: registry.config_key(),
            subnets: registry.subnets(),
            endpoint: registry.endpoints[registry.current].clone(),
        }
    }

    /// Whether the endpoint that tells them is the one that is talked to, not one that a call has found silent meanwhile.
    #[must_use]
    pub fn is_current(&self, registry: &Registry) -> bool {
        registry.endpoints[registry.current] == self.endpoint
    }

    /// The next changes, when there are some.
    ///
    /// # Errors
    /// [`Code::TryAgain`] when the watch ended.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        let failed = |what: String| Error::new(Code::TryAgain, format!("watch the hosts: {what}"));
        let message = self.stream.message().await.map_err(|error| failed(explain(&self.endpoint, &error)))?;
        let Some(message) = message else { return Err(failed(format!("{} ended it", self.endpoint))) };
        if message.compact_revision() > 0 {
            return Ok(Watched::Compacted);
        }
        if message.canceled() {
            return Err(failed(format!("{} ended it: {}", self.endpoint, message.cancel_reason())));
        }
        let (mut records, mut config) = (Vec::new(), None);
        for event in message.events() {
            let Some((kv, key)) = event.kv().and_then(|kv| Some((kv, kv.key_str().ok()?))) else { continue };
            let put = event.event_type() == EventType::Put;
            let value = put.then(|| text(kv));
            if key == self.config_key {
                config = Some(value);
            } else if let Some(key) = key.strip_prefix(&self.subnets) {
                records.push((key.to_owned(), value.map(|value| (value, kv.create_revision()))));
            }
        }
        let revision = message.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        Ok(Watched::Changes { revision, records, config })
    }
}
