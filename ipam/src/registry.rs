//! etcd, as far as a network is in it: calls with time limits that go on at the next endpoint. No policy.

mod claim;
mod failure;
mod own;
mod watch;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, Identity, KeyValue,
    LeaseGrantOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use weft_state::lease::Peers;

use crate::conf::etcd::{EtcdConf, host_and_port};
pub(crate) use claim::address_key;
use claim::held;
pub use claim::{Claim, Held};
use failure::{Kind, NO_NAME, explain, kind};
pub use own::{Attempt, Candidate, Record, Removal};
pub use watch::{Watch, Watched};

/// The largest answer that is read. Anybody can put values of 1.5 MiB, and three of these are more than the 4 MiB that
/// tonic would read.
const LARGEST: usize = 64 << 20;

/// How long TCP may take for a connection: until it has asked a second time, which it does after a second, and then more and more
/// rarely. A host that is cut off for longer begins anew, and is in touch within a second when it no longer is.
const CONNECT: Duration = Duration::from_millis(1100);

/// Where the hosts' records are below the network's prefix.
const SUBNETS: &str = "/subnets/";

/// A configuration for whoever has none.
pub(crate) const SAMPLE: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// A network's part of etcd.
#[derive(Clone)]
pub struct Registry {
    endpoints: Vec<String>,
    /// Which of the endpoints is talked to: it stays the one that answered last.
    current: usize,
    client: Option<Client>,
    options: ConnectOptions,
    prefix: String,
    revision: i64,
    /// How long an endpoint may take for a call.
    timeout: Duration,
    /// The same for calls that are to notice soon that an endpoint is silent.
    patience: Option<Duration>,
    /// By when all calls together have to be done, if at all.
    until: Option<Deadline>,
}

/// A network as etcd has it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The value of `<prefix>/config`, or that there is none.
    pub config: Result<String, Error>,
    pub hosts: Peers,
    /// The leases that records hang on, by the records' keys; 0 for those that never end.
    pub leases: BTreeMap<String, i64>,
    /// What stands at the keys of the addresses that were asked for.
    pub held: Vec<(IpAddr, Option<Held>)>,
}

impl Snapshot {
    /// Whether nothing of the network has changed since: etcd's revision also counts what others keep in it.
    pub(crate) fn is_as(&self, before: &Self) -> bool {
        (&self.hosts.records, &self.hosts.created) == (&before.hosts.records, &before.hosts.created)
            && (&self.leases, &self.held) == (&before.leases, &before.held)
    }

    /// The same once a record is gone.
    pub(crate) fn without(&self, key: &str) -> Self {
        let mut rest = self.clone();
        rest.hosts.records.remove(key);
        rest.hosts.created.remove(key);
        rest.leases.remove(key);
        rest
    }
}

impl Registry {
    /// Reads certificates and password. Connections are made when they are needed.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when a file cannot be read or used.
    pub fn new(conf: &EtcdConf) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(conf.timeout.min(CONNECT))
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(2))
            .with_keep_alive_while_idle(true)
            // A member that is cut off from the others would answer reads with what was.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &conf.tls {
            let mut files = TlsOptions::new().ca_certificate(Certificate::from_pem(file("caFile", &tls.ca)?));
            if let Some((certificate, key)) = &tls.client {
                files =
                    files.identity(Identity::from_pem(file("certFile", certificate)?, file("keyFile", key)?));
            }
            options = options.with_tls(files);
        }
        if let Some(login) = &conf.login {
            let password = file("passwordFile", &login.password_file)?;
            options = options.with_user(&login.username, password.trim_end_matches(['\r', '\n']));
        }
        Ok(Self {
            endpoints: conf.endpoints.clone(),
            current: 0,
            client: None,
            options,
            prefix: conf.prefix.clone(),
            revision: 0,
            timeout: conf.timeout,
            patience: None,
            until: None,
        })
    }

    /// For a caller that has so much time for all calls: each endpoint gets its part, so that all are asked and can be named.
    #[must_use]
    pub fn within(self, until: Deadline) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The part of a network at another place, by the same connection, within the same time.
    pub(crate) fn at(&self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self.clone() }
    }

    /// From now on calls notice within so much time that an endpoint is silent: of several endpoints each gets its part, so that another
    /// one has answered by then, but a third at least. `None`: as long as is configured.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        let parts = self.endpoints.len().clamp(1, 3);
        self.patience = patience.map(|patience| patience / u32::try_from(parts).unwrap_or(1));
    }

    /// Which of the endpoints is talked to, counted from 0: the one that answered last, or after a failure the next one.
    #[must_use]
    pub fn current(&self) -> usize {
        self.current
    }

    /// The revision of the last snapshot; 0 before the first one.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The value of `<prefix>/config`.
    ///
    /// # Errors
    /// [`Code::TryAgain`]; [`Code::InvalidConfig`] when there is none.
    pub async fn config(&mut self) -> Result<String, Error> {
        let key = self.config_key();
        let call = async |client: &mut Client| client.get(key.as_str(), None).await;
        let answer = self.call("read the network's configuration", call).await?;
        self.config_in(&answer)
    }

    /// Configuration and hosts, and who has certain addresses, of one moment.
    ///
    /// # Errors
    /// As [`Registry::config`].
    pub async fn snapshot(&mut self, addresses: &[IpAddr]) -> Result<Snapshot, Error> {
        let all = Some(GetOptions::new().with_prefix());
        let mut reads = vec![TxnOp::get(self.config_key(), None), TxnOp::get(self.subnets(), all)];
        reads.extend(self.reads(addresses));
        let txn = Txn::new().and_then(reads);
        let call = async |client: &mut Client| {
            client.kv_client().max_decoding_message_size(LARGEST).txn(txn.clone()).await
        };
        let answer = self.call("read the network", call).await?;
        let revision = answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        let mut parts = answer.op_responses().into_iter();
        let (Some(TxnOpResponse::Get(config)), Some(TxnOpResponse::Get(hosts))) =
            (parts.next(), parts.next())
        else {
            return Err(Error::new(
                Code::TryAgain,
                "read the network: etcd answered something else: try again",
            ));
        };
        let leases = hosts.kvs().iter().filter_map(|kv| Some((self.own_part(kv.key())?, kv.lease())));
        let leases = leases.collect();
        self.revision = revision;
        Ok(Snapshot {
            config: self.config_in(&config),
            leases,
            hosts: self.peers(&hosts, revision),
            held: held(addresses, parts),
        })
    }

    /// Puts the network's configuration, unless somebody has changed it meanwhile; whether it was put.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn put_config(&mut self, before: Option<&str>, text: &str) -> Result<bool, Error> {
        let key = self.config_key();
        let same = match before {
            Some(value) => Compare::value(key.as_str(), CompareOp::Equal, value),
            None => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        };
        let txn = Txn::new().when([same]).and_then([TxnOp::put(key.as_str(), text, None)]);
        let call = async |client: &mut Client| client.txn(txn.clone()).await;
        Ok(self.call("put the network's configuration", call).await?.succeeded())
    }

    /// All hosts.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn hosts(&mut self) -> Result<Peers, Error> {
        let subnets = self.subnets();
        let all = GetOptions::new().with_prefix();
        let call = async |client: &mut Client| {
            let mut reader = client.kv_client().max_decoding_message_size(LARGEST);
            reader.get(subnets.as_str(), Some(all.clone())).await
        };
        let answer = self.call("read the hosts", call).await?;
        let revision = answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        Ok(self.peers(&answer, revision))
    }

    /// Sees that there is a lease of this number. A process killed between this and its record's put leaves the
    /// lease that the next one takes up.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn lease(&mut self, id: i64, ttl: u64) -> Result<(), Error> {
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        let options = LeaseGrantOptions::new().with_id(id);
        let call = async |client: &mut Client| match client.lease_grant(ttl, Some(options.clone())).await {
            Err(error) if kind(&error) == Kind::LeaseThere => client.lease_keep_alive(id).await.map(drop),
            other => other.map(drop),
        };
        self.call("grant a lease", call).await
    }

    /// Renews a lease; whether it is still there.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn keep_alive(&mut self, lease: i64) -> Result<bool, Error> {
        let call = async |client: &mut Client| match client.lease_keep_alive(lease).await {
            Err(error) if kind(&error) == Kind::LeaseGone => Ok(false),
            other => other.map(|_| true),
        };
        self.call("renew the lease", call).await
    }

    /// The changes of the hosts' records and of the network's configuration from a revision on.
    ///
    /// # Errors
    /// [`Code::TryAgain`].
    pub async fn watch(&mut self, from: i64) -> Result<Watch, Error> {
        // From the configuration to the last of the hosts: in the order of keys nothing else of Weft's or flannel's is between.
        let (config, end) = (self.config_key(), format!("{}/subnets0", self.prefix));
        let options = WatchOptions::new().with_range(end).with_start_revision(from);
        let call = async |client: &mut Client| {
            let mut watcher = client.watch_client().max_decoding_message_size(LARGEST);
            watcher.watch(config.as_str(), Some(options.clone())).await
        };
        let stream = self.call("watch the hosts", call).await?;
        Ok(Watch::new(stream, self))
    }

    /// Asks one endpoint after the other, each once, beginning with the one that answered last.
    async fn call<T>(
        &mut self,
        step: &str,
        ask: impl AsyncFn(&mut Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, Error> {
        let mut failures: Vec<String> = Vec::new();
        for left in (1..=self.endpoints.len()).rev() {
            let limit = self.limit(left);
            let endpoint = &self.endpoints[self.current];
            let mut found = self.client.is_some();
            let answer = tokio::time::timeout(limit, async {
                let client = match &mut self.client {
                    Some(client) => client,
                    none => {
                        look_up(endpoint).await?;
                        found = true;
                        none.insert(Client::connect([endpoint], Some(self.options.clone())).await?)
                    }
                };
                ask(client).await
            });
            match answer.await {
                Ok(Ok(answer)) => return Ok(answer),
                // Another endpoint would say the same.
                Ok(Err(error)) if kind(&error) == Kind::Refusal => {
                    let msg = format!("{step}: {}", explain(endpoint, &error));
                    return Err(Error::new(Code::InvalidConfig, msg));
                }
                Ok(Err(error)) => failures.push(explain(endpoint, &error)),
                Err(_elapsed) if found => {
                    failures.push(format!("{endpoint} gave no answer within {limit:?}"));
                }
                Err(_elapsed) => failures.push(format!("{endpoint} {NO_NAME}")),
            }
            self.client = None;
            self.current = (self.current + 1) % self.endpoints.len();
        }
        Err(Error::new(Code::TryAgain, format!("{step}: {}", failures.join("; "))))
    }

    /// For one of the endpoints that are left to be asked.
    fn limit(&self, left: usize) -> Duration {
        let part = |until: Deadline| until.remaining() / u32::try_from(left).unwrap_or(u32::MAX);
        // In whole milliseconds, as people are told it.
        let whole = |part: Duration| Duration::from_millis(part.as_millis().try_into().unwrap_or(u64::MAX));
        let most = self.patience.map_or(self.timeout, |patience| self.timeout.min(whole(patience)));
        self.until.map_or(most, |until| most.min(whole(part(until))))
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    fn subnets(&self) -> String {
        format!("{}{SUBNETS}", self.prefix)
    }

    fn own_part(&self, key: &[u8]) -> Option<String> {
        Some(std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix(SUBNETS)?.to_owned())
    }

    fn config_in(&self, answer: &GetResponse) -> Result<String, Error> {
        let value = answer.kvs().first().and_then(|kv| kv.value_str().ok()).map(str::to_owned);
        value.ok_or_else(|| {
            let key = self.config_key();
            let msg = format!("{key} is not in etcd: put it there: {}", put_line(&key, SAMPLE));
            Error::new(Code::InvalidConfig, msg)
        })
    }

    fn peers(&self, answer: &GetResponse, revision: i64) -> Peers {
        let records = answer.kvs().iter().filter_map(|kv| {
            // The key stays, whatever its value is: it is taken.
            Some((self.own_part(kv.key())?, text(kv)))
        });
        let created =
            answer.kvs().iter().filter_map(|kv| Some((self.own_part(kv.key())?, kv.create_revision())));
        Peers { revision, records: records.collect(), created: created.collect(), lost: None }
    }
}

/// A value as text. What is no text is no host's, and would not be the same if it was put, or compared, as some.
fn text(kv: &KeyValue) -> String {
    kv.value_str().unwrap_or_default().to_owned()
}

/// Runs what talks with etcd to its end, for a caller without an event loop. Only what has to talk with etcd comes here:
/// an event loop costs a part of an ADD.
///
/// # Errors
/// [`Code::Io`] when there can be none; those of the work.
pub fn in_event_loop<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Code::Io, format!("start an event loop: {error}")))?;
    let outcome = runtime.block_on(work);
    // Its threads, such as one that looks up a name, are not waited for.
    runtime.shutdown_background();
    outcome
}

/// The command that puts a network's configuration.
pub(crate) fn put_line(key: &str, config: &str) -> String {
    format!("etcdctl put {key} '{config}'")
}

/// Looks an endpoint's name up, if it has one. The client would do so, too, but not say whether it still does or waits for
/// an answer.
async fn look_up(endpoint: &str) -> std::io::Result<()> {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, authority)| authority);
    let (host, _) = host_and_port(authority);
    if !host.starts_with('[') && host.parse::<IpAddr>().is_err() {
        return tokio::net::lookup_host((host, 0)).await.map(drop);
    }
    Ok(())
}

fn file(key: &str, path: &std::path::Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| {
        let msg = format!("ipam.etcd.{key}: read {}: {error}: name a file that is there", path.display());
        Error::new(Code::InvalidConfig, msg)
    })
}
