//! Which of this host's addresses other hosts reach it by, and which it sends from.
//!
//! Source: pkg/ip/match.go and pkg/ip/iface.go of flannel v0.28.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, MacAddr};
use ipnetwork::IpNetwork;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{SockaddrStorage, setsockopt, sockopt};
use regex_lite::Regex;
use weft_net::{Family, Link, Netlink, NlResult};

/// How long the kernel may take to list its routes.
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
                let name = name_of(source)?.ok_or_else(|| format!("{source} is on no interface"))?;
                first(v4, |other, _| other == name)?.ok_or_else(|| format!("{name} has none"))
            }
            Self::Interface(iface) => {
                let address = iface.parse::<IpAddr>().ok();
                if let Some(address) = address.filter(|ip| ip.is_ipv4() == v4 && is_here(*ip)) {
                    return Ok(address);
                }
                let name = address.map_or(Ok(None), name_of)?.unwrap_or_else(|| iface.clone());
                first(v4, |other, _| other == name)?.ok_or_else(|| format!("{iface} has none"))
            }
            Self::Matching(regex) => {
                let by_address = first(v4, |_, ip| regex.is_match(&ip.to_string()))?;
                let found = by_address
                    .map_or_else(|| first(v4, |name, _| regex.is_match(name)), |ip| Ok(Some(ip)))?;
                found.ok_or_else(|| format!("nothing matches {regex}"))
            }
        }
    }
}

/// Whether an interface of this host has an address. One that is its own source is; that of a further IPv4 address of a
/// subnet is the first one, so that not all is said by it.
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    match source_towards(ip) {
        Ok(source) => source == ip || name_of(ip).is_ok_and(|name| name.is_some()),
        Err(_) => false,
    }
}

/// The first address of a family that fits.
fn first(v4: bool, fits: impl Fn(&str, IpAddr) -> bool) -> Result<Option<IpAddr>, String> {
    Ok(addresses(v4)?.into_iter().find(|(name, ip)| fits(name, *ip)).map(|(_, ip)| ip))
}

/// In place of an address that is soon another or about to go, one of the same interface that lasts: the kernel sends from a
/// temporary one where it is told to (RFC 6724, rule 7). The best one is of the same link's prefix.
fn lasting(source: IpAddr) -> Result<IpAddr, String> {
    let IpAddr::V6(source) = source else { return Ok(source) };
    let found = ipv6_addresses().map_err(|error| unlisted(&error))?;
    Ok(longest(source, &found).into())
}

/// Of the addresses of the interface that has `source`, the one to be known by.
fn longest(source: Ipv6Addr, found: &[Ipv6]) -> Ipv6Addr {
    let Some(own) = found.iter().find(|other| other.ip == source) else { return source };
    let link = |ip: Ipv6Addr| ip.to_bits() >> 64;
    let there = found.iter().filter(|other| other.name == own.name);
    // Both kinds that last are good, so the prefix goes before the difference between them; and the kernel's own choice before all.
    let best = there.min_by_key(|other| {
        let lasts = other.rank <= LASTING;
        (!lasts, link(other.ip) != link(source), !(lasts && other.ip == source), other.rank)
    });
    best.map_or(source, |best| best.ip)
}

/// The addresses of a family that other hosts may know, with their interfaces' names; the better ones first.
fn addresses(v4: bool) -> Result<Vec<(String, IpAddr)>, String> {
    let named = |found: Vec<Ipv6>| found.into_iter().map(|one| (one.name, one.ip.into())).collect();
    let told = if v4 { ipv4_addresses() } else { ipv6_addresses().map(named) };
    told.map_err(|error| unlisted(&error))
}

fn unlisted(error: &std::io::Error) -> String {
    format!("the kernel lists no addresses ({error})")
}

fn ipv4_addresses() -> std::io::Result<Vec<(String, IpAddr)>> {
    let of_family = getifaddrs()?.filter_map(|interface| {
        let ip = interface.address?.as_sockaddr_in()?.ip();
        (!ip.is_loopback() && !ip.is_link_local()).then(|| (interface.interface_name, ip.into()))
    });
    Ok(of_family.collect())
}

/// The highest [`Ipv6::rank`] of an address that stays as long as its interface is where it is.
const LASTING: u8 = 1;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ipv6 {
    /// The better the lower.
    rank: u8,
    name: String,
    ip: Ipv6Addr,
}

/// The better ones first. From a file, as getifaddrs(3) does not tell what kind of address one is.
fn ipv6_addresses() -> std::io::Result<Vec<Ipv6>> {
    let text = match std::fs::read_to_string("/proc/thread-self/net/if_inet6") {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found: Vec<_> = text.lines().filter_map(Ipv6::of_line).collect();
    found.sort_by_key(|one| one.rank);
    Ok(found)
}

impl Ipv6 {
    /// A line of `/proc/net/if_inet6`: address, interface, prefix length, scope and flags in hexadecimal, and the
    /// interface's name (if6_seq_show in the kernel's net/ipv6/addrconf.c).
    fn of_line(line: &str) -> Option<Self> {
        // IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT
        const FLAGS: [u8; 4] = [0x01, 0x08, 0x20, 0x80];
        let mut fields = line.split_whitespace();
        let ip = Ipv6Addr::from(u128::from_str_radix(fields.next()?, 16).ok()?);
        let flags = u8::from_str_radix(fields.nth(3)?, 16).ok()?;
        let [temporary, failed, deprecated, permanent] = FLAGS.map(|flag| flags & flag != 0);
        let rank = if failed || deprecated {
            3
        } else if temporary {
            2
        } else {
            u8::from(!permanent)
        };
        let name = fields.next()?.to_owned();
        (!ip.is_loopback() && !ip.is_unicast_link_local()).then_some(Self { rank, name, ip })
    }
}

fn name_of(ip: IpAddr) -> Result<Option<String>, String> {
    Ok(addresses(ip.is_ipv4())?.into_iter().find(|(_, other)| *other == ip).map(|(name, _)| name))
}

/// The hardware address of the interface that has an address, if it has one: a loopback and most tunnels have not.
#[must_use]
pub fn hardware_of(ip: IpAddr) -> Option<MacAddr> {
    let name = name_of(ip).ok()??;
    let mut links = getifaddrs().ok()?.filter(|interface| interface.interface_name == name);
    let bytes = links.find_map(|interface| interface.address?.as_link_addr()?.addr())?;
    (bytes != [0; 6]).then(|| MacAddr::from(bytes))
}

/// The addresses of the interface that has this one, of its family, with their prefix lengths.
///
/// # Errors
/// [`Code::Io`] when the kernel lists none.
pub(crate) fn of_interface(ip: IpAddr) -> Result<Vec<IpNetwork>, Error> {
    let address = |interface: &InterfaceAddress| {
        let ip = |address: &SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (_, v6) => v6.map(|v6| IpAddr::V6(v6.ip())),
        };
        let found = IpNetwork::with_netmask(ip(&interface.address?)?, ip(&interface.netmask?)?).ok()?;
        // Of IPv4 it is the address' label, which begins with the name.
        let name = interface.interface_name.split(':').next()?.to_owned();
        Some((name, found))
    };
    let listed = getifaddrs().map_err(|errno| Error::new(Code::Io, unlisted(&errno.into())))?;
    let all: Vec<_> = listed.filter_map(|interface| address(&interface)).collect();
    let name = all.iter().find(|(_, own)| own.ip() == ip).map(|(name, _)| name.as_str());
    let same = |own: IpNetwork| own.is_ipv4() == ip.is_ipv4();
    Ok(all
        .iter()
        .filter(|(other, own)| Some(other.as_str()) == name && same(*own))
        .map(|(_, own)| *own)
        .collect())
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
    fn lasting_addresses_come_first() {
        let line = |address: &str, flags: &str| {
            let name = "eth0";
            Ipv6::of_line(&format!("{address} 02 40 00 {flags}     {name}"))
        };
        let address = "fd090001000000000000000000000002";
        let ip: Ipv6Addr = "fd09:1::2".parse().unwrap();
        for (flags, rank) in [("80", 0), ("00", 1), ("01", 2), ("20", 3), ("a0", 3), ("88", 3)] {
            assert_eq!(line(address, flags), Some(Ipv6 { rank, name: "eth0".into(), ip }), "{flags}");
        }
        assert_eq!(line("fe800000000000000000000000000002", "80"), None);
        assert_eq!(line("nonsense", "80"), None);
    }

    #[test]
    fn the_interfaces_lasting_address_of_the_same_prefix_is_taken() {
        let listed = |rank, name: &str, ip: &str| Ipv6 { rank, name: name.into(), ip: ip.parse().unwrap() };
        let found = [
            listed(0, "eth0", "fd00::1"),
            listed(0, "eth1", "fd01::1"),
            listed(1, "eth1", "2001:db8:1::1"),
            listed(1, "eth1", "2001:db8:1::2"),
            listed(2, "eth1", "2001:db8:1::7"),
            listed(2, "eth1", "2001:db8:3::7"),
            listed(3, "eth1", "2001:db8:1::8"),
            listed(2, "eth2", "2001:db8:2::7"),
            listed(3, "eth2", "2001:db8:2::8"),
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
