//! The network's bridge and the gateway addresses on it: shared by all attachments of the host, so every
//! function here is idempotent and tells whether it changed anything.

pub mod former;
pub mod membership;
pub mod restore;

use std::fs::File;
use std::io::{self, Read};

use cni_protocol::{Code, Deadline, Error, IfName, MacAddr};
use flannel_records::overlap;
use ipnetwork::IpNetwork;

use crate::conf::{Gateway, Network};
use weft_net::Family;
use weft_net::sysctl::Sysctl;
use weft_net::{Link, Netlink, NlResult, Way, WholeAddress};

use crate::fault::{Change, Fault};
use crate::forwarding;
use crate::plan::{Plan, prefix};

/// The most ports that the kernel gives a bridge: `BR_MAX_PORTS` of net/bridge/br_private.h, less port 0.
pub const MAX_PORTS: usize = 1023;

/// Makes the bridge where no link has its name; else returns that link.
pub fn create(netlink: &mut Netlink, network: &Network) -> Result<(Option<Link>, Change), Fault> {
    let name = network.bridge.as_str();
    if let Some(found) = netlink.link(name)? {
        return Ok((Some(found), Change::Found));
    }
    match netlink.add_bridge(name, random_mac()?, network.mtu) {
        Ok(()) => Ok((None, Change::Made)),
        // Another ADD was faster.
        Err(error) if error.exists() => Ok((None, Change::Found)),
        Err(error) => Err(error.into()),
    }
}

/// Takes the link of the bridge's name for the network: what [`create`] found, or what it made. Tells whether
/// a bridge that was down was set up.
///
/// # Errors
/// [`Code::Conflict`] when the name is another kind of link's.
pub fn adopt(netlink: &mut Netlink, network: &Network, found: Option<Link>) -> Result<(Link, Change), Fault> {
    let name = network.bridge.as_str();
    let link = match found {
        Some(link) => link,
        None => netlink.link(name)?.ok_or_else(|| {
            Error::new(Code::TryAgain, "somebody else deleted it as soon as it was made: call ADD again")
        })?,
    };
    refuse_other_kind(&link)?;
    if link.up {
        return Ok((link, Change::Found));
    }
    bring_up(netlink, &link, network.gateway != Gateway::None)?;
    Ok((Link { up: true, ..link }, Change::Made))
}

/// Sets a bridge up. One that Weft made, which does not snoop, is down until it has its settings, whoever was killed in between.
fn bring_up(netlink: &mut Netlink, bridge: &Link, is_gateway: bool) -> Result<(), Fault> {
    if !bridge.snoops {
        prepare(netlink, &bridge.name, is_gateway)?;
    }
    Ok(netlink.set_up(&bridge.name)?)
}

/// The settings of a bridge that Weft made.
fn prepare(netlink: &mut Netlink, name: &str, is_gateway: bool) -> Result<(), Fault> {
    // A container's router advertisement must not configure the host (CVE-2020-10749).
    Sysctl::ipv6_of(name, "accept_ra").ensure("0")?;
    // While its own address is being looked for elsewhere, the host cannot ask for containers on it.
    Sysctl::ipv6_of(name, "accept_dad").ensure("0")?;
    // Whether a gateway routes is for the host's setting to say, not for the one for new links.
    for family in Family::ALL {
        if is_gateway && Sysctl::forwarding(family).get()?.as_deref() == Some("1") {
            forwarding::switch_on(netlink, family, &Sysctl::forwarding_at(family, name))?;
        }
    }
    Ok(())
}

/// Sets a bridge down, if it is there. It keeps its IPv6 addresses, which the kernel would take from a link that goes down.
pub fn set_down(name: &IfName, deadline: Deadline) -> Result<(), Fault> {
    let mut netlink = Netlink::open(deadline)?;
    let Some(bridge) = netlink.link(name.as_str())? else {
        return Ok(());
    };
    let addresses = netlink.whole_addresses(bridge.index)?;
    match netlink.set_down(name.as_str()) {
        Err(error) if error.not_found() => return Ok(()),
        other => other?,
    }
    addresses.iter().try_for_each(|address| Ok(netlink.put_back(address)?))
}

/// A link of the bridge's name that is no bridge.
///
/// # Errors
/// [`Code::Conflict`], naming its kind.
pub fn refuse_other_kind(link: &Link) -> Result<(), Error> {
    match link.kind.as_deref() {
        Some("bridge") => Ok(()),
        kind => Err(Error::new(
            Code::Conflict,
            format!(
                "the link {} is no bridge but of kind {}: set another name in the key bridge",
                link.name,
                kind.unwrap_or("hardware")
            ),
        )),
    }
}

/// Sees to it that the bridge receives frames for every address.
pub fn ensure_promiscuous(netlink: &mut Netlink, bridge: &Link) -> NlResult<Change> {
    if bridge.promiscuous {
        return Ok(Change::Found);
    }
    netlink.set_promiscuous(&bridge.name, true).map(|()| Change::Made)
}

/// The bridge's other addresses of a gateway's subnet, which have to give way to it, in the order of giving way: a secondary
/// one goes before the one that it would go with, so that all come back in their roles. The gateway's own
/// is among them where it is secondary to one of them. `None`: the gateway's is there, and none in its way.
///
/// # Errors
/// [`Code::Conflict`] when there is one, unless `forceAddress`, or when another link is in the way of the plan's addresses.
pub fn in_the_way(
    netlink: &mut Netlink,
    network: &Network,
    bridge: &Link,
    gateway: IpNetwork,
    plan: &Plan,
) -> Result<Option<Vec<WholeAddress>>, Fault> {
    let mut found = netlink.whole_addresses(bridge.index)?;
    found.retain(|other| overlap(other.address, gateway));
    let Some(other) = found.iter().find(|other| other.address != gateway) else {
        if !found.is_empty() {
            return Ok(None);
        }
        refuse_elsewhere(netlink, Some(bridge), gateway, plan)?;
        return Ok(Some(Vec::new()));
    };
    if !network.force_address {
        let conflict = format!(
            "it has {} of the same subnet: set forceAddress to replace that, or use another bridge or subnet",
            other.address
        );
        return Err(Error::new(Code::Conflict, conflict).into());
    }
    found.retain(|other| other.address != gateway || other.is_secondary());
    found.reverse();
    found.iter_mut().try_for_each(|other| netlink.note_routes(other))?;
    Ok(Some(found))
}

/// Sees that no other link has a route to the gateway's subnet or a part of it: the kernel would go on to look for containers
/// there.
///
/// # Errors
/// [`Code::Conflict`], naming the link.
pub fn refuse_elsewhere(
    netlink: &mut Netlink,
    bridge: Option<&Link>,
    gateway: IpNetwork,
    plan: &Plan,
) -> Result<(), Fault> {
    for ip in plan.ips.iter().map(|ip| ip.address.ip()).filter(|ip| prefix(gateway).contains(*ip)) {
        // A wider route gives way to the subnet's, and somebody knows why there is one to the container alone.
        let is_as_narrow = |length| length >= gateway.prefix() && length < Family::of(ip).bits();
        let Some(Way { is_local: false, link: Some(index), length }) = netlink.way_to(ip)? else { continue };
        if is_as_narrow(length) && bridge.is_none_or(|bridge| bridge.index != index) {
            let link = netlink.link_at(index)?.map_or_else(|| "another link".to_owned(), |link| link.name);
            let conflict = format!(
                "{link} is on the same subnet, and the kernel would look for {ip} there: remove that link or its address, make it this \
                 network's bridge, or take another subnet"
            );
            return Err(Error::new(Code::Conflict, conflict).into());
        }
    }
    Ok(())
}

/// Gives the bridge a gateway's address that it does not have yet, under the MAC address that it had before the container came: a bridge that
/// somebody made without any would have a port's, and another one when the port goes.
pub fn ensure_gateway(netlink: &mut Netlink, bridge: &Link, gateway: IpNetwork) -> NlResult<Change> {
    if let Some(mac) = bridge.mac {
        netlink.set_mac(&bridge.name, mac)?;
    }
    match netlink.add_address(bridge.index, gateway, true) {
        Ok(()) => Ok(Change::Made),
        Err(error) if error.exists() => Ok(Change::Found),
        Err(error) => Err(error),
    }
}

/// Makes a bridge take a gateway's IPv6 address, where the host has IPv6 switched off for new links or for all that it had.
pub fn ensure_ipv6(name: &str) -> NlResult<Change> {
    Ok(Sysctl::ipv6_of(name, "disable_ipv6").ensure("0")?.into())
}

/// Takes a gateway's address from a bridge, if both are there.
pub fn remove_gateway(name: &IfName, gateway: IpNetwork, deadline: Deadline) -> Result<(), Fault> {
    let mut netlink = Netlink::open(deadline)?;
    match netlink.link(name.as_str())? {
        Some(bridge) => Ok(netlink.delete_address(bridge.index, gateway)?),
        None => Ok(()),
    }
}

/// Deletes a bridge that has no ports.
pub fn remove_unused(name: &IfName, deadline: Deadline) -> Result<(), Fault> {
    let mut netlink = Netlink::open(deadline)?;
    let Some(bridge) = netlink.link(name.as_str())? else {
        return Ok(());
    };
    if netlink.links(Some(bridge.index))?.is_empty() {
        netlink.delete_link(name.as_str())?;
    }
    Ok(())
}

/// What is said when a bridge takes no more ports.
pub fn full(name: &IfName) -> Error {
    Error::new(
        Code::Exhausted,
        format!(
            "bridge {name} has {MAX_PORTS} ports, the most that the kernel allows: remove containers, run GC, \
             or put further ones on a network with another bridge"
        ),
    )
}

/// A locally administered address. Set explicitly, so that it stays whatever ports join.
fn random_mac() -> io::Result<MacAddr> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    Ok(MacAddr::from(mac).locally_administered())
}
