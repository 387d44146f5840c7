//! What the delegate has to know, and which plugins take part.

use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

use cni_protocol::{Call, Code, Delegate, Error};
use flannel_records::{Leased, SubnetEnv, parse_key};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use weft_ipam::store::glance;
use weft_state::boot_began;
use weft_state::lease::{Taken, agent_lives};
use weft_state::{data_dir, state_dir};

/// The delegate that is not executed.
pub(super) const WEFT: &str = "weft";
pub(super) const WEFT_IPAM: &str = "weft-ipam";
pub(super) const HOST_LOCAL: &str = "host-local";
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
        let mut facts = Self { mtu: Some(env.mtu), ipmasq: Some(env.ipmasq), ..Self::default() };
        if let Some(Leased { networks, subnet }) = env.ipv4 {
            facts.subnets.push(subnet.into());
            facts.networks.extend(networks.into_iter().map(IpNetwork::V4));
        }
        if let Some(Leased { networks, subnet }) = env.ipv6 {
            facts.subnets.push(subnet.into());
            facts.networks.extend(networks.into_iter().map(IpNetwork::V6));
        }
        Ok(facts)
    }

    /// Whether the subnets are still this host's, as far as a living agent knows.
    ///
    /// # Errors
    /// One with this code when one of them is another host's: nobody would reach a container in it.
    pub(super) fn check_taken(&self, call: &Call, code: Code) -> Result<(), Error> {
        // The configuration's key `dataDir` is flannel's own.
        let Some(taken) = Taken::read(&data_dir(None)?, &call.network)? else { return Ok(()) };
        if !agent_lives(&state_dir(call.conf.get("stateDir"))?, &call.network)? {
            return Ok(());
        }
        let lost = parse_key(&taken.key).unwrap_or_default();
        let has_lost = self.subnets.iter().any(|own| lost.iter().any(|lost| lost.contains(own.ip())));
        if has_lost { Err(taken.error(code)) } else { Ok(()) }
    }
}

/// Whether only Weft takes part, which finds all that it made by the attachment's key.
pub(super) fn is_weft_alone(delegate: &Map<String, Value>) -> bool {
    let ipam = delegate.get("ipam").and_then(|ipam| ipam.get("type"));
    delegate.get("type").is_some_and(|kind| kind == WEFT) && ipam.is_some_and(|kind| kind == WEFT_IPAM)
}

/// The IPAM plugin of a network that names none, and what it must not give. Two stores would give one address twice, so it
/// is Weft's, unless host-local, which flannel's plugin would take, holds addresses of this network and Weft's holds none.
///
/// # Errors
/// [`Code::Conflict`] when it is host-local, and that is not there; [`Code::Io`] when it cannot be told what one of them holds.
pub(super) fn default_ipam(call: &Call) -> Result<(&'static str, Vec<IpAddr>), Error> {
    let moved = call.conf.get("ipam").and_then(|ipam| ipam.get("dataDir")).and_then(Value::as_str);
    let root = Path::new(moved.filter(|path| !path.is_empty()).unwrap_or(HOST_LOCAL_DIR));
    let directory = root.join(call.network.as_str());
    let held = held_by_host_local(&directory).map_err(|error| {
        Error::new(Code::Io, format!("read {}: {error}: make it readable", directory.display()))
    })?;
    if held.is_empty() || !glance(&weft_ipam::conf::reservations_dir(&call.conf)?, &call.network)?.is_empty()
    {
        return Ok((WEFT_IPAM, held));
    }
    Delegate::find(HOST_LOCAL, &call.cni_path).map(|_| (HOST_LOCAL, Vec::new())).map_err(|missing| {
        let (network, directory) = (&call.network, directory.display());
        let what = format!("host-local holds addresses of network {network}, and is not there");
        let remedy = "put host-local back until these containers are gone";
        Error::new(Code::Conflict, format!("{what}: {remedy}, or remove {directory} if they are"))
            .detail(missing.msg)
    })
}

/// Addresses whose containers can be there: none outlives a boot, though what host-local wrote of it does.
fn held_by_host_local(directory: &Path) -> io::Result<Vec<IpAddr>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let (began, mut held) = (boot_began(), Vec::new());
    for entry in entries {
        let entry = entry?;
        // Its lock and its marks of what was given last are no addresses.
        let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match entry.metadata().and_then(|file| file.modified()) {
            Ok(made) if made < began => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            made => held.push(made.map(|_| ip)?),
        }
    }
    Ok(held)
}
