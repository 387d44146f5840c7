//! Which addresses a configuration gives out, and in which order. Pure: nothing here reads a file.
//!
//! Both families take one path: an address is its number, a range is the interval between two
//! numbers, and what is never given (network, broadcast, gateways, exclusions) is cut out of the
//! intervals once. So an excluded /72 or a /64 to choose from costs as much as a single address.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_net::Family;

use crate::range::{Invalid, Range, Span, address, cuts, number};

/// Ranges of one family, of which an attachment gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
    /// What may be given, in the order of giving: `ranges` without everything that is never given.
    spans: Vec<Span>,
    family: Family,
}

/// Why an address is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It lies in none of the ranges.
    Outside,
    /// It is the gateway of a range.
    Gateway,
    /// It is the network or broadcast address of a subnet.
    NetworkOrBroadcast,
    /// It is excluded by the configuration.
    Excluded,
}

impl RangeSet {
    /// How many addresses the set can give at once.
    #[must_use]
    pub fn total(&self) -> u128 {
        self.spans.iter().map(|s| s.last - s.first + 1).sum()
    }

    /// Whether the set gives IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.family == Family::V4
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// Whether `ip` lies in one of the ranges, given or not.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.range_of(ip).is_some()
    }

    /// Whether `ip` is one that this set gives.
    #[must_use]
    pub fn gives(&self, ip: IpAddr) -> bool {
        self.family == Family::of(ip) && self.spans.iter().any(|s| s.contains(number(ip)))
    }

    /// The range that `ip` lies in.
    #[must_use]
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|r| r.contains(ip))
    }

    /// Every address that the set gives, once, beginning behind `last` and going around. Lazy, so
    /// that whoever takes the first free one looks at one more than are held, at most.
    ///
    /// A `last` that the set does not give (the configuration has changed) counts as `None`: from
    /// the beginning.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let family = self.family;
        self.spans_after(last).flat_map(|s| s.first..=s.last).map(move |n| address(family, n))
    }

    /// The same addresses in the same order, cut where blocks of them end.
    pub(crate) fn pieces_after(&self, last: Option<IpAddr>) -> impl Iterator<Item = Span> {
        self.spans_after(last).flat_map(Span::by_blocks)
    }

    fn spans_after(&self, last: Option<IpAddr>) -> impl Iterator<Item = Span> {
        let last = last.filter(|ip| self.gives(*ip)).map(number);
        let at = last.and_then(|n| self.spans.iter().position(|s| s.contains(n)).map(|i| (i, n)));
        let (upper, lower, split) = match at {
            None => (&self.spans[..], &[][..], None),
            Some((i, n)) => (&self.spans[i + 1..], &self.spans[..i], Some((self.spans[i], n))),
        };
        let rest = split.and_then(|(s, n)| (n < s.last).then(|| Span { first: n + 1, last: s.last }));
        let start = split.map(|(s, n)| Span { first: s.first, last: n });
        rest.into_iter().chain(upper.iter().copied()).chain(lower.iter().copied()).chain(start)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(" and ")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

/// All range sets of a configuration: an attachment gets one address of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    sets: Vec<RangeSet>,
    exclude: Vec<IpNetwork>,
}

/// Where in the sets something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misplaced {
    /// Index of the set.
    pub set: usize,
    /// Index of the range in the set; `None` when it is about the set.
    pub range: Option<usize>,
    /// What it is.
    pub invalid: Invalid,
}

impl Pools {
    /// Puts ranges together to sets.
    ///
    /// # Errors
    /// [`Misplaced`] for sets that are empty, mix families, overlap, or have nothing left to give.
    pub fn new(sets: &[Vec<Range>], exclude: Vec<IpNetwork>) -> Result<Self, Misplaced> {
        let mut earlier: Vec<&Range> = Vec::new();
        for (set, ranges) in sets.iter().enumerate() {
            for (at, range) in ranges.iter().enumerate() {
                check_beside(range, ranges, &earlier).map_err(|invalid| Misplaced {
                    set,
                    range: Some(at),
                    invalid,
                })?;
                earlier.push(range);
            }
        }
        let never = never_given(&earlier, &exclude);
        let build = |(set, ranges): (usize, &Vec<Range>)| {
            RangeSet::new(ranges.clone(), &never).map_err(|invalid| Misplaced { set, range: None, invalid })
        };
        let sets = sets.iter().enumerate().map(build).collect::<Result<_, _>>()?;
        Ok(Self { sets, exclude })
    }

    /// The sets in the order of the configuration.
    #[must_use]
    pub fn sets(&self) -> &[RangeSet] {
        &self.sets
    }

    /// Why `ip` is given by no set; `None` if one does give it.
    #[must_use]
    pub fn refusal(&self, ip: IpAddr) -> Option<Refusal> {
        if self.sets.iter().any(|s| s.gives(ip)) {
            return None;
        }
        let mut ranges = self.sets.iter().flat_map(|s| &s.ranges);
        if ranges.clone().any(|r| r.gateway() == Some(ip)) {
            return Some(Refusal::Gateway);
        }
        let cut =
            |r: &Range| r.family() == Family::of(ip) && cuts(r.subnet()).any(|c| c.contains(number(ip)));
        if ranges.any(cut) {
            return Some(Refusal::NetworkOrBroadcast);
        }
        let excluded =
            self.sets.iter().any(|s| s.contains(ip)) && self.exclude.iter().any(|n| n.contains(ip));
        Some(if excluded { Refusal::Excluded } else { Refusal::Outside })
    }
}

/// One range beside the others of its set and all before it.
fn check_beside(range: &Range, set: &[Range], earlier: &[&Range]) -> Result<(), Invalid> {
    if let Some(first) = set.first().filter(|f| f.family() != range.family()) {
        let reason = format!(
            "is {}, but the set begins with {}; give each family a set of its own",
            range.family(),
            first.subnet()
        );
        return Err(Invalid::new("subnet", range.subnet(), reason));
    }
    match earlier.iter().find(|e| e.overlaps(range)) {
        None => Ok(()),
        Some(other) => {
            let reason = format!("overlaps the earlier range {other}; an address may be in one range only");
            Err(Invalid::new("", range, reason))
        }
    }
}

fn never_given(ranges: &[&Range], exclude: &[IpNetwork]) -> Vec<(Family, Span)> {
    let gateways = ranges.iter().filter_map(|r| Some((r.family(), Span::one(number(r.gateway()?)))));
    let ends = ranges.iter().flat_map(|r| cuts(r.subnet()).map(|c| (r.family(), c)));
    let excluded = exclude.iter().map(|n| (Family::of(n.ip()), Span::of(*n)));
    gateways.chain(ends).chain(excluded).collect()
}

impl RangeSet {
    fn new(ranges: Vec<Range>, never: &[(Family, Span)]) -> Result<Self, Invalid> {
        let Some(family) = ranges.first().map(Range::family) else {
            return Err(Invalid::new("", "[]", "holds no range; remove the set or give it a subnet"));
        };
        let mut spans: Vec<Span> = ranges.iter().map(|r| r.span).collect();
        for (_, hole) in never.iter().filter(|(f, _)| *f == family) {
            spans = spans.into_iter().flat_map(|s| s.without(*hole)).collect();
        }
        let set = Self { ranges, spans, family };
        if set.spans.is_empty() {
            let reason =
                "has no address left to give: all are network, broadcast, gateway or excluded; widen it";
            return Err(Invalid::new("", &set, reason));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests;
