//! What the kernel tells of this host's addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, MacAddr};
use ipnetwork::IpNetwork;
use nix::net::if_::if_indextoname;
use weft_net::{Lasting, Link, Netlink, NlResult, WholeAddress};

/// How long the kernel may take to list its routes or addresses.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of this host's interfaces, of both families, as they were when it was asked.
#[derive(Debug)]
pub struct Here(Vec<WholeAddress>);

impl Here {
    /// Asks for them, once for all that is to be known of them.
    ///
    /// # Errors
    /// [`Code::Io`] when the kernel lists none.
    pub fn look() -> Result<Self, Error> {
        let list = || Netlink::open(Deadline::after(PATIENCE))?.addresses_of(None);
        let failed = |error| Error::new(Code::Io, format!("list this host's addresses: {error}: try again"));
        list().map(Self).map_err(failed)
    }

    /// Those of a family that other hosts may know; the better ones first.
    fn addresses(&self, v4: bool) -> Vec<&WholeAddress> {
        let may_be_known = |found: &&WholeAddress| match found.address.ip() {
            IpAddr::V4(ip) => v4 && !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !v4 && !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let mut found: Vec<&WholeAddress> = self.0.iter().filter(may_be_known).collect();
        found.sort_by_key(|found| found.lasting());
        found
    }

    /// The first one of a family that fits, by the number of its link and itself.
    pub(super) fn first(&self, v4: bool, fits: impl Fn(u32, IpAddr) -> bool) -> Option<IpAddr> {
        let mut found = self.addresses(v4).into_iter().map(|found| (found.index(), found.address.ip()));
        found.find(|(link, ip)| fits(*link, *ip)).map(|(_, ip)| ip)
    }

    /// In place of an address that is soon another or about to go, one of the same interface that lasts: the kernel sends from a
    /// temporary one where it is told to (RFC 6724, rule 7). The best one is of the same link's prefix.
    pub(super) fn lasting(&self, source: IpAddr) -> IpAddr {
        let IpAddr::V6(source) = source else { return source };
        let found = self.addresses(false);
        let found = found.iter().filter_map(|found| match found.address.ip() {
            IpAddr::V6(ip) => Some(Ipv6 { link: found.index(), lasting: found.lasting(), ip }),
            IpAddr::V4(_) => None,
        });
        longest(source, &found.collect::<Vec<_>>()).into()
    }

    /// The number of the link that has an address.
    pub(crate) fn link_of(&self, ip: IpAddr) -> Option<u32> {
        self.0.iter().find(|found| found.address.ip() == ip).map(WholeAddress::index)
    }

    /// The addresses of the interface that has this one, of its family, with their prefix lengths.
    pub(crate) fn beside(&self, ip: IpAddr) -> impl Iterator<Item = IpNetwork> {
        let link = self.link_of(ip);
        let of_link = self.0.iter().filter(move |found| Some(found.index()) == link);
        of_link.map(|found| found.address).filter(move |address| address.is_ipv4() == ip.is_ipv4())
    }

    /// The hardware address of the interface that has an address, if it has one: a loopback and most tunnels have not.
    pub(crate) fn hardware_of(&self, ip: IpAddr) -> Option<MacAddr> {
        let link = self.link_of(ip)?;
        let mac = Netlink::open(Deadline::after(PATIENCE)).ok()?.link_at(link).ok()??.mac;
        mac.filter(|mac| *mac != MacAddr::from([0; 6]))
    }

    /// The numbers of the links that have a hardware address, as they are now.
    pub(crate) fn links_with(mac: &str) -> Vec<u32> {
        let list = || Netlink::open(Deadline::after(PATIENCE))?.links(None);
        let has = |link: &Link| link.mac.is_some_and(|other| other.to_string() == mac);
        list().unwrap_or_default().iter().filter(|link| has(link)).map(|link| link.index).collect()
    }

    /// The numbers of the links that have the addresses of these now: of a port of a bridge or a bond that one, of others themselves.
    /// Without those that are gone.
    ///
    /// # Errors
    /// [`Code::Io`] when the kernel does not tell.
    pub(crate) fn bearers(links: Vec<u32>) -> Result<Vec<u32>, Error> {
        let find = || -> NlResult<BTreeSet<u32>> {
            let mut netlink = Netlink::open(Deadline::after(PATIENCE))?;
            let found = links.into_iter().map(|link| bearer(&mut netlink, link));
            found.filter_map(Result::transpose).collect()
        };
        let failed = |error| Error::new(Code::Io, format!("look at this host's links: {error}: try again"));
        find().map(|found| found.into_iter().collect()).map_err(failed)
    }
}

fn bearer(netlink: &mut Netlink, link: u32) -> NlResult<Option<u32>> {
    let Some(mut link) = netlink.link_at(link)? else { return Ok(None) };
    while let Some(master) = link.master {
        let Some(master) = netlink.link_at(master)? else { break };
        match master.kind.as_deref() {
            // What belongs to it keeps its addresses.
            Some("vrf") => break,
            // Any other port of the switch may have them.
            Some("openvswitch") => return Ok(None),
            _ => link = master,
        }
    }
    Ok(Some(link.index))
}

/// A link's name, as far as it is there still.
pub(super) fn name_of(link: u32) -> String {
    if_indextoname(link).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

struct Ipv6 {
    link: u32,
    lasting: Lasting,
    ip: Ipv6Addr,
}

/// Of the addresses of the interface that has `source`, the one to be known by.
fn longest(source: Ipv6Addr, found: &[Ipv6]) -> Ipv6Addr {
    let Some(own) = found.iter().find(|other| other.ip == source) else { return source };
    let prefix = |ip: Ipv6Addr| ip.to_bits() >> 64;
    let there = found.iter().filter(|other| other.link == own.link);
    // Both kinds that last are good, so the prefix goes before the difference between them; and the kernel's own choice before all.
    let best = there.min_by_key(|other| {
        let lasts = other.lasting <= Lasting::Advertised;
        (!lasts, prefix(other.ip) != prefix(source), !(lasts && other.ip == source), other.lasting)
    });
    best.map_or(source, |best| best.ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_lasting_address_of_the_same_prefix_is_taken() {
        use Lasting::{Advertised, Assigned, Leaving, Temporary};
        let listed = |lasting, link, ip: &str| Ipv6 { lasting, link, ip: ip.parse().unwrap() };
        let found = [
            listed(Assigned, 0, "fd00::1"),
            listed(Assigned, 1, "fd01::1"),
            listed(Advertised, 1, "2001:db8:1::1"),
            listed(Advertised, 1, "2001:db8:1::2"),
            listed(Temporary, 1, "2001:db8:1::7"),
            listed(Temporary, 1, "2001:db8:3::7"),
            listed(Leaving, 1, "2001:db8:1::8"),
            listed(Temporary, 2, "2001:db8:2::7"),
            listed(Leaving, 2, "2001:db8:2::8"),
        ];
        for (source, expected) in [
            ("fd01::1", "fd01::1"),
            ("2001:db8:1::2", "2001:db8:1::2"),
            ("2001:db8:1::7", "2001:db8:1::1"),
            ("2001:db8:1::8", "2001:db8:1::1"),
            ("2001:db8:3::7", "fd01::1"),
            // There is no other.
            ("2001:db8:2::7", "2001:db8:2::7"),
            ("2001:db8:2::8", "2001:db8:2::7"),
            ("2001:db8:4::1", "2001:db8:4::1"),
        ] {
            let expected: Ipv6Addr = expected.parse().unwrap();
            assert_eq!(longest(source.parse().unwrap(), &found), expected, "{source}");
        }
    }
}
