//! Firewalls of others: whether they let a network's traffic pass, and what to tell them. Nothing of theirs is changed.
//!
//! In nftables and iptables an accept in one chain does not undo a drop in another: a firewall whose chain at the hook
//! `forward` drops by default, or at its end, drops containers' packets whatever Weft's rules say. Only STATUS and the agent look, and
//! only into chains at that hook: how many rules there are elsewhere does not matter.

mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, iter, slice};

use cni_protocol::{Code, Deadline, Error};
use log::warn;
use nix::errno::Errno;
use weft_net::foreign::{Chain, RULES_MAX, Rule, TableOf, Verdict, legacy_chains};
use weft_net::nft::{Nft, TABLE};
use weft_net::{Family, Link, NetError, Netlink, NlResult};

use crate::fault::failed;
use crate::overlay::Exit;
use walk::{Fate, Packet, Way, walk};

/// The table of firewalld. What none of its rules lets through is rejected by the last one, whatever the policy.
const FIREWALLD: &str = "firewalld";
/// Where it rejects what others redirect, as its setting StrictForwardPorts has it.
const FIREWALLD_STRICT: &str = "filter_FORWARD_dnat";

/// A network's packets on their way through this host.
#[derive(Debug, Clone, Copy)]
pub struct Traffic<'a> {
    pub bridge: &'a str,
    pub families: &'a [Family],
    /// Whether containers reach other networks.
    pub goes_out: bool,
    /// Whether they may have host ports.
    pub has_ports: bool,
    /// What leads to the containers of other hosts.
    pub exits: &'a [Exit],
}

impl Traffic<'_> {
    /// The packets that have to pass.
    fn packets<'p>(&'p self, family: Family, uplinks: &'p [String]) -> Vec<Packet<'p>> {
        let exits = self.exits.iter().filter(|exit| Family::of(exit.network.ip()) == family);
        let hosts = exits
            .map(|exit| slice::from_ref(&exit.interface))
            .flat_map(|by| [(Way::ToHosts, by), (Way::FromHosts, by)]);
        let others = [
            (Way::Out, self.goes_out),
            (Way::Back, self.goes_out),
            (Way::In, self.has_ports),
            (Way::Answer, self.has_ports),
        ];
        let others = others.into_iter().filter(|(_, has)| *has).map(|(way, _)| (way, uplinks));
        others.chain(hosts).map(|(way, by)| Packet { bridge: self.bridge, others: by, way, family }).collect()
    }

    /// What is to be trusted where zones decide: what comes from the bridge and from the devices to other hosts, and from
    /// other hosts' containers where there is no such device.
    fn trusted(&self) -> String {
        let of_hosts = self.exits.iter().map(|exit| match exit.is_own {
            true => format!("--add-interface={}", exit.interface),
            false => format!("--add-source={}", exit.network),
        });
        let bridge = format!("--add-interface={}", self.bridge);
        let zone = |what: String| format!("firewall-cmd --permanent --zone=trusted {what}");
        iter::once(bridge).chain(of_hosts).map(zone).collect::<Vec<_>>().join(" && ")
    }
}

/// Sees that no firewall of others drops what the containers of a bridge send to other networks and hosts, or what comes to
/// them from other hosts' containers. Nor, where they may have host ports, what comes to these from outside. The same holds
/// for all answers.
///
/// # Errors
/// [`Code::LimitedConnectivity`] with the chain, and the command that lets the traffic through; of several the others are in the details.
/// Where it cannot be told whether it passes, the log has a warning.
pub fn check(nft: &mut Nft, traffic: &Traffic<'_>) -> Result<(), Error> {
    let Findings { obstacles, doubts, .. } = look(nft, traffic)?;
    doubts.iter().for_each(|doubt| warn!("{doubt}"));
    let mut obstacles = obstacles.into_iter();
    match obstacles.next() {
        None => Ok(()),
        Some(first) => Err(obstacles.fold(Error::new(Code::LimitedConnectivity, first), Error::detail)),
    }
}

/// What [`check`] sees to, and what there is to say of it.
///
/// # Errors
/// [`Code::Kernel`] when the rules cannot be read.
pub fn look(nft: &mut Nft, traffic: &Traffic<'_>) -> Result<Findings, Error> {
    let read = |error: NetError| {
        let what = "read the chains of other firewalls";
        Error::new(Code::Kernel, format!("{what}: {error}: see that nftables works: nft list chains"))
    };
    let chains = match nft.all_chains() {
        // A kernel without nf_tables.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::EOPNOTSUPP) => Vec::new(),
        chains => chains.map_err(read)?,
    };
    let mut findings = Findings::default();
    for family in traffic.families {
        let uplinks = match default_routes(*family) {
            known if !known.is_empty() => known,
            _ => ways_out(nft.deadline(), traffic.bridge)
                .map_err(|error| failed(&"look for the host's ways out", error.into()))?,
        };
        let packets = traffic.packets(*family, &uplinks);
        for chain in chains.iter().filter(|chain| decides(chain, *family)) {
            let rules = load(nft, &chains, chain, &packets).map_err(read)?;
            findings.judge(traffic, chain, &rules, &chains, &packets);
        }
        match legacy_chains(*family) {
            Ok(tables) => {
                let chains: Vec<Chain> = tables.iter().map(|(chain, _)| chain.clone()).collect();
                let rules = tables.into_iter().map(|(chain, rules)| (chain.name, rules)).collect();
                for chain in chains.iter().filter(|chain| decides(chain, *family)) {
                    findings.judge(traffic, chain, &rules, &chains, &packets);
                }
            }
            Err(error) => {
                let program = program(&TableOf::Legacy(*family));
                let told = "iptables-legacy is in use, and its rules cannot be read";
                findings.doubts.push(format!("{told} ({error}): look at {program} -S FORWARD"));
            }
        }
    }
    Ok(findings)
}

/// Whether a chain of others decides about forwarded packets of a family.
fn decides(chain: &Chain, family: Family) -> bool {
    let of_family = match &chain.table {
        TableOf::Inet(table) => table != TABLE,
        TableOf::Nft(of, _) | TableOf::Legacy(of) => *of == family,
    };
    of_family && chain.policy.is_some()
}

/// Whether a chain lets nothing through by itself. What cannot be told of another chain raises no doubts: its rules are about what it
/// drops, and most are not about containers.
fn is_closed(chain: &Chain) -> bool {
    let table = match &chain.table {
        TableOf::Inet(table) | TableOf::Nft(_, table) => table.as_str(),
        TableOf::Legacy(_) => "",
    };
    chain.policy == Some(Verdict::Drop) || table == FIREWALLD
}

/// The rules of a chain and of those that it jumps to with these packets, as far as they are few enough to be read.
fn load(
    nft: &mut Nft,
    chains: &[Chain],
    base: &Chain,
    packets: &[Packet<'_>],
) -> NlResult<BTreeMap<String, Vec<Rule>>> {
    let mut loaded = BTreeMap::new();
    let mut wanted = vec![base.name.clone()];
    let mut left = RULES_MAX;
    while let Some(name) = wanted.pop() {
        let Some(chain) = chains.iter().find(|chain| chain.table == base.table && chain.name == name) else {
            continue;
        };
        if loaded.contains_key(&name) || chain.uses > left {
            continue;
        }
        left -= chain.uses;
        let rules = match nft.rules_of(&chain.table, &name) {
            // Somebody is just changing it.
            Err(error) if error.not_found() => continue,
            rules => rules?,
        };
        for rule in rules.iter().filter(|rule| packets.iter().any(|packet| packet.can_meet(rule))) {
            if let Verdict::Jump(to) | Verdict::Goto(to) = &rule.verdict {
                wanted.push(to.clone());
            }
        }
        loaded.insert(name, rules);
    }
    Ok(loaded)
}

/// What there is to say, each once: a chain can be for both families, and one remedy can be for several ways.
#[derive(Debug, Default)]
pub struct Findings {
    /// What drops traffic, with the command that lets it pass.
    pub obstacles: Vec<String>,
    /// What may drop it: that cannot be told.
    pub doubts: Vec<String>,
    remedies: BTreeSet<String>,
}

impl Findings {
    /// Adds what a chain makes of packets.
    fn judge(
        &mut self,
        traffic: &Traffic<'_>,
        chain: &Chain,
        rules: &BTreeMap<String, Vec<Rule>>,
        chains: &[Chain],
        packets: &[Packet<'_>],
    ) {
        let Some(policy) = &chain.policy else { return };
        let (place, bridge) = (place(chain), traffic.bridge);
        let (mut is_dropping, mut doubt) = (false, None);
        for packet in packets {
            let way = packet.way;
            match walk(*packet, &chain.name, policy, rules) {
                Fate::Passes => {}
                Fate::IsDropped => {
                    is_dropping = true;
                    let remedy = remedy(chain, chains, traffic, way);
                    let told = format!("{place} drops {}: let bridge {bridge} pass: {remedy}", way.what());
                    if self.remedies.insert(remedy) {
                        self.obstacles.push(told);
                    }
                }
                Fate::Unknown => doubt = doubt.or(Some(way)),
            }
        }
        let Some(way) = doubt.filter(|_| !is_dropping && is_closed(chain)) else { return };
        let noticed =
            if way.is_redirected() { "host ports are closed to others" } else { "containers are cut off" };
        let remedy = remedy(chain, chains, traffic, way);
        let told = format!(
            "{place} may drop traffic of bridge {bridge}: which of its rules apply cannot be told; if {noticed}: {remedy}"
        );
        if !self.doubts.contains(&told) {
            self.doubts.push(told);
        }
    }
}

fn place(chain: &Chain) -> String {
    let family = |family: Family| if family == Family::V4 { "ip" } else { "ip6" };
    match &chain.table {
        TableOf::Inet(table) => format!("chain {} of nftables' table inet {table}", chain.name),
        TableOf::Nft(of, table) => format!("chain {} of nftables' table {} {table}", chain.name, family(*of)),
        TableOf::Legacy(_) => format!("chain {} of {}", chain.name, program(&chain.table)),
    }
}

/// The program that the chain's rules come from.
fn program(table: &TableOf) -> &'static str {
    match table {
        TableOf::Nft(Family::V4, _) => "iptables",
        TableOf::Nft(Family::V6, _) => "ip6tables",
        TableOf::Legacy(Family::V4) => "iptables-legacy",
        TableOf::Legacy(Family::V6) => "ip6tables-legacy",
        TableOf::Inet(_) => "nft",
    }
}

/// What lets a bridge's traffic through, by the documented means of the firewall that has the chain.
fn remedy(chain: &Chain, chains: &[Chain], traffic: &Traffic<'_>, way: Way) -> String {
    let bridge = traffic.bridge;
    let has = |name: &str| chains.iter().any(|other| other.table == chain.table && other.name == name);
    let is_iptables = match &chain.table {
        TableOf::Inet(table) | TableOf::Nft(_, table) if table == FIREWALLD => {
            return remedy_of_firewalld(traffic, way == Way::In && has(FIREWALLD_STRICT));
        }
        TableOf::Nft(_, table) => table == "filter" && chain.name == "FORWARD",
        TableOf::Legacy(_) => true,
        TableOf::Inet(_) => false,
    };
    if is_iptables && (has("ufw-user-forward") || has("ufw6-user-forward")) {
        return format!("ufw route allow in on {bridge} && ufw route allow out on {bridge}");
    }
    if is_iptables {
        let into = if has("DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" };
        let insert = format!("{} -I {into}", program(&chain.table));
        return format!("{insert} -i {bridge} -j ACCEPT && {insert} -o {bridge} -j ACCEPT");
    }
    let table = place(chain).rsplit("table ").next().unwrap_or_default().to_owned();
    let insert = format!("nft insert rule {table} {}", chain.name);
    format!("{insert} iifname {bridge} accept && {insert} oifname {bridge} accept")
}

/// A zone lets out what comes from it. firewalld lets in what is redirected, unless its setting StrictForwardPorts says
/// otherwise: then it rejects before it looks at zones and policies, and accepts only ports that it redirects itself.
fn remedy_of_firewalld(traffic: &Traffic<'_>, is_strict: bool) -> String {
    let change = match is_strict {
        true => {
            "sed -i s/StrictForwardPorts=yes/StrictForwardPorts=no/ /etc/firewalld/firewalld.conf".to_owned()
        }
        false => traffic.trusted(),
    };
    format!("{change} && firewall-cmd --reload")
}

/// Where no default route says it: the interfaces by which a network's packets may leave or come. A bridge with nothing but ends of pairs on
/// it, or nothing at all, is one for containers.
fn ways_out(deadline: Deadline, bridge: &str) -> NlResult<Vec<String>> {
    let links = Netlink::open(deadline)?.links(None)?;
    let is_for_containers = |bridge: &Link| {
        let mut ports = links.iter().filter(|link| link.master == Some(bridge.index));
        ports.all(|port| port.kind.as_deref() == Some("veth"))
    };
    let leads_out = |link: &&Link| {
        link.master.is_none()
            && link.name != "lo"
            && link.name != bridge
            && !(link.kind.as_deref() == Some("bridge") && is_for_containers(link))
    };
    Ok(links.iter().filter(leads_out).map(|link| link.name.clone()).collect())
}

/// The interfaces of the default routes.
fn default_routes(family: Family) -> Vec<String> {
    let zeros = |text: &str| text.bytes().all(|byte| byte == b'0');
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match (family, fields.as_slice()) {
            // Interface, destination, gateway, flags, two counters, metric, mask.
            (Family::V4, [name, to, _, _, _, _, _, mask, ..]) => {
                (zeros(to) && zeros(mask)).then(|| (*name).to_owned())
            }
            // Destination, its length; at the end the interface.
            (Family::V6, [to, length, .., name]) => {
                (zeros(to) && zeros(length) && *name != "lo").then(|| (*name).to_owned())
            }
            _ => None,
        }
    };
    let file = match family {
        Family::V4 => "/proc/self/net/route",
        Family::V6 => "/proc/self/net/ipv6_route",
    };
    let mut names: Vec<String> =
        fs::read_to_string(file).unwrap_or_default().lines().filter_map(of_line).collect();
    names.sort();
    names.dedup();
    names
}
