//! The overlay: devices and peers of a network that spans hosts, as they ought to be, and how the kernel gets there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni_protocol::{Code, Error, MacAddr};
use flannel_records::{Backend, HostRecord, NetworkConfig, Segment, Transport};
use ipnetwork::IpNetwork;
use weft_net::{Entry, Family, Link, Netlink, NlResult, Vxlan};
use weft_state::lease::{HostLease, Peers};

/// What ought to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    pub devices: Vec<Device>,
    /// All hosts' addresses.
    pub networks: Vec<IpNetwork>,
}

/// One family's device and what leads through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub vni: u32,
    pub port: u16,
    pub learning: bool,
    pub local: IpAddr,
    pub mac: MacAddr,
    /// In bytes; `None`: the underlay's less the encapsulation.
    pub mtu: Option<u32>,
    /// The subnet's first address, alone.
    pub address: IpNetwork,
    /// Peers' segments by subnet.
    pub peers: BTreeMap<IpNetwork, Segment>,
}

/// A record that is no peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub key: String,
    /// In a few words, of which there are only a few.
    pub kind: &'static str,
    pub reason: String,
}

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
    /// The smallest MTU of the devices.
    pub mtu: Option<u32>,
}

impl Overlay {
    /// # Errors
    /// [`Code::Decode`] when this host's own lease cannot be read.
    pub fn new(lease: &HostLease, peers: &Peers) -> Result<(Self, Vec<Rejected>), Error> {
        let broken = |what: String| Error::new(Code::Decode, format!("read this host's lease: {what}"));
        let config = NetworkConfig::parse(&lease.config).map_err(|error| broken(error.to_string()))?;
        let own = HostRecord::parse(&lease.key, &lease.value).map_err(|error| broken(error.to_string()))?;
        let (Backend::Vxlan(vxlan), Transport::Vxlan(vni)) = (&config.backend, own.transport) else {
            return Err(broken("only vxlan".into()));
        };
        let mut devices: Vec<Device> = own
            .segments()
            .iter()
            .filter_map(|segment| {
                let prefix = if segment.subnet.is_ipv4() { "weft" } else { "weft6" };
                let alone = if segment.subnet.is_ipv4() { 32 } else { 128 };
                Some(Device {
                    name: format!("{prefix}.{vni}"),
                    vni: vni.number(),
                    port: vxlan.port,
                    learning: vxlan.learning,
                    local: segment.public,
                    mac: segment.vtep?,
                    mtu: vxlan.mtu,
                    address: IpNetwork::new(segment.subnet.network(), alone).ok()?,
                    peers: BTreeMap::new(),
                })
            })
            .collect();
        let mut rejected = Vec::new();
        for (key, value) in peers.records.iter().filter(|(key, _)| **key != lease.key) {
            let mut reject =
                |kind, reason: String| rejected.push(Rejected { key: key.clone(), kind, reason });
            match HostRecord::parse(key, value) {
                Err(error) => reject("unreadable", error.to_string()),
                Ok(record) if record.transport != own.transport => {
                    reject("another transport", format!("{:?}", record.transport));
                }
                Ok(record) => {
                    for segment in record.segments() {
                        if config.pool_of(segment.subnet.ip()).is_none_or(|pool| !pool.has(segment.subnet)) {
                            reject("outside of the network", segment.subnet.to_string());
                        } else if let Some(device) = devices
                            .iter_mut()
                            .find(|device| device.local.is_ipv4() == segment.subnet.is_ipv4())
                        {
                            device.peers.insert(segment.subnet, *segment);
                        }
                    }
                }
            }
        }
        let networks = config.pools().iter().map(flannel_records::Pool::network).collect();
        Ok((Self { devices, networks }, rejected))
    }
}

/// Compares what is there with what ought to be, and changes the difference.
///
/// # Errors
/// What the kernel refused.
pub fn sync(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Changes> {
    let mut changes = Changes::default();
    let links = netlink.links(None)?;
    for device in &overlay.devices {
        let underlay = underlay(netlink, &links, device.local)?;
        let encapsulation = if device.local.is_ipv4() { 50 } else { 70 };
        let mtu = device.mtu.unwrap_or(underlay.mtu - encapsulation);
        let index = device.ensure(netlink, &underlay, mtu, &mut changes)?;
        changes.links_seen.push((index, device.name.clone()));
        changes.links_seen.push((underlay.index, underlay.name.clone()));
        changes.mtu = Some(changes.mtu.map_or(mtu, |other| other.min(mtu)));
        device.ensure_peers(netlink, index, &mut changes)?;
    }
    Ok(changes)
}

fn underlay(netlink: &mut Netlink, links: &[Link], local: IpAddr) -> NlResult<Link> {
    for link in links {
        if netlink.addresses(link.index)?.iter().any(|address| address.ip() == local) {
            return Ok(link.clone());
        }
    }
    Err(nix::errno::Errno::EADDRNOTAVAIL.into())
}

impl Device {
    fn ensure(
        &self,
        netlink: &mut Netlink,
        underlay: &Link,
        mtu: u32,
        changes: &mut Changes,
    ) -> NlResult<u32> {
        let wanted = Vxlan {
            vni: self.vni,
            port: self.port,
            learning: self.learning,
            underlay: underlay.index,
            local: self.local,
        };
        if netlink.vxlan(&self.name)? != Some(wanted) {
            netlink.delete_link(&self.name)?;
            netlink.add_vxlan(&self.name, self.mac, mtu, wanted)?;
            changes.links += 1;
        }
        let link = netlink.link(&self.name)?.ok_or(nix::errno::Errno::ENODEV)?;
        if link.mac != Some(self.mac) || link.mtu != mtu || !link.up {
            netlink.set_vxlan(&self.name, self.mac, mtu)?;
            changes.macs += usize::from(link.mac != Some(self.mac));
            changes.mtus += usize::from(link.mtu != mtu);
            changes.links += usize::from(!link.up);
        }
        let found = netlink.addresses(link.index)?;
        let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        for other in found.iter().filter(|address| **address != self.address && !link_local(address.ip())) {
            netlink.delete_address(link.index, *other)?;
            changes.addresses += 1;
        }
        if !found.contains(&self.address) {
            netlink.add_address(link.index, self.address, true)?;
            changes.addresses += 1;
        }
        Ok(link.index)
    }

    fn ensure_peers(&self, netlink: &mut Netlink, index: u32, changes: &mut Changes) -> NlResult<()> {
        let mut found = netlink.neighbours(index, self.local.is_ipv4())?;
        for route in netlink.routes(index)? {
            if let Some(gateway) = route.gateway
                && Family::of(gateway) == Family::of(self.local)
            {
                found.push(Entry::Route { index, dst: route.dst, gateway });
            }
        }
        let wanted = self.peers.values().flat_map(|peer| {
            let mac = peer.vtep.unwrap_or(self.mac);
            let address = peer.subnet.network();
            [
                Entry::Neighbour { index, address, mac },
                Entry::Forward { index, mac, remote: peer.public },
                Entry::Route { index, dst: peer.subnet, gateway: address },
            ]
        });
        let wanted: Vec<Entry> = wanted.collect();
        let remove: Vec<Entry> = found.iter().filter(|entry| !wanted.contains(entry)).cloned().collect();
        let set: Vec<Entry> = wanted.into_iter().filter(|entry| !found.contains(entry)).collect();
        for entry in remove.iter().chain(&set) {
            match entry {
                Entry::Neighbour { .. } => changes.neighbours += 1,
                Entry::Forward { .. } => changes.fdb += 1,
                Entry::Route { .. } => changes.routes += 1,
            }
        }
        netlink.apply(&remove, &set)
    }
}
