//! Several requests in one system call, and which of them the kernel refused.

use std::ops::ControlFlow;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;

use super::{NetError, Netlink, NlResult, Socket, Unread, refusal};

/// So many refusals have room in a socket that takes net.core.rmem_default bytes: each is counted with its whole buffer,
/// a kilobyte and more with the kernel's explanation.
const AT_ONCE: usize = 128;

/// What the kernel refused of several messages.
#[derive(Debug)]
pub(in super::super) struct Refusal {
    /// Which of the messages, counted from 0.
    pub(in super::super) position: usize,
    pub(in super::super) error: NetError,
}

impl Refusal {
    /// The batch's begin, which stands for the whole.
    fn whole(error: NetError) -> Self {
        Self { position: 0, error }
    }
}

impl Socket {
    /// Sends messages that take effect together or not at all (`NFNL_MSG_BATCH_BEGIN` … `NFNL_MSG_BATCH_END`)
    /// and waits for the answers. The last but one asks for an acknowledgement, or the last one where the batch has no
    /// end: then the kernel looks at all of it and does nothing.
    ///
    /// # Errors
    /// The first message that the kernel refused.
    pub(in super::super) fn batch<M>(&mut self, messages: Vec<(M, u16)>, has_end: bool) -> Result<(), Refusal>
    where
        M: NetlinkDeserializable + NetlinkSerializable,
    {
        let first = self.sequence + 1;
        self.send(messages).map_err(Refusal::whole)?;
        let last = self.sequence - u32::from(has_end);
        // The kernel goes on after a message that it refuses, to find them all. It stops at the batch's begin when it
        // refuses the batch as such.
        let refused =
            self.refusals::<M>(first, |sequence, refused| sequence == last || (sequence == first && refused));
        refused.map_err(Refusal::whole)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// Reads answers up to the last one. Returns what was refused, in the order of the messages.
    fn refusals<M>(&mut self, first: u32, is_last: impl Fn(u32, bool) -> bool) -> NlResult<Vec<Refusal>>
    where
        M: NetlinkDeserializable,
    {
        let mut refusals = Vec::new();
        self.walk(|packet: NetlinkMessage<M>, bytes| {
            let NetlinkPayload::Error(answer) = packet.payload else { return ControlFlow::Continue(()) };
            let sequence = packet.header.sequence_number;
            if let Some(error) = refusal(&answer, bytes) {
                let position = usize::try_from(sequence.saturating_sub(first)).unwrap_or(usize::MAX);
                refusals.push(Refusal { position, error });
            }
            match is_last(sequence, !refusals.is_empty()) {
                true => ControlFlow::Break(Ok(std::mem::take(&mut refusals))),
                false => ControlFlow::Continue(()),
            }
        })
    }
}

impl Netlink {
    /// Sends requests that the kernel only acknowledges and that stand for themselves, many in one system call. Returns
    /// what came of each, in order.
    ///
    /// # Errors
    /// `ETIMEDOUT` at the command's deadline: then it is not known what came of them.
    pub(in super::super) fn request_each(
        &mut self,
        messages: Vec<RouteNetlinkMessage>,
        flags: u16,
    ) -> NlResult<Vec<NlResult<()>>> {
        let mut outcomes = vec![Ok(()); messages.len()];
        let mut messages = messages.into_iter();
        for part in outcomes.chunks_mut(AT_ONCE) {
            let asked = messages.by_ref().take(part.len()).map(|message| (message, NLM_F_REQUEST | flags));
            let mut asked: Vec<_> = asked.collect();
            if let Some((_, flags)) = asked.last_mut() {
                *flags |= NLM_F_ACK;
            }
            let first = self.socket.sequence + 1;
            self.socket.send(asked)?;
            let last = self.socket.sequence;
            for refusal in self.socket.refusals::<Unread>(first, |sequence, _| sequence == last)? {
                if let Some(outcome) = part.get_mut(refusal.position) {
                    *outcome = Err(refusal.error);
                }
            }
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use cni_protocol::Deadline;
    use ipnetwork::IpNetwork;

    use super::*;
    use crate::Entry;

    const LOOPBACK: u32 = 1;
    const MANY: u8 = 250;

    fn accepted(number: u8) -> Entry {
        let mac = [2, 0, 0, 0, 0, number].into();
        Entry::Neighbour {
            index: LOOPBACK,
            address: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            mac,
        }
    }

    /// No interface leads to the gateway.
    fn refused(number: u8) -> Entry {
        let dst = IpNetwork::from(IpAddr::from([198, 51, 100, number]));
        Entry::Direct { index: LOOPBACK, dst, gateway: [203, 0, 113, 1].into() }
    }

    /// Also where refusals fill more than one system call, and where nothing else is in them.
    #[test]
    fn each_request_has_an_outcome_of_its_own() {
        let mut netlink = Netlink::open(Deadline::after(Duration::from_secs(10))).unwrap();
        let none: [u8; 0] = [];
        let all: Vec<u8> = (0..MANY).collect();
        for bad in [&none[..], &[0], &[126, 127, 128, 249], &all] {
            let entry = |number| if bad.contains(&number) { refused(number) } else { accepted(number) };
            let entries: Vec<Entry> = (0..MANY).map(entry).collect();
            let outcomes = netlink.set_entries(&entries).unwrap();
            assert_eq!(outcomes.len(), entries.len());
            let found: Vec<u8> = (0..MANY).filter(|number| outcomes[usize::from(*number)].is_err()).collect();
            assert_eq!(found, bad);
            let there = netlink.neighbours(LOOPBACK, crate::Family::V6, false).unwrap();
            assert_eq!(there.len(), entries.len() - bad.len());
            // What is not there is removed, too.
            let outcomes = netlink.remove_entries(&entries).unwrap();
            assert!(outcomes.len() == entries.len() && outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            assert!(netlink.neighbours(LOOPBACK, crate::Family::V6, false).unwrap().is_empty());
        }
    }
}
