//! Sets and maps of several fields: `ifname . ipv4_addr`, `inet_proto . inet_service : ipv4_addr`.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::bytes::{nest, nested, number, put, text, user_data};
use super::change::{BIG_ENDIAN, SET_KEYBYTEORDER};
use super::uapi::{NFTA_LIST_ELEM, NFTA_SET_FLAGS, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE};
use super::{Change, TABLE, Table};
use crate::Family;

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWSET: u8 = 9;
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_SET_DESC_CONCAT: u16 = 2;
const NFTA_SET_FIELD_LEN: u16 = 1;
const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_CONCAT: u32 = 0x80;

/// `NFTNL_UDATA_SET_DATABYTEORDER` of libnftnl's udata.h.
const SET_DATABYTEORDER: u8 = 1;
/// `NFTNL_UDATA_SET_KEY_TYPEOF` of libnftnl's udata.h.
const SET_KEY_TYPEOF: u8 = 3;
/// `BYTEORDER_HOST_ENDIAN` of nft's datatype.h.
const HOST_ENDIAN: u32 = 1;
/// `TYPE_BITS` of nft's datatype.h: how far the types of a concatenation are from each other.
const TYPE_BITS: u32 = 6;
/// A field begins at a multiple of this (`NFT_REG32_SIZE`).
pub const FIELD_ALIGN: usize = 4;

/// What a field of a key or of a map's data is: nft's data types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Address(Family),
    Mac,
    Protocol,
    Port,
    Ifindex,
    Ifname,
    /// The group of an interface, as `ip link set … group` gives it.
    Ifgroup,
    /// `typeof @th,OFFSET,LENGTH`, here in bytes: what nft has no name for.
    Transport {
        at: u8,
        len: u8,
    },
}

impl Type {
    /// nft's own number of the type (its datatype.h): the kernel only keeps it, for nft to print.
    fn number(self) -> u32 {
        match self {
            Self::Address(Family::V4) => 7,
            Self::Address(Family::V6) => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Ifindex => 20,
            Self::Ifgroup => 35,
            Self::Ifname => 41,
            Self::Transport { .. } => 4,
        }
    }

    /// In bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Transport { len, .. } => usize::from(len),
            Self::Address(Family::V4) | Self::Ifindex | Self::Ifgroup => 4,
            Self::Address(Family::V6) | Self::Ifname => 16,
            Self::Mac => 6,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// A set, or a map where it has data. Its elements come and go with attachments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    pub table: Table,
    pub name: &'static str,
    /// A field that is alone has no padding, so its length is a multiple of four bytes.
    pub key: &'static [Type],
    pub data: &'static [Type],
    /// Whether a field of a key may be a prefix or a range. The kernel copies such a set at every change.
    pub intervals: bool,
}

impl Set {
    /// Whether the kernel's numbers are those of this set. The kernel does not tell flags that are 0.
    pub(super) fn is(&self, number: impl Fn(u16) -> Option<u32>) -> bool {
        let key = [
            (NFTA_SET_FLAGS, self.flags()),
            (NFTA_SET_KEY_TYPE, type_of(self.key)),
            (NFTA_SET_KEY_LEN, len_of(self.key)),
        ];
        let data = [(NFTA_SET_DATA_TYPE, type_of(self.data)), (NFTA_SET_DATA_LEN, len_of(self.data))];
        let same = |(kind, value): &(u16, u32)| number(*kind).unwrap_or_default() == *value;
        key.iter().all(same) && (self.data.is_empty() || data.iter().all(same))
    }

    fn flags(&self) -> u32 {
        let map = if self.data.is_empty() { 0 } else { NFT_SET_MAP };
        map | if self.intervals { NFT_SET_INTERVAL | NFT_SET_CONCAT } else { 0 }
    }
}

impl Change {
    /// `nft create set|map FAMILY weft NAME { type …; flags …; }`. One that is there makes the batch fail with
    /// `EEXIST`.
    pub fn create(set: &Set) -> Self {
        let mut attributes = vec![
            text(NFTA_SET_TABLE, TABLE),
            text(NFTA_SET_NAME, set.name),
            number(NFTA_SET_FLAGS, set.flags()),
            number(NFTA_SET_KEY_TYPE, type_of(set.key)),
            number(NFTA_SET_KEY_LEN, len_of(set.key)),
            // Wanted by the kernel, and for nothing: everything here finds the set by its name.
            number(NFTA_SET_ID, 1),
        ];
        let mut notes = user_data(SET_KEYBYTEORDER, &byte_order(set.key).to_ne_bytes());
        if let [port @ (Type::Ifindex | Type::Ifname), Type::Transport { at, len }] = *set.key {
            notes.extend(user_data(SET_KEY_TYPEOF, &typeof_port_and_bytes(port, at, len)));
        }
        if !set.data.is_empty() {
            attributes.push(number(NFTA_SET_DATA_TYPE, type_of(set.data)));
            attributes.push(number(NFTA_SET_DATA_LEN, len_of(set.data)));
            notes.extend(user_data(SET_DATABYTEORDER, &byte_order(set.data).to_ne_bytes()));
        }
        if set.intervals {
            attributes.push(nested(NFTA_SET_DESC, |desc| describe(desc, set.key)));
        }
        attributes.push(DefaultNla::new(NFTA_SET_USERDATA, notes));
        Self {
            table: set.table,
            message: NfTablesMessage::Other { message_type: NFT_MSG_NEWSET, attributes },
            flags: NLM_F_CREATE | NLM_F_EXCL,
            text: format!("create set {} in table {}", set.name, set.table),
        }
    }
}

/// The lengths of the fields: an interval has a first and a last value in each of them.
fn describe(desc: &mut Vec<u8>, key: &[Type]) {
    nest(desc, NFTA_SET_DESC_CONCAT, |concat| {
        for field in key {
            nest(concat, NFTA_LIST_ELEM, |element| {
                let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
                put(element, NFTA_SET_FIELD_LEN, |bytes| bytes.extend(len.to_be_bytes()));
            });
        }
    });
}

fn type_of(fields: &[Type]) -> u32 {
    fields.iter().fold(0, |number, field| number << TYPE_BITS | field.number())
}

fn len_of(fields: &[Type]) -> u32 {
    match fields {
        [one] => u32::try_from(one.len()).unwrap_or(u32::MAX),
        _ => fields.iter().map(|field| u32::try_from(padded(field.len())).unwrap_or(u32::MAX)).sum(),
    }
}

/// How nft has to read the values to print them.
fn byte_order(fields: &[Type]) -> u32 {
    if matches!(fields, [Type::Ifindex | Type::Ifname | Type::Ifgroup]) { HOST_ENDIAN } else { BIG_ENDIAN }
}

/// `typeof iif . @th,AT,LEN`, or with `iifname`, in the form in which nft notes it: its numbers of expressions, and of their parts.
fn typeof_port_and_bytes(port: Type, at: u8, len: u8) -> Vec<u8> {
    /// `EXPR_META`, `EXPR_PAYLOAD`, `EXPR_CONCAT` of nft's expression.h.
    const META: u32 = 9;
    const PAYLOAD: u32 = 7;
    const CONCAT: u32 = 13;
    /// `NFT_META_IIF`, `NFT_META_IIFNAME` of linux/netfilter/nf_tables.h.
    const IIF: u32 = 4;
    const IIFNAME: u32 = 6;
    /// `PROTO_BASE_TRANSPORT_HDR` of nft's proto.h.
    const TRANSPORT: u32 = 3;
    let numbers = |numbers: &[u32]| -> Vec<u8> {
        (0..).zip(numbers).flat_map(|(kind, number)| user_data(kind, &number.to_ne_bytes())).collect()
    };
    let expression = |kind: u32, parts: &[u8]| [numbers(&[kind]), user_data(1, parts)].concat();
    let key = if port == Type::Ifname { IIFNAME } else { IIF };
    let port = expression(META, &numbers(&[key]));
    let bits = |bytes: u8| 8 * u32::from(bytes);
    // Of no known protocol, and no known field in that.
    let bytes = expression(PAYLOAD, &numbers(&[0, 0, TRANSPORT, bits(at), bits(len)]));
    expression(CONCAT, &[user_data(0, &port), user_data(1, &bytes)].concat())
}

/// The room that a field of this length takes in registers and in keys of several fields.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(FIELD_ALIGN)
}
