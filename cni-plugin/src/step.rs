//! The steps of an attachment, and the journal that takes them back.
//!
//! A step is data: its `Display` is what an error and the log name. [`Journal::take_back`] undoes it in one
//! exhaustive match, so that a new step does not compile without its undo.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use cni_protocol::{AddArgs, Deadline, Error, IfName};
use ipnetwork::IpNetwork;
use log::{debug, warn};
use weft_state::{Lock, monotonic};

use crate::conf;
use crate::fault::{Change, Fault, failed};
use crate::holdings::erasure;
use crate::key::AttachmentKey;
use crate::masquerade::ending::{self, Former};
use crate::masquerade::{self, Ensured};
use crate::overlay::{self, Overlay};
use crate::pod::Pod;
use crate::record::{self, Content, Record};
use crate::ruleset::{self, Group};
use crate::shaping;
use crate::{bridge, forwarding, ipam, localnet, tuning, veth};
use weft_net::Family;
use weft_net::netns::NetNs;
use weft_net::nft::{Element, Nft};
use weft_net::sysctl::Sysctl;
use weft_net::{Netlink, WholeAddress};

/// What taking back may last when the command's own time is over.
const UNDO_TIME: Duration = Duration::from_secs(5);

/// One thing that ADD does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Record,
    Reserve(String),
    Shared(Shared),
    Veth(String),
    Port(String),
    /// A link that traffic takes a detour through.
    Ifb(String),
    /// Where filters can be on a link.
    Hooks(String),
    /// The queue that what leaves by a link waits in.
    Queue(String),
    Shape(String),
    /// The attachment's elements in the ruleset.
    Rules,
    /// 127.0.0.1 of the host reaches the container by this interface.
    RouteLocalnet(IfName),
    Settings(IfName),
    /// A kernel setting of the container, and the value that it had.
    Sysctl(Sysctl, String),
    Tune(IfName),
    Address(IpNetwork),
    Up(IfName),
    Detection(IfName),
    Answering(IfName),
    Route(IpNetwork, Option<IpAddr>),
    ReadBack(String),
    /// What the host, or other containers, know of those that had the addresses before.
    Neighbours(IfName),
}

/// A step whose outcome all attachments of the host may come to rely on. Whoever takes it back must be alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    Bridge(IfName),
    BridgeUp(IfName),
    Promiscuous(IfName),
    /// Another address of the gateway's subnet gives way to it.
    ReplaceAddress(IfName, Box<WholeAddress>),
    /// The bridge gets IPv6.
    Ipv6(IfName),
    Gateway(IfName, IpNetwork),
    /// Links have routers' advertisements kept when the host routes, by these settings.
    Advertisements(Vec<Sysctl>),
    /// Switched on, and the settings of interfaces that were so before.
    Forwarding(Family, Vec<Sysctl>),
    Masquerade(Ensured),
    /// The network is masqueraded no more, and was so.
    EndMasquerade(Option<Former>),
    /// Device and routes to the network's other hosts.
    Overlay(Overlay),
    /// The static rules that came with their first use.
    Ruleset(Vec<&'static Group>),
    /// What the network has in the ruleset, in place of this.
    NetworkRules(Vec<Element>),
    /// Other attachments may be the same container's.
    Loopback,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => f.write_str("record the attachment"),
            Self::Reserve(plugin) => write!(f, "reserve addresses with {plugin}"),
            Self::Shared(shared) => shared.fmt(f),
            Self::Veth(name) => write!(f, "create veth {name}"),
            Self::Port(name) => write!(f, "configure bridge port {name}"),
            Self::Ifb(name) => write!(f, "create ifb {name}"),
            Self::Hooks(name) => write!(f, "add hooks for filters to {name}"),
            Self::Queue(name) => write!(f, "limit what leaves by {name}"),
            Self::Shape(name) => write!(f, "limit the traffic of {name}"),
            Self::Rules => f.write_str("add the attachment to the ruleset"),
            Self::RouteLocalnet(name) => write!(f, "route 127.0.0.1 to {name}"),
            Self::Settings(name) => write!(f, "set IPv6 settings of {name} in the container"),
            Self::Sysctl(key, _) => write!(f, "set {key} in the container"),
            Self::Tune(name) => write!(f, "set flags and queue of {name} in the container"),
            Self::Address(address) => write!(f, "add address {address} in the container"),
            Self::Up(name) => write!(f, "set {name} up in the container"),
            Self::Detection(name) => write!(f, "wait for duplicate address detection on {name}"),
            Self::Answering(name) => write!(f, "wait until {name} answers for its addresses"),
            Self::Route(dst, None) => write!(f, "add route {dst} in the container"),
            Self::Route(dst, Some(gateway)) => write!(f, "add route {dst} via {gateway} in the container"),
            Self::ReadBack(name) => write!(f, "read {name} back"),
            Self::Neighbours(link) => write!(f, "correct what neighbours on {link} know"),
        }
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(name) => write!(f, "ensure bridge {name}"),
            Self::BridgeUp(name) => write!(f, "take bridge {name} into use"),
            Self::Promiscuous(name) => write!(f, "set bridge {name} promiscuous"),
            Self::ReplaceAddress(name, whole) => {
                write!(f, "remove address {} from bridge {name}", whole.address)
            }
            Self::Gateway(name, address) => write!(f, "add gateway address {address} to bridge {name}"),
            Self::Ipv6(name) => write!(f, "switch IPv6 of bridge {name} on"),
            Self::Advertisements(_) => f.write_str("keep the routes that routers advertise"),
            Self::Forwarding(family, _) => write!(f, "enable {family} forwarding"),
            Self::Masquerade(_) => f.write_str("masquerade the network"),
            Self::EndMasquerade(_) => f.write_str("end the network's masquerade"),
            Self::Overlay(_) => f.write_str("connect with the other hosts"),
            Self::Ruleset(_) => f.write_str("ensure the static rules"),
            Self::NetworkRules(_) => f.write_str("add the network to the ruleset"),
            Self::Loopback => f.write_str("set lo up in the container"),
        }
    }
}

/// What an ADD has done so far. Dropped before [`Journal::into_rollback`], it takes everything back: so a panic ends
/// as clean as an error.
pub struct Journal {
    args: Rc<AddArgs>,
    state_dir: PathBuf,
    key: AttachmentKey,
    /// Let go before the network's lock, in the order of these lines: whoever has that alone finds no ADD at work.
    record: Option<Record>,
    /// Held shared by every ADD of the host: whoever has it alone may take back what attachments share.
    host_lock: Lock,
    /// Held shared by every ADD of the network, and alone by its GC.
    _network_lock: Lock,
    done: Vec<Step>,
    /// When it began, on the clock of [`Content::since`].
    began: Duration,
    /// What the record will say.
    pub content: Content,
    /// Whether dropping the journal takes everything back.
    armed: bool,
}

impl Journal {
    /// Opens the journal of an attachment whose record is locked.
    pub fn new(
        args: Rc<AddArgs>,
        state_dir: &Path,
        key: AttachmentKey,
        (host_lock, network_lock): (Lock, Lock),
        record: Record,
    ) -> Self {
        Self {
            content: Content::begun(&key, args.netns.path()),
            args,
            state_dir: state_dir.to_owned(),
            key,
            host_lock,
            _network_lock: network_lock,
            record: Some(record),
            done: vec![Step::Record],
            began: monotonic(),
            armed: true,
        }
    }

    /// Carries a step out, and remembers it if it changed anything.
    pub fn run<T, F: Into<Fault>>(
        &mut self,
        step: Step,
        work: impl FnOnce() -> Result<(T, Change), F>,
    ) -> Result<T, Error> {
        debug!("{step}");
        let (value, change) = work().map_err(|fault| failed(&step, fault.into()))?;
        if change == Change::Made {
            self.done.push(step);
        }
        Ok(value)
    }

    /// The same for a step that leaves nothing for the journal to take back.
    pub fn within<T, F: Into<Fault>>(
        &mut self,
        step: Step,
        work: impl FnOnce() -> Result<T, F>,
    ) -> Result<T, Error> {
        self.run(step, || work().map(|value| (value, Change::Found)))
    }

    /// Remembers a step before it is tried, or one whose undo needs to know what it found.
    pub fn note(&mut self, step: Step) {
        self.done.push(step);
    }

    /// Strikes out a step that turned out not to have been done.
    pub fn strike(&mut self, step: &Step) {
        self.done.retain(|done| done != step);
    }

    /// Has masquerade stay, whatever becomes of the ADD: others of the network rely on it.
    pub fn keep_masquerade(&mut self) {
        self.done.retain(|step| !matches!(step, Step::Shared(Shared::Masquerade(_))));
    }

    pub fn key(&self) -> &AttachmentKey {
        &self.key
    }

    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Writes on record how far the attachment is.
    pub fn write_record(&mut self, attached: bool) -> Result<(), Error> {
        let Some(record) = &self.record else { return Ok(()) };
        self.content.ipam = conf::ipam(&self.args.call.conf)?.map(|(_, ipam)| ipam.clone());
        self.content.is_now(attached);
        record.write(&self.content).map_err(|error| failed(&Step::Record, error.into()))?;
        if attached {
            record.take_from_children();
        }
        Ok(())
    }

    /// Takes back all that was done, the last first, and goes on after a failure. Returns what is left, and what is not. The
    /// address and the record of an attachment whose link is left stay for DEL and GC, which need them.
    fn roll_back(&mut self) -> Vec<String> {
        // A panic may have struck inside the container's namespace, where links of the same names can be.
        if let Err(error) = NetNs::host_of(&self.args.netns).enter() {
            return vec![format!("nothing was taken back, as the host's network namespace is lost: {error}")];
        }
        let (mut left, mut taken_back) = (Vec::new(), Vec::new());
        while let Some(step) = self.done.pop() {
            if !left.is_empty() && matches!(step, Step::Reserve(_) | Step::Record) {
                left.push(format!("left for DEL: {step}"));
                continue;
            }
            match self.take_back(&step) {
                Ok(()) => taken_back.push(step.to_string()),
                Err(error) => {
                    warn!("cannot take back \"{step}\": {}", error.msg);
                    left.extend(failed(&format!("not taken back: {step}"), error.into()).lines());
                }
            }
        }
        if !taken_back.is_empty() {
            left.push(format!("taken back: {}", taken_back.join("; ")));
        }
        left
    }

    /// The error because of which all is taken back, with what was, and what was not.
    pub fn fail(&mut self, error: Error) -> Error {
        self.roll_back().into_iter().fold(error, Error::detail)
    }

    /// All is done. What is left of the journal is the way back, for when the result cannot be delivered;
    /// the locks are held until then.
    pub fn into_rollback(mut self) -> impl FnOnce() -> Vec<String> {
        self.armed = false;
        move || self.roll_back()
    }

    fn take_back(&mut self, step: &Step) -> Result<(), Error> {
        let deadline = Deadline::after(UNDO_TIME);
        let undone = match step {
            Step::Record => self.record.take().map_or(Ok(()), Record::remove).map_err(Fault::from),
            Step::Reserve(plugin) => {
                ipam::release(plugin, &self.args.call, &self.key, deadline).map_err(Fault::from)
            }
            Step::Shared(shared) => match self.alone()? && !self.is_relied_on() {
                true => self.take_back_shared(shared, deadline),
                // Other ADDs are under way, or have ended since this one began, and may rely on it by now; then it is theirs.
                false => Ok(()),
            },
            Step::Rules => Nft::open(deadline)
                .and_then(|mut nft| erasure::sweep(&mut nft, |hash| hash == self.key.hash()))
                .map_err(Fault::from),
            Step::RouteLocalnet(_) => localnet::close(&self.state_dir, &[self.key.hash()], deadline),
            Step::Veth(name) | Step::Ifb(name) => veth::remove(name, deadline).map_err(Fault::from),
            Step::Hooks(link) => shaping::undo(link, deadline, Netlink::delete_hooks).map_err(Fault::from),
            Step::Queue(link) => {
                shaping::undo(link, deadline, Netlink::delete_token_bucket).map_err(Fault::from)
            }
            Step::Sysctl(key, before) => {
                let pod = Pod::open(&self.args.netns, deadline).map_err(Fault::from);
                pod.and_then(|pod| tuning::restore(&pod, key, before))
            }
            // Gone with the veth pair.
            Step::Port(_)
            | Step::Shape(_)
            | Step::Settings(_)
            | Step::Tune(_)
            | Step::Address(_)
            | Step::Up(_)
            | Step::Detection(_)
            | Step::Answering(_)
            | Step::Route(..)
            | Step::ReadBack(_)
            | Step::Neighbours(_) => Ok(()),
        };
        undone.map_err(|fault| failed(&format!("take back \"{step}\""), fault))
    }

    fn take_back_shared(&self, shared: &Shared, deadline: Deadline) -> Result<(), Fault> {
        match shared {
            Shared::Bridge(name) => bridge::remove_unused(name, deadline),
            Shared::BridgeUp(name) => bridge::set_down(name, deadline),
            Shared::Promiscuous(name) => Ok(Netlink::open(deadline)?.set_promiscuous(name.as_str(), false)?),
            Shared::ReplaceAddress(_, whole) => Ok(Netlink::open(deadline)?.put_back(whole)?),
            Shared::Gateway(name, address) => bridge::remove_gateway(name, *address, deadline),
            Shared::Ipv6(name) => Ok(Sysctl::ipv6_of(name.as_str(), "disable_ipv6").set("1")?),
            Shared::Advertisements(settings) => Ok(forwarding::accept_no_more(settings)?),
            Shared::Forwarding(family, alone) => Ok(forwarding::stop(*family, alone)?),
            Shared::Masquerade(ensured) => {
                Ok(masquerade::undo(&mut Nft::open(deadline)?, &self.key.network, ensured)?)
            }
            Shared::EndMasquerade(former) => former.as_ref().map_or(Ok(()), |former| {
                ending::undo(&mut Nft::open(deadline)?, &self.state_dir, &self.key.network, former)
            }),
            Shared::Overlay(made) => Ok(overlay::remove(&mut Netlink::open(deadline)?, made)?),
            Shared::Ruleset(made) => Ok(ruleset::undo(&mut Nft::open(deadline)?, made)?),
            Shared::NetworkRules(before) => {
                Ok(ruleset::network::restore(&mut Nft::open(deadline)?, &self.key.network, before)?)
            }
            Shared::Loopback => Ok(Pod::open(&self.args.netns, deadline)?.netlink.set_down("lo")?),
        }
    }

    /// Whether an attachment was made since this ADD began.
    fn is_relied_on(&self) -> bool {
        record::has_newer(&self.state_dir, self.began, self.key.hash())
    }

    /// Whether no other ADD of the host is under way.
    pub fn alone(&mut self) -> Result<bool, Error> {
        self.host_lock.upgrade_now()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.armed {
            // What could not be taken back was logged.
            let _ = self.roll_back();
        }
    }
}
