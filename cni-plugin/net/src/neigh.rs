//! Neighbours (`ip neigh`), forwarding entries of VXLAN devices (`bridge fdb`), and routes through them.

use std::fmt;
use std::net::IpAddr;

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::Family;
use super::error::{NetError, NlResult};
use super::route::{IPV6_METRIC, KernelRoute, ROUTE_PROTOCOL};
use super::socket::Netlink;

/// The states of forwarding entries that have no end: `NUD_NOARP` and `NUD_PERMANENT` of linux/neighbour.h.
const FOR_GOOD: u16 = 0x40 | 0x80;

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// `ip neigh … ADDRESS lladdr MAC nud permanent dev INDEX`
    Neighbour { index: u32, address: IpAddr, mac: MacAddr },
    /// `bridge fdb … MAC dst ADDRESS [port … vni … via …] dev INDEX self permanent`
    Forward { index: u32, mac: MacAddr, remote: IpAddr, detour: Detour },
    /// `ip route … DST via GATEWAY dev INDEX onlink`
    Route { index: u32, dst: IpNetwork, gateway: IpAddr },
    /// `ip route … DST via GATEWAY dev INDEX proto 119`
    Direct { index: u32, dst: IpNetwork, gateway: IpAddr },
    /// `ip route … DST tos TOS via GATEWAY dev INDEX metric METRIC onlink`: as nobody of Weft makes it.
    Altered { index: u32, dst: IpNetwork, gateway: IpAddr, tos: u8, metric: u32 },
}

/// How packets of a forwarding entry leave, where that is not the device's own way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Detour {
    pub port: Option<u16>,
    pub vni: Option<u32>,
    /// The index of an interface.
    pub via: Option<u32>,
}

impl Entry {
    /// What a route of the kernel's with a gateway is: `wanted`, if it is as Weft would make that.
    #[must_use]
    pub fn of_route(
        index: u32,
        route: &KernelRoute,
        wanted: impl Fn(IpNetwork, IpAddr) -> Self,
    ) -> Option<Self> {
        let dst = route.dst;
        let gateway = route.gateway.filter(|gateway| gateway.is_ipv4() == dst.is_ipv4())?;
        Some(match route.is_plain() {
            true => wanted(dst, gateway),
            false => Self::Altered { index, dst, gateway, tos: route.tos, metric: route.priority },
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neighbour { address, mac, .. } => write!(f, "neighbour {address} lladdr {mac}"),
            Self::Forward { mac, remote, detour, .. } => {
                write!(f, "forwarding entry {mac} dst {remote}{detour}")
            }
            Self::Route { dst, gateway, .. } => write!(f, "route {dst} via {gateway} onlink"),
            Self::Direct { dst, gateway, .. } => write!(f, "route {dst} via {gateway}"),
            Self::Altered { dst, gateway, tos, metric, .. } => {
                write!(f, "route {dst} tos {tos} via {gateway} metric {metric} that somebody altered")
            }
        }
    }
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("port", self.port.map(u32::from)), ("vni", self.vni), ("via interface", self.via)];
        parts.iter().try_for_each(|(name, value)| value.map_or(Ok(()), |value| write!(f, " {name} {value}")))
    }
}

impl Netlink {
    /// Makes the entries (`ip neigh replace`, `bridge fdb replace`, `ip route replace`), as far as the kernel lets it.
    /// Returns what came of each, in order.
    ///
    /// # Errors
    /// `ETIMEDOUT` at the command's deadline.
    pub fn set_entries<'e>(
        &mut self,
        entries: impl IntoIterator<Item = &'e Entry>,
    ) -> NlResult<Vec<NlResult<()>>> {
        let entries: Vec<&Entry> = entries.into_iter().collect();
        let set = |entry: &&Entry| match entry {
            Entry::Neighbour { .. } | Entry::Forward { .. } => {
                Ok(RouteNetlinkMessage::NewNeighbour(neighbour(entry)))
            }
            _ => Ok(RouteNetlinkMessage::NewRoute(route(entry)?)),
        };
        let messages = entries.iter().map(set).collect::<NlResult<_>>()?;
        let mut outcomes = self.request_each(messages, NLM_F_CREATE | NLM_F_REPLACE)?;
        for (entry, outcome) in entries.iter().zip(&mut outcomes) {
            // In IPv6 the kernel looks first whether another device leads to the gateway (ip6_route_check_nh_onlink), and
            // finds the route there that this one is to replace.
            if let (Err(error), Entry::Route { dst, .. }) = (&outcome, entry)
                && error.errno == Errno::EINVAL
                && dst.is_ipv6()
            {
                self.remove_replaced(*dst)?;
                *outcome = self.request(set(entry)?, NLM_F_CREATE | NLM_F_REPLACE);
            }
        }
        Ok(outcomes)
    }

    /// Removes the route that one of Weft's to this destination would replace, wherever it leads.
    fn remove_replaced(&mut self, dst: IpNetwork) -> NlResult<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(dst.network(), dst.prefix())
            .map_err(|error| invalid(&error))?
            .priority(IPV6_METRIC)
            .build();
        let outcome = self.request(RouteNetlinkMessage::DelRoute(whatever_made_it(route)), 0);
        was_there(outcome).map(drop)
    }

    /// Removes them (`ip neigh del`, `bridge fdb del`, `ip route del`), as far as the kernel lets it: whether each was there, in
    /// their order.
    ///
    /// # Errors
    /// `ETIMEDOUT` at the command's deadline.
    pub fn remove_entries<'e>(
        &mut self,
        entries: impl IntoIterator<Item = &'e Entry>,
    ) -> NlResult<Vec<NlResult<bool>>> {
        let remove = |entry: &Entry| match entry {
            Entry::Neighbour { .. } | Entry::Forward { .. } => {
                Ok(RouteNetlinkMessage::DelNeighbour(neighbour(entry)))
            }
            _ => Ok(RouteNetlinkMessage::DelRoute(whatever_made_it(route(entry)?))),
        };
        let messages = entries.into_iter().map(remove).collect::<NlResult<_>>()?;
        let outcomes = self.request_each(messages, 0)?;
        Ok(outcomes.into_iter().map(was_there).collect())
    }

    /// `ip neigh show dev INDEX nud permanent` and `bridge fdb show dev INDEX`, this without `dynamic` where the device learns such
    /// entries from others' packets, and forgets them itself.
    pub fn neighbours(&mut self, index: u32, family: Family, learning: bool) -> NlResult<Vec<Entry>> {
        let mut found = Vec::new();
        for family in [family.into(), AddressFamily::Bridge] {
            let mut query = NeighbourMessage::default();
            query.header.family = family;
            if family == AddressFamily::Bridge {
                query.header.ifindex = index;
            } else {
                query.attributes = vec![NeighbourAttribute::IfIndex(index)];
            }
            let answers = self.socket.dump(&RouteNetlinkMessage::GetNeighbour(query))?;
            found.extend(answers.into_iter().filter_map(|answer| as_entry(answer, index, learning)));
        }
        Ok(found)
    }
}

fn neighbour(entry: &Entry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.state = NeighbourState::Permanent;
    let (index, address, mac) = match entry {
        Entry::Forward { index, mac, remote, detour } => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.extend(detour.port.map(NeighbourAttribute::Port));
            message.attributes.extend(detour.vni.map(NeighbourAttribute::Vni));
            message.attributes.extend(detour.via.map(NeighbourAttribute::IfIndex));
            (index, remote, mac)
        }
        Entry::Neighbour { index, address, mac } => {
            message.header.family =
                if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            (index, address, mac)
        }
        Entry::Route { .. } | Entry::Direct { .. } | Entry::Altered { .. } => return message,
    };
    message.header.ifindex = *index;
    message.attributes.extend([
        NeighbourAttribute::Destination((*address).into()),
        NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()),
    ]);
    message
}

fn route(entry: &Entry) -> NlResult<RouteMessage> {
    let (Entry::Route { index, dst, gateway }
    | Entry::Direct { index, dst, gateway }
    | Entry::Altered { index, dst, gateway, .. }) = entry
    else {
        return Err(Errno::EINVAL.into());
    };
    let route = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(*index)
        .destination_prefix(dst.network(), dst.prefix())
        .map_err(|error| invalid(&error))?
        .gateway(*gateway)
        .map_err(|error| invalid(&error))?;
    Ok(match entry {
        Entry::Direct { .. } => route.protocol(RouteProtocol::from(ROUTE_PROTOCOL)).build(),
        Entry::Altered { tos, metric, .. } => {
            let mut message = route.priority(*metric).onlink().build();
            message.header.tos = *tos;
            message
        }
        _ => route.onlink().build(),
    })
}

/// For a removal: a route of any protocol, scope and type.
fn whatever_made_it(mut route: RouteMessage) -> RouteMessage {
    route.header.protocol = RouteProtocol::Unspec;
    route.header.scope = RouteScope::NoWhere;
    route.header.kind = RouteType::Unspec;
    route
}

/// By what came of its removal.
fn was_there(outcome: NlResult<()>) -> NlResult<bool> {
    match outcome {
        Err(error) if error.not_found() => Ok(false),
        other => other.map(|()| true),
    }
}

fn invalid(error: &impl std::error::Error) -> NetError {
    NetError { errno: Errno::EINVAL, explanation: Some(error.to_string()) }
}

fn as_entry(answer: RouteNetlinkMessage, index: u32, learning: bool) -> Option<Entry> {
    let RouteNetlinkMessage::NewNeighbour(NeighbourMessage { header, attributes, .. }) = answer else {
        return None;
    };
    // `bridge fdb add … static` makes entries that are no permanent ones, and there for good all the same. Others end, but where the
    // device learns nothing somebody made them.
    let stays = u16::from(header.state) & FOR_GOOD != 0;
    let there = match header.family {
        AddressFamily::Bridge => stays || !learning,
        _ => header.state == NeighbourState::Permanent,
    };
    if header.ifindex != index || !there {
        return None;
    }
    let (mut address, mut mac, mut detour) = (None, None, Detour::default());
    for attribute in attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(ip)),
            // netlink-packet-route does not look into the addresses of forwarding entries.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice())
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes).ok().map(MacAddr::from);
            }
            // Only where they are not the device's.
            NeighbourAttribute::Port(port) => detour.port = Some(port),
            NeighbourAttribute::Vni(vni) => detour.vni = Some(vni),
            NeighbourAttribute::IfIndex(via) => detour.via = Some(via),
            _ => {}
        }
    }
    let (address, mac) = (address?, mac?);
    if header.family == AddressFamily::Bridge {
        return Some(Entry::Forward { index, mac, remote: address, detour });
    }
    Some(Entry::Neighbour { index, address, mac })
}
