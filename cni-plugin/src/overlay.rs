//! The overlay: what this host needs to reach the containers of a network's other hosts, worked out from the leases.
//! Pure; [`sync()`] makes the kernel so.
//!
//! Per family one VXLAN device, and per host a neighbour, a forwarding entry and a route through it, as flanneld makes
//! them (pkg/backend/vxlan of flannel v0.28); or, for hosts on the same link, a plain route, where the network wants
//! that (`DirectRouting`, `host-gw`).

mod device;
mod member;
mod sync;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use cni_protocol::{Code, Error, MacAddr};
use flannel_records::{Backend, HostRecord, NetworkConfig, Pool, Segment, Transport, Vxlan};
use ipnetwork::IpNetwork;
use weft_state::lease::{HostLease, Peers};

use crate::key::ALIAS_MAX;

pub use member::{Exit, Joined, exits, join, missing_address, on_file, retire};
pub use sync::{Changes, Differences, Unreached, differences, has_room, remove, sync};

/// What a device's alias begins with; the rest is the network's place in etcd, which stays when the network is renamed.
const OWNER: &str = "weft:";

/// What ought to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// One per family of the network.
    pub sides: Vec<Side>,
    /// All hosts' addresses.
    pub networks: Vec<IpNetwork>,
}

/// One family's part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The address that packets to other hosts leave with. An interface of this host has it.
    pub local: IpAddr,
    /// `None` with host-gw.
    pub device: Option<Device>,
    pub direct: Direct,
    /// All hosts' addresses of the family: what leads elsewhere is another network's.
    pub network: IpNetwork,
    /// The other hosts by their subnets.
    pub peers: BTreeMap<IpNetwork, Segment>,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// The text by which `ip link` and other networks see whose it is.
    pub owner: String,
    pub vni: u32,
    pub port: u16,
    pub learning: bool,
    pub mac: MacAddr,
    /// Of the packets that it sends to other hosts, in bytes; `None`: the underlay's.
    pub outer_mtu: Option<u32>,
    /// The subnet's first address, alone.
    pub address: IpNetwork,
}

/// Which hosts are reached by plain routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    None,
    /// Those on the same link.
    OnLink,
    /// All: the others are not reached.
    All,
}

/// A record that is no peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub key: String,
    /// In a few words; there are only a few kinds.
    pub kind: &'static str,
    pub reason: String,
}

impl From<&Unreached> for Rejected {
    fn from(host: &Unreached) -> Self {
        // As flannel's keys spell it.
        let key = host.subnet.to_string().replace('/', "-");
        Self { key, kind: host.kind, reason: host.reason.clone() }
    }
}

impl Overlay {
    /// Works it out. Records that cannot be meant are told, and do not keep others from being followed: everything in
    /// the store may have been written by anybody.
    ///
    /// # Errors
    /// [`Code::Decode`] when this host's own lease cannot be read.
    pub fn new(lease: &HostLease, peers: &Peers) -> Result<(Self, Vec<Rejected>), Error> {
        let broken = |what: String| {
            Error::new(
                Code::Decode,
                format!("read this host's lease: {what}: remove lease.json below dataDir"),
            )
        };
        let config = NetworkConfig::parse(&lease.config).map_err(|error| broken(error.to_string()))?;
        let own = HostRecord::parse(&lease.key, &lease.value).map_err(|error| broken(error.to_string()))?;
        let vxlan = match (&config.backend, own.transport) {
            (Backend::Vxlan(vxlan), Transport::Vxlan(vni)) if vni == vxlan.vni => Some(vxlan),
            (Backend::HostGw, Transport::HostGw) => None,
            _ => {
                return Err(broken(
                    "its record and the network's configuration have different backends".into(),
                ));
            }
        };
        let side = |segment: &Segment| {
            let network = config.pool_of(segment.subnet.ip()).map_or(segment.subnet, Pool::network);
            Side::new(segment, network, vxlan, lease)
        };
        let sides = own.segments().iter().map(side).collect();
        let networks = config.pools().iter().map(Pool::network).collect();
        let mut overlay = Self { sides, networks };
        let mut known = Known::new(own.segments());
        let mut rejected = Vec::new();
        let mut others: Vec<_> = peers.records.iter().filter(|(key, _)| **key != lease.key).collect();
        // A later host takes nothing from an earlier one.
        others.sort_by_key(|(key, _)| (peers.made(key), *key));
        for (key, value) in others {
            let peer = HostRecord::parse(key, value).map_err(|error| ("unreadable", error.to_string()));
            let outcome = peer.and_then(|peer| overlay.admit(&config, &own, &peer, &mut known));
            if let Err((kind, reason)) = outcome {
                rejected.push(Rejected { key: key.clone(), kind, reason });
            }
        }
        Ok((overlay, rejected))
    }

    fn admit(
        &mut self,
        config: &NetworkConfig,
        own: &HostRecord,
        peer: &HostRecord,
        known: &mut Known,
    ) -> Result<(), (&'static str, String)> {
        if peer.transport != own.transport {
            return Err(("another backend", format!("{:?}", peer.transport)));
        }
        let mut shared = Vec::new();
        for segment in peer.segments() {
            match config.pool_of(segment.subnet.ip()) {
                Some(pool) if pool.has(segment.subnet) => {
                    known.check(segment)?;
                    shared.push(segment);
                }
                // The network got a second family since this host leased its subnet: they share the first.
                None if peer.segments().len() > 1 => {}
                _ => return Err(("outside of the network", segment.subnet.to_string())),
            }
        }
        for segment in shared {
            known.add(segment);
            if let Some(side) =
                self.sides.iter_mut().find(|side| side.local.is_ipv4() == segment.subnet.is_ipv4())
            {
                side.peers.insert(segment.subnet, *segment);
            }
        }
        Ok(())
    }

    /// How many other hosts there are, without those that cannot be reached.
    #[must_use]
    pub fn peers(&self, unreached: &[Unreached]) -> usize {
        let unreached: HashSet<IpNetwork> = unreached.iter().map(|host| host.subnet).collect();
        let reached = |side: &Side| side.peers.keys().filter(|subnet| !unreached.contains(subnet)).count();
        self.sides.iter().map(reached).max().unwrap_or(0)
    }

    /// What of it a successor does not use: that is to go, or it would stay for ever.
    #[must_use]
    pub fn without(mut self, successor: &Self) -> Self {
        let uses = |device: &Device| {
            let mut devices = successor.sides.iter().filter_map(|side| side.device.as_ref());
            devices.any(|other| (&other.name, &other.owner) == (&device.name, &device.owner))
        };
        let leads = |former: &Side| {
            let same = |side: &&Side| (side.network, side.local) == (former.network, former.local);
            successor.sides.iter().find(same).is_some_and(|side| side.direct != Direct::None)
        };
        for side in &mut self.sides {
            if leads(side) {
                side.direct = Direct::None;
            }
            side.device = side.device.take().filter(|device| !uses(device));
        }
        self
    }

    /// The devices' names.
    pub fn device_names(&self) -> impl Iterator<Item = &str> {
        self.sides.iter().filter_map(|side| Some(side.device.as_ref()?.name.as_str()))
    }
}

impl Side {
    fn new(segment: &Segment, network: IpNetwork, vxlan: Option<&Vxlan>, lease: &HostLease) -> Self {
        let v4 = segment.subnet.is_ipv4();
        let (prefix, alone) = if v4 { ("weft", 32) } else { ("weft6", 128) };
        let device = vxlan.and_then(|vxlan| {
            Some(Device {
                name: format!("{prefix}.{}", vxlan.vni),
                owner: owner(&lease.prefix),
                vni: vxlan.vni.number(),
                port: vxlan.port,
                learning: vxlan.learning,
                mac: segment.vtep?,
                outer_mtu: vxlan.mtu,
                address: IpNetwork::new(segment.subnet.network(), alone).ok()?,
            })
        });
        Self {
            local: lease.local.iter().copied().find(|ip| ip.is_ipv4() == v4).unwrap_or(segment.public),
            device,
            direct: match vxlan {
                None => Direct::All,
                Some(vxlan) if vxlan.direct_routing => Direct::OnLink,
                Some(_) => Direct::None,
            },
            network,
            peers: BTreeMap::new(),
        }
    }
}

fn owner(prefix: &str) -> String {
    let owner = format!("{OWNER}{prefix}");
    if owner.len() <= ALIAS_MAX { owner } else { format!("{OWNER}{:x}", weft_state::hash(&[prefix])) }
}

impl Device {
    /// Its own MTU on an underlay with this one, in bytes: less the outer headers, and never more than there is room for.
    fn mtu(&self, underlay: u32) -> u32 {
        let outer = self.outer_mtu.map_or(underlay, |mtu| mtu.min(underlay));
        outer.saturating_sub(Vxlan::encapsulation(self.address.is_ipv4()))
    }
}

/// What is somebody's already: nobody may take it from them by a record of their own.
struct Known {
    own: Vec<Segment>,
    subnets: HashSet<IpNetwork>,
    /// The addresses to which they lead.
    vteps: HashMap<(bool, MacAddr), IpAddr>,
}

impl Known {
    fn new(own: &[Segment]) -> Self {
        Self { own: own.to_vec(), subnets: HashSet::new(), vteps: HashMap::new() }
    }

    fn check(&self, peer: &Segment) -> Result<(), (&'static str, String)> {
        for own in &self.own {
            if own.subnet == peer.subnet {
                return Err(("this host's subnet", peer.subnet.to_string()));
            }
            if own.public == peer.public {
                return Err(("this host's address", peer.public.to_string()));
            }
            if own.vtep.is_some() && own.vtep == peer.vtep {
                return Err(("this host's VTEP", format!("{:?}", peer.vtep)));
            }
        }
        if self.subnets.contains(&peer.subnet) {
            return Err(("another host's subnet", peer.subnet.to_string()));
        }
        // A host that has moved to another subnet has two records as long as the lease of the former lasts.
        let leads_elsewhere = |mac: &MacAddr| {
            let known = self.vteps.get(&(peer.subnet.is_ipv4(), *mac));
            known.is_some_and(|public| *public != peer.public)
        };
        match peer.vtep.filter(leads_elsewhere) {
            Some(mac) => Err(("another host's VTEP", mac.to_string())),
            None => Ok(()),
        }
    }

    fn add(&mut self, peer: &Segment) {
        self.subnets.insert(peer.subnet);
        self.vteps.extend(peer.vtep.map(|mac| ((peer.subnet.is_ipv4(), mac), peer.public)));
    }
}

#[cfg(test)]
mod tests;
