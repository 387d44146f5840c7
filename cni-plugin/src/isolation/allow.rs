//! What rules of the key `allow` come to between containers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::NlResult;
use weft_net::nft::{Element, FIELD_ALIGN, Nft, Set, Tuple, ends, retry};

use super::is_wide;
use super::rules::{ALL, FROM, HOLDERS, PARTNERS, PORT, PORTS, TO};
use crate::conf::isolation::{Allow, Peer};
use crate::conf::names::Names;
use crate::record::Content;
use crate::ruleset::{self, Elements, by_address};

mod services;

use services::Services;

/// One direction that is open; one of its sides is a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    from: IpNetwork,
    to: IpNetwork,
    services: Services,
    /// As [`Grant::open_side`] tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<Side>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Side {
    From,
    To,
}

impl Grant {
    /// The side that is a prefix in the rule: it is open to whoever has the addresses, also a single one, and the container on the other
    /// side holds it. `None`: it is between two containers, and one of them holds it for both.
    fn open_side(&self) -> Option<Side> {
        // What is on file since before an upgrade tells it by the length alone.
        let wide = [(self.from, Side::From), (self.to, Side::To)].into_iter().find(|(side, _)| is_wide(side));
        self.prefix.or(wide.map(|(_, side)| side))
    }

    fn is_between_two(&self) -> bool {
        self.open_side().is_none()
    }

    /// What others leave of its services.
    fn without<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Vec<Services> {
        let is_wider = |other: &&Self| contains(other.from, self.from) && contains(other.to, self.to);
        others.into_iter().filter(is_wider).fold(vec![self.services], |left, other| {
            left.into_iter().flat_map(|services| services.without(other.services)).collect()
        })
    }

    fn covers(&self, other: &Self) -> bool {
        contains(self.from, other.from) && contains(self.to, other.to) && self.services.cover(other.services)
    }
}

/// A container of a network, as rules see it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) container_id: String,
    pub(super) names: Names,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) allow: Vec<Allow>,
}

impl Member {
    /// Another container of the network, by what is on file of it.
    pub(super) fn of(content: &Content) -> Option<Self> {
        let isolation = content.holdings.isolation.as_ref()?;
        Some(Self {
            container_id: content.container_id.clone(),
            names: content.names.clone(),
            addresses: isolation.addresses.clone(),
            allow: isolation.allow.clone(),
        })
    }

    /// All that a side of a rule can mean it by.
    pub(super) fn terms(&self) -> BTreeSet<String> {
        let pod = self.names.pod.as_deref();
        let short = pod.and_then(|pod| pod.split_once('/')).map(|(_, pod)| pod);
        let hostname = self.names.hostname.as_deref();
        let names = [Some(self.container_id.as_str()), pod, short, hostname].into_iter().flatten();
        let names = names.chain(self.names.aliases.iter().map(String::as_str)).map(container_term);
        names.chain(self.names.labels.iter().map(|label| label_term(label))).collect()
    }

    /// What its rules that mean it have on the other side.
    pub(super) fn asks(&self) -> BTreeSet<String> {
        let term = |side: &Peer| match side {
            Peer::Own => Some(container_term(&self.container_id)),
            Peer::Container(name) => Some(container_term(name)),
            Peer::Label(label) => Some(label_term(label)),
            Peer::Prefix(_) => None,
        };
        let sides = self.allow.iter().flat_map(|rule| [(&rule.from, &rule.to), (&rule.to, &rule.from)]);
        sides.filter(|(side, _)| self.is_meant(side, self)).filter_map(|(_, other)| term(other)).collect()
    }

    /// Whether a side of a rule of `owner` means this container. A prefix means it where no name is needed to know.
    fn is_meant(&self, side: &Peer, owner: &Self) -> bool {
        match side {
            Peer::Own => self.container_id == owner.container_id,
            other => other.names(&self.container_id, &self.names),
        }
    }
}

fn container_term(name: &str) -> String {
    format!("container {name}")
}

fn label_term(label: &str) -> String {
    format!("label {label}")
}

/// What a container's rules and those of others come to for it. Each pair of containers is asked once: when
/// the second of them comes.
pub(super) fn grants(own: &Member, others: &[Member]) -> Vec<Grant> {
    without_overlaps(meant(own, others))
}

fn meant(own: &Member, others: &[Member]) -> Vec<Grant> {
    let mut all = Vec::new();
    for rule in &own.allow {
        with_prefixes(&mut all, rule, own);
    }
    for other in others {
        let rules =
            own.allow.iter().map(|rule| (rule, own)).chain(other.allow.iter().map(|rule| (rule, other)));
        for (rule, owner) in rules {
            for (from, to) in [(own, other), (other, own)] {
                if from.is_meant(&rule.from, owner) && to.is_meant(&rule.to, owner) {
                    between(&mut all, Services::new(rule.service), from, to);
                }
            }
        }
    }
    all
}

/// What is left of a container's grants when some that were there when it came are gone: their addresses may be others'. Where a
/// later one has the same grant, that one holds it.
pub(super) fn current(content: &Content, others: &[&Content]) -> Vec<Grant> {
    let Some(own) = Member::of(content) else { return Vec::new() };
    let holds = |grant: &&Grant| {
        let is_side = |address: &IpAddr| [grant.from, grant.to].contains(&IpNetwork::from(*address));
        let is_there = |other: &&&Content| addresses_of(other).iter().any(is_side);
        let other = others.iter().find(is_there);
        let is_its = other.is_some_and(|other| {
            other.since() > content.since() && grant.without(grants_of(other)).is_empty()
        });
        let other = other.and_then(|other| Member::of(other));
        !is_its && meant(&own, other.as_slice()).iter().any(|whole| whole.covers(grant))
    };
    grants_of(content).iter().filter(holds).cloned().collect()
}

fn grants_of(content: &Content) -> &[Grant] {
    content.holdings.isolation.as_ref().map(|isolation| isolation.grants.as_slice()).unwrap_or_default()
}

fn addresses_of(content: &Content) -> &[IpAddr] {
    content.holdings.isolation.as_ref().map(|isolation| isolation.addresses.as_slice()).unwrap_or_default()
}

/// A rule between a prefix and this container.
fn with_prefixes(all: &mut Vec<Grant>, rule: &Allow, own: &Member) {
    for address in &own.addresses {
        let host = IpNetwork::from(*address);
        let is_own = |side: &Peer| match side {
            Peer::Prefix(prefix) => prefix.contains(*address),
            other => own.is_meant(other, own),
        };
        let prefix = |side: &Peer| match side {
            Peer::Prefix(prefix) if prefix.is_ipv4() == address.is_ipv4() => Some(*prefix),
            _ => None,
        };
        let services = Services::new(rule.service);
        if let Some(from) = prefix(&rule.from).filter(|_| is_own(&rule.to)) {
            all.push(Grant { from, to: host, services, prefix: Some(Side::From) });
        }
        if let Some(to) = prefix(&rule.to).filter(|_| is_own(&rule.from)) {
            all.push(Grant { from: host, to, services, prefix: Some(Side::To) });
        }
    }
}

fn between(all: &mut Vec<Grant>, services: Services, from: &Member, to: &Member) {
    for from in &from.addresses {
        for to in to.addresses.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            all.push(Grant { from: (*from).into(), to: (*to).into(), services, prefix: None });
        }
    }
}

/// The same without what another grant has too: the kernel takes no two intervals that overlap. The widest come first, and
/// of the others what is left. What is between two containers comes last, as it goes with either of them.
fn without_overlaps(mut all: Vec<Grant>) -> Vec<Grant> {
    all.sort_by_key(|grant| (grant.is_between_two(), grant.from.prefix(), grant.to.prefix()));
    let mut kept: Vec<Grant> = Vec::new();
    for grant in all {
        let left = grant.without(&kept);
        kept.extend(left.into_iter().map(|services| Grant { services, ..grant.clone() }));
    }
    kept
}

fn contains(prefix: IpNetwork, other: IpNetwork) -> bool {
    prefix.prefix() <= other.prefix() && prefix.contains(other.network())
}

/// The elements that stand for grants of a container with these addresses.
pub(super) fn elements(grants: &[Grant], own: &[IpAddr]) -> Elements {
    let sides = |grant: &Grant| [grant.from, grant.to];
    let is_there =
        |address: &&IpAddr| grants.iter().flat_map(sides).any(|side| side == IpNetwork::from(**address));
    let between_two = grants.iter().filter(|grant| grant.is_between_two());
    let others = between_two.flat_map(sides).map(|side| side.ip());
    let partners: BTreeSet<IpAddr> = others.filter(|address| !own.contains(address)).collect();
    let holders = own.iter().filter(is_there).map(|address| noted(&HOLDERS, *address));
    Elements {
        own: grants.iter().map(element).chain(holders).collect(),
        shared: partners.into_iter().map(|address| noted(&PARTNERS, address)).collect(),
        ..Elements::default()
    }
}

fn noted(sets: &'static [Set; 2], address: IpAddr) -> Element {
    Element::new(by_address(sets, address), Tuple::default().address(address), address.to_string())
}

fn element(grant: &Grant) -> Element {
    let services = grant.services;
    let sets = match grant.open_side() {
        Some(Side::From) => &FROM,
        Some(Side::To) => &TO,
        None if services == Services::ALL => &ALL,
        None if services.is_one() => &PORT,
        None => &PORTS,
    };
    let set = by_address(sets, grant.from.ip());
    let ((from, last_from), (to, last_to)) = (ends(grant.from), ends(grant.to));
    let pair = |from, to| Tuple::default().address(from).address(to);
    let text = format!("{} to {}, {services}", grant.from, grant.to);
    let first = services.end(pair(from, to), |range| range.0);
    match (set.key.len(), set.intervals) {
        (2, _) => Element::new(set, pair(from, to), text),
        (_, false) => Element::new(set, first, text),
        (_, true) => {
            let last = services.end(pair(last_from, last_to), |range| range.1);
            Element::between(set, (first, last), text)
        }
    }
}

/// Whether a container holds elements with another's address.
pub fn holds_with_others(content: &Content) -> bool {
    grants_of(content).iter().any(Grant::is_between_two)
}

/// What containers hold by which they talk with one of these addresses.
pub(super) fn held(by: &[Content], addresses: &[IpAddr]) -> Vec<Element> {
    let is_meant = |side: IpNetwork| addresses.contains(&side.ip());
    let grants = by.iter().flat_map(grants_of).filter(|grant| grant.is_between_two());
    grants.filter(|grant| is_meant(grant.from) || is_meant(grant.to)).map(element).collect()
}

/// Removes what others were allowed with addresses that are somebody else's from now on. The sets are looked through only
/// where it is noted that there is something. The notes stay where an ADD may be `beside`, which relies on them.
///
/// # Errors
/// What the kernel refused; what is gone already is no error.
pub fn forget(nft: &mut Nft, addresses: &[IpAddr], beside: bool) -> NlResult<()> {
    retry(|| {
        let mut found = Vec::new();
        for address in addresses {
            let notes = notes(nft, &[*address])?;
            if notes.is_empty() {
                continue;
            }
            // Elements of a container on the other side of a prefix are that container's.
            let sets = [(&ALL, None), (&PORT, None), (&PORTS, None), (&FROM, Some(0)), (&TO, Some(1))];
            for (sets, open_field) in sets {
                found.extend(with(nft, by_address(sets, *address), *address, open_field)?);
            }
            found.extend(notes.into_iter().filter(|_| !beside));
        }
        ruleset::erase(nft, &found)
    })
}

/// What is noted of addresses with which others hold elements.
///
/// # Errors
/// What the kernel says to the queries.
pub fn notes(nft: &mut Nft, addresses: &[IpAddr]) -> NlResult<Vec<Element>> {
    let mut found = Vec::new();
    for address in addresses {
        for sets in [&HOLDERS, &PARTNERS] {
            let note = noted(sets, *address);
            match nft.element(&note) {
                // Another version's notes say more than the address.
                Err(error) if ruleset::is_misfit(&error) => {
                    found.extend(with(nft, &note.set, *address, None)?);
                }
                known => found.extend(known?),
            }
        }
    }
    Ok(found)
}

/// The elements of a set that have this address in any field but one: which one, another version may have seen otherwise.
fn with(nft: &mut Nft, set: &Set, address: IpAddr, but: Option<usize>) -> NlResult<Vec<Element>> {
    let own = Tuple::default().address(address);
    let own = own.bytes();
    let is_at = |key: &Tuple, at: usize| key.bytes().get(at..).is_some_and(|rest| rest.starts_with(own));
    let has_it = |element: &Element| {
        (0..element.key.bytes().len())
            .step_by(FIELD_ALIGN)
            .filter(|at| but != Some(at / own.len()))
            .any(|at| is_at(&element.key, at) && element.end.as_ref().is_none_or(|last| is_at(last, at)))
    };
    Ok(nft.elements(set)?.into_iter().filter(has_it).collect())
}

#[cfg(test)]
mod tests;
