//! The agent's part: bridges and the ports that containers have on them, put back as they are on file.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use cni_protocol::{Deadline, Error};
use flannel_records::overlap;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_net::{BridgePort, Link, NetError, Netlink, NlResult};

use super::membership::Membership;
use super::{bring_up, ensure_gateway, ensure_ipv6, ensure_promiscuous, random_mac, refuse_other_kind};
use crate::fault::{Change, Fault, failed};
use crate::key::host_veth_of;
use crate::localnet;
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
    pub trouble: Vec<Error>,
}

/// A container's port, as it is on file.
struct Member {
    port: String,
    since: Duration,
    membership: Membership,
}

/// Puts back what the suspects' containers are attached by on the host, where it was deleted or altered. A host end that is gone
/// went with its container.
pub fn restore(state_dir: &Path, suspects: &Suspects, deadline: Deadline) -> Restored {
    let mut restored = Restored::default();
    for (name, members) in members(state_dir, suspects) {
        let outcome = Netlink::open(deadline).map_err(Fault::from).and_then(|mut netlink| {
            restore_bridge(&mut netlink, state_dir, (&name, &members), &mut restored)
        });
        if let Err(fault) = outcome {
            restored.trouble.push(failed(&format!("put back bridge {name} and its ports"), fault));
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
            let (since, port) = (content.since(), host_veth_of(&hash));
            if let Some(membership) = content.membership {
                let members = bridges.entry(membership.bridge.clone()).or_default();
                members.push(Member { port, since, membership });
            }
        }
    }
    bridges.values_mut().for_each(|members| members.sort_by_key(|member| std::cmp::Reverse(member.since)));
    bridges
}

fn restore_bridge(
    netlink: &mut Netlink,
    state_dir: &Path,
    (name, members): (&str, &[Member]),
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
    let outcome =
        restore_settings(netlink, state_dir, &bridge, &present).map(|changed| is_changed |= changed);
    restored.bridges += usize::from(is_changed);
    for (port, member) in &present {
        restored.ports += usize::from(restore_port(netlink, &bridge, port, member.membership.port)?);
    }
    // Containers that need what could not be put back are no reason to leave the others apart.
    outcome
}

/// Whether there was anything to put back of the bridge itself, besides its being there.
fn restore_settings(
    netlink: &mut Netlink,
    state_dir: &Path,
    bridge: &Link,
    present: &[(Link, &Member)],
) -> Result<bool, Fault> {
    let mut is_changed = !bridge.up;
    if !bridge.up {
        let is_gateway = present.iter().any(|(_, member)| !member.membership.gateways.is_empty());
        bring_up(netlink, bridge, is_gateway)?;
    }
    if present.iter().any(|(_, member)| member.membership.promiscuous) {
        is_changed |= ensure_promiscuous(netlink, bridge)? == Change::Made;
    }
    is_changed |= localnet::reopen(state_dir, &bridge.name)?;
    let addresses = netlink.addresses(bridge.index)?;
    for gateway in gateways(present.iter().map(|(_, member)| &member.membership)) {
        // An address that somebody gave the bridge instead is for CHECK to tell.
        if addresses.iter().any(|address| overlap(*address, gateway)) {
            continue;
        }
        if gateway.is_ipv6() {
            ensure_ipv6(&bridge.name)?;
        }
        is_changed |= ensure_gateway(netlink, bridge, gateway)? == Change::Made;
    }
    Ok(is_changed)
}

/// The bridge, as a container found it.
fn make(netlink: &mut Netlink, membership: &Membership) -> Result<Link, Fault> {
    let name = &membership.bridge;
    let mac = membership.mac.map_or_else(random_mac, Ok)?;
    match netlink.add_bridge(name, mac, None) {
        Err(error) if !error.exists() => return Err(error.into()),
        // Or an ADD was faster.
        _ => {}
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
        if !(is_member && port.port == Some(wanted)) {
            // A port that joins has all settings off: it passes nothing until it has its own.
            netlink.set_down(&port.name)?;
            netlink.set_master(&port.name, None)?;
            netlink.set_master(&port.name, Some(bridge.index))?;
        }
        netlink.configure_port(&port.name, None, wanted)
    })();
    match restored {
        // Its container left meanwhile.
        Err(error) if error.not_found() => Ok(false),
        other => other.map(|()| true),
    }
}
