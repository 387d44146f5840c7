//! The addresses of a host change: it is renumbered, or DHCP gives it another one. It keeps its subnet, in which
//! containers live. Nothing but what the host put at its former addresses tells that a record with these is its own:
//! the file of the lease does not, as a disk can be copied.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_protocol::Error;
use flannel_records::HostRecord;
use weft_state::lease::HostLease;

use super::holder::Holder;
use super::{Claimant, Keeper, Search, Snapshot};
use crate::conf::etcd::EtcdConf;
use crate::registry::{Held, Registry};
use crate::underlay::{self, Found, Here};

/// The addresses that a host's record publishes; none when it is no host's.
pub(super) fn publics(key: &str, value: &str) -> Vec<IpAddr> {
    let record = HostRecord::parse(key, value);
    record.iter().flat_map(HostRecord::segments).map(|segment| segment.public).collect()
}

/// The same of this host's.
#[must_use]
pub fn published(lease: &HostLease) -> Vec<IpAddr> {
    publics(&lease.key, &lease.value)
}

/// The same, with those that packets leave with.
fn addresses(lease: &HostLease) -> impl Iterator<Item = Found> {
    published(lease).into_iter().map(|public| {
        let local = lease.local.iter().copied().find(|ip| ip.is_ipv4() == public.is_ipv4());
        Found { public, local: local.unwrap_or(public) }
    })
}

/// What has become of the addresses under which a host is known; what is worse comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// They are this host's, or it has lost them and has no others.
    Same,
    /// None but another interface's would be found, while that which had them is there. That is so for some seconds when an interface
    /// is set down and up, or DHCP renews its address.
    Away,
    /// It has others.
    Moved,
}

/// What has become of a lease's addresses, as far as it is known which links had them.
#[must_use]
pub fn standing(conf: &EtcdConf, lease: &HostLease, links: &[(IpAddr, u32)]) -> Standing {
    // A lease that cannot be read has none.
    addresses(lease).map(|before| standing_of(conf, lease, before, links)).max().unwrap_or(Standing::Moved)
}

/// Those of a lease's addresses that links have, with the numbers of these.
#[must_use]
pub fn links(lease: &HostLease) -> Vec<(IpAddr, u32)> {
    let of = |here: Here| {
        lease.local.iter().filter_map(|local| here.link_of(*local).map(|link| (*local, link))).collect()
    };
    Here::look().map(of).unwrap_or_default()
}

/// The same for an agent that starts, maybe while one has none: of such an address all links with the hardware address on file.
#[must_use]
pub fn likely_links(lease: &HostLease) -> Vec<(IpAddr, u32)> {
    let mut found = links(lease);
    let is_missing = |local: &&IpAddr| found.iter().all(|(known, _)| known != *local);
    let missing: Vec<IpAddr> = lease.local.iter().filter(is_missing).copied().collect();
    if !missing.is_empty() {
        let alike = Holder::parse(&lease.holder).map(|holder| holder.links()).unwrap_or_default();
        found.extend(missing.iter().flat_map(|local| alike.iter().map(|link| (*local, *link))));
    }
    found
}

fn standing_of(conf: &EtcdConf, lease: &HostLease, before: Found, links: &[(IpAddr, u32)]) -> Standing {
    if conf.underlay.is_still(before) {
        return Standing::Same;
    }
    let now = Here::look().and_then(|here| find(conf, lease, before, &here, links));
    now.map_or(Standing::Same, |(_, standing)| standing)
}

/// What a host is to be known by that does not find its former addresses of a family as it did, and what has become of these.
///
/// # Errors
/// As [`underlay::Underlay::find`]; [`cni_protocol::Code::Io`] when the kernel does not tell.
fn find(
    conf: &EtcdConf,
    lease: &HostLease,
    before: Found,
    here: &Here,
    links: &[(IpAddr, u32)],
) -> Result<(Found, Standing), Error> {
    let v4 = before.public.is_ipv4();
    let former = if is_known_alike(conf, lease) && here.link_of(before.local).is_none() {
        former_links(lease, before.local, here, links)?
    } else {
        Vec::new()
    };
    let is_there = |found: &Found| here.link_of(found.local).is_some_and(|link| former.contains(&link));
    let mut now = conf.underlay.find(v4, here)?;
    // The default route leads elsewhere, as into a VPN. Without any the interface is not yet what it is to be.
    if let ([link], false) = (former.as_slice(), is_there(&now)) {
        now = conf.underlay.find_on(*link, v4, here).unwrap_or(now);
    }
    Ok(if now == before {
        (before, Standing::Same)
    } else if former.is_empty() || is_there(&now) {
        (now, Standing::Moved)
    } else {
        (before, Standing::Away)
    })
}

/// Whether the lease's addresses were found by the same configuration.
fn is_known_alike(conf: &EtcdConf, lease: &HostLease) -> bool {
    lease.underlay == conf.underlay.to_string()
}

/// Where an address that is gone is to be looked for: the link that had it, by its number where that is known, else by its hardware
/// address, which the lease has of its first family's. A VLAN, a bridge or a bond shares this with others, and comes back with it.
/// A port has become part of another link, which has its addresses. None when it is gone, too.
///
/// # Errors
/// [`cni_protocol::Code::Io`] when the kernel does not tell.
fn former_links(
    lease: &HostLease,
    address: IpAddr,
    here: &Here,
    known: &[(IpAddr, u32)],
) -> Result<Vec<u32>, Error> {
    let of_address = known.iter().filter(|(local, _)| *local == address).map(|(_, link)| *link);
    let links = Here::bearers(of_address.collect())?;
    // While the first family's address is there another one may have gone from any interface.
    if !links.is_empty() || lease.local.first().is_some_and(|first| here.link_of(*first).is_some()) {
        return Ok(links);
    }
    Here::bearers(Holder::parse(&lease.holder).map(|holder| holder.links()).unwrap_or_default())
}

/// Whether this machine took a lease, whatever addresses it has, by what is not on its disk.
#[must_use]
pub fn is_by_machine(lease: &HostLease) -> bool {
    let local = lease.local.first().copied();
    let me = Here::look().and_then(|here| Holder::here(&here, Some(lease), local, Keeper::Plugin));
    let holder = Holder::parse(&lease.holder);
    me.is_ok_and(|me| holder.is_some_and(|holder| me.is_by_machine(&holder)))
}

/// The addresses by which a claimant would be known to others, and was before; none where the kernel does not tell, or the claimant stays at
/// another place in etcd.
#[must_use]
pub fn known_by(conf: &EtcdConf, claimant: Claimant<'_>) -> Vec<IpAddr> {
    let own = claimant
        .at(conf)
        .and_then(|(claimant, _former)| Ok(Own::find(conf, claimant)?.asked(claimant.before)));
    own.unwrap_or_default()
}

/// This host's addresses as they are now, of both families.
pub(super) struct Own {
    pub(super) here: Here,
    v4: Result<Found, Error>,
    v6: Result<Found, Error>,
}

impl Own {
    /// Looks for them. Those of before count while the host has them and is to find them as it did then, whatever would be
    /// found now, or nothing for want of a route; also while it waits for them. Else what is found now does.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`] when the kernel does not tell of any.
    pub(super) fn find(conf: &EtcdConf, claimant: Claimant<'_>) -> Result<Self, Error> {
        let here = Here::look()?;
        let known = claimant.before.filter(|lease| is_known_alike(conf, lease));
        let of_family = |v4| {
            let of_before =
                |lease| Some((lease, addresses(lease).find(|found| found.public.is_ipv4() == v4)?));
            match (known.and_then(of_before), claimant.waits) {
                (Some((_, before)), _)
                    if underlay::is_here(before.local) && conf.underlay.is_still(before) =>
                {
                    Ok(before)
                }
                (Some((lease, before)), Some(links)) => {
                    find(conf, lease, before, &here, links).map(|(found, _)| found)
                }
                _ => conf.underlay.find(v4, &here),
            }
        };
        let [v4, v6] = [true, false].map(of_family);
        Ok(Self { here, v4, v6 })
    }

    /// That of a family.
    ///
    /// # Errors
    /// As [`crate::underlay::Underlay::find`].
    pub(super) fn of(&self, v4: bool) -> Result<Found, Error> {
        if v4 { self.v4.clone() } else { self.v6.clone() }
    }

    /// The addresses that this host would publish, in the families in which it has one, and those of before.
    pub(super) fn asked(&self, before: Option<&HostLease>) -> Vec<IpAddr> {
        let found = [&self.v4, &self.v6].into_iter().flatten();
        let mut all: Vec<IpAddr> = found.map(|found| found.public).collect();
        let former = before.map(published).unwrap_or_default();
        all.extend(former.into_iter().filter(|public| !all.contains(public)).collect::<Vec<_>>());
        all
    }
}

/// Says so where a lease gets other addresses than it had.
pub(super) fn tell_of_move(before: Option<&HostLease>, now: &[Found]) {
    for former in before.into_iter().flat_map(addresses) {
        let of_family = |found: &&Found| found.public.is_ipv4() == former.public.is_ipv4();
        if let Some(found) = now.iter().find(of_family).filter(|found| **found != former) {
            let (from, to) = (former.local, found.local);
            log::warn!("this host's address to other hosts was {from}, and is {to} from now on");
        }
    }
}

/// What this host put at addresses that are not among its own any more, under the lease that its record hangs on, or beside a
/// pinned one.
pub(super) fn former(
    snapshot: &Snapshot,
    before: Option<&HostLease>,
    me: &Holder,
    own: &[Found],
) -> Vec<(IpAddr, Option<Held>)> {
    let Some(before) = before else { return Vec::new() };
    let lease = snapshot.leases.get(&before.key);
    let is_mine = |held: &Held| {
        lease.is_none_or(|lease| *lease == held.lease || *lease == 0 && before.is_pinned())
            && Holder::parse(&held.value).is_some_and(|holder| me.is_by_machine(&holder))
    };
    let is_former = |(address, held): &&(IpAddr, Option<Held>)| {
        own.iter().all(|found| found.public != *address) && held.as_ref().is_some_and(is_mine)
    };
    snapshot.held.iter().filter(is_former).cloned().collect()
}

impl Search<'_> {
    /// Ends the leases that the record and what stood at the addresses hung on, where that is not this one and nothing is left
    /// on them.
    pub(super) async fn end_former(&self, registry: &mut Registry, record: i64, now: i64) {
        let held = self.held.iter().chain(&self.former).filter_map(|(_, held)| held.as_ref());
        let leases: BTreeSet<i64> = held.map(|held| held.lease).chain([record]).collect();
        for lease in leases.into_iter().filter(|lease| ![0, now].contains(lease)) {
            if let Err(error) = registry.end_if_unused(lease).await {
                log::warn!("the former lease is left to its end: {}", error.msg);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_state::lease::Peers;

    use super::*;

    /// Whether what a machine put at 192.0.2.1 is that of another one with the same disk.
    fn is_former(one: (Option<&str>, &str, u64), other: (Option<&str>, &str, u64)) -> bool {
        let value = |(mac, boot, netns)| {
            let holder = json!({
                "subnet": "", "host": "one", "mac": mac, "instance": "a", "boot": boot, "netns": netns, "keeper": "agent"
            });
            holder.to_string()
        };
        let me = Holder::parse(&value(other)).unwrap();
        let key = "10.240.1.0-24".to_owned();
        let held = Held { value: value(one), revision: 1, lease: 7 };
        let snapshot = Snapshot {
            config: Ok(String::new()),
            hosts: Peers::default(),
            leases: [(key.clone(), 7)].into(),
            held: vec![("192.0.2.1".parse().unwrap(), Some(held))],
        };
        let before = HostLease {
            prefix: String::new(),
            config: String::new(),
            key,
            value: String::new(),
            lease_id: 7,
            pinned: false,
            ttl: 60,
            renewed: 0,
            local: Vec::new(),
            underlay: String::new(),
            holder: value(one),
        };
        !former(&snapshot, Some(&before), &me, &[]).is_empty()
    }

    #[test]
    fn a_copy_of_the_disk_has_nothing_at_a_former_address() {
        let (mac, other) = (Some("02:00:00:00:00:01"), Some("02:00:00:00:00:02"));
        // As it runs, and booted anew with its interface.
        assert!(is_former((None, "x", 1), (None, "x", 1)));
        assert!(is_former((mac, "x", 1), (other, "x", 1)));
        assert!(is_former((mac, "x", 1), (mac, "y", 2)));
        for (one, copy) in [(None, None), (mac, None), (None, mac), (mac, other)] {
            assert!(!is_former((one, "x", 1), (copy, "y", 1)), "{one:?} {copy:?}");
            assert!(!is_former((one, "x", 1), (copy, "x", 2)), "{one:?} {copy:?}");
        }
    }
}
