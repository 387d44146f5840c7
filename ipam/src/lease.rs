//! Which subnet is this host's: taken, kept, lost.
//!
//! A record's key names the host's subnets, so two hosts cannot put one key. In a network of both families a key names
//! two subnets, and two hosts may put different keys that share one: whoever put later notices and gives way
//! ([`Search::is_alone`]). flanneld does not (v0.28), which is why Weft gives way to it, too.

mod place;

use std::net::IpAddr;

use cni_protocol::{Code, Error, MacAddr};
use flannel_records::{Backend, HostRecord, NetworkConfig, Segment, Transport, Vni};
use ipnetwork::IpNetwork;
use weft_state::lease::{HostLease, since_1970};

use crate::etcd_conf::EtcdConf;
use crate::registry::{Attempt, Registry, Snapshot, put_line};
use crate::underlay::Found;
use place::{Place, free};

/// How often others may be faster, one after the other, until it is an error.
const ATTEMPTS: usize = 1000;

/// Whose the subnet is.
#[derive(Debug)]
pub enum Lease {
    Held(HostLease),
    /// Another host has the subnet that this one had.
    Taken {
        key: String,
        owner: String,
    },
}

/// Takes the subnet that etcd has for this host, else that of `before`, else a free one. `unused` says that no
/// container of this host has an address of it, so that another one will do.
///
/// # Errors
/// [`Code::TryAgain`] without etcd; [`Code::InvalidConfig`] when the network's configuration is missing or wrong, or
/// does not fit what this host's containers have; [`Code::Conflict`] when another host has this one's public address;
/// [`Code::Exhausted`] when no subnet is free.
pub async fn acquire(
    registry: &mut Registry,
    conf: &EtcdConf,
    before: Option<&HostLease>,
    unused: bool,
) -> Result<Lease, Error> {
    let before = before.filter(|lease| lease.prefix == conf.prefix);
    for _ in 0..ATTEMPTS {
        let snapshot = registry.snapshot().await?;
        let search = Search::new(conf, &snapshot, before, unused)?;
        if let Some(lease) = search.once(registry, &snapshot).await? {
            return Ok(lease);
        }
    }
    Err(Error::new(Code::TryAgain, "take a subnet: others were faster a thousand times: try again"))
}

/// Renews it; `None` when it is gone.
///
/// # Errors
/// [`Code::TryAgain`].
pub async fn keep(registry: &mut Registry, lease: &HostLease) -> Result<Option<HostLease>, Error> {
    let there = lease.lease_id == 0 || registry.keep_alive(lease.lease_id).await?;
    Ok(there.then(|| HostLease { renewed: since_1970().as_secs(), ..lease.clone() }))
}

/// Gives it up: the record goes, if it is still this host's, and the lease ends.
///
/// # Errors
/// [`Code::TryAgain`].
pub async fn release(registry: &mut Registry, lease: &HostLease) -> Result<(), Error> {
    registry.remove(&lease.key, &lease.value, lease.lease_id).await
}

/// A network's configuration, as it stands in etcd.
///
/// # Errors
/// [`Code::InvalidConfig`] with what is wrong and the command that puts a right one.
pub fn parse_config(prefix: &str, text: &str) -> Result<NetworkConfig, Error> {
    let key = format!("{prefix}/config");
    NetworkConfig::parse(text).map_err(|error| {
        Error::new(Code::InvalidConfig, format!("{key}: {error}: for example {}", put_line(&key)))
    })
}

/// What became of an attempt at certain subnets.
enum Take {
    Held(Lease),
    /// Somebody was faster; the keys that are taken.
    Lost(Vec<String>),
    /// Others changed something meanwhile: everything is to be looked at again.
    Again,
}

/// What is looked for, and by whom.
struct Search<'a> {
    conf: &'a EtcdConf,
    config: NetworkConfig,
    text: &'a str,
    before: Option<&'a HostLease>,
    unused: bool,
    /// This host's addresses, in the order of the pools.
    addresses: Vec<Found>,
}

impl<'a> Search<'a> {
    fn new(
        conf: &'a EtcdConf,
        snapshot: &'a Snapshot,
        before: Option<&'a HostLease>,
        unused: bool,
    ) -> Result<Self, Error> {
        let config = parse_config(&conf.prefix, &snapshot.config)?;
        let of_family = |pool: &flannel_records::Pool| conf.underlay.find(pool.network().is_ipv4());
        let addresses = config.pools().iter().map(of_family).collect::<Result<_, Error>>()?;
        Ok(Self { conf, config, text: &snapshot.config, before, unused, addresses })
    }

    /// One attempt; `None` when others changed something meanwhile.
    async fn once(&self, registry: &mut Registry, snapshot: &Snapshot) -> Result<Option<Lease>, Error> {
        match self.place(snapshot)? {
            Place::Mine { key, value } => self.keep(registry, snapshot, key, value).await,
            Place::Misfit { key, value } => {
                registry.remove(key, value, 0).await?;
                Ok(None)
            }
            Place::Taken { key, owner } => Ok(Some(Lease::Taken { key, owner })),
            Place::Before(subnets) => match self.take(registry, &subnets).await? {
                Take::Held(lease) => Ok(Some(lease)),
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
        let lease_id = snapshot.leases.get(key).copied().unwrap_or_default();
        if lease_id != 0 && !registry.keep_alive(lease_id).await? {
            return Ok(None);
        }
        let subnets = flannel_records::parse_key(key).unwrap_or_default();
        let value = self.record(&subnets)?.value();
        if value != found && !matches!(registry.replace(key, found, &value, lease_id).await?, Attempt::Done) {
            return Ok(None);
        }
        Ok(Some(self.held(key.to_owned(), value, lease_id)))
    }

    /// Puts a record for subnets that looked free.
    async fn take(&self, registry: &mut Registry, subnets: &[IpNetwork]) -> Result<Take, Error> {
        let record = self.record(subnets)?;
        let (key, value) = (record.key(), record.value());
        let lease_id = self.lease_id();
        registry.lease(lease_id, self.conf.ttl).await?;
        // A key begins with its IPv4 subnet, if it has one: no other key may, whatever follows in it.
        let taken_if = if subnets[0].is_ipv4() { key.split('&').next().unwrap_or(&key) } else { &key };
        match registry.take(&key, &value, lease_id, taken_if).await? {
            Attempt::Done if subnets.iter().all(IpNetwork::is_ipv4) => {}
            Attempt::Done => {
                if !Self::is_alone(registry, &key).await? {
                    registry.remove(&key, &value, 0).await?;
                    return Ok(Take::Again);
                }
            }
            Attempt::Lost(keys) => return Ok(Take::Lost(keys)),
            Attempt::Unsure => return Ok(Take::Again),
        }
        Ok(Take::Held(self.held(key, value, lease_id)))
    }

    /// Takes a free one, at random: the loser of a race learns what is taken and tries again at once.
    async fn take_any(&self, registry: &mut Registry, snapshot: &Snapshot) -> Result<Option<Lease>, Error> {
        let mut keys: Vec<String> = snapshot.hosts.records.keys().cloned().collect();
        for _ in 0..ATTEMPTS {
            let subnets = free(&self.config, &keys)?;
            match self.take(registry, &subnets).await? {
                Take::Held(lease) => return Ok(Some(lease)),
                Take::Lost(taken) => keys = taken,
                Take::Again => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether no older record has one of the key's subnets.
    async fn is_alone(registry: &mut Registry, key: &str) -> Result<bool, Error> {
        let keys = registry.keys().await?;
        let own = flannel_records::parse_key(key).unwrap_or_default();
        let made = keys.get(key).copied().unwrap_or(i64::MAX);
        let shares = |other: &str| {
            flannel_records::parse_key(other)
                .is_some_and(|subnets| subnets.iter().any(|one| own.contains(one)))
        };
        Ok(!keys.iter().any(|(other, revision)| other != key && *revision < made && shares(other)))
    }

    fn held(&self, key: String, value: String, lease_id: i64) -> Lease {
        Lease::Held(HostLease {
            prefix: self.conf.prefix.clone(),
            config: self.text.to_owned(),
            key,
            value,
            lease_id,
            ttl: if lease_id == 0 { 0 } else { self.conf.ttl },
            renewed: since_1970().as_secs(),
            local: self.addresses.iter().map(|found| found.local).collect(),
        })
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
