//! Limits on a container's traffic: a token bucket for each direction.
//!
//! What goes to the container waits on the host's end of the pair, and is gone with it. What comes from it has no queue
//! there, so a filter sends it through a link of its own (ifb), whose queue is the bucket. Where only some subnets count,
//! filters choose what takes such a detour, in both directions: the bucket is always the same.

use cni_protocol::{Code, Deadline, Error};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use weft_net::netns::NetNs;
use weft_net::{Family, Filter, Hook, Link, NetError, Netlink, NlResult, TokenBucket};

use crate::conf::shaping::{Limit, Shaping, Subnets};
use crate::fault::{Change, Fault};
use crate::key::{AttachmentKey, Direction};
use crate::step::{Journal, Step};

/// How long what is waiting takes at the limit's rate, in milliseconds. Longer queues make TCP overshoot so far when it
/// starts that one connection in ten stood still for its first half second (measured with 80 ms, cubic and bbr).
const QUEUE_MS: u64 = 50;
/// No packet, and no burst that nobody asked for, is more than this part of the queue.
const SHARE: u64 = 8;
/// What Ethernet and two VLAN tags add to the MTU.
const HEADERS: u32 = 22;
/// What a missing part of the kernel is called.
const MODULES: &str = "modprobe -a sch_tbf sch_ingress cls_u32 act_mirred ifb";

/// One direction of an attachment.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    bucket: TokenBucket,
    /// The ifb that has the bucket; without, the host's end of the pair has it.
    detour: Option<Detour>,
}

#[derive(Debug, PartialEq, Eq)]
struct Detour {
    ifb: String,
    hook: Hook,
    subnets: Subnets,
}

/// What limits need in the kernel. Pure.
fn ways(key: &AttachmentKey, shaping: &Shaping, mtu: u32) -> Vec<Way> {
    let way =
        |direction: Direction| {
            let bucket = bucket(shaping.limit(direction)?, mtu);
            let hook = match direction {
                Direction::Ingress => Hook::Egress,
                Direction::Egress => Hook::Ingress,
            };
            let detour = (direction == Direction::Egress || shaping.subnets != Subnets::All)
                .then(|| Detour { ifb: key.ifb(direction), hook, subnets: shaping.subnets.clone() });
            Some(Way { bucket, detour })
        };
    Direction::BOTH.into_iter().filter_map(way).collect()
}

fn bucket(limit: Limit, mtu: u32) -> TokenBucket {
    let frame = mtu.saturating_add(HEADERS);
    let bytes = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let rate = limit.rate / 8;
    let two_frames = frame.saturating_mul(2);
    let queue = bytes(rate.saturating_mul(QUEUE_MS) / 1000).max(two_frames);
    let share = bytes(u64::from(queue) / SHARE).max(two_frames);
    // With less than a packet, nothing would ever pass.
    let burst = limit.burst.map_or(share, |bits| bytes(bits / 8).max(frame));
    TokenBucket { rate, burst, queue, packet: share.min(burst) }
}

/// A link that another plugin made, and on which an attachment's limits are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    pub link: String,
    /// Another link can have got the name.
    pub index: u32,
}

impl Detour {
    fn filters(&self, through: u32) -> Vec<Filter> {
        let first = match self.hook {
            Hook::Ingress => 1,
            Hook::Egress => 4,
        };
        let all = Filter { priority: first + 2, remote: None, through: Some(through) };
        let of = |through: Option<u32>, subnets: &[IpNetwork]| -> Vec<Filter> {
            let filter = |remote: &IpNetwork| Filter {
                priority: first + u16::from(Family::of(remote.ip()) == Family::V6),
                remote: Some(*remote),
                through,
            };
            subnets.iter().map(filter).collect()
        };
        match &self.subnets {
            Subnets::All => vec![all],
            Subnets::Only(subnets) => of(Some(through), subnets),
            Subnets::Except(subnets) => {
                let mut filters = of(None, subnets);
                filters.push(all);
                filters
            }
        }
    }
}

/// The host's end of a pair, as far as limits are concerned.
pub struct HostEnd<'a> {
    pub name: &'a str,
    pub index: u32,
    pub mtu: u32,
}

/// Limits an attachment's traffic at the host's end of its pair. Returns the links that it took.
pub fn apply(
    journal: &mut Journal,
    host: &mut Netlink,
    key: &AttachmentKey,
    veth: &HostEnd<'_>,
    shaping: &Shaping,
) -> Result<Vec<Link>, Error> {
    // What is on an own pair goes with it.
    let is_foreign = veth.name != key.host_veth();
    let name = || veth.name.to_owned();
    let explain_on = |error: NetError| match is_foreign && error.exists() {
        true => taken(veth.name),
        false => explain(&error),
    };
    let ways = ways(key, shaping, veth.mtu);
    let mut links = Vec::new();
    if ways.iter().any(|way| way.detour.is_some()) {
        journal.run(Step::Hooks(name()), || {
            let made = host.add_hooks(veth.index).map_err(explain_on);
            made.map(|()| ((), Change::from(is_foreign)))
        })?;
    }
    for way in ways {
        let Some(detour) = &way.detour else {
            journal.run(Step::Queue(name()), || {
                let made = host.add_token_bucket(veth.index, &way.bucket).map_err(explain_on);
                made.map(|()| ((), Change::from(is_foreign)))
            })?;
            continue;
        };
        journal.run(Step::Ifb(detour.ifb.clone()), || {
            let made = host.add_ifb(&detour.ifb, veth.mtu).map_err(|error| explain(&error));
            made.map(|()| ((), Change::Made))
        })?;
        let link = journal.within(Step::Shape(name()), || {
            redirect(host, veth.index, &way.bucket, detour).map_err(|error| explain(&error))
        })?;
        links.push(link);
    }
    journal.content.shaping = shaping.clone();
    Ok(links)
}

/// Takes limits off the link of another plugin, if it is still there.
///
/// # Errors
/// What the kernel refused.
pub fn take_off(host: &mut Netlink, limited: &Limited) -> NlResult<()> {
    if host.link(&limited.link)?.is_some_and(|link| link.index == limited.index) {
        host.delete_token_bucket(limited.index)?;
        host.delete_hooks(limited.index)?;
    }
    Ok(())
}

/// Takes back the one or the other of what [`apply`] put on a link.
pub fn undo(link: &str, deadline: Deadline, delete: fn(&mut Netlink, u32) -> NlResult<bool>) -> NlResult<()> {
    let mut host = Netlink::open(deadline)?;
    host.link(link)?.map_or(Ok(()), |link| delete(&mut host, link.index).map(drop))
}

/// Gives an ifb its bucket, and sends through it what counts.
fn redirect(host: &mut Netlink, veth: u32, bucket: &TokenBucket, detour: &Detour) -> NlResult<Link> {
    let ifb = host.link(&detour.ifb)?.ok_or(Errno::ENODEV)?;
    // For a link that is up the kernel first waits for the queue that it has.
    host.add_token_bucket(ifb.index, bucket)?;
    host.set_up(&detour.ifb)?;
    for filter in detour.filters(ifb.index) {
        host.add_filter(veth, detour.hook, &filter)?;
    }
    Ok(ifb)
}

/// What is different from what [`apply`] made.
pub fn differences(
    host: &mut Netlink,
    key: &AttachmentKey,
    veth: &Link,
    shaping: &Shaping,
) -> NlResult<Vec<String>> {
    let mut found = Vec::new();
    for way in ways(key, shaping, veth.mtu) {
        let (name, index) = match &way.detour {
            None => (&veth.name, Some(veth.index)),
            Some(detour) => {
                let ifb = host.link(&detour.ifb)?;
                if ifb.as_ref().is_some_and(|ifb| !ifb.up) {
                    found.push(format!("{}, through which traffic is limited, is down", detour.ifb));
                }
                (&detour.ifb, ifb.map(|ifb| ifb.index))
            }
        };
        let Some(index) = index else {
            found.push(format!("{name}, through which traffic is limited, is gone"));
            continue;
        };
        match host.token_bucket(index)? {
            None => found.push(format!("the token bucket of {name} is gone")),
            Some(other) if !way.bucket.is(&other) => {
                found.push(format!("the token bucket of {name} has {other} instead of {}", way.bucket));
            }
            Some(_) => {}
        }
        if let Some(detour) = &way.detour
            && !host.has_filters(veth.index, detour.hook, &detour.filters(index))?
        {
            found.push(format!("the filters of {} that send traffic through {name} are altered", veth.name));
        }
    }
    Ok(found)
}

/// Does what [`apply`] does where it harms nobody: in a network namespace that goes away again.
///
/// # Errors
/// What the kernel refuses, with its remedy.
pub fn rehearse(key: &AttachmentKey, shaping: &Shaping, deadline: Deadline) -> Result<(), Fault> {
    let home = NetNs::current()?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(NetError::from)?;
    let rehearsed = Netlink::open(deadline).and_then(|mut host| {
        let lo = host.link("lo")?.ok_or(Errno::ENODEV)?;
        let ways = ways(key, shaping, lo.mtu);
        if ways.iter().any(|way| way.detour.is_some()) {
            host.add_hooks(lo.index)?;
        }
        for way in ways {
            match &way.detour {
                None => host.add_token_bucket(lo.index, &way.bucket)?,
                Some(detour) => {
                    host.add_ifb(&detour.ifb, lo.mtu)?;
                    redirect(&mut host, lo.index, &way.bucket, detour)?;
                }
            }
        }
        Ok(())
    });
    home.enter()?;
    rehearsed.map_err(|error| explain(&error))
}

/// A link of another plugin that has a queue or filters already.
fn taken(link: &str) -> Fault {
    let remedy = "leave the limits to that one, or take it out of the chain";
    Error::new(Code::Conflict, format!("another plugin limits or filters the traffic of {link}: {remedy}"))
        .into()
}

/// The kernel says in several ways that a part of it is missing.
fn explain(error: &NetError) -> Fault {
    match error.errno {
        Errno::ENOENT | Errno::EOPNOTSUPP => {
            Error::new(Code::Kernel, format!("{error}: the kernel lacks a part that limits need: {MODULES}")).into()
        }
        Errno::EEXIST => Error::new(
            Code::Conflict,
            format!("{error}: an attachment of this name is there although its record is lost: call DEL for it first"),
        )
        .into(),
        _ => error.clone().into(),
    }
}

#[cfg(test)]
mod tests;
