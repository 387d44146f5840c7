//! Compares the kernel with what the overlay ought to be, whole value by whole value, and changes the difference.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::net::IpAddr;

use flannel_records::{Segment, kept_by_link, overlap};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_net::{Detour, Entry, Family, KernelRoute, Link, NetError, Netlink, NlResult, ROUTE_PROTOCOL};

use super::{Direct, Overlay, Side};

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
    /// Other hosts that this one does not lead to, whose own records are to blame.
    pub unreached: Vec<Unreached>,
}

/// A host that cannot be reached by what its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    pub subnet: IpNetwork,
    /// In a few words; there are only a few kinds.
    pub kind: &'static str,
    pub reason: String,
}

impl Unreached {
    fn new(peer: &Segment, kind: &'static str) -> Self {
        Self { subnet: peer.subnet, kind, reason: peer.public.to_string() }
    }
}

/// Compares what is there with what ought to be, and changes the difference. Neither a host that cannot be reached nor a
/// family that cannot be set up keeps the others from it.
///
/// # Errors
/// The first that the kernel refused, unless a host's record is to blame; `EADDRNOTAVAIL` when no interface has the
/// underlay's address, `EEXIST` when another device has the VNI, or another network the device.
pub fn sync(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Changes> {
    let mut changes = Changes::default();
    let mut outcome = Ok(());
    for side in &overlay.sides {
        outcome = outcome.and(side.sync(netlink, &mut changes));
    }
    outcome.map(|()| changes)
}

/// Whether packets to other hosts have room on their way, which [`sync`] needs. What an ADD does on a host that got another address is
/// not known before.
///
/// # Errors
/// `EINVAL` with what to do where they have not; else what the kernel refused.
pub fn has_room(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<()> {
    for side in &overlay.sides {
        let Some(device) = &side.device else { continue };
        match Underlay::find(netlink, side.local) {
            Err(error) if error.errno == Errno::EADDRNOTAVAIL => {}
            underlay => device.mtu_on(&underlay?.link).map(drop)?,
        }
    }
    Ok(())
}

/// What is not as it ought to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// In sentences.
    pub found: Vec<String>,
    pub unreached: Vec<Unreached>,
}

/// Compares what is there with what ought to be, and changes nothing.
///
/// # Errors
/// What the kernel refused.
pub fn differences(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Differences> {
    let Differences { mut found, mut unreached } = Differences::default();
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
        let plan = side.plan(netlink, &underlay, index)?;
        found.extend(plan.set.iter().map(|(_, entry)| format!("to another host there is not: {entry}")));
        found.extend(plan.remove.iter().map(|entry| format!("of a host that is gone there is: {entry}")));
        unreached.extend(plan.unreached);
    }
    Ok(Differences { found, unreached })
}

/// Removes devices and routes to other hosts.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn remove(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<()> {
    for side in &overlay.sides {
        if let Some(device) = &side.device {
            device.remove(netlink)?;
        }
        if side.direct != Direct::None {
            match Underlay::find(netlink, side.local) {
                Err(error) if error.errno == Errno::EADDRNOTAVAIL => {}
                underlay => {
                    let index = underlay?.link.index;
                    let routes = netlink.main_routes(index, Family::of(side.local))?;
                    let routes = side.direct_routes(index, &routes);
                    netlink.remove_entries(&routes)?.into_iter().try_for_each(|removed| removed.map(drop))?;
                }
            }
        }
    }
    Ok(())
}

/// The interface to other hosts.
pub(super) struct Underlay {
    pub(super) link: Link,
    /// The address with the prefix length of the link.
    pub(super) address: IpNetwork,
    /// The same of all that the interface has.
    addresses: Vec<IpNetwork>,
}

impl Underlay {
    pub(super) fn find(netlink: &mut Netlink, local: IpAddr) -> NlResult<Self> {
        let (index, address) = netlink.holder_of(local)?.ok_or_else(|| NetError {
            errno: Errno::EADDRNOTAVAIL,
            explanation: Some(format!("no interface has {local}, by which other hosts know this one")),
        })?;
        let link = netlink.link_at(index)?.ok_or(Errno::ENODEV)?;
        Ok(Self { link, address, addresses: netlink.addresses(index)? })
    }

    /// Why no host can have an address, if none can: a packet to it would stay here, or go to everybody on the link.
    fn excludes(&self, public: IpAddr, own: &[IpAddr]) -> Option<&'static str> {
        let spare = if public.is_ipv4() { 31 } else { 127 };
        if own.contains(&public) {
            Some("another address of this host")
        } else if self.address.prefix() >= spare {
            // There every address is a host's (RFC 3021, RFC 6164).
            None
        } else if public == self.address.network() {
            Some("the address of the link")
        } else if public.is_ipv4() && public == self.address.broadcast() {
            Some("a broadcast address")
        } else {
            None
        }
    }

    /// Whether no router is on the way to an address: one of the interface's has it in its prefix, or a route by the interface leads to it
    /// alone, as where a host's own prefix is a single address.
    fn is_on_link(&self, public: IpAddr, routes: &[&KernelRoute]) -> bool {
        let there = routes.iter().filter(|route| route.dst.contains(public));
        let used = there.max_by_key(|route| (route.dst.prefix(), Reverse(route.priority)));
        self.is_in_prefix(public) || used.is_some_and(|route| route.gateway.is_none())
    }

    fn is_in_prefix(&self, public: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(public))
    }
}

/// What the kernel says of a route or an entry that cannot be, as with a gateway that is not on the link.
const IMPOSSIBLE: [Errno; 3] = [Errno::EINVAL, Errno::ENETUNREACH, Errno::EHOSTUNREACH];

/// What is to change so that the other hosts are reached.
struct Plan {
    remove: Vec<Entry>,
    /// With the host that it leads to.
    set: Vec<(Segment, Entry)>,
    unreached: Vec<Unreached>,
}

impl Plan {
    /// Carries it out, as far as it can be.
    fn apply(self, netlink: &mut Netlink, changes: &mut Changes) -> NlResult<()> {
        changes.unreached.extend(self.unreached);
        let mut outcome = Ok(());
        for (entry, removed) in self.remove.iter().zip(netlink.remove_entries(&self.remove)?) {
            match removed {
                Ok(true) => changes.count(entry),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        let set = netlink.set_entries(self.set.iter().map(|(_, entry)| entry))?;
        let mut refused = HashSet::new();
        for ((peer, entry), set) in self.set.iter().zip(set) {
            match set {
                Ok(()) => changes.count(entry),
                Err(error) if IMPOSSIBLE.contains(&error.errno) => {
                    if refused.insert(peer.subnet) {
                        let reason = format!("{entry}: {error}");
                        changes
                            .unreached
                            .push(Unreached { reason, ..Unreached::new(peer, "refused by the kernel") });
                    }
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }
}

impl Changes {
    fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Neighbour { .. } => self.neighbours += 1,
            Entry::Forward { .. } => self.fdb += 1,
            Entry::Route { .. } | Entry::Direct { .. } | Entry::Altered { .. } => self.routes += 1,
        }
    }
}

impl Side {
    fn sync(&self, netlink: &mut Netlink, changes: &mut Changes) -> NlResult<()> {
        let underlay = Underlay::find(netlink, self.local)?;
        changes.links_seen.push((underlay.link.index, underlay.link.name.clone()));
        let (index, mtu) = match &self.device {
            Some(device) => {
                let mtu = device.mtu_on(&underlay.link)?;
                let index = device.ensure(netlink, &underlay, mtu, changes)?;
                changes.links_seen.push((index, device.name.clone()));
                (Some(index), mtu)
            }
            None => (None, underlay.link.mtu),
        };
        changes.mtu = Some(changes.mtu.map_or(mtu, |other| other.min(mtu)));
        self.plan(netlink, &underlay, index)?.apply(netlink, changes)
    }

    /// `index` is the device's.
    fn plan(&self, netlink: &mut Netlink, underlay: &Underlay, index: Option<u32>) -> NlResult<Plan> {
        let routes = self.routes_of_link(netlink, underlay)?;
        let found = self.found(netlink, underlay, &routes, index)?;
        let (own, others) = (netlink.all_addresses()?, others_than_wefts(&routes));
        let mut unreached = Vec::new();
        let mut wanted = Vec::with_capacity(self.peers.len() * 3);
        for peer in self.peers.values() {
            let on_link = self.direct != Direct::None && underlay.is_on_link(peer.public, &others);
            match self.way(peer, underlay, on_link, index, &own) {
                Ok(entries) => wanted.extend(entries.into_iter().map(|entry| (*peer, entry))),
                Err(reason) => unreached.push(reason),
            }
        }
        let there: HashSet<&Entry> = found.iter().collect();
        let set = wanted.iter().filter(|(_, entry)| !there.contains(entry)).cloned().collect();
        let wanted: HashSet<&Entry> = wanted.iter().map(|(_, entry)| entry).collect();
        let remove = found.iter().filter(|entry| !wanted.contains(entry)).cloned().collect();
        Ok(Plan { remove, set, unreached })
    }

    /// What leads to other hosts now.
    fn found(
        &self,
        netlink: &mut Netlink,
        underlay: &Underlay,
        routes: &[KernelRoute],
        index: Option<u32>,
    ) -> NlResult<Vec<Entry>> {
        let family = Family::of(self.local);
        let mut found = self.direct_routes(underlay.link.index, routes);
        if let Some(index) = index {
            let learning = self.device.as_ref().is_some_and(|device| device.learning);
            found.extend(netlink.neighbours(index, family, learning)?);
            let routes = netlink.main_routes(index, family)?;
            let by_device = |dst, gateway| Entry::Route { index, dst, gateway };
            found.extend(routes.iter().filter_map(|route| Entry::of_route(index, route, by_device)));
        }
        Ok(found)
    }

    /// What leads to a host, or why nothing can.
    fn way(
        &self,
        peer: &Segment,
        underlay: &Underlay,
        on_link: bool,
        index: Option<u32>,
        own: &[IpAddr],
    ) -> Result<Vec<Entry>, Unreached> {
        if let Some(kind) = underlay.excludes(peer.public, own) {
            return Err(Unreached::new(peer, kind));
        }
        // Its route would take the place of the link's, or go before it: also what leads to etcd would be lost.
        let kept = |address: &IpNetwork| kept_by_link(self.network, *address);
        if let Some(kept) = underlay.addresses.iter().map(kept).find(|kept| overlap(*kept, peer.subnet)) {
            let reason = format!("{} has {kept}", underlay.link.name);
            return Err(Unreached { reason, ..Unreached::new(peer, "has addresses of the link") });
        }
        match (self.direct, index, peer.vtep) {
            (Direct::OnLink | Direct::All, ..) if on_link => {
                Ok(vec![Entry::Direct { index: underlay.link.index, dst: peer.subnet, gateway: peer.public }])
            }
            (_, Some(index), Some(mac)) => {
                let address = peer.subnet.network();
                Ok(vec![
                    Entry::Neighbour { index, address, mac },
                    Entry::Forward { index, mac, remote: peer.public, detour: Detour::default() },
                    Entry::Route { index, dst: peer.subnet, gateway: address },
                ])
            }
            _ => Err(Unreached::new(peer, "not on the link")),
        }
    }

    /// Whether a host is reached by a plain route, in a network that has any.
    pub(super) fn is_direct(&self, netlink: &mut Netlink, underlay: &Underlay) -> NlResult<bool> {
        // Mostly it is known without the routes, of which there is one for each host.
        if self.peers.values().any(|peer| underlay.is_in_prefix(peer.public)) {
            return Ok(true);
        }
        let routes = self.routes_of_link(netlink, underlay)?;
        let others = others_than_wefts(&routes);
        Ok(self.peers.values().any(|peer| underlay.is_on_link(peer.public, &others)))
    }

    /// All routes by the interface to other hosts, where plain ones come into question.
    fn routes_of_link(&self, netlink: &mut Netlink, underlay: &Underlay) -> NlResult<Vec<KernelRoute>> {
        match self.direct {
            Direct::None => Ok(Vec::new()),
            _ => netlink.main_routes(underlay.link.index, Family::of(self.local)),
        }
    }

    /// The network's plain routes to other hosts among those by a link, which their protocol tells from everybody else's.
    fn direct_routes(&self, index: u32, routes: &[KernelRoute]) -> Vec<Entry> {
        let within =
            |dst: IpNetwork| self.network.contains(dst.ip()) && dst.prefix() >= self.network.prefix();
        let own = routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL && within(route.dst));
        let plain = |dst, gateway| Entry::Direct { index, dst, gateway };
        own.filter_map(|route| Entry::of_route(index, route, plain)).collect()
    }
}

/// Those that lead to a link, not to containers.
fn others_than_wefts(routes: &[KernelRoute]) -> Vec<&KernelRoute> {
    routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL).collect()
}
