//! The two families of addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::node::Node;

/// A family of addresses, and what of a network that spans hosts is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// An address's family.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The option of `ip` and `ping`.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// The name of an interface's setting that says whether what comes in by it is forwarded.
    pub fn forwarding(self, ifname: &str) -> String {
        let family = match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        };
        format!("net/{family}/conf/{ifname}/forwarding")
    }

    /// The length of a prefix that is one address.
    pub fn alone(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The VXLAN device that Weft makes for it, with VNI 1.
    pub fn device(self) -> &'static str {
        match self {
            Self::V4 => "weft.1",
            Self::V6 => "weft6.1",
        }
    }

    /// What VXLAN and Ethernet take of an underlay's MTU.
    pub fn overhead(self) -> u64 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }

    /// A node's address on the underlay.
    pub fn address(self, node: &Node) -> IpAddr {
        match self {
            Self::V4 => node.ipv4.into(),
            Self::V6 => node.ipv6.into(),
        }
    }

    /// An address on the segment of the underlay that the cluster's hosts are on, with the same digits in both.
    pub fn neighbour(self, number: u8) -> IpAddr {
        let text = match self {
            Self::V4 => format!("172.30.0.{number}"),
            Self::V6 => format!("fd30::{number}"),
        };
        text.parse().expect("digits are hexadecimal ones too")
    }

    /// A node's subnet, as its [`Node::subnet_file`] has it.
    pub fn subnet(self, node: &Node) -> IpNetwork {
        let key = match self {
            Self::V4 => "FLANNEL_SUBNET",
            Self::V6 => "FLANNEL_IPV6_SUBNET",
        };
        let gateway: IpNetwork = node.subnet_env()[key].parse().expect("an address with its prefix length");
        IpNetwork::new(gateway.network(), gateway.prefix()).expect("the same length")
    }

    /// The hardware address of a node's VXLAN device.
    pub fn mac(self, node: &Node) -> String {
        let device = self.device();
        let link = node.link(device).unwrap_or_else(|| panic!("{} has no {device}", node.name));
        link["address"].as_str().expect("a MAC").to_owned()
    }
}
