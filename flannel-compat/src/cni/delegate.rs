//! What the delegate has to know, and which plugins take part.

use std::fs;
use std::path::{Path, PathBuf};

use cni_protocol::{Call, Code, Delegate, Error};
use flannel_records::{SubnetEnv, parse_key};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use weft::conf::Traces;
use weft_state::lease::{Taken, agent_lives, data_dir};

/// The delegate that is not executed.
pub(super) const WEFT: &str = "weft";
const WEFT_IPAM: &str = "weft-ipam";
const HOST_LOCAL: &str = "host-local";
/// Where host-local has its reservations unless `ipam.dataDir` says otherwise.
const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";

/// What a host leased.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// This host's.
    pub(super) subnets: Vec<IpNetwork>,
    /// All hosts'.
    pub(super) networks: Vec<IpNetwork>,
    pub(super) mtu: Option<u32>,
    /// Whether flanneld or weftd masquerades.
    pub(super) ipmasq: Option<bool>,
}

impl Facts {
    /// What `subnet.env` says.
    ///
    /// # Errors
    /// [`Code::TryAgain`] when it is not there yet or cannot be understood.
    pub(super) fn of_host(file: &Path) -> Result<Self, Error> {
        let name = file.display();
        let text = fs::read_to_string(file).map_err(|error| {
            let remedy = "flanneld or weftd writes it when it has a lease: see whether one of them runs";
            Error::new(Code::TryAgain, format!("read {name}: {error}: {remedy}"))
        })?;
        let env: SubnetEnv =
            text.parse().map_err(|error| Error::new(Code::TryAgain, format!("read {name}: {error}")))?;
        let v4 = env.ipv4.map(|leased| (IpNetwork::V4(leased.subnet), IpNetwork::V4(leased.network)));
        let v6 = env.ipv6.map(|leased| (IpNetwork::V6(leased.subnet), IpNetwork::V6(leased.network)));
        let (subnets, networks) = v4.into_iter().chain(v6).unzip();
        Ok(Self { subnets, networks, mtu: Some(env.mtu), ipmasq: Some(env.ipmasq) })
    }

    /// Whether the subnets are still this host's, as far as a living agent knows.
    ///
    /// # Errors
    /// One with this code when one of them is another host's: nobody would reach a container in it.
    pub(super) fn check_taken(&self, call: &Call, code: Code) -> Result<(), Error> {
        // The configuration's key `dataDir` is flannel's own.
        let Some(taken) = Taken::read(&data_dir(&Map::new())?, &call.network)? else { return Ok(()) };
        let own = call.conf.get_key_value("stateDir").map(|(key, value)| (key.clone(), value.clone()));
        if !agent_lives(&Traces::parse(&own.into_iter().collect())?.state_dir, &call.network)? {
            return Ok(());
        }
        let lost = parse_key(&taken.key).unwrap_or_default();
        let has_lost = self.subnets.iter().any(|own| lost.iter().any(|lost| lost.contains(own.ip())));
        if has_lost { Err(taken.error(code)) } else { Ok(()) }
    }
}

/// Whether nobody but Weft takes part, which finds all that it made by the attachment's key.
pub(super) fn is_weft_alone(delegate: &Map<String, Value>) -> bool {
    let ipam = delegate.get("ipam").and_then(|ipam| ipam.get("type"));
    delegate.get("type").is_some_and(|kind| kind == WEFT) && ipam.is_some_and(|kind| kind == WEFT_IPAM)
}

/// The IPAM plugin of a network that names none: Weft's, unless host-local, which flannel's plugin would take, still
/// holds addresses of this network. Two stores would give one address twice.
pub(super) fn default_ipam(call: &Call, data_dir: Option<&Path>) -> &'static str {
    let directory: PathBuf = data_dir.unwrap_or(Path::new(HOST_LOCAL_DIR)).join(call.network.as_str());
    let mut names = fs::read_dir(directory).into_iter().flatten().flatten();
    // Its lock and its marks of what was given last are no addresses.
    let holds = names
        .any(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok()));
    if holds && Delegate::find(HOST_LOCAL, &call.cni_path).is_ok() { HOST_LOCAL } else { WEFT_IPAM }
}
