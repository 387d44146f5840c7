//! Rules, as the expressions that nft makes of their text: only then does it print them as text again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, Nla};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, ListAttribute, Lookup, Meta, MetaKey,
    Operator, Payload, Register,
};

use super::answer::{Answer, attributes, find, text};
use super::interval::octets;
use crate::plan::Family;

// The attributes of linux/netfilter/nf_tables.h that are read.
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
/// `NFT_PAYLOAD_NETWORK_HEADER` of linux/netfilter/nf_tables.h.
const NETWORK_HEADER: u32 = 1;
/// `NFT_LOOKUP_F_INV` of linux/netfilter/nf_tables.h.
const LOOKUP_INVERTED: u32 = 1;
/// `NFTA_MASQ_FLAGS` of linux/netfilter/nf_tables.h.
const MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of linux/netfilter/nf_nat.h.
const RANDOM_FULLY: u32 = 16;

/// One rule. Two are equal when they do the same by the same expressions.
#[derive(Debug, Clone)]
pub struct Rule {
    expressions: Vec<Expressions>,
}

/// An address in a packet's network header.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    offset: u32,
    len: u32,
}

impl Field {
    /// `ip saddr` or `ip6 saddr` (RFC 791 §3.1, RFC 8200 §3).
    pub fn source(family: Family) -> Self {
        match family {
            Family::V4 => Self { offset: 12, len: 4 },
            Family::V6 => Self { offset: 8, len: 16 },
        }
    }

    /// `ip daddr` or `ip6 daddr`.
    pub fn destination(family: Family) -> Self {
        match family {
            Family::V4 => Self { offset: 16, len: 4 },
            Family::V6 => Self { offset: 24, len: 16 },
        }
    }
}

impl Rule {
    /// Begins a rule for the packets of one family.
    pub fn of(family: Family) -> Self {
        let protocol = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let load =
            Expressions::Meta(vec![Meta::Key(MetaKey::Nfproto), Meta::DestinationRegister(Register::Reg1)]);
        Self { expressions: vec![load, compare(Operator::Equal, vec![protocol.into()])] }
    }

    /// `… saddr @SET`
    pub fn in_set(mut self, field: Field, set: &str) -> Self {
        self.expressions.extend([load(field), lookup(set, 0)]);
        self
    }

    /// `… daddr != @SET`
    pub fn not_in_set(mut self, field: Field, set: &str) -> Self {
        self.expressions.extend([load(field), lookup(set, LOOKUP_INVERTED)]);
        self
    }

    /// `… daddr != ADDRESS/LENGTH`; the length is not 0.
    pub fn not_in(mut self, field: Field, address: IpAddr, length: u8) -> Self {
        let mut value = octets(address);
        if length.is_multiple_of(8) {
            // As nft does it: a prefix of whole bytes is compared without a mask. So the rule is still the
            // same after an administrator saved the ruleset and loaded it again.
            value.truncate(usize::from(length / 8));
            self.expressions.push(load(Field { len: u32::from(length / 8), ..field }));
        } else {
            self.expressions.extend([load(field), mask(field.len, length)]);
        }
        self.expressions.push(compare(Operator::NotEqual, value));
        self
    }

    /// `masquerade fully-random`
    pub fn masquerade(mut self) -> Self {
        self.expressions.push(Expressions::Other {
            expression_type: "masq".into(),
            attributes: vec![DefaultNla::new(MASQ_FLAGS, RANDOM_FULLY.to_be_bytes().to_vec())],
        });
        self
    }

    pub(super) fn from_answer(answer: &Answer) -> Self {
        let list = answer.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        Self { expressions: attributes(list).map(|(_, element)| received(element)).collect() }
    }

    pub(super) fn to_list(&self) -> Vec<ListAttribute<ExpressionAttribute>> {
        self.expressions.iter().cloned().map(ListAttribute::from).collect()
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.expressions.len() == other.expressions.len()
            && self.expressions.iter().zip(&other.expressions).all(|(a, b)| canonical(a) == canonical(b))
    }
}

fn load(field: Field) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(field.offset),
        Payload::Len(field.len),
    ])
}

/// Keeps the first `length` bits of an address of `bytes` bytes.
fn mask(bytes: u32, length: u8) -> Expressions {
    let mask: Vec<u8> = (0..bytes)
        .map(|byte| !0xff_u8.checked_shr(u32::from(length).saturating_sub(8 * byte)).unwrap_or(0))
        .collect();
    let zeros = vec![0; mask.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(bytes),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(zeros)),
    ])
}

fn lookup(set: &str, flags: u32) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.into()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::Flags(flags),
    ])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// One expression of the kernel's list. Those without parameters (`notrack`) have only a name.
fn received(element: &[u8]) -> Expressions {
    let parameters = find(element, NFTA_EXPR_DATA).unwrap_or_default();
    Expressions::Other {
        expression_type: find(element, NFTA_EXPR_NAME).map(text).unwrap_or_default(),
        attributes: attributes(parameters).map(|(kind, value)| DefaultNla::new(kind, value.into())).collect(),
    }
}

/// Name and parameters in a form that can be compared: the kernel gives parameters back in its own order,
/// and spells out defaults, which are zeros, that were not sent.
fn canonical(expression: &Expressions) -> (&str, BTreeMap<u16, Vec<u8>>) {
    match expression {
        Expressions::Bitwise(attributes) => ("bitwise", parameters(attributes)),
        Expressions::Cmp(attributes) => ("cmp", parameters(attributes)),
        Expressions::Lookup(attributes) => ("lookup", parameters(attributes)),
        Expressions::Meta(attributes) => ("meta", parameters(attributes)),
        Expressions::Payload(attributes) => ("payload", parameters(attributes)),
        Expressions::Other { expression_type, attributes } => (expression_type, parameters(attributes)),
        _ => ("", BTreeMap::new()),
    }
}

fn parameters<T: Nla>(attributes: &[T]) -> BTreeMap<u16, Vec<u8>> {
    let parameters = attributes.iter().map(|attribute| {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        (attribute.kind() & !NLA_F_NESTED, value)
    });
    parameters.filter(|(_, value)| value.iter().any(|byte| *byte != 0)).collect()
}
