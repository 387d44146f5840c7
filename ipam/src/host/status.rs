//! What STATUS says of this host in a network that spans hosts.

use std::net::IpAddr;

use cni_protocol::{Call, Code, Error};
use weft_state::lease::{HostLease, Taken, UNCONNECTED_ENV, agent_lives};
use weft_state::{data_dir, state_dir};

use super::{Host, LIMIT, PATIENCE, in_time, is_half_over, taken};
use crate::lease::{self, Claimant, Lease};
use crate::registry::{Registry, in_event_loop};

impl Host<'_> {
    /// Whether an ADD would have a lease, and what those who wait for one are to know.
    ///
    /// # Errors
    /// [`Code::LimitedConnectivity`] when the lease has ended, so that other hosts drop this one; [`Code::NotAvailable`] when there is no
    /// lease and etcd gives none, or no interface has the address that an ADD of the interface plugin needs.
    pub(crate) fn status(&self) -> Result<Option<HostLease>, Error> {
        let known = self.last_known(Code::LimitedConnectivity)?;
        let is_kept = agent_lives(&self.state_dir, self.network)?;
        let tried = self.tried();
        let lease = match self.on_file()? {
            Some(lease) if known.is_none() && (is_kept || !self.is_void(&lease, tried)?) => lease,
            _ => return self.would_lease(known),
        };
        self.check_goes_on(&lease, is_kept)?;
        if !is_kept && self.is_to_be_asked(&lease, tried) {
            self.would_keep()?;
        }
        if !is_kept && !lease.is_pinned() && is_half_over(&lease) {
            log::warn!(
                "network {}: the lease of {} ends in {} s and no weftd renews it",
                self.network,
                lease.key,
                lease.remaining().as_secs()
            );
        }
        Ok(Some(lease))
    }

    /// Whether an ADD could go on with a lease on file.
    fn check_goes_on(&self, lease: &HostLease, is_kept: bool) -> Result<(), Error> {
        // Where nobody knows how long it lasts, containers go on and an ADD renews it.
        if !lease.is_undated() || self.is_unused() {
            check_ended(lease, is_kept)?;
        }
        check_connected()
    }

    /// Whether an ADD would be given a lease by etcd, where that on file is not enough for it; the one that it would go on with where etcd
    /// does not answer.
    fn would_lease(&self, known: Option<Taken>) -> Result<Option<HostLease>, Error> {
        let ended = self.on_file()?.and_then(|lease| check_ended(&lease, false).err());
        let former = if known.is_none() { self.of_former_addresses()? } else { None };
        // An ADD has asked in vain a moment ago, and goes on with that.
        if let Some(former) = former.as_ref().filter(|_| !self.tried().is_old) {
            self.check_goes_on(former, false)?;
            return Ok(Some(former.clone()));
        }
        let unseen = |error: Error| match ended.filter(|_| error.code == Code::TryAgain && known.is_none()) {
            Some(ended) => ended.detail(error.msg),
            None => not_available(self.or_known(error, known, Code::LimitedConnectivity)),
        };
        let rehearsal = async {
            let mut registry = self.registry()?;
            match self.rehearse(&mut registry).await? {
                // Reading is not all that an ADD does.
                None => registry.rehearse().await.map(|()| None),
                bar => Ok(bar),
            }
        };
        match (in_event_loop(rehearsal), former) {
            (Err(error), Some(former)) if error.code == Code::TryAgain => {
                self.check_goes_on(&former, false).map_err(|bar| bar.detail(error.msg))?;
                Ok(Some(former))
            }
            (rehearsed, _) => rehearsed.map_err(unseen)?.map_or(Ok(()), told).map(|()| None),
        }
    }

    /// Whether an ADD would go on with the lease on file, which one has found wrong or would look at, by what etcd says now. What it does
    /// not say, and a missing or wrong configuration, keep no ADD from that.
    fn would_keep(&self) -> Result<(), Error> {
        self.note_question();
        let bar = match in_event_loop(in_time(PATIENCE, async { self.rehearse(&mut self.registry()?).await }))
        {
            Ok(Some(bar @ (Lease::Taken { .. } | Lease::Refused(_)))) => told(bar),
            Err(error) if error.code == Code::Exhausted => Err(not_available(error)),
            // What is good news is left to an ADD, which takes note of the other hosts, too.
            _ => return Ok(()),
        };
        self.doubt();
        bar
    }

    async fn rehearse(&self, registry: &mut Registry) -> Result<Option<Lease>, Error> {
        let before = HostLease::read(&self.data_dir, self.network)?;
        let others = self.others()?;
        let before = before.as_ref();
        let claimant = Claimant::by_plugin(before, self.may_leave(before, self.is_unused())?, &others);
        lease::rehearse(registry, &self.etcd, claimant).await
    }

    fn registry(&self) -> Result<Registry, Error> {
        Ok(Registry::new(&self.etcd)?.within(self.part(LIMIT)))
    }
}

/// What etcd said in place of a lease.
fn told(bar: Lease) -> Result<(), Error> {
    match bar {
        Lease::Taken { key, owner } => Err(taken(key, &owner).error(Code::LimitedConnectivity)),
        Lease::Unconfigured(error) | Lease::Refused(error) => Err(not_available(error)),
        Lease::Held(_) => Ok(()),
    }
}

fn not_available(error: Error) -> Error {
    match error.code {
        Code::LimitedConnectivity => error,
        _ => Error { code: Code::NotAvailable, ..error },
    }
}

/// Whether the lease still lasts: an agent has it on file as renewed a tenth of its time ago at most.
///
/// # Errors
/// [`Code::LimitedConnectivity`] when it has ended.
pub(super) fn check_ended(lease: &HostLease, is_kept: bool) -> Result<(), Error> {
    if !lease.has_ended() {
        return Ok(());
    }
    let key = &lease.key;
    let ended = |remedy| {
        format!("the lease of subnet {key} has ended, so other hosts have dropped this one: {remedy}")
    };
    let msg = if !is_kept {
        ended("start weftd, or any container, with etcd in reach")
    } else if lease.was_refused() {
        format!("etcd does not give this host its subnet {key} any more: weftd's /readyz says why")
    } else {
        ended("weftd could not renew it: see its /readyz")
    };
    Err(Error::new(Code::LimitedConnectivity, msg))
}

/// Whether the interface plugin that called could go on with the address that the host keeps.
fn check_connected() -> Result<(), Error> {
    let told = std::env::var(UNCONNECTED_ENV).ok();
    let Some(address) = told.and_then(|text| text.parse::<IpAddr>().ok()) else { return Ok(()) };
    let msg = format!(
        "ADD would fail: no interface has {address}, by which other hosts know this one, and nothing connects it with them yet: give an \
         interface that address, or set ipam.iface"
    );
    Err(Error::new(Code::NotAvailable, msg))
}

/// Whether the subnet is still this host's, as far as a living agent knows, for a network whose ranges were taken from subnet.env.
///
/// # Errors
/// [`Code::LimitedConnectivity`] when it is another host's, or the lease has ended.
pub(crate) fn check_subnet(call: &Call) -> Result<(), Error> {
    let data_dir = data_dir(call.conf.get("dataDir"))?;
    if !agent_lives(&state_dir(call.conf.get("stateDir"))?, &call.network)? {
        return Ok(());
    }
    if let Some(taken) = Taken::read(&data_dir, &call.network)? {
        return Err(taken.error(Code::LimitedConnectivity));
    }
    HostLease::read(&data_dir, &call.network)?.map_or(Ok(()), |lease| check_ended(&lease, true))
}
