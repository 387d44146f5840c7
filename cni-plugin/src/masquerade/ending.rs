//! The end of a network's masquerade, when its configuration does not ask for it any more.
//!
//! Containers from before have on file that their network is masqueraded, and whoever puts back what a flush took goes by that. So a file
//! says when it ended: what was written before that moment counts no more.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Error, NetworkName};
use weft_net::nft::{Change, Interval, Nft, Rule, SetKind, Table, retry};
use weft_net::{Family, NlResult};
use weft_state::lease::agent_lock;
use weft_state::{boot_dir, boot_path, monotonic, write_whole};

use super::intervals::of_family;
use super::{Masquerade, chain, chain_name, commit, delete_sets, edit, exchange, remove, set_name};
use crate::fault::Fault;
use crate::record;

/// In the directory of a network's boot: nanoseconds of the monotonic clock.
const FILE: &str = "masquerade-ended";

/// What a network has of masquerade, for whoever has to put it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    rules: Vec<Rule>,
    elements: Vec<Interval>,
    ended: Option<Duration>,
}

/// Whether the network has anything of it.
pub(crate) fn is_there(nft: &mut Nft, network: &NetworkName) -> NlResult<bool> {
    Ok(nft.chain(&chain_name(network))?.is_some())
}

/// What is left of a former configuration in a network that is not to be masqueraded. A node agent that looks after the network, or did
/// since the host was booted, has a configuration of its own.
///
/// # Errors
/// What the kernel refused.
pub fn left(nft: &mut Nft, state_dir: &Path, network: &NetworkName) -> NlResult<Option<Former>> {
    if !is_there(nft, network)? || agent_lock(state_dir, network).exists() {
        return Ok(None);
    }
    let mut former = Former {
        rules: nft.rules(&chain_name(network))?,
        elements: Vec::new(),
        ended: ended(state_dir, network),
    };
    for family in Family::ALL {
        former.elements.extend(nft.intervals(&set_name(network, family))?);
    }
    Ok(Some(former))
}

/// Ends it. On file first: nobody is to put back what was just removed.
///
/// # Errors
/// What the kernel or the file system refused.
pub fn end(nft: &mut Nft, state_dir: &Path, network: &NetworkName) -> Result<(), Fault> {
    write(state_dir, network, monotonic())?;
    Ok(remove(nft, network)?)
}

/// Puts back what [`end`] took, and what was on file.
///
/// # Errors
/// As [`end`].
pub fn undo(nft: &mut Nft, state_dir: &Path, network: &NetworkName, former: &Former) -> Result<(), Fault> {
    retry(|| {
        if is_there(nft, network)? {
            return Ok(());
        }
        let mut changes = delete_sets(nft, network)?;
        changes.push(Change::ensure_table(Table::Inet));
        changes.push(Change::create_chain(&chain_name(network), &chain()));
        for family in Family::ALL {
            let set = set_name(network, family);
            changes.push(Change::create_set(&set, SetKind::intervals_of(family)));
            changes.extend(edit(&set, &[], &of_family(&former.elements, family)));
        }
        changes.extend(former.rules.iter().map(|rule| Change::add_rule(&chain_name(network), rule)));
        commit(nft, changes)
    })?;
    match former.ended {
        Some(ended) => write(state_dir, network, ended),
        None => match fs::remove_file(path(state_dir, network)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// The prefixes in a network's sets that none of its containers needs, but for one's own, which are wanted. An ADD at work may need any, so then
/// there is none; nor is there where a node agent has them.
/// `of` is the network, and the hash of the attachment that asks.
///
/// # Errors
/// What the kernel refused.
pub fn stale(
    nft: &mut Nft,
    state_dir: &Path,
    of: (&NetworkName, Option<&str>),
    wanted: &Masquerade,
) -> NlResult<Vec<Interval>> {
    let needed = needed(state_dir, of).filter(|_| !agent_lock(state_dir, of.0).exists());
    let Some(mut needed) = needed else { return Ok(Vec::new()) };
    needed.extend(wanted.prefixes.iter().map(|prefix| Interval::from(*prefix)));
    let mut stale = Vec::new();
    for family in Family::ALL {
        stale.extend(nft.intervals(&set_name(of.0, family))?);
    }
    stale.retain(|present| !needed.iter().any(|needed| present.overlaps(needed)));
    Ok(stale)
}

/// Takes them out of the sets. A container that came meanwhile may have found its own there, and had a record before it looked: for that
/// one they are put back.
///
/// # Errors
/// What the kernel refused.
pub fn retire(
    nft: &mut Nft,
    state_dir: &Path,
    of: (&NetworkName, Option<&str>),
    stale: Vec<Interval>,
) -> NlResult<()> {
    exchange(nft, of.0, &stale, &[])?;
    let needed = needed(state_dir, of);
    let is_needed =
        |prefix: &Interval| needed.as_ref().is_none_or(|all| all.iter().any(|own| prefix.overlaps(own)));
    let again: Vec<Interval> = stale.into_iter().filter(is_needed).collect();
    exchange(nft, of.0, &[], &again)
}

/// What the network's other containers have masqueraded; `None` where that is not known of all.
fn needed(state_dir: &Path, (network, own): (&NetworkName, Option<&str>)) -> Option<Vec<Interval>> {
    let others = record::others(state_dir, std::slice::from_ref(network), own)?;
    let prefixes = others.into_iter().flat_map(|other| other.masquerade.prefixes);
    Some(prefixes.map(Interval::from).collect())
}

/// Since when what is on file of a network's masquerade counts, on the clock of [`weft_state::monotonic`]; `None`: always.
pub fn ended(state_dir: &Path, network: &NetworkName) -> Option<Duration> {
    let text = fs::read_to_string(path(state_dir, network).ok()?).ok()?;
    text.parse().ok().map(Duration::from_nanos)
}

fn write(state_dir: &Path, network: &NetworkName, ended: Duration) -> Result<(), Fault> {
    let path = boot_dir(state_dir, network)?.join(FILE);
    Ok(write_whole(&path, ended.as_nanos().to_string().as_bytes())?)
}

fn path(state_dir: &Path, network: &NetworkName) -> Result<PathBuf, Error> {
    Ok(boot_path(state_dir, network)?.join(FILE))
}
