//! Rules of others, as far as they matter for which packets the host forwards. Nothing here changes anything.
//!
//! nftables, which iptables-nft writes too, is asked over netlink; the tables of iptables-legacy are another part of the
//! kernel, with an interface of its own.

mod legacy;
mod nft;

use crate::Family;

pub use legacy::legacy_chains;

/// At most so many rules of one chain are read: more are nobody's few words about a bridge.
pub const RULES_MAX: u32 = 4096;

/// A chain that forwarded packets pass, or one that another can jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub table: TableOf,
    pub name: String,
    /// What becomes of a packet that no rule decides about, where the chain stands at the hook `forward` with the type
    /// `filter`; `None` for all other chains.
    pub policy: Option<Verdict>,
    /// How many rules it has and how many jump to it.
    pub uses: u32,
}

/// Whose a chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableOf {
    /// nftables' table of both families.
    Inet(String),
    /// nftables' table of one family, which may be that of iptables-nft.
    Nft(Family, String),
    /// iptables-legacy's table `filter`.
    Legacy(Family),
}

/// A rule: what becomes of packets of which every condition is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    pub verdict: Verdict,
}

/// What a rule asks about a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Whether it came in by an interface of such a name; `is` is false for "any other".
    Input { name: Pattern, is: bool },
    /// Whether it leaves by such an interface.
    Output { name: Pattern, is: bool },
    /// Whether conntrack has it in one of these states, bits as in `NF_CT_STATE_BIT` of
    /// linux/netfilter/nf_conntrack_common.h.
    State { bits: u32, is: bool },
    /// Whether it goes to another destination than it was sent to, as with a host port; `is` is false for "as sent".
    Redirected { is: bool },
    /// Whether it is of a family; `is` is false for "of any other".
    Family { family: Family, is: bool },
    /// Whether it comes from one of some addresses, or goes to one of them.
    Address(End),
    /// Whether one of several is true; `is` is false for "none".
    Any { of: Vec<Condition>, is: bool },
    /// Anything else.
    Other,
}

/// One of a packet's two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The state of the first packet of a connection.
pub const STATE_NEW: u32 = 1 << 3;
/// … and of the answers.
pub const STATE_ESTABLISHED: u32 = 1 << 1;
/// What iptables has among the states, and nftables in `ct status`: `XT_CONNTRACK_STATE_DNAT`. No state has this bit.
pub const STATE_REDIRECTED: u32 = 1 << 7;

/// An interface's name, or how it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub text: String,
    pub is_prefix: bool,
}

impl Pattern {
    pub fn fits(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the next rule.
    Continue,
    Accept,
    /// Silently or with an answer.
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// What nobody can tell from here: a map of verdicts, a queue to a program.
    Unknown,
}
