//! The agent's talk with etcd, in a task of its own, so that the loop that looks after the kernel never waits for it.

mod acquire;
mod look_on;
mod place;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::{Error, NetworkName};
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_ipam::conf::etcd::EtcdConf;
use weft_ipam::lease::{self, Tenants};
use weft_ipam::registry::{Registry, Watched};
use weft_ipam::store::Store as Reservations;
use weft_state::lease::{HostLease, Peers};

use super::backoff::Backoff;
use super::conf::{Conf, NetworkConf};
use super::{every, subnet_env};
use crate::tenants;

/// How often the lease is renewed, or more often where it is short. That also shows whether etcd can be reached: a watch
/// is silent on a broken connection, and TCP may take as long to go on after an outage as the outage lasted.
const KEEP: Duration = Duration::from_secs(2);
/// How long a renewal may take until the connection counts as broken, where etcd is not known to be slower; of several endpoints each
/// gets its part.
const KEEP_PATIENCE: Duration = Duration::from_secs(1);
/// … and where it is, or less where leases are short.
const MOST_PATIENCE: Duration = Duration::from_secs(5);
/// How often everything is taken anew, whatever the watch said, or more often where leases are short: a host is to be missed
/// for less time than its lease lasts.
const RESYNC: Duration = Duration::from_secs(60);
/// A lease, and what keeps containers from the subnet that it was taken in place of.
type Acquired = (HostLease, Option<Reservations>);

/// What the store said.
#[derive(Debug)]
pub(super) enum News {
    /// The lease at another place in etcd than is configured, for whose containers' sake it is talked with there from now on, and that
    /// this is so; `None` where it is talked with at the configured one. No answer of etcd.
    Elsewhere(Option<(HostLease, Error)>),
    /// The lease is this host's: taken, or renewed; maybe in place of one that is left, with what keeps containers from that until
    /// this one is on file.
    Leased(HostLease, Option<Reservations>),
    /// Another host owns the subnet that this one had.
    Taken { key: String, owner: String },
    /// This host can have no subnet, or not the one that it has, until a person has done something. `unused` keeps containers
    /// from that until it is off the file, where none of them has an address of it.
    Refused { why: Error, unused: Option<Reservations> },
    /// The network's configuration is missing or wrong, or this host has no address to publish, or cannot tell what it has: as long as
    /// that is so nobody has to have a record. Whether etcd has that of this host, and nothing but the configuration is wrong.
    Unconfigured { why: Error, keeps: bool },
    /// The lease that this host keeps all the same was renewed.
    Renewed(HostLease),
    /// All hosts.
    Hosts(Peers),
    /// It has nothing of the network in which this host has its lease: what is on file is the best that can be had.
    Unknown,
    /// Values by key, with the revisions that made the keys, `None` where the key is gone, since the last news.
    Changed { revision: i64, records: BTreeMap<String, Option<(String, i64)>> },
    /// It did not answer, or not as it ought to.
    Failed(String),
}

/// The task.
pub(super) struct Store {
    pub(super) network: NetworkName,
    pub(super) data_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) configured: EtcdConf,
    /// The same where this session works: at the place of a lease that is elsewhere, while containers have addresses of it.
    pub(super) conf: EtcdConf,
    /// The last lease that is known of.
    pub(super) lease: Option<HostLease>,
    /// Without one here: the key of the subnets that subnet.env names, where flanneld was here before.
    pub(super) wish: Option<String>,
    /// None where nothing on this host could know of that lease's subnet at the start: after a boot, which empties `/run`, the file for
    /// flannel's consumers is gone. Some once this agent has had a lease.
    pub(super) tenants: Tenants,
    /// Since when the interface to the other hosts is without its address, while another one has one.
    pub(super) away: Option<Instant>,
    /// The lease's addresses, with the numbers of the links that had them.
    pub(super) links: Vec<(IpAddr, u32)>,
    pub(super) news: mpsc::Sender<News>,
}

/// Why a session with the store ended.
enum End {
    /// The own record is gone or another's, or has an address that is not this host's any more: look who owns the subnet. Or the next
    /// session is to work at another place.
    Lost,
    /// The loop does not listen any more.
    Stopped,
}

impl Store {
    /// With what is on file and what subnet.env says.
    pub(super) fn new(
        network: &NetworkConf,
        all: &Conf,
        on_file: Option<HostLease>,
        news: mpsc::Sender<News>,
    ) -> Self {
        let NetworkConf { name, etcd, subnet_file, .. } = network;
        let is_elsewhere = on_file.as_ref().is_some_and(|lease| lease.prefix != etcd.prefix);
        let wish = if is_elsewhere || on_file.is_none() { subnet_env::key_in(subnet_file) } else { None };
        // At another place it is kept for its containers' sake: not where another program has had the host since, as flanneld.
        let is_known = |lease: &HostLease| {
            !is_elsewhere
                || wish.as_ref().is_none_or(|key| *key == lease.key)
                || !tenants::are_none(&all.state_dir, name, Some(lease))
        };
        let lease = on_file.filter(is_known);
        // Who has addresses of a subnet at another place is known without subnet.env, which goes with it.
        let is_named = subnet_file.exists() && !(is_elsewhere && lease.is_some());
        Self {
            network: name.clone(),
            data_dir: all.data_dir.clone(),
            state_dir: all.state_dir.clone(),
            configured: etcd.clone(),
            conf: etcd.clone(),
            links: lease.as_ref().map(lease::likely_links).unwrap_or_default(),
            lease,
            wish,
            tenants: if is_named { Tenants::Possible } else { Tenants::None },
            away: None,
            news,
        }
    }

    /// Talks with the store until the loop that listens has ended.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                Ok(End::Stopped) => return,
                // Whoever keeps deleting the record is answered at a pace, too.
                Ok(End::Lost) => {}
                Err(error) => {
                    if self.tell(News::Failed(error.msg)).await.is_none() {
                        return;
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Reads certificates and password anew, which may be others by now, and talks until something fails.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<End, Error> {
        let elsewhere = self.choose_place();
        if self.tell(News::Elsewhere(elsewhere)).await.is_none() {
            return Ok(End::Stopped);
        }
        let mut registry = Registry::new(&self.conf)?;
        let outcome = self.talk(&mut registry, backoff).await;
        // The next one begins with the endpoint that answered last, not with one that is silent.
        self.configured.endpoints.rotate_left(registry.current());
        outcome
    }

    /// Takes the lease, and follows the hosts.
    async fn talk(&mut self, registry: &mut Registry, backoff: &mut Backoff) -> Result<End, Error> {
        let (lease, unused) = match self.obtain(registry).await? {
            Ok(acquired) => acquired,
            Err(end) => return Ok(end),
        };
        // Not where it was made sure that nobody has an address of it.
        let is_missed = |wish: &String| *wish != lease.key && unused.is_none();
        if let Some(wish) = self.wish.take().filter(is_missed) {
            log::error!(
                "subnet.env names {wish}, which this host cannot have any more: it has {} now, and containers with addresses \
                 of the former are cut off: start them anew",
                lease.key
            );
        }
        self.note_links(&lease);
        self.lease = Some(lease.clone());
        self.tenants = Tenants::Some;
        if self.tell(News::Leased(lease.clone(), unused)).await.is_none() {
            return Ok(End::Stopped);
        }
        let outcome = self.follow(registry, lease).await;
        // Only what went well for a while is a fresh start: a record that is deleted again and again is not.
        if outcome.is_err() {
            backoff.reset();
        }
        outcome
    }

    /// Follows hosts and lease.
    async fn follow(&mut self, registry: &mut Registry, mut lease: HostLease) -> Result<End, Error> {
        let mut keep = every(often(KEEP, Some(&lease)));
        let mut resync = every(often(RESYNC, Some(&lease)));
        // A snapshot, and the watch from there: nothing falls between the two.
        let asked = Instant::now();
        let Some(hosts) = anew(registry, &lease).await? else { return Ok(End::Lost) };
        let patience = patience(asked.elapsed(), &lease);
        let mut known = hosts.revision;
        if self.tell(News::Hosts(hosts)).await.is_none() {
            return Ok(End::Stopped);
        }
        let mut watch = registry.watch(known + 1).await?;
        loop {
            if !watch.is_current(registry) {
                watch = registry.watch(known + 1).await?;
            }
            let told = tokio::select! {
                watched = watch.next() => match watched? {
                    Watched::Changes { revision, records, config } => {
                        // Another one may mean another record.
                        let is_changed = config.is_some_and(|text| text.as_ref() != Some(&lease.config));
                        if is_changed || loses(&records, &lease) {
                            return Ok(End::Lost);
                        }
                        known = known.max(revision);
                        self.tell_changes(revision, records).await
                    }
                    Watched::Compacted => {
                        log::info!("etcd's history was compacted: everything is read anew");
                        let Some(hosts) = anew(registry, &lease).await? else { return Ok(End::Lost) };
                        known = hosts.revision;
                        watch = registry.watch(known + 1).await?;
                        self.tell(News::Hosts(hosts)).await
                    }
                },
                _ = keep.tick() => match renew(registry, &lease, patience).await? {
                    Some(renewed) if !self.has_moved(&lease) && self.is_in_place() => {
                        lease = renewed;
                        self.lease = Some(lease.clone());
                        self.tell(News::Leased(lease.clone(), None)).await
                    }
                    _ => return Ok(End::Lost),
                },
                _ = resync.tick() => {
                    let Some(hosts) = anew(registry, &lease).await? else { return Ok(End::Lost) };
                    // An older state than the watch has told already would undo what it told.
                    if hosts.revision >= known { self.tell(News::Hosts(hosts)).await } else { Some(()) }
                }
            };
            if told.is_none() {
                return Ok(End::Stopped);
            }
        }
    }

    /// Tells of records that have changed, if any have: a network whose place is within this one's is watched, too.
    async fn tell_changes(&self, revision: i64, records: Vec<(String, Option<(String, i64)>)>) -> Option<()> {
        if records.is_empty() {
            return Some(());
        }
        self.tell(News::Changed { revision, records: records.into_iter().collect() }).await
    }

    /// `None` when the loop does not listen any more.
    async fn tell(&self, news: News) -> Option<()> {
        self.news.send(news).await.ok()
    }
}

async fn renew(
    registry: &mut Registry,
    lease: &HostLease,
    patience: Duration,
) -> Result<Option<HostLease>, Error> {
    registry.set_patience(Some(patience));
    let outcome = lease::keep(registry, lease).await;
    registry.set_patience(None);
    outcome
}

/// All hosts; `None` when etcd does not have the lease, or the network's configuration, as they are known.
async fn anew(registry: &mut Registry, lease: &HostLease) -> Result<Option<Peers>, Error> {
    let snapshot = registry.snapshot(&lease::published(lease)).await?;
    let is_same = snapshot.config.as_ref().ok() == Some(&lease.config) && lease::stands(lease, &snapshot);
    Ok(is_same.then_some(snapshot.hosts))
}

/// Whether changes make it gone or another's.
fn loses(records: &[(String, Option<(String, i64)>)], lease: &HostLease) -> bool {
    let is_same = |put: &Option<(String, i64)>| put.as_ref().is_some_and(|(value, _)| *value == lease.value);
    records.iter().any(|(key, put)| *key == lease.key && !is_same(put))
}

/// A period, or a shorter one that is in time for a short lease.
fn often(period: Duration, lease: Option<&HostLease>) -> Duration {
    let ttl = lease.map(|lease| lease.ttl).filter(|ttl| *ttl != 0);
    ttl.map_or(period, |ttl| period.min(Duration::from_secs(ttl) / 3))
}

/// How long a renewal may take where a snapshot took so long. An etcd that takes long for that is slow: to begin anew with it would
/// make nothing better.
fn patience(snapshot: Duration, lease: &HostLease) -> Duration {
    KEEP_PATIENCE.max((4 * snapshot).min(often(MOST_PATIENCE, Some(lease))))
}
