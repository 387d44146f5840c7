//! What changes in etcd, as it happens.

use cni_protocol::{Code, Error};
use etcd_client::{EventType, WatchStream};

use super::failure::explain;

/// What a watch says.
#[derive(Debug)]
pub enum Watched {
    /// Values by key, `None` where it is gone.
    Changes { revision: i64, records: Vec<(String, Option<String>)> },
    /// History is gone: take everything anew.
    Compacted,
}

/// The changes of a network's records.
pub struct Watch {
    stream: WatchStream,
    prefix: String,
    endpoint: String,
}

impl Watch {
    pub(super) fn new(stream: WatchStream, prefix: String, endpoint: String) -> Self {
        Self { stream, prefix, endpoint }
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
        let records = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let key = kv.key_str().ok()?.strip_prefix(&self.prefix)?.to_owned();
            let put = event.event_type() == EventType::Put;
            Some((key, put.then(|| String::from_utf8_lossy(kv.value()).into_owned())))
        });
        let revision = message.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        Ok(Watched::Changes { revision, records: records.collect() })
    }
}
