//! CHECK: whether every promise of the result and of the configuration still holds.
//!
//! What plugins later in the chain added is none of Weft's business, so more addresses and routes than
//! promised are right; what they changed stands in the previous result.

mod promised;
mod rules;

use std::path::Path;

use cni_protocol::{Call, CheckArgs, Code, Error, Interface, IpConfig, MacAddr, Outcome, Route, Verb};

use crate::conf::shaping::Shaping;
use crate::conf::tuning::Tuning;
use crate::conf::{Asked, Gateway, Network};
use crate::fault::{Fault, failed};
use crate::guard::{Guard, Port};
use crate::holdings::{self, Holdings};
use crate::ipam;
use crate::isolation::Policy;
use crate::key::{AttachmentKey, group};
use crate::masquerade;
use crate::overlay::{self, Exit, Overlay};
use crate::plan::{Ipv6, Plan, metric};
use crate::pod::{Pod, open_host};
use crate::record;
use crate::shaping;
use crate::tuning;
use promised::Promised;
pub use rules::rules;
use weft_net::nft::Nft;
use weft_net::sysctl::Sysctl;
use weft_net::{Family, KernelRoute, Link, Netlink, NlResult, RT_TABLE_MAIN, default_priority};

/// Checks the attachment.
///
/// # Errors
/// [`Code::CheckFailed`]: the first promise that does not hold and what was found instead, the others in
/// the details.
pub fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let call = &args.call;
    let mut network = Network::parse(&call.network, &call.conf)?;
    let overlay = overlay::on_file(&network)?;
    if let Some(overlay) = &overlay {
        network.all_hosts.clone_from(&overlay.networks);
    }
    let key = AttachmentKey::new(&call.network, &args.container_id, &args.ifname);
    let promised = Promised::read(args, &key, network.bridge.as_str())?;
    let asked = Asked::parse(&call.conf)?;
    network.mtu = asked.tuning.mtu.or(network.mtu);
    let plan = planned(&mut network, &key, &promised, &args.prev_result.routes)?;
    let mut host = open_host(call.deadline)?;
    let damage = record::damage(&network.state_dir, &key)?;
    let ended = masquerade::ending::ended(&network.state_dir, &key.network);
    let (mut holdings, limits, may_be_masqueraded) = match record::up_to_date(&network.state_dir, &key)? {
        // The record has what was asked for when the container was attached.
        Some(content) => {
            let is_masqueraded = content.is_masqueraded(ended);
            (content.holdings, content.shaping, is_masqueraded)
        }
        None => {
            let port = find_port(&mut host, &network, &key, promised.mac(&key))?;
            (Holdings::new(&network, &asked, &plan, port)?, network.shaping.or(&asked.shaping), true)
        }
    };
    if holdings.isolation.is_some() {
        let bridge = Some(network.bridge.as_str());
        let now = Policy::new(&network.isolation, bridge, &network.all_hosts, &plan)?;
        renew_policy(call, &network.state_dir, &mut holdings, now)?;
    }
    let mut checker = Checker {
        host,
        pod: Pod::open(&args.netns, call.deadline)?,
        network,
        key,
        promised,
        plan,
        holdings,
        limits,
        may_be_masqueraded,
        tuning: asked.tuning,
        exits: Vec::new(),
        found: damage.into_iter().collect(),
    };
    if let Some(overlay) = &overlay {
        let looked = checker.check_way(overlay);
        looked.map_err(|error| failed(&"look at the way to other hosts", error.into()))?;
    }
    checker.run(args).map_err(|fault| failed(&"check the attachment", fault))?;
    verdict(checker.found)?;
    if let Some(plugin) = &checker.network.ipam {
        ipam::forward(Verb::Check, plugin, call, &[])?;
    }
    Ok(Outcome::Done)
}

/// What ADD has planned, by its result. Of the network's routes only those that the result does not contradict are left.
fn planned(
    network: &mut Network,
    key: &AttachmentKey,
    promised: &Promised,
    told: &[Route],
) -> Result<Plan, Error> {
    // Where the bridge is the gateway, ADD's result names it with every address: one without is a later plugin's.
    let own = |ip: &&IpConfig| ip.gateway.is_some() || network.gateway == Gateway::None;
    let own: Vec<IpConfig> = promised.ips.iter().filter(own).cloned().collect();
    let of_interface = network.metrics.get(key.ifname.as_str()).copied();
    // The result says what the container's other interfaces made of its metric.
    let is_told = |own: &Route| told.iter().any(|told| (told.dst, told.table) == (own.dst, own.table));
    network.routes.retain(|own| own.priority.is_some() || !is_told(own));
    Ok(Plan::new(network, &own, told)?.with_metric(of_interface))
}

/// What the network has may be from a newer configuration than the record. All that it has in the rules is added, where other containers
/// came with other subnets.
pub fn renew_policy(
    call: &Call,
    state_dir: &Path,
    holdings: &mut Holdings,
    now: Option<Policy>,
) -> Result<(), Error> {
    let (Some(isolation), Some(now)) = (&mut holdings.isolation, now) else { return Ok(()) };
    isolation.policy = now;
    let mut nft =
        Nft::open(call.deadline).map_err(|error| failed(&"open a netfilter socket", error.into()))?;
    holdings::network::complete(&mut nft, state_dir, &call.network, &mut isolation.policy)
        .map_err(|fault| failed(&"look at what the network has in the ruleset", fault))
}

/// The container's port of the bridge, of which nothing is on record.
fn find_port(
    host: &mut Netlink,
    network: &Network,
    key: &AttachmentKey,
    mac: MacAddr,
) -> Result<Port, Error> {
    let mut link = |name: &str| host.link(name).map_err(|e| failed(&format!("look at {name}"), e.into()));
    let index = link(&key.host_veth())?.map_or(0, |veth| veth.index);
    let snoops = link(network.bridge.as_str())?.is_some_and(|bridge| bridge.snoops);
    Ok(Port { index, mac, quiet: !snoops })
}

/// The answer to what was found.
pub fn verdict(mut found: Vec<String>) -> Result<(), Error> {
    if found.is_empty() {
        return Ok(());
    }
    let msg = format!("{}: DEL and ADD the container again to repair it", found.remove(0));
    Err(found.into_iter().fold(Error::new(Code::CheckFailed, msg), Error::detail))
}

struct Checker {
    host: Netlink,
    pod: Pod,
    network: Network,
    key: AttachmentKey,
    promised: Promised,
    plan: Plan,
    holdings: Holdings,
    limits: Shaping,
    may_be_masqueraded: bool,
    tuning: Tuning,
    /// To other hosts.
    exits: Vec<Exit>,
    found: Vec<String>,
}

impl Checker {
    fn run(&mut self, args: &CheckArgs) -> Result<(), Fault> {
        let bridge = self.check_bridge()?;
        let veth = self.check_host_end(bridge.as_ref())?;
        self.check_container_end(veth.as_ref())?;
        self.check_shared(args)
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.found.push(what());
        }
    }

    fn check_bridge(&mut self) -> Result<Option<Link>, Fault> {
        let name = self.network.bridge.clone();
        let Some(bridge) = self.host.link(name.as_str())? else {
            self.found.push(format!("bridge {name} is gone"));
            return Ok(None);
        };
        let kind = bridge.kind.clone().unwrap_or_default();
        self.require(kind == "bridge", || format!("link {name} is no bridge but of kind {kind}"));
        self.require(bridge.up, || format!("bridge {name} is down"));
        let promiscuous = bridge.promiscuous || !self.network.promiscuous;
        self.require(promiscuous, || format!("bridge {name} is not promiscuous"));
        let mac = self.promised.bridge_mac.clone().filter(|mac| !has_mac(&bridge, mac));
        let mtu = self.promised.bridge_mtu.filter(|mtu| *mtu != bridge.mtu);
        if mac.is_some() || mtu.is_some() {
            let ports = self.host.links(Some(bridge.index))?;
            // A MAC address that was never set is a port's, and changes when ports come and go.
            if let Some(mac) = mac.filter(|_| !ports.iter().any(|port| port.mac == bridge.mac)) {
                self.found.push(other_mac(&bridge, &mac));
            }
            if let Some(mtu) = mtu.filter(|_| !ports.iter().any(|port| port.mtu == bridge.mtu)) {
                self.found.push(format!("bridge {name} has MTU {} instead of {mtu}", bridge.mtu));
            }
        }
        let is_deaf = bridge.snoops && self.holdings.guard.as_ref().is_some_and(Guard::is_quiet);
        self.require(!is_deaf, || {
            format!(
                "bridge {name} has multicast snooping on by now, and the guard keeps from it who listens: attach the container anew"
            )
        });
        let addresses = self.host.addresses(bridge.index)?;
        for gateway in self.plan.gateways.clone() {
            self.require(addresses.contains(&gateway), || {
                format!("bridge {name} has not the gateway address {gateway} but {}", list(&addresses))
            });
        }
        Ok(Some(bridge))
    }

    fn check_host_end(&mut self, bridge: Option<&Link>) -> Result<Option<Link>, Fault> {
        let name = self.key.host_veth();
        let Some(veth) = self.host.link(&name)? else {
            self.found.push(format!("the host's end of the veth, {name}, is gone"));
            return Ok(None);
        };
        self.require(veth.up, || format!("{name} is down"));
        if let Some(bridge) = bridge.filter(|bridge| veth.master != Some(bridge.index)) {
            let master = match veth.master {
                Some(index) => self.host.link_at(index)?.map_or_else(|| "gone".to_owned(), |link| link.name),
                None => "none".to_owned(),
            };
            self.found.push(format!("{name} is no port of bridge {}, its master is {master}", bridge.name));
        }
        let wanted = self.network.port(self.holdings.ports.is_some());
        self.require(veth.port.is_none_or(|port| port == wanted), || {
            format!("bridge port {name} has {} instead of {wanted}", veth.port.unwrap_or_default())
        });
        // Every port is disabled without a carrier, as long as the container's end is down.
        self.require(!(veth.running && veth.port_disabled), || {
            format!("bridge port {name} is disabled, so nothing passes it")
        });
        let group = group(&self.key.network);
        self.require(veth.group == group, || {
            format!("{name} is in group {} instead of {group}: ip link set {name} group {group}", veth.group)
        });
        let guarded = self.holdings.guard.as_ref().map_or(veth.index, Guard::port);
        self.require(guarded == veth.index, || format!("{name} was made anew: the guard knows another port"));
        if let Some(promised) = self.promised.host.clone() {
            self.check_link(&promised, &veth);
        }
        let found = shaping::differences(&mut self.host, &self.key, &veth, &self.limits)?;
        self.found.extend(found);
        Ok(Some(veth))
    }

    fn check_container_end(&mut self, host: Option<&Link>) -> Result<(), Fault> {
        let has_loopback = self.pod.netlink.link("lo")?.is_some_and(|lo| lo.up);
        self.require(has_loopback, || "lo is down in the container".to_owned());
        let ifname = self.key.ifname.clone();
        let Some(link) = self.pod.interface(&ifname)? else {
            self.found.push(format!("{ifname} is gone from the container"));
            return Ok(());
        };
        self.require(link.up || self.network.interface_down, || format!("{ifname} is down in the container"));
        if let Some(host) = host {
            let paired = link.peer == Some(host.index) && host.peer == Some(link.index);
            self.require(paired, || format!("{ifname} is not the other end of {}", host.name));
            self.require(self.promised.container.mtu.is_some() || link.mtu == host.mtu, || {
                format!("{ifname} has MTU {}, but {} has {}", link.mtu, host.name, host.mtu)
            });
        }
        let promised = self.promised.container.clone();
        self.check_link(&promised, &link);
        let addresses = self.pod.netlink.addresses(link.index)?;
        for IpConfig { address, .. } in self.promised.ips.clone() {
            self.require(addresses.contains(&address), || {
                format!("{ifname} has not the address {address} but {}", list(&addresses))
            });
        }
        if self.plan.ipv6 != Ipv6::Untouched
            && let Some(difference) = self.pod.ipv6_difference(&ifname, self.plan.ipv6, &self.tuning)?
        {
            self.found.push(difference);
        }
        let found = tuning::differences(&self.pod, &ifname, &link, &self.tuning)?;
        self.found.extend(found);
        self.check_routes(link.index)
    }

    /// MAC and MTU, as far as the previous result promised them.
    fn check_link(&mut self, promised: &Interface, link: &Link) {
        if let Some(mac) = &promised.mac {
            self.require(has_mac(link, mac), || other_mac(link, mac));
        }
        if let Some(mtu) = promised.mtu.or(self.network.mtu) {
            self.require(link.mtu == mtu, || format!("{} has MTU {} instead of {mtu}", link.name, link.mtu));
        }
    }

    fn check_routes(&mut self, index: u32) -> Result<(), Fault> {
        let routes = self.pod.netlink.routes(index)?;
        for wanted in self.plan.kernel_routes() {
            let table = wanted.table.unwrap_or(RT_TABLE_MAIN);
            let same = routes.iter().filter(|route| route.dst == wanted.dst && route.table == table);
            let different = same.map(|route| route_differences(route, &wanted, self.promised.has_metrics));
            let nearest = different.min_by_key(Vec::len).unwrap_or_else(|| vec!["is gone".to_owned()]);
            if !nearest.is_empty() {
                let via = wanted.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                let place = wanted.table.map(|table| format!(" in table {table}")).unwrap_or_default();
                self.found.push(format!("the route {}{via}{place} {}", wanted.dst, nearest.join(", ")));
            }
        }
        Ok(())
    }

    fn check_way(&mut self, overlay: &Overlay) -> NlResult<()> {
        self.found.extend(overlay::differences(&mut self.host, overlay)?.found);
        self.exits = overlay::exits(&mut self.host, overlay)?;
        Ok(())
    }

    fn check_shared(&mut self, args: &CheckArgs) -> Result<(), Fault> {
        for family in self.plan.forwarding.clone() {
            let key = Sysctl::forwarding(family);
            let value = key.get()?;
            self.require(value.as_deref() == Some("1"), || format!("{key} is {value:?} instead of 1"));
            let exits = self.exits.iter().filter(|exit| Family::of(exit.network.ip()) == family);
            // In IPv6 packets pass all the same, and another's interface is its owner's affair.
            let exits = exits.filter(|exit| exit.is_own || family == Family::V4);
            let links = exits.map(|exit| exit.interface.as_str()).chain([self.network.bridge.as_str()]);
            for setting in links.map(|link| Sysctl::forwarding_at(family, link)) {
                if let Some(value) = setting.get()?.filter(|value| value != "1") {
                    self.found.push(format!("{setting} is {value} instead of 1"));
                }
            }
        }
        let name = &self.network.name;
        if !self.network.masquerade && !self.may_be_masqueraded {
            let mut nft = Nft::open(args.call.deadline)?;
            let is_left = masquerade::ending::left(&mut nft, &self.network.state_dir, name)?.is_some();
            self.require(!is_left, || "ipMasq is false, but the network is masqueraded still".to_owned());
        } else if !self.plan.masquerade.is_nothing() {
            let mut nft = Nft::open(args.call.deadline)?;
            if let Err(difference) = masquerade::check(&mut nft, name, &self.plan.masquerade) {
                self.found.push(format!("masquerade: {difference}"));
            }
        }
        let state_dir = &self.network.state_dir;
        let found = rules(state_dir, &self.key, &mut self.holdings, args.call.deadline)?;
        self.found.extend(found);
        Ok(())
    }
}

fn has_mac(link: &Link, promised: &str) -> bool {
    link.mac.is_some_and(|mac| mac.to_string().eq_ignore_ascii_case(promised))
}

fn other_mac(link: &Link, promised: &str) -> String {
    format!("{} has MAC {} instead of {promised}", link.name, or_none(link.mac))
}

/// How a route differs from the one that was promised.
fn route_differences(route: &KernelRoute, wanted: &Route, has_metrics: bool) -> Vec<String> {
    let default = has_metrics.then(|| default_priority(route.dst));
    let priority = metric(wanted);
    // IPv6 knows no scopes.
    let scope = wanted.scope.filter(|_| route.dst.is_ipv4());
    let pairs = [
        ("metric", Some(route.priority), priority.or(default)),
        ("mtu", route.mtu, wanted.mtu),
        ("advmss", route.advmss, wanted.advmss),
        ("scope", Some(route.scope.into()), scope.map(u32::from)),
    ];
    let different = pairs.into_iter().filter(|(_, has, wanted)| wanted.is_some() && has != wanted);
    let text = |(name, has, wanted): (&str, Option<u32>, Option<u32>)| {
        format!("has {name} {} instead of {}", or_none(has), or_none(wanted))
    };
    let gateway = (route.gateway != wanted.gw)
        .then(|| format!("has gateway {} instead of {}", or_none(route.gateway), or_none(wanted.gw)));
    gateway.into_iter().chain(different.map(text)).collect()
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn list(addresses: &[ipnetwork::IpNetwork]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
