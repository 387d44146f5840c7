//! etcd, as far as a network is in it. No policy.

use std::future::Future;
use std::time::Duration;

use cni_protocol::{Code, Error};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
    WatchStream,
};
use weft_state::lease::{Peers, since_1970};

use crate::etcd_conf::EtcdConf;

pub struct Registry {
    client: Client,
    prefix: String,
    timeout: Duration,
}

/// What a watch says.
#[derive(Debug)]
pub enum Watched {
    /// Values by key, `None` where it is gone.
    Changes { revision: i64, records: Vec<(String, Option<String>)> },
    /// History is gone: take everything anew.
    Compacted,
}

pub struct Watch {
    stream: WatchStream,
    prefix: String,
}

impl Registry {
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn connect(conf: &EtcdConf) -> Result<Self, Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_millis(700))
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(2))
            .with_keep_alive_while_idle(true);
        let client = Client::connect(&conf.endpoints, Some(options))
            .await
            .map_err(|error| failed("connect", &error))?;
        Ok(Self { client, prefix: conf.prefix.clone(), timeout: conf.timeout })
    }

    fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// # Errors
    /// [`Code::TryAgain`]; [`Code::InvalidConfig`] when there is none.
    pub async fn config(&mut self) -> Result<String, Error> {
        let key = format!("{}/config", self.prefix);
        let answer =
            within(self.timeout, "read the configuration", self.client.get(key.as_str(), None)).await?;
        let value = answer.kvs().first().and_then(|kv| kv.value_str().ok()).map(str::to_owned);
        value.ok_or_else(|| {
            let example = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
            Error::new(
                Code::InvalidConfig,
                format!("{key} is not in etcd: put it with etcdctl put {key} '{example}'"),
            )
        })
    }

    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn hosts(&mut self) -> Result<Peers, Error> {
        let prefix = self.subnets();
        let options = GetOptions::new().with_prefix();
        let answer =
            within(self.timeout, "read the hosts", self.client.get(prefix.as_str(), Some(options))).await?;
        let records = answer.kvs().iter().filter_map(|kv| {
            let key = kv.key_str().ok()?.strip_prefix(&prefix)?;
            Some((key.to_owned(), kv.value_str().ok()?.to_owned()))
        });
        Ok(Peers {
            revision: answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default(),
            seen: u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX),
            records: records.collect(),
        })
    }

    /// The store's number of the lease of a key.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn lease_of(&mut self, key: &str) -> Result<i64, Error> {
        let key = format!("{}{key}", self.subnets());
        let answer = within(self.timeout, "read a record", self.client.get(key.as_str(), None)).await?;
        Ok(answer.kvs().first().map(etcd_client::KeyValue::lease).unwrap_or_default())
    }

    /// Puts a record unless there is one, or in place of `replaced`.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn put(
        &mut self,
        key: &str,
        value: &str,
        (ttl, before): (u64, Option<i64>),
        replaced: Option<&str>,
    ) -> Result<Option<i64>, Error> {
        let key = format!("{}{key}", self.subnets());
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        let lease = match before {
            Some(lease) => lease,
            None => within(self.timeout, "grant a lease", self.client.lease_grant(ttl, None)).await?.id(),
        };
        let compare = match replaced {
            None => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
            Some(value) => Compare::value(key.as_str(), CompareOp::Equal, value),
        };
        let put = TxnOp::put(key.as_str(), value, Some(PutOptions::new().with_lease(lease)));
        let txn = Txn::new().when([compare]).and_then([put]);
        if within(self.timeout, "take a subnet", self.client.txn(txn)).await?.succeeded() {
            return Ok(Some(lease));
        }
        within(self.timeout, "revoke a lease", self.client.lease_revoke(lease)).await?;
        Ok(None)
    }

    /// Renews a lease; whether it is still there.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn keep_alive(&mut self, lease: i64) -> Result<bool, Error> {
        let answer = within(self.timeout, "renew the lease", self.client.lease_keep_alive(lease)).await;
        let (mut keeper, mut answers) = match answer {
            Err(error) if error.msg.contains("lease not found") => return Ok(false),
            other => other?,
        };
        within(self.timeout, "renew the lease", keeper.keep_alive()).await?;
        let answer = within(self.timeout, "renew the lease", answers.message()).await?;
        Ok(answer.is_some_and(|answer| answer.ttl() > 0))
    }

    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn watch(&mut self, from: i64) -> Result<Watch, Error> {
        let prefix = self.subnets();
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let stream = within(self.timeout, "watch", self.client.watch(prefix.as_str(), Some(options))).await?;
        Ok(Watch { stream, prefix })
    }
}

impl Watch {
    /// # Errors
    /// [`Code::TryAgain`] when the watch ended.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        let message = self.stream.message().await.map_err(|error| failed("watch", &error))?;
        let Some(message) = message else { return Err(Error::new(Code::TryAgain, "watch: etcd ended it")) };
        if message.compact_revision() > 0 || message.canceled() {
            return Ok(Watched::Compacted);
        }
        let records = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let key = kv.key_str().ok()?.strip_prefix(&self.prefix)?.to_owned();
            let value =
                (event.event_type() == EventType::Put).then(|| kv.value_str().unwrap_or_default().to_owned());
            Some((key, value))
        });
        let records = records.collect();
        let revision = message.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        Ok(Watched::Changes { revision, records })
    }
}

async fn within<T>(
    timeout: Duration,
    step: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result.map_err(|error| failed(step, &error)),
        Err(_) => Err(Error::new(Code::TryAgain, format!("{step}: etcd gave no answer within {timeout:?}"))),
    }
}

fn failed(step: &str, error: &etcd_client::Error) -> Error {
    Error::new(Code::TryAgain, format!("{step}: {error}"))
}
