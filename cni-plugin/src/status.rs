//! STATUS: whether an ADD would succeed now.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use cni_protocol::{Call, CniArgs, Code, Error, IpConfig, Outcome, StatusArgs, Verb};
use ipnetwork::IpNetwork;
use serde_json::Value;
use weft_state::can_be_made;
use weft_state::lease::{HostLease, UNCONNECTED_ENV};

use crate::bridge;
use crate::conf::shaping::Shaping;
use crate::conf::tuning::Tuning;
use crate::conf::{Gateway, Network, requested_mac};
use crate::fault::{Fault, failed};
use crate::firewalls::{self, Traffic};
use crate::guard;
use crate::holdings::network::refuse_rivals;
use crate::hostport;
use crate::ipam;
use crate::isolation::{self, Isolation};
use crate::key::AttachmentKey;
use crate::masquerade::{self, Masquerade};
use crate::overlay::{self, Overlay};
use crate::plan::{Plan, first_host};
use crate::ruleset;
use crate::shaping;
use weft_net::nft::Nft;
use weft_net::sysctl::Sysctl;
use weft_net::{Family, NetError, Netlink, NlResult};

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` of linux/capability.h, as bits of `CapEff`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Answers whether the network can take another container.
///
/// # Errors
/// [`Code::NotAvailable`] with the reason, or what the IPAM plugin answered.
pub fn status(args: &StatusArgs) -> Result<Outcome, Error> {
    let call = &args.call;
    let mut network = Network::parse(&call.network, &call.conf)?;
    requested_mac(&call.conf, &CniArgs::default())?;
    let overlay = overlay::on_file(&network).map_err(not_available)?;
    if let Some(overlay) = &overlay {
        network.all_hosts.clone_from(&overlay.networks);
    }
    check_capabilities().map_err(not_available)?;
    Tuning::parse(&call.conf)?.refuse_unlisted().map_err(not_available)?;
    let missing = overlay.as_ref().map(|overlay| check_way(args, overlay)).transpose();
    let missing = missing.map_err(not_available)?.flatten().map(|address| address.to_string());
    check_state_dir(&network.state_dir).map_err(not_available)?;
    let (plan, isolation) = plan(args, &network).map_err(not_available)?;
    check_bridge(args, &network, &plan).map_err(not_available)?;
    check_rules(args, &network, isolation.as_ref()).map_err(not_available)?;
    rehearse_limits(call, &network.shaping).map_err(not_available)?;
    if let Some(plugin) = &network.ipam {
        let env = missing.as_deref().map(|address| (UNCONNECTED_ENV, address));
        ipam::forward(Verb::Status, plugin, call, env.as_slice()).map_err(unless_told)?;
    }
    if network.gateway != Gateway::None {
        check_firewalls(args, &network, &plan, overlay.as_ref()).map_err(unless_told)?;
    }
    Ok(Outcome::Done)
}

/// Whether an ADD could connect this host with the others, and the address that is missing for that.
fn check_way(args: &StatusArgs, overlay: &Overlay) -> Result<Option<IpAddr>, Error> {
    let failed = |error: NetError| failed(&"connect with the other hosts", error.into());
    let mut netlink = Netlink::open(args.call.deadline).map_err(failed)?;
    overlay::has_room(&mut netlink, overlay).map_err(failed)?;
    overlay::missing_address(&mut netlink, overlay)
}

/// Whether the kernel takes the rules that an attachment needs.
fn check_rules(args: &StatusArgs, network: &Network, isolation: Option<&Isolation>) -> Result<(), Error> {
    let refused = |what: &str, error: NetError| failed(&what, error.into());
    let mut nft = Nft::open(args.call.deadline).map_err(|error| refused("open a netfilter socket", error))?;
    nft.available().map_err(|error| refused("ask for nftables", error))?;
    if network.masquerade {
        let wanted = Masquerade { prefixes: Vec::new(), exempt: network.no_masquerade.clone() };
        masquerade::rehearse(&mut nft, &network.name, &wanted)
            .map_err(|error| refused("rehearse the rules of ipMasq", error))?;
    }
    if network.ipam.is_some() {
        rehearse_isolation(&mut nft, network)
            .map_err(|error| refused("rehearse the rules of isolation", error))?;
    }
    if let Some(isolation) = isolation {
        let wanted = isolation.policy.of_network(&network.name);
        refuse_rivals(&mut nft, &network.state_dir, &network.name, &wanted)
            .map_err(|fault| failed(&"add the network to the ruleset", fault))?;
    }
    if can_have_ports(&args.call) && network.gateway != Gateway::None {
        ruleset::rehearse(&mut nft, &hostport::groups(&network.ports))
            .map_err(|error| refused("rehearse the rules of host ports", error))?;
    }
    if !network.guard.is_empty() {
        ruleset::rehearse(&mut nft, &[&guard::GROUP])
            .map_err(|error| refused("rehearse the rules of the guard", error))?;
    }
    Ok(())
}

/// A network that is only closed makes no chains as long as it is alone.
fn rehearse_isolation(nft: &mut Nft, network: &Network) -> NlResult<()> {
    for group in isolation::GROUPS {
        if !network.isolation.is_plain() || !ruleset::is_settled(nft, group, &network.name)? {
            ruleset::rehearse(nft, &[group])?;
        }
    }
    Ok(())
}

/// The error as STATUS says it, unless it is already.
pub fn unless_told(error: Error) -> Error {
    match error.code {
        Code::NotAvailable | Code::LimitedConnectivity => error,
        _ => not_available(error),
    }
}

/// What ADD would say, as STATUS says it.
pub fn not_available(error: Error) -> Error {
    Error { code: Code::NotAvailable, msg: format!("ADD would fail: {}", error.msg), ..error }
}

/// Does what limits need where it harms nobody.
pub fn rehearse_limits(call: &Call, limits: &Shaping) -> Result<(), Error> {
    if limits.is_none() {
        return Ok(());
    }
    let key = AttachmentKey::new(&call.network, &"status".parse()?, &"eth0".parse()?);
    shaping::rehearse(&key, limits, call.deadline)
        .map_err(|fault| failed(&"limit traffic in a namespace made for that", fault))
}

/// Whether this process may do what ADD does.
pub fn check_capabilities() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Error::new(Code::Io, format!("/proc/self/status: {error}: mount /proc")))?;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    let held = held.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    match CAPABILITIES.iter().find(|(bit, _)| held & (1 << bit) == 0) {
        None => Ok(()),
        Some((_, name)) => {
            Err(Error::new(Code::Kernel, format!("{name} is missing: run the container runtime as root")))
        }
    }
}

/// The nearest directory above the state that exists must be writable; nothing is created here.
pub fn check_state_dir(dir: &Path) -> Result<(), Error> {
    can_be_made(dir).map_err(|(there, _)| {
        let why = format!("{} is no writable directory", there.display());
        let remedy = "set stateDir or WEFT_STATE_DIR";
        Error::new(
            Code::Io,
            format!("the state directory {} cannot be written ({why}): {remedy}", dir.display()),
        )
    })
}

fn check_bridge(args: &StatusArgs, network: &Network, plan: &Plan) -> Result<(), Error> {
    let read = |error| failed(&format!("look at bridge {}", network.bridge), Fault::Net(error));
    let mut netlink = Netlink::open(args.call.deadline).map_err(read)?;
    let refused = |gateway: &IpNetwork, fault| {
        failed(&format!("give bridge {} the gateway address {gateway}", network.bridge), fault)
    };
    let found = netlink.link(network.bridge.as_str()).map_err(read)?;
    if found.is_none() || network.ipam.is_some() {
        Sysctl::forwarding(Family::V4)
            .is_writable()
            .map_err(|error| failed(&"write kernel settings", error.into()))?;
    }
    let Some(link) = found else {
        return plan.gateways.iter().try_for_each(|gateway| {
            bridge::refuse_elsewhere(&mut netlink, None, *gateway, plan)
                .map_err(|fault| refused(gateway, fault))
        });
    };
    bridge::refuse_other_kind(&link)?;
    if netlink.links(Some(link.index)).map_err(read)?.len() >= bridge::MAX_PORTS {
        return Err(bridge::full(&network.bridge));
    }
    for gateway in &plan.gateways {
        bridge::in_the_way(&mut netlink, network, &link, *gateway, plan)
            .map_err(|fault| refused(gateway, fault))?;
    }
    Ok(())
}

/// Whether a runtime may ask for host ports: it passes them to those that declare the capability.
pub(crate) fn can_have_ports(call: &Call) -> bool {
    call.conf.get("capabilities").and_then(|all| all.get("portMappings")) == Some(&true.into())
}

/// Whether firewalls of others let the network's traffic pass. A kernel without netfilter has none.
fn check_firewalls(
    args: &StatusArgs,
    network: &Network,
    plan: &Plan,
    overlay: Option<&Overlay>,
) -> Result<(), Error> {
    let mut families: Vec<Family> = plan.gateways.iter().map(|gateway| Family::of(gateway.ip())).collect();
    families.sort();
    families.dedup();
    let failed = |error: NetError| failed(&"look at firewalls of others", error.into());
    let opened = Nft::open_if_there(args.call.deadline).map_err(failed)?;
    let Some(mut nft) = opened else { return Ok(()) };
    let exits = overlay.map(|overlay| overlay::exits(&mut Netlink::open(args.call.deadline)?, overlay));
    let traffic = Traffic {
        bridge: network.bridge.as_str(),
        families: &families,
        goes_out: !network.isolation.internal,
        has_ports: can_have_ports(&args.call),
        exits: &exits.transpose().map_err(failed)?.unwrap_or_default(),
    };
    firewalls::check(&mut nft, &traffic)
}

/// What an ADD would plan, as far as it is known before: with an address of each range, as weft-ipam and host-local have them, and of
/// the subnet that this host has leased. What isolation cannot keep is refused.
fn plan(args: &StatusArgs, network: &Network) -> Result<(Plan, Option<Isolation>), Error> {
    let mut subnets: Vec<(IpNetwork, Option<IpAddr>)> = Vec::new();
    if let Some(data_dir) = &network.data_dir
        && let Some(lease) = HostLease::read(data_dir, &network.name)?
        && let Some(leased) = flannel_records::parse_key(&lease.key)
    {
        subnets.extend(leased.into_iter().map(|subnet| (subnet, None)));
    }
    let ipam = args.call.conf.get("ipam");
    let sets = ipam.and_then(|ipam| ipam.get("ranges")).and_then(Value::as_array);
    let ranges = sets.into_iter().flatten().filter_map(Value::as_array).flatten();
    // What cannot be read is for the IPAM plugin to refuse.
    let text = |range: &Value, key| range.get(key).and_then(Value::as_str).map(str::to_owned);
    for range in ranges.chain(ipam) {
        let subnet = text(range, "subnet").and_then(|subnet| subnet.parse().ok());
        let gateway = text(range, "gateway").and_then(|gateway| gateway.parse().ok());
        subnets.extend(subnet.map(|subnet| (subnet, gateway)));
    }
    let ips: Vec<IpConfig> =
        subnets.into_iter().map(|(subnet, gateway)| in_subnet(subnet, gateway)).collect();
    let plan = Plan::new(network, &ips, &[])?;
    let bridge = Some(network.bridge.as_str());
    let isolation = match ips.as_slice() {
        [] => None,
        _ => Isolation::new(&network.isolation, bridge, &network.all_hosts, &[], &plan)?,
    };
    Ok((plan, isolation))
}

/// The last address of a subnet that a container can have, or the first one where that is the gateway's.
fn in_subnet(subnet: IpNetwork, gateway: Option<IpAddr>) -> IpConfig {
    let gateway = gateway.or_else(|| usual_gateway(subnet));
    let last = match subnet.broadcast() {
        IpAddr::V4(broadcast) if subnet.prefix() < 31 => Ipv4Addr::from_bits(broadcast.to_bits() - 1).into(),
        last => last,
    };
    let first = if subnet.prefix() < 31 { first_host(subnet) } else { Some(subnet.network()) };
    let address = first.filter(|_| gateway == Some(last)).unwrap_or(last);
    let address = IpNetwork::new(address, subnet.prefix()).unwrap_or(subnet);
    IpConfig { address, gateway, interface: None }
}

/// The gateway that weft-ipam gives a subnet without one. A subnet of two addresses has none of its own (RFC 3021, RFC 6164).
fn usual_gateway(subnet: IpNetwork) -> Option<IpAddr> {
    if subnet.prefix() + 1 == Family::of(subnet.ip()).bits() {
        Some(subnet.network())
    } else {
        first_host(subnet)
    }
}
