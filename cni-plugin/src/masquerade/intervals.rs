//! Prefixes as a set of intervals has them. Pure.

use ipnetwork::IpNetwork;
use weft_net::Family;
use weft_net::nft::Interval;

/// Those of the wanted intervals that neither a present one nor another wanted one covers.
pub(super) fn uncovered(present: &[Interval], wanted: Vec<Interval>) -> Vec<Interval> {
    let mut result: Vec<Interval> = Vec::new();
    for interval in wanted {
        if !present.iter().chain(&result).any(|other| other.covers(&interval)) {
            result.retain(|other| !interval.covers(other));
            result.push(interval);
        }
    }
    result
}

/// Those of the present intervals that stand in the way of the added ones.
pub(super) fn overlapped(mut present: Vec<Interval>, added: &[Interval]) -> Vec<Interval> {
    present.retain(|interval| added.iter().any(|other| other.overlaps(interval)));
    present
}

pub(super) fn intervals_of(prefixes: &[IpNetwork], family: Family) -> Vec<Interval> {
    prefixes
        .iter()
        .filter(|prefix| Family::of(prefix.ip()) == family)
        .map(|prefix| (*prefix).into())
        .collect()
}

pub(super) fn of_family(intervals: &[Interval], family: Family) -> Vec<Interval> {
    intervals.iter().filter(|interval| interval.is_ipv4() == (family == Family::V4)).copied().collect()
}
