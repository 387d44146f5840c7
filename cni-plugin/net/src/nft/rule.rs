//! Rules, as the expressions that nft makes of their text: only then does it print them as text again.
//!
//! The expressions are written as bytes, in the order in which the kernel gives them back. Every ADD builds
//! and compares two rules. Out of the types of netlink-packet-netfilter, which allocate each part, one took
//! 75 to 100 µs with musl on a busy 2-core VM; as bytes it takes 2 to 10 µs.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{MetaKey, Operator, Register, RuleAttribute};

use super::answer::{Answer, number};
use super::bytes::put;
use super::interval::octets;
use super::set::Set;
use super::uapi::{
    NFT_LOOKUP_F_INV, NFT_META_PROTOCOL, NFT_PAYLOAD_NETWORK_HEADER, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN,
    NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA, NFTA_CMP_OP,
    NFTA_CMP_SREG, NFTA_DATA_VALUE, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_LIST_ELEM, NFTA_LOOKUP_FLAGS,
    NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_META_DREG, NFTA_META_KEY, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG,
    NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_RULE_EXPRESSIONS,
};
use crate::Family;
use crate::attribute::{attributes, find};

// linux/netfilter/nf_tables.h
const NFT_BITWISE_BOOL: u32 = 0;
const NFTA_BYTEORDER_SREG: u16 = 1;
const NFTA_BYTEORDER_DREG: u16 = 2;
const NFTA_BYTEORDER_LEN: u16 = 4;
const NFTA_BYTEORDER_SIZE: u16 = 5;
const NFTA_MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of linux/netfilter/nf_nat.h.
const RANDOM_FULLY: u32 = 16;

/// Of linux/if_packet.h.
const PACKET_HOST: u8 = 0;

/// Room for one rule with the longest names.
const CAPACITY: usize = 1024;

/// One rule. Two are equal when they do the same by the same expressions.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The value of `NFTA_RULE_EXPRESSIONS`, as it is sent and received.
    expressions: Vec<u8>,
}

/// What an expression is given.
#[derive(Clone, Copy)]
pub(super) enum Parameter<'a> {
    Byte(u8),
    Number(u32),
    Text(&'a str),
    Value(&'a [u8]),
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
        Self::empty().and_of(family)
    }

    /// `meta nfproto ipv4|ipv6`
    #[must_use]
    pub fn and_of(self, family: Family) -> Self {
        let protocol = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        self.meta(MetaKey::Nfproto).compare(Operator::Equal, &[protocol.into()])
    }

    /// `meta pkttype host`: frames that pass a bridge and were addressed to the bridge itself.
    #[must_use]
    pub fn to_bridge(self) -> Self {
        self.meta(MetaKey::PacketType).compare(Operator::Equal, &[PACKET_HOST])
    }

    /// `oifname @SET`
    #[must_use]
    pub fn leaves_by(self, set: &Set) -> Self {
        self.meta(MetaKey::Oifname).look_up(set.name, 0)
    }

    pub(super) fn empty() -> Self {
        Self { expressions: Vec::with_capacity(CAPACITY) }
    }

    pub(super) fn expressions_mut(&mut self) -> &mut Vec<u8> {
        &mut self.expressions
    }

    /// `… saddr @SET`
    pub fn in_set(self, field: Field, set: &str) -> Self {
        self.load(field).look_up(set, 0)
    }

    /// `… daddr != @SET`
    pub fn not_in_set(self, field: Field, set: &str) -> Self {
        self.load(field).look_up(set, NFT_LOOKUP_F_INV)
    }

    /// `… daddr ADDRESS/LENGTH`; the length is not 0.
    #[must_use]
    pub fn is_in(self, field: Field, address: IpAddr, length: u8) -> Self {
        self.compare_prefix(field, Operator::Equal, address, length)
    }

    /// `… daddr != ADDRESS/LENGTH`; the length is not 0.
    #[must_use]
    pub fn not_in(self, field: Field, address: IpAddr, length: u8) -> Self {
        self.compare_prefix(field, Operator::NotEqual, address, length)
    }

    fn compare_prefix(self, field: Field, operator: Operator, address: IpAddr, length: u8) -> Self {
        let value = octets(address);
        let whole = usize::from(length / 8);
        if length.is_multiple_of(8) {
            // As nft does it: a prefix of whole bytes is compared without a mask. So the rule is still the
            // same after an administrator saved the ruleset and loaded it again.
            let field = Field { len: u32::from(length / 8), ..field };
            return self.load(field).compare(operator, &value[..whole]);
        }
        self.load(field).mask(field.len, length).compare(operator, &value)
    }

    /// `masquerade fully-random`
    pub fn masquerade(self) -> Self {
        self.then("masq", &[(NFTA_MASQ_FLAGS, Parameter::Number(RANDOM_FULLY))])
    }

    fn meta(self, key: MetaKey) -> Self {
        self.then(
            "meta",
            &[
                (NFTA_META_KEY, Parameter::Number(key.into())),
                (NFTA_META_DREG, Parameter::Number(Register::Reg1.into())),
            ],
        )
    }

    fn load(self, field: Field) -> Self {
        self.then(
            "payload",
            &[
                (NFTA_PAYLOAD_DREG, Parameter::Number(Register::Reg1.into())),
                (NFTA_PAYLOAD_BASE, Parameter::Number(NFT_PAYLOAD_NETWORK_HEADER)),
                (NFTA_PAYLOAD_OFFSET, Parameter::Number(field.offset)),
                (NFTA_PAYLOAD_LEN, Parameter::Number(field.len)),
            ],
        )
    }

    /// Keeps the first `length` bits of an address of `bytes` bytes.
    fn mask(self, bytes: u32, length: u8) -> Self {
        let mask: Vec<u8> = (0..bytes)
            .map(|byte| !0xff_u8.checked_shr(u32::from(length).saturating_sub(8 * byte)).unwrap_or(0))
            .collect();
        self.then(
            "bitwise",
            &[
                (NFTA_BITWISE_SREG, Parameter::Number(Register::Reg1.into())),
                (NFTA_BITWISE_DREG, Parameter::Number(Register::Reg1.into())),
                (NFTA_BITWISE_LEN, Parameter::Number(bytes)),
                (NFTA_BITWISE_OP, Parameter::Number(NFT_BITWISE_BOOL)),
                (NFTA_BITWISE_MASK, Parameter::Value(&mask)),
                (NFTA_BITWISE_XOR, Parameter::Value(&vec![0; mask.len()])),
            ],
        )
    }

    fn look_up(self, set: &str, flags: u32) -> Self {
        self.then(
            "lookup",
            &[
                (NFTA_LOOKUP_SET, Parameter::Text(set)),
                (NFTA_LOOKUP_SREG, Parameter::Number(Register::Reg1.into())),
                (NFTA_LOOKUP_FLAGS, Parameter::Number(flags)),
            ],
        )
    }

    fn compare(self, operator: Operator, value: &[u8]) -> Self {
        self.then(
            "cmp",
            &[
                (NFTA_CMP_SREG, Parameter::Number(Register::Reg1.into())),
                (NFTA_CMP_OP, Parameter::Number(operator.into())),
                (NFTA_CMP_DATA, Parameter::Value(value)),
            ],
        )
    }

    pub(super) fn then(mut self, name: &str, parameters: &[(u16, Parameter<'_>)]) -> Self {
        put(&mut self.expressions, NFTA_LIST_ELEM | NLA_F_NESTED, |element| {
            put(element, NFTA_EXPR_NAME, |bytes| Parameter::Text(name).write(bytes));
            put(element, NFTA_EXPR_DATA | NLA_F_NESTED, |data| {
                for (kind, parameter) in parameters {
                    put(data, kind | parameter.flags(), |bytes| parameter.write(bytes));
                }
            });
        });
        self
    }

    /// The expressions that do something. nft turns the byte of a protocol's number round before it looks it up in a map
    /// of ranges.
    fn effective(&self) -> impl Iterator<Item = &[u8]> {
        let turns_nothing = |expression: &&[u8]| {
            let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
            let parameter = |kind| find(data, kind).and_then(number);
            find(expression, NFTA_EXPR_NAME) == Some(b"byteorder\0")
                && parameter(NFTA_BYTEORDER_SREG) == parameter(NFTA_BYTEORDER_DREG)
                && parameter(NFTA_BYTEORDER_LEN) < parameter(NFTA_BYTEORDER_SIZE)
        };
        attributes(&self.expressions).map(|(_, expression)| expression).filter(move |it| !turns_nothing(it))
    }

    pub(super) fn from_answer(answer: &Answer) -> Self {
        Self { expressions: answer.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec() }
    }

    pub(super) fn to_attribute(&self) -> RuleAttribute {
        RuleAttribute::Other(self.to_nla())
    }

    pub(super) fn to_nla(&self) -> DefaultNla {
        DefaultNla::new(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, self.expressions.clone())
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let (mut mine, mut theirs) = (self.effective(), other.effective());
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => return true,
                (Some(mine), Some(theirs)) if same(mine, theirs) => {}
                _ => return false,
            }
        }
    }
}

impl Eq for Rule {}

/// Whether two expressions have the same name and the same parameters.
fn same(one: &[u8], other: &[u8]) -> bool {
    let parameters = |element| find(element, NFTA_EXPR_DATA).unwrap_or_default();
    if loads_ethertype(one) && loads_ethertype(other) {
        return true;
    }
    let (mine, theirs) = (parameters(one), parameters(other));
    // Another version of the kernel may give them back in another order, with or without those that were not
    // sent and have their default, zero.
    let within = |(one, other)| {
        attributes(one)
            .all(|(kind, value)| value.iter().all(|byte| *byte == 0) || find(other, kind) == Some(value))
    };
    find(one, NFTA_EXPR_NAME) == find(other, NFTA_EXPR_NAME)
        && (attributes(mine).eq(attributes(theirs)) || within((mine, theirs)) && within((theirs, mine)))
}

/// Whether it is `meta protocol` or `ether type`, which are the same for a frame without a tag. Which of the two a
/// rule in `bridge weft` has after it was saved and loaded again depends on nft's version.
fn loads_ethertype(element: &[u8]) -> bool {
    let data = find(element, NFTA_EXPR_DATA).unwrap_or_default();
    let parameter = |kind| find(data, kind).and_then(number);
    match find(element, NFTA_EXPR_NAME) {
        Some(b"meta\0") => {
            (parameter(NFTA_META_KEY), parameter(NFTA_META_DREG))
                == (Some(NFT_META_PROTOCOL), Some(Register::Reg1.into()))
        }
        Some(b"payload\0") => {
            let parts =
                [NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_DREG].map(parameter);
            parts == [Some(0), Some(12), Some(2), Some(Register::Reg1.into())]
        }
        _ => false,
    }
}

impl Parameter<'_> {
    fn flags(self) -> u16 {
        if matches!(self, Self::Value(_)) { NLA_F_NESTED } else { 0 }
    }

    fn write(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Byte(byte) => bytes.push(byte),
            Self::Number(number) => bytes.extend(number.to_be_bytes()),
            Self::Text(text) => {
                bytes.extend(text.as_bytes());
                bytes.push(0);
            }
            Self::Value(value) => put(bytes, NFTA_DATA_VALUE, |bytes| bytes.extend(value)),
        }
    }
}
