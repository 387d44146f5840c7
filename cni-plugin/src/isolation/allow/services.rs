//! What a rule lets pass: protocols and ports.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_net::nft::Tuple;

use crate::conf::isolation::Service;

/// Protocols by number and their ports, the first and the last of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Services {
    pub(super) protocols: (u16, u16),
    pub(super) ports: (u16, u16),
}

impl Services {
    pub(super) const ALL: Self = Self { protocols: (0, u8::MAX as u16), ports: (0, u16::MAX) };

    pub(super) fn new(service: Option<Service>) -> Self {
        service.map_or(Self::ALL, |service| {
            let protocol = service.protocol as u16;
            Self { protocols: (protocol, protocol), ports: service.ports }
        })
    }

    pub(super) fn cover(self, others: Self) -> bool {
        let covers = |(first, last): (u16, u16), (from, to): (u16, u16)| first <= from && to <= last;
        covers(self.protocols, others.protocols) && covers(self.ports, others.ports)
    }

    pub(super) fn is_one(self) -> bool {
        self.protocols.0 == self.protocols.1 && self.ports.0 == self.ports.1
    }

    /// What is left of these without others.
    pub(super) fn without(self, others: Self) -> Vec<Self> {
        let [below, common, above] = split(self.protocols, others.protocols);
        let mut left: Vec<Self> =
            below.into_iter().chain(above).map(|protocols| Self { protocols, ..self }).collect();
        if let Some(protocols) = common {
            let [below, _, above] = split(self.ports, others.ports);
            left.extend(below.into_iter().chain(above).map(|ports| Self { protocols, ports }));
        }
        left
    }

    /// The first or the last of them, after the addresses of a key.
    pub(super) fn end(self, key: Tuple, end: impl Fn((u16, u16)) -> u16) -> Tuple {
        // A protocol's number has eight bits.
        let [_, protocol] = end(self.protocols).to_be_bytes();
        key.protocol(protocol).port(end(self.ports))
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((protocol, last_protocol), (port, last_port)) = (self.protocols, self.ports);
        write!(f, "protocols {protocol}-{last_protocol}, ports {port}-{last_port}")
    }
}

/// The parts of a range before, within and after another.
fn split((first, last): (u16, u16), (from, to): (u16, u16)) -> [Option<(u16, u16)>; 3] {
    if to < first || last < from {
        return [Some((first, last)), None, None];
    }
    let below = from.checked_sub(1).filter(|below| first <= *below).map(|below| (first, below));
    let above = to.checked_add(1).filter(|above| *above <= last).map(|above| (above, last));
    [below, Some((first.max(from), last.min(to))), above]
}
