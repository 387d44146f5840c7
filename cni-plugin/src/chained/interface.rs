//! An interface that another plugin made: found by what that plugin says, and what Weft can do for it.

use std::net::{IpAddr, Ipv4Addr};

use cni_protocol::{AddResult, Code, Error, IfName, Interface, IpConfig, Route};
use ipnetwork::IpNetwork;
use weft_net::{Link, Netlink, NlResult};

use crate::conf::Asked;
use crate::conf::chained::{Chained, Wish};
use crate::fault::{Fault, failed};
use crate::guard::{Guard, Port, link_local};
use crate::holdings::Holdings;
use crate::hostport::{Ports, Reach};
use crate::isolation::Isolation;
use crate::key::AttachmentKey;
use crate::plan::Plan;
use crate::pod::Pod;

/// An interface that another plugin made.
pub(super) struct OfAnother {
    plan: Plan,
    container: Link,
    /// The other end of a pair.
    pub(super) host_end: Option<Link>,
    reach: Reach,
}

impl OfAnother {
    /// Finds it by what the plugin before says, and looks whether that is so.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when the result names other interfaces of the container alone, [`Code::Conflict`] when there is none.
    pub(super) fn find(
        previous: &AddResult,
        ifname: &IfName,
        host: &mut Netlink,
        pod: &mut Pod,
    ) -> Result<Self, Error> {
        let AddResult { interfaces, ips, routes, .. } = previous;
        let sandboxed = |link: &Interface| link.sandbox.as_deref().is_some_and(|path| !path.is_empty());
        let at = interfaces.iter().position(|link| link.name == ifname.as_str() && sandboxed(link));
        // Results up to 0.2.0 name no interfaces, and Calico's the host's end alone.
        if at.is_none() && interfaces.iter().any(sandboxed) {
            let why = "put weft behind the plugin that makes it";
            let msg = format!("prevResult has no interface {ifname} with a sandbox: {why}");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let read = |error| failed(&format!("look at {ifname} and its other end"), Fault::Net(error));
        let container = pod.interface(ifname).map_err(read)?.ok_or_else(|| {
            let why = "the plugin before weft says that it made it";
            Error::new(Code::Conflict, format!("the container has no interface {ifname}: {why}"))
        })?;
        let mut host_end = None;
        for named in interfaces.iter().filter(|link| !sandboxed(link)) {
            let link = host.link(&named.name).map_err(read)?;
            host_end = host_end.or(link.filter(|link| are_pair(link, &container)));
        }
        let own = ips.iter().filter(|ip| ip.interface.is_none_or(|of| Some(of) == at)).cloned().collect();
        let (reach, addresses) = reach(host, host_end.as_ref()).map_err(read)?;
        let plan = Plan::of_another(own, routes.clone(), addresses);
        Ok(Self { plan, container, host_end, reach })
    }

    /// Looks by which interface the container sends what goes elsewhere. Results may tell of no route that plugins have made.
    pub(super) fn look_at_default_routes(&mut self, pod: &mut Pod) -> Result<(), Error> {
        let mut look = || {
            let mut links = pod.netlink.links(None)?;
            links.retain(|link| link.name != "lo");
            let (own, others): (Vec<_>, Vec<_>) =
                links.into_iter().partition(|link| link.index == self.container.index);
            Ok((pod.default_routes(&own)?, pod.default_routes(&others)?))
        };
        let (own, others) =
            look().map_err(|error| failed(&"look at the container's routes", Fault::Net(error)))?;
        let made = own.iter().map(|route| Route { priority: Some(route.priority), ..Route::to(route.dst) });
        self.plan.routes.extend(made);
        self.plan = self.plan.clone().with_metric(Some(0)).behind(&others);
        Ok(())
    }

    /// What the attachment needs in the host's rules. Pure.
    pub(super) fn holdings(&self, conf: &Chained, asked: &Asked) -> Result<Holdings, Error> {
        let (guard, isolation) = (self.guard(conf, asked)?, self.isolation(conf, asked)?);
        Ok(Holdings {
            ports: Ports::new(&conf.ports, &self.reach, asked, &self.plan, None)?,
            // Also where no rule names it yet: one may when the network's configuration is another.
            port: self.port_name().filter(|_| guard.is_some() || isolation.is_some()).map(str::to_owned),
            isolation,
            guard,
        })
    }

    /// The container's port of a bridge, by its name.
    pub(super) fn port_name(&self) -> Option<&str> {
        self.port().map(|port| port.name.as_str())
    }

    fn port(&self) -> Option<&Link> {
        self.host_end.as_ref().filter(|_| matches!(self.reach, Reach::Bridge(_)))
    }

    /// How the container is guarded, which takes a port of a bridge.
    fn guard(&self, conf: &Chained, asked: &Asked) -> Result<Option<Guard>, Error> {
        let (Some(port), Some(mac)) = (self.port(), self.container.mac) else {
            let why = "prevResult names no port of a bridge that is the other end of the container's interface, where \
                       frames could be compared (as with ptp, macvlan and ipvlan): leave it out, or use a plugin that \
                       makes a veth pair on a bridge";
            let wish = conf.guard_wish.as_ref().filter(|_| !conf.guard.is_empty());
            return wish.map_or(Ok(None), |wish| Err(wish.refused(why)));
        };
        let mut asked = asked.clone();
        // Nobody says whether the container has IPv6 at all, and whether its addresses were leased by DHCP, which a client
        // without an address asks for.
        for address in [IpAddr::V6(link_local(mac)), IpAddr::V4(Ipv4Addr::UNSPECIFIED)] {
            if !asked.allowed_addresses.contains(&address.into()) {
                asked.allowed_addresses.push(address.into());
            }
        }
        Guard::new(&conf.guard, None, &asked, &self.plan, Port { index: port.index, mac, quiet: false })
    }

    /// Who may talk with the container. What is forwarded shows only where the host is its gateway: a subnet that others
    /// route may be a whole office's, which is not to be closed to Weft's networks unless that is asked for.
    pub(super) fn isolation(&self, conf: &Chained, asked: &Asked) -> Result<Option<Isolation>, Error> {
        let is_routed = |ip: &IpConfig| {
            ip.gateway.is_some_and(|gateway| self.plan.gateways.iter().any(|own| own.ip() == gateway))
        };
        let all_routed = !self.plan.ips.is_empty() && self.plan.ips.iter().all(is_routed);
        let mut plan = self.plan.clone();
        let mut only_routed = true;
        let holds_on_bridges =
            |wish: &Wish| wish.key == "icc" || wish.key == "isolation" && !conf.isolation.published_only;
        for wish in &conf.isolation_wishes {
            if self.port().is_some() && holds_on_bridges(wish) {
                only_routed &= wish.key != "isolation";
            } else if !all_routed {
                let why = "this host is not the gateway of all the container's addresses, so that it does not see what they \
                           send: leave it out, or make the host the gateway in the plugin before (isGateway of bridge)";
                return Err(wish.refused(why));
            }
        }
        if self.port().is_some() && !conf.isolation.icc {
            refuse_rules(conf, asked)?;
        }
        if only_routed {
            plan.ips.retain(is_routed);
        }
        let bridge = match &self.reach {
            Reach::Bridge(name) => Some(name.as_str()),
            _ => None,
        };
        let mut isolation = Isolation::new(&conf.isolation, bridge, &[], &asked.allow, &plan)?;
        if let (Some(isolation), Some(port)) = (&mut isolation, self.port_name()) {
            isolation.policy.links.push(port.to_owned());
        }
        Ok(isolation)
    }

    /// The link at which traffic is limited.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] where the host has none of the container's own.
    pub(super) fn to_be_limited(&self, key: &AttachmentKey) -> Result<&Link, Error> {
        self.host_end.as_ref().ok_or_else(|| {
            let msg = format!(
                "limits on traffic are asked for, but prevResult names no link of the host whose other end is the \
                 container's {} (as with macvlan): leave the limits out, or use a plugin that makes a veth pair",
                key.ifname
            );
            Error::new(Code::InvalidConfig, msg)
        })
    }
}

/// Rules by which containers of a bridge could talk would never be asked: the containers look for each other on the bridge, as
/// their routes say, and not at the host.
fn refuse_rules(conf: &Chained, asked: &Asked) -> Result<(), Error> {
    let lists = [("allow", &conf.isolation.allow), ("args.weft.allow", &asked.allow)];
    let Some((key, _)) = lists.iter().find(|(_, rules)| !rules.is_empty()) else { return Ok(()) };
    let msg = format!(
        "{key} has rules, but containers on another plugin's bridge look for each other on the bridge and not at the host, \
         where rules could let them pass: leave it out, or let weft make the interface (without chained)"
    );
    Err(Error::new(Code::InvalidConfig, msg))
}

/// Numbers of links alone do not tell: each namespace has its own, and a macvlan has the number of the link below it.
fn are_pair(one: &Link, other: &Link) -> bool {
    let is_end = |link: &Link| matches!(link.kind.as_deref(), Some("veth" | "netkit"));
    is_end(one)
        && is_end(other)
        && one.kind == other.kind
        && (one.peer, other.peer) == (Some(other.index), Some(one.index))
}

/// By which interface the host reaches the container, and the addresses that the host has there.
fn reach(host: &mut Netlink, host_end: Option<&Link>) -> NlResult<(Reach, Vec<IpNetwork>)> {
    let Some(link) = host_end else { return Ok((Reach::Unknown, Vec::new())) };
    let (reach, at) = match link.master {
        None => (Reach::Own(link.name.clone()), link.index),
        Some(master) => {
            let bridge = host.link_at(master)?.filter(|master| master.kind.as_deref() == Some("bridge"));
            bridge.map_or((Reach::Unknown, link.index), |bridge| (Reach::Bridge(bridge.name), master))
        }
    };
    Ok((reach, host.addresses(at)?))
}
