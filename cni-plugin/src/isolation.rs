//! Isolation: who may talk with a network's containers.
//!
//! What a network says is kept as pairs of its subnets with others, by which one rule serves all networks. What is
//! allowed between its containers where `icc` is off is kept as elements of the two containers' addresses, so a packet's
//! cost is the same whatever else is allowed. Such containers cannot reach each other on the bridge, but by the host,
//! where conntrack knows answers.

use std::net::IpAddr;
use std::path::Path;

use cni_protocol::{Code, Error, NetworkName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::nft::{Element, Nft, Set, Tuple, ends};
use weft_net::{Family, NetError, NlResult};

use crate::conf::isolation::{Allow, IsolationPolicy, reduced};
use crate::conf::names::Names;
use crate::key::{AttachmentKey, group};
use crate::plan::{Plan, everything, prefix};
use crate::record::Content;
use crate::ruleset::{Elements, Group, by_address, network};

mod allow;
pub mod index;
mod rules;

pub use allow::{Grant, forget, holds_with_others, notes};
use allow::{Member, current, grants, held};
use rules::{
    BRIDGE_CLOSED, BRIDGE_INSIDE, BRIDGE_NETWORKS, BRIDGES, CLOSED, HOSTLESS, HOSTLESS_PORTS, INSIDE,
    INTERNAL, LIMITED, NETWORKS, NO_WAYS_OUT, PORTS_CLOSED, PORTS_INSIDE, PORTS_OF_NETWORKS, PRIVATE,
    PRIVATE_LINKS, PRIVATE_PORTS, WAYS_OUT,
};
pub use rules::{BRIDGE_GROUP, GROUP, IDLE};

/// The groups that hold it.
pub static GROUPS: [&Group; 2] = [&GROUP, &BRIDGE_GROUP];

/// What an attachment has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    pub policy: Policy,
    /// The container's.
    pub addresses: Vec<IpAddr>,
    /// The rules of its network and its own, for those that come later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
    /// What they come to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

/// Leaves out what a container was allowed with others that are gone since: their addresses may be somebody else's.
pub fn leave_out_the_gone(content: &mut Content, all: &[Content]) {
    if !holds_with_others(content) {
        return;
    }
    let is_another = |other: &&Content| {
        (&other.container_id, &other.ifname) != (&content.container_id, &content.ifname) && !other.is_leaving
    };
    let others: Vec<&Content> = all.iter().filter(is_another).collect();
    let grants = current(content, &others);
    if let Some(isolation) = &mut content.holdings.isolation {
        isolation.grants = grants;
    }
}

/// What others hold by which they talk with a container that leaves, as far as on file; `None` where the files do not tell all. The
/// caller holds the lock of the meeting.
///
/// # Errors
/// [`Code::Io`].
pub fn held_by_others(
    state_dir: &Path,
    key: &AttachmentKey,
    leaving: &Content,
) -> Result<Option<Vec<Element>>, Error> {
    let Some(own) = Member::of(leaving) else { return Ok(None) };
    let holders = index::holders(state_dir, key, &own)?;
    Ok(holders.map(|holders| held(&holders, &own.addresses)))
}

/// What all containers of a network have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Where they are ports.
    #[serde(default)]
    bridge: Option<String>,
    /// The ports that another plugin made. Whose they are is for the holdings on file to say.
    #[serde(skip)]
    pub links: Vec<String>,
    pub subnets: Vec<IpNetwork>,
    closed: bool,
    /// Whether nobody outside comes in but by published ports.
    internal: bool,
    /// Whether they need to be allowed to talk with each other.
    pub private: bool,
    host_access: bool,
    /// Where they may go; `None` is everywhere.
    egress_allow: Option<Vec<IpNetwork>>,
    egress_deny: Vec<IpNetwork>,
}

impl Isolation {
    /// Works out what an attachment needs; `None` without addresses and a bridge, unless it is kept from others. Pure.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when no subnet is known to which the network's policy could apply, or when what is allowed
    /// could not pass.
    pub fn new(
        conf: &IsolationPolicy,
        bridge: Option<&str>,
        all_hosts: &[IpNetwork],
        own_rules: &[Allow],
        plan: &Plan,
    ) -> Result<Option<Self>, Error> {
        if !own_rules.is_empty() && conf.icc {
            let msg = "args.weft.allow has rules, but the network's icc is true: set icc to false or leave allow out";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        if plan.ips.is_empty() && conf.icc && bridge.is_none() {
            return Ok(None);
        }
        let Some(policy) = Policy::new(conf, bridge, all_hosts, plan)? else { return Ok(None) };
        let rules = &conf.allow;
        if policy.private && plan.gateways.is_empty() && !(rules.is_empty() && own_rules.is_empty()) {
            let msg = "allow has rules, but containers of a network with icc false talk by the host, and that is not their \
                       gateway: set isGateway or isDefaultGateway";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let of_network = rules.iter().map(|rule| ("allow", rule));
        for (key, rule) in of_network.chain(own_rules.iter().map(|rule| ("args.weft.allow", rule))) {
            match rule.has_sides_in(key, &policy.subnets) {
                Err(error) if !all_hosts.is_empty() => return Err(error),
                // Where it is not known that there is no more of the network: other hosts may have it, or another plugin give it.
                Err(error) => log::warn!("{}", error.msg),
                Ok(()) => {}
            }
        }
        Ok(Some(Self {
            policy,
            addresses: plan.ips.iter().map(|ip| ip.address.ip()).collect(),
            allow: rules.iter().chain(own_rules).cloned().collect(),
            grants: Vec::new(),
        }))
    }

    /// Works out what is allowed between the container and those that are there. The caller holds the lock of the meeting.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub fn meet(&mut self, state_dir: &Path, key: &AttachmentKey, names: &Names) -> Result<(), Error> {
        let own = Member {
            container_id: key.container_id.to_string(),
            names: names.clone(),
            addresses: self.addresses.clone(),
            allow: self.allow.clone(),
        };
        let others: Vec<Member> = index::meet(state_dir, key, &own)?.iter().filter_map(Member::of).collect();
        self.grants = grants(&own, &others);
        Ok(())
    }

    /// The elements that stand for it.
    pub fn elements(&self, network: &NetworkName) -> Elements {
        let mut elements = allow::elements(&self.grants, &self.addresses);
        elements.network = self.policy.elements(network);
        elements
    }
}

impl Policy {
    /// What a network's configuration comes to; `None` when it asks for nothing that needs to know its subnets. Where there is a bridge,
    /// ports may have been kept from each other by an earlier configuration.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when it does, and they are not known.
    pub fn new(
        conf: &IsolationPolicy,
        bridge: Option<&str>,
        all_hosts: &[IpNetwork],
        plan: &Plan,
    ) -> Result<Option<Self>, Error> {
        let subnets = if all_hosts.is_empty() {
            let of_plan = plan.ips.iter().map(|ip| prefix(ip.address));
            reduced(of_plan.chain(conf.subnets.iter().copied()).filter(is_wide).collect())
        } else {
            reduced(all_hosts.to_vec())
        };
        if subnets.is_empty() && !plan.ips.is_empty() {
            let asked = [
                ("icc", !conf.icc),
                ("egress", conf.egress_allow.is_some() || !conf.egress_deny.is_empty()),
                ("hostAccess", !conf.host_access),
            ];
            if let Some((key, _)) = asked.into_iter().find(|(_, is_asked)| *is_asked) {
                let msg = format!(
                    "{key} is for the network's subnets, but all addresses are single ones: name a subnet in ipam"
                );
                return Err(Error::new(Code::InvalidConfig, msg));
            }
            if bridge.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Self {
            bridge: bridge.map(str::to_owned),
            links: Vec::new(),
            subnets,
            closed: conf.closed,
            internal: conf.internal || conf.published_only,
            private: !conf.icc,
            host_access: conf.host_access,
            egress_allow: conf.egress_allow.clone(),
            egress_deny: conf.egress_deny.clone(),
        }))
    }

    /// The policy of a network of these addresses without containers on this host.
    pub fn of_hosts(subnets: &[IpNetwork], closed: bool, internal: bool) -> Self {
        Self {
            bridge: None,
            links: Vec::new(),
            subnets: reduced(subnets.to_vec()),
            closed,
            internal,
            private: false,
            host_access: true,
            egress_allow: None,
            egress_deny: Vec::new(),
        }
    }

    /// The bridge whose ports the containers are, as far as it is one.
    pub fn bridge(&self) -> Option<&str> {
        self.bridge.as_deref()
    }

    /// What the network has in the rules.
    pub fn of_network(&self, name: &NetworkName) -> Vec<Element> {
        let mut elements = self.elements(name);
        network::mark(&mut elements, name);
        elements
    }

    /// Adds what is the network's, too.
    pub fn join(&mut self, known: Known) {
        self.subnets = reduced(self.subnets.iter().copied().chain(known.subnets).collect());
        self.links.extend(known.links);
        self.links.sort_unstable();
        self.links.dedup();
    }

    fn elements(&self, network: &NetworkName) -> Vec<Element> {
        let (mut elements, mut on_bridge) = (Vec::new(), self.of_ports(group(network)));
        let mut pair = |sets: &'static [Set; 2], one: IpNetwork, other: IpNetwork| {
            if one.is_ipv4() == other.is_ipv4() {
                elements.push(pair_element(by_address(sets, one.ip()), one, other));
            }
        };
        for subnet in &self.subnets {
            for other in &self.subnets {
                pair(&INSIDE, *subnet, *other);
                pair(&BRIDGE_INSIDE, *subnet, *other);
            }
            let flags = [
                (&NETWORKS, true),
                (&BRIDGE_NETWORKS, true),
                (&CLOSED, self.closed),
                (&BRIDGE_CLOSED, self.closed),
                (&INTERNAL, self.internal),
                (&PRIVATE, self.private),
                (&HOSTLESS, !self.host_access),
                (&LIMITED, self.egress_allow.is_some()),
            ];
            for (sets, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
                pair(sets, *subnet, everything(Family::of(subnet.ip())));
            }
            if let Some(bridge) = &self.bridge {
                let ((first, last), set) = (ends(*subnet), by_address(&BRIDGES, subnet.ip()));
                let key = |end| Tuple::default().ifname(bridge).address(end);
                on_bridge.push(Element::between(
                    set,
                    (key(first), key(last)),
                    format!("{bridge} . {subnet}"),
                ));
            }
            for prefix in self.egress_allow.iter().flatten() {
                pair(&WAYS_OUT, *subnet, *prefix);
            }
            for prefix in &self.egress_deny {
                pair(&NO_WAYS_OUT, *subnet, *prefix);
            }
        }
        elements.extend(on_bridge);
        elements
    }

    /// What tells the network's ports from those of others. By a group, what changes for the network does so for all its ports at once.
    fn of_ports(&self, group: u32) -> Vec<Element> {
        if self.bridge.is_none() {
            return Vec::new();
        }
        let one = || Tuple::default().ifgroup(group);
        let mut elements =
            vec![Element::new(&PORTS_INSIDE, one().ifgroup(group), format!("{group} . {group}"))];
        // Without subnets it is nobody's, unless its ports are kept from each other.
        let is_network = !self.subnets.is_empty() || self.private;
        let sets = [
            (&PORTS_OF_NETWORKS, true),
            (&PORTS_CLOSED, self.closed),
            (&PRIVATE_PORTS, self.private),
            (&HOSTLESS_PORTS, !self.host_access),
        ];
        let asked = sets.into_iter().filter(|(_, is_set)| is_network && *is_set);
        elements.extend(asked.map(|(set, _)| Element::new(set, one(), group.to_string())));
        let links = self.links.iter().filter(|_| self.private);
        let named = |link: &String| Element::new(&PRIVATE_LINKS, Tuple::default().ifname(link), link.clone());
        elements.extend(links.map(named));
        elements
    }
}

/// What tells a network's containers from others, as far as it is on file or in the rules.
#[derive(Debug, Default)]
pub struct Known {
    pub subnets: Vec<IpNetwork>,
    /// Ports that another plugin made.
    pub links: Vec<String>,
}

/// What a network has in the rules.
///
/// # Errors
/// What the kernel says to the queries.
pub fn known(nft: &mut Nft, name: &NetworkName) -> NlResult<Known> {
    let mut known = Known::default();
    let mut of_network = |set| {
        let all = nft.elements(set)?.into_iter();
        Ok::<_, NetError>(all.filter(|element| network::is_of(element, name)))
    };
    for set in &INSIDE {
        known.subnets.extend(of_network(set)?.filter_map(|element| element.first_prefix()));
    }
    known.subnets = reduced(known.subnets);
    known.links.extend(of_network(&PRIVATE_LINKS)?.map(|element| element.key.as_ifname()));
    Ok(known)
}

fn pair_element(set: &Set, one: IpNetwork, other: IpNetwork) -> Element {
    let ((first, last), (other_first, other_last)) = (ends(one), ends(other));
    let key = |one, other| Tuple::default().address(one).address(other);
    Element::between(set, (key(first, other_first), key(last, other_last)), format!("{one} . {other}"))
}

/// Whether it is more than one address.
pub fn is_wide(prefix: &IpNetwork) -> bool {
    prefix.prefix() < Family::of(prefix.ip()).bits()
}
