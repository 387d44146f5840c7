//! STATUS: whether an ADD would succeed now.

use std::fs;

use cni_protocol::{Code, Error, Outcome, StatusArgs, Verb};

use crate::bridge;
use crate::conf::Network;
use crate::ipam;
use crate::step::failed;
use weft_net::Netlink;
use weft_net::nft::Nft;

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` of linux/capability.h, as bits of `CapEff`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Answers whether the network can take another container.
///
/// # Errors
/// [`Code::NotAvailable`] with the reason, or what the IPAM plugin answered.
pub fn status(args: &StatusArgs) -> Result<Outcome, Error> {
    let call = &args.call;
    let network = Network::parse(&call.network, &call.conf)?;
    let not_available =
        |error: Error| Error::new(Code::NotAvailable, format!("ADD would fail: {}", error.msg));
    check_capabilities().map_err(not_available)?;
    check_state_dir(&network).map_err(not_available)?;
    check_bridge(args, &network).map_err(not_available)?;
    if network.masquerade {
        Nft::open(call.deadline)
            .and_then(|mut nft| nft.available())
            .map_err(|error| not_available(failed(&"ask for nftables, which ipMasq needs", error.into())))?;
    }
    if let Some(plugin) = &network.traces.ipam {
        ipam::forward(Verb::Status, plugin, call).map_err(|error| match error.code {
            Code::NotAvailable | Code::LimitedConnectivity => error,
            _ => not_available(error),
        })?;
    }
    Ok(Outcome::Done)
}

fn check_capabilities() -> Result<(), Error> {
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
fn check_state_dir(network: &Network) -> Result<(), Error> {
    let dir = &network.traces.state_dir;
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    let writable = existing.is_dir()
        && nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK)
            .is_ok();
    if writable {
        return Ok(());
    }
    Err(Error::new(
        Code::Io,
        format!(
            "the state directory {} cannot be written ({} is no writable directory): set stateDir or WEFT_STATE_DIR",
            dir.display(),
            existing.display()
        ),
    ))
}

fn check_bridge(args: &StatusArgs, network: &Network) -> Result<(), Error> {
    let read = |error| failed(&format!("look at bridge {}", network.bridge), crate::step::Fault::Net(error));
    let mut netlink = Netlink::open(args.call.deadline).map_err(read)?;
    let Some(link) = netlink.link(network.bridge.as_str()).map_err(read)? else {
        return Ok(());
    };
    bridge::refuse_other_kind(&link)?;
    if netlink.links(Some(link.index)).map_err(read)?.len() >= bridge::MAX_PORTS {
        return Err(bridge::full(&network.bridge));
    }
    Ok(())
}
