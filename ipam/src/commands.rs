//! ADD, DEL, CHECK, GC and STATUS.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni_protocol::{
    AddArgs, AddResult, Call, CheckArgs, CniArgs, Code, Command, Deadline, DelArgs, Dns, Error, GcArgs,
    IpConfig, Outcome, StatusArgs,
};
use ipnetwork::IpNetwork;
use weft_state::{can_be_made, started};

use crate::conf::{Conf, Leased, former_reservations_dir, reservations_dir};
use crate::dns;
use crate::host::{self, Host};
use crate::pool::RangeSet;
use crate::record::Owner;
use crate::reservation::Reservation;
use crate::sticky::Name;
use crate::store::{Store, glance};

/// So many neighbours of the address last given are looked at one by one, without asking which blocks are full: mostly the first
/// one is free.
const PROBES: usize = 16;

/// How long taking an ADD back may wait for the store: its caller has gone, and DEL or GC can do it.
const ROLLBACK_WAIT: Duration = Duration::from_secs(5);

/// Does one command of the CNI specification.
///
/// # Errors
/// What the runtime is to be told; see docs/ipam.md.
pub fn handle(command: Command) -> Result<Outcome, Error> {
    match command {
        Command::Add(args) => add(args),
        Command::Del(args) => del(&args),
        Command::Check(args) => check(&args),
        Command::Gc(args) => gc(&args),
        Command::Status(args) => status(&args),
    }
}

/// Until when to wait for the lock: a little less than the whole command may take, so that a caller
/// with the same deadline still hears who holds it.
fn lock_deadline(call: &Call) -> Deadline {
    Deadline::after(call.deadline.remaining().mul_f32(0.75))
}

fn add(args: AddArgs) -> Result<Outcome, Error> {
    let AddArgs { call, container_id, ifname, args, .. } = args;
    let (host, root) = (Host::of(&call)?, reservations_dir(&call.conf)?);
    let (conf, dns, store) = loop {
        let seen = host.as_ref().map(Host::glance);
        let lease = host.as_ref().zip(seen.as_ref()).map(|(host, seen)| host.lease(seen)).transpose()?;
        let leased = lease.as_ref().map(Leased::of).transpose()?;
        let conf = Conf::new(&call, &args, leased.as_ref())?;
        let dns = conf.resolv_conf.as_deref().map_or(Ok(Dns::default()), dns::read)?;
        let store = Store::create(&root, &call.network, lock_deadline(&call))?;
        // Another ADD, which held the store until now, may have found the host another subnet, or that it has none.
        let is_still = match (&host, &lease, &seen) {
            (Some(host), Some(lease), Some(seen)) => host.has_still(lease, seen)?,
            _ => true,
        };
        if is_still {
            break (conf, dns, store);
        }
    };
    warn_of_former(&call, &store);
    let owner = Owner::new(container_id.as_str(), ifname.as_str());
    let name = conf.sticky.and_then(|time| Name::of(&args, &container_id, &ifname, time));
    let addresses = reserve(&store, &conf, (&owner, name.as_ref()))?;
    drop(store);
    let ips =
        addresses.into_iter().zip(conf.pools.sets()).filter_map(|(ip, set)| ip_config(ip, set)).collect();
    let result = AddResult { ips, routes: conf.routes, dns, ..AddResult::default() };
    let rollback = move || match Store::open(&root, &call.network, Deadline::after(ROLLBACK_WAIT)) {
        Ok(Some(store)) => store.release(&owner, &[]),
        Ok(None) => Vec::new(),
        Err(e) => vec![e.msg],
    };
    Ok(Outcome::Attached { result, rollback: Box::new(rollback) })
}

/// Says before the first address is given that those of containers from before an update are not known here. That is no error: they
/// may be another host's.
fn warn_of_former(call: &Call, store: &Store) {
    let Some(former) = former_reservations_dir(&call.conf).filter(|_| store.last(0).is_none()) else {
        return;
    };
    let held = glance(&former, &call.network).map_or(0, |held| held.len());
    if held > 0 {
        let (network, former) = (&call.network, former.display());
        log::warn!(
            "network {network}: {former} has reservations ({held}) as earlier versions made them, and their addresses may be given again: \
             restart the containers of this host that have them"
        );
    }
}

fn ip_config(ip: IpAddr, set: &RangeSet) -> Option<IpConfig> {
    let range = set.range_of(ip)?;
    let address = IpNetwork::new(ip, range.subnet().prefix()).ok()?;
    Some(IpConfig { address, gateway: range.gateway(), interface: None })
}

/// Who an address is for: the attachment, and the name that it shall stay with.
pub(crate) type Whose<'a> = (&'a Owner, Option<&'a Name>);

/// Reserves one address of each set, all or none.
pub(crate) fn reserve(store: &Store, conf: &Conf, (owner, name): Whose) -> Result<Vec<IpAddr>, Error> {
    let held = store.held_by(owner)?;
    if !held.is_empty() {
        let held = list(&held);
        let msg = format!("{owner} already holds {held} in this network; call DEL for it before another ADD");
        return Err(Error::new(Code::Conflict, msg));
    }
    let reservation = store.begin(owner, conf.pools.sets().len(), name)?;
    let had = name.map(|name| store.had(name)).unwrap_or_default();
    let sets = conf.pools.sets().iter().zip(&conf.requests).enumerate();
    let chosen: Result<Vec<IpAddr>, Error> = sets
        .map(|(index, (set, request))| match request {
            Some(ip) => claim_requested(store, &reservation, (owner, name), *ip).map(|()| *ip),
            None => choose(store, &reservation, (owner, name), (index, set), &had),
        })
        .collect();
    match chosen {
        Ok(chosen) => {
            if let Some(name) = name {
                reservation.give_to(name, &chosen);
            }
            reservation.commit().map(|()| chosen)
        }
        Err(cause) => Err(reservation.abort(cause)),
    }
}

fn claim_requested(
    store: &Store,
    reservation: &Reservation<'_>,
    (owner, name): Whose,
    ip: IpAddr,
) -> Result<(), Error> {
    if let Some(other) = store.kept_for_another(ip, name) {
        let msg = format!("reserve {ip} for {owner}: kept for {other}; wait, or ask for another address");
        return Err(Error::new(Code::Conflict, msg));
    }
    if reservation.claim(ip)? {
        return Ok(());
    }
    // Perhaps by an ADD that was killed.
    store.reclaim_unfinished(Some(owner))?;
    if reservation.claim(ip)? {
        return Ok(());
    }
    let holder = store.holder(ip);
    Err(Error::new(
        Code::Conflict,
        format!("reserve {ip} for {owner}: held by {holder}; delete that one or ask for another address"),
    ))
}

/// The address that the owner had before a kill or that its name had, or the next free one behind the one given last.
fn choose(
    store: &Store,
    reservation: &Reservation<'_>,
    (owner, name): Whose,
    (index, set): (usize, &RangeSet),
    had: &[IpAddr],
) -> Result<IpAddr, Error> {
    let is_free = |ip: &&IpAddr| set.gives(**ip) && store.kept_for_another(**ip, name).is_none();
    for ip in reservation.before().iter().chain(had).filter(is_free) {
        if reservation.claim(*ip)? {
            return Ok(*ip);
        }
    }
    let ip = next_free(store, reservation, (index, set), (owner, name))?;
    store.set_last(index, ip)?;
    Ok(ip)
}

pub(crate) fn next_free(
    store: &Store,
    reservation: &Reservation<'_>,
    (index, set): (usize, &RangeSet),
    (owner, name): Whose,
) -> Result<IpAddr, Error> {
    let last = store.last(index);
    for ip in set.after(last).take(PROBES) {
        if store.kept_for_another(ip, name).is_none() && reservation.claim(ip)? {
            return Ok(ip);
        }
    }
    if let Some(ip) = reservation.claim_next(set, last, name)? {
        return Ok(ip);
    }
    // Before saying that there is none: killed ADDs may hold some, and marks may be wrong.
    store.reclaim_unfinished(Some(owner))?;
    store.forget_full()?;
    let mut used = store.used()?;
    used.extend(store.all_kept_for_others(name)?);
    // At most as many steps as addresses are held or kept, and one.
    if let Some(ip) = set.after(last).find(|ip| !used.contains(ip))
        && reservation.claim(ip)?
    {
        return Ok(ip);
    }
    for ip in store.oldest_kept()?.into_iter().filter(|ip| set.gives(*ip)) {
        if reservation.claim(ip)? {
            log::warn!("{ip} was kept for another, but range set {index} has no other address left");
            return Ok(ip);
        }
    }
    Err(Error::new(Code::Exhausted, exhausted(store, (index, set))?))
}

/// Pool, used and total, and how to get free addresses.
fn exhausted(store: &Store, (index, set): (usize, &RangeSet)) -> Result<String, Error> {
    let (used, total) = (used_of(store, set)?, set.total());
    Ok(format!(
        "no free address in range set {index} ({set}): {used} of {total} used; delete containers, run GC with \
         the list of valid attachments, or widen the ranges"
    ))
}

fn used_of(store: &Store, set: &RangeSet) -> Result<u128, Error> {
    Ok(store.used()?.iter().filter(|ip| set.gives(**ip)).map(|_| 1_u128).sum())
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn del(args: &DelArgs) -> Result<Outcome, Error> {
    let owner = Owner::new(args.container_id.as_str(), args.ifname.as_str());
    let Some(store) = open(&args.call)? else { return Ok(Outcome::Done) };
    let hints: Vec<IpAddr> = args.prev_result.iter().flat_map(|r| &r.ips).map(|ip| ip.address.ip()).collect();
    complete(&format!("free the addresses of {owner}"), store.release(&owner, &hints))
}

/// Success, or an error that lists everything that was left behind.
fn complete(step: &str, left: Vec<String>) -> Result<Outcome, Error> {
    if left.is_empty() {
        return Ok(Outcome::Done);
    }
    let msg = format!("{step}: {} left behind; see details, remove the cause and call again", left.len());
    Err(left.into_iter().fold(Error::new(Code::Incomplete, msg), Error::detail))
}

fn open(call: &Call) -> Result<Option<Store>, Error> {
    Store::open(&reservations_dir(&call.conf)?, &call.network, lock_deadline(call))
}

fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let owner = Owner::new(args.container_id.as_str(), args.ifname.as_str());
    let broken = |found: String| {
        let remedy = "delete the attachment and add it again";
        Error::new(Code::CheckFailed, format!("check the addresses of {owner}: {found}; {remedy}"))
    };
    let leased = match Host::of(&args.call)? {
        Some(host) => {
            let lease = host.of_containers()?;
            let lease = lease.ok_or_else(|| broken("this host has no lease on file".to_owned()))?;
            Some(Leased::of(&lease)?)
        }
        None => None,
    };
    let conf = Conf::new(&args.call, &args.args, leased.as_ref())?;
    let Some(store) = open(&args.call)? else {
        return Err(broken("nothing is reserved in this network since the machine started".to_owned()));
    };
    let held = store.held_by(&owner)?;
    if held.is_empty() {
        return Err(broken("it holds none".to_owned()));
    }
    let given: Vec<IpAddr> = args.prev_result.ips.iter().map(|ip| ip.address.ip()).collect();
    if let Some(ip) = held.iter().find(|ip| !given.contains(ip)) {
        return Err(broken(format!("it holds {ip}, but prevResult has {}", list(&given))));
    }
    // Other plugins of the chain may have added addresses of their own.
    let of_pools = |ip: &&IpAddr| conf.pools.sets().iter().any(|s| s.contains(**ip));
    for ip in held.iter().chain(given.iter().filter(of_pools)) {
        store.verify(&owner, *ip).map_err(broken)?;
    }
    Ok(Outcome::Done)
}

fn gc(args: &GcArgs) -> Result<Outcome, Error> {
    let Some(store) = open(&args.call)? else { return Ok(Outcome::Done) };
    let owner = |v: &cni_protocol::ValidAttachment| Owner::new(v.container_id.as_str(), v.ifname.as_str());
    let valid: Vec<Owner> = args.valid.iter().map(owner).collect();
    complete("collect garbage", store.collect_garbage(&valid, started()))
}

fn status(args: &StatusArgs) -> Result<Outcome, Error> {
    let not_available = |e: Error| Error { code: Code::NotAvailable, ..e };
    let host = Host::of(&args.call)?;
    let leased = match &host {
        Some(host) => match host.status()? {
            Some(lease) => Some(Leased::of(&lease)?),
            None => return can_be_created(&reservations_dir(&args.call.conf)?),
        },
        None => {
            host::check_subnet(&args.call)?;
            None
        }
    };
    let conf = Conf::new(&args.call, &CniArgs::default(), leased.as_ref())?;
    if let Some(path) = &conf.resolv_conf {
        dns::read(path).map_err(not_available)?;
    }
    let Some(store) = open(&args.call)? else {
        return can_be_created(&reservations_dir(&args.call.conf)?);
    };
    store.probe().map_err(not_available)?;
    for (index, set) in conf.pools.sets().iter().enumerate() {
        if used_of(&store, set)? < set.total() {
            continue;
        }
        store.reclaim_unfinished(None)?;
        if used_of(&store, set)? >= set.total() {
            return Err(Error::new(Code::NotAvailable, exhausted(&store, (index, set))?));
        }
    }
    Ok(Outcome::Done)
}

/// Whether an ADD could create the store, without creating anything.
fn can_be_created(root: &Path) -> Result<Outcome, Error> {
    can_be_made(root).map(|()| Outcome::Done).map_err(|(there, e)| {
        let remedy = "make it writable or choose another stateDir, or ipam.dataDir where that is set";
        let msg = format!("create {} for reservations: {}: {e}; {remedy}", root.display(), there.display());
        Error::new(Code::NotAvailable, msg)
    })
}
