//! The kernel's answers, read attribute by attribute.
//!
//! Requests are built from the types of netlink-packet-netfilter. Its decoder is not used: it renders every
//! list that it reads as text, for an error message that is then not needed. Measured on a busy 2-core VM,
//! reading two rules took 430 µs with it and takes 28 µs without.

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader};

use crate::attribute::find;

/// The size of `struct nfgenmsg` of linux/netfilter/nfnetlink.h.
const HEADER_LEN: usize = 4;

/// An object's attributes.
#[derive(Debug)]
pub(crate) struct Answer(Vec<u8>);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let attributes = payload.get(HEADER_LEN..).ok_or("an nfnetlink message without its header")?;
        Ok(Self(attributes.to_vec()))
    }
}

impl Answer {
    /// The value of the object's attribute of this type.
    pub(crate) fn get(&self, kind: u16) -> Option<&[u8]> {
        find(&self.0, kind)
    }
}

/// A 32-bit number in network order, as all of nf_tables' are.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}
