//! What identifies an attachment, and every name that follows from it.

use std::fmt;

use cni_protocol::{ContainerId, IfName, MacAddr, NetworkName};
use weft_state::{hash, short_hash};

use weft_net::Link;

/// The host ends of Weft's veths start with this.
const VETH_PREFIX: &str = "weft";
/// The first of the numbers that groups of a network's ports have, and how many these are: away from those that people give,
/// from that of links in removal, and from the sign, which iproute2 would print.
const FIRST_GROUP: u32 = 1 << 29;
/// The links that traffic takes a detour through start with this, and a letter for the direction.
const IFB_PREFIX: &str = "wef";
/// The length of [`short_hash`].
pub const HASH_LEN: usize = 11;
/// `IFALIASZ` of linux/if.h, less the terminating zero.
pub const ALIAS_MAX: usize = 255;

/// Whether a text can be an attachment's hash.
pub fn is_hash(text: &str) -> bool {
    text.len() == HASH_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// One interface of one container on one network. DEL and GC need nothing else to find all that is
/// the attachment's: not its namespace, no previous result, no record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentKey {
    pub network: NetworkName,
    pub container_id: ContainerId,
    pub ifname: IfName,
    hash: String,
}

impl AttachmentKey {
    pub fn new(network: &NetworkName, container_id: &ContainerId, ifname: &IfName) -> Self {
        let hash = short_hash(&[network.as_str(), container_id.as_str(), ifname.as_str()]);
        Self { network: network.clone(), container_id: container_id.clone(), ifname: ifname.clone(), hash }
    }

    /// 11 characters that name the attachment's files and links.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The name of the veth's host end: 15 bytes, the most that an interface name may have.
    pub fn host_veth(&self) -> String {
        host_veth_of(self.hash())
    }

    /// The name of the link that one direction takes a detour through where it is limited.
    pub fn ifb(&self, direction: Direction) -> String {
        let letter = match direction {
            Direction::Ingress => 'i',
            Direction::Egress => 'e',
        };
        format!("{IFB_PREFIX}{letter}{}", self.hash())
    }

    /// Every link of the host that the attachment can have.
    pub fn links(&self) -> Vec<String> {
        let ifbs = Direction::BOTH.map(|direction| self.ifb(direction));
        std::iter::once(self.host_veth()).chain(ifbs).collect()
    }

    /// The text by which the kernel's own tables tell whose link it is, as `ip link` shows it.
    pub fn alias(&self) -> Option<String> {
        let alias = format!("{}{}:{}", alias_prefix(&self.network), self.container_id, self.ifname);
        (alias.len() <= ALIAS_MAX).then_some(alias)
    }

    /// The key that an alias of this network names.
    pub fn from_alias(network: &NetworkName, alias: &str) -> Option<Self> {
        let (container, ifname) = alias.strip_prefix(&alias_prefix(network))?.split_once(':')?;
        Some(Self::new(network, &container.parse().ok()?, &ifname.parse().ok()?))
    }

    /// The MAC address of one end. It follows from the key, so that a repeated attachment has the same one
    /// and neighbours' caches stay right.
    pub fn mac(&self, end: VethEnd) -> MacAddr {
        let end = match end {
            VethEnd::Host => "host",
            VethEnd::Container => "container",
        };
        let parts = [self.network.as_str(), self.container_id.as_str(), self.ifname.as_str(), end];
        // Eleven digits of base 36 are 56 bits and a bit; 48 of them make the address.
        let number = u64::from_str_radix(&short_hash(&parts), 36).unwrap_or_default();
        let [_, _, mac @ ..] = number.to_be_bytes();
        MacAddr::from(mac).locally_administered()
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {} of container {} on network {}", self.ifname, self.container_id, self.network)
    }
}

/// The name of the host end of the attachment with this hash.
pub fn host_veth_of(hash: &str) -> String {
    format!("{VETH_PREFIX}{hash}")
}

/// The hash of the attachment that a veth of this name is the host end of.
pub fn hash_of_host_veth(name: &str) -> Option<&str> {
    name.strip_prefix(VETH_PREFIX).filter(|hash| is_hash(hash))
}

/// The hash of the attachment that a link is a detour of.
pub fn hash_of_ifb(link: &Link) -> Option<&str> {
    let hash = link.name.strip_prefix(IFB_PREFIX)?.strip_prefix(['e', 'i'])?;
    (link.kind.as_deref() == Some("ifb") && hash.len() == HASH_LEN).then_some(hash)
}

/// The two ends of a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VethEnd {
    Host,
    Container,
}

/// Which way traffic goes, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The group that the host ends of a network's containers are in. By it rules on bridges tell whose a frame is, also one that
/// has no address of the network.
pub fn group(network: &NetworkName) -> u32 {
    let number = hash(&[network.as_str()]) % u128::from(FIRST_GROUP);
    FIRST_GROUP + u32::try_from(number).unwrap_or_default()
}

fn alias_prefix(network: &NetworkName) -> String {
    format!("weft:{network}:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(network: &str, container: &str, ifname: &str) -> AttachmentKey {
        AttachmentKey::new(&network.parse().unwrap(), &container.parse().unwrap(), &ifname.parse().unwrap())
    }

    #[test]
    fn names_fit_and_differ() {
        let one = key("net", "a", "eth0");
        assert_eq!(one.host_veth().len(), 15);
        for other in [key("net", "a", "eth1"), key("net", "b", "eth0"), key("net2", "a", "eth0")] {
            assert_ne!(one.host_veth(), other.host_veth());
            assert_ne!(one.mac(VethEnd::Container), other.mac(VethEnd::Container));
        }
        assert_ne!(one.mac(VethEnd::Host), one.mac(VethEnd::Container));
    }

    #[test]
    fn macs_are_local_unicast() {
        for container in ["a", "b", "c", "d", "e", "f", "g"] {
            let mac = key("net", container, "eth0").mac(VethEnd::Container).octets();
            assert_eq!(mac[0] & 0x03, 0x02);
        }
    }

    #[test]
    fn alias_round_trip() {
        let one = key("net", "a.b-c", "eth0");
        assert_eq!(AttachmentKey::from_alias(&one.network, &one.alias().unwrap()), Some(one.clone()));
        assert_eq!(AttachmentKey::from_alias(&"net2".parse().unwrap(), &one.alias().unwrap()), None);
        assert_eq!(key("net", &"x".repeat(300), "eth0").alias(), None);
    }
}
