//! Where a host belongs, by what etcd has. Pure.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use cni_protocol::{Code, Error};
use flannel_records::{HostRecord, Pool, kept_by_link, parse_key};
use ipnetwork::IpNetwork;
use weft_state::lease::{HostLease, Peers};

use super::configuration::{fits, misfit};
use super::former::publics;
use super::{Search, Snapshot, Tenants};
use crate::underlay::{self, Found};

/// What a host does about its subnet.
pub(super) enum Place<'a> {
    /// Its record is there.
    Mine {
        key: &'a str,
        value: &'a str,
    },
    /// Its record is there and does not fit the network any more, or an older one shares a subnet with it; nothing uses it.
    Misfit {
        key: &'a str,
        value: &'a str,
        why: String,
    },
    /// Another host has the subnet that this one had.
    Taken {
        key: String,
        owner: String,
    },
    /// Where it is, or would be, it cannot be.
    Refused(Error),
    /// The subnets that it had are free.
    Before(Vec<IpNetwork>),
    Anywhere,
}

impl Search<'_> {
    pub(super) fn place<'s>(&self, snapshot: &'s Snapshot) -> Place<'s> {
        let records = &snapshot.hosts.records;
        if let Some((key, value)) = self.own(&snapshot.hosts) {
            let lease = snapshot.leases.get(key).copied();
            let is_pinned = lease == Some(0);
            let is_known = is_pinned || self.wish == Some(key) || self.is_held(snapshot);
            return if let Some(public) = self.doubtful(key, is_known) {
                Place::Refused(self.not_alone(public, key, value))
            } else if let Some(before) = self.before.filter(|before| self.leaves(before, key, lease)) {
                self.place_as_before(&before.key, records)
            } else if !self.fits(key) && !self.is_unused() {
                Place::Refused(self.misfit(key))
            } else if !self.fits(key) {
                let why = "the network has it no more".to_owned();
                Place::Misfit { key, value, why }
            } else {
                match elder(&snapshot.hosts, key) {
                    None => Place::Mine { key, value },
                    Some(elder) if self.is_unused() && is_pinned => {
                        Place::Refused(self.pinned_later(key, elder))
                    }
                    Some((elder, _)) if self.is_unused() => {
                        let why = format!("{elder} has part of it and was there first");
                        Place::Misfit { key, value, why }
                    }
                    Some(elder) => self.taken(key, elder),
                }
            };
        }
        match self.before {
            Some(before) => self.place_as_before(&before.key, records),
            None => self.place_anew(records),
        }
    }

    /// Whether to go to the record at a key, which hangs on this lease, would leave containers behind in the subnet of before. One on
    /// this host's own lease was put by a run that was killed before it was on file, so that containers came by the file.
    fn leaves(&self, before: &HostLease, key: &str, lease: Option<i64>) -> bool {
        let is_unfiled = lease == Some(self.lease_id());
        before.key != key
            && (self.tenants == Tenants::Some || self.tenants == Tenants::Possible && is_unfiled)
    }

    /// Where a host goes whose former subnet has no record of it.
    fn place_as_before<'s>(&self, key: &str, records: &BTreeMap<String, String>) -> Place<'s> {
        if let Some(other) = sharing(records, key) {
            return if self.is_unused() { Place::Anywhere } else { self.taken(key, other) };
        }
        match parse_key(key).filter(|_| self.fits(key)) {
            Some(subnets) => Place::Before(subnets),
            None if self.is_unused() => Place::Anywhere,
            None => Place::Refused(self.misfit(key)),
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.tenants == Tenants::None
    }

    fn taken<'s>(&self, own: &str, (key, value): (&String, &String)) -> Place<'s> {
        let owner = format!("{} ({})", owner(key, value), self.remedy(key));
        Place::Taken { key: own.to_owned(), owner }
    }

    fn remedy(&self, key: &str) -> String {
        format!("if that is no host any more: etcdctl del {}/subnets/{key}", self.conf.prefix)
    }

    /// A record that somebody has pinned is theirs to remove, and good again when the other one's lease has ended.
    fn pinned_later(&self, own: &str, (key, value): (&String, &String)) -> Error {
        let msg = format!(
            "take a subnet: {}/subnets/{own} is pinned for this host, but part of it is in {key} of {}, which was there first: pin \
             another one; {}",
            self.conf.prefix,
            owner(key, value),
            self.remedy(key),
        );
        Error::new(Code::Conflict, msg)
    }

    /// Where a host without a lease on file goes: to what it asks for, if it can have that.
    fn place_anew<'s>(&self, records: &BTreeMap<String, String>) -> Place<'s> {
        let wish = self.wish.filter(|key| self.fits(key) && sharing(records, key).is_none());
        wish.and_then(parse_key).map_or(Place::Anywhere, Place::Before)
    }

    /// This host's record. Of several, which anybody may have put, that of the lease on file: containers have addresses
    /// of its subnet; else one that fits, and of these the one that was there first.
    pub(super) fn own<'r>(&self, hosts: &'r Peers) -> Option<(&'r String, &'r String)> {
        let before = |key: &str| self.before.is_some_and(|lease| lease.key == key);
        self.all_own(&hosts.records).min_by_key(|(key, _)| (!before(key), !self.fits(key), hosts.made(key)))
    }

    /// All records of this host.
    pub(super) fn all_own<'r>(
        &self,
        records: &'r BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&'r String, &'r String)> {
        records.iter().filter(|(key, value)| self.is_mine(key, value))
    }

    /// Whether a record has this host's public address, or is that of before under an address that it had then. Whoever pinned
    /// one has put the address there, too, and changes it.
    fn is_mine(&self, key: &str, value: &str) -> bool {
        let is_befores = |lease: &HostLease| lease.key == key && !lease.is_pinned();
        let is_former = || self.before.is_some_and(is_befores) && !self.former.is_empty();
        self.is_here(key, value) || is_former()
    }

    /// Whether a record has this host's public address, of either family.
    pub(super) fn is_here(&self, key: &str, value: &str) -> bool {
        let mine = |public: IpAddr| self.addresses.iter().any(|found| found.public == public);
        publics(key, value).into_iter().any(mine)
    }

    /// An address that is configured, but that no interface here has, may have been configured on another host, too. The
    /// record is this host's when the file of the lease says so, or when it is known: a Weft host that has put itself at
    /// the address is no rival. flanneld, which says nothing there, has left subnet.env with the key on this host. Somebody who
    /// has pinned it (without a lease) meant whoever comes with the address.
    fn doubtful(&self, key: &str, is_known: bool) -> Option<IpAddr> {
        if is_known || self.before.is_some_and(|lease| lease.key == key) {
            return None;
        }
        let elsewhere = |found: &&Found| found.public != found.local && !underlay::is_here(found.public);
        self.addresses.iter().find(elsewhere).map(|found| found.public)
    }

    fn not_alone(&self, public: IpAddr, key: &str, value: &str) -> Error {
        let msg = format!(
            "take a subnet: the public address {public} is that of another host, which has {key} ({}): give this \
             host another one with ipam.publicIP; if that was this host before it was set up anew, etcdctl del {}/subnets/{key}",
            owner(key, value),
            self.conf.prefix,
        );
        Error::new(Code::Conflict, msg)
    }

    fn fits(&self, key: &str) -> bool {
        fits(&self.config, key)
    }

    fn misfit(&self, key: &str) -> Error {
        misfit(&self.conf.prefix, &self.config, key)
    }

    /// Choices, of which each is a subnet of each pool that neither the keys nor the link to other hosts have, at random: hosts that
    /// start at once do not all want the same. A key of another size, from before the network was configured anew, counts unless its
    /// value, where that is known, is no host's: anybody can put one that has the whole network.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when a pool has none.
    pub(super) fn free<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k String>,
        known: &BTreeMap<String, String>,
    ) -> Result<Vec<Vec<IpNetwork>>, Error> {
        let named = |key: &'k String| Some((key.as_str(), parse_key(key)?));
        let taken: Vec<(&str, Vec<IpNetwork>)> = keys.into_iter().filter_map(named).collect();
        let is_hosts = |key: &str| known.get(key).is_none_or(|value| HostRecord::parse(key, value).is_ok());
        let of_hosts = |pool: &Pool| {
            let subnets = taken.iter().flat_map(|(key, subnets)| subnets.iter().map(move |one| (*key, *one)));
            let counting = subnets.filter(|(key, subnet)| pool.has(*subnet) || is_hosts(key));
            counting.filter_map(|(key, subnet)| Some((pool.places(subnet)?, key))).collect::<Vec<_>>()
        };
        let free = |(pool, own): (&Pool, &Found)| {
            let mut blocks = of_hosts(pool);
            let kept = self.here.beside(own.local);
            let kept = kept.filter_map(|address| pool.places(kept_by_link(pool.network(), address)));
            blocks.extend(kept.map(|places| (places, LINK)));
            free_in(pool, blocks)
        };
        let of_pools: Vec<Vec<IpNetwork>> =
            self.config.pools().iter().zip(&self.addresses).map(free).collect::<Result<_, Error>>()?;
        let count = of_pools.iter().map(Vec::len).min().unwrap_or_default();
        Ok((0..count).map(|number| of_pools.iter().map(|found| found[number]).collect()).collect())
    }
}

/// A record that has one of a key's subnets: in a network of both families the other one may be another.
fn sharing<'r>(records: &'r BTreeMap<String, String>, key: &str) -> Option<(&'r String, &'r String)> {
    let own = parse_key(key).unwrap_or_default();
    records.iter().find(|(other, _)| *other == key || shares(other, &own))
}

/// Whether a key names one of these subnets.
fn shares(key: &str, subnets: &[IpNetwork]) -> bool {
    parse_key(key).is_some_and(|named| named.iter().any(|one| subnets.contains(one)))
}

/// Another host's record that has one of a key's subnets and was there first, so that all other hosts believe that one. Whoever came
/// later gives way when it has put its record ([`Search::is_alone`]), or at its next look, when it was killed before it could. A
/// record of another backend takes nothing: the hosts of this one drop it.
pub(crate) fn elder<'r>(hosts: &'r Peers, key: &str) -> Option<(&'r String, &'r String)> {
    let own = parse_key(key).unwrap_or_default();
    let mine = hosts.records.get(key).and_then(|value| HostRecord::parse(key, value).ok());
    let is_mine =
        |public: IpAddr| mine.iter().flat_map(HostRecord::segments).any(|segment| segment.public == public);
    let counts = |other: HostRecord| {
        mine.as_ref().is_none_or(|mine| mine.transport == other.transport)
            && !other.segments().iter().any(|segment| is_mine(segment.public))
    };
    let is_older = |other: &str| (hosts.made(other), other) < (hosts.made(key), key);
    let mut others = hosts.records.iter().filter(|(other, _)| shares(other, &own) && is_older(other));
    others.find(|(other, value)| HostRecord::parse(other, value).is_ok_and(counts))
}

/// Whose record it is, for people.
pub(super) fn owner(key: &str, value: &str) -> String {
    match HostRecord::parse(key, value) {
        Ok(record) => {
            let addresses = record.segments().iter().map(|segment| segment.public.to_string());
            addresses.collect::<Vec<_>>().join(" and ")
        }
        Err(error) => format!("a record that is no host's ({error})"),
    }
}

/// The places of a pool that a key has, or the link.
type Block<'k> = (RangeInclusive<u128>, &'k str);

const LINK: &str = "the link to other hosts";
const CHOSEN: &str = "this host itself";

/// How many free subnets a host names, of which it gets the first that nobody took meanwhile. Of a thousand hosts at once in
/// 4,096 subnets one in nine loses its first one, and one in a hundred both.
const CHOICES: usize = 2;

/// Free subnets, each the first behind a random one.
fn free_in(pool: &Pool, mut blocks: Vec<Block<'_>>) -> Result<Vec<IpNetwork>, Error> {
    blocks.sort_by_key(|(places, _)| *places.start());
    let behind = |place: u128, (places, _): &Block<'_>| {
        if places.contains(&place) { places.end() + 1 } else { place }
    };
    let mut choices = Vec::new();
    while choices.len() < CHOICES {
        let start = random() % pool.count();
        let found = [start, 0].map(|start| blocks.iter().fold(start, behind));
        let Some(place) = found.into_iter().find(|place| *place < pool.count()) else { break };
        choices.push(pool.at(place));
        let follows = blocks.partition_point(|(places, _)| *places.start() < place);
        blocks.insert(follows, (place..=place, CHOSEN));
    }
    if choices.is_empty() { Err(exhausted(pool, &blocks)) } else { Ok(choices) }
}

fn random() -> u128 {
    let word = || u128::from(RandomState::new().hash_one(0));
    word() << 64 | word()
}

fn exhausted(pool: &Pool, blocks: &[Block<'_>]) -> Error {
    let largest = blocks.iter().max_by_key(|(places, whose)| (places.end() - places.start(), *whose == LINK));
    let msg = format!(
        "take a subnet: all {} subnets of {} are taken, by {} among others: widen the network's range in etcd, or remove \
         the records of hosts that are gone",
        pool.count(),
        pool.network(),
        largest.map_or("nobody", |(_, whose)| *whose),
    );
    Error::new(Code::Exhausted, msg)
}

#[cfg(test)]
mod tests {
    use flannel_records::NetworkConfig;

    use super::*;

    #[test]
    fn who_was_there_first_with_another_backend_takes_nothing() {
        let (old, new) = ("10.240.1.0-24&fd00:42:0:1::-64", "10.240.2.0-24&fd00:42:0:1::-64");
        let plain = |host: u8| {
            format!(
                r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":"2001:db8::{host}","BackendType":"host-gw"}}"#
            )
        };
        let vxlan = |host: u8, vni: u32| {
            let data = format!(r#"{{"VNI":{vni},"VtepMAC":"8e:00:00:00:00:{host:02x}"}}"#);
            format!(
                r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":"2001:db8::{host}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
            )
        };
        for (theirs, own, counts) in [
            (vxlan(1, 1), vxlan(2, 1), true),
            (plain(1), plain(2), true),
            (plain(1), vxlan(2, 1), false),
            (vxlan(1, 1), plain(2), false),
            (vxlan(1, 2), vxlan(2, 1), false),
            // Another one of its own.
            (vxlan(2, 1), vxlan(2, 1), false),
            ("{}".to_owned(), vxlan(2, 1), false),
        ] {
            let hosts = Peers {
                records: [(old.to_owned(), theirs.clone()), (new.to_owned(), own.clone())].into(),
                created: [(old.to_owned(), 1), (new.to_owned(), 2)].into(),
                ..Peers::default()
            };
            assert_eq!(elder(&hosts, new).is_some(), counts, "{theirs} {own}");
            assert!(elder(&hosts, old).is_none());
        }
    }

    #[test]
    fn as_many_choices_as_are_free_and_none_of_them_twice() {
        let config =
            r#"{"Network": "10.240.0.0/22", "SubnetMin": "10.240.0.0", "Backend": {"Type": "vxlan"}}"#;
        let config = NetworkConfig::parse(config).unwrap();
        let pool = &config.pools()[0];
        for taken in 0..4 {
            for _ in 0..50 {
                let blocks = (0..taken).map(|place| (place..=place, "another host")).collect();
                let found = free_in(pool, blocks).unwrap();
                let free: Vec<IpNetwork> = (taken..pool.count()).map(|place| pool.at(place)).collect();
                assert_eq!(found.len(), free.len().min(CHOICES));
                assert!(found.iter().all(|subnet| free.contains(subnet)), "{found:?} of {free:?}");
                assert!(found.len() == 1 || found[0] != found[1], "{found:?}");
            }
        }
        let error = free_in(pool, vec![(0..=3, "10.240.0.0-22")]).unwrap_err();
        assert!(error.msg.contains("all 4 subnets") && error.msg.contains("10.240.0.0-22"), "{error}");
    }
}
