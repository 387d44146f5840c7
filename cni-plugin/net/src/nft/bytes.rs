//! Attributes, written as bytes.

use netlink_packet_core::{DefaultNla, NLA_ALIGNTO, NLA_F_NESTED};

/// Appends an attribute whose value `write` appends: length, type, value, padding (linux/netlink.h).
pub(crate) fn put(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend(kind.to_ne_bytes());
    write(bytes);
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(NLA_ALIGNTO), 0);
}

/// Appends an attribute with other attributes in it.
pub(super) fn nest(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    put(bytes, kind | NLA_F_NESTED, write);
}

/// An object's attribute with a string, which ends with a zero.
pub(crate) fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

/// An object's attribute with a number in network order.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// An object's attribute with other attributes in it.
pub(crate) fn nested(kind: u16, write: impl FnOnce(&mut Vec<u8>)) -> DefaultNla {
    let mut value = Vec::new();
    write(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// One field of the data that the kernel keeps for nft: type, length, value.
pub(super) fn user_data(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut data = vec![kind, length];
    data.extend_from_slice(&value[..usize::from(length)]);
    data
}
