//! Ports of the host that a container claims, and the elements that stand for them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weft_net::Family;
use weft_net::nft::{Element, Tuple, ends};

use super::rules::{ANY, AT, RANGES};
use crate::conf::ports::{Mapping, Protocol};
use crate::plan::everything;
use crate::ruleset::by_address;

/// At least so many ports in a row are one element. The kernel copies the map of ranges at every change, so a
/// few single ports are cheaper.
const RANGE_MIN: u16 = 8;

/// Ports of the host that go to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// The container's address.
    pub(super) to: IpAddr,
    /// The host's address; `None` is every one of the family.
    pub(super) at: Option<IpAddr>,
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
    /// The container's port for the first; a range keeps its numbers.
    pub(super) port: u16,
}

impl Claim {
    pub(super) fn is_range(&self) -> bool {
        self.first != self.last
    }

    pub(super) fn is_at_localhost(&self) -> bool {
        self.to.is_ipv4() && self.at.is_none_or(|at| at.is_loopback())
    }

    pub(super) fn text(&self) -> String {
        let ports = if self.is_range() {
            format!("ports {}-{}", self.first, self.last)
        } else {
            format!("port {}", self.first)
        };
        match self.at {
            Some(at) => format!("{} {ports} of the host's address {at}", self.protocol),
            None => format!("{} {ports} of the host", self.protocol),
        }
    }

    pub(super) fn element(&self) -> Element {
        let protocol = self.protocol as u8;
        let target = Tuple::default().address(self.to);
        if self.is_range() {
            let (low, high) = self.at.map_or_else(|| ends(everything(Family::of(self.to))), |at| (at, at));
            let key = |at, port| Tuple::default().address(at).protocol(protocol).port(port);
            let keys = (key(low, self.first), key(high, self.last));
            return Element::between(by_address(&RANGES, self.to), keys, self.text()).with(target);
        }
        let target = target.port(self.port);
        match self.at {
            Some(at) => {
                let key = Tuple::default().address(at).protocol(protocol).port(self.first);
                Element::new(by_address(&AT, self.to), key, self.text()).with(target)
            }
            None => self.any_element().with(target),
        }
    }

    fn any_element(&self) -> Element {
        let key = Tuple::default().protocol(self.protocol as u8).port(self.first);
        Element::new(by_address(&ANY, self.to), key, self.text())
    }

    /// The other elements that would have a single port: of every address or of one, by itself or in a range. `in_use` are the
    /// host's addresses of which one alone may have it.
    pub(super) fn rivals(&self, in_use: &[IpAddr]) -> Vec<Element> {
        let key = |at| Tuple::default().address(at).protocol(self.protocol as u8).port(self.first);
        let of = |sets, at| Element::new(by_address(sets, self.to), key(at), self.text());
        match self.at {
            Some(at) => vec![self.any_element(), of(&RANGES, at)],
            None => {
                let any = ends(everything(Family::of(self.to))).0;
                let at_one = in_use.iter().flat_map(|at| [of(&AT, *at), of(&RANGES, *at)]);
                std::iter::once(of(&RANGES, any)).chain(at_one).collect()
            }
        }
    }
}

/// The container's address, where an element of one of the maps is about UDP.
pub(super) fn udp_target(element: &Element) -> Option<IpAddr> {
    let family =
        [&ANY, &AT, &RANGES].into_iter().find_map(|sets| sets.iter().position(|set| *set == element.set))?;
    // The key ends with protocol and port, in four bytes each.
    let key = element.key.bytes();
    let is_udp = key.get(key.len().checked_sub(8)?) == Some(&(Protocol::Udp as u8));
    let data = element.data.as_ref().filter(|_| is_udp)?.bytes();
    match family {
        0 => data.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        _ => data.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

/// Whether a claim and an element of one of the maps have a port in common.
pub(super) fn meets(claim: &Claim, element: &Element) -> bool {
    let bytes = |tuple: &Tuple| tuple.bytes().to_vec();
    let (first, last) = (bytes(&element.key), bytes(element.end.as_ref().unwrap_or(&element.key)));
    // The key ends with protocol and port, in four bytes each; an address stands before them in two maps.
    let split = |bytes: &[u8]| {
        let (address, rest) = bytes.split_at(bytes.len().saturating_sub(8));
        let port = rest.get(4..6).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
        (address.to_vec(), rest.first().copied(), port.unwrap_or_default())
    };
    let ((low, protocol, from), (high, _, to)) = (split(&first), split(&last));
    let at = claim.at.map(|at| Tuple::default().address(at));
    let address_meets =
        low.is_empty() || at.is_none_or(|at| low.as_slice() <= at.bytes() && at.bytes() <= high.as_slice());
    address_meets && protocol == Some(claim.protocol as u8) && from <= claim.last && claim.first <= to
}

/// Adds a mapping to the claims, which are in the order of addresses, protocols and ports.
pub(super) fn claim(claims: &mut Vec<Claim>, mapping: &Mapping, to: IpAddr) {
    let at = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let port = mapping.host_port;
    let kept = mapping.container_port == port;
    if let Some(last) = claims.last_mut()
        && kept
        && (last.to, last.at, last.protocol) == (to, at, mapping.protocol)
        && last.port == last.first
        && last.last.checked_add(1) == Some(port)
    {
        last.last = port;
        return;
    }
    // The same port of every address may come twice, as "" and as 0.0.0.0.
    let new =
        Claim { to, at, protocol: mapping.protocol, first: port, last: port, port: mapping.container_port };
    if !claims.contains(&new) {
        claims.push(new);
    }
}

/// Ranges that are too short to be an element as single ports.
pub(super) fn single_ports(claims: Vec<Claim>) -> Vec<Claim> {
    let mut singles = Vec::with_capacity(claims.len());
    for claim in claims {
        if !claim.is_range() || claim.last - claim.first + 1 >= RANGE_MIN {
            singles.push(claim);
        } else {
            singles.extend((claim.first..=claim.last).map(|port| Claim {
                first: port,
                last: port,
                port,
                ..claim
            }));
        }
    }
    singles
}
