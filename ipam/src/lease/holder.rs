//! Who has a public address. Records name a host by nothing else, and two machines can be given one address by
//! mistake: a cloned disk, a line that was copied. So beside its record a host puts who it is.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Code, Error};
use serde::{Deserialize, Serialize};
use weft_state::boot_id;
use weft_state::lease::HostLease;

use super::{Lease, Search, Snapshot};
use crate::registry::{Held, Registry, address_key};
use crate::underlay::Here;

/// An agent renews its lease every two seconds. When it has not for so long, its host is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// What renews a host's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// `weftd`, all the time.
    Agent,
    /// ADD, when half of the time is over.
    Plugin,
}

/// One machine. What is not known of it is empty, 0 or `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// The subnet's key, and the machine's name: for people.
    pub(super) subnet: String,
    host: String,
    /// Of the interface to the other hosts: it stays when the machine is set up anew, and a clone has another one.
    pub(super) mac: Option<String>,
    /// Random, and on file with the lease: it stays when the interface is replaced, and a copied disk has it, too.
    instance: String,
    /// Of a kernel's run, and of a network namespace in it: both together are one host, until the next boot.
    boot: String,
    netns: u64,
    keeper: Keeper,
}

impl Holder {
    /// This host, with what it remembers and the address that it sends from.
    pub(super) fn here(
        here: &Here,
        before: Option<&HostLease>,
        local: Option<IpAddr>,
        keeper: Keeper,
    ) -> Result<Self, Error> {
        let line = |path: &str| {
            let read = fs::read_to_string(path).map(|text| text.trim().to_owned());
            read.map_err(|error| {
                Error::new(Code::Io, format!("read {path}: {error}: mount /proc and call again"))
            })
        };
        let (known, instance) = before
            .and_then(|lease| Self::parse(&lease.holder))
            .map(|known| (known.mac, known.instance))
            .unzip();
        // An interface that is without the address for a while is still the one.
        let is_gone = local.is_some_and(|local| here.link_of(local).is_none());
        let waited_for = known.flatten().filter(|mac| is_gone && !Here::links_with(mac).is_empty());
        let mac = local.and_then(|local| here.hardware_of(local)).map(|mac| mac.to_string());
        Ok(Self {
            subnet: String::new(),
            host: line("/proc/sys/kernel/hostname")?,
            mac: mac.or(waited_for),
            instance: instance.map_or_else(|| line("/proc/sys/kernel/random/uuid"), Ok)?,
            boot: boot_id()?.to_owned(),
            netns: fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino()).unwrap_or_default(),
            keeper,
        })
    }

    /// The numbers of the links that have its hardware address.
    pub(super) fn links(&self) -> Vec<u32> {
        self.mac.as_deref().map(Here::links_with).unwrap_or_default()
    }

    /// What is no holder was not put by a host.
    pub(super) fn parse(value: &str) -> Option<Self> {
        serde_json::from_str(value).ok()
    }

    pub(super) fn value(&self, subnet: &str) -> String {
        let holder = Self { subnet: subnet.to_owned(), ..self.clone() };
        serde_json::to_string(&holder).unwrap_or_default()
    }

    /// Whether both are one machine: as it runs, or set up anew, or booted without a hardware address that would tell.
    pub(super) fn is(&self, other: &Self) -> bool {
        let is_told = self.mac.is_some() && other.mac.is_some();
        self.is_by_machine(other) || !is_told && self.instance == other.instance
    }

    /// The same by nothing that is on the disk, which may be a copy.
    pub(super) fn is_by_machine(&self, other: &Self) -> bool {
        let runs = self.netns != 0 && self.boot == other.boot && self.netns == other.netns;
        runs || self.mac.is_some() && self.mac == other.mac
    }

    /// Which machine that is, for people. It comes from the store and is not to look like more than one line.
    fn name(&self) -> String {
        printable(&format!("{} ({})", self.host, self.mac.as_deref().unwrap_or("no hardware address")))
    }
}

/// Whether etcd has a lease as it is known: as [`holds`] says, and the record is under this lease or pinned. The snapshot is one with its
/// addresses.
#[must_use]
pub fn stands(lease: &HostLease, snapshot: &Snapshot) -> bool {
    let of_record = if lease.is_pinned() { 0 } else { lease.lease_id };
    snapshot.leases.get(&lease.key) == Some(&of_record) && holds(lease, snapshot)
}

/// Whether the record is there as this host has put it, and nobody else has come to its addresses since, by what stands at their keys.
#[must_use]
pub fn holds(lease: &HostLease, snapshot: &Snapshot) -> bool {
    let is_its = |held: &Option<Held>| match held {
        Some(held) => held.value == lease.holder,
        // An earlier version put nothing there for a pinned record.
        None => lease.lease_id == 0,
    };
    snapshot.hosts.records.get(&lease.key) == Some(&lease.value)
        && snapshot.held.iter().all(|(_, held)| is_its(held))
}

/// Whether others are told that an agent renews it, so that they take the host for gone when they do not hear one.
pub(crate) fn is_agents(lease: &HostLease) -> bool {
    Holder::parse(&lease.holder).is_some_and(|holder| holder.keeper == Keeper::Agent)
}

/// Another live host with this one's address.
pub(super) struct Rival {
    address: IpAddr,
    holder: Holder,
}

impl Search<'_> {
    /// Who else lives with one of this host's addresses, by what it had put there.
    pub(super) async fn rival(
        &self,
        registry: &mut Registry,
        snapshot: &Snapshot,
    ) -> Result<Option<Rival>, Error> {
        for (address, held) in &self.held {
            if let Some((held, holder)) = self.counts(held.as_ref(), snapshot)
                && !self.me.is(&holder)
                && self.is_alive(registry, held, &holder).await?
            {
                return Ok(Some(Rival { address: *address, holder }));
            }
        }
        Ok(None)
    }

    /// Whether some Weft host put itself at one of the addresses, which then is judged by that.
    pub(super) fn is_held(&self, snapshot: &Snapshot) -> bool {
        self.held.iter().any(|(_, held)| self.counts(held.as_ref(), snapshot).is_some())
    }

    /// What somebody put at an address counts while the address's record hangs on the same lease, or is pinned: flanneld takes
    /// records over under a lease of its own, and puts nothing here.
    fn counts<'h>(&self, held: Option<&'h Held>, snapshot: &Snapshot) -> Option<(&'h Held, Holder)> {
        let held = held?;
        let mut here =
            snapshot.hosts.records.iter().filter(|(key, value)| self.is_here(key, value)).peekable();
        let is_its = |lease: &i64| [0, held.lease].contains(lease);
        if here.peek().is_some() && !here.any(|(key, _)| snapshot.leases.get(key).is_some_and(is_its)) {
            return None;
        }
        Holder::parse(&held.value).map(|holder| (held, holder))
    }

    /// An agent is heard every two seconds. A host without one is silent for half of its lease, and is taken to live as
    /// long as that lasts, unless it is this host with another interface.
    async fn is_alive(&self, registry: &mut Registry, held: &Held, holder: &Holder) -> Result<bool, Error> {
        let term = registry.term(held.lease).await?;
        Ok(term.is_some_and(|term| match holder.keeper {
            Keeper::Agent => term.silence < SILENCE,
            Keeper::Plugin => holder.instance != self.me.instance,
        }))
    }

    /// What comes of it: a host that had the subnet itself, and has containers in it, has lost it.
    pub(super) fn yields(&self, rival: &Rival) -> Lease {
        let Rival { address, holder } = rival;
        let (subnet, name) = (printable(&holder.subnet), holder.name());
        if let Some(before) = self.before.filter(|before| before.key == holder.subnet && !self.is_unused()) {
            let owner = format!("another live host with this one's address {address}, {name},");
            return Lease::Taken { key: before.key.clone(), owner };
        }
        let msg = format!(
            "take a subnet: the public address {address} is that of another live host, {name}, which has {subnet}: give \
             one of the two an address of its own, on its interface or with ipam.publicIP; if that host is gone: etcdctl del {}",
            address_key(&self.conf.prefix, *address)
        );
        Lease::Refused(Error::new(Code::Conflict, msg))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder {
            subnet: "10.240.1.0-24".into(),
            host: "one".into(),
            mac: Some("02:00:00:00:00:01".into()),
            instance: "a".into(),
            boot: "b".into(),
            netns: 1,
            keeper: Keeper::Agent,
        }
    }

    #[test]
    fn one_machine_and_two() {
        let mac = Some("02:00:00:00:00:02".to_owned());
        let one = holder();
        // Set up anew, and booted into it; named otherwise; as it runs, with the address of a bond's other interface, or
        // killed before its lease was on file.
        assert!(one.is(&Holder { instance: "x".into(), boot: "x".into(), netns: 2, ..holder() }));
        assert!(one.is(&Holder {
            host: "x".into(),
            subnet: String::new(),
            keeper: Keeper::Plugin,
            ..holder()
        }));
        assert!(one.is(&Holder { mac: mac.clone(), ..holder() }));
        assert!(one.is(&Holder { mac: None, instance: "x".into(), ..holder() }));
        // A copy of its disk, also on the same kernel; another machine.
        assert!(!one.is(&Holder { mac: mac.clone(), boot: "x".into(), ..holder() }));
        assert!(!one.is(&Holder { mac: mac.clone(), netns: 2, ..holder() }));
        assert!(!one.is(&Holder { mac, instance: "x".into(), boot: "x".into(), ..holder() }));
        // Without hardware addresses the disk decides.
        for mac in [None, Some("02:00:00:00:00:01".to_owned())] {
            let bare = Holder { mac: None, ..holder() };
            assert!(bare.is(&Holder { mac: mac.clone(), boot: "x".into(), ..holder() }));
            assert!(!bare.is(&Holder { mac, boot: "x".into(), instance: "x".into(), ..holder() }));
        }
    }

    #[test]
    fn what_is_no_holder_and_what_one_says() {
        for value in ["", "{", "[]", "{\"host\": 1}"] {
            assert_eq!(Holder::parse(value), None);
        }
        assert_eq!(Holder::parse(&holder().value("10.240.1.0-24")), Some(holder()));
        let forged = Holder { host: "x\n2026-01-01 ERROR".into(), mac: None, ..holder() };
        assert_eq!(forged.name(), "x\\n2026-01-01 ERROR (no hardware address)");
    }
}
