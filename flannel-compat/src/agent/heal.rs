//! Makes everything of a network on this host as it ought to be, and tells what was not.

use std::fmt::Display;
use std::path::Path;

use cni_protocol::{Code, Deadline, NetworkName};
use flannel_records::parse_key;
use weft::forwarding;
use weft::holdings::network::announce;
use weft::holdings::restore::{end_masquerade, restore};
use weft::isolation::Policy;
use weft::masquerade::{self, Ensured, Masquerade};
use weft::overlay::{self, Changes, Exit, Overlay, Unreached};
use weft::suspects::Suspects;
use weft_ipam::lease::overlap;
use weft_net::nft::Nft;
use weft_net::sysctl::Sysctl;
use weft_net::{Family, Link, Netlink, NlResult};
use weft_state::lease::{HostLease, Peers, agent_lives};

use super::PATIENCE;
use super::conf::{Conf, NetworkConf};
use super::kernel::Owned;
use super::subnet_env;

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) changes: Changes,
    /// Hosts that their own records keep from being reached; `None` when that could not be found out.
    pub(super) unreached: Option<Vec<Unreached>>,
    /// The network's bridges, by their indices.
    bridges: Vec<u32>,
    /// Objects that were not as they ought to be, and how many of each kind.
    pub(super) healed: Vec<(&'static str, usize)>,
    /// What could not be done.
    failures: Vec<String>,
    /// What is in the way and not this host's to change.
    overlap: Option<String>,
}

impl Report {
    fn count(&mut self, object: &'static str, count: usize) {
        if count > 0 {
            self.healed.push((object, count));
        }
    }

    fn failed(&mut self, step: &str, error: &impl Display) {
        self.failures.push(format!("{step}: {error}"));
    }

    /// Why not everything is right now.
    pub(super) fn damage(&self) -> Option<String> {
        let all: Vec<&str> = self.overlap.iter().chain(&self.failures).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What the network has in the kernel now.
    pub(super) fn owned(&self, overlay: &Overlay) -> Owned {
        let links = &self.changes.links_seen;
        // A device that could not be made has a name already.
        let devices = overlay.device_names().map(str::to_owned);
        Owned {
            names: links.iter().map(|(_, name)| name.clone()).chain(devices).collect(),
            indices: links.iter().map(|(index, _)| *index).collect(),
            bridges: self.bridges.iter().copied().collect(),
            prefixes: overlay.networks.clone(),
            containers: false,
            incomplete: !self.failures.is_empty(),
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What leads to other hosts.
    Way,
    All,
}

/// Compares everything with what it ought to be, and changes what differs. One failure keeps nothing else from being
/// repaired.
pub(super) fn heal(
    conf: &NetworkConf,
    (state_dir, data_dir): (&Path, &Path),
    lease: &HostLease,
    wanted: &Overlay,
    extent: Extent,
) -> Report {
    let mut report = Report::default();
    let deadline = Deadline::after(PATIENCE);
    match Netlink::open(deadline).and_then(|mut netlink| overlay::sync(&mut netlink, wanted)) {
        Ok(mut changes) => {
            report.count("link", changes.links);
            report.count("mac", changes.macs);
            report.count("mtu", changes.mtus);
            report.count("address", changes.addresses);
            report.count("neighbour", changes.neighbours);
            report.count("fdb", changes.fdb);
            report.count("route", changes.routes);
            report.unreached = Some(std::mem::take(&mut changes.unreached));
            report.changes = changes;
        }
        Err(error) => report.failed("set up device and peers", &error),
    }
    forward(wanted, lease, deadline, &mut report);
    if conf.ip_masq {
        let masquerade = Masquerade { prefixes: wanted.networks.clone(), exempt: conf.no_masquerade.clone() };
        let ensured =
            Nft::open(deadline).and_then(|mut nft| masquerade::ensure(&mut nft, &conf.name, &masquerade));
        match ensured {
            Ok(Ensured::Nothing) => {}
            Ok(Ensured::Elements { .. } | Ensured::Network) => report.count("table", 1),
            Err(error) => report.failed("masquerade", &error),
        }
    }
    if extent == Extent::Way {
        return report;
    }
    match restore(state_dir, &Suspects::default(), deadline) {
        Ok(restored) => report.count("table", usize::from(restored)),
        Err(error) => report.failures.push(error.msg),
    }
    let policy = Policy::of_hosts(&wanted.networks, conf.closed, conf.internal);
    match announce(state_dir, &conf.name, &policy, deadline) {
        Ok(announced) => report.count("table", usize::from(announced)),
        // Its addresses are known already, by the containers of a network of another name.
        Err(error) if error.code == Code::Conflict => log::debug!("{}", error.msg),
        Err(error) => report.failures.push(error.msg),
    }
    match HostLease::others(data_dir, &conf.name) {
        Ok(others) => report.overlap = overlap(&wanted.networks, &lease.prefix, &others),
        Err(error) => report.failures.push(error.msg),
    }
    if let Some(mtu) = report.changes.mtu {
        match subnet_env::write(conf, lease, mtu) {
            Ok(changed) => report.count("subnet.env", usize::from(changed)),
            Err(error) => report.failures.push(error),
        }
    }
    report
}

/// Ends what former configurations of the agent had networks masquerade, unless an attachment has it on file: of networks that are not
/// to any more, and of those that no agent looks after any more.
pub(super) fn end_masquerades(conf: &Conf, own: &[&NetworkConf]) {
    for network in weft::record::networks(&conf.state_dir) {
        let is_wanted = match own.iter().find(|own| own.name == network) {
            Some(own) => own.ip_masq,
            None => agent_lives(&conf.state_dir, &network).unwrap_or(true),
        };
        if is_wanted {
            continue;
        }
        match end_masquerade(&conf.state_dir, &network, Deadline::after(PATIENCE)) {
            Ok(true) => log::info!("network {network}: nobody has it masquerade any more, so that is ended"),
            Ok(false) => {}
            Err(error) => log::warn!("{}", error.msg),
        }
    }
}

/// Former leases of a network of which something may be left in the kernel, each with why, as it was said last.
#[derive(Default)]
pub(super) struct Formers(Vec<(HostLease, String)>);

impl Formers {
    /// Removes what a former lease led to and the one of now does not, and what could not be removed before.
    pub(super) fn retire(&mut self, network: &NetworkName, former: Option<HostLease>, lease: &HostLease) {
        self.0.extend(former.map(|former| (former, String::new())));
        if self.0.is_empty() {
            return;
        }
        // What is wrong with the new one is told where it is followed.
        let Ok((wanted, _)) = Overlay::new(lease, &Peers::default()) else { return };
        self.0.retain_mut(|(former, said)| {
            let removed = Netlink::open(Deadline::after(PATIENCE))
                .and_then(|mut netlink| overlay::retire(&mut netlink, former, &wanted));
            let Err(error) = removed.map_err(|error| error.to_string()) else { return false };
            if error != *said {
                log::warn!(
                    "network {network}: device or routes of the former configuration are left until they can be removed: {error}"
                );
                *said = error;
            }
            true
        });
    }
}

/// Between containers and other hosts the kernel has to route.
fn forward(wanted: &Overlay, lease: &HostLease, deadline: Deadline, report: &mut Report) {
    let mut netlink = match Netlink::open(deadline) {
        Ok(netlink) => netlink,
        Err(error) => return report.failed("open a netlink socket", &error),
    };
    for family in Family::ALL {
        if wanted.networks.iter().any(|network| Family::of(network.ip()) == family) {
            set_forwarding(&mut netlink, family, &Sysctl::forwarding(family), report);
        }
    }
    let links =
        bridges(&mut netlink, lease).and_then(|bridges| Ok((bridges, overlay::exits(&mut netlink, wanted)?)));
    let (bridges, exits) = match links {
        Ok(links) => links,
        Err(error) => return report.failed("look at what forwards", &error),
    };
    for (family, bridge) in bridges {
        report.bridges.push(bridge.index);
        set_forwarding(&mut netlink, family, &Sysctl::forwarding_at(family, &bridge.name), report);
    }
    for Exit { interface, is_own, network } in exits {
        let family = Family::of(network.ip());
        let setting = Sysctl::forwarding_at(family, &interface);
        if is_own {
            set_forwarding(&mut netlink, family, &setting, report);
        } else if family == Family::V4
            && let Ok(Some(value)) = setting.get()
            && value != "1"
        {
            // That is its owner's, who may want the rest of it so. In IPv6 packets pass all the same.
            let remedy = "what other hosts send by plain routes is dropped: set it to 1";
            report.failures.push(format!("{setting} is {value}: {remedy}"));
        }
    }
}

fn set_forwarding(netlink: &mut Netlink, family: Family, setting: &Sysctl, report: &mut Report) {
    match forwarding::switch_on(netlink, family, setting) {
        Ok(changed) => report.count("forwarding", usize::from(changed)),
        Err(error) => report.failed(&format!("set {setting} to 1"), &error),
    }
}

/// What containers have as their gateway: whoever made it, it has the address behind the subnet's own.
pub(super) fn bridges(netlink: &mut Netlink, lease: &HostLease) -> NlResult<Vec<(Family, Link)>> {
    let mut found = Vec::new();
    for gateway in parse_key(&lease.key).iter().flatten().filter_map(|subnet| subnet.iter().nth(1)) {
        if let Some((index, _)) = netlink.holder_of(gateway)?
            && let Some(link) = netlink.link_at(index)?
            && link.kind.as_deref() == Some("bridge")
        {
            found.push((Family::of(gateway), link));
        }
    }
    Ok(found)
}
