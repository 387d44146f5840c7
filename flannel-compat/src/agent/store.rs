//! The agent's talk with etcd, in a task of its own, so that the loop that looks after the kernel never waits for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Code, Error, NetworkName};
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_ipam::conf::etcd::EtcdConf;
use weft_ipam::lease::{self, Claimant, Keeper, Lease, Standing};
use weft_ipam::registry::{Registry, Snapshot, Watched};
use weft_ipam::store::Store as Reservations;
use weft_state::lease::{HostLease, Peers};

use super::backoff::Backoff;
use super::every;
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
/// How often to look whether this host can have its subnet by now.
const LOOK: Duration = Duration::from_secs(2);
/// How long an interface may be without the address under which this host is known, until that of another one counts. An interface
/// that is set down and up, and DHCP, take some seconds.
const ABSENCE: Duration = Duration::from_secs(30);

/// A lease, and what keeps containers from the subnet that it was taken in place of.
type Acquired = (HostLease, Option<Reservations>);

/// What the store said.
#[derive(Debug)]
pub(super) enum News {
    /// The lease is this host's: taken, or renewed; maybe in place of one that is left, with what keeps containers from that until
    /// this one is on file.
    Leased(HostLease, Option<Reservations>),
    /// Another host owns the subnet that this one had.
    Taken { key: String, owner: String },
    /// This host can have no subnet, or not the one that it has, until a person has done something. `unused` keeps containers
    /// from that until it is off the file, where none of them has an address of it.
    Refused { why: String, unused: Option<Reservations> },
    /// The network's configuration is missing or wrong, or this host has no address to publish, or cannot tell what it has: as long as
    /// that is so nobody has to have a record.
    Unconfigured { why: String },
    /// All hosts.
    Hosts(Peers),
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
    pub(super) conf: EtcdConf,
    /// The last lease that is known of.
    pub(super) lease: Option<HostLease>,
    /// Without one: the key of the subnets that subnet.env names, where flanneld was here before.
    pub(super) wish: Option<String>,
    /// Whether nothing on this host could know of that lease's subnet at the start: after a boot, which empties `/run`, the file for
    /// flannel's consumers is gone.
    pub(super) unused: bool,
    /// Since when the interface to the other hosts is without its address, while another one has one.
    pub(super) away: Option<Instant>,
    /// The lease's addresses, with the numbers of the links that had them.
    pub(super) links: Vec<(IpAddr, u32)>,
    pub(super) news: mpsc::Sender<News>,
}

/// Why a session with the store ended.
enum End {
    /// The own record is gone or another's, or has an address that is not this host's any more: look who owns the subnet.
    Lost,
    /// The loop does not listen any more.
    Stopped,
}

impl Store {
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
        let mut registry = Registry::new(&self.conf)?;
        let outcome = self.talk(&mut registry, backoff).await;
        // The next one begins with the endpoint that answered last, not with one that is silent.
        self.conf.endpoints.rotate_left(registry.current());
        outcome
    }

    /// Takes the lease, and follows the hosts.
    async fn talk(&mut self, registry: &mut Registry, backoff: &mut Backoff) -> Result<End, Error> {
        let (lease, unused) = match self.acquire(registry).await? {
            Ok(acquired) => acquired,
            Err(news) => match self.look_on(registry, news).await? {
                Some(acquired) => acquired,
                None => return Ok(End::Stopped),
            },
        };
        if let Some(wish) = self.wish.take().filter(|wish| *wish != lease.key) {
            log::error!(
                "subnet.env names {wish}, which this host cannot have any more: it has {} now, and containers with addresses \
                 of the former are cut off: start them anew",
                lease.key
            );
        }
        self.note_links(&lease);
        self.lease = Some(lease.clone());
        self.unused = false;
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

    /// The lease, or why there is none. It is looked for as if containers had addresses of the last one; only where that leaves the host
    /// without is it found out whether any has, and then none comes to one until it is known what becomes of the subnet: etcd may take
    /// long to answer.
    async fn acquire(&mut self, registry: &mut Registry) -> Result<Result<Acquired, News>, Error> {
        let outcome = self.ask(registry, None).await?;
        if !matches!(outcome, Err(News::Taken { .. } | News::Refused { .. })) {
            return Ok(outcome);
        }
        match self.hold_unused() {
            Ok(None) => Ok(outcome),
            Ok(unused) => self.ask(registry, unused).await,
            Err(error) => Ok(Err(News::Unconfigured { why: error.msg })),
        }
    }

    async fn ask(
        &mut self,
        registry: &mut Registry,
        unused: Option<Reservations>,
    ) -> Result<Result<Acquired, News>, Error> {
        let before = self.lease.clone();
        if let Some(lease) = &before {
            self.look_for_addresses(lease);
        }
        let claimant = |others| Claimant {
            before: before.as_ref(),
            wish: self.wish.as_deref(),
            unused: unused.is_some(),
            waits: (!self.is_away_for_long()).then_some(self.links.as_slice()),
            keeper: Keeper::Agent,
            others,
        };
        let outcome = match HostLease::others(&self.data_dir, &self.network) {
            Ok(others) => lease::acquire(registry, &self.conf, claimant(&others)).await,
            Err(error) => Err(error),
        };
        Ok(match outcome {
            Ok(Lease::Held(lease)) => Ok((lease, unused)),
            Ok(Lease::Taken { key, owner }) if before.is_none() => {
                Err(News::Refused { why: is_anothers(&key, &owner), unused })
            }
            Ok(Lease::Taken { key, owner }) => Err(News::Taken { key, owner }),
            Ok(Lease::Unconfigured(error)) => Err(News::Unconfigured { why: error.msg }),
            Ok(Lease::Refused(error)) => Err(News::Refused { why: error.msg, unused }),
            // etcd has answered, and will say so until another host leaves.
            Err(error) if error.code == Code::Exhausted => Err(News::Refused { why: error.msg, unused }),
            // It is this host that does not tell.
            Err(error) if error.code == Code::Io => Err(News::Unconfigured { why: error.msg }),
            Err(error) => return Err(error),
        })
    }

    /// Whether this host is known by other addresses from now on.
    fn has_moved(&mut self, lease: &HostLease) -> bool {
        self.look_for_addresses(lease) == Standing::Moved || self.is_away_for_long()
    }

    /// What has become of those that it is known by.
    fn look_for_addresses(&mut self, lease: &HostLease) -> Standing {
        let standing = lease::standing(&self.conf, lease, &self.links);
        match standing {
            Standing::Away => {
                self.away.get_or_insert_with(|| {
                    let what = "the interface to other hosts has lost its address";
                    log::warn!("network {}: {what}: waiting {ABSENCE:?} for it", self.network);
                    Instant::now()
                });
            }
            // It may have come back as another link.
            Standing::Same if self.away.is_some() => {
                self.away = None;
                self.note_links(lease);
            }
            Standing::Same | Standing::Moved => self.away = None,
        }
        standing
    }

    /// Those of addresses that are gone stay known.
    fn note_links(&mut self, lease: &HostLease) {
        let now = lease::links(lease);
        let is_gone = |local: &IpAddr| now.iter().all(|(other, _)| other != local);
        self.links.retain(|(local, _)| lease.local.contains(local) && is_gone(local));
        self.links.extend(now);
    }

    fn is_away_for_long(&self) -> bool {
        self.away.is_some_and(|since| since.elapsed() >= ABSENCE)
    }

    /// Whether no container has an address of the lease's subnet, so that any other one will do: some may have come since the start, also by
    /// the file that was written then from what was known last.
    pub(super) fn is_unused(&self) -> bool {
        self.unused && tenants::are_none(&self.state_dir, &self.network, self.lease.as_ref())
    }

    /// Sees to it that this stays so while the value lives.
    fn hold_unused(&self) -> Result<Option<Reservations>, Error> {
        if !self.unused {
            return Ok(None);
        }
        tenants::hold_none(&self.state_dir, &self.network, self.lease.as_ref())
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
                        // A network whose place is within this one's is watched, too.
                        if records.is_empty() {
                            continue;
                        }
                        let records = records.into_iter().collect();
                        self.tell(News::Changed { revision, records }).await
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
                    Some(renewed) if !self.has_moved(&lease) => {
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

    /// There is no lease, for a reason that may last: looks now and then whether it has gone, and has the lease then. `None` when the
    /// loop does not listen any more.
    async fn look_on(
        &mut self,
        registry: &mut Registry,
        mut reason: News,
    ) -> Result<Option<Acquired>, Error> {
        // A host that has none can have no container.
        let period = if self.lease.is_some() { LOOK } else { LOOK / 2 };
        let mut look = every(often(period, self.lease.as_ref()));
        loop {
            // The other hosts are reached all the same: containers' connections to them may still find back.
            let addresses = self.lease.as_ref().map(lease::published).unwrap_or_default();
            let Snapshot { hosts, held, .. } = registry.snapshot(&addresses).await?;
            // Only now, as it says that etcd answers, which may not have been asked for it.
            if self.tell(reason).await.is_none() {
                return Ok(None);
            }
            let is_own = |lease: &&HostLease| {
                hosts.records.get(&lease.key) == Some(&lease.value) && lease::holds(lease, &held)
            };
            if let Some(lease) = self.lease.as_ref().filter(is_own) {
                // What containers have addresses of stays this host's, whatever it is refused.
                renew(registry, lease, KEEP_PATIENCE).await?;
            }
            if self.tell(News::Hosts(hosts)).await.is_none() {
                return Ok(None);
            }
            look.tick().await;
            reason = match self.acquire(registry).await? {
                Ok(acquired) => return Ok(Some(acquired)),
                Err(reason) => reason,
            };
        }
    }

    /// `None` when the loop does not listen any more.
    async fn tell(&self, news: News) -> Option<()> {
        self.news.send(news).await.ok()
    }
}

/// That another host has the subnet of one that has no lease on file, so that `weftctl leave` has nothing to give up.
fn is_anothers(key: &str, owner: &str) -> String {
    format!(
        "subnet {key} of this host belongs to {} now, its containers are cut off: move the containers away, then stop weftd, \
         remove subnet.env, start weftd",
        printable(owner)
    )
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
