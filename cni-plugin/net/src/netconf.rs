//! Settings of the network namespace that netlink tells: `ip netconf`.

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::AddressFamily;

use super::attribute::find;
use super::error::NlResult;
use super::socket::Netlink;
use crate::Family;

// linux/rtnetlink.h; netlink-packet-route knows no NETCONF.
pub(super) const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
// linux/netconf.h
pub(super) const NETCONFA_IFINDEX: u16 = 1;
pub(super) const NETCONFA_FORWARDING: u16 = 2;
/// The setting of the namespace, not of one link.
pub(super) const NETCONFA_IFINDEX_ALL: i32 = -1;
/// struct netconfmsg, which is one byte, up to where the attributes begin.
pub(super) const HEADER: usize = 4;
/// The length of the one attribute in a request.
const IFINDEX_LEN: u16 = 8;

impl Netlink {
    /// `ip netconf show`: whether the namespace routes between its links. Reading the same below /proc/sys costs more with
    /// every other namespace, as their directories `net` all have one name there.
    pub fn forwards(&mut self, family: Family) -> NlResult<bool> {
        let answers: Vec<Answer> = self.socket.request(Query(family), 0)?;
        Ok(answers.iter().any(|Answer { forwarding }| *forwarding))
    }
}

struct Query(Family);

impl NetlinkSerializable for Query {
    fn message_type(&self) -> u16 {
        RTM_GETNETCONF
    }

    fn buffer_len(&self) -> usize {
        HEADER + usize::from(IFINDEX_LEN)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let family = match self.0 {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let [length, kind] = [IFINDEX_LEN, NETCONFA_IFINDEX].map(u16::to_ne_bytes);
        let header = [u8::from(family), 0, 0, 0];
        buffer.copy_from_slice(&[&header[..], &length, &kind, &NETCONFA_IFINDEX_ALL.to_ne_bytes()].concat());
    }
}

struct Answer {
    forwarding: bool,
}

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let value = payload.get(HEADER..).and_then(|nest| find(nest, NETCONFA_FORWARDING));
        Ok(Self { forwarding: value.is_some_and(|value| value.iter().any(|byte| *byte != 0)) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cni_protocol::Deadline;
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::sysctl::Sysctl;

    #[test]
    fn forwarding_is_what_the_setting_says() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut netlink = Netlink::open(Deadline::after(Duration::from_secs(5))).unwrap();
        for family in Family::ALL {
            for (value, forwards) in [("1", true), ("0", false), ("1", true)] {
                Sysctl::forwarding(family).set(value).unwrap();
                assert_eq!(netlink.forwards(family).unwrap(), forwards, "{family}");
            }
        }
    }
}
