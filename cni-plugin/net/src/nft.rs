//! nftables: `nft`, for the tables `inet weft` and `bridge weft` and no other.
//!
//! Every verb names one of them, so nobody else's objects can be read or changed by mistake ([`crate::foreign`] reads them on purpose). Sources:
//! linux/netfilter/nf_tables.h and nfnetlink.h; what `nft --debug=netlink` sends for the same text.

mod answer;
mod bytes;
mod chain;
mod change;
mod element;
mod interval;
mod load;
mod matches;
mod rule;
mod set;
mod table;
pub(crate) mod uapi;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use cni_protocol::Deadline;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute,
    SetElementList, SetElementMessage, SetFlags, SetMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, NetfilterSubsystem};
use netlink_sys::protocols;
use nix::errno::Errno;

use super::error::{NetError, NlResult};
use super::socket::Socket;
use crate::{Family, attribute};
pub(crate) use answer::Answer;
use bytes::number;
pub(crate) use bytes::{nested, put, text as text_of};
pub use chain::ChainKind;
pub use change::Change;
pub use element::{Element, Tuple, ends};
pub(crate) use element::{REMOVED_ELEMENTS, comments};
pub use interval::Interval;
pub use load::Load;
pub use netlink_packet_netfilter::nftables::InetHookNumber;
pub use rule::{Field, Rule};
pub use set::{FIELD_ALIGN, Set, Type};
pub use table::Table;
use uapi::{
    NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_GEN_ID,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_SET_FLAGS, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE,
};

/// How often others may be faster, one after the other, before it is reported.
pub const ATTEMPTS: usize = 16;

/// Tries again when the state that changes were made for has changed meanwhile.
pub fn retry<T>(mut attempt: impl FnMut() -> NlResult<T>) -> NlResult<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_overtaken(&error) => {}
            other => return other,
        }
    }
    attempt()
}

/// The same where the kernel would take changes that are wrong by now: they are for [`Nft::batch_in`] the generation that an attempt
/// is given, in which it looks. Whoever is never left alone gets on in the end, too.
pub fn retry_in<T>(
    nft: &mut Nft,
    mut attempt: impl FnMut(&mut Nft, Generation) -> NlResult<T>,
) -> NlResult<T> {
    for _ in 1..ATTEMPTS {
        let now = nft.generation()?;
        match attempt(nft, now) {
            Err(error) if is_overtaken(&error) || error.errno == Errno::ERESTART => {}
            other => return other,
        }
    }
    attempt(nft, Generation::ANY)
}

fn is_overtaken(error: &NetError) -> bool {
    matches!(error.errno, Errno::EEXIST | Errno::ENOENT | Errno::EBUSY | Errno::ENOTEMPTY)
}

/// A state of all tables of the host, also those of others: every change makes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// Whichever it is; the kernel counts from 1.
    const ANY: Self = Self(0);
}

/// The table that holds everything of Weft's, in the family `inet`.
pub const TABLE: &str = "weft";
/// `NF_ACCEPT` of linux/netfilter.h.
pub const POLICY_ACCEPT: u32 = 1;

/// A `NETLINK_NETFILTER` socket.
pub struct Nft {
    socket: Socket,
}

impl AsFd for Nft {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where a base chain stands in the packet's way: `type KIND hook HOOK priority PRIORITY; policy POLICY`.
/// A regular chain has none of these, and an empty kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub kind: String,
    pub hook: InetHookNumber,
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`.
    pub policy: u32,
}

/// What a set's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetKind {
    pub key_type: u32,
    /// In bytes.
    pub key_len: u32,
    pub flags: SetFlags,
}

impl Nft {
    /// Opens a netfilter socket in the current network namespace.
    ///
    /// # Errors
    /// What socket(2) says; `EPROTONOSUPPORT` where the kernel has no nfnetlink.
    pub fn open(deadline: Deadline) -> NlResult<Self> {
        Ok(Self { socket: Socket::open(protocols::NETLINK_NETFILTER, deadline)? })
    }

    /// The same; `None` where the kernel has no netfilter.
    ///
    /// # Errors
    /// What socket(2) says otherwise.
    pub fn open_if_there(deadline: Deadline) -> NlResult<Option<Self>> {
        match Self::open(deadline) {
            Err(error) if error.errno == Errno::EPROTONOSUPPORT => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// When the command's time is over.
    pub fn deadline(&self) -> Deadline {
        self.socket.deadline()
    }

    /// For what else the kernel tells over such a socket.
    pub(crate) fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Whether the kernel has nf_tables and lets this process use it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` without nf_tables, `EPERM` without `CAP_NET_ADMIN`.
    pub fn available(&mut self) -> NlResult<()> {
        match self.generation() {
            // nfnetlink's answer when nobody serves the subsystem, even after it asked for the module.
            Err(error) if error.errno == Errno::EINVAL => Err(NetError {
                errno: Errno::EOPNOTSUPP,
                explanation: Some("the kernel has no nf_tables".into()),
            }),
            other => other.map(drop),
        }
    }

    /// Which state the tables are in.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn generation(&mut self) -> NlResult<Generation> {
        let query = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let answers: Vec<Answer> = self.socket.request(message(query), 0)?;
        let id = answers.first().and_then(|answer| answer.get(NFTA_GEN_ID)).and_then(answer::number);
        Ok(id.map_or(Generation::ANY, Generation))
    }

    /// `nft -f`: carries out all changes, or none of them.
    ///
    /// # Errors
    /// The first refusal; the explanation names the change.
    pub fn batch(&mut self, changes: Vec<Change>) -> NlResult<()> {
        self.submit(changes, true, Generation::ANY)
    }

    /// The same, unless anything has changed since.
    ///
    /// # Errors
    /// `ERESTART` when it has; else as [`Nft::batch`].
    pub fn batch_in(&mut self, since: Generation, changes: Vec<Change>) -> NlResult<()> {
        self.submit(changes, true, since)
    }

    /// `nft -c -f`: whether the kernel would carry out all changes. Nothing is changed.
    ///
    /// # Errors
    /// As [`Nft::batch`].
    pub fn rehearse(&mut self, changes: Vec<Change>) -> NlResult<()> {
        self.submit(changes, false, Generation::ANY)
    }

    fn submit(&mut self, changes: Vec<Change>, for_real: bool, since: Generation) -> NlResult<()> {
        let count = changes.len();
        let mut texts = Vec::with_capacity(count);
        let mut messages = Vec::with_capacity(count + 2);
        messages.push((frame(begin(since)), NLM_F_REQUEST));
        for change in changes {
            messages.push((message_of(change.table, change.message), NLM_F_REQUEST | change.flags));
            texts.push(change.text);
        }
        // One answer is enough: the kernel answers every message that it refuses, asked or not.
        if let Some((_, flags)) = messages.last_mut() {
            *flags |= NLM_F_ACK;
        }
        if for_real {
            messages.push((frame(ControlMessage::BatchEnd), NLM_F_REQUEST));
        }
        let Err(refusal) = self.socket.batch(messages, for_real) else {
            return Ok(());
        };
        let mut error = refusal.error;
        let text = refusal.position.checked_sub(1).and_then(|position| texts.get(position));
        error.explanation = match (text, error.explanation) {
            (Some(text), Some(explanation)) => Some(format!("{text}: {explanation}")),
            (text, explanation) => text.cloned().or(explanation),
        };
        Err(error)
    }

    /// `nft list chain inet weft NAME`, its head: `None` where it is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn chain(&mut self, name: &str) -> NlResult<Option<Chain>> {
        let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(name.into())];
        let query = NfTablesMessage::GetChain(ChainMessage { attributes });
        let answers = unless_missing(self.socket.request(message(query), 0))?;
        Ok(answers.first().map(Chain::from_answer))
    }

    /// `nft list chain inet weft NAME`, its rules in order. No rules where the chain is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn rules(&mut self, chain: &str) -> NlResult<Vec<Rule>> {
        let attributes = vec![RuleAttribute::Table(TABLE.into()), RuleAttribute::Chain(chain.into())];
        let query = NfTablesMessage::GetRule(RuleMessage { attributes });
        let answers = unless_missing(self.socket.dump(&message(query)))?;
        Ok(answers.iter().map(Rule::from_answer).collect())
    }

    /// `nft list set inet weft NAME`, its head: `None` where it is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn set(&mut self, name: &str) -> NlResult<Option<SetKind>> {
        let attributes = vec![SetAttribute::Table(TABLE.into()), SetAttribute::Name(name.into())];
        let query = NfTablesMessage::GetSet(SetMessage { attributes });
        let answers = unless_missing(self.socket.request(message(query), 0))?;
        Ok(answers.first().map(SetKind::from_answer))
    }

    /// `nft list set inet weft NAME`, its elements in order. None where the set is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn intervals(&mut self, set: &str) -> NlResult<Vec<Interval>> {
        let attributes = vec![SetElementList::Table(TABLE.into()), SetElementList::Set(set.into())];
        let query = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let answers = unless_missing(self.socket.dump(&message(query)))?;
        Ok(interval::from_answers(&answers))
    }
}

impl Chain {
    fn from_answer(answer: &Answer) -> Self {
        let hook = answer.get(NFTA_CHAIN_HOOK).unwrap_or_default();
        let part = |kind| attribute::find(hook, kind).and_then(answer::number);
        Self {
            kind: answer.get(NFTA_CHAIN_TYPE).map(attribute::text).unwrap_or_default(),
            hook: part(NFTA_HOOK_HOOKNUM).unwrap_or(u32::MAX).into(),
            priority: part(NFTA_HOOK_PRIORITY).unwrap_or_default().cast_signed(),
            policy: answer.get(NFTA_CHAIN_POLICY).and_then(answer::number).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_empty() {
            return f.write_str("a chain without a hook");
        }
        let hook = format!("{:?}", self.hook).to_lowercase();
        let policy = if self.policy == POLICY_ACCEPT { "accept" } else { "drop" };
        write!(f, "type {} hook {hook} priority {}; policy {policy}", self.kind, self.priority)
    }
}

impl SetKind {
    /// `type ipv4_addr; flags interval` or `type ipv6_addr; flags interval`.
    pub fn intervals_of(family: Family) -> Self {
        // The types' numbers are nft's own (its datatype.h): the kernel only keeps them, for nft to print.
        let (key_type, key_len) = match family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        Self { key_type, key_len, flags: SetFlags::Interval }
    }

    fn from_answer(answer: &Answer) -> Self {
        let part = |kind| answer.get(kind).and_then(answer::number).unwrap_or_default();
        Self {
            key_type: part(NFTA_SET_KEY_TYPE),
            key_len: part(NFTA_SET_KEY_LEN),
            flags: SetFlags::from_bits_retain(part(NFTA_SET_FLAGS)),
        }
    }
}

fn message(inner: NfTablesMessage) -> NetfilterMessage {
    message_of(Table::Inet, inner)
}

fn message_of(table: Table, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(table.family(), 0, 0), inner)
}

fn begin(since: Generation) -> ControlMessage {
    match since {
        Generation::ANY => ControlMessage::BatchBegin,
        Generation(id) => ControlMessage::Other {
            message_type: NFNL_MSG_BATCH_BEGIN,
            attributes: vec![number(NFNL_BATCH_GENID, id)],
        },
    }
}

/// Begin or end of a batch; its header says for which subsystem.
fn frame(inner: ControlMessage) -> NetfilterMessage {
    let subsystem = u16::from(u8::from(NetfilterSubsystem::NfTables));
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem), inner)
}

/// Nothing where the table or the object in it is not there.
fn unless_missing(answers: NlResult<Vec<Answer>>) -> NlResult<Vec<Answer>> {
    match answers {
        Err(error) if error.not_found() => Ok(Vec::new()),
        other => other,
    }
}
