//! The agent's part: bridges and the ports that containers have on them, put back as they are on file.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use cni_protocol::{Deadline, Error};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_net::sysctl::Sysctl;
use weft_net::{BridgePort, Link, NetError, Netlink, NlResult};

use super::membership::Membership;
use super::{ensure_gateway, prepare, random_mac, refuse_other_kind};
use crate::fault::{Change, Fault, failed};
use crate::key::VETH_PREFIX;
use crate::plan::overlap;
use crate::record;
use crate::suspects::Suspects;

/// What was found and done.
#[derive(Debug, Default)]
pub struct Restored {
    /// Bridges that were made, set up or given an address.
    pub bridges: usize,
    /// Ports that were joined, set up or set as they were.
    pub ports: usize,
    /// The bridges of all that was looked at.
    pub names: HashSet<String>,
    pub indices: HashSet<u32>,
    /// Why not all is back.
    pub trouble: Option<Error>,
}

/// A container's port, as it is on file.
struct Member {
    port: String,
    since: Duration,
    /// Whether it has ports of the host's 127.0.0.1.
    has_localnet: bool,
    membership: Membership,
}

/// Puts back what the suspects' containers are attached by on the host, where it was deleted or altered. A host end that is gone
/// went with its container.
pub fn restore(state_dir: &Path, suspects: &Suspects, deadline: Deadline) -> Restored {
    let mut restored = Restored::default();
    for (name, members) in members(state_dir, suspects) {
        let outcome = Netlink::open(deadline)
            .map_err(Fault::from)
            .and_then(|mut netlink| restore_bridge(&mut netlink, &name, &members, &mut restored));
        if let Err(fault) = outcome {
            restored.trouble = Some(failed(&format!("put back bridge {name} and its ports"), fault));
        }
        restored.names.insert(name);
    }
    restored
}

/// What the suspects have on file, by their bridges; the newest first.
fn members(state_dir: &Path, suspects: &Suspects) -> BTreeMap<String, Vec<Member>> {
    let mut bridges: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for network in record::networks(state_dir) {
        for hash in record::hashes(state_dir, &network)
            .unwrap_or_default()
            .into_iter()
            .filter(|hash| suspects.has(hash))
        {
            let Ok(record::Found::Attached(content)) = record::peek(state_dir, &network, &hash) else {
                continue;
            };
            let (since, port) = (content.since(), format!("{VETH_PREFIX}{hash}"));
            let has_localnet = content.holdings.localnet().is_some();
            if let Some(membership) = content.membership {
                let members = bridges.entry(membership.bridge.clone()).or_default();
                members.push(Member { port, since, has_localnet, membership });
            }
        }
    }
    bridges.values_mut().for_each(|members| members.sort_by_key(|member| std::cmp::Reverse(member.since)));
    bridges
}

fn restore_bridge(
    netlink: &mut Netlink,
    name: &str,
    members: &[Member],
    restored: &mut Restored,
) -> Result<(), Fault> {
    let mut present = Vec::new();
    for member in members {
        present.extend(netlink.link(&member.port)?.map(|port| (port, member)));
    }
    let Some((_, newest)) = present.first() else { return Ok(()) };
    let (bridge, mut is_changed) = match netlink.link(name)? {
        Some(bridge) => (bridge, false),
        None => (make(netlink, &newest.membership)?, true),
    };
    refuse_other_kind(&bridge)?;
    restored.indices.insert(bridge.index);
    if !bridge.up {
        netlink.set_up(name)?;
        is_changed = true;
    }
    let addresses = netlink.addresses(bridge.index)?;
    for gateway in gateways(present.iter().map(|(_, member)| &member.membership)) {
        // One that somebody gave the bridge instead is for CHECK to tell.
        if !addresses.iter().any(|address| overlap(*address, gateway)) {
            is_changed |= ensure_gateway(netlink, &bridge, gateway)? == Change::Made;
        }
    }
    if present.iter().any(|(_, member)| member.has_localnet) {
        is_changed |= Sysctl::route_localnet(name).ensure("1")?;
    }
    restored.bridges += usize::from(is_changed);
    for (port, member) in &present {
        restored.ports += usize::from(restore_port(netlink, &bridge, port, member.membership.port())?);
    }
    Ok(())
}

/// The bridge, as a container found it.
fn make(netlink: &mut Netlink, membership: &Membership) -> Result<Link, Fault> {
    let name = &membership.bridge;
    let mac = membership.mac.map_or_else(random_mac, Ok)?;
    match netlink.add_bridge(name, mac, None) {
        Ok(()) => prepare(name, !membership.gateways.is_empty())?,
        // An ADD was faster.
        Err(error) if error.exists() => {}
        Err(error) => return Err(error.into()),
    }
    netlink.link(name)?.ok_or_else(|| NetError::from(Errno::ENODEV).into())
}

/// The gateways' addresses, without those that a later configuration replaced.
fn gateways<'a>(newest_first: impl Iterator<Item = &'a Membership>) -> Vec<IpNetwork> {
    let mut all: Vec<IpNetwork> = Vec::new();
    for gateway in newest_first.flat_map(|membership| &membership.gateways) {
        if !all.iter().any(|newer| overlap(*newer, *gateway)) {
            all.push(*gateway);
        }
    }
    all
}

/// Whether there was anything to put back.
fn restore_port(netlink: &mut Netlink, bridge: &Link, port: &Link, wanted: BridgePort) -> NlResult<bool> {
    let is_member = port.master == Some(bridge.index);
    if is_member && port.up && port.port == Some(wanted) {
        return Ok(false);
    }
    let restored = (|| {
        if port.master.is_some() && !(is_member && port.port == Some(wanted)) {
            // A port that joins anew has all settings off.
            netlink.set_master(&port.name, None)?;
        }
        netlink.set_master(&port.name, Some(bridge.index))?;
        netlink.configure_port(&port.name, None, wanted)
    })();
    match restored {
        // Its container left meanwhile.
        Err(error) if error.not_found() => Ok(false),
        other => other.map(|()| true),
    }
}
