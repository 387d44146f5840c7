//! The CNI type `loopback`: sets `lo` up, as runtimes ask for every container before its networks.

use std::net::IpAddr;

use cni_protocol::{
    AddArgs, AddResult, CheckArgs, Code, Command, ContainerNetns, Deadline, DelArgs, Error, Interface,
    IpConfig, Outcome,
};
use ipnetwork::IpNetwork;

use crate::fault::{Fault, failed};
use crate::pod::Pod;

/// The interface, whatever `CNI_IFNAME` says.
const LO: &str = "lo";

/// Carries out a CNI command.
pub fn handle(command: Command) -> Result<Outcome, Error> {
    match command {
        Command::Add(args) => add(args),
        Command::Del(args) => del(&args),
        Command::Check(args) => check(&args),
        // Nothing is kept anywhere but in the container.
        Command::Gc(_) | Command::Status(_) => Ok(Outcome::Done),
    }
}

fn add(args: AddArgs) -> Result<Outcome, Error> {
    let deadline = args.call.deadline;
    let mut pod = Pod::open(&args.netns, deadline)?;
    let step = "set lo up in the container";
    let changed = pod.ensure_loopback().map_err(|error| failed(&step, error.into()))?;
    let result = result(&mut pod, &args).map_err(|fault| failed(&step, fault)).inspect_err(|_| {
        if changed {
            take_back(&mut pod);
        }
    })?;
    let rollback = move || {
        let again = Deadline::after(deadline.remaining().max(std::time::Duration::from_secs(1)));
        match Pod::open(&args.netns, again) {
            Ok(mut pod) if changed => take_back(&mut pod),
            _ => {}
        }
        Vec::new()
    };
    Ok(Outcome::Attached { result, rollback: Box::new(rollback) })
}

fn take_back(pod: &mut Pod) {
    if let Err(error) = pod.netlink.set_down(LO) {
        log::warn!("lo cannot be set down again: {error}");
    }
}

/// What a plugin before this one returned; without one, `lo` and its first address of each family.
fn result(pod: &mut Pod, args: &AddArgs) -> Result<AddResult, Fault> {
    let link = pod.netlink.link(LO)?;
    let index = link.as_ref().map_or(1, |link| link.index);
    let addresses = pod.netlink.addresses(index)?;
    if let Some(other) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        let msg = format!("lo has the address {other}, which is none of a loopback interface: remove it");
        return Err(Error::new(Code::Conflict, msg).into());
    }
    if let Some(previous) = &args.prev_result {
        return Ok(previous.clone());
    }
    let first = |of_family: fn(&IpAddr) -> bool| addresses.iter().find(|address| of_family(&address.ip()));
    let ips = [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten();
    let ip = |address: &IpNetwork| IpConfig { address: *address, gateway: None, interface: Some(0) };
    Ok(AddResult {
        interfaces: vec![Interface {
            name: LO.to_owned(),
            mac: link.as_ref().and_then(|link| link.mac).map(|mac| mac.to_string()),
            mtu: link.map(|link| link.mtu),
            sandbox: Some(args.netns.path().display().to_string()),
            ..Interface::default()
        }],
        ips: ips.map(ip).collect(),
        ..AddResult::default()
    })
}

/// A container that is gone has no interface to be set down.
fn del(args: &DelArgs) -> Result<Outcome, Error> {
    let Some(netns) = &args.netns else { return Ok(Outcome::Done) };
    let netns = match ContainerNetns::open(netns) {
        Ok(netns) => netns,
        Err(reason) => {
            log::info!("DEL has no container to set lo down in: {reason}");
            return Ok(Outcome::Done);
        }
    };
    let down = Pod::open(&netns, args.call.deadline)?.netlink.set_down(LO);
    down.map(|()| Outcome::Done).map_err(|error| failed(&"set lo down in the container", error.into()))
}

fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let step = "check lo in the container";
    let mut pod = Pod::open(&args.netns, args.call.deadline)?;
    let link = pod.netlink.link(LO).map_err(|error| failed(&step, error.into()))?;
    let broken = |found: String| {
        Err(Error::new(Code::CheckFailed, format!("{found}: DEL and ADD the container again")))
    };
    let Some(link) = link.filter(|link| link.up) else {
        return broken("lo is down in the container".to_owned());
    };
    let addresses = pod.netlink.addresses(link.index).map_err(|error| failed(&step, error.into()))?;
    let result = &args.prev_result;
    let is_lo = |ip: &&IpConfig| {
        ip.interface.and_then(|at| result.interfaces.get(at)).is_some_and(|interface| interface.name == LO)
    };
    match result.ips.iter().filter(is_lo).find(|ip| !addresses.contains(&ip.address)) {
        Some(ip) => broken(format!("lo has not the address {} in the container", ip.address)),
        None => Ok(Outcome::Done),
    }
}
