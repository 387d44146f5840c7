//! Parts of an ADD's result.

use cni_protocol::{Dns, Interface};
use weft_net::Link;

/// What is asked for one container, and the network's settings where it asks for nothing.
pub(super) fn merged(network: Dns, own: &Dns) -> Dns {
    let either = |network: Vec<String>, own: &Vec<String>| if own.is_empty() { network } else { own.clone() };
    Dns {
        nameservers: either(network.nameservers, &own.nameservers),
        domain: network.domain,
        search: either(network.search, &own.search),
        options: either(network.options, &own.options),
    }
}

/// An interface as the kernel has it.
pub(super) fn describe(link: Link) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string());
    Interface { name: link.name, mac, mtu: Some(link.mtu), ..Interface::default() }
}
