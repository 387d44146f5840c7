//! The guard: what a container may claim to be. On the port of the bridge where its frames come in, their source MAC
//! address, source IP address and the sender in ARP and in IPv6's neighbour discovery must be the attachment's, and no
//! container plays router, DHCP server or bridge.
//!
//! The rules are in the table `bridge weft`, which sees every frame whether br_netfilter is loaded or not, and are the
//! same for all ports: they look for a port together with its addresses in sets. So a packet costs one look-up, however many
//! containers there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use cni_protocol::{Code, Error, MacAddr};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::Family;
use weft_net::nft::{Element, Set, Tuple, ends};

use crate::conf::guard::Part;
use crate::conf::{self, Asked};
use crate::plan::{Ipv6, Plan};
use crate::ruleset::{Elements, by_address};

mod rules;
#[cfg(test)]
mod tests;

pub use rules::GROUP;
use rules::{DHCP, MAC, MORE, ND_MAC, ND_MORE, ND_OWN, OWN, PORTS, QUIET, off};

/// The port of the bridge where a container's frames come in, and the MAC address that they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number of the interface: a look-up of it costs less than one of the name, and no other link ever gets it.
    pub index: u32,
    pub mac: MacAddr,
    /// Whether its bridge passes multicast to every port, so that none needs to hear who listens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

/// What an attachment is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    #[serde(flatten)]
    container: Port,
    /// Its own, and further single ones that it may use.
    addresses: Vec<IpAddr>,
    /// The first and the last of further ones.
    more: Vec<(IpAddr, IpAddr)>,
    off: BTreeSet<Part>,
    dhcp: bool,
}

impl Guard {
    /// Works out what an attachment may be. Pure.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when the gateway's address is asked for.
    pub fn new(
        parts: &BTreeSet<Part>,
        plugin: Option<&str>,
        asked: &Asked,
        plan: &Plan,
        container: Port,
    ) -> Result<Option<Self>, Error> {
        if parts.is_empty() {
            return Ok(None);
        }
        let mut off: BTreeSet<Part> = Part::ALL.into_iter().filter(|part| !parts.contains(part)).collect();
        if plan.ips.is_empty() {
            // Nobody said what its addresses are.
            off.extend([Part::Ip, Part::Arp, Part::Nd]);
        }
        let mut addresses: Vec<IpAddr> = plan.ips.iter().map(|ip| ip.address.ip()).collect();
        if matches!(plan.ipv6, Ipv6::On | Ipv6::OnAfterDetection) {
            addresses.push(link_local(container.mac).into());
        }
        let gateways: Vec<IpAddr> = plan.ips.iter().filter_map(|ip| ip.gateway).collect();
        let further = further(&asked.allowed_addresses, &gateways)?;
        let (single, more) = further.into_iter().partition::<Vec<_>, _>(|(first, last)| first == last);
        addresses.extend(single.into_iter().map(|(address, _)| address));
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Some(Self { container, more, addresses, off, dhcp: plugin == Some(conf::DHCP) }))
    }

    /// The number of the port that it knows.
    pub fn port(&self) -> u32 {
        self.container.index
    }

    /// Whether it drops reports of multicast listeners, which a bridge that snoops needs.
    pub fn is_quiet(&self) -> bool {
        self.container.quiet && self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Whether a part is on.
    pub fn has(&self, part: Part) -> bool {
        !self.off.contains(&part)
    }

    /// The elements that stand for it, for a port of this name.
    pub fn elements(&self, veth: &str) -> Elements {
        let Port { index, mac: own_mac, .. } = self.container;
        let port = || Tuple::default().ifindex(index);
        let mac = |set| Element::new(set, port().mac(own_mac), format!("{veth} . {own_mac}"));
        let alone = |set| Element::new(set, port(), veth.to_owned());
        let mut own = vec![alone(&PORTS), mac(&MAC)];
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            own.push(mac(&ND_MAC));
        }
        own.extend(self.is_quiet().then(|| alone(&QUIET)));
        let neighbours = |set: &'static Set, address: &IpAddr| address.is_ipv6().then_some(set);
        for address in &self.addresses {
            let text = format!("{veth} . {own_mac} . {address}");
            own.push(Element::new(by_address(&OWN, *address), port().mac(own_mac).address(*address), text));
            let target = |set| Element::new(set, port().address(*address), format!("{veth} . {address}"));
            own.extend(neighbours(&ND_OWN, address).map(target));
        }
        let range = |set, (first, last): (IpAddr, IpAddr)| {
            let named = || Tuple::default().ifname(veth);
            let ends = (named().address(first), named().address(last));
            Element::between(set, ends, format!("{veth} . {first}-{last}"))
        };
        for ends in &self.more {
            own.push(range(by_address(&MORE, ends.0), *ends));
            own.extend(neighbours(&ND_MORE, &ends.0).map(|set| range(set, *ends)));
        }
        if !self.has(Part::Mac) {
            let within =
                |address: &IpAddr| self.more.iter().any(|(first, last)| first <= address && address <= last);
            let alone = self.addresses.iter().filter(|address| !within(address));
            own.extend(alone.map(|address| range(by_address(&MORE, *address), (*address, *address))));
        }
        own.extend(self.off.iter().map(|part| alone(off(*part))));
        own.extend(self.dhcp.then(|| alone(&DHCP)));
        Elements { own, ..Elements::default() }
    }
}

/// The address that the kernel gives an interface by itself (RFC 4291 §2.5.6 and appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let id = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(u128::from(0xfe80_u16) << 112 | u128::from(id))
}

/// The ranges of these prefixes, without what they have in common and without the gateways': these are nobody's to
/// claim.
fn further(allowed: &[IpNetwork], gateways: &[IpAddr]) -> Result<Vec<(IpAddr, IpAddr)>, Error> {
    let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
    for prefix in allowed {
        let (first, last) = ends(*prefix);
        if first == last && gateways.contains(&first) {
            let msg = format!("args.cni.allowedAddresses has {first}, which is the gateway's: take it out");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        ranges.push((first, last));
    }
    // Of two prefixes one holds the other, or they have nothing in common.
    let all = ranges.clone();
    let holds = |(first, last): &(IpAddr, IpAddr), other: &(IpAddr, IpAddr)| {
        (first, last) != (&other.0, &other.1) && *first <= other.0 && other.1 <= *last
    };
    ranges.retain(|range| !all.iter().any(|other| holds(other, range)));
    ranges.sort_unstable();
    ranges.dedup();
    Ok(gateways.iter().fold(ranges, |ranges, gateway| {
        ranges.into_iter().flat_map(|range| without(range, *gateway)).collect()
    }))
}

/// What is left of a range without one address: up to two ranges.
fn without((first, last): (IpAddr, IpAddr), address: IpAddr) -> Vec<(IpAddr, IpAddr)> {
    if address < first || last < address || Family::of(first) != Family::of(address) {
        return vec![(first, last)];
    }
    let before = step(address, -1).filter(|_| first < address).map(|before| (first, before));
    let after = step(address, 1).filter(|_| address < last).map(|after| (after, last));
    before.into_iter().chain(after).collect()
}

/// The address next to another.
fn step(address: IpAddr, by: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => Some(IpAddr::V4(u32::from(ip).checked_add_signed(by.into())?.into())),
        IpAddr::V6(ip) => Some(IpAddr::V6(u128::from(ip).checked_add_signed(by.into())?.into())),
    }
}
