//! Host ports: `-p 8080:80`. Traffic to a port of this host goes to a container.
//!
//! Three maps per family say where to: for a port of every address, for a port of one address, and for ranges
//! of ports. No two elements of the three may meet, so it does not matter which one is asked first. Whoever wants a
//! port looks it up in the two others under a lock, and the kernel refuses a second element of the same key. Whoever wants a range
//! looks through all three.
//!
//! Only what is addressed to this host is caught (`fib daddr type local`; CVE-2025-67499), after the rules of the
//! host's own services, which stand at `dstnat` (CVE-2019-9946).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use cni_protocol::{Code, Error};
use ipnetwork::IpNetwork;
use log::{info, warn};
use serde::{Deserialize, Serialize};
use weft_net::nft::{Element, Nft, Set, Tuple, ends};
use weft_net::{Family, Netlink, NlResult};

use crate::conf::Asked;
use crate::conf::isolation::reduced;
use crate::conf::ports::{Mapping, PortPolicy, Protocol};
use crate::fault::Fault;
use crate::isolation::is_wide;
use crate::key::AttachmentKey;
use crate::plan::{Plan, prefix};
use crate::ruleset::{self, Elements, by_address, of_family};

mod claim;
mod rules;
mod shared;
mod sources;
#[cfg(test)]
mod tests;

use claim::{Claim, claim, meets, single_ports};
use rules::{ADDRESSES, ANY, AT, HAIRPIN, LOCALNET, MASQUERADED, RANGES, SAME};
pub use rules::{GROUP, SOURCES_GROUP, groups, published};
pub use shared::tidy;
use sources::targets;

/// How many ports are tried for a listener at most, one socket each.
const PROBES: usize = 64;

/// What an attachment holds of host ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    claims: Vec<Claim>,
    /// The prefixes within which a client has to be masqueraded, as the answer would not pass the host.
    same: Vec<IpNetwork>,
    /// The container's addresses, all of whose clients are masqueraded.
    masquerade: Vec<IpAddr>,
    sources: Vec<IpNetwork>,
    /// The prefixes of its network, where there are sources: clients there ask the container itself as if there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    neighbours: Vec<IpNetwork>,
    /// The interface to the container, where 127.0.0.1 of the host has ports.
    localnet: Option<String>,
    /// Whether that interface is this container's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    localnet_is_own: bool,
}

/// By which of its interfaces the host reaches a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// A bridge, which is there for others too.
    Bridge(String),
    /// An interface of this container alone.
    Own(String),
    /// Nobody says: the host's 127.0.0.1 has no ports then.
    Unknown,
}

impl Ports {
    /// Works out what these mappings need of a container in a network of these prefixes; `None` where nobody knows which these are. Pure.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when the container has no address for a mapping.
    pub fn new(
        policy: &PortPolicy,
        reach: &Reach,
        asked: &Asked,
        plan: &Plan,
        network: Option<&[IpNetwork]>,
    ) -> Result<Option<Self>, Error> {
        let mappings = &asked.mappings;
        if mappings.is_empty() {
            return Ok(None);
        }
        let mut claims: Vec<Claim> = Vec::new();
        for family in Family::ALL {
            let to = plan.ips.iter().map(|ip| ip.address.ip()).find(|ip| Family::of(*ip) == family);
            for mapping in mappings.iter().filter(|mapping| concerns(mapping, family)) {
                match to {
                    Some(_) if is_without_way(mapping) => warn!(
                        "{mapping} is asked for, where nobody is served: the kernel forwards nothing by IPv6's loopback and link-local addresses; ask for 127.0.0.1, or another address of the host"
                    ),
                    Some(to) => claim(&mut claims, mapping, to),
                    None => refuse_without_address(mapping, family)?,
                }
            }
        }
        let claims = single_ports(claims);
        let reached: Vec<IpNetwork> = plan
            .ips
            .iter()
            .map(|ip| ip.address)
            .filter(|ip| claims.iter().any(|claim| claim.to == ip.ip()))
            .collect();
        let wants_all = policy.snat && policy.masquerade_all;
        let sources = asked.sources.clone().unwrap_or_else(|| policy.sources.clone());
        let of_network = network.iter().flat_map(|known| reached.iter().chain(*known));
        let neighbours = of_network.filter(|prefix| is_wide(prefix) && !sources.is_empty());
        let all = |ip: &&IpNetwork| wants_all || !plan.answers_everybody(Family::of(ip.ip()));
        Ok(Some(Self {
            same: if policy.snat { reached.iter().map(|ip| prefix(*ip)).collect() } else { Vec::new() },
            masquerade: reached.iter().filter(all).map(IpNetwork::ip).collect(),
            neighbours: reduced(neighbours.copied().collect()),
            sources,
            localnet: reach
                .interface()
                .filter(|_| policy.snat && claims.iter().any(Claim::is_at_localhost))
                .map(str::to_owned),
            localnet_is_own: matches!(reach, Reach::Own(_)),
            claims,
        }))
    }

    /// The elements that stand for it.
    pub fn elements(&self) -> Elements {
        let mut own: Vec<Element> = self.claims.iter().map(Claim::element).collect();
        for address in &self.masquerade {
            own.push(Element::new(
                by_address(&MASQUERADED, *address),
                Tuple::default().address(*address),
                address.to_string(),
            ));
        }
        own.extend(sources::elements(&self.claims, &self.sources, &self.neighbours));
        let has_neighbours = |to: &IpAddr| self.same.iter().any(|prefix| prefix.contains(*to));
        own.extend(
            targets(&self.claims).into_iter().filter(has_neighbours).map(|to| {
                Element::new(by_address(&HAIRPIN, to), Tuple::default().address(to), to.to_string())
            }),
        );
        let mut shared: Vec<Element> = self.same.iter().map(|prefix| same(*prefix)).collect();
        let places: BTreeSet<IpAddr> = self.claims.iter().filter_map(|claim| claim.at).collect();
        shared.extend(places.into_iter().map(|at| {
            Element::new(by_address(&ADDRESSES, at), Tuple::default().address(at), at.to_string())
        }));
        if let Some(bridge) = &self.localnet {
            let of = if self.localnet_is_own { &mut own } else { &mut shared };
            of.push(Element::new(&LOCALNET, Tuple::default().ifname(bridge), bridge.clone()));
        }
        Elements { own, shared, ..Elements::default() }
    }

    /// The interface that must route 127.0.0.1.
    pub fn localnet(&self) -> Option<&str> {
        self.localnet.as_deref()
    }

    /// Has the kernel forget the flows of UDP to these ports that go anywhere else.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn forget_flows_of_others(&self, nft: &mut Nft) -> NlResult<()> {
        let mut own_addresses = None;
        for family in self.udp_families() {
            let own_addresses = match &own_addresses {
                Some(known) => known,
                None => own_addresses.insert(Netlink::open(nft.deadline())?.all_addresses()?),
            };
            // A flow that only passes this host is none of its ports'.
            nft.forget_udp(family, |flow| {
                own_addresses.contains(&flow.destination)
                    && self.udp(family).any(|claim| {
                        (claim.first..=claim.last).contains(&flow.port)
                            && claim.at.is_none_or(|at| at == flow.destination)
                            && claim.to != flow.answered_by
                    })
            })?;
        }
        Ok(())
    }

    /// Has the kernel forget the container's flows of UDP, either way: the next packet may be another's.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn forget_own_flows(&self, nft: &mut Nft) -> NlResult<()> {
        let claims = Family::ALL.into_iter().flat_map(|family| self.udp(family));
        forget_flows(nft, &claims.map(|claim| claim.to).collect())
    }

    fn udp(&self, family: Family) -> impl Iterator<Item = &Claim> {
        let of_family = move |claim: &&Claim| Family::of(claim.to) == family;
        self.claims.iter().filter(of_family).filter(|claim| claim.protocol == Protocol::Udp)
    }

    fn udp_families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| self.udp(*family).next().is_some())
    }

    /// Sees that nobody else has one of the ports, in any of the three ways to have one. The caller holds the lock
    /// of the host's ports. Returns what another attachment of the same container has; of single ports the kernel tells that.
    ///
    /// # Errors
    /// [`Code::Conflict`] naming the holder's container.
    pub fn refuse_conflicts(
        &self,
        nft: &mut Nft,
        key: &AttachmentKey,
        alive: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Element>, Fault> {
        let mut of_the_same = Vec::new();
        for family in Family::ALL {
            let wanted: Vec<&Claim> =
                self.claims.iter().filter(|claim| Family::of(claim.to) == family).collect();
            let taken = match wanted.iter().any(|claim| claim.is_range()) {
                true => all_of(nft, &[&RANGES, &AT, &ANY], family)?,
                false => Vec::new(),
            };
            let in_use = match wanted.iter().any(|claim| !claim.is_range() && claim.at.is_none()) {
                true => all_of(nft, &[&ADDRESSES], family)?,
                false => Vec::new(),
            };
            let in_use: Vec<IpAddr> = in_use.iter().filter_map(|element| element.key.as_address()).collect();
            for claim in wanted {
                let holders = match claim.is_range() {
                    true => taken.iter().filter(|element| meets(claim, element)).cloned().collect(),
                    false => present(nft, &claim.rivals(&in_use))?,
                };
                for holder in holders {
                    let wanted = claim.element();
                    if ruleset::give_way(nft, key, &wanted, &holder, alive)? {
                        of_the_same.push(wanted);
                    }
                }
            }
        }
        Ok(of_the_same)
    }

    /// Leaves ports to another attachment of the same container, which has them; whether there were any.
    pub fn leave(&mut self, theirs: &[Element]) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| {
            let is_theirs = theirs.iter().any(|element| element.is_at(&claim.element()));
            if is_theirs {
                info!("{} leads to another interface of the container, and stays there", claim.text());
            }
            !is_theirs
        });
        let is_left = |address: IpAddr| self.claims.iter().any(|claim| claim.to == address);
        self.masquerade.retain(|address| is_left(*address));
        self.same.retain(|prefix| self.claims.iter().any(|claim| prefix.contains(claim.to)));
        self.localnet.take_if(|_| !self.claims.iter().any(Claim::is_at_localhost));
        self.claims.len() < before
    }

    /// Tells in the log where a process of the host listens on a port: it will not be reached there any more.
    pub fn warn_of_listeners(&self) {
        let ports =
            self.claims.iter().flat_map(|claim| (claim.first..=claim.last).map(move |port| (claim, port)));
        // A listener of both families is in the way of both.
        let mut told = BTreeSet::new();
        for (claim, port) in ports.take(PROBES) {
            let any: IpAddr = match Family::of(claim.to) {
                Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let address = SocketAddr::new(claim.at.unwrap_or(any), port);
            let probe = match claim.protocol {
                Protocol::Tcp => TcpListener::bind(address).map(drop),
                Protocol::Udp => UdpSocket::bind(address).map(drop),
                Protocol::Sctp => continue,
            };
            let is_taken = probe.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
            if is_taken && told.insert((claim.protocol, port)) {
                warn!(
                    "a process of the host listens on {} port {port}; from now on the container gets what comes there",
                    claim.protocol
                );
            }
        }
    }
}

impl Reach {
    fn interface(&self) -> Option<&str> {
        match self {
            Self::Bridge(name) | Self::Own(name) => Some(name),
            Self::Unknown => None,
        }
    }
}

/// Has the kernel forget the flows of UDP to containers of which nothing is known but the elements that they had.
///
/// # Errors
/// What the kernel refused.
pub fn forget_flows_of(nft: &mut Nft, elements: &[Element]) -> NlResult<()> {
    forget_flows(nft, &elements.iter().filter_map(claim::udp_target).collect())
}

/// Has the kernel forget the flows of UDP to and from containers.
fn forget_flows(nft: &mut Nft, containers: &BTreeSet<IpAddr>) -> NlResult<()> {
    for family in Family::ALL {
        if containers.iter().any(|container| Family::of(*container) == family) {
            nft.forget_udp(family, |flow| {
                containers.contains(&flow.answered_by) || containers.contains(&flow.source)
            })?;
        }
    }
    Ok(())
}

/// All elements of some sets.
fn all_of(nft: &mut Nft, sets: &[&'static [Set; 2]], family: Family) -> NlResult<Vec<Element>> {
    let mut all = Vec::new();
    for sets in sets {
        all.extend(nft.elements(of_family(sets, family))?);
    }
    Ok(all)
}

/// Those of the elements that are there, as they are.
fn present(nft: &mut Nft, elements: &[Element]) -> NlResult<Vec<Element>> {
    let mut present = Vec::new();
    for element in elements {
        present.extend(nft.element(element)?);
    }
    Ok(present)
}

fn concerns(mapping: &Mapping, family: Family) -> bool {
    mapping.host_ip.is_none_or(|ip| Family::of(ip) == family)
}

/// Portmap takes it in silence, and a container may have the same port at other addresses.
fn is_without_way(mapping: &Mapping) -> bool {
    mapping
        .host_ip
        .is_some_and(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local()))
}

fn refuse_without_address(mapping: &Mapping, family: Family) -> Result<(), Error> {
    match mapping.host_ip {
        // Every address, as far as there is one.
        None => Ok(()),
        Some(ip) if ip.is_unspecified() => {
            warn!("{mapping} is asked for, but the container has no {family} address");
            Ok(())
        }
        Some(_) => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "{mapping} is asked for, but the container has no {family} address: give the network an {family} range, or leave hostIP out"
            ),
        )),
    }
}

/// The element that says: both ends are in this prefix.
fn same(prefix: IpNetwork) -> Element {
    let (first, last) = ends(prefix);
    let key = |end| Tuple::default().address(end).address(end);
    Element::between(by_address(&SAME, first), (key(first), key(last)), format!("{prefix} . {prefix}"))
}
