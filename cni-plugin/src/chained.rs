//! Weft behind another interface plugin: ADD, CHECK and STATUS with `"chained": true`.
//!
//! Only what concerns an interface whoever made it is done here: host ports and limits. The result is that of the plugin
//! before. DEL and GC go by key and record and are those of all attachments, in [`crate::detach`] and [`crate::gc`].

use std::rc::Rc;

use cni_protocol::{
    AddArgs, AddResult, Call, CheckArgs, Code, Error, IfName, Interface, Outcome, StatusArgs,
};
use serde_json::Value;
use weft_net::nft::Nft;
use weft_net::{Link, Netlink};

use crate::attach;
use crate::check;
use crate::conf::Asked;
use crate::conf::chained::Chained;
use crate::conf::names::Names;
use crate::holdings::{Holdings, hold};
use crate::hostport::{Ports, Reach};
use crate::key::AttachmentKey;
use crate::plan::Plan;
use crate::pod::Pod;
use crate::record::{self, Found};
use crate::shaping::{self, Limited};
use crate::status;
use crate::step::{Fault, Journal, failed};

/// Does for the container's interface what is asked for. What was done goes with the result: who cannot deliver that
/// takes all back.
pub fn add(args: AddArgs) -> Result<Outcome, Error> {
    let args = Rc::new(args);
    let mut attachment = Attachment::begin(&args)?;
    match attachment.attach() {
        Ok(()) => {
            let result = unchanged(&args.call, &attachment.previous);
            Ok(Outcome::Passed { result, rollback: Box::new(attachment.journal.into_rollback()) })
        }
        Err(error) => Err(attachment.journal.roll_back().into_iter().fold(error, Error::detail)),
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
        let previous = args.prev_result.clone().ok_or_else(|| {
            let why = "chained is true, but there is no prevResult: put weft behind the plugin that makes the interface, \
                       or leave chained out";
            Error::new(Code::InvalidConfig, why)
        })?;
        let mut host = open_host(call)?;
        let mut pod = open_pod(&args.netns, call)?;
        let found = OfAnother::find(&previous, &args.ifname, &mut host, &mut pod)?;
        let mut journal = attach::open_journal(args, &key, &conf.traces)?;
        journal.names = names;
        Ok(Self { args: args.clone(), conf, asked, key, previous, host, found, journal })
    }

    /// The steps, in their order. Which link will have limits is on record before it has them.
    fn attach(&mut self) -> Result<(), Error> {
        let limits = self.conf.shaping.or(&self.asked.shaping);
        let limited = if limits.is_none() { None } else { Some(self.found.to_be_limited(&self.key)?) };
        self.journal.limited = limited.map(|link| Limited { link: link.name.clone(), index: link.index });
        self.journal.write_record(false)?;
        if let Some(link) = limited {
            shaping::apply(&mut self.journal, &mut self.host, &self.key, link, &limits)?;
        }
        let holdings = self.found.holdings(&self.conf, &self.asked)?;
        let _hold = hold(&mut self.journal, &self.args.call, &self.key, &self.conf.traces, holdings)?;
        self.journal.write_record(true)
    }
}

/// An interface that another plugin made.
struct OfAnother {
    plan: Plan,
    /// The other end of a pair.
    host_end: Option<Link>,
    reach: Reach,
}

impl OfAnother {
    /// Finds it by what the plugin before says, and looks whether that is so.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] when the result does not name the container's interface, [`Code::Conflict`] when there is none.
    fn find(previous: &AddResult, ifname: &IfName, host: &mut Netlink, pod: &mut Pod) -> Result<Self, Error> {
        let AddResult { interfaces, ips, routes, .. } = previous;
        let sandboxed = |link: &Interface| link.sandbox.as_deref().is_some_and(|path| !path.is_empty());
        let at = interfaces.iter().position(|link| link.name == ifname.as_str() && sandboxed(link));
        // Results up to 0.2.0 name no interfaces.
        if at.is_none() && !interfaces.is_empty() {
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
        let reach = reach(host, host_end.as_ref()).map_err(read)?;
        Ok(Self { plan: Plan::of_another(own, routes.clone()), host_end, reach })
    }

    /// What the attachment needs in the host's rules. Pure.
    fn holdings(&self, conf: &Chained, asked: &Asked) -> Result<Holdings, Error> {
        let ports = Ports::new(&conf.ports, &self.reach, asked, &self.plan)?;
        Ok(Holdings { ports, ..Holdings::default() })
    }

    /// The link at which traffic is limited.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] where the host has none of the container's own.
    fn to_be_limited(&self, key: &AttachmentKey) -> Result<&Link, Error> {
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

/// Numbers of links alone do not tell: each namespace has its own, and a macvlan has the number of the link below it.
fn are_pair(one: &Link, other: &Link) -> bool {
    let is_end = |link: &Link| matches!(link.kind.as_deref(), Some("veth" | "netkit"));
    is_end(one)
        && is_end(other)
        && one.kind == other.kind
        && (one.peer, other.peer) == (Some(other.index), Some(one.index))
}

fn reach(host: &mut Netlink, host_end: Option<&Link>) -> weft_net::NlResult<Reach> {
    let Some(link) = host_end else { return Ok(Reach::Unknown) };
    let Some(master) = link.master else { return Ok(Reach::Own(link.name.clone())) };
    let master = host.link_at(master)?.filter(|master| master.kind.as_deref() == Some("bridge"));
    Ok(master.map_or(Reach::Unknown, |bridge| Reach::Bridge(bridge.name)))
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
    let mut host = open_host(call)?;
    let mut pod = open_pod(&args.netns, call)?;
    let gone = |error: Error| match error.code {
        Code::Conflict => Error { code: Code::CheckFailed, ..error },
        _ => error,
    };
    let interface = OfAnother::find(&args.prev_result, &args.ifname, &mut host, &mut pod).map_err(gone)?;
    // The record has what was asked for when the container was attached.
    let (holdings, limits) = match record::peek(&conf.traces.state_dir, &key.network, key.hash())? {
        Found::Attached(content) => (content.holdings, content.shaping),
        _ => (interface.holdings(&conf, &asked)?, conf.shaping.or(&asked.shaping)),
    };
    let mut found = Vec::new();
    if let Some(link) = &interface.host_end {
        let different = shaping::differences(&mut host, &key, link, &limits);
        found.extend(different.map_err(|error| failed(&"look at the limits", error.into()))?);
    } else if !limits.is_none() {
        found.push(format!("the host's end of {}, where traffic is limited, is gone", key.ifname));
    }
    found.extend(
        check::rules(&key, &holdings, call.deadline)
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
    status::check_state_dir(&conf.traces).map_err(refuse)?;
    let has_ports =
        args.call.conf.get("capabilities").and_then(|all| all.get("portMappings")) == Some(&true.into());
    if has_ports {
        Nft::open(args.call.deadline)
            .and_then(|mut nft| nft.available())
            .map_err(|error| refuse(failed(&"ask for nftables, which host ports need", error.into())))?;
    }
    status::rehearse_limits(&args.call, &conf.shaping).map_err(refuse)?;
    Ok(Outcome::Done)
}

fn open_host(call: &Call) -> Result<Netlink, Error> {
    Netlink::open(call.deadline).map_err(|error| failed(&"open a netlink socket", error.into()))
}

fn open_pod(netns: &std::path::Path, call: &Call) -> Result<Pod, Error> {
    Pod::open(netns, call.deadline).map_err(|fault| failed(&"open CNI_NETNS", fault))
}
