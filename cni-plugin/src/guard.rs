//! The guard: what comes from a container's port of the bridge says to be from that container.
//!
//! Table `bridge weft` has sets of pairs of a port and what may come from it. A frame costs some look-ups in hash tables,
//! whatever else is there; one from a port that is not guarded costs one for each part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::Family;
use weft_net::nft::{Element, Set, Tuple, ends};

use crate::conf::Asked;
use crate::conf::guard::Parts;
use crate::plan::Plan;
use crate::ruleset::{Elements, by_address};

mod rules;

pub use rules::GROUP;
use rules::{ADDRESSES, ARP, IP, MAC, MACS, ND, PREFIXES, ROGUE, TARGET_PREFIXES, TARGETS};

/// What a container may say to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    parts: Parts,
    mac: [u8; 6],
    addresses: Vec<IpNetwork>,
}

impl Guard {
    /// Works out what an attachment may use; `None` where the network is not guarded. Pure.
    pub fn new(parts: Parts, ipam: Option<&str>, asked: &Asked, plan: &Plan, mac: MacAddr) -> Option<Self> {
        let parts = match plan.ips.is_empty() {
            true => parts.without_addresses(),
            false => parts,
        };
        if parts.is_none() {
            return None;
        }
        let mut addresses: Vec<IpNetwork> = plan.ips.iter().map(|ip| ip.address.ip().into()).collect();
        if plan.ips.iter().any(|ip| ip.address.is_ipv6()) {
            addresses.push(IpAddr::V6(link_local(mac)).into());
        }
        if ipam == Some("dhcp") {
            // A client without an address asks from this one (RFC 2131 §4.1).
            addresses.push(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        }
        let is_new = |prefix: &&IpNetwork| !addresses.contains(prefix);
        let more: Vec<IpNetwork> = asked.allowed_addresses.iter().filter(is_new).copied().collect();
        addresses.extend(more);
        Some(Self { parts, mac: mac.octets(), addresses })
    }

    /// The elements that stand for it, for a port of this name.
    pub fn elements(&self, port: &str) -> Elements {
        let named = || Tuple::default().ifname(port);
        let mut own = Vec::new();
        let parts = [
            (&MAC, self.parts.mac),
            (&IP, self.parts.ip),
            (&ARP, self.parts.arp),
            (&ND, self.parts.nd),
            (&ROGUE, self.parts.rogue),
        ];
        for (set, _) in parts.into_iter().filter(|(_, is_on)| *is_on) {
            own.push(Element::new(set, named(), port.to_owned()));
        }
        if self.parts.mac || self.parts.arp {
            let mac = MacAddr::from(self.mac);
            own.push(Element::new(&MACS, named().mac(mac), format!("{port} . {mac}")));
        }
        let add = |own: &mut Vec<Element>, single: &Set, wide: &Set, prefix: &IpNetwork| {
            let text = format!("{port} . {prefix}");
            let (first, last) = ends(*prefix);
            own.push(match first == last {
                true => Element::new(single, named().address(first), text),
                false => Element::between(wide, (named().address(first), named().address(last)), text),
            });
        };
        for prefix in &self.addresses {
            if self.parts.ip || self.parts.arp {
                add(
                    &mut own,
                    by_address(&ADDRESSES, prefix.ip()),
                    by_address(&PREFIXES, prefix.ip()),
                    prefix,
                );
            }
            if self.parts.nd && Family::of(prefix.ip()) == Family::V6 {
                add(&mut own, &TARGETS, &TARGET_PREFIXES, prefix);
            }
        }
        Elements { own, ..Elements::default() }
    }
}

/// The link-local address that the kernel makes of a MAC address (RFC 4291, appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
