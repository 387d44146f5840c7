//! Which of this host's addresses other hosts reach it by, and which it sends from.
//!
//! Source: pkg/ip/match.go and pkg/ip/iface.go of flannel v0.28.

mod here;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use cni_protocol::{Code, Deadline, Error};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use regex_lite::Regex;
use weft_net::{Family, Link, Netlink, NlResult};

pub use here::Here;
use here::{PATIENCE, name_of};

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
    pub fn find(&self, v4: bool, here: &Here) -> Result<Found, Error> {
        let given = self.given(v4);
        // An address of an interface that is given as the public one says everything.
        if let (Choice::DefaultRoute, Some(public)) = (&self.choice, given)
            && is_here(public)
        {
            return Ok(Found { public, local: public });
        }
        let family = if v4 { "IPv4" } else { "IPv6" };
        let found = self.choice.local(v4, here).and_then(|local| match local {
            // The kernel sends by one where the link has no other, and no other host reaches this one by it.
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Err(format!("{ip} is for one link alone")),
            _ => Ok(local),
        });
        let local = found.map_err(|what| {
            let remedy = "set ipam.iface, ifaceCanReach or publicIP to what leads to the other hosts";
            Error::new(Code::InvalidConfig, format!("find this host's {family} address: {what}: {remedy}"))
        })?;
        Ok(Found { public: given.unwrap_or(local), local })
    }

    /// The same on the link by which this host is known, as far as that may be any: then where the default route leads is no more
    /// asked than while it has its address.
    pub(crate) fn find_on(&self, link: u32, v4: bool, here: &Here) -> Option<Found> {
        let local = match self.choice {
            Choice::DefaultRoute => here.first(v4, |other, _| other == link)?,
            _ => return None,
        };
        Some(Found { public: self.given(v4).unwrap_or(local), local })
    }

    fn given(&self, v4: bool) -> Option<IpAddr> {
        self.public.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// Whether addresses that were found before are still these, as far as can be told without a look at all
    /// interfaces, of which there is one per container. They are while an interface has them: where traffic to others goes, as into a
    /// VPN, changes nothing about how other hosts reach this one. While the way to them is down nothing is said against an address.
    #[must_use]
    pub fn is_still(&self, before: Found) -> bool {
        let v4 = before.public.is_ipv4();
        if self.given(v4).is_some_and(|public| public != before.public) {
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
            Some(Ok(_)) => {
                is_here(before.local)
                    && (v4 || Here::look().is_ok_and(|here| here.lasting(before.local) == before.local))
            }
        }
    }
}

impl Choice {
    /// The address that packets to other hosts leave with, or why there is none.
    fn local(&self, v4: bool, here: &Here) -> Result<IpAddr, String> {
        let towards =
            |target| source_towards(target).map_err(|error| format!("no route to {target} ({error})"));
        match self {
            // The route to everywhere, whatever halves of that lead into a VPN; where none is in the usual table, the kernel's choice.
            Self::DefaultRoute => {
                let link = default_link(v4)?;
                // As flannel has it, also where the kernel would send by another one: it finds its record again.
                let index = link.as_ref().filter(|_| v4).map(|link| link.index);
                let first = index.and_then(|index| here.first(v4, |other, _| other == index));
                let by_kernel = || source_by(link, anywhere(v4)).map(|source| here.lasting(source));
                first.map_or_else(by_kernel, Ok).map_err(|error| format!("no default route ({error})"))
            }
            Self::CanReach(target) if target.is_ipv4() == v4 => {
                towards(*target).map(|source| here.lasting(source))
            }
            Self::CanReach(target) => {
                let source = towards(*target)?;
                let link = here.link_of(source).ok_or_else(|| format!("{source} is on no interface"))?;
                here.first(v4, |other, _| other == link).ok_or_else(|| format!("{} has none", name_of(link)))
            }
            Self::Interface(iface) => {
                let address = iface.parse::<IpAddr>().ok();
                if let Some(address) = address.filter(|ip| ip.is_ipv4() == v4 && is_here(*ip)) {
                    return Ok(address);
                }
                // Of a label, as eth0:1 is, the kernel takes what is before the colon.
                let by_name = || if_nametoindex(iface.as_str()).ok().filter(|_| !iface.contains(':'));
                let link = address.and_then(|ip| here.link_of(ip)).or_else(by_name);
                let found = link.and_then(|link| here.first(v4, |other, _| other == link));
                found.ok_or_else(|| format!("{iface} has none"))
            }
            Self::Matching(regex) => {
                let by_address = here.first(v4, |_, ip| regex.is_match(&ip.to_string()));
                let by_name = || here.first(v4, |link, _| regex.is_match(&name_of(link)));
                by_address.or_else(by_name).ok_or_else(|| format!("nothing matches {regex}"))
            }
        }
    }
}

/// Whether an interface of this host has an address. One that is its own source is; the source of a further IPv4
/// address of a subnet is the first one, so this does not tell all.
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    match source_towards(ip) {
        Ok(source) => source == ip || Here::look().is_ok_and(|here| here.link_of(ip).is_some()),
        Err(_) => false,
    }
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
        let found = Here::look().and_then(|here| underlay.find(true, &here));
        found.map(|found| found.local).map_err(|error| error.msg)
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
    fn addresses_that_no_interface_has_are_not_here() {
        for ip in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_here(ip.parse().unwrap()), "{ip}");
        }
    }
}
