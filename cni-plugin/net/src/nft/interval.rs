//! Elements of interval sets. The kernel keeps an interval as two elements: its first address, and the
//! address after its last with the flag `NFT_SET_ELEM_INTERVAL_END`; the latter is absent where the
//! interval reaches the end of the address space.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, SetElementAttribute, SetElementFlags,
};

use super::answer::{Answer, number};
use super::uapi::{NFTA_DATA_VALUE, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS};
use crate::Family;
use crate::attribute::{attributes, find};

/// Addresses of one family, from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    first: IpAddr,
    last: IpAddr,
}

impl Interval {
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether every address of `other` is in this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.first && other.last <= self.last
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }
}

impl From<IpNetwork> for Interval {
    fn from(prefix: IpNetwork) -> Self {
        Self { first: prefix.network(), last: prefix.broadcast() }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = (0..=Family::of(self.first).bits())
            .filter_map(|length| IpNetwork::new(self.first, length).ok())
            .find(|prefix| Self::from(*prefix) == *self);
        match prefix {
            Some(prefix) => prefix.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The elements that stand for the intervals.
pub(super) fn to_elements(intervals: &[Interval]) -> Vec<ListAttribute<SetElementAttribute>> {
    let mut elements = Vec::with_capacity(2 * intervals.len());
    for interval in intervals {
        elements.push(ListAttribute::Element(vec![key(interval.first)]));
        if let Some(end) = following(interval.last) {
            let flags = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
            elements.push(ListAttribute::Element(vec![flags, key(end)]));
        }
    }
    elements
}

/// The intervals that the elements of a set stand for, in order.
pub(super) fn from_answers(answers: &[Answer]) -> Vec<Interval> {
    let lists = answers.iter().filter_map(|answer| answer.get(NFTA_SET_ELEM_LIST_ELEMENTS));
    between(lists.flat_map(attributes).filter_map(|(_, element)| bound(element)).collect())
}

/// The intervals between bounds: addresses, and whether an interval ends before them. An end without a
/// beginning, which nft puts at the address 0 of a set that it fills, stands for nothing.
fn between(mut bounds: Vec<(IpAddr, bool)>) -> Vec<Interval> {
    // Where one interval ends another may begin: the end goes first.
    bounds.sort_unstable_by_key(|(address, is_end)| (*address, !is_end));

    let mut intervals = Vec::new();
    let mut first = None;
    for (address, is_end) in bounds {
        // Without an end of its own an interval goes on until the next one.
        if let (Some(first), Some(last)) = (first, preceding(address)) {
            intervals.push(Interval { first, last });
        }
        first = (!is_end).then_some(address);
    }
    if let Some(first) = first {
        let last = match first {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        };
        intervals.push(Interval { first, last });
    }
    intervals
}

fn key(address: IpAddr) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(octets(address)))
}

/// The bytes of an address in network order, as nft's registers hold them.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An element's address, and whether an interval ends before it.
fn bound(element: &[u8]) -> Option<(IpAddr, bool)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let flags = find(element, NFTA_SET_ELEM_FLAGS).and_then(number).unwrap_or_default();
    Some((from_octets(key)?, SetElementFlags::from_bits_retain(flags).contains(SetElementFlags::IntervalEnd)))
}

/// The address that these bytes are.
pub(super) fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn following(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn preceding(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    fn interval(prefix: &str) -> Interval {
        prefix.parse::<IpNetwork>().unwrap().into()
    }

    #[test]
    fn relations() {
        let wide = interval("10.0.0.0/16");
        let narrow = interval("10.0.1.0/24");
        assert!(wide.covers(&narrow) && !narrow.covers(&wide));
        assert!(wide.overlaps(&narrow) && narrow.overlaps(&wide));
        assert!(!wide.overlaps(&interval("10.1.0.0/16")));
        assert!(!interval("0.0.0.0/0").covers(&interval("fd00::/64")));
    }

    #[test]
    fn shown_as_nft_shows_it() {
        for text in ["10.0.0.0/24", "0.0.0.0/0", "255.255.255.255/32", "fd00::/64", "::/0"] {
            assert_eq!(interval(text).to_string(), text);
        }
        let odd = Interval { first: [10, 0, 0, 1].into(), last: [10, 0, 0, 2].into() };
        assert_eq!(odd.to_string(), "10.0.0.1-10.0.0.2");
    }

    proptest! {
        /// Whatever the order in which the kernel lists the elements, and also where intervals touch.
        #[test]
        fn elements_round_trip(
            cuts in proptest::collection::btree_set(0_u32.., 2..20),
            touching in any::<bool>(),
            whole in any::<bool>(),
        ) {
            let cuts: Vec<u32> = cuts.into_iter().collect();
            let mut intervals: Vec<Interval> = cuts
                .windows(2)
                .step_by(if touching { 1 } else { 2 })
                .map(|pair| Interval {
                    first: Ipv4Addr::from_bits(pair[0]).into(),
                    last: Ipv4Addr::from_bits(pair[1] - 1).into(),
                })
                .collect();
            if whole {
                intervals = vec![interval("::/0")];
            }
            let mut bytes = Vec::new();
            for element in to_elements(&intervals).into_iter().rev() {
                let start = bytes.len();
                bytes.resize(start + element.buffer_len(), 0);
                element.emit(&mut bytes[start..]);
            }
            let bounds = attributes(&bytes).filter_map(|(_, element)| bound(element)).collect();
            prop_assert_eq!(between(bounds), intervals);
        }
    }
}
