//! Chains and rules of nftables, whoever made them: `nft list chains`, `nft list chain`.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::{Chain, Condition, End, Pattern, Rule, TableOf, Verdict};
use crate::attribute::{attributes, find, text};
use crate::nft::uapi::{
    IPS_DST_NAT, NF_ACCEPT, NF_DROP, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_STATE, NFT_CT_STATUS, NFT_GOTO,
    NFT_JUMP, NFT_META_IIFNAME, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_RETURN, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_CHAIN_USE, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_HOOK_HOOKNUM,
    NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
};
use crate::nft::{Answer, Nft, text_of};
use crate::{Family, NlResult};

// linux/netfilter/nf_tables.h
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_REG_VERDICT: u32 = 0;
// linux/netfilter.h
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_FORWARD: u32 = 2;
const NFT_CONTINUE: i32 = -1;
const NFT_BREAK: i32 = -2;

/// Targets of iptables after which a packet goes on to the next rule.
const MARKING_TARGETS: &[&str] = &["CONNMARK", "CT", "LOG", "MARK", "NFLOG", "TCPMSS", "TRACE"];

impl Nft {
    /// `nft list chains`, of the families that are forwarded and of all tables.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn all_chains(&mut self) -> NlResult<Vec<Chain>> {
        let mut all = Vec::new();
        for family in [NetfilterProtoFamily::Inet, NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let answers: Vec<Answer> =
                self.socket_mut().dump(&query(family, NFT_MSG_GETCHAIN, Vec::new()))?;
            all.extend(answers.iter().filter_map(|answer| chain(family, answer)));
        }
        Ok(all)
    }

    /// `nft list chain FAMILY TABLE CHAIN`, in order.
    ///
    /// # Errors
    /// What the kernel says to the query; `ENOENT` when the chain is gone.
    pub fn rules_of(&mut self, table: &TableOf, chain: &str) -> NlResult<Vec<Rule>> {
        let (family, table) = match table {
            TableOf::Inet(table) => (NetfilterProtoFamily::Inet, table),
            TableOf::Nft(Family::V4, table) => (NetfilterProtoFamily::IPv4, table),
            TableOf::Nft(Family::V6, table) => (NetfilterProtoFamily::IPv6, table),
            TableOf::Legacy(_) => return Ok(Vec::new()),
        };
        let attributes = vec![text_of(NFTA_RULE_TABLE, table), text_of(NFTA_RULE_CHAIN, chain)];
        let answers: Vec<Answer> = self.socket_mut().dump(&query(family, NFT_MSG_GETRULE, attributes))?;
        let mut rules = Vec::with_capacity(answers.len());
        for answer in &answers {
            let mut sets = Vec::new();
            let mut rule = rule(answer.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default(), &mut sets);
            for set in sets {
                rule.conditions.push(self.looked_up(family, table, &set)?);
            }
            rules.push(rule);
        }
        Ok(rules)
    }

    /// Reads a list that stands in a rule, `{ "eth0", "eth1" }`: the kernel has it as a set without a name of its own.
    fn looked_up(&mut self, family: NetfilterProtoFamily, table: &str, set: &Lookup) -> NlResult<Condition> {
        match set.loaded {
            // Which ones does not matter.
            Loaded::Address(end) if set.is => return Ok(Condition::Address(end)),
            Loaded::Address(_) | Loaded::Other => return Ok(Condition::Other),
            _ if !set.name.starts_with("__set") => return Ok(Condition::Other),
            _ => {}
        }
        let attributes =
            vec![text_of(NFTA_SET_ELEM_LIST_TABLE, table), text_of(NFTA_SET_ELEM_LIST_SET, &set.name)];
        let answers: Vec<Answer> = self.socket_mut().dump(&query(family, NFT_MSG_GETSETELEM, attributes))?;
        let lists = answers.iter().filter_map(|answer| answer.get(NFTA_SET_ELEM_LIST_ELEMENTS));
        let elements = lists.flat_map(attributes_of).map(|element| {
            // An end of an interval: names that begin alike.
            if find(element, NFTA_SET_ELEM_FLAGS).is_some() {
                return Condition::Other;
            }
            let key = find(element, NFTA_SET_ELEM_KEY).and_then(|key| find(key, 1)).unwrap_or_default();
            compared(set.loaded, Some(NFT_CMP_EQ), key)
        });
        Ok(Condition::Any { of: elements.collect(), is: set.is })
    }
}

fn query(family: NetfilterProtoFamily, message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let inner = NfTablesMessage::Other { message_type, attributes };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn chain(family: NetfilterProtoFamily, answer: &Answer) -> Option<Chain> {
    let part = |kind| answer.get(kind).map(text);
    let table = part(NFTA_CHAIN_TABLE)?;
    let hook = answer.get(NFTA_CHAIN_HOOK).and_then(|hook| number(find(hook, NFTA_HOOK_HOOKNUM)?));
    let decides = hook == Some(NF_INET_FORWARD) && part(NFTA_CHAIN_TYPE).as_deref() == Some("filter");
    let accepts = answer.get(NFTA_CHAIN_POLICY).and_then(number) != Some(NF_DROP.cast_unsigned());
    Some(Chain {
        table: match family {
            NetfilterProtoFamily::IPv4 => TableOf::Nft(Family::V4, table),
            NetfilterProtoFamily::IPv6 => TableOf::Nft(Family::V6, table),
            _ => TableOf::Inet(table),
        },
        name: part(NFTA_CHAIN_NAME)?,
        policy: decides.then_some(if accepts { Verdict::Accept } else { Verdict::Drop }),
        uses: answer.get(NFTA_CHAIN_USE).and_then(number).unwrap_or_default(),
    })
}

/// What was loaded into the register last.
#[derive(Clone, Copy)]
enum Loaded {
    Input,
    Output,
    /// Conntrack's state, of which these bits are looked at.
    State(u32),
    /// The same for conntrack's status.
    Status(u32),
    Family,
    Address(End),
    Other,
}

/// A set in which something is looked up.
struct Lookup {
    name: String,
    loaded: Loaded,
    is: bool,
}

fn attributes_of(nest: &[u8]) -> impl Iterator<Item = &[u8]> {
    attributes(nest).map(|(_, value)| value)
}

/// Reads a rule; the sets that it asks are for the caller to read.
fn rule(expressions: &[u8], sets: &mut Vec<Lookup>) -> Rule {
    let mut rule = Rule { conditions: Vec::new(), verdict: Verdict::Continue };
    let mut loaded = Loaded::Other;
    for expression in attributes_of(expressions) {
        let name = find(expression, NFTA_EXPR_NAME).map(text).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        let part = |kind| find(data, kind);
        match name.as_str() {
            "meta" | "ct" | "bitwise" | "payload" => loaded = load(&name, data, loaded),
            // NFTA_CMP_OP, NFTA_CMP_DATA
            "cmp" => {
                let value = part(3).and_then(|data| find(data, 1)).unwrap_or_default();
                rule.conditions.push(compared(loaded, part(2).and_then(number), value));
            }
            // NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT
            "immediate" if part(1).and_then(number) == Some(NFT_REG_VERDICT) => {
                rule.verdict = verdict(part(2).and_then(|data| find(data, 2)).unwrap_or_default());
            }
            "immediate" => loaded = Loaded::Other,
            "reject" => rule.verdict = Verdict::Drop,
            "match" => rule.conditions.extend(matched(&part(1).map(text).unwrap_or_default(), part(3))),
            "target" => rule.verdict = target(&part(1).map(text).unwrap_or_default()),
            // NFTA_LOOKUP_DREG: a map of verdicts decides, or not.
            "lookup" if part(3).is_some() => {
                rule.conditions.push(Condition::Other);
                rule.verdict = Verdict::Unknown;
            }
            // NFTA_LOOKUP_SET; NFTA_LOOKUP_FLAGS has NFT_LOOKUP_F_INV.
            "lookup" => {
                let name = part(1).map(text).unwrap_or_default();
                sets.push(Lookup { name, loaded, is: part(5).and_then(number).unwrap_or_default() & 1 == 0 });
            }
            "queue" | "synproxy" => rule.verdict = Verdict::Unknown,
            "counter" | "log" | "notrack" => {}
            _ => {
                loaded = Loaded::Other;
                rule.conditions.push(Condition::Other);
            }
        }
    }
    rule
}

/// What an expression puts into the register.
fn load(name: &str, data: &[u8], before: Loaded) -> Loaded {
    // NFTA_META_KEY, NFTA_CT_KEY
    let key = find(data, 2).and_then(number);
    // NFTA_BITWISE_MASK
    let mask = || find(data, 4).and_then(|mask| host_number(find(mask, 1)?));
    match (name, key, before) {
        ("meta", Some(NFT_META_IIFNAME), _) => Loaded::Input,
        ("meta", Some(NFT_META_OIFNAME), _) => Loaded::Output,
        ("meta", Some(NFT_META_NFPROTO), _) => Loaded::Family,
        ("payload", ..) => address(data).map_or(Loaded::Other, Loaded::Address),
        // A prefix of it.
        ("bitwise", _, Loaded::Address(end)) => Loaded::Address(end),
        ("ct", Some(NFT_CT_STATE), _) => Loaded::State(u32::MAX),
        ("ct", Some(NFT_CT_STATUS), _) => Loaded::Status(u32::MAX),
        ("bitwise", _, Loaded::State(_)) => mask().map_or(Loaded::Other, Loaded::State),
        ("bitwise", _, Loaded::Status(_)) => mask().map_or(Loaded::Other, Loaded::Status),
        _ => Loaded::Other,
    }
}

/// Which address, or part of it, a payload expression loads: those of IPv4 are at 12 and 16, those of IPv6 at 8 and 24.
fn address(data: &[u8]) -> Option<End> {
    // NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN
    let part = |kind| find(data, kind).and_then(number);
    match (part(2)?, part(3)?, part(4)?) {
        (NFT_PAYLOAD_NETWORK_HEADER, 12, 1..=4) | (NFT_PAYLOAD_NETWORK_HEADER, 8, 1..=16) => {
            Some(End::Source)
        }
        (NFT_PAYLOAD_NETWORK_HEADER, 16, 1..=4) | (NFT_PAYLOAD_NETWORK_HEADER, 24, 1..=16) => {
            Some(End::Destination)
        }
        _ => None,
    }
}

fn compared(loaded: Loaded, operator: Option<u32>, value: &[u8]) -> Condition {
    let is = match operator {
        Some(NFT_CMP_EQ) => true,
        Some(NFT_CMP_NEQ) => false,
        _ => return Condition::Other,
    };
    match loaded {
        Loaded::Input => Condition::Input { name: pattern(value), is },
        Loaded::Output => Condition::Output { name: pattern(value), is },
        // Of the bits looked at, none is set, or some are.
        Loaded::State(bits) if value.iter().all(|byte| *byte == 0) => Condition::State { bits, is: !is },
        Loaded::State(_) if is => {
            host_number(value).map_or(Condition::Other, |bits| Condition::State { bits, is })
        }
        Loaded::Status(IPS_DST_NAT) if value.iter().all(|byte| *byte == 0) => {
            Condition::Redirected { is: !is }
        }
        Loaded::Family => match value {
            [NFPROTO_IPV4] => Condition::Family { family: Family::V4, is },
            [NFPROTO_IPV6] => Condition::Family { family: Family::V6, is },
            _ => Condition::Other,
        },
        Loaded::Address(end) if is => Condition::Address(end),
        Loaded::State(_) | Loaded::Status(_) | Loaded::Address(_) | Loaded::Other => Condition::Other,
    }
}

/// What is compared in its whole length ends with a zero.
fn pattern(value: &[u8]) -> Pattern {
    Pattern { text: text(value), is_prefix: !value.contains(&0) }
}

/// Those of iptables' extensions that matter; `None` for a comment.
pub(super) fn matched(name: &str, info: Option<&[u8]>) -> Option<Condition> {
    match name {
        "comment" => None,
        "conntrack" => Some(super::legacy::conntrack(info.unwrap_or_default())),
        _ => Some(Condition::Other),
    }
}

pub(super) fn target(name: &str) -> Verdict {
    match name {
        "REJECT" => Verdict::Drop,
        name if MARKING_TARGETS.contains(&name) => Verdict::Continue,
        _ => Verdict::Unknown,
    }
}

/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
fn verdict(nest: &[u8]) -> Verdict {
    let chain = || find(nest, 2).map(text).unwrap_or_default();
    match find(nest, 1).and_then(number).map(u32::cast_signed) {
        Some(NF_ACCEPT) => Verdict::Accept,
        Some(NF_DROP) => Verdict::Drop,
        Some(NFT_RETURN) => Verdict::Return,
        Some(NFT_JUMP) => Verdict::Jump(chain()),
        Some(NFT_GOTO) => Verdict::Goto(chain()),
        Some(NFT_CONTINUE | NFT_BREAK) => Verdict::Continue,
        _ => Verdict::Unknown,
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// What is compared with a packet's own is in the machine's order.
fn host_number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the kernel says, it is read to its end.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..6_u16) {
            let mut sets = Vec::new();
            let _any_rule = rule(&bytes, &mut sets);
            let name = ["meta", "cmp", "immediate", "lookup", "match", "target"][usize::from(kind)];
            let mut expression = Vec::new();
            crate::nft::put(&mut expression, NFTA_EXPR_NAME, |to| to.extend(name.bytes()));
            crate::nft::put(&mut expression, NFTA_EXPR_DATA, |to| to.extend(&bytes));
            let mut list = Vec::new();
            crate::nft::put(&mut list, 1, |to| to.extend(expression));
            let _any_rule = rule(&list, &mut sets);
        }
    }

    #[test]
    fn names_are_whole_or_a_beginning() {
        assert!(pattern(b"weft0\0\0\0").fits("weft0") && !pattern(b"weft0\0").fits("weft01"));
        assert!(pattern(b"weft").fits("weft01") && !pattern(b"weft").fits("wef"));
    }
}
