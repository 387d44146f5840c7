//! An ADD's result.

use cni_protocol::{AddResult, Dns, Interface, IpConfig};
use weft_net::Link;

use super::Attachment;
use crate::plan::Plan;

impl Attachment {
    /// The result, with the interfaces as the kernel has them.
    pub(super) fn result(
        &self,
        plan: &Plan,
        given: AddResult,
        [bridge, veth, container]: [Link; 3],
        detours: Vec<Link>,
    ) -> AddResult {
        let sandbox = Some(self.args.netns.path().display().to_string());
        let container = Interface { sandbox, ..describe(container) };
        let mut interfaces = vec![describe(bridge), describe(veth), container];
        let of_container = Some(interfaces.len() - 1);
        interfaces.extend(detours.into_iter().map(describe));
        AddResult {
            interfaces,
            ips: plan.ips.iter().map(|ip| IpConfig { interface: of_container, ..ip.clone() }).collect(),
            routes: plan.routes.clone(),
            dns: merged(self.network.dns.clone().unwrap_or(given.dns), &self.asked.dns),
        }
    }
}

/// What is asked for one container, and the network's settings where it asks for nothing.
fn merged(network: Dns, own: &Dns) -> Dns {
    let either = |network: Vec<String>, own: &Vec<String>| if own.is_empty() { network } else { own.clone() };
    Dns {
        nameservers: either(network.nameservers, &own.nameservers),
        domain: network.domain,
        search: either(network.search, &own.search),
        options: either(network.options, &own.options),
    }
}

/// An interface as the kernel has it.
fn describe(link: Link) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string());
    Interface { name: link.name, mac, mtu: Some(link.mtu), ..Interface::default() }
}
