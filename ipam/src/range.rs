//! One range: an interval of addresses in one subnet, checked on its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_protocol::not_unicast;
use ipnetwork::IpNetwork;
use weft_net::Family;

/// A range as it was configured, its texts parsed but nothing checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSpec {
    /// The network that holds the range; its prefix length is that of the addresses given.
    pub subnet: IpNetwork,
    /// The first address to give; by default the first usable one of the subnet.
    pub start: Option<IpAddr>,
    /// The last address to give; by default the last usable one of the subnet.
    pub end: Option<IpAddr>,
    /// The gateway to name in results; by default the first usable address of the subnet.
    pub gateway: Option<IpAddr>,
}

/// What is wrong with a range: its `key` has `value`, and `reason` says why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key of the range, such as `rangeStart`; empty when it is about the range as a whole.
    pub key: &'static str,
    /// The value found.
    pub value: String,
    /// Why that cannot be, and what to write instead.
    pub reason: String,
}

impl Invalid {
    pub(crate) fn new(key: &'static str, value: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self { key, value: value.to_string(), reason: reason.into() }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "numbers of the IPv4 family come from 32 bits")]
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The addresses from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    pub(crate) fn one(number: u128) -> Self {
        Self { first: number, last: number }
    }

    pub(crate) fn of(network: IpNetwork) -> Self {
        Self { first: number(network.network()), last: number(network.broadcast()) }
    }

    /// The block of addresses that an address is in: they share all but their last byte.
    pub(crate) fn block_of(number: u128) -> Self {
        Self { first: number & !0xff, last: number | 0xff }
    }

    /// Its parts in one block each, in order.
    pub(crate) fn by_blocks(self) -> impl Iterator<Item = Self> {
        let part = move |first: u128| Self { first, last: Self::block_of(first).last.min(self.last) };
        std::iter::successors(Some(part(self.first)), move |before| {
            (before.last < self.last).then(|| part(before.last + 1))
        })
    }

    pub(crate) fn contains(self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is left of `self` without `hole`: nothing, one part or two.
    pub(crate) fn without(self, hole: Self) -> impl Iterator<Item = Self> {
        let (below, above) = if self.overlaps(hole) {
            let below = (self.first < hole.first).then(|| Self { first: self.first, last: hole.first - 1 });
            let above = (hole.last < self.last).then(|| Self { first: hole.last + 1, last: self.last });
            (below, above)
        } else {
            (Some(self), None)
        };
        below.into_iter().chain(above)
    }
}

/// A checked range of addresses inside one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    gateway: Option<IpAddr>,
    pub(crate) span: Span,
}

impl Range {
    /// Checks a range on its own and fills in the defaults.
    ///
    /// # Errors
    /// [`Invalid`] for a subnet that is unusable or has host bits set, for addresses outside it or
    /// of the other family, and for a start behind the end.
    pub fn new(spec: &RangeSpec) -> Result<Self, Invalid> {
        let subnet = spec.subnet;
        if subnet.network() != subnet.ip() {
            let reason = format!(
                "has host bits set; the network of this prefix length is {}/{}",
                subnet.network(),
                subnet.prefix()
            );
            return Err(Invalid::new("subnet", subnet, reason));
        }
        let family = Family::of(subnet.ip());
        if let Some(reason) = not_unicast(subnet) {
            return Err(Invalid::new(
                "subnet",
                subnet,
                format!("{reason}; choose a subnet of unicast addresses"),
            ));
        }
        let inside = |key, ip: Option<IpAddr>| match ip {
            Some(ip) if !subnet.contains(ip) => {
                Err(Invalid::new(key, ip, format!("lies outside subnet {subnet}; choose an address in it")))
            }
            other => Ok(other.map(number)),
        };
        let usable = usable(subnet);
        let span = Span {
            first: inside("rangeStart", spec.start)?.unwrap_or(usable.first),
            last: inside("rangeEnd", spec.end)?.unwrap_or(usable.last),
        };
        if span.first > span.last {
            let end = address(family, span.last);
            let reason =
                format!("the range would end at {end}, before it starts; choose a start up to the end");
            return Err(Invalid::new("rangeStart", address(family, span.first), reason));
        }
        // A subnet of one address has no room for a gateway beside the container.
        let default = (subnet.prefix() < family.bits()).then_some(usable.first);
        let gateway = inside("gateway", spec.gateway)?.or(default).map(|n| address(family, n));
        if spec.gateway.is_some_and(|g| cuts(subnet).any(|cut| cut.contains(number(g)))) {
            let reason = format!("is the network or broadcast address of {subnet}; choose another one in it");
            return Err(Invalid::new("gateway", gateway.map(|g| g.to_string()).unwrap_or_default(), reason));
        }
        Ok(Self { subnet, gateway, span })
    }

    /// The network that the addresses of this range belong to.
    #[must_use]
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The gateway for containers with an address of this range. `None` in a subnet of one address.
    #[must_use]
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.subnet.ip())
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.span.overlaps(other.span)
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.family() == Family::of(ip) && self.span.contains(number(ip))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subnet.fmt(f)?;
        if self.span == usable(self.subnet) {
            return Ok(());
        }
        let family = self.family();
        write!(f, " from {} to {}", address(family, self.span.first), address(family, self.span.last))
    }
}

/// The network address (in IPv6 the anycast address of its routers) and the IPv4 broadcast address.
/// Subnets of two addresses or one have neither (RFC 3021, RFC 6164).
pub(crate) fn cuts(subnet: IpNetwork) -> impl Iterator<Item = Span> {
    let family = Family::of(subnet.ip());
    let whole = Span::of(subnet);
    let wide = subnet.prefix() + 1 < family.bits();
    let network = wide.then(|| Span::one(whole.first));
    let broadcast = (wide && family == Family::V4).then(|| Span::one(whole.last));
    network.into_iter().chain(broadcast)
}

/// The addresses of a subnet that a host can have.
fn usable(subnet: IpNetwork) -> Span {
    let whole = Span::of(subnet);
    cuts(subnet).fold(whole, |rest, cut| rest.without(cut).next().unwrap_or(whole))
}
