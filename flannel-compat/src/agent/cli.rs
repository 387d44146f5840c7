//! The agent's command line: a configuration file, or flags for one network, with flanneld's names where they mean
//! the same.

use std::path::PathBuf;

use clap::{Args, Parser};
use cni_protocol::Error;
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::conf::{Conf, RawConf, RawNetwork};

/// Keeps this host in its networks: leases its subnets from etcd, connects it with the other hosts, and repairs what
/// is damaged.
#[derive(Debug, Parser)]
#[command(name = "weftd", version)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    /// Read and check the configuration, and end
    #[arg(long)]
    pub check: bool,
    /// Where /metrics, /healthz and /readyz are: a loopback ADDRESS:PORT or unix:/PATH
    #[arg(long, value_name = "WHERE")]
    listen: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Where it says which networks there are.
#[derive(Debug, Args)]
pub struct Source {
    /// The configuration; see docs/weftd.md
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/weftd.json")]
    config: PathBuf,
    /// Where reservations and locks are
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Where leases are; must survive a reboot
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    #[command(flatten)]
    network: Option<NetworkFlags>,
}

/// One network, in place of the configuration's.
#[derive(Debug, Args)]
#[command(next_help_heading = "One network, in place of a configuration file")]
#[group(conflicts_with = "config", multiple = true)]
struct NetworkFlags {
    /// The network's name in the CNI configuration
    #[arg(long, required = false)]
    name: String,
    /// URLs, separated by commas
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// Where the network is in etcd
    #[arg(long, value_name = "KEY")]
    etcd_prefix: Option<String>,
    /// Certificates that etcd's is signed by
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// This host's certificate for etcd
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// A user of etcd
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// A file with that user's password
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
    /// The interface to the other hosts, by name or address
    #[arg(long, value_name = "NAME")]
    iface: Option<String>,
    /// The same by regular expression
    #[arg(long, value_name = "REGEX")]
    iface_regex: Option<String>,
    /// The same by an address that it leads to
    #[arg(long, value_name = "ADDRESS")]
    iface_can_reach: Option<String>,
    /// The address at which other hosts reach this one
    #[arg(long, value_name = "ADDRESS")]
    public_ip: Option<String>,
    /// The same of IPv6
    #[arg(long, value_name = "ADDRESS")]
    public_ipv6: Option<String>,
    /// How long the lease lasts when this host is away, in seconds
    #[arg(long, value_name = "SECONDS")]
    lease_ttl: Option<u64>,
    /// Masquerade what leaves the network
    #[arg(long)]
    ip_masq: bool,
    /// Destinations that see containers' own addresses, separated by commas
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',', requires = "ip_masq")]
    no_masquerade: Vec<IpNetwork>,
    /// What is kept from it: "network", "closed" or "none", as in its CNI configuration
    #[arg(long, value_name = "WHAT")]
    isolation: Option<String>,
    /// Keep all that is outside from it, as in its CNI configuration
    #[arg(long)]
    internal: bool,
    /// The file for flannel's consumers
    #[arg(long, value_name = "FILE")]
    subnet_file: Option<PathBuf>,
}

impl Cli {
    /// The configuration that file and flags make. A flag has precedence over the file's key.
    ///
    /// # Errors
    /// As for [`RawConf::read`] and [`RawConf::checked`].
    pub fn conf(self) -> Result<Conf, Error> {
        let file = self.source.read()?;
        RawConf { listen: self.listen.or(file.listen), log_level: self.log_level.or(file.log_level), ..file }
            .checked()
    }
}

impl Source {
    /// # Errors
    /// As for [`Cli::conf`].
    pub fn conf(self) -> Result<Conf, Error> {
        self.read()?.checked()
    }

    fn read(self) -> Result<RawConf, Error> {
        let file = match self.network {
            Some(flags) => RawConf { networks: Some(vec![flags.into()]), ..RawConf::default() },
            None => RawConf::read(&self.config)?,
        };
        Ok(RawConf {
            state_dir: self.state_dir.map(Value::from).or(file.state_dir),
            data_dir: self.data_dir.map(Value::from).or(file.data_dir),
            ..file
        })
    }
}

impl From<NetworkFlags> for RawNetwork {
    fn from(flags: NetworkFlags) -> Self {
        let path = |path: PathBuf| Value::String(path.to_string_lossy().into_owned());
        let endpoints = (!flags.etcd_endpoints.is_empty()).then(|| flags.etcd_endpoints.into());
        let etcd = [
            ("endpoints", endpoints),
            ("prefix", flags.etcd_prefix.map(Value::String)),
            ("caFile", flags.etcd_cafile.map(path)),
            ("certFile", flags.etcd_certfile.map(path)),
            ("keyFile", flags.etcd_keyfile.map(path)),
            ("username", flags.etcd_username.map(Value::String)),
            ("passwordFile", flags.etcd_password_file.map(path)),
        ];
        Self {
            name: flags.name,
            etcd: Map::from_iter(etcd.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)))),
            iface: flags.iface,
            iface_regex: flags.iface_regex,
            iface_can_reach: flags.iface_can_reach,
            public_ip: flags.public_ip,
            public_ipv6: flags.public_ipv6,
            lease_ttl: flags.lease_ttl,
            ip_masq: flags.ip_masq,
            no_masquerade: flags.no_masquerade,
            isolation: flags.isolation,
            internal: flags.internal,
            subnet_file: flags.subnet_file,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn conf(line: &str) -> Result<Conf, String> {
        let words = std::iter::once("weftd").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        cli.conf().map_err(|error| error.msg)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_make_one_network() {
        let conf = conf(
            "--name pods --etcd-endpoints https://192.0.2.1:2379,https://192.0.2.2:2379 --etcd-prefix /n \
             --etcd-cafile /ca --etcd-certfile /cert --etcd-keyfile /key --etcd-username u \
             --etcd-password-file /p --iface eth1 --public-ip 192.0.2.9 --lease-ttl 60 --ip-masq \
             --no-masquerade 192.0.2.0/24,198.51.100.0/24 --subnet-file /run/x.env --listen unix:/run/w \
             --state-dir /s --data-dir /d --log-level debug",
        )
        .unwrap();
        let network = &conf.networks[0];
        assert_eq!(network.etcd.endpoints, ["https://192.0.2.1:2379", "https://192.0.2.2:2379"]);
        assert_eq!((network.etcd.prefix.as_str(), network.etcd.ttl), ("/n", 60));
        assert!(network.ip_masq);
        assert_eq!(network.no_masquerade.len(), 2);
        assert_eq!((conf.state_dir, conf.data_dir), ("/s".into(), "/d".into()));
    }

    #[test]
    fn a_network_is_in_the_file_or_in_flags() {
        let error = conf("--config /x --name pods").unwrap_err();
        assert!(error.contains("cannot be used with"), "{error}");
        let error = conf("--iface eth0").unwrap_err();
        assert!(error.contains("name"), "{error}");
        for line in ["", "--log-level debug --check"] {
            let error = conf(line).map(|_| ()).unwrap_err();
            assert!(error.contains("/etc/weft/weftd.json"), "{error}");
        }
        let error = conf("--config /nonexistent/weftd.json").unwrap_err();
        assert!(error.contains("/nonexistent/weftd.json"), "{error}");
    }
}
