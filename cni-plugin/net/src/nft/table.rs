//! Weft's two tables.

use std::fmt;

use netlink_packet_netfilter::NetfilterProtoFamily;

use super::TABLE;

/// One of the tables named `weft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// `inet weft`: what the host routes, sends and receives.
    Inet,
    /// `bridge weft`: frames on the host's bridges.
    Bridge,
}

impl Table {
    pub(super) fn family(self) -> NetfilterProtoFamily {
        match self {
            Self::Inet => NetfilterProtoFamily::Inet,
            Self::Bridge => NetfilterProtoFamily::Bridge,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        };
        write!(f, "{family} {TABLE}")
    }
}
