//! Compares the kernel with what the overlay ought to be, whole value by whole value, and changes the difference.

use std::net::IpAddr;

use nix::errno::Errno;
use weft_net::{Entry, Family, Link, NetError, Netlink, NlResult, Vxlan};

use super::{Device, Direct, Overlay, Side};

/// What a sync had to change, and what it found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    pub links: usize,
    pub macs: usize,
    pub mtus: usize,
    pub addresses: usize,
    pub neighbours: usize,
    pub fdb: usize,
    pub routes: usize,
    /// The devices' and their underlay's indices and names.
    pub links_seen: Vec<(u32, String)>,
    /// The smallest MTU of packets to other hosts.
    pub mtu: Option<u32>,
    /// Hosts that only a plain route could reach and that are not on the link, by their addresses.
    pub unreachable: Vec<IpAddr>,
}

/// Compares what is there with what ought to be, and changes the difference.
///
/// # Errors
/// What the kernel refused; `EADDRNOTAVAIL` when no interface has the underlay's address, `EEXIST` when another device
/// has the VNI.
pub fn sync(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Changes> {
    let mut changes = Changes::default();
    for side in &overlay.sides {
        let underlay = Underlay::find(netlink, side.local)?;
        changes.links_seen.push((underlay.link.index, underlay.link.name.clone()));
        let (index, mtu) = match &side.device {
            Some(device) => {
                let mtu = device.mtu(underlay.link.mtu);
                let index = device.ensure(netlink, &underlay, mtu, &mut changes)?;
                changes.links_seen.push((index, device.name.clone()));
                (Some(index), mtu)
            }
            None => (None, underlay.link.mtu),
        };
        changes.mtu = Some(changes.mtu.map_or(mtu, |other| other.min(mtu)));
        let (remove, set) = side.entries(netlink, &underlay, index, &mut changes.unreachable)?;
        for entry in remove.iter().chain(&set) {
            match entry {
                Entry::Neighbour { .. } => changes.neighbours += 1,
                Entry::Forward { .. } => changes.fdb += 1,
                Entry::Route { .. } | Entry::Direct { .. } => changes.routes += 1,
            }
        }
        netlink.apply(&remove, &set)?;
    }
    Ok(changes)
}

/// What is not as it ought to be, in sentences; nothing is changed.
///
/// # Errors
/// What the kernel refused.
pub fn differences(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Vec<String>> {
    let mut found = Vec::new();
    for side in &overlay.sides {
        let underlay = match Underlay::find(netlink, side.local) {
            Err(error) if error.errno == Errno::EADDRNOTAVAIL => {
                found.push(format!("no interface has the address {} to other hosts", side.local));
                continue;
            }
            other => other?,
        };
        let mut index = None;
        if let Some(device) = &side.device {
            let Some(link) = netlink.link(&device.name)? else {
                found.push(format!("device {} is gone", device.name));
                continue;
            };
            index = Some(link.index);
            found.extend(device.differences(netlink, &underlay, &link)?);
        }
        let (remove, set) = side.entries(netlink, &underlay, index, &mut Vec::new())?;
        found.extend(set.iter().map(|entry| format!("to another host there is not: {entry}")));
        found.extend(remove.iter().map(|entry| format!("of a host that is gone there is: {entry}")));
    }
    Ok(found)
}

/// Removes devices and routes to other hosts.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn remove(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<()> {
    for side in &overlay.sides {
        if let Some(device) = &side.device {
            netlink.delete_link(&device.name)?;
        }
        if side.direct != Direct::None {
            match Underlay::find(netlink, side.local) {
                Err(error) if error.errno == Errno::EADDRNOTAVAIL => {}
                underlay => {
                    let routes = direct_routes(netlink, underlay?.link.index, Family::of(side.local))?;
                    netlink.apply(&routes, &[])?;
                }
            }
        }
    }
    Ok(())
}

/// The interface to other hosts.
struct Underlay {
    link: Link,
    /// The address with the prefix length of the link.
    address: ipnetwork::IpNetwork,
}

impl Underlay {
    fn find(netlink: &mut Netlink, local: IpAddr) -> NlResult<Self> {
        let (index, address) = netlink.holder_of(local)?.ok_or_else(|| NetError {
            errno: Errno::EADDRNOTAVAIL,
            explanation: Some(format!("no interface has {local}, by which other hosts know this one")),
        })?;
        let link = netlink.link_at(index)?.ok_or(Errno::ENODEV)?;
        Ok(Self { link, address })
    }
}

impl Device {
    fn wanted(&self, underlay: &Underlay) -> Vxlan {
        Vxlan {
            vni: self.vni,
            port: self.port,
            learning: self.learning,
            underlay: underlay.link.index,
            local: underlay.address.ip(),
        }
    }

    fn ensure(
        &self,
        netlink: &mut Netlink,
        underlay: &Underlay,
        mtu: u32,
        changes: &mut Changes,
    ) -> NlResult<u32> {
        let wanted = self.wanted(underlay);
        if netlink.vxlan(&self.name)? != Some(wanted) {
            netlink.delete_link(&self.name)?;
            netlink
                .add_vxlan(&self.name, self.mac, mtu, wanted)
                .map_err(|error| self.explain(netlink, error))?;
            changes.links += 1;
        }
        let link = netlink.link(&self.name)?.ok_or(Errno::ENODEV)?;
        if link.mac != Some(self.mac) || link.mtu != mtu || !link.up {
            netlink.set_vxlan(&self.name, self.mac, mtu)?;
            changes.macs += usize::from(link.mac != Some(self.mac));
            changes.mtus += usize::from(link.mtu != mtu);
            changes.links += usize::from(!link.up);
        }
        let (missing, foreign) = self.addresses(netlink, link.index)?;
        for other in foreign {
            netlink.delete_address(link.index, other)?;
            changes.addresses += 1;
        }
        if missing {
            netlink.add_address(link.index, self.address, true)?;
            changes.addresses += 1;
        }
        Ok(link.index)
    }

    /// Whether the device lacks its address, and those that are not its own.
    fn addresses(&self, netlink: &mut Netlink, index: u32) -> NlResult<(bool, Vec<ipnetwork::IpNetwork>)> {
        let mut found = netlink.addresses(index)?;
        let missing = !found.contains(&self.address);
        let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        found.retain(|address| *address != self.address && !link_local(address.ip()));
        Ok((missing, found))
    }

    /// Who has the VNI: mostly flanneld's device, on a host that is about to change over.
    fn explain(&self, netlink: &mut Netlink, error: NetError) -> NetError {
        if !error.exists() {
            return error;
        }
        let links = netlink.links(None).unwrap_or_default();
        let same = |link: &&Link| matches!(netlink.vxlan(&link.name), Ok(Some(other)) if other.vni == self.vni && other.port == self.port);
        let other = links.iter().find(same).map_or("another device", |link| &link.name);
        let remedy =
            "end what made it (flanneld?), then `ip link delete` it, or give the network another VNI";
        let explanation = format!("VNI {} is that of {other}: {remedy}", self.vni);
        NetError { explanation: Some(explanation), ..error }
    }

    fn differences(&self, netlink: &mut Netlink, underlay: &Underlay, link: &Link) -> NlResult<Vec<String>> {
        let (name, mtu) = (&self.name, self.mtu(underlay.link.mtu));
        let mut found = Vec::new();
        let mut require = |holds: bool, what: String| {
            if !holds {
                found.push(what);
            }
        };
        let wanted = self.wanted(underlay);
        let there = netlink.vxlan(name)?;
        require(there == Some(wanted), format!("device {name} is {there:?} instead of {wanted:?}"));
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        require(link.mac == Some(self.mac), format!("device {name} has MAC {mac} instead of {}", self.mac));
        require(link.mtu == mtu, format!("device {name} has MTU {} instead of {mtu}", link.mtu));
        require(link.up, format!("device {name} is down"));
        let (missing, foreign) = self.addresses(netlink, link.index)?;
        require(!missing, format!("device {name} has not the address {}", self.address));
        require(foreign.is_empty(), format!("device {name} has addresses that are not Weft's: {foreign:?}"));
        Ok(found)
    }
}

impl Side {
    /// What is to be removed, and what is to be set. `index` is the device's.
    fn entries(
        &self,
        netlink: &mut Netlink,
        underlay: &Underlay,
        index: Option<u32>,
        unreachable: &mut Vec<IpAddr>,
    ) -> NlResult<(Vec<Entry>, Vec<Entry>)> {
        let family = Family::of(self.local);
        let mut found = Vec::new();
        if let Some(index) = index {
            found = netlink.neighbours(index, family)?;
            for route in netlink.routes(index)? {
                if let Some(gateway) = route.gateway
                    && Family::of(gateway) == family
                {
                    found.push(Entry::Route { index, dst: route.dst, gateway });
                }
            }
        }
        if self.direct != Direct::None {
            found.extend(direct_routes(netlink, underlay.link.index, family)?);
        }
        let mut wanted = Vec::with_capacity(self.peers.len() * 3);
        for peer in self.peers.values() {
            let on_link = underlay.address.contains(peer.public);
            match (self.direct, index, peer.vtep) {
                (Direct::OnLink | Direct::All, ..) if on_link => {
                    wanted.push(Entry::Direct {
                        index: underlay.link.index,
                        dst: peer.subnet,
                        gateway: peer.public,
                    });
                }
                (_, Some(index), Some(mac)) => {
                    let address = peer.subnet.network();
                    wanted.extend([
                        Entry::Neighbour { index, address, mac },
                        Entry::Forward { index, mac, remote: peer.public },
                        Entry::Route { index, dst: peer.subnet, gateway: address },
                    ]);
                }
                _ => unreachable.push(peer.public),
            }
        }
        let there: std::collections::HashSet<&Entry> = found.iter().collect();
        let set: Vec<Entry> = wanted.iter().filter(|entry| !there.contains(entry)).cloned().collect();
        let wanted: std::collections::HashSet<&Entry> = wanted.iter().collect();
        let remove = found.iter().filter(|entry| !wanted.contains(entry)).cloned().collect();
        Ok((remove, set))
    }
}

/// The plain routes to other hosts, which their protocol tells from everybody else's.
fn direct_routes(netlink: &mut Netlink, index: u32, family: Family) -> NlResult<Vec<Entry>> {
    let routes = netlink.routes(index)?.into_iter();
    let own = routes
        .filter(|route| route.protocol == weft_net::ROUTE_PROTOCOL && Family::of(route.dst.ip()) == family);
    Ok(own
        .filter_map(|route| Some(Entry::Direct { index, dst: route.dst, gateway: route.gateway? }))
        .collect())
}
