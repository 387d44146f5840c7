//! What of a packet rules can compare and look up.

use crate::Family;

/// Where a payload's offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// Something of a packet that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// `iif`
    Iif,
    /// `iifname`
    Iifname,
    /// `iifgroup`, `oifgroup`
    Iifgroup,
    Oifgroup,
    /// `meta protocol`: the EtherType, behind one VLAN tag.
    Protocol,
    /// `ether type`: the EtherType, a VLAN tag's if there is one.
    EtherType,
    /// `meta l4proto`: the protocol, behind IPv6's extension headers.
    L4Protocol,
    /// `ether saddr`
    MacSource,
    /// `ether daddr`
    MacDestination,
    /// `ip saddr`, `ip6 saddr`
    Source(Family),
    /// `ip daddr`, `ip6 daddr`
    Destination(Family),
    /// `ct original ip daddr`, `ct original ip6 daddr`: where a connection's first packet was sent, before address translation. Packets that
    /// conntrack does not know have none, and match no rule that asks.
    Dialled(Family),
    /// The first byte of an address: whether it is `127.0.0.0/8`.
    SourceBlock,
    DestinationBlock,
    /// `ip6 length`
    Ipv6Length,
    /// `ip6 nexthdr`
    Ipv6Next,
    /// `@nh,336,16`: the offset in an IPv6 fragment's header that is the first one, and three bits for other things.
    FragmentOffset,
    /// `th sport`, and `th dport` right behind it.
    Ports,
    /// `th dport`
    DestinationPort,
    /// `arp htype`, `arp ptype`, `arp hlen`, `arp plen`: what kinds of addresses it is about (RFC 826).
    ArpHardware,
    ArpProtocol,
    ArpHardwareLen,
    ArpProtocolLen,
    /// `arp operation`
    ArpOperation,
    /// `arp saddr ip` of an Ethernet ARP packet.
    ArpSender,
    /// `arp saddr ether`
    ArpSenderMac,
    /// `icmpv6 type`, `icmp type`
    IcmpType,
    /// `@th,OFFSET,LENGTH`, here in bytes: what nft has no name for.
    Transport {
        at: u8,
        len: u8,
    },
}

impl Load {
    pub(super) fn payload(self) -> Option<(Base, u32)> {
        Some(match self {
            Self::Iif
            | Self::Iifname
            | Self::Iifgroup
            | Self::Oifgroup
            | Self::Protocol
            | Self::Dialled(_)
            | Self::L4Protocol => return None,
            Self::MacDestination => (Base::Link, 0),
            Self::MacSource => (Base::Link, 6),
            Self::EtherType => (Base::Link, 12),
            Self::ArpHardware => (Base::Network, 0),
            Self::ArpProtocol => (Base::Network, 2),
            Self::ArpHardwareLen | Self::Ipv6Length => (Base::Network, 4),
            Self::ArpProtocolLen => (Base::Network, 5),
            Self::ArpOperation | Self::Ipv6Next => (Base::Network, 6),
            Self::Source(Family::V4) | Self::SourceBlock => (Base::Network, 12),
            Self::Destination(Family::V4) | Self::DestinationBlock => (Base::Network, 16),
            Self::Source(Family::V6) | Self::ArpSenderMac => (Base::Network, 8),
            Self::Destination(Family::V6) => (Base::Network, 24),
            Self::ArpSender => (Base::Network, 14),
            Self::FragmentOffset => (Base::Network, 42),
            Self::Ports | Self::IcmpType => (Base::Transport, 0),
            Self::DestinationPort => (Base::Transport, 2),
            Self::Transport { at, .. } => (Base::Transport, u32::from(at)),
        })
    }

    /// In bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::L4Protocol
            | Self::SourceBlock
            | Self::DestinationBlock
            | Self::IcmpType
            | Self::Ipv6Next
            | Self::ArpHardwareLen
            | Self::ArpProtocolLen => 1,
            Self::Protocol
            | Self::EtherType
            | Self::DestinationPort
            | Self::Ipv6Length
            | Self::ArpHardware
            | Self::ArpProtocol
            | Self::ArpOperation
            | Self::FragmentOffset => 2,
            Self::Iif
            | Self::Iifgroup
            | Self::Oifgroup
            | Self::Source(Family::V4)
            | Self::Destination(Family::V4)
            | Self::Dialled(Family::V4)
            | Self::ArpSender
            | Self::Ports => 4,
            Self::MacSource | Self::MacDestination | Self::ArpSenderMac => 6,
            Self::Iifname
            | Self::Source(Family::V6)
            | Self::Destination(Family::V6)
            | Self::Dialled(Family::V6) => 16,
            Self::Transport { len, .. } => usize::from(len),
        }
    }
}
