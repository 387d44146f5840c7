//! Routes: `ip route`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_protocol::Route;
use ipnetwork::IpNetwork;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::Family;
use super::error::{NetError, NlResult};
use super::socket::Netlink;
use crate::sysctl::Sysctl;

/// `RT_TABLE_MAIN` of linux/rtnetlink.h: where routes are that name no table.
pub const RT_TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL` of linux/rtnetlink.h: the kernel's own routes to its addresses.
const RT_TABLE_LOCAL: u32 = 255;

/// The protocol of the plain routes that Weft makes to other hosts (`rtm_protocol` of linux/rtnetlink.h: numbers that
/// the kernel only keeps), by which it knows them again.
pub const ROUTE_PROTOCOL: u8 = 119;
/// What the kernel says of an address to which it sends nothing.
const NO_WAY: [Errno; 4] = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];
/// The metric of IPv6 routes that are given none: `IP6_RT_PRIO_USER` of linux/ipv6_route.h.
pub(super) const IPV6_METRIC: u32 = 1024;

/// A route through one interface, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute {
    pub dst: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub table: u32,
    pub priority: u32,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    /// As in [`Route::scope`].
    pub scope: u8,
    pub protocol: u8,
    /// Of the packets that it is for; 0: all.
    pub tos: u8,
    /// Whether more was said of it than all this, as a source or several hops.
    pub has_more: bool,
}

impl KernelRoute {
    /// Whether nothing was said of it but where it leads.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let said = self.mtu.is_some() || self.advmss.is_some() || self.has_more;
        !said && self.tos == 0 && self.priority == default_priority(self.dst)
    }
}

/// What becomes of packets to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The kernel takes them in itself.
    pub is_local: bool,
    /// The link on which their receiver is looked for; `None` where a router, or several links, are on the way.
    pub link: Option<u32>,
    /// Of the route's destination, in bits.
    pub length: u8,
}

/// The metric of a route that is given none, or 0.
pub fn default_priority(dst: IpNetwork) -> u32 {
    if dst.is_ipv4() { 0 } else { IPV6_METRIC }
}

impl Netlink {
    /// `ip route prepend DST [via GW] dev INDEX [mtu …] [advmss …] [priority …] [table …] [scope …]`: where
    /// another interface has a route to the same destination with the same metric, the new one goes before it (IPv4) or beside it
    /// (IPv6), as with the reference plugins.
    pub fn add_route(&mut self, index: u32, route: &Route) -> NlResult<()> {
        let message = route_message(index, route)?;
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE)
            .map_err(|error| self.explain_ipv6(index, error))
    }

    /// `ip route show table all dev INDEX`.
    pub fn routes(&mut self, index: u32) -> NlResult<Vec<KernelRoute>> {
        let mut found = Vec::new();
        for family in Family::ALL {
            found.extend(self.routes_of(index, family, None)?);
        }
        Ok(found)
    }

    /// `ip -FAMILY route show dev INDEX`: other tables, of policy routing, decide about other packets.
    pub fn main_routes(&mut self, index: u32, family: Family) -> NlResult<Vec<KernelRoute>> {
        match self.routes_of(index, family, Some(RT_TABLE_MAIN)) {
            // The kernel makes the table with its first route.
            Err(error) if error.not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
            // Kernels before 4.20 ignore the filter.
            Ok(mut found) => {
                found.retain(|route| route.table == RT_TABLE_MAIN);
                Ok(found)
            }
        }
    }

    /// `ip -FAMILY route show default`: the link of the route that the kernel prefers.
    pub fn default_link(&mut self, family: Family) -> NlResult<Option<u32>> {
        let mut query = RouteMessage::default();
        query.header.address_family = family.into();
        query.attributes = vec![RouteAttribute::Table(RT_TABLE_MAIN)];
        let answers = match self.socket.dump(&RouteNetlinkMessage::GetRoute(query)) {
            Err(error) if error.not_found() => return Ok(None),
            answers => answers?,
        };
        let found = answers.into_iter().filter_map(|answer| {
            let index = first_hop(&answer)?;
            as_route(answer, index).map(|route| (index, route))
        });
        let by_default = found.filter(|(_, route)| route.table == RT_TABLE_MAIN && route.dst.prefix() == 0);
        Ok(by_default.min_by_key(|(_, route)| route.priority).map(|(index, _)| index))
    }

    fn routes_of(&mut self, index: u32, family: Family, table: Option<u32>) -> NlResult<Vec<KernelRoute>> {
        let mut query = RouteMessage::default();
        query.header.address_family = family.into();
        query.attributes = vec![RouteAttribute::Oif(index)];
        query.attributes.extend(table.map(RouteAttribute::Table));
        let answers = self.socket.dump(&RouteNetlinkMessage::GetRoute(query))?;
        Ok(answers.into_iter().filter_map(|answer| as_route(answer, index)).collect())
    }

    /// `ip -6 route show table all proto ra`: the settings `accept_ra` by which the kernel would drop these routes, and take no more
    /// advertisements of routers, as soon as anything of the namespace forwards IPv6. They are 1, "unless it forwards"; 2 is "also
    /// then" (ip-sysctl of the kernel's documentation, `rt6_purge_dflt_routers` of net/ipv6/route.c).
    pub fn advertised(&mut self) -> NlResult<Vec<Sysctl>> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet6;
        query.header.protocol = RouteProtocol::Ra;
        let answers = self.socket.dump(&RouteNetlinkMessage::GetRoute(query))?;
        let mut links: Vec<u32> = answers.into_iter().filter_map(advertised_by).collect();
        links.sort_unstable();
        links.dedup();
        let mut settings = Vec::new();
        for index in links {
            let Some(link) = self.link_at(index)? else { continue };
            let setting = Sysctl::ipv6_of(&link.name, "accept_ra");
            if setting.get()?.as_deref() == Some("1") {
                settings.push(setting);
            }
        }
        Ok(settings)
    }

    /// Whether the kernel takes in what is for an address.
    pub fn takes_in(&mut self, address: IpAddr) -> NlResult<bool> {
        Ok(self.way_to(address)?.is_some_and(|way| way.is_local))
    }

    /// `ip route get fibmatch ADDRESS`: where the kernel sends what is for it; `None` without a way.
    pub fn way_to(&mut self, address: IpAddr) -> NlResult<Option<Way>> {
        let (family, length) =
            if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        query.header.destination_prefix_length = length;
        query.header.flags = RouteFlags::FibMatch;
        query.attributes = vec![RouteAttribute::Destination(address.into())];
        let answers = match self.socket.request(RouteNetlinkMessage::GetRoute(query), 0) {
            // There is none at all, or a route of the types unreachable, prohibit or blackhole (`fib_props` of net/ipv4/fib_semantics.c).
            Err(error) if NO_WAY.contains(&error.errno) => return Ok(None),
            other => other?,
        };
        Ok(answers.into_iter().find_map(|answer| {
            let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else {
                return None;
            };
            let index = attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            let by_router = |attribute: &RouteAttribute| {
                matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
            };
            Some(Way {
                is_local: header.kind == RouteType::Local,
                link: index.filter(|_| !attributes.iter().any(by_router)),
                length: header.destination_prefix_length,
            })
        }))
    }
}

fn route_message(index: u32, route: &Route) -> NlResult<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .destination_prefix(route.dst.network(), route.dst.prefix())
        .map_err(|error| invalid(&error))?;
    builder = match (route.gw, route.scope) {
        (_, Some(scope)) => builder.scope(RouteScope::from(scope)),
        // What `ip route add DST dev NAME` sends; IPv6 knows no scopes.
        (None, None) if route.dst.is_ipv4() => builder.scope(RouteScope::Link),
        _ => builder,
    };
    if let Some(gateway) = route.gw {
        builder = builder.gateway(gateway).map_err(|error| invalid(&error))?;
    }
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    if let Some(table) = route.table {
        builder = builder.table_id(table);
    }
    let mut message = builder.build();
    let metrics: Vec<RouteMetric> = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)]
        .into_iter()
        .flatten()
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Ok(message)
}

/// rtnetlink refused to build the message: a next hop of another family than the destination.
fn invalid(error: &impl std::error::Error) -> NetError {
    NetError { errno: Errno::EINVAL, explanation: Some(error.to_string()) }
}

/// The link by which a route leads on, the first one of several.
fn first_hop(answer: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else { return None };
    let link = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    };
    attributes.iter().find_map(link).filter(|_| header.kind == RouteType::Unicast)
}

fn as_route(answer: RouteNetlinkMessage, index: u32) -> Option<KernelRoute> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else {
        return None;
    };
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut route = KernelRoute {
        dst: IpNetwork::new(any, header.destination_prefix_length).ok()?,
        gateway: None,
        table: u32::from(header.table),
        priority: 0,
        mtu: None,
        advmss: None,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        tos: header.tos,
        has_more: false,
    };
    let mut through = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                route.dst = IpNetwork::new(ip.into(), header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                route.dst = IpNetwork::new(ip.into(), header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(ip.into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => route.gateway = Some(ip.into()),
            RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(ip)) => {
                route.gateway = Some(ip.into());
            }
            RouteAttribute::Oif(oif) => through = Some(oif),
            // IPv6 routes to one destination through several interfaces are one route with several hops.
            RouteAttribute::MultiPath(hops) => {
                route.has_more |= hops.len() > 1;
                let hop = hops.into_iter().find(|hop| hop.interface_index == index)?;
                through = Some(index);
                route.gateway = hop.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(ip.into()),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(ip.into()),
                    _ => None,
                });
            }
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Priority(priority) => route.priority = priority,
            RouteAttribute::Metrics(metrics) => read_metrics(metrics, &mut route),
            // Every route of IPv6 has these.
            RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => {}
            _ => route.has_more = true,
        }
    }
    (through == Some(index) && route.table != RT_TABLE_LOCAL).then_some(route)
}

/// The link by which a router advertised a route. Kernels before 4.20 tell of all routes.
fn advertised_by(answer: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else { return None };
    attributes.into_iter().filter(|_| header.protocol == RouteProtocol::Ra).find_map(|attribute| {
        match attribute {
            RouteAttribute::Oif(index) => Some(index),
            _ => None,
        }
    })
}

fn read_metrics(metrics: Vec<RouteMetric>, route: &mut KernelRoute) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = Some(mtu),
            RouteMetric::Advmss(advmss) => route.advmss = Some(advmss),
            _ => route.has_more = true,
        }
    }
}
