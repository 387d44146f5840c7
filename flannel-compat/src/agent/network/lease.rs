//! What becomes of this host's lease, by what the store said of it.

use cni_protocol::Error;
use weft_state::lease::{HostLease, Peers, Taken, since_1970};

use super::Network;
use crate::agent::hosts::Hosts;
use crate::agent::subnet_env;
use crate::agent::truth::{Held, Refused};

/// A lease that ends is on file as renewed so long ago at most: for whoever looks at it without the agent.
const LEASE_AGE: u64 = 60;

impl Network {
    /// Goes on with a lease that this host had before.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(super) fn take_up(&mut self, lease: HostLease) -> Result<(), Error> {
        let taken = Taken::read(&self.data_dir, &self.conf.name)?;
        log::info!("network {}: subnet {} was leased by this host before", self.conf.name, lease.key);
        self.lease = Some(lease.clone());
        self.truth.borrow_mut().lease = match taken {
            Some(Taken { owner, .. }) => Held::Taken { lease, owner },
            None => Held::Lease(lease),
        };
        Ok(())
    }

    /// The lease is at another place in etcd than is configured: it stays while containers have addresses of it, also those that come
    /// when it was left already, and is left without. Whether anything ought to be different now.
    pub(super) fn elsewhere(&mut self, stays: Option<(HostLease, Error)>) -> bool {
        let (lease, why) = stays.map(|(lease, why)| (lease, why.msg)).unzip();
        if let Some(why) = why.as_ref().filter(|why| self.truth.borrow().elsewhere.as_ref() != Some(why)) {
            log::error!("network {}: {why}", self.conf.name);
        }
        self.truth.borrow_mut().elsewhere = why;
        let is_left = |known: &mut HostLease| known.prefix != self.conf.etcd.prefix;
        match lease {
            Some(lease) if self.lease.is_none() => {
                // What it was refused was a lease at the other place.
                self.truth.borrow_mut().refused = None;
                let outcome = self.take_up(lease);
                outcome.inspect_err(|error| log::error!("network {}: {}", self.conf.name, error.msg)).is_ok()
            }
            None if self.lease.take_if(is_left).is_some() => {
                self.filed("taken.json", Taken::forget(&self.data_dir, &self.conf.name));
                let mut truth = self.truth.borrow_mut();
                (truth.lease, truth.refused) = (Held::Nothing, None);
                false
            }
            _ => false,
        }
    }

    /// The lease is this host's. Whether anything ought to be different now.
    pub(super) fn leased(&mut self, lease: HostLease) -> bool {
        let same = |known: &HostLease| {
            (&known.key, &known.value, &known.config) == (&lease.key, &lease.value, &lease.config)
        };
        let changed = !self.lease.as_ref().is_some_and(same);
        // From now on the loop writes it, and tells of that.
        self.unfiled.remove("subnet.env");
        let forget = self.unfiled.contains_key("taken.json");
        match self.lease.as_ref().or(self.on_file.as_ref()) {
            // Its hosts are of another network, maybe in another etcd. Whoever is killed here reads those of the former one anew.
            Some(known) if known.prefix != lease.prefix => {
                self.hosts = Hosts::new(Peers::default());
                self.save_soon();
                self.save();
            }
            Some(known) if known.key != lease.key => self.hosts.moves(&known.key, &lease.key),
            Some(known) if known.has_ended() => self.hosts.has_ended(&known.key),
            _ => {}
        }
        let was = std::mem::replace(&mut self.truth.borrow_mut().lease, Held::Lease(lease.clone()));
        if !matches!(&was, Held::Lease(before) if before.key == lease.key && before.lease_id == lease.lease_id)
        {
            log::info!("network {}: subnet {} is leased", self.conf.name, lease.key);
        }
        self.truth.borrow_mut().refused = None;
        if forget || !matches!(was, Held::Lease(_)) {
            self.filed("taken.json", Taken::forget(&self.data_dir, &self.conf.name));
        }
        self.formers.retire(&self.conf.name, self.on_file.take_if(|known| !same(known)), &lease);
        self.file(&lease);
        self.lease = Some(lease);
        changed
    }

    /// The lease was renewed, although etcd would not give it to this host any more, or this host has left it without having one at the
    /// new place yet. What is another host's, or off the file, stays so.
    pub(super) fn renewed(&mut self, lease: HostLease) {
        let is_on_file = |known: &HostLease| {
            (&known.prefix, &known.key) == (&lease.prefix, &lease.key) && !known.was_refused()
        };
        if lease.prefix != self.conf.etcd.prefix && self.lease.is_none() {
            if self.on_file.as_ref().is_some_and(is_on_file) {
                self.file(&lease);
            }
            return;
        }
        let is_held = matches!(&self.truth.borrow().lease, Held::Lease(known) if known.key == lease.key);
        if is_held && self.lease.is_some() {
            self.truth.borrow_mut().lease = Held::Lease(lease.clone());
            self.file(&lease);
            self.lease = Some(lease);
        }
    }

    /// Puts a lease on file, unless it is there, renewed not long before, as far as whoever reads it can tell.
    fn file(&mut self, lease: &HostLease) {
        let is_there = self.on_file.as_ref().is_some_and(|known| {
            let since = lease.renewed.abs_diff(known.renewed);
            *lease == HostLease { renewed: lease.renewed, ..known.clone() }
                && !known.is_undated()
                && (lease.is_pinned() || since < LEASE_AGE.min(lease.ttl / 10))
        });
        if (!is_there || self.unfiled.contains_key("lease.json"))
            && self.filed("lease.json", lease.write(&self.data_dir, &self.conf.name))
        {
            self.on_file = Some(lease.clone());
        }
    }

    /// Another host has the subnet in which containers of this host may live. Nothing is changed, everybody is told.
    pub(super) fn taken(&mut self, key: String, owner: String) {
        let Some(lease) = self.lease.clone().or_else(|| self.on_file.clone()) else { return };
        let held = Held::Taken { lease, owner: owner.clone() };
        self.truth.borrow_mut().refused = None;
        let is_known = std::mem::replace(&mut self.truth.borrow_mut().lease, held.clone()) == held;
        if !is_known {
            log::error!(
                "network {}: subnet {key} of this host belongs to {owner} now: its containers are cut off: {}",
                self.conf.name,
                Taken::REMEDY
            );
        }
        if !is_known || self.unfiled.contains_key("taken.json") {
            let since = since_1970().as_secs();
            self.filed("taken.json", Taken { key, owner, since }.write(&self.data_dir, &self.conf.name));
        }
    }

    /// There is no lease until a person has done something. What was leased before is gone, unless containers live in it.
    pub(super) fn refused(&mut self, refused: Refused, unused: bool) {
        if unused {
            self.lease = None;
            self.truth.borrow_mut().lease = Held::Nothing;
            // All may be there since before etcd could be asked, and nobody is to come by them now.
            self.filed("subnet.env", subnet_env::remove(&self.conf.subnet_file));
            let ended = self.on_file.as_ref().filter(|lease| !lease.has_ended()).map(HostLease::ended);
            if let Some(ended) = ended
                && self.filed("lease.json", ended.write(&self.data_dir, &self.conf.name))
            {
                self.on_file = Some(ended);
            }
            // Last: it keeps containers away, too.
            self.filed("taken.json", Taken::forget(&self.data_dir, &self.conf.name));
        }
        // Nothing is to be set up then.
        self.settled |= self.lease.is_none();
        let mut truth = self.truth.borrow_mut();
        if truth.refused.as_ref().is_none_or(|known| known.why != refused.why) {
            log::error!("network {}: {}", self.conf.name, refused.why);
        }
        truth.refused = Some(refused);
    }
}
