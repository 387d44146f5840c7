//! The attributes of a netlink message, read one by one (linux/netlink.h).
//!
//! Requests are built from the types of the netlink-packet crates. Where an answer is large and little of it is
//! wanted, their decoders are not used: they turn all of it into values of their own.

use netlink_packet_core::{NLA_ALIGNTO, NLA_HEADER_SIZE, NLA_TYPE_MASK};

/// Types and values of the attributes in a nest, in order. A broken one ends it.
pub(super) fn attributes(mut nest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [length_0, length_1, kind_0, kind_1] = *nest.first_chunk::<NLA_HEADER_SIZE>()?;
        let length = usize::from(u16::from_ne_bytes([length_0, length_1]));
        let kind = u16::from_ne_bytes([kind_0, kind_1]) & NLA_TYPE_MASK;
        let value = nest.get(NLA_HEADER_SIZE..length)?;
        nest = nest.get(length.next_multiple_of(NLA_ALIGNTO)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this type in a nest.
pub(super) fn find(nest: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(nest).find_map(|(found, value)| (found == kind).then_some(value))
}

/// A string, which may end with zeros.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_attributes_end_the_nest() {
        let whole = [6_u16.to_ne_bytes(), 0x8003_u16.to_ne_bytes(), [1, 2], [0, 0]].concat();
        assert_eq!(attributes(&whole).collect::<Vec<_>>(), [(3, [1, 2].as_slice())]);
        // Without padding at the end; cut off; shorter than its own header; longer than the nest.
        assert_eq!(find(&whole[..6], 3), Some([1, 2].as_slice()));
        assert_eq!(attributes(&whole[..5]).count(), 0);
        assert_eq!(attributes(&whole[..3]).count(), 0);
        assert_eq!(attributes(&[[3, 0], [3, 0]].concat()).count(), 0);
        assert_eq!(attributes(&[whole.as_slice(), &[200, 0, 1, 0, 9]].concat()).count(), 1);
    }
}
