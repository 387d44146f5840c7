//! More of what rules are made of: several fields at once, conntrack, verdicts, address translation.

use super::bytes::{nest, put};
use super::load::Load;
use super::rule::{Parameter, Rule};
use super::set::{Set, padded};
use super::uapi::{
    IPS_DST_NAT, NF_ACCEPT, NF_DROP, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_STATE, NFT_CT_STATUS, NFT_GOTO,
    NFT_JUMP, NFT_LOOKUP_F_INV, NFT_META_IIFNAME, NFT_META_PROTOCOL, NFT_RETURN, NFTA_BITWISE_DREG,
    NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA,
    NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_LIST_ELEM, NFTA_LOOKUP_FLAGS,
    NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_META_DREG, NFTA_META_KEY, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG,
    NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET,
};
use crate::Family;

// linux/netfilter/nf_tables.h
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const NFTA_CT_SREG: u16 = 4;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFTA_NAT_FLAGS: u16 = 7;
const NFT_NAT_DNAT: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED` of linux/netfilter/nf_nat.h: the kernel adds them by
/// itself, and gives them back.
const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;
const NFT_META_IIF: u32 = 4;
const NFT_META_L4PROTO: u32 = 16;
const NFT_META_IIFGROUP: u32 = 21;
const NFT_META_OIFGROUP: u32 = 22;
const NFT_CT_LABELS: u32 = 13;
const NFT_CT_DST_IP: u32 = 20;
const NFT_CT_DST_IP6: u32 = 22;
/// The label of flows that came to Weft's own address translation: the number that its routes have as their protocol.
const LABEL: u128 = 1 << 119;
/// `IP_CT_DIR_ORIGINAL` of linux/netfilter/nf_conntrack_tuple_common.h.
const ORIGINAL: u8 = 0;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
/// `RTN_LOCAL` of linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)` and `(IP_CT_RELATED)` of net/netfilter/nf_conntrack.h.
const ESTABLISHED_OR_RELATED: u32 = 0x6;
/// `NFT_REG_1`, and `NFT_REG32_00`: the same room by words of four bytes.
const REG_1: u32 = 1;
const REG32_00: u32 = 8;
const WORDS: u32 = 4;

impl Rule {
    /// Begins a rule for all packets of its chain.
    pub fn any() -> Self {
        Self::empty()
    }

    /// `FIELD VALUE`
    #[must_use]
    pub fn is(self, field: Load, value: &[u8]) -> Self {
        self.load_at(field, 0).cmp(NFT_CMP_EQ, value)
    }

    /// `FIELD != VALUE`
    #[must_use]
    pub fn is_not(self, field: Load, value: &[u8]) -> Self {
        self.load_at(field, 0).cmp(NFT_CMP_NEQ, value)
    }

    /// `FIELD & MASK == VALUE`
    #[must_use]
    pub fn is_masked(self, field: Load, mask: &[u8], value: &[u8]) -> Self {
        self.load_at(field, 0).and(mask).cmp(NFT_CMP_EQ, value)
    }

    /// `FIELD . FIELD … @SET`
    #[must_use]
    pub fn found(self, fields: &[Load], set: &Set) -> Self {
        self.load_all(fields).search(set, 0)
    }

    /// `FIELD . FIELD … != @SET`
    #[must_use]
    pub fn not_found(self, fields: &[Load], set: &Set) -> Self {
        self.load_all(fields).search(set, NFT_LOOKUP_F_INV)
    }

    /// `ct state established,related`
    #[must_use]
    pub fn known(self) -> Self {
        self.ct(NFT_CT_STATE).and(&ESTABLISHED_OR_RELATED.to_ne_bytes()).cmp(NFT_CMP_NEQ, &[0; 4])
    }

    /// `ct status dnat`
    #[must_use]
    pub fn dnatted(self) -> Self {
        self.ct(NFT_CT_STATUS).and(&IPS_DST_NAT.to_ne_bytes()).cmp(NFT_CMP_NEQ, &[0; 4])
    }

    /// `ct label 119`: the flow was given the label.
    #[must_use]
    pub fn labelled(self) -> Self {
        self.ct(NFT_CT_LABELS).and(&LABEL.to_ne_bytes()).cmp(NFT_CMP_NEQ, &[0; 16])
    }

    /// `ct label set 119`. Others' labels of the flow stay, and none is taken from it again.
    #[must_use]
    pub fn label(self) -> Self {
        let value = LABEL.to_ne_bytes();
        let data = [
            (NFTA_IMMEDIATE_DREG, Parameter::Number(REG_1)),
            (NFTA_IMMEDIATE_DATA, Parameter::Value(&value)),
        ];
        let label =
            [(NFTA_CT_KEY, Parameter::Number(NFT_CT_LABELS)), (NFTA_CT_SREG, Parameter::Number(REG_1))];
        self.then("immediate", &data).then("ct", &label)
    }

    /// `fib daddr type local`
    #[must_use]
    pub fn to_this_host(self) -> Self {
        self.then(
            "fib",
            &[
                (NFTA_FIB_DREG, Parameter::Number(REG_1)),
                (NFTA_FIB_RESULT, Parameter::Number(NFT_FIB_RESULT_ADDRTYPE)),
                (NFTA_FIB_FLAGS, Parameter::Number(NFTA_FIB_F_DADDR)),
            ],
        )
        .cmp(NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// `dnat ip|ip6 to FIELD . FIELD … map @MAP`. The map's data begins with the address; a port may follow.
    #[must_use]
    pub fn dnat(self, family: Family, fields: &[Load], map: &Set) -> Self {
        let looked_up = self.load_all(fields).then(
            "lookup",
            &[
                (NFTA_LOOKUP_SET, Parameter::Text(map.name)),
                (NFTA_LOOKUP_SREG, Parameter::Number(REG_1)),
                (NFTA_LOOKUP_DREG, Parameter::Number(REG_1)),
                (NFTA_LOOKUP_FLAGS, Parameter::Number(0)),
            ],
        );
        let protocol: u32 = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let mut nat = vec![
            (NFTA_NAT_TYPE, Parameter::Number(NFT_NAT_DNAT)),
            (NFTA_NAT_FAMILY, Parameter::Number(protocol)),
            (NFTA_NAT_REG_ADDR_MIN, Parameter::Number(REG_1)),
            (NFTA_NAT_REG_ADDR_MAX, Parameter::Number(REG_1)),
        ];
        if let [address, _port] = map.data {
            let port = register(padded(address.len()));
            nat.push((NFTA_NAT_REG_PROTO_MIN, Parameter::Number(port)));
            nat.push((NFTA_NAT_REG_PROTO_MAX, Parameter::Number(port)));
            nat.push((NFTA_NAT_FLAGS, Parameter::Number(MAP_IPS | PROTO_SPECIFIED)));
        } else {
            nat.push((NFTA_NAT_FLAGS, Parameter::Number(MAP_IPS)));
        }
        looked_up.then("nat", &nat)
    }

    /// `accept`
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(NF_ACCEPT, None)
    }

    /// `drop`
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(NF_DROP, None)
    }

    /// `return`
    #[must_use]
    pub fn give_back(self) -> Self {
        self.verdict(NFT_RETURN, None)
    }

    /// `jump CHAIN`
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(NFT_JUMP, Some(chain))
    }

    /// `goto CHAIN`: what comes behind the rule is not looked at any more.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(NFT_GOTO, Some(chain))
    }

    fn verdict(mut self, code: i32, chain: Option<&str>) -> Self {
        nest(self.expressions_mut(), NFTA_LIST_ELEM, |element| {
            put(element, NFTA_EXPR_NAME, |bytes| bytes.extend(b"immediate\0"));
            nest(element, NFTA_EXPR_DATA, |data| {
                put(data, NFTA_IMMEDIATE_DREG, |bytes| bytes.extend(0_u32.to_be_bytes()));
                nest(data, NFTA_IMMEDIATE_DATA, |data| {
                    // Without the flag of a nest, as the kernel gives it back.
                    put(data, NFTA_DATA_VERDICT, |verdict| {
                        put(verdict, NFTA_VERDICT_CODE, |bytes| bytes.extend(code.to_be_bytes()));
                        if let Some(chain) = chain {
                            put(verdict, NFTA_VERDICT_CHAIN, |bytes| {
                                bytes.extend(chain.as_bytes());
                                bytes.push(0);
                            });
                        }
                    });
                });
            });
        });
        self
    }

    /// Loads fields side by side, as a key of several fields has them.
    fn load_all(self, fields: &[Load]) -> Self {
        let mut offset = 0;
        fields.iter().fold(self, |rule, field| {
            let at = offset;
            offset += padded(field.len());
            rule.load_at(*field, at)
        })
    }

    fn load_at(self, field: Load, offset: usize) -> Self {
        let register = Parameter::Number(register(offset));
        if let Some((base, at)) = field.payload() {
            let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
            return self.then(
                "payload",
                &[
                    (NFTA_PAYLOAD_DREG, register),
                    (NFTA_PAYLOAD_BASE, Parameter::Number(base as u32)),
                    (NFTA_PAYLOAD_OFFSET, Parameter::Number(at)),
                    (NFTA_PAYLOAD_LEN, Parameter::Number(len)),
                ],
            );
        }
        if let Load::Dialled(family) = field {
            let key = match family {
                Family::V4 => NFT_CT_DST_IP,
                Family::V6 => NFT_CT_DST_IP6,
            };
            return self.then(
                "ct",
                &[
                    (NFTA_CT_KEY, Parameter::Number(key)),
                    (NFTA_CT_DREG, register),
                    (NFTA_CT_DIRECTION, Parameter::Byte(ORIGINAL)),
                ],
            );
        }
        let key = match field {
            Load::Iif => NFT_META_IIF,
            Load::Iifname => NFT_META_IIFNAME,
            Load::Iifgroup => NFT_META_IIFGROUP,
            Load::Oifgroup => NFT_META_OIFGROUP,
            Load::Protocol => NFT_META_PROTOCOL,
            _ => NFT_META_L4PROTO,
        };
        self.then("meta", &[(NFTA_META_KEY, Parameter::Number(key)), (NFTA_META_DREG, register)])
    }

    fn ct(self, key: u32) -> Self {
        self.then("ct", &[(NFTA_CT_KEY, Parameter::Number(key)), (NFTA_CT_DREG, Parameter::Number(REG_1))])
    }

    fn and(self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.then(
            "bitwise",
            &[
                (NFTA_BITWISE_SREG, Parameter::Number(REG_1)),
                (NFTA_BITWISE_DREG, Parameter::Number(REG_1)),
                (NFTA_BITWISE_LEN, Parameter::Number(len)),
                (NFTA_BITWISE_OP, Parameter::Number(0)),
                (NFTA_BITWISE_MASK, Parameter::Value(mask)),
                (NFTA_BITWISE_XOR, Parameter::Value(&vec![0; mask.len()])),
            ],
        )
    }

    fn cmp(self, operator: u32, value: &[u8]) -> Self {
        self.then(
            "cmp",
            &[
                (NFTA_CMP_SREG, Parameter::Number(REG_1)),
                (NFTA_CMP_OP, Parameter::Number(operator)),
                (NFTA_CMP_DATA, Parameter::Value(value)),
            ],
        )
    }

    fn search(self, set: &Set, flags: u32) -> Self {
        self.then(
            "lookup",
            &[
                (NFTA_LOOKUP_SET, Parameter::Text(set.name)),
                (NFTA_LOOKUP_SREG, Parameter::Number(REG_1)),
                (NFTA_LOOKUP_FLAGS, Parameter::Number(flags)),
            ],
        )
    }
}

/// The register at an offset in bytes, as the kernel names it: a whole one where one begins.
fn register(offset: usize) -> u32 {
    let words = u32::try_from(offset / 4).unwrap_or(u32::MAX);
    if words.is_multiple_of(WORDS) { REG_1 + words / WORDS } else { REG32_00 + words }
}
