//! Which subnet is this host's: taken, kept, lost.
//!
//! A record's key names the host's subnets, so two hosts cannot put one key. In a network of both families a key names
//! two subnets, and two hosts may put different keys that share one. Whoever put later notices and gives way
//! ([`Search::is_alone`], and [`elder`] when it was killed before it could). flanneld does not (v0.28), which is why Weft
//! gives way to it, too.

mod configuration;
mod elsewhere;
mod former;
mod holder;
mod place;
mod rehearsal;
mod release;
mod sibling;
mod take;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::{Code, Error, MacAddr};
use flannel_records::{Backend, HostRecord, NetworkConfig, Segment, Transport, Vni};
use ipnetwork::IpNetwork;
use weft_state::lease::{HostLease, since_1970};

use crate::conf::etcd::EtcdConf;
use crate::registry::{Attempt, Claim, Held, Record, Registry, Snapshot};
use crate::underlay::{Found, Here};
use configuration::configured;
pub use configuration::{fits, parse_config, verify};
pub use elsewhere::elsewhere;
use former::{Own, former, tell_of_move};
pub use former::{Standing, is_by_machine, known_by, likely_links, links, published, standing};
use holder::Holder;
pub(crate) use holder::is_agents;
pub use holder::{Keeper, holds, stands};
use place::Place;
pub(crate) use place::elder;
pub(crate) use rehearsal::rehearse;
pub use release::{Release, release};
pub use sibling::overlap;
use take::Take;

/// How often others may be faster, one after the other, until it is an error.
const ATTEMPTS: usize = 1000;
/// Between attempts while nobody else does anything: a member that starts, or a new leader, needs about so long.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// How many of these may fail, one after the other, until it is an error.
const IDLE_ATTEMPTS: usize = 20;

/// Whose the subnet is.
#[derive(Debug)]
pub enum Lease {
    Held(HostLease),
    /// Another host has the subnet that this one had.
    Taken {
        key: String,
        owner: String,
    },
    /// The network's configuration is missing or wrong, or this host has no address that it says to publish. A host with a subnet keeps it.
    Unconfigured(Error),
    /// There is none until a person has done something: another live host has this one's public address, or another network of
    /// this host its place in etcd ([`Code::Conflict`]), or the network no longer has the subnet in which containers live, or is
    /// configured at another place in etcd than that subnet ([`Code::InvalidConfig`]).
    Refused(Error),
}

/// Whether containers of this host have addresses of the subnet of the lease on file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenants {
    /// None has, so that another subnet will do.
    None,
    /// None that is known of, but another program may have been here meanwhile, as flanneld: only the subnet that etcd has for this
    /// host will do as well.
    Possible,
    Some,
}

/// What a host that comes for a subnet knows about itself.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    /// The lease on file.
    pub before: Option<&'a HostLease>,
    /// Without one: the key of the subnets that it would like to have, as another program had them.
    pub wish: Option<&'a str>,
    pub tenants: Tenants,
    /// While the interface that had its address is there without it ([`Standing::Away`]), it waits for that: addresses with the
    /// numbers of their links, as far as they are known.
    pub waits: Option<&'a [(IpAddr, u32)]>,
    /// What renews the lease from then on.
    pub keeper: Keeper,
    /// What this host's other networks have on file: [`HostLease::others`].
    pub others: &'a [(PathBuf, HostLease)],
}

impl<'a> Claimant<'a> {
    /// One that no agent keeps: it wishes for nothing, and waits for its address without knowing the link.
    #[must_use]
    pub const fn by_plugin(
        before: Option<&'a HostLease>,
        unused: bool,
        others: &'a [(PathBuf, HostLease)],
    ) -> Self {
        let tenants = if unused { Tenants::None } else { Tenants::Some };
        Self { before, wish: None, tenants, waits: Some(&[]), keeper: Keeper::Plugin, others }
    }
}

/// Takes the subnet that etcd has for this host, else the former one, else the one that it wishes for, else a free one.
///
/// # Errors
/// [`Code::TryAgain`] without etcd; [`Code::InvalidConfig`] when etcd refuses this host's user; [`Code::Exhausted`] when no subnet is
/// free.
pub async fn acquire(
    registry: &mut Registry,
    conf: &EtcdConf,
    claimant: Claimant<'_>,
) -> Result<Lease, Error> {
    let (claimant, former) = match claimant.at(conf) {
        Ok(found) => found,
        Err(elsewhere) => return Ok(Lease::Refused(elsewhere)),
    };
    let lease = seek(registry, conf, claimant).await?;
    // Whoever is killed before that is on file comes here again.
    if let (Lease::Held(_), Some(former)) = (&lease, former) {
        elsewhere::give_up(registry, former).await;
    }
    Ok(lease)
}

async fn seek(registry: &mut Registry, conf: &EtcdConf, claimant: Claimant<'_>) -> Result<Lease, Error> {
    let (mut last, mut idle) = (None, 0);
    for _ in 0..ATTEMPTS {
        let own = Own::find(conf, claimant)?;
        let snapshot = registry.snapshot(&own.asked(claimant.before)).await?;
        idle = if last.is_some_and(|last| snapshot.is_as(&last)) { idle + 1 } else { 0 };
        if idle > IDLE_ATTEMPTS {
            return Err(refused_without_cause(conf));
        }
        if idle > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let configured = match configured(conf, &snapshot) {
            Ok(configured) => configured,
            Err(error) => return Ok(Lease::Unconfigured(error)),
        };
        let search = match Search::new(conf, configured, &snapshot, claimant, own)? {
            Ok(search) => search,
            Err(unfound) => return Ok(Lease::Unconfigured(unfound)),
        };
        if let Some(lease) = search.once(registry, &snapshot).await? {
            return Ok(lease);
        }
        last = Some(snapshot);
    }
    Err(Error::new(Code::TryAgain, "take a subnet: others were faster a thousand times: try again"))
}

/// Nobody was faster, and still etcd has not taken what this host would put.
fn refused_without_cause(conf: &EtcdConf) -> Error {
    let msg = format!(
        "take a subnet: etcd has not taken this host's record {IDLE_ATTEMPTS} times, although nothing of the network has changed there \
         meanwhile: see etcd's log, and that the records below {}/subnets/ are text, and try again",
        conf.prefix
    );
    Error::new(Code::TryAgain, msg)
}

/// Renews it; `None` when it is gone.
///
/// # Errors
/// [`Code::TryAgain`].
pub async fn keep(registry: &mut Registry, lease: &HostLease) -> Result<Option<HostLease>, Error> {
    let there = registry.keep_alive(lease.lease_id).await?;
    Ok(there.then(|| HostLease { renewed: since_1970().as_secs(), ..lease.clone() }))
}

/// What is looked for, and by whom.
struct Search<'a> {
    conf: &'a EtcdConf,
    config: NetworkConfig,
    text: &'a str,
    before: Option<&'a HostLease>,
    wish: Option<&'a str>,
    tenants: Tenants,
    others: &'a [(PathBuf, HostLease)],
    here: Here,
    /// This host's addresses, in the order of the pools.
    addresses: Vec<Found>,
    me: Holder,
    /// What stands at the addresses' keys.
    held: Vec<(IpAddr, Option<Held>)>,
    /// The same of addresses that it had before.
    former: Vec<(IpAddr, Option<Held>)>,
}

impl<'a> Search<'a> {
    /// The inner error is that an address of this host's own cannot be found.
    fn new(
        conf: &'a EtcdConf,
        (config, text): (NetworkConfig, &'a str),
        snapshot: &Snapshot,
        Claimant { before, wish, tenants, keeper, others, .. }: Claimant<'a>,
        own: Own,
    ) -> Result<Result<Self, Error>, Error> {
        let of_family = |pool: &flannel_records::Pool| own.of(pool.network().is_ipv4());
        let addresses: Vec<Found> = match config.pools().iter().map(of_family).collect() {
            Ok(addresses) => addresses,
            Err(unfound) => return Ok(Err(unfound)),
        };
        let me = Holder::here(&own.here, before, addresses.first().map(|found| found.local), keeper)?;
        let read = |public| snapshot.held.iter().find(|(address, _)| *address == public);
        let held = |found: &Found| (found.public, read(found.public).and_then(|(_, held)| held.clone()));
        let held = addresses.iter().map(held).collect();
        let former = former(snapshot, before, &me, &addresses);
        Ok(Ok(Self {
            conf,
            config,
            text,
            before,
            wish,
            tenants,
            others,
            here: own.here,
            addresses,
            me,
            held,
            former,
        }))
    }

    /// One attempt; `None` when others changed something meanwhile.
    async fn once(&self, registry: &mut Registry, snapshot: &Snapshot) -> Result<Option<Lease>, Error> {
        if let Some(barred) = self.barred(registry, snapshot).await? {
            return Ok(Some(barred));
        }
        match self.place(snapshot) {
            Place::Mine { key, value } => self.keep(registry, snapshot, key, value).await,
            Place::Misfit { key, value, why } => {
                // Not for nothing.
                if let Some(bar) = self.foresee(&snapshot.without(key))? {
                    return Ok(Some(bar));
                }
                log::warn!("this host gives up subnet {key}, in which it has no containers: {why}");
                registry.remove(key, value).await?;
                Ok(None)
            }
            Place::Taken { key, owner } => Ok(Some(Lease::Taken { key, owner })),
            Place::Refused(error) => Ok(Some(Lease::Refused(error))),
            Place::Before(subnets) => match self.take(registry, &[subnets]).await? {
                Take::Held(lease) => {
                    self.clear_others(registry, snapshot, &lease.key).await?;
                    Ok(Some(Lease::Held(lease)))
                }
                Take::Lost(_) | Take::Again => Ok(None),
            },
            Place::Anywhere => self.take_any(registry, snapshot).await,
        }
    }

    /// Goes on with the record that is there.
    async fn keep(
        &self,
        registry: &mut Registry,
        snapshot: &Snapshot,
        key: &str,
        found: &str,
    ) -> Result<Option<Lease>, Error> {
        let found_lease = snapshot.leases.get(key).copied().unwrap_or_default();
        let Some(lease_id) = self.renew(registry, found_lease).await? else { return Ok(None) };
        let subnets = flannel_records::parse_key(key).unwrap_or_default();
        let value = self.record(&subnets)?.value();
        // One that somebody has pinned stays so: only the addresses end with the host.
        let lease = if found_lease == 0 { 0 } else { lease_id };
        let record = Record { key, value: &value, lease };
        let old = Record { key, value: found, lease: found_lease };
        let attempt = registry.replace(&old, &record, &self.claim(key, lease_id)).await;
        match Self::or_end(registry, lease_id, attempt).await? {
            Attempt::Done(_) => {}
            Attempt::Lost(_) | Attempt::Unsure => return Ok(None),
        }
        self.end_former(registry, found_lease, lease_id).await;
        self.clear_others(registry, snapshot, key).await?;
        Ok(Some(Lease::Held(self.held(&record, lease_id))))
    }

    /// Renews the lease of a record, or this host's own beside a pinned one; `None` when it is gone. A lease that lasts another
    /// time than is configured now, or that whoever comes to a former address would take for its own, is replaced with this host's
    /// own.
    async fn renew(&self, registry: &mut Registry, found: i64) -> Result<Option<i64>, Error> {
        let own = self.lease_id();
        if found == 0 {
            return registry.lease(own, self.conf.ttl).await.map(|()| Some(own));
        }
        if found == own {
            return Ok(registry.keep_alive(found).await?.then_some(found));
        }
        match registry.term(found).await? {
            None => Ok(None),
            Some(term) if self.former.is_empty() && term.granted.as_secs() == self.conf.ttl => {
                Ok(registry.keep_alive(found).await?.then_some(found))
            }
            Some(_) => {
                registry.lease(own, self.conf.ttl).await?;
                Ok(Some(own))
            }
        }
    }

    fn claim(&self, key: &str, lease: i64) -> Claim {
        Claim { addresses: self.held.clone(), value: self.me.value(key), lease, former: self.former.clone() }
    }

    fn held(&self, record: &Record<'_>, lease_id: i64) -> HostLease {
        tell_of_move(self.before, &self.addresses);
        HostLease {
            prefix: self.conf.prefix.clone(),
            config: self.text.to_owned(),
            holder: self.me.value(record.key),
            key: record.key.to_owned(),
            value: record.value.to_owned(),
            lease_id,
            pinned: record.lease == 0,
            ttl: self.conf.ttl,
            renewed: since_1970().as_secs(),
            local: self.addresses.iter().map(|found| found.local).collect(),
            underlay: self.conf.underlay.to_string(),
        }
    }

    /// The number of this host's lease. It is always the same, so that no start leaves a lease behind: whoever is
    /// killed before its record is put is followed by one that takes up the same lease.
    fn lease_id(&self) -> i64 {
        let addresses: Vec<String> = self.addresses.iter().map(|found| found.public.to_string()).collect();
        let hash =
            weft_state::hash(&["lease", &addresses.join(" "), &self.conf.prefix, &self.conf.ttl.to_string()]);
        // etcd's own numbers are positive, and 0 is none.
        i64::try_from(hash >> 65).unwrap_or(1).max(1)
    }

    fn record(&self, subnets: &[IpNetwork]) -> Result<HostRecord, Error> {
        let vxlan = match &self.config.backend {
            Backend::Vxlan(vxlan) => Some(vxlan),
            Backend::HostGw => None,
        };
        let segment = |(subnet, found): (&IpNetwork, &Found)| Segment {
            subnet: *subnet,
            public: found.public,
            vtep: vxlan.map(|vxlan| vtep(found.public, &self.conf.prefix, vxlan.vni, vxlan.mac_prefix)),
        };
        let segments = subnets.iter().zip(&self.addresses).map(segment).collect();
        let transport = vxlan.map_or(Transport::HostGw, |vxlan| Transport::Vxlan(vxlan.vni));
        HostRecord::new(segments, transport)
            .map_err(|error| Error::new(Code::Internal, format!("write this host's record: {error}")))
    }
}

/// The address of a host's VXLAN device: the same after every start, another one on every host.
fn vtep(public: IpAddr, prefix: &str, vni: Vni, first: Option<[u8; 2]>) -> MacAddr {
    let hash = weft_state::hash(&["vtep", &public.to_string(), prefix, &vni.to_string()]);
    let [mut a, mut b, c, d, e, f, ..] = hash.to_be_bytes();
    // Locally administered, and of one interface (IEEE 802).
    a = a & 0xfc | 0x02;
    if let Some(first) = first {
        [a, b] = first;
    }
    MacAddr::from([a, b, c, d, e, f])
}
