//! Addresses: `ip address`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::{NetError, NlResult};
use super::family::Family;
use super::socket::Netlink;

impl Netlink {
    /// `ip address add ADDRESS dev INDEX [nodad]`. With `nodad` an IPv6 address can be used at once.
    pub fn add_address(&mut self, index: u32, address: IpNetwork, nodad: bool) -> NlResult<()> {
        self.add_address_with(index, address, nodad, AddressFlags::empty())
    }

    /// `ip address add ADDRESS dev INDEX noprefixroute [nodad]`: without the kernel's own route to the address's subnet.
    pub fn add_address_without_route(&mut self, index: u32, address: IpNetwork, nodad: bool) -> NlResult<()> {
        self.add_address_with(index, address, nodad, AddressFlags::Noprefixroute)
    }

    fn add_address_with(
        &mut self,
        index: u32,
        address: IpNetwork,
        nodad: bool,
        mut flags: AddressFlags,
    ) -> NlResult<()> {
        let mut message = address_message(index, address);
        if let IpNetwork::V4(v4) = address
            && v4.prefix() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        if nodad && address.is_ipv6() {
            flags |= AddressFlags::Nodad;
        }
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|error| self.explain_ipv6(index, error))
    }

    /// Says which setting keeps a link from taking anything of IPv6.
    pub(super) fn explain_ipv6(&mut self, index: u32, error: NetError) -> NetError {
        if error.errno != Errno::EACCES {
            return error;
        }
        match self.link_at(index) {
            Ok(Some(link)) => NetError::without_ipv6(&link.name),
            _ => error,
        }
    }

    /// `ip address del ADDRESS dev INDEX`. An address that is not there is no error.
    pub fn delete_address(&mut self, index: u32, address: IpNetwork) -> NlResult<()> {
        match self.request(RouteNetlinkMessage::DelAddress(address_message(index, address)), 0) {
            Err(error) if error.not_found() => Ok(()),
            other => other,
        }
    }

    /// `ip address show dev INDEX`, without the link-local addresses that the kernel makes by itself.
    pub fn addresses(&mut self, index: u32) -> NlResult<Vec<IpNetwork>> {
        Ok(self.whole_addresses(index)?.into_iter().map(|whole| whole.address).collect())
    }

    /// The same with all that belongs to them; of one subnet's IPv4 addresses the primary one first.
    pub fn whole_addresses(&mut self, index: u32) -> NlResult<Vec<WholeAddress>> {
        let mut query = AddressMessage::default();
        query.header.index = index;
        let answers = self.socket.dump(&RouteNetlinkMessage::GetAddress(query))?;
        let found = answers.into_iter().filter_map(WholeAddress::told);
        Ok(found.filter(|whole| whole.index() == index && !whole.is_of_link()).collect())
    }

    /// `ip [-4|-6] address show`: all addresses, of one family or of both, also the link-local ones.
    pub fn addresses_of(&mut self, family: Option<Family>) -> NlResult<Vec<WholeAddress>> {
        let mut query = AddressMessage::default();
        query.header.family = family.map_or(AddressFamily::Unspec, Family::into);
        let answers = self.socket.dump(&RouteNetlinkMessage::GetAddress(query))?;
        // A kernel without IPv6 answers with those of IPv4.
        let is_asked =
            |whole: &WholeAddress| family.is_none_or(|family| Family::of(whole.address.ip()) == family);
        Ok(answers.into_iter().filter_map(WholeAddress::told).filter(is_asked).collect())
    }

    /// Takes an address away, so that [`Netlink::put_back`] gives the link the same again; whether it was there.
    pub fn take_away(&mut self, whole: &WholeAddress) -> NlResult<bool> {
        match self.request(RouteNetlinkMessage::DelAddress(whole.message.clone()), 0) {
            Err(error) if error.not_found() => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// `ip route show table all src ADDRESS`: notes the routes that would not outlast the address as they are, so that they come back
    /// with it. The kernel's own do that by themselves.
    pub fn note_routes(&mut self, whole: &mut WholeAddress) -> NlResult<()> {
        let mut query = RouteMessage::default();
        query.header.address_family = whole.message.header.family;
        let answers = self.socket.dump(&RouteNetlinkMessage::GetRoute(query))?;
        let source = RouteAttribute::PrefSource(whole.address.ip().into());
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        let is_meant = |route: &RouteMessage| {
            route.header.protocol != RouteProtocol::Kernel && route.attributes.contains(&source)
        };
        whole.routes = routes.filter(is_meant).map(as_to_be_made).collect();
        Ok(())
    }

    /// Gives a link an address back, with label, lifetimes, flags and all, and with the routes that were noted, as far as the kernel
    /// takes them. It is no error that it is there, or that the link is gone.
    pub fn put_back(&mut self, whole: &WholeAddress) -> NlResult<()> {
        let message = RouteNetlinkMessage::NewAddress(whole.message.clone());
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.not_found() => return Ok(()),
            Err(error) if error.exists() => {}
            other => other?,
        }
        for route in &whole.routes {
            // An IPv6 route is there still, without its source.
            let flag = if whole.address.is_ipv4() { NLM_F_EXCL } else { NLM_F_REPLACE };
            match self.request(RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | flag) {
                Err(error) if !error.exists() => {
                    log::warn!("a route with the source {} cannot be put back: {error}", whole.address.ip());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `ip address show to ADDRESS`: the index of the link that has an address, and the address with its prefix length.
    pub fn holder_of(&mut self, ip: IpAddr) -> NlResult<Option<(u32, IpNetwork)>> {
        let mut found = self.addresses_of(Some(Family::of(ip)))?.into_iter();
        let holder = found.find(|whole| whole.address.ip() == ip && !whole.is_of_link());
        Ok(holder.map(|whole| (whole.index(), whole.address)))
    }

    /// `ip address show`: every address of the network namespace.
    pub fn all_addresses(&mut self) -> NlResult<Vec<IpAddr>> {
        let answers = self.socket.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message.attributes),
            _ => None,
        });
        let local = |attributes: Vec<AddressAttribute>| {
            let address = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            };
            attributes.iter().filter_map(address).collect::<Vec<_>>()
        };
        Ok(addresses.flat_map(local).collect())
    }

    /// `ip -6 address show dev INDEX scope global`: how far duplicate address detection is.
    pub fn detection(&mut self, index: u32) -> NlResult<Vec<(IpAddr, Detection)>> {
        let mut query = AddressMessage::default();
        query.header.index = index;
        query.header.family = AddressFamily::Inet6;
        let answers = self.socket.dump(&RouteNetlinkMessage::GetAddress(query))?;
        let found = answers.into_iter().filter_map(WholeAddress::told);
        let of_link = found.filter(|whole| whole.index() == index && !whole.is_of_link());
        Ok(of_link.map(|whole| (whole.address.ip(), whole.detection())).collect())
    }
}

/// An address of a link with all that was said of it when it was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeAddress {
    pub address: IpNetwork,
    message: AddressMessage,
    routes: Vec<RouteMessage>,
}

/// How long an IPv6 address stays: the better the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lasting {
    /// Somebody gave it to the link.
    Assigned,
    /// Made from a router's advertisement (RFC 4862 §5.5.3).
    Advertised,
    /// Made to be another one soon (RFC 8981).
    Temporary,
    /// Deprecated, or found to be another's.
    Leaving,
}

impl WholeAddress {
    fn told(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
        // IFA_LOCAL is the interface's own address; IFA_ADDRESS is the peer's on a point-to-point link.
        let mut found: Option<IpAddr> = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => found = Some(*ip),
                AddressAttribute::Address(ip) => found = found.or(Some(*ip)),
                _ => {}
            }
        }
        let address = IpNetwork::new(found?, message.header.prefix_len).ok()?;
        Some(Self { address, message, routes: Vec::new() })
    }

    /// The number of the link that has it.
    pub fn index(&self) -> u32 {
        self.message.header.index
    }

    fn is_of_link(&self) -> bool {
        self.message.header.scope == AddressScope::Link
    }

    /// How long it stays; of an IPv4 address nothing is said.
    pub fn lasting(&self) -> Lasting {
        let has = |flag| self.message.header.flags.contains(flag);
        if self.address.is_ipv4() {
            Lasting::Assigned
        } else if has(AddressHeaderFlags::Dadfailed) || has(AddressHeaderFlags::Deprecated) {
            Lasting::Leaving
        } else if has(AddressHeaderFlags::Secondary) {
            // IFA_F_TEMPORARY is the same bit.
            Lasting::Temporary
        } else if has(AddressHeaderFlags::Permanent) {
            Lasting::Assigned
        } else {
            Lasting::Advertised
        }
    }

    fn detection(&self) -> Detection {
        let has = |flag| self.message.header.flags.contains(flag);
        if has(AddressHeaderFlags::Dadfailed) {
            Detection::Failed
        } else if has(AddressHeaderFlags::Tentative) {
            Detection::Running
        } else {
            Detection::Passed
        }
    }

    /// Whether it goes with another one of its subnet (IPv4).
    pub fn is_secondary(&self) -> bool {
        self.address.is_ipv4() && self.message.header.flags.contains(AddressHeaderFlags::Secondary)
    }
}

/// A route that the kernel told, without what it says of its state.
fn as_to_be_made(mut route: RouteMessage) -> RouteMessage {
    use RouteAttribute::{CacheInfo, Gateway, MultiPath, NhId, Oif, Via};
    route.header.flags &= RouteFlags::Onlink;
    // A nexthop object says where to; the kernel refuses to be told it twice.
    let has_object = route.attributes.iter().any(|attribute| matches!(attribute, NhId(_)));
    route.attributes.retain(|attribute| match attribute {
        CacheInfo(_) => false,
        Gateway(_) | Oif(_) | Via(_) | MultiPath(_) => !has_object,
        _ => true,
    });
    for attribute in &mut route.attributes {
        if let MultiPath(hops) = attribute {
            hops.iter_mut().for_each(|hop| hop.flags &= RouteNextHopFlags::Onlink);
        }
    }
    route
}

/// How far duplicate address detection of an address is (RFC 4862 §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    Running,
    Passed,
    Failed,
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    message
}
