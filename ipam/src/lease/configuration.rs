//! A network's configuration, as flannel has it in etcd, and what it means for a host that has its lease.

use cni_protocol::{Code, Error};
use flannel_records::{NetworkConfig, Pool, parse_key};
use ipnetwork::IpNetwork;
use weft_state::lease::HostLease;

use super::holds;
use crate::conf::etcd::EtcdConf;
use crate::registry::{SAMPLE, Snapshot, put_line};

/// A network's configuration, as it stands in etcd.
///
/// # Errors
/// [`Code::InvalidConfig`] with what is wrong, and the command that puts what was meant where that can be told.
pub fn parse_config(prefix: &str, text: &str) -> Result<NetworkConfig, Error> {
    let key = format!("{prefix}/config");
    NetworkConfig::parse(text).map_err(|error| {
        let mut msg = format!("{key}: {error}");
        if text.trim().is_empty() {
            msg += &format!(": for example {}", put_line(&key, SAMPLE));
        } else if let Some(meant) = flannel_records::corrected(text) {
            msg += &format!(": {}", put_line(&key, &meant));
        }
        Error::new(Code::InvalidConfig, msg)
    })
}

/// The configuration in a snapshot, with its text.
pub(super) fn configured<'a>(
    conf: &EtcdConf,
    snapshot: &'a Snapshot,
) -> Result<(NetworkConfig, &'a str), Error> {
    let text = snapshot.config.as_ref().map_err(Error::clone)?;
    Ok((parse_config(&conf.prefix, text)?, text))
}

/// Whether etcd has what a host needs that has this lease there: a configuration, of a network with the host's subnet, and the host's record.
/// The snapshot is one with the lease's addresses.
///
/// # Errors
/// What it has not, and what helps.
pub fn verify(conf: &EtcdConf, lease: Option<&HostLease>, snapshot: &Snapshot) -> Result<(), Error> {
    let (config, _) = configured(conf, snapshot)?;
    let Some(lease) = lease else { return Ok(()) };
    if !fits(&config, &lease.key) {
        return Err(misfit(&conf.prefix, &config, &lease.key));
    }
    if !holds(lease, snapshot) {
        let msg = format!(
            "{}/subnets/{} is not in etcd as this host has put it: weftd puts it back, or says in its log and at /readyz why not; \
             without weftd the next ADD does",
            conf.prefix, lease.key
        );
        return Err(Error::new(Code::Conflict, msg));
    }
    Ok(())
}

/// That a network has no more the subnet in which containers of this host live.
pub(super) fn misfit(prefix: &str, config: &NetworkConfig, key: &str) -> Error {
    let networks: Vec<IpNetwork> = config.pools().iter().map(Pool::network).collect();
    let [has, had] = [&networks, &parse_key(key).unwrap_or_default()].map(|all| families(all));
    let change = if has == had {
        let networks: Vec<String> = networks.iter().map(IpNetwork::to_string).collect();
        format!("its {} does not have this host's subnet {key} any more", networks.join(" and "))
    } else {
        format!("the network is of {has} now, and this host's subnet {key} of {had}")
    };
    let msg = format!(
        "{prefix}/config was changed: {change}, and containers may have addresses of it: put the former configuration back, or \
         remove the containers, then stop weftd, weftctl leave, start weftd",
    );
    Error::new(Code::InvalidConfig, msg)
}

/// Whether a network, as it is configured, has a key's subnets, one of each of its families.
#[must_use]
pub fn fits(config: &NetworkConfig, key: &str) -> bool {
    let subnets = parse_key(key).unwrap_or_default();
    let pools = config.pools();
    subnets.len() == pools.len() && pools.iter().zip(&subnets).all(|(pool, subnet)| pool.has(*subnet))
}

/// Those of the networks, for people.
fn families(networks: &[IpNetwork]) -> String {
    let family = |network: &IpNetwork| if network.is_ipv4() { "IPv4" } else { "IPv6" };
    networks.iter().map(family).collect::<Vec<_>>().join(" and ")
}
