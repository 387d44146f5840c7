//! Masquerade: traffic from a network to anywhere else leaves under the host's address.
//!
//! Per network one base chain with two static rules, one per family, and two sets with the network's
//! prefixes, all in table `inet weft`. Containers come and go without a change to any of it. In nft's words:
//!
//! ```text
//! ip saddr @masq-N-v4 ip daddr != @masq-N-v4 ip daddr != 224.0.0.0/4 masquerade fully-random
//! ```
//!
//! Destinations that are exempt (`noMasquerade`) are further conditions of the rule: they are the network's, not a
//! container's, and few.
//!
//! What is there is compared with what ought to be there before anything is written, and the writing is one
//! batch that fails when somebody else was faster; then it all starts over. So it does not matter how many
//! processes do this at once, or where one of them is killed. Nothing is deleted on the way to a new or an
//! intact network: a process that deleted nftables objects waits about 16 ms for RCU when it ends.

use std::net::IpAddr;

use cni_protocol::NetworkName;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use weft_net::Family;
use weft_net::nft::{
    Chain, Change, Field, InetHookNumber, Interval, Nft, POLICY_ACCEPT, Rule, SetKind, TABLE, Table, retry,
};
use weft_net::{NetError, NlResult};

use crate::ruleset::asleep;
use intervals::{intervals_of, of_family, overlapped, uncovered};

pub mod ending;
mod intervals;
#[cfg(test)]
mod tests;

/// `NF_IP_PRI_NAT_SRC` of linux/netfilter_ipv4.h: `srcnat`.
const PRIORITY: i32 = 100;

/// What a network wants of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// The network's own prefixes; without any, nothing is masqueraded.
    pub prefixes: Vec<IpNetwork>,
    /// Destinations that see containers' own addresses all the same.
    pub exempt: Vec<IpNetwork>,
}

impl Masquerade {
    /// Whether nothing is masqueraded.
    pub fn is_nothing(&self) -> bool {
        self.prefixes.is_empty()
    }
}

/// What [`ensure`] added, so that [`undo`] can take it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    /// All was there.
    Nothing,
    /// The prefixes that were not covered, in place of smaller ones that they cover.
    Elements { added: Vec<Interval>, replaced: Vec<Interval> },
    /// The network had nothing at all.
    Network,
}

/// What there is of a network's chain and rules.
enum State {
    Absent,
    Intact,
    /// How it differs from what Weft makes, whatever is exempt.
    Broken(String),
    /// The same, where other exemptions may be why.
    Altered(String),
}

/// Makes sure that traffic from the network's prefixes to anywhere else is masqueraded. Prefixes that
/// are in the sets already stay. A chain or a set that is not as Weft makes it is made anew.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn ensure(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> NlResult<Ensured> {
    let outcome = retry(|| match state(nft, network, wanted)? {
        State::Intact => extend(nft, network, &wanted.prefixes),
        State::Absent => build(nft, network, wanted, None),
        State::Broken(_) | State::Altered(_) => {
            build(nft, network, wanted, Some(Change::delete_chain(&chain_name(network))))
        }
    });
    outcome.map_err(explain)
}

/// The same for a caller that knows a network's prefixes, but not whether its exemptions are up to date: rules that are there stay
/// as they are.
///
/// # Errors
/// As [`ensure`].
pub fn put_back(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> NlResult<Ensured> {
    let outcome = retry(|| match state(nft, network, wanted)? {
        State::Absent => build(nft, network, wanted, None),
        State::Broken(_) => build(nft, network, wanted, Some(Change::delete_chain(&chain_name(network)))),
        State::Intact | State::Altered(_) => extend(nft, network, &wanted.prefixes),
    });
    outcome.map_err(explain)
}

/// Whether [`put_back`] would find nothing to do.
///
/// # Errors
/// What the kernel refused.
pub fn is_whole(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> NlResult<bool> {
    let has_rules = !matches!(state(nft, network, wanted)?, State::Absent | State::Broken(_));
    Ok(has_rules && lacking(nft, network, wanted)?.is_none())
}

/// What one of the network's sets lacks.
fn lacking(
    nft: &mut Nft,
    network: &NetworkName,
    wanted: &Masquerade,
) -> NlResult<Option<(String, Interval)>> {
    for family in Family::ALL {
        let set = set_name(network, family);
        let present = nft.intervals(&set)?;
        if let Some(missing) = uncovered(&present, intervals_of(&wanted.prefixes, family)).first() {
            return Ok(Some((set, *missing)));
        }
    }
    Ok(None)
}

/// Whether [`ensure`] would succeed, without a change to anything.
///
/// # Errors
/// As [`ensure`].
pub fn rehearse(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> NlResult<()> {
    let outcome = retry(|| {
        let delete_chain = match state(nft, network, wanted)? {
            State::Intact => return Ok(()),
            State::Absent => None,
            State::Broken(_) | State::Altered(_) => Some(Change::delete_chain(&chain_name(network))),
        };
        let (changes, _) = blueprint(nft, network, wanted, delete_chain)?;
        nft.rehearse(changes)
    });
    outcome.map_err(explain)
}

/// Every object that the batch needs is made by the batch: what is not there is the kernel's part.
fn explain(mut error: NetError) -> NetError {
    if error.errno == Errno::ENOENT {
        let object = error.explanation.unwrap_or_default();
        error.explanation = Some(format!("{object}: the kernel has no nft_chain_nat or no nft_masq"));
        error.errno = Errno::EOPNOTSUPP;
    }
    error
}

/// Takes back what [`ensure`] added. Nothing else of the network may have come to rely on it in between: the
/// caller holds the network's lock alone.
///
/// # Errors
/// What the kernel refused; the explanation names the object. What is gone already is no error.
pub fn undo(nft: &mut Nft, network: &NetworkName, ensured: &Ensured) -> NlResult<()> {
    match ensured {
        Ensured::Nothing => Ok(()),
        Ensured::Network => {
            remove(nft, network)?;
            remove_empty_table(nft)
        }
        Ensured::Elements { added, replaced } => exchange(nft, network, added, replaced),
    }
}

/// Takes intervals out of the network's sets, and puts others in as far as what stays there does not cover them.
fn exchange(nft: &mut Nft, network: &NetworkName, take: &[Interval], put: &[Interval]) -> NlResult<()> {
    retry(|| {
        let mut changes = Vec::new();
        for family in Family::ALL {
            let set = set_name(network, family);
            if nft.set(&set)?.is_none() {
                continue;
            }
            let (taken, kept): (Vec<_>, Vec<_>) =
                nft.intervals(&set)?.into_iter().partition(|present| take.contains(present));
            changes.extend(edit(&set, &taken, &uncovered(&kept, of_family(put, family))));
        }
        commit(nft, changes)
    })
}

/// Compares the kernel's state with what [`ensure`] makes.
///
/// # Errors
/// The first difference, as a sentence that names the object and what was found.
pub fn check(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> Result<(), String> {
    let unreadable = |error| format!("table inet {TABLE} cannot be read: {error}");
    asleep(nft, Table::Inet).map_err(unreadable)?.map_or(Ok(()), Err)?;
    match state(nft, network, wanted).map_err(unreadable)? {
        State::Intact => {}
        State::Absent => {
            return Err(format!("chain {} of table inet {TABLE} is missing", chain_name(network)));
        }
        State::Broken(difference) | State::Altered(difference) => return Err(difference),
    }
    for family in Family::ALL {
        let set = set_name(network, family);
        if nft.set(&set).map_err(unreadable)? != Some(SetKind::intervals_of(family)) {
            return Err(format!("set {set} of table inet {TABLE} does not hold {family} intervals"));
        }
    }
    if let Some((set, missing)) = lacking(nft, network, wanted).map_err(unreadable)? {
        return Err(format!("set {set} of table inet {TABLE} lacks {missing}"));
    }
    Ok(())
}

/// Removes the network's chain and sets, and leaves the table, which other networks use. Nothing to remove
/// is no error.
///
/// # Errors
/// What the kernel refused; the explanation names the object.
pub fn remove(nft: &mut Nft, network: &NetworkName) -> NlResult<()> {
    retry(|| {
        let chain = chain_name(network);
        let mut changes = Vec::new();
        // The chain goes first: its rules use the sets.
        if nft.chain(&chain)?.is_some() {
            changes.push(Change::delete_chain(&chain));
        }
        changes.extend(delete_sets(nft, network)?);
        commit(nft, changes)
    })
}

/// Removes the table that the first network brought with it.
fn remove_empty_table(nft: &mut Nft) -> NlResult<()> {
    match commit(nft, vec![Change::delete_empty_table()]) {
        // Another network or somebody else uses it.
        Err(error) if error.errno == Errno::EBUSY || error.not_found() => Ok(()),
        other => other,
    }
}

/// Compares chain and rules with what Weft makes. The rules hold the sets: no set goes while they are there.
fn state(nft: &mut Nft, network: &NetworkName, wanted: &Masquerade) -> NlResult<State> {
    let name = chain_name(network);
    let Some(found) = nft.chain(&name)? else {
        return Ok(State::Absent);
    };
    let placed = chain();
    if found != placed {
        let difference = format!("chain {name} of table inet {TABLE} is \"{found}\", not \"{placed}\"");
        return Ok(State::Broken(difference));
    }
    let wanted = Family::ALL.map(|family| rule(network, family, &wanted.exempt));
    let found = nft.rules(&name)?;
    if found.len() != wanted.len() {
        let (found, wanted) = (found.len(), wanted.len());
        let difference = format!("chain {name} of table inet {TABLE} has {found} rules, not {wanted}");
        return Ok(State::Broken(difference));
    }
    if let Some(position) = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
        let difference = format!("rule {} of chain {name} of table inet {TABLE} differs", position + 1);
        return Ok(State::Altered(difference));
    }
    Ok(State::Intact)
}

/// Adds to an intact network what its sets lack.
fn extend(nft: &mut Nft, network: &NetworkName, prefixes: &[IpNetwork]) -> NlResult<Ensured> {
    let mut changes = Vec::new();
    let (mut all_added, mut all_replaced) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let wanted = intervals_of(prefixes, family);
        if wanted.is_empty() {
            continue;
        }
        let set = set_name(network, family);
        let present = nft.intervals(&set)?;
        let added = uncovered(&present, wanted);
        let replaced = overlapped(present, &added);
        changes.extend(edit(&set, &replaced, &added));
        all_added.extend(added);
        all_replaced.extend(replaced);
    }
    if changes.is_empty() {
        return Ok(Ensured::Nothing);
    }
    commit(nft, changes)?;
    Ok(Ensured::Elements { added: all_added, replaced: all_replaced })
}

/// Makes the network's objects, in place of what is left of them. Elements that are left are kept.
///
/// Without a chain to delete, the batch fails if there is one by now: whoever made it made all the rest too.
fn build(
    nft: &mut Nft,
    network: &NetworkName,
    wanted: &Masquerade,
    delete_chain: Option<Change>,
) -> NlResult<Ensured> {
    let (changes, ensured) = blueprint(nft, network, wanted, delete_chain)?;
    commit(nft, changes)?;
    Ok(ensured)
}

/// What [`build`] does, and what comes of it.
fn blueprint(
    nft: &mut Nft,
    network: &NetworkName,
    wanted: &Masquerade,
    delete_chain: Option<Change>,
) -> NlResult<(Vec<Change>, Ensured)> {
    let mut changes: Vec<Change> = delete_chain.into_iter().collect();
    changes.extend(delete_sets(nft, network)?);
    let fresh = changes.is_empty();
    changes.push(Change::ensure_table(Table::Inet));
    changes.push(Change::create_chain(&chain_name(network), &chain()));
    let (mut all_added, mut all_replaced) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let set = set_name(network, family);
        let mut present = of_family(&nft.intervals(&set)?, family);
        let added = uncovered(&present, intervals_of(&wanted.prefixes, family));
        let replaced = overlapped(present.clone(), &added);
        present.retain(|interval| !replaced.contains(interval));
        present.extend(&added);

        changes.push(Change::create_set(&set, SetKind::intervals_of(family)));
        changes.push(Change::add_rule(&chain_name(network), &rule(network, family, &wanted.exempt)));
        changes.extend(edit(&set, &[], &present));
        all_added.extend(added);
        all_replaced.extend(replaced);
    }
    let ensured =
        if fresh { Ensured::Network } else { Ensured::Elements { added: all_added, replaced: all_replaced } };
    Ok((changes, ensured))
}

fn delete_sets(nft: &mut Nft, network: &NetworkName) -> NlResult<Vec<Change>> {
    let mut changes = Vec::new();
    for set in Family::ALL.map(|family| set_name(network, family)) {
        if nft.set(&set)?.is_some() {
            changes.push(Change::delete_set(&set));
        }
    }
    Ok(changes)
}

/// Carries out the changes, if there are any: an empty batch would still count as a new ruleset.
fn commit(nft: &mut Nft, changes: Vec<Change>) -> NlResult<()> {
    if changes.is_empty() { Ok(()) } else { nft.batch(changes) }
}

fn edit(set: &str, delete: &[Interval], add: &[Interval]) -> Vec<Change> {
    let mut changes = Vec::new();
    if !delete.is_empty() {
        changes.push(Change::delete_elements(set, delete));
    }
    if !add.is_empty() {
        changes.push(Change::add_elements(set, add));
    }
    changes
}

fn chain_name(network: &NetworkName) -> String {
    format!("masq-{network}")
}

fn set_name(network: &NetworkName, family: Family) -> String {
    let suffix = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("masq-{network}-{suffix}")
}

fn chain() -> Chain {
    Chain { kind: "nat".into(), hook: InetHookNumber::PostRouting, priority: PRIORITY, policy: POLICY_ACCEPT }
}

/// Multicast is exempt, as with the reference plugins: its receivers tell senders apart by their addresses.
fn rule(network: &NetworkName, family: Family, exempt: &[IpNetwork]) -> Rule {
    let set = set_name(network, family);
    let destination = Field::destination(family);
    // All multicast addresses: 224.0.0.0/4 (RFC 5771 §3) and ff00::/8 (RFC 4291 §2.7).
    let (multicast, length): (IpAddr, u8) = match family {
        Family::V4 => ([224, 0, 0, 0].into(), 4),
        Family::V6 => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    let exempt = exempt.iter().filter(|prefix| Family::of(prefix.ip()) == family);
    let rule = Rule::of(family)
        .in_set(Field::source(family), &set)
        .not_in_set(destination, &set)
        .not_in(destination, multicast, length);
    exempt.fold(rule, |rule, prefix| rule.not_in(destination, prefix.network(), prefix.prefix())).masquerade()
}
