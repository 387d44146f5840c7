//! Which subnet is this host's: taken, kept, lost.

use cni_protocol::{Code, Error, MacAddr};
use flannel_records::{Backend, HostRecord, NetworkConfig, Segment, Transport};
use ipnetwork::IpNetwork;
use weft_state::lease::{HostLease, Peers, since_1970};

use crate::etcd_conf::EtcdConf;
use crate::registry::Registry;
use crate::underlay;

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

/// Takes the subnet that etcd has for this host, else that of `before`, else any.
///
/// # Errors
/// [`Code::TryAgain`] without etcd, [`Code::InvalidConfig`] without a configuration.
pub async fn acquire(
    registry: &mut Registry,
    conf: &EtcdConf,
    before: Option<&HostLease>,
) -> Result<Lease, Error> {
    let text = registry.config().await?;
    let invalid = |cause: String| Error::new(Code::InvalidConfig, format!("{}/config: {cause}", conf.prefix));
    let config = NetworkConfig::parse(&text).map_err(|error| invalid(error.to_string()))?;
    for _ in 0..1000 {
        let hosts = registry.hosts().await?;
        let mine =
            hosts.records.iter().find(|(key, value)| is_mine(conf, key, value)).map(|(key, _)| key.clone());
        let before = before.filter(|lease| lease.prefix == conf.prefix);
        let key = match (mine, before) {
            (Some(key), _) => key,
            (None, Some(lease)) => {
                if let Some(other) = hosts.records.get(&lease.key) {
                    return Ok(Lease::Taken { key: lease.key.clone(), owner: owner(&lease.key, other) });
                }
                lease.key.clone()
            }
            (None, None) => free(&config, &hosts)?,
        };
        let value = value(conf, &config, &key)?;
        let found = hosts.records.get(&key);
        let lease_id = if found == Some(&value) {
            let lease_id = registry.lease_of(&key).await?;
            if lease_id != 0 && !registry.keep_alive(lease_id).await? {
                continue;
            }
            Some(lease_id)
        } else {
            let old = before.map(|lease| lease.lease_id).filter(|id| *id != 0);
            let alive = match old {
                Some(id) if registry.keep_alive(id).await? => Some(id),
                _ => None,
            };
            registry.put(&key, &value, (conf.ttl, alive), found.map(String::as_str)).await?
        };
        if let Some(lease_id) = lease_id {
            return Ok(Lease::Held(HostLease {
                prefix: conf.prefix.clone(),
                config: text,
                key,
                value,
                lease_id,
                ttl: if lease_id == 0 { 0 } else { conf.ttl },
                renewed: since_1970().as_secs(),
            }));
        }
    }
    Err(Error::new(Code::TryAgain, "take a subnet: others were faster a thousand times"))
}

/// Renews it; `None` when it is gone.
///
/// # Errors
/// [`Code::TryAgain`].
pub async fn keep(registry: &mut Registry, lease: &HostLease) -> Result<Option<HostLease>, Error> {
    let there = lease.lease_id == 0 || registry.keep_alive(lease.lease_id).await?;
    Ok(there.then(|| HostLease { renewed: since_1970().as_secs(), ..lease.clone() }))
}

fn owner(key: &str, value: &str) -> String {
    match HostRecord::parse(key, value) {
        Ok(record) => record
            .segments()
            .iter()
            .map(|segment| segment.public.to_string())
            .collect::<Vec<_>>()
            .join(" and "),
        Err(error) => format!("a record that is no host's ({error})"),
    }
}

fn is_mine(conf: &EtcdConf, key: &str, value: &str) -> bool {
    HostRecord::parse(key, value).is_ok_and(|record| {
        record.segments().iter().any(|segment| {
            underlay::choose(conf, segment.public.is_ipv4()).is_ok_and(|public| public == segment.public)
        })
    })
}

fn free(config: &NetworkConfig, hosts: &Peers) -> Result<String, Error> {
    let start = u128::from(std::process::id()) * 7919 + since_1970().as_nanos() % 65_521;
    let subnets: Vec<IpNetwork> = config
        .pools()
        .iter()
        .filter_map(|pool| {
            (0..pool.count().min(100_000)).map(|step| pool.at(start + step)).find(|subnet| {
                let part = format!("{}-{}", subnet.network(), subnet.prefix());
                !hosts.records.keys().any(|key| key.split('&').any(|other| other == part))
            })
        })
        .collect();
    if subnets.len() < config.pools().len() {
        return Err(Error::new(Code::Exhausted, "no subnet is free"));
    }
    let segments = subnets.iter().map(|subnet| Segment {
        subnet: *subnet,
        public: if subnet.is_ipv4() {
            [192, 0, 2, 1].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()
        },
        vtep: None,
    });
    HostRecord::new(segments.collect(), Transport::HostGw)
        .map(|record| record.key())
        .map_err(|error| Error::new(Code::Internal, error.to_string()))
}

fn value(conf: &EtcdConf, config: &NetworkConfig, key: &str) -> Result<String, Error> {
    let Backend::Vxlan(vxlan) = &config.backend else {
        return Err(Error::new(Code::InvalidConfig, "only vxlan"));
    };
    let mut segments = Vec::new();
    for part in key.split('&').filter(|part| *part != "0.0.0.0-0") {
        let subnet: IpNetwork = part
            .replacen('-', "/", 1)
            .parse()
            .map_err(|error| Error::new(Code::Internal, format!("{part}: {error}")))?;
        let public = underlay::choose(conf, subnet.is_ipv4())?;
        let hash = weft_state::short_hash(&[&public.to_string(), &conf.prefix, &vxlan.vni.to_string()]);
        let bytes = hash.as_bytes();
        let mac = MacAddr::from([0x02, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]);
        segments.push(Segment { subnet, public, vtep: Some(mac) });
    }
    HostRecord::new(segments, Transport::Vxlan(vxlan.vni))
        .map(|record| record.value())
        .map_err(|error| Error::new(Code::Internal, error.to_string()))
}
