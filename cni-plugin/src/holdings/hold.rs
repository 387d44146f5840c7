//! ADD's part: how an attachment gets what it holds.

use std::path::Path;

use cni_protocol::{Call, Deadline, Error, IfName};
use nix::errno::Errno;
use weft_net::nft::Nft;
use weft_net::{NetError, Netlink, NlResult, conntrack};
use weft_state::Lock;

use super::Holdings;
use super::company::Company;
use super::network::{agree, held_by, refuse_rivals};
use super::restore::masquerade_again;
use crate::fault::{Change, Fault, failed};
use crate::hostport::Ports;
use crate::isolation;
use crate::key::{AttachmentKey, host_veth_of};
use crate::localnet;
use crate::locks::{lock_meeting, lock_ports};
use crate::record::{self, Attached};
use crate::ruleset::{self, Elements, Rules};
use crate::step::{Journal, Shared, Step};

/// Puts an attachment into the host's rules, which may be open already: before its link is up, so that there is no open
/// moment. Returns the lock under which the rules between containers were worked out, for as long as the record does
/// not have them.
pub fn hold(
    journal: &mut Journal,
    opened: Option<Rules>,
    call: &Call,
    key: &AttachmentKey,
    state_dir: &Path,
    mut holdings: Holdings,
) -> Result<Option<Lock>, Error> {
    if holdings.is_empty() {
        return Ok(None);
    }
    let opened = opened.map_or_else(|| Rules::open(call.deadline), Ok);
    let mut opened = opened.map_err(|error| failed(&Step::Rules, error.into()))?;
    let rules = &mut opened;
    let company = Company::find(state_dir, &rules.nft);
    let own = holdings.isolation.as_ref().map(|isolation| isolation.policy.subnets.clone());
    let _changing = agree(journal, rules, state_dir, key, &mut holdings)?;
    let meeting = meet(journal, rules, call, key, state_dir, &mut holdings)?;
    let ports = holdings.ports.as_ref();
    let _only_one = ports.map(|_| lock_ports(state_dir, call.deadline)).transpose()?;
    let mut elements = holdings.elements(key);
    let mut add = |nft: &mut Nft, elements: &mut Elements| {
        add(nft, key, &mut holdings, elements, &|hash| is_alive(state_dir, hash))
    };
    ensure_shared(journal, rules, state_dir, &elements)?;
    let mut added = add(&mut rules.nft, &mut elements);
    if matches!(&added, Err(Fault::Net(error)) if error.not_found() || ruleset::is_misfit(error)) {
        // Flushed since it was looked at, or a set is missing that no rule uses, or another version's.
        rules.distrust();
        ensure_shared(journal, rules, state_dir, &elements)?;
        added = add(&mut rules.nft, &mut elements);
    }
    journal.run(Step::Rules, || added.map(|()| ((), Change::Made)))?;
    if let Some(ports) = &holdings.ports {
        open_ports(journal, &mut rules.nft, state_dir, ports)?;
    }
    if let Some(Err(error)) = company.map(|company| company.leave(opened)) {
        log::debug!("the socket to nftables is closed while others are at work: {error}");
    }
    // What others have of the network is for their records to say.
    if let (Some(isolation), Some(own)) = (&mut holdings.isolation, own) {
        isolation.policy.subnets = own;
    }
    journal.content.holdings = holdings;
    Ok(meeting)
}

/// Adds what is the attachment's own, without the ports that another attachment of the container has.
fn add(
    nft: &mut Nft,
    key: &AttachmentKey,
    holdings: &mut Holdings,
    elements: &mut Elements,
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), Fault> {
    let mut theirs = match &holdings.ports {
        Some(ports) => ports.refuse_conflicts(nft, key, alive)?,
        None => Vec::new(),
    };
    loop {
        if !theirs.is_empty() {
            if !holdings.ports.as_mut().is_some_and(|ports| ports.leave(&theirs)) {
                return Err(NetError::from(Errno::EEXIST).into());
            }
            *elements = holdings.elements(key);
        }
        theirs = ruleset::add(nft, key, elements, alive)?;
        if theirs.is_empty() {
            return Ok(());
        }
    }
}

/// Works out what depends on the network's other containers.
fn meet(
    journal: &mut Journal,
    rules: &mut Rules,
    call: &Call,
    key: &AttachmentKey,
    state_dir: &Path,
    holdings: &mut Holdings,
) -> Result<Option<Lock>, Error> {
    let Some(isolation) = holdings.isolation.as_mut().filter(|isolation| isolation.policy.private) else {
        return Ok(None);
    };
    let lock = lock_meeting(state_dir, key, call.deadline)?;
    let known = rules.look_for(&isolation.policy.of_network(&key.network));
    if !known.map_err(|error| failed(&Step::Rules, error.into()))? {
        // Containers that came while it was on did not meet anybody.
        isolation::index::discard(state_dir, &key.network)?;
    }
    isolation.meet(state_dir, key, &journal.content.names)?;
    journal.within(Step::Rules, || isolation::forget(&mut rules.nft, &isolation.addresses, false))?;
    Ok(Some(lock))
}

/// What others rely on too: the static rules, and what the network has in them.
fn ensure_shared(
    journal: &mut Journal,
    rules: &mut Rules,
    state_dir: &Path,
    elements: &Elements,
) -> Result<(), Error> {
    let step = Step::Shared(Shared::NetworkRules(Vec::new()));
    let settled = journal.within(step.clone(), || rules.look_for(&elements.network))?;
    match ensure_groups(journal, rules, state_dir, elements)? {
        Change::Found if settled => return Ok(()),
        Change::Found => {}
        // What others lost in a flush was not seen before.
        Change::Made => {
            let name = journal.key().network.clone();
            refuse_rivals(&mut rules.nft, state_dir, &name, &elements.network)
                .map_err(|fault| failed(&step, fault))?;
        }
    }
    let before = journal.within(step, || ruleset::network::ensure(&mut rules.nft, &elements.network))?;
    if let Some(before) = before {
        journal.note(Step::Shared(Shared::NetworkRules(before)));
        // Another network that came at the same time was not seen before; now one of the two sees the other.
        ensure_groups(journal, rules, state_dir, elements)?;
    }
    Ok(())
}

fn ensure_groups(
    journal: &mut Journal,
    rules: &mut Rules,
    state_dir: &Path,
    elements: &Elements,
) -> Result<Change, Error> {
    let step = Step::Shared(Shared::Ruleset(Vec::new()));
    if journal.within(step.clone(), || rules.are_ready_for(elements))? {
        return Ok(Change::Found);
    }
    let mut made = Vec::new();
    // Their locks are held until their elements are back: no DEL can come in between.
    let mut others = Attached::default();
    let (deadline, network) = (rules.nft.deadline(), &journal.key().network.clone());
    let ensured = journal.within(step, || {
        rules.forget();
        ruleset::ensure(&mut rules.nft, elements, &mut made, &mut || {
            others = record::attached(state_dir)?;
            // First: what is still missing then has whoever comes next do all of it again.
            match Nft::open(deadline) {
                Ok(mut nft) => drop(masquerade_again(&mut nft, &others)),
                Err(error) => log::warn!("masquerade of other networks is not looked at: {error}"),
            }
            Ok(held_by(&others))
        })
    });
    if others.iter().any(|one| one.key.network == *network && !one.content.masquerade.is_nothing()) {
        // It is not this ADD's alone any more.
        journal.keep_masquerade();
    }
    if !made.is_empty() {
        journal.note(Step::Shared(Shared::Ruleset(made)));
    }
    ensured.map(|()| Change::Made)
}

/// What ports need besides their elements.
fn open_ports(journal: &mut Journal, nft: &mut Nft, state_dir: &Path, ports: &Ports) -> Result<(), Error> {
    if let Some(interface) = ports.localnet() {
        let name: IfName = interface.parse()?;
        let (step, hash) = (Step::RouteLocalnet(name.clone()), journal.key().hash().to_owned());
        journal.note(step.clone());
        journal.within(step, || localnet::open(state_dir, &name, &hash))?;
    }
    ports.warn_of_listeners();
    forgotten(ports.forget_flows_of_others(nft));
    Ok(())
}

/// A kernel without the record of flows has none that could be wrong; whatever else goes wrong with them delays a
/// client that keeps sending, and is not worth a container.
pub(super) fn forgotten(outcome: NlResult<()>) {
    match outcome {
        Err(error) if !conntrack::is_untracked(&error) => {
            log::warn!("flows of UDP that conntrack knows could not be forgotten: {error}");
        }
        _ => {}
    }
}

/// Whether anything is left of an attachment but elements in the ruleset. When that cannot be told, it lives.
fn is_alive(state_dir: &Path, hash: &str) -> bool {
    let link = || {
        let deadline = Deadline::after(std::time::Duration::from_secs(5));
        let found = Netlink::open(deadline).and_then(|mut host| host.link(&host_veth_of(hash)));
        !matches!(found, Ok(None))
    };
    record::exists(state_dir, hash) || link()
}
