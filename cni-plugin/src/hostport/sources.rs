//! Who may use a container's ports, where not everybody may.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_net::nft::{Element, Set, Tuple, ends};

use super::claim::Claim;
use super::rules::{LIMITED, LIMITED_PORTS, NEIGHBOURS, SOURCES};
use crate::ruleset::by_address;

/// The elements that stand for it; none where everybody may.
pub(super) fn elements(claims: &[Claim], sources: &[IpNetwork], neighbours: &[IpNetwork]) -> Vec<Element> {
    if sources.is_empty() {
        return Vec::new();
    }
    let limited = |to: &IpAddr| {
        let limited = Element::new(by_address(&LIMITED, *to), Tuple::default().address(*to), to.to_string());
        std::iter::once(limited)
            .chain(from(&SOURCES, *to, sources))
            .chain(from(&NEIGHBOURS, *to, neighbours))
            .collect::<Vec<_>>()
    };
    // A record of a version that did not limit requests to the container itself names no neighbours.
    let ports = if neighbours.is_empty() { Vec::new() } else { ports(claims) };
    targets(claims).iter().flat_map(limited).chain(ports).collect()
}

/// The container's addresses to which ports of the host lead: one of a family.
pub(super) fn targets(claims: &[Claim]) -> Vec<IpAddr> {
    let mut targets: Vec<IpAddr> = claims.iter().map(|claim| claim.to).collect();
    targets.dedup();
    targets
}

/// A container with each of the prefixes of its family.
fn from<'a>(
    sets: &'static [Set; 2],
    to: IpAddr,
    prefixes: &'a [IpNetwork],
) -> impl Iterator<Item = Element> + use<'a> {
    prefixes.iter().filter(move |prefix| prefix.is_ipv4() == to.is_ipv4()).map(move |prefix| {
        let key = |end| Tuple::default().address(to).address(end);
        let (first, last) = ends(*prefix);
        Element::between(by_address(sets, to), (key(first), key(last)), format!("{to} from {prefix}"))
    })
}

/// The container's ports to which ports of the host lead, each once: ranges that met would be refused.
fn ports(claims: &[Claim]) -> Vec<Element> {
    let range =
        |claim: &Claim| (claim.to, claim.protocol as u8, claim.port, claim.port + (claim.last - claim.first));
    let mut ranges: Vec<(IpAddr, u8, u16, u16)> = claims.iter().map(range).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let goes_on = (next.0, next.1) == (kept.0, kept.1) && next.2 <= kept.3.saturating_add(1);
        if goes_on {
            kept.3 = kept.3.max(next.3);
        }
        goes_on
    });
    ranges
        .into_iter()
        .map(|(to, protocol, first, last)| {
            let key = |port| Tuple::default().address(to).protocol(protocol).port(port);
            let text = format!("ports {first}-{last} of {to}");
            Element::between(by_address(&LIMITED_PORTS, to), (key(first), key(last)), text)
        })
        .collect()
}
