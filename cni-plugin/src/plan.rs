//! What one attachment needs, worked out before anything is touched. Pure: no clock, no kernel, no files.

use std::net::IpAddr;

use cni_protocol::{Code, Error, IpConfig, Route};
use ipnetwork::IpNetwork;

use weft_net::{Family, KernelRoute, RT_TABLE_MAIN, default_priority};

use crate::conf::{Gateway, Network};
use crate::masquerade::Masquerade;

/// The smallest MTU that IPv6 works over (RFC 8200 §5).
pub(crate) const IPV6_MTU_MIN: u32 = 1280;
/// `RT_SCOPE_LINK` of linux/rtnetlink.h.
const SCOPE_LINK: u8 = 253;

/// The addresses and routes of an attachment, and what the host must have for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The container's addresses with the gateways, as the result reports them.
    pub ips: Vec<IpConfig>,
    /// The container's routes as the result reports them: what the IPAM plugin gave, then default routes.
    pub routes: Vec<Route>,
    /// What the bridge answers to.
    pub gateways: Vec<IpNetwork>,
    pub masquerade: Masquerade,
    /// The families that the host forwards.
    pub forwarding: Vec<Family>,
    pub ipv6: Ipv6,
    /// Whether the container reaches its own subnets by the gateway too.
    pub by_gateway: bool,
    /// The families whose traffic to elsewhere the container sends by another interface.
    pub second: Vec<Family>,
}

/// What the container's interface does with IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// Nothing was said of addresses: whoever uses the interface decides.
    Untouched,
    /// The network has no IPv6: none on the interface, so that none of its chatter floods the bridge.
    Off,
    /// Addresses can be used at once.
    On,
    /// Addresses can be used once nobody else on the link claimed them.
    OnAfterDetection,
}

impl Plan {
    /// Works out an attachment with these addresses and routes; without addresses it is one of layer 2 only.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] for a gateway of the other family or a prefix without room for one, an MTU
    /// too small for IPv6.
    pub fn new(network: &Network, ips: &[IpConfig], routes: &[Route]) -> Result<Self, Error> {
        let ips = ips.iter().map(|ip| with_gateway(network, ip)).collect::<Result<Vec<_>, _>>()?;
        if let Some(mtu) = network.mtu.filter(|mtu| *mtu < IPV6_MTU_MIN)
            && let Some(ip) = ips.iter().find(|ip| ip.address.is_ipv6())
        {
            return Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "mtu is {mtu}, but the address {} needs {IPV6_MTU_MIN} at least (RFC 8200)",
                    ip.address
                ),
            ));
        }
        let has_gateway = network.gateway >= Gateway::Address;
        let mut plan = Self {
            routes: all_routes(network, &ips, routes),
            gateways: Vec::new(),
            masquerade: Masquerade { prefixes: Vec::new(), exempt: network.no_masquerade.clone() },
            forwarding: Vec::new(),
            ipv6: ipv6(network, &ips),
            by_gateway: has_gateway && !network.isolation.icc,
            second: Vec::new(),
            ips,
        };
        for ip in &plan.ips {
            let family = Family::of(ip.address.ip());
            if has_gateway && !plan.forwarding.contains(&family) {
                plan.forwarding.push(family);
            }
            if let Some(address) = ip.gateway.and_then(|gateway| bridge_address(gateway, ip.address))
                && has_gateway
                && !plan.gateways.contains(&address)
            {
                plan.gateways.push(address);
            }
            if network.masquerade && !plan.masquerade.prefixes.contains(&prefix(ip.address)) {
                plan.masquerade.prefixes.push(prefix(ip.address));
            }
        }
        if network.masquerade && !network.all_hosts.is_empty() {
            plan.masquerade.prefixes.clone_from(&network.all_hosts);
        }
        Ok(plan)
    }

    /// An attachment that another plugin made, as far as it says, and the addresses that the host has on the way to it.
    #[must_use]
    pub fn of_another(ips: Vec<IpConfig>, routes: Vec<Route>, gateways: Vec<IpNetwork>) -> Self {
        Self {
            ips,
            routes,
            gateways,
            masquerade: Masquerade { prefixes: Vec::new(), exempt: Vec::new() },
            forwarding: Vec::new(),
            ipv6: Ipv6::Untouched,
            by_gateway: false,
            second: Vec::new(),
        }
    }

    /// Gives this metric to routes of which nobody said how they compare with others.
    #[must_use]
    pub fn with_metric(mut self, metric: Option<u32>) -> Self {
        for route in &mut self.routes {
            route.priority = route.priority.or(metric);
        }
        self
    }

    /// Puts default routes of which nobody said how they compare with others behind those that the container has by other
    /// interfaces: the first one stays the one that is used.
    #[must_use]
    pub fn behind(mut self, others: &[KernelRoute]) -> Self {
        for family in Family::ALL {
            let metrics = others.iter().filter(|other| Family::of(other.dst.ip()) == family);
            let metrics: Vec<u32> = metrics.map(|other| other.priority).collect();
            let (Some(first), Some(last)) = (metrics.iter().min(), metrics.iter().max()) else { continue };
            let defaults = self.routes.iter_mut().filter(|route| is_default(route, family));
            let own = defaults.filter_map(|route| {
                route.priority.get_or_insert(last.saturating_add(1));
                metric(route)
            });
            if own.min().is_some_and(|own| own >= *first) {
                self.second.push(family);
            }
        }
        self
    }

    /// The routes as the kernel is to have them: next hops filled in, and of two to the same destination
    /// only the first, as the reference plugins do.
    pub fn kernel_routes(&self) -> Vec<Route> {
        let mut kept: Vec<Route> = if self.by_gateway { self.subnet_routes() } else { Vec::new() };
        for route in &self.routes {
            let same = |other: &Route| {
                (prefix(other.dst), other.table, other.priority)
                    == (prefix(route.dst), route.table, route.priority)
            };
            if !kept.iter().any(same) {
                let gw = route.gw.or_else(|| self.gateway_of(Family::of(route.dst.ip()), route.scope));
                kept.push(Route { dst: prefix(route.dst), gw, ..route.clone() });
            }
        }
        kept
    }

    /// Whether the container answers everybody by this interface.
    pub fn answers_everybody(&self, family: Family) -> bool {
        !self.second.contains(&family) && self.routes.iter().any(|route| is_default(route, family))
    }

    /// The routes in place of the kernel's own, which would have the container ask for its neighbours on the link.
    fn subnet_routes(&self) -> Vec<Route> {
        let routes = self.ips.iter().filter_map(|ip| {
            let gateway = ip.gateway?;
            let to_gateway = Route { scope: Some(SCOPE_LINK), ..Route::to(gateway.into()) };
            Some([to_gateway, Route { gw: Some(gateway), ..Route::to(prefix(ip.address)) }])
        });
        routes.flatten().collect()
    }

    /// The next hop for a route without one: the gateway of its family, unless the route's scope says that
    /// its destination is on the link.
    fn gateway_of(&self, family: Family, scope: Option<u8>) -> Option<IpAddr> {
        if scope.is_some_and(|scope| scope >= SCOPE_LINK) {
            return None;
        }
        self.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| Family::of(*gateway) == family)
    }
}

fn is_default(route: &Route, family: Family) -> bool {
    route.dst.prefix() == 0
        && Family::of(route.dst.ip()) == family
        && route.table.is_none_or(|table| table == RT_TABLE_MAIN)
}

/// The metric that the kernel gives a route, if one is asked for: it takes 0 for none.
pub fn metric(route: &Route) -> Option<u32> {
    let given = |priority| if priority == 0 { default_priority(route.dst) } else { priority };
    route.priority.map(given)
}

fn ipv6(network: &Network, ips: &[IpConfig]) -> Ipv6 {
    if ips.is_empty() {
        Ipv6::Untouched
    } else if !ips.iter().any(|ip| ip.address.is_ipv6()) {
        Ipv6::Off
    } else if network.duplicate_detection {
        Ipv6::OnAfterDetection
    } else {
        Ipv6::On
    }
}

/// The address with its gateway: the one that the IPAM plugin named, else the first of the subnet where
/// the bridge is to be one.
fn with_gateway(network: &Network, ip: &IpConfig) -> Result<IpConfig, Error> {
    let refuse = |why: String| {
        Err(Error::new(Code::InvalidConfig, why)
            .detail("the IPAM plugin gave this; correct the gateway in the ipam section"))
    };
    let gateway = match ip.gateway {
        Some(gateway) if Family::of(gateway) != Family::of(ip.address.ip()) => {
            return refuse(format!("gateway {gateway} and address {} are of different families", ip.address));
        }
        None if network.gateway >= Gateway::Address => match first_host(ip.address) {
            Some(first) if first == ip.address.ip() => {
                return refuse(format!(
                    "address {} is the one that the bridge would have as gateway, as none was named",
                    ip.address
                ));
            }
            None => return refuse(format!("subnet {} has no room for a gateway", prefix(ip.address))),
            first => first,
        },
        named => named,
    };
    if gateway == Some(ip.address.ip()) {
        return refuse(format!("address {} is the gateway's own", ip.address));
    }
    Ok(IpConfig { address: ip.address, gateway, interface: None })
}

/// The first address after the network's own, where one is.
pub fn first_host(address: IpNetwork) -> Option<IpAddr> {
    let first = match address.network() {
        IpAddr::V4(network) => IpAddr::V4(u32::from(network).checked_add(1)?.into()),
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).checked_add(1)?.into()),
    };
    prefix(address).contains(first).then_some(first)
}

/// The gateway with the subnet's prefix length, as the bridge has it. A gateway outside of the subnet is
/// somebody else's machine.
fn bridge_address(gateway: IpAddr, address: IpNetwork) -> Option<IpNetwork> {
    prefix(address).contains(gateway).then(|| IpNetwork::new(gateway, address.prefix()).ok())?
}

/// The network's own routes go before those of the IPAM plugin to the same destination.
fn all_routes(network: &Network, ips: &[IpConfig], given: &[Route]) -> Vec<Route> {
    let key = |route: &Route| (prefix(route.dst), route.table, route.priority);
    let is_new = |route: &&Route| !network.routes.iter().any(|own| key(own) == key(route));
    let mut routes: Vec<Route> = given.iter().filter(is_new).cloned().collect();
    routes.extend_from_slice(&network.routes);
    if network.gateway == Gateway::DefaultRoute {
        for gateway in ips.iter().filter_map(|ip| ip.gateway) {
            let is_default =
                |route: &Route| route.dst.prefix() == 0 && Family::of(route.dst.ip()) == Family::of(gateway);
            if !routes.iter().any(is_default) {
                routes.push(Route { gw: Some(gateway), ..Route::to(everything(Family::of(gateway))) });
            }
        }
    }
    routes
}

/// Every address of a family, to which a default route leads.
pub fn everything(family: Family) -> IpNetwork {
    let any: IpAddr = match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).unwrap_or_else(|_| IpNetwork::from(any))
}

/// The address's subnet.
pub fn prefix(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

#[cfg(test)]
mod tests;
