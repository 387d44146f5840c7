//! `subnet.env`: what this host leased, for flannel's consumers on it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cni_protocol::{Code, Error};
use flannel_records::{HostRecord, Leased, NetworkConfig, SubnetEnv};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft_state::lease::HostLease;

use super::conf::NetworkConf;

/// The key of the subnets that the file names, if there is one: flanneld's, or an earlier agent's.
pub(super) fn key_in(file: &Path) -> Option<String> {
    let env = std::fs::read_to_string(file).ok()?.parse::<SubnetEnv>();
    env.inspect_err(|error| log::warn!("{} is passed over: {error}", file.display()))
        .ok()
        .map(|env| env.key())
}

/// Writes the file for flannel's consumers, who need not be root, unless it says so to all of them already; whether it
/// had to.
///
/// # Errors
/// What kept it from being written, in words.
pub(super) fn write(conf: &NetworkConf, lease: &HostLease, mtu: u32) -> Result<bool, String> {
    let text = content(lease, mtu, conf.ip_masq)?.to_string();
    let path = &conf.subnet_file;
    let readable = std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o444 == 0o444);
    if readable && std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    let put = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        weft_state::write_public(path, text.as_bytes())
    };
    put().map(|()| true).map_err(|error| format!("write {}: {error}", path.display()))
}

/// Takes the file away: this host has no subnet.
///
/// # Errors
/// [`Code::Io`].
pub(crate) fn remove(file: &Path) -> Result<(), Error> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let remedy = "remove it by hand, and see that its directory is writable";
            Err(Error::new(Code::Io, format!("remove {}: {error}: {remedy}", file.display())))
        }
        _ => Ok(()),
    }
}

fn content(lease: &HostLease, mtu: u32, ipmasq: bool) -> Result<SubnetEnv, String> {
    let unreadable = |error: String| format!("write subnet.env: the lease cannot be read: {error}");
    let config = NetworkConfig::parse(&lease.config).map_err(|error| unreadable(error.to_string()))?;
    let record =
        HostRecord::parse(&lease.key, &lease.value).map_err(|error| unreadable(error.to_string()))?;
    let mut env = SubnetEnv { ipv4: None, ipv6: None, mtu, ipmasq };
    for segment in record.segments() {
        let Some(pool) = config.pool_of(segment.subnet.ip()) else { continue };
        // The gateway has the first address behind the subnet's own.
        match (pool.network(), segment.subnet) {
            (IpNetwork::V4(network), IpNetwork::V4(subnet)) => {
                let gateway = subnet.ip().to_bits().wrapping_add(1).into();
                let subnet = Ipv4Network::new(gateway, subnet.prefix()).unwrap_or(subnet);
                env.ipv4 = Some(Leased { networks: vec![network], subnet });
            }
            (IpNetwork::V6(network), IpNetwork::V6(subnet)) => {
                let gateway = subnet.ip().to_bits().wrapping_add(1).into();
                let subnet = Ipv6Network::new(gateway, subnet.prefix()).unwrap_or(subnet);
                env.ipv6 = Some(Leased { networks: vec![network], subnet });
            }
            _ => {}
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(config: &str, key: &str) -> HostLease {
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
        HostLease {
            prefix: "/n".into(),
            config: config.into(),
            key: key.into(),
            value: format!(
                r#"{{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
            ),
            lease_id: 1,
            pinned: false,
            ttl: 60,
            renewed: 0,
            local: Vec::new(),
            underlay: String::new(),
            holder: String::new(),
        }
    }

    #[test]
    fn the_file_for_flannels_consumers() {
        let both = lease(
            r#"{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#,
            "10.244.65.0-24&fd00:42:0:31::-64",
        );
        let text = content(&both, 1430, true).unwrap().to_string();
        assert_eq!(
            text,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.65.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:42:0:31::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        let damaged = HostLease { key: "x".into(), ..both };
        assert!(content(&damaged, 1430, true).unwrap_err().contains("cannot be read"));
    }
}
