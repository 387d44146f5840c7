//! Weft behind another interface plugin: ADD, CHECK and STATUS with `"chained": true`.
//!
//! Only what concerns an interface whoever made it is done here: host ports, guard, isolation and limits. The result is that of the plugin
//! before. DEL and GC go by key and record and are those of all attachments, in [`crate::detach`] and [`crate::gc`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use cni_protocol::{AddArgs, AddResult, Call, CheckArgs, Code, Error, Outcome, StatusArgs};
use serde_json::Value;
use weft_net::nft::Nft;
use weft_net::{Family, NetError, Netlink};

use crate::begin;
use crate::check;
use crate::conf::Asked;
use crate::conf::chained::Chained;
use crate::conf::names::Names;
use crate::fault::failed;
use crate::firewalls::{self, Traffic};
use crate::guard;
use crate::holdings::hold::hold;
use crate::hostport;
use crate::isolation;
use crate::key::AttachmentKey;
use crate::pod::{Pod, open_host};
use crate::record::{self, Found};
use crate::ruleset::{self, Group};
use crate::shaping::{self, HostEnd, Limited};
use crate::status;
use crate::step::Journal;

mod interface;

use interface::OfAnother;

/// Does for the container's interface what is asked for. What was done goes with the result: a caller that cannot
/// deliver that takes all back.
pub fn add(args: AddArgs) -> Result<Outcome, Error> {
    let args = Rc::new(args);
    let mut attachment = Attachment::begin(&args)?;
    match attachment.attach() {
        Ok(()) => {
            let result = unchanged(&args.call, &attachment.previous);
            Ok(Outcome::Passed { result, rollback: Box::new(attachment.journal.into_rollback()) })
        }
        Err(error) => Err(attachment.journal.fail(error)),
    }
}

/// One attachment in the making.
struct Attachment {
    args: Rc<AddArgs>,
    conf: Chained,
    asked: Asked,
    key: AttachmentKey,
    previous: AddResult,
    host: Netlink,
    found: OfAnother,
    journal: Journal,
}

impl Attachment {
    /// Checks all that was asked for, and takes the locks and the record. Nothing else is touched yet.
    fn begin(args: &Rc<AddArgs>) -> Result<Self, Error> {
        let call = &args.call;
        let conf = Chained::parse(&call.conf)?;
        let key = AttachmentKey::new(&call.network, &args.container_id, &args.ifname);
        log::info!("ADD {key}, chained");
        let asked = Asked::parse(&call.conf)?;
        let names = Names::parse(&call.conf, &args.args)?;
        asked.refuse_rules_of_others(args.container_id.as_str(), &names)?;
        let previous = args.prev_result.clone().ok_or_else(|| {
            let why = "chained is true, but there is no prevResult: put weft behind the plugin that makes the interface, \
                       or leave chained out";
            Error::new(Code::InvalidConfig, why)
        })?;
        let mut host = open_host(call.deadline)?;
        let mut pod = Pod::open(&args.netns, call.deadline)?;
        let mut found = OfAnother::find(&previous, &args.ifname, &mut host, &mut pod)?;
        if !asked.mappings.is_empty() {
            found.look_at_default_routes(&mut pod)?;
        }
        let mut journal = begin::open_journal(args, &key, &conf.state_dir)?;
        journal.content.names = names;
        Ok(Self { args: args.clone(), conf, asked, key, previous, host, found, journal })
    }

    /// The steps, in their order. Which link will have limits, and which port rules may name, is on record before.
    fn attach(&mut self) -> Result<(), Error> {
        let limits = self.conf.shaping.or(&self.asked.shaping);
        let limited = if limits.is_none() { None } else { Some(self.found.to_be_limited(&self.key)?) };
        self.journal.content.limited =
            limited.map(|link| Limited { link: link.name.clone(), index: link.index });
        let holdings = self.found.holdings(&self.conf, &self.asked)?;
        self.journal.content.holdings.port.clone_from(&holdings.port);
        self.journal.write_record(false)?;
        if let Some(link) = limited {
            let end = HostEnd { name: &link.name, index: link.index, mtu: link.mtu };
            shaping::apply(&mut self.journal, &mut self.host, &self.key, &end, &limits)?;
        }
        let _hold =
            hold(&mut self.journal, None, &self.args.call, &self.key, &self.conf.state_dir, holdings)?;
        self.journal.write_record(true)
    }
}

/// The result of the plugin before, as it came.
fn unchanged(call: &Call, previous: &AddResult) -> Value {
    let version = call.version;
    let raw =
        call.conf.get("prevResult").filter(|raw| raw.get("cniVersion") == Some(&version.as_str().into()));
    raw.cloned().unwrap_or_else(|| previous.to_json(version))
}

/// Checks what [`add`] made; the rest of the interface is for the plugin before to check.
///
/// # Errors
/// [`Code::CheckFailed`]: the first promise that does not hold and what was found instead, the others in the details.
pub fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let call = &args.call;
    let conf = Chained::parse(&call.conf)?;
    let key = AttachmentKey::new(&call.network, &args.container_id, &args.ifname);
    let asked = Asked::parse(&call.conf)?;
    let mut host = open_host(call.deadline)?;
    let mut pod = Pod::open(&args.netns, call.deadline)?;
    let gone = |error: Error| match error.code {
        Code::Conflict => Error { code: Code::CheckFailed, ..error },
        _ => error,
    };
    let mut interface =
        OfAnother::find(&args.prev_result, &args.ifname, &mut host, &mut pod).map_err(gone)?;
    let mut found: Vec<String> = record::damage(&conf.state_dir, &key)?.into_iter().collect();
    // The record has what was asked for when the container was attached.
    let (mut holdings, limits) = match record::up_to_date(&conf.state_dir, &key)? {
        Some(content) => (content.holdings, content.shaping),
        None => {
            interface.look_at_default_routes(&mut pod)?;
            (interface.holdings(&conf, &asked)?, conf.shaping.or(&asked.shaping))
        }
    };
    let guarded = holdings.port.as_deref().filter(|_| holdings.guard.is_some());
    if let Some(port) = guarded.filter(|port| interface.port_name() != Some(port)) {
        found.push(format!(
            "{port}, where the container's frames are compared, is no port of a bridge any more"
        ));
    }
    if holdings.isolation.is_some() {
        match interface.isolation(&conf, &asked) {
            Ok(now) => {
                check::renew_policy(call, &conf.state_dir, &mut holdings, now.map(|now| now.policy))?;
            }
            Err(error) => found.push(error.msg),
        }
    }
    if let Some(link) = &interface.host_end {
        let different = shaping::differences(&mut host, &key, link, &limits);
        found.extend(different.map_err(|error| failed(&"look at the limits", error.into()))?);
    } else if !limits.is_none() {
        found.push(format!("the host's end of {}, where traffic is limited, is gone", key.ifname));
    }
    found.extend(
        check::rules(&conf.state_dir, &key, &mut holdings, call.deadline)
            .map_err(|fault| failed(&"look at the ruleset", fault))?,
    );
    check::verdict(found)?;
    Ok(Outcome::Done)
}

/// Answers whether what is configured can be done for another container.
///
/// # Errors
/// [`Code::NotAvailable`] with the reason.
pub fn status(args: &StatusArgs) -> Result<Outcome, Error> {
    let conf = Chained::parse(&args.call.conf)?;
    let refuse = status::not_available;
    status::check_capabilities().map_err(refuse)?;
    status::check_state_dir(&conf.state_dir).map_err(refuse)?;
    let has_ports = status::can_have_ports(&args.call);
    let groups = needed(&conf, has_ports);
    if !groups.is_empty() {
        let rehearse = || {
            let mut nft = Nft::open(args.call.deadline)?;
            nft.available()?;
            ruleset::rehearse(&mut nft, &groups)
        };
        rehearse().map_err(|error: NetError| refuse(failed(&"rehearse the rules", error.into())))?;
    }
    status::rehearse_limits(&args.call, &conf.shaping).map_err(refuse)?;
    if has_ports {
        check_firewalls(&args.call, &conf.state_dir).map_err(status::unless_told)?;
    }
    Ok(Outcome::Done)
}

/// The groups of rules that are sure to be needed: which interface will come is not known, so what is asked for counts.
fn needed(conf: &Chained, has_ports: bool) -> Vec<&'static Group> {
    let mut groups = if has_ports { hostport::groups(&conf.ports) } else { Vec::new() };
    if !conf.isolation_wishes.is_empty() {
        groups.extend(isolation::GROUPS);
    }
    if conf.guard_wish.is_some() && !conf.guard.is_empty() {
        groups.push(&guard::GROUP);
    }
    groups
}

/// Whether firewalls of others let pass what comes to host ports. The plugin before chooses by which bridge that goes, and the containers
/// that are there tell it; what else the bridge forwards is that plugin's affair.
fn check_firewalls(call: &Call, state_dir: &Path) -> Result<(), Error> {
    let mut bridges: BTreeMap<String, BTreeSet<Family>> = BTreeMap::new();
    for hash in record::hashes(state_dir, &call.network)? {
        if let Found::Attached(content) = record::peek(state_dir, &call.network, &hash)?
            && let Some(isolation) = &content.holdings.isolation
            && let Some(bridge) = isolation.policy.bridge()
        {
            let families = isolation.addresses.iter().copied().map(Family::of);
            bridges.entry(bridge.to_owned()).or_default().extend(families);
        }
    }
    let nft = Nft::open(call.deadline);
    let mut nft = nft.map_err(|error| failed(&"look at firewalls of others", error.into()))?;
    for (bridge, families) in &bridges {
        let families: Vec<Family> = families.iter().copied().collect();
        let ports = Traffic { bridge, families: &families, goes_out: false, has_ports: true, exits: &[] };
        firewalls::check(&mut nft, &ports)?;
    }
    Ok(())
}
