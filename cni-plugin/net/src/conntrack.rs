//! What conntrack remembers of UDP: `conntrack -L -p udp`, `conntrack -D`.
//!
//! A flow keeps the translation of its first packet for as long as it goes on. So a client that keeps sending to
//! a port never meets a container that came later, unless the flow is forgotten.
//! Source: linux/netfilter/nfnetlink_conntrack.h.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::attribute::find;
use crate::nft::{Answer, Nft, nested, put};
use crate::{Family, NetError, NlResult};

const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM` of net/netfilter/nf_conntrack_netlink.c; in the host's order, unlike the rest.
const FILTER_PROTO_NUM: u32 = 1 << 3;
const IPPROTO_UDP: u8 = 17;

/// A flow of UDP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who sent the first packet.
    pub source: IpAddr,
    /// Where it sent it to, before any translation.
    pub destination: IpAddr,
    pub port: u16,
    /// Who answers.
    pub answered_by: IpAddr,
}

impl Nft {
    /// `conntrack -D -p udp`, of the flows that are chosen. Those that end meanwhile are no error.
    ///
    /// # Errors
    /// `EINVAL` or `EOPNOTSUPP` where the kernel has no nf_conntrack_netlink.
    pub fn forget_udp(&mut self, family: Family, is_chosen: impl Fn(&Flow) -> bool) -> NlResult<usize> {
        // The kernel gives only UDP; one before 5.8 gives all, told apart by protocol.
        let filter = vec![
            nested(CTA_TUPLE_ORIG, |tuple| {
                put(tuple, CTA_TUPLE_PROTO | NLA_F_NESTED, |bytes| {
                    put(bytes, CTA_PROTO_NUM, |bytes| bytes.push(IPPROTO_UDP));
                });
            }),
            nested(CTA_FILTER, |filter| {
                put(filter, CTA_FILTER_ORIG_FLAGS, |bytes| bytes.extend(FILTER_PROTO_NUM.to_ne_bytes()));
            }),
        ];
        let answers: Vec<Answer> = self.socket_mut().dump(&message(family, IPCTNL_MSG_CT_GET, filter))?;
        let mut forgotten = 0;
        for answer in &answers {
            if !read(answer).is_some_and(|flow| is_chosen(&flow)) {
                continue;
            }
            let attributes = [CTA_TUPLE_ORIG | NLA_F_NESTED, CTA_ID]
                .into_iter()
                .filter_map(|kind| Some(DefaultNla::new(kind, answer.get(kind & !NLA_F_NESTED)?.to_vec())));
            let delete = message(family, IPCTNL_MSG_CT_DELETE, attributes.collect());
            match self.socket_mut().request_all::<_, Answer>(vec![(delete, NLM_F_REQUEST | NLM_F_ACK)]) {
                Ok(_) => forgotten += 1,
                Err(error) if error.not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}

/// Whether an error only says that the kernel keeps no such record.
pub fn is_untracked(error: &NetError) -> bool {
    use nix::errno::Errno;
    matches!(error.errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT)
}

fn read(answer: &Answer) -> Option<Flow> {
    let original = answer.get(CTA_TUPLE_ORIG)?;
    let protocol = find(original, CTA_TUPLE_PROTO)?;
    if find(protocol, CTA_PROTO_NUM)? != [IPPROTO_UDP] {
        return None;
    }
    let addresses = find(original, CTA_TUPLE_IP)?;
    let answering = find(answer.get(CTA_TUPLE_REPLY)?, CTA_TUPLE_IP)?;
    Some(Flow {
        source: address(addresses, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(addresses, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        port: find(protocol, CTA_PROTO_DST_PORT)?.try_into().ok().map(u16::from_be_bytes)?,
        answered_by: address(answering, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
    })
}

fn address(addresses: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(bytes) = find(addresses, v4) {
        return <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    }
    <[u8; 16]>::try_from(find(addresses, v6)?).ok().map(IpAddr::from)
}

fn message(family: Family, message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let inner = ConntrackMessage::Other { message_type, attributes };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}
