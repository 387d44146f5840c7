//! Which of this host's addresses other hosts reach it by, and which it sends from.
//!
//! Source: pkg/ip/match.go and pkg/ip/iface.go of flannel v0.28.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, MacAddr};
use ipnetwork::IpNetwork;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{setsockopt, sockopt};
use regex_lite::Regex;
use weft_net::{Family, Lasting, Link, Netlink, NlResult, WholeAddress};

/// How long the kernel may take to list its routes or addresses.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was configured about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    pub choice: Choice,
    /// What other hosts are told in place of the interface's address; at most one of each family.
    pub public: Vec<IpAddr>,
}

/// How the interface is chosen.
#[derive(Debug, Clone)]
pub enum Choice {
    /// That of the family's default route.
    DefaultRoute,
    /// By its name, or by an address that it has.
    Interface(String),
    /// The first whose address or name matches.
    Matching(Regex),
    /// That by which an address is reached.
    CanReach(IpAddr),
}

impl PartialEq for Choice {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::DefaultRoute, Self::DefaultRoute) => true,
            (Self::Interface(one), Self::Interface(other)) => one == other,
            (Self::Matching(one), Self::Matching(other)) => one.as_str() == other.as_str(),
            (Self::CanReach(one), Self::CanReach(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Choice {}

/// One family's addresses of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// By which other hosts reach it.
    pub public: IpAddr,
    /// That an interface has and that packets to other hosts leave with.
    pub local: IpAddr,
}

impl fmt::Display for Underlay {
    /// All that was configured, so that a change of it can be told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Underlay {
    /// This host's addresses of a family.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when it has none, with what to configure.
    pub fn find(&self, v4: bool) -> Result<Found, Error> {
        let given = self.public.iter().copied().find(|ip| ip.is_ipv4() == v4);
        // An address of an interface that is given as the public one says everything.
        if let (Choice::DefaultRoute, Some(public)) = (&self.choice, given)
            && is_here(public)
        {
            return Ok(Found { public, local: public });
        }
        let family = if v4 { "IPv4" } else { "IPv6" };
        let local = self.choice.local(v4).map_err(|what| {
            let remedy = "set ipam.iface, ifaceCanReach or publicIP to what leads to the other hosts";
            Error::new(Code::InvalidConfig, format!("find this host's {family} address: {what}: {remedy}"))
        })?;
        Ok(Found { public: given.unwrap_or(local), local })
    }

    /// Whether addresses that were found before are still these, as far as can be told without a look at all
    /// interfaces, of which there is one per container. They are while an interface has them: where traffic to others goes, as into a
    /// VPN, changes nothing about how other hosts reach this one. While the way to them is down nothing is said against an address.
    #[must_use]
    pub fn is_still(&self, before: Found) -> bool {
        let v4 = before.public.is_ipv4();
        if self.public.iter().any(|ip| ip.is_ipv4() == v4 && *ip != before.public) {
            return false;
        }
        let way = match &self.choice {
            Choice::DefaultRoute if before.public == before.local => Some(anywhere(v4)),
            Choice::CanReach(target) if target.is_ipv4() == v4 => Some(*target),
            _ => None,
        };
        match way.map(source_towards) {
            None => is_here(before.local),
            Some(Err(_)) => true,
            Some(Ok(source)) if source == before.local => true,
            Some(Ok(_)) => is_here(before.local) && lasting(before.local).is_ok_and(|ip| ip == before.local),
        }
    }
}

impl Choice {
    /// The address that packets to other hosts leave with, or why there is none.
    fn local(&self, v4: bool) -> Result<IpAddr, String> {
        let towards =
            |target| source_towards(target).map_err(|error| format!("no route to {target} ({error})"));
        match self {
            // The route to everywhere, whatever halves of that lead into a VPN; where none is in the usual table, the kernel's choice.
            Self::DefaultRoute => source_by(default_link(v4)?, anywhere(v4))
                .map_err(|error| format!("no default route ({error})"))
                .and_then(lasting),
            Self::CanReach(target) if target.is_ipv4() == v4 => towards(*target).and_then(lasting),
            Self::CanReach(target) => {
                let source = towards(*target)?;
                let link = holder(source)?.ok_or_else(|| format!("{source} is on no interface"))?;
                first(v4, |other, _| other == link)?.ok_or_else(|| format!("{} has none", name_of(link)))
            }
            Self::Interface(iface) => {
                let address = iface.parse::<IpAddr>().ok();
                if let Some(address) = address.filter(|ip| ip.is_ipv4() == v4 && is_here(*ip)) {
                    return Ok(address);
                }
                // Of a label, as eth0:1 is, the kernel takes what is before the colon.
                let by_name = || if_nametoindex(iface.as_str()).ok().filter(|_| !iface.contains(':'));
                let link = address.map_or(Ok(None), holder)?.or_else(by_name);
                let found = link.map_or(Ok(None), |link| first(v4, |other, _| other == link))?;
                found.ok_or_else(|| format!("{iface} has none"))
            }
            Self::Matching(regex) => {
                let by_address = first(v4, |_, ip| regex.is_match(&ip.to_string()))?;
                let by_name = || first(v4, |link, _| regex.is_match(&name_of(link)));
                let found = by_address.map_or_else(by_name, |ip| Ok(Some(ip)))?;
                found.ok_or_else(|| format!("nothing matches {regex}"))
            }
        }
    }
}

/// Whether an interface of this host has an address. One that is its own source is; the source of a further IPv4
/// address of a subnet is the first one, so this does not tell all.
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    match source_towards(ip) {
        Ok(source) => source == ip || holder(ip).is_ok_and(|link| link.is_some()),
        Err(_) => false,
    }
}

/// The first address of a family that fits, by the number of its link and itself.
fn first(v4: bool, fits: impl Fn(u32, IpAddr) -> bool) -> Result<Option<IpAddr>, String> {
    let mut found = addresses(v4)?.into_iter().map(|found| (found.index(), found.address.ip()));
    Ok(found.find(|(link, ip)| fits(*link, *ip)).map(|(_, ip)| ip))
}

/// In place of an address that is soon another or about to go, one of the same interface that lasts: the kernel sends from a
/// temporary one where it is told to (RFC 6724, rule 7). The best one is of the same link's prefix.
fn lasting(source: IpAddr) -> Result<IpAddr, String> {
    let IpAddr::V6(source) = source else { return Ok(source) };
    let found = addresses(false)?;
    let found = found.iter().filter_map(|found| match found.address.ip() {
        IpAddr::V6(ip) => Some(Ipv6 { link: found.index(), lasting: found.lasting(), ip }),
        IpAddr::V4(_) => None,
    });
    Ok(longest(source, &found.collect::<Vec<_>>()).into())
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

/// The addresses of a family that other hosts may know; the better ones first.
fn addresses(v4: bool) -> Result<Vec<WholeAddress>, String> {
    let mut found = listed(v4)?;
    found.retain(|found| match found.address.ip() {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    found.sort_by_key(WholeAddress::lasting);
    Ok(found)
}

/// All addresses of a family.
fn listed(v4: bool) -> Result<Vec<WholeAddress>, String> {
    let family = if v4 { Family::V4 } else { Family::V6 };
    let list = || Netlink::open(Deadline::after(PATIENCE))?.addresses_of(family);
    list().map_err(|error| format!("the kernel lists no addresses ({error})"))
}

/// The number of the link that has an address.
fn holder(ip: IpAddr) -> Result<Option<u32>, String> {
    let found = listed(ip.is_ipv4())?.into_iter().find(|found| found.address.ip() == ip);
    Ok(found.map(|found| found.index()))
}

/// A link's name, as far as it is there still.
fn name_of(link: u32) -> String {
    if_indextoname(link).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The hardware address of the interface that has an address, if it has one: a loopback and most tunnels have not.
#[must_use]
pub fn hardware_of(ip: IpAddr) -> Option<MacAddr> {
    let link = holder(ip).ok()??;
    let mac = Netlink::open(Deadline::after(PATIENCE)).ok()?.link_at(link).ok()??.mac;
    mac.filter(|mac| *mac != MacAddr::from([0; 6]))
}

/// The addresses of the interface that has this one, of its family, with their prefix lengths.
///
/// # Errors
/// [`Code::Io`] when the kernel lists none.
pub(crate) fn of_interface(ip: IpAddr) -> Result<Vec<IpNetwork>, Error> {
    let all = listed(ip.is_ipv4()).map_err(|what| Error::new(Code::Io, what))?;
    let link = all.iter().find(|found| found.address.ip() == ip).map(WholeAddress::index);
    let of_link = all.iter().filter(|found| Some(found.index()) == link);
    Ok(of_link.map(|found| found.address).collect())
}

/// An address that only the default route leads to: one of those for documentation (RFC 5737, RFC 3849).
fn anywhere(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(203, 0, 113, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    }
}

/// The link of the default route.
fn default_link(v4: bool) -> Result<Option<Link>, String> {
    let look = || -> NlResult<Option<Link>> {
        let mut netlink = Netlink::open(Deadline::after(PATIENCE))?;
        let found = netlink.default_link(if v4 { Family::V4 } else { Family::V6 })?;
        found.map_or(Ok(None), |index| netlink.link_at(index))
    };
    look().map_err(|error| format!("the kernel lists no routes ({error})"))
}

fn source_towards(target: IpAddr) -> std::io::Result<IpAddr> {
    source_by(None, target)
}

/// The address that packets to `target` leave with, by this link if one is given. Nothing is sent: connect(2) of UDP only looks the
/// way up.
fn source_by(link: Option<Link>, target: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    if let Some(link) = link {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(link.name))?;
    }
    socket.connect(SocketAddr::new(target, 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(choice: Choice) -> Result<IpAddr, String> {
        let underlay = Underlay { choice, public: Vec::new() };
        underlay.find(true).map(|found| found.local).map_err(|error| error.msg)
    }

    /// The tests' runner gives them a network namespace in which nothing is up.
    #[test]
    fn a_host_without_a_way_out_is_told_what_to_configure() {
        for choice in [
            Choice::DefaultRoute,
            Choice::CanReach([192, 0, 2, 1].into()),
            Choice::Interface("nothere0".into()),
            Choice::Interface("192.0.2.7".into()),
            Choice::Matching(Regex::new("^eth").unwrap()),
        ] {
            let error = find(choice).unwrap_err();
            assert!(error.contains("set ipam.iface"), "{error}");
        }
    }

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

    #[test]
    fn addresses_that_no_interface_has_are_not_here() {
        for ip in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_here(ip.parse().unwrap()), "{ip}");
        }
    }
}
