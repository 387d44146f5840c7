//! Makes everything of a network on this host as it ought to be, and tells what was not.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use cni_protocol::Deadline;
use flannel_records::{HostRecord, Leased, NetworkConfig, SubnetEnv};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft::holdings::restore::restore;
use weft::masquerade::{self, Ensured, Masquerade};
use weft::overlay::{self, Changes, Overlay, Unreached};
use weft_net::nft::Nft;
use weft_net::sysctl::Sysctl;
use weft_net::{Family, Netlink};
use weft_state::lease::HostLease;

use super::conf::NetworkConf;

/// How long the kernel may take for all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) changes: Changes,
    /// Hosts that their own records keep from being reached; `None` when that could not be found out.
    pub(super) unreached: Option<Vec<Unreached>>,
    /// Objects that were not as they ought to be, and how many of each kind.
    pub(super) healed: Vec<(&'static str, usize)>,
    /// What could not be done.
    pub(super) failures: Vec<String>,
}

impl Report {
    fn count(&mut self, object: &'static str, count: usize) {
        if count > 0 {
            self.healed.push((object, count));
        }
    }

    fn failed(&mut self, step: &str, error: &impl Display) {
        self.failures.push(format!("{step}: {error}"));
    }
}

/// Compares everything with what it ought to be, and changes what differs. One failure keeps nothing else from being
/// repaired.
pub(super) fn heal(conf: &NetworkConf, state_dir: &Path, lease: &HostLease, wanted: &Overlay) -> Report {
    let mut report = Report::default();
    let deadline = Deadline::after(PATIENCE);
    match Netlink::open(deadline).and_then(|mut netlink| overlay::sync(&mut netlink, wanted)) {
        Ok(changes) => {
            report.count("link", changes.links);
            report.count("mac", changes.macs);
            report.count("mtu", changes.mtus);
            report.count("address", changes.addresses);
            report.count("neighbour", changes.neighbours);
            report.count("fdb", changes.fdb);
            report.count("route", changes.routes);
            report.unreached = Some(changes.unreached.clone());
            report.changes = changes;
        }
        Err(error) => report.failed("set up device and peers", &error),
    }
    forward(&wanted.networks, &mut report);
    if conf.ip_masq {
        let masquerade = Masquerade { prefixes: wanted.networks.clone(), exempt: conf.no_masquerade.clone() };
        let ensured =
            Nft::open(deadline).and_then(|mut nft| masquerade::ensure(&mut nft, &conf.name, &masquerade));
        match ensured {
            Ok(Ensured::Nothing) => {}
            Ok(Ensured::Elements { .. } | Ensured::Network) => report.count("table", 1),
            Err(error) => report.failed("masquerade", &error),
        }
    }
    match restore(state_dir, deadline) {
        Ok(restored) => report.count("table", usize::from(restored)),
        Err(error) => report.failures.push(error.msg),
    }
    if let Some(mtu) = report.changes.mtu {
        match write_subnet_env(conf, lease, mtu) {
            Ok(changed) => report.count("subnet.env", usize::from(changed)),
            Err(error) => report.failures.push(error),
        }
    }
    report
}

/// Between containers and other hosts the kernel has to route.
fn forward(networks: &[IpNetwork], report: &mut Report) {
    for family in [Family::V4, Family::V6] {
        if networks.iter().any(|network| Family::of(network.ip()) == family) {
            let setting = Sysctl::forwarding(family);
            match setting.ensure("1") {
                Ok(changed) => report.count("forwarding", usize::from(changed)),
                Err(error) => report.failed(&format!("set {setting} to 1"), &error),
            }
        }
    }
}

/// Writes the file for flannel's consumers, who need not be root, unless it says so already to all of them; whether it
/// did not.
fn write_subnet_env(conf: &NetworkConf, lease: &HostLease, mtu: u32) -> Result<bool, String> {
    let text = subnet_env(lease, mtu, conf.ip_masq)?.to_string();
    let path = &conf.subnet_file;
    let readable = std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o444 == 0o444);
    if readable && std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        weft_state::write_public(path, text.as_bytes())
    };
    write().map(|()| true).map_err(|error| format!("write {}: {error}", path.display()))
}

fn subnet_env(lease: &HostLease, mtu: u32, ipmasq: bool) -> Result<SubnetEnv, String> {
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
                env.ipv4 = Some(Leased { network, subnet });
            }
            (IpNetwork::V6(network), IpNetwork::V6(subnet)) => {
                let gateway = subnet.ip().to_bits().wrapping_add(1).into();
                let subnet = Ipv6Network::new(gateway, subnet.prefix()).unwrap_or(subnet);
                env.ipv6 = Some(Leased { network, subnet });
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
            ttl: 60,
            renewed: 0,
            local: Vec::new(),
            holder: String::new(),
        }
    }

    #[test]
    fn the_file_for_flannels_consumers() {
        let both = lease(
            r#"{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:42::/48", "Backend": {"Type": "vxlan"}}"#,
            "10.244.65.0-24&fd00:42:0:31::-64",
        );
        let text = subnet_env(&both, 1430, true).unwrap().to_string();
        assert_eq!(
            text,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.65.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:42:0:31::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        let damaged = HostLease { key: "x".into(), ..both };
        assert!(subnet_env(&damaged, 1430, true).unwrap_err().contains("cannot be read"));
    }
}
