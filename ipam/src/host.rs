//! This host in a network that spans hosts, for a command of the plugin: its lease is on file. etcd is asked only
//! when the lease is missing, or when the other hosts have not been looked at for a while and no agent does that.

mod attempts;
mod on_file;
mod status;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Call, Code, Deadline, Error, NetworkName};
use serde_json::Value;
use weft_state::lease::{HostLease, Peers, Taken, agent_lives, since_1970};
use weft_state::{Lock, data_dir, state_dir};

use crate::conf::etcd::EtcdConf;
use crate::lease::{self, Claimant, Lease, PAUSE};
use crate::registry::{Registry, Snapshot, in_event_loop};
use crate::store::{self, Store};
use on_file::Glance;
pub(crate) use status::check_subnet;

/// How long an ADD waits for news of other hosts, which it can do without.
const PATIENCE: Duration = Duration::from_millis(200);
/// The part of the command's time in which etcd is asked again for what the command cannot go on without, for all calls together.
const SHARE: f32 = 0.25;
const LIMIT: f32 = 0.5;

const GOING_ON: &str = "going on with the lease of the addresses that this host had";

/// A network that spans hosts, as this host knows it.
pub(crate) struct Host<'c> {
    network: &'c NetworkName,
    etcd: EtcdConf,
    data_dir: PathBuf,
    state_dir: PathBuf,
    reservations: PathBuf,
    deadline: Deadline,
}

impl<'c> Host<'c> {
    /// `None` when the network's addresses are of this host alone: without the key `ipam.etcd`.
    ///
    /// # Errors
    /// As [`EtcdConf::parse`].
    pub(crate) fn of(call: &'c Call) -> Result<Option<Self>, Error> {
        let Some(ipam) = call.conf.get("ipam").and_then(Value::as_object) else { return Ok(None) };
        let Some(etcd) = EtcdConf::parse(ipam)? else { return Ok(None) };
        Ok(Some(Self {
            network: &call.network,
            etcd,
            data_dir: data_dir(call.conf.get("dataDir"))?,
            state_dir: state_dir(call.conf.get("stateDir"))?,
            reservations: crate::conf::reservations_dir(&call.conf)?,
            deadline: call.deadline,
        }))
    }

    /// The lease for an ADD that has taken this glance: that on file, with news of the other hosts where they are due; else one taken now.
    ///
    /// # Errors
    /// [`Code::TryAgain`] when there is none on file, or one that has ended or is in doubt with no container in it, and etcd cannot be
    /// reached; [`Code::Conflict`] when another host has the subnet; see [`lease::acquire`].
    pub(crate) fn lease(&self, seen: &Glance) -> Result<HostLease, Error> {
        let taken = self.last_known(Code::Conflict)?;
        if taken.is_none()
            && let Some(lease) = self.on_file()?
        {
            if !self.is_void(&lease, seen.tried)? {
                if self.is_due(&lease, seen.tried) && !agent_lives(&self.state_dir, self.network)? {
                    return self.refresh(lease);
                }
                return Ok(lease);
            }
            // It knows also of containers with addresses of other plugins, and leaves the subnet or stays.
            if agent_lives(&self.state_dir, self.network)? {
                status::check_ended(&lease, true).map_err(|error| Error { code: Code::TryAgain, ..error })?;
            }
        }
        let former = if taken.is_none() { self.of_former_addresses()? } else { None };
        match (self.acquire(taken, former.as_ref()), former) {
            (Err(error), Some(lease)) if error.code == Code::TryAgain => {
                log::warn!("network {}: {}; {GOING_ON}", self.network, error.msg);
                Ok(lease)
            }
            (outcome, _) => outcome,
        }
    }

    /// The lease, taken from etcd unless another ADD does so meanwhile, or has just had no answer: the one of former addresses does then.
    fn acquire(&self, taken: Option<Taken>, former: Option<&HostLease>) -> Result<HostLease, Error> {
        // Of several first ADDs one takes the lease, and the others find it on file: also those of another network with the same place
        // in etcd, which may not have it. No network's name begins with a dot.
        fs::create_dir_all(&self.data_dir).map_err(|error| {
            let remedy = "make it writable, or choose another dataDir";
            Error::new(
                Code::Io,
                format!("create {} for the lease: {error}: {remedy}", self.data_dir.display()),
            )
        })?;
        let until = self.part(SHARE);
        let lock = format!(".lease-{:x}.lock", weft_state::hash(&[&self.etcd.prefix]));
        let _lock = Lock::exclusive(&self.data_dir.join(lock), until)?;
        let (lease, tried) = (self.on_file()?, self.tried());
        if let Some(former) = former.filter(|_| lease.is_none() && !tried.is_old) {
            log::warn!("network {}: etcd gave no answer a moment ago; {GOING_ON}", self.network);
            return Ok(former.clone());
        }
        match (lease, taken) {
            (Some(lease), None) if !self.is_void(&lease, tried)? => Ok(lease),
            (None, None) if HostLease::read(&self.data_dir, self.network)?.is_none() => {
                self.take(until, self.is_unused(), true)
            }
            // Others give addresses of what is on file meanwhile, also where that is of other addresses or another place in etcd.
            (lease, taken) => {
                let store = self.hold_unused(until)?;
                // What is known is an answer, too, and whoever deletes a container waits for the store.
                let repeat = former.is_none() && lease.is_none() && taken.is_none();
                let outcome = self.take(until, store.is_some(), repeat);
                if former.is_some() && outcome.as_ref().is_err_and(|error| error.code == Code::TryAgain) {
                    self.note_attempt();
                }
                outcome.map_err(|error| self.or_known(error, taken, Code::Conflict))
            }
        }
    }

    fn part(&self, share: f32) -> Deadline {
        Deadline::after(self.deadline.remaining().mul_f32(share))
    }

    /// That another host has the subnet, by what was last known: somebody may have done something about it since, and nobody would
    /// tell.
    ///
    /// # Errors
    /// One with this code while the agent says so.
    fn last_known(&self, code: Code) -> Result<Option<Taken>, Error> {
        match Taken::read(&self.data_dir, self.network)? {
            Some(taken) if agent_lives(&self.state_dir, self.network)? => Err(taken.error(code)),
            taken => Ok(taken),
        }
    }

    // Not made a part of its caller, which would have room on its stack for the conversation with etcd in every ADD: seven
    // pages that the kernel fills with zeros.
    #[inline(never)]
    fn take(&self, until: Deadline, unused: bool, repeat: bool) -> Result<HostLease, Error> {
        let before = HostLease::read(&self.data_dir, self.network)?;
        let known = Peers::read(&self.data_dir, self.network)?.unwrap_or_default();
        let others = self.others()?;
        let (before, limit) = (before.as_ref(), self.part(LIMIT));
        let claimant = Claimant::by_plugin(before, self.may_leave(before, unused)?, &others);
        let attempt = async || {
            let mut registry = Registry::new(&self.etcd)?.within(limit);
            let lease = lease::acquire(&mut registry, &self.etcd, claimant).await?;
            let hosts =
                if matches!(lease, Lease::Held(_)) { registry.hosts().await? } else { Peers::default() };
            Ok::<_, Error>((lease, hosts))
        };
        let (lease, mut hosts) = in_event_loop(async {
            let mut said = String::new();
            loop {
                match attempt().await {
                    Err(error) if repeat && error.code == Code::TryAgain && until.remaining() > PAUSE => {
                        if said != error.msg {
                            log::warn!("{}: trying again", error.msg);
                            said = error.msg;
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    outcome => return outcome,
                }
            }
        })?;
        // With another subnet it is in another network than those were.
        if let (Lease::Held(now), Some(before)) = (&lease, before)
            && (&now.prefix, &now.key) == (&before.prefix, &before.key)
        {
            hosts = self.with_lost(hosts, &known, before, true);
        }
        self.put_on_file(lease, &hosts)
    }

    fn others(&self) -> Result<Vec<(PathBuf, HostLease)>, Error> {
        HostLease::others(&self.data_dir, self.network)
    }

    /// Whether a lease may be left, as no container needs it.
    ///
    /// # Errors
    /// [`Code::TryAgain`] beside an agent where that is the one that goes to another place in etcd.
    fn may_leave(&self, before: Option<&HostLease>, unused: bool) -> Result<bool, Error> {
        let prefix = &self.etcd.prefix;
        let Some(former) = before.filter(|lease| unused && lease.prefix != *prefix) else {
            return Ok(unused);
        };
        if !agent_lives(&self.state_dir, self.network)? {
            return Ok(true);
        }
        let msg = format!(
            "this host's subnet is still that in the network at {}, and weftd has not left it for one at {prefix}: its /readyz says why; \
             the configurations of network and weftd are to have the same etcd.prefix",
            former.prefix
        );
        Err(Error::new(Code::TryAgain, msg))
    }

    /// Whether no container of this network is on this host.
    fn is_unused(&self) -> bool {
        store::glance(&self.reservations, self.network).is_ok_and(|held| held.is_empty())
    }

    /// The store, if nothing is reserved in it: while it is held, nobody reserves an address of a subnet that is about to change.
    fn hold_unused(&self, until: Deadline) -> Result<Option<Store>, Error> {
        if !self.is_unused() {
            return Ok(None);
        }
        let store = Store::create(&self.reservations, self.network, until)?;
        Ok(self.is_unused().then_some(store))
    }

    /// Looks at the network, and renews the lease when half of its time is over. What etcd fails to say, or the disk to
    /// take, is left for the next ADD.
    ///
    /// # Errors
    /// [`Code::Conflict`] when another host has the subnet or the public address; [`Code::InvalidConfig`] when the
    /// network was configured anew and does not have the subnet any more.
    fn refresh(&self, lease: HostLease) -> Result<HostLease, Error> {
        self.note_attempt();
        match in_event_loop(in_time(self.patience(&lease), self.look(&lease))) {
            Ok((kept, hosts, Verdict::Right)) => Ok(self.go_on(kept, &hosts)),
            Ok((kept, hosts, verdict)) => self.settle(kept, &hosts, verdict == Verdict::Lost),
            Err(error) => {
                log::warn!("network {}: {}; going on with what is known", self.network, error.msg);
                Ok(lease)
            }
        }
    }

    /// How long an ADD waits for etcd with a lease on file. Nobody else renews the lease, and where it ends the subnet is given away: then a
    /// slow etcd is waited for. A pinned subnet never is.
    fn patience(&self, lease: &HostLease) -> Duration {
        if is_half_over(lease) && !lease.is_pinned() { self.part(SHARE).remaining() } else { PATIENCE }
    }

    /// The lease, renewed if it is time, the other hosts, and whether the lease is right.
    async fn look(&self, lease: &HostLease) -> Result<(HostLease, Peers, Verdict), Error> {
        // What is on file later may be from a later look.
        let before = Peers::read(&self.data_dir, self.network)?.unwrap_or_default();
        let mut registry = Registry::new(&self.etcd)?;
        let snapshot = registry.snapshot(&lease::published(lease)).await?;
        let is_ours = lease::stands(lease, &snapshot) && lease::elder(&snapshot.hosts, &lease.key).is_none();
        let Snapshot { config, hosts, .. } = snapshot;
        let kept = if !is_ours {
            None
        } else if is_half_over(lease) {
            lease::keep(&mut registry, lease).await?
        } else {
            Some(lease.clone())
        };
        let is_as_leased = || config.as_ref().ok() == Some(&lease.config) && lease.ttl == self.etcd.ttl;
        let is_misfit = |text: &String| {
            lease::parse_config(&lease.prefix, text).is_ok_and(|config| !lease::fits(&config, &lease.key))
        };
        let verdict = if kept.is_none() || config.as_ref().is_ok_and(is_misfit) {
            Verdict::Lost
        } else if is_as_leased() && !lease::is_agents(lease) {
            Verdict::Right
        } else {
            Verdict::Outdated
        };
        let hosts = self.with_lost(hosts, &before, lease, config.is_ok());
        Ok((kept.unwrap_or_else(|| lease.clone()), hosts, verdict))
    }

    /// Hosts with those that etcd has lost since those of `before` were read. Each puts its record back with its next ADD, once the network
    /// has a configuration. It may take as long as its lease would have lasted.
    fn with_lost(&self, hosts: Peers, before: &Peers, lease: &HostLease, is_configured: bool) -> Peers {
        let mut hosts = hosts.after(before, Some(lease));
        let Some(since) = hosts.lost else { return hosts };
        let now = since_1970().as_secs();
        // What is of the future was noted by a clock that was wrong.
        if !is_configured || since > now {
            hosts.lost = Some(now);
        } else if now - since >= self.etcd.ttl {
            hosts.give_up();
        }
        hosts
    }

    /// Takes what is this host's by now, in place of a lease that is not right any more. Only of one that is lost another subnet will do.
    fn settle(&self, kept: HostLease, hosts: &Peers, is_lost: bool) -> Result<HostLease, Error> {
        // The next ADD looks again, unless this one finds that all can stay: it may be killed, or there may be something to do for a person.
        if is_lost {
            self.doubt();
        } else {
            self.note_interest();
        }
        let store = if is_lost { self.hold_unused(self.part(LIMIT))? } else { None };
        if let Some(other) = self.on_file()?.filter(|other| other.key != kept.key) {
            return Ok(other);
        }
        let others = self.others()?;
        let (before, unused) = (Some(&kept), store.is_some());
        let is_unclaimed = hosts.records.get(&kept.key).is_none_or(|record| *record == kept.value);
        let claimant = Claimant::by_plugin(before, unused, &others);
        // To find a subnet is no news that an ADD can do without, and a first container waits for what others need not find out.
        let patience = if self.is_unused() { self.part(SHARE).remaining() } else { self.patience(&kept) };
        let taken = in_event_loop(in_time(patience, async {
            lease::acquire(&mut Registry::new(&self.etcd)?, &self.etcd, claimant).await
        }));
        let (kept, why) = match taken {
            Ok(Lease::Held(lease)) if lease.key == kept.key => (lease, None),
            // A missing or wrong configuration is no reason to leave the host's network, unless another host has the subnet.
            Ok(Lease::Unconfigured(error)) if !unused || is_unclaimed => (kept, Some(error)),
            Err(error) if error.code == Code::InvalidConfig || store.is_none() => (kept, Some(error)),
            // The subnet may be another one already.
            taken => return self.put_on_file(taken?, hosts),
        };
        if let Some(error) = &why {
            log::warn!("network {}: {}; going on with what is known", self.network, error.msg);
        }
        // Without an answer it stays in doubt, and as it is on file. One that is not lost may have been renewed.
        if is_lost && why.is_some_and(|error| error.code == Code::TryAgain) {
            self.note_attempt();
            return Ok(kept);
        }
        Ok(self.go_on(kept, hosts))
    }

    /// Goes on with the lease as it is, which is right, or as right as it can be. What the disk does not take is left for the next ADD.
    fn go_on(&self, kept: HostLease, hosts: &Peers) -> HostLease {
        let put = self.put_on_file(Lease::Held(kept.clone()), hosts);
        if let Err(error) = &put {
            log::warn!("network {}: {}; going on without", self.network, error.msg);
        }
        // Otherwise the next look is due by what was put.
        if put.is_err() || is_half_over(&kept) {
            self.trust();
        }
        kept
    }

    fn put_on_file(&self, lease: Lease, hosts: &Peers) -> Result<HostLease, Error> {
        match lease {
            Lease::Held(lease) => {
                hosts.write(&self.data_dir, self.network)?;
                lease.write(&self.data_dir, self.network)?;
                Taken::forget(&self.data_dir, self.network)?;
                Ok(lease)
            }
            Lease::Taken { key, owner } => {
                let taken = taken(key, &owner);
                taken.write(&self.data_dir, self.network)?;
                Err(taken.error(Code::Conflict))
            }
            Lease::Unconfigured(error) | Lease::Refused(error) => Err(error),
        }
    }
}

/// What etcd says of the lease on file.
#[derive(PartialEq, Eq)]
enum Verdict {
    Right,
    /// The subnet is this host's. Its time or the network's configuration have changed, or others are to hear an agent, of which there is
    /// none.
    Outdated,
    /// Its record or its address have changed, another host's record goes before its own, the network has the subnet no more, or somebody
    /// has pinned the record or does so no more.
    Lost,
}

async fn in_time<T>(time: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = format!("look at the network: etcd gave no answer within {time:?}");
    tokio::time::timeout(time, work).await.unwrap_or_else(|_elapsed| Err(Error::new(Code::TryAgain, late)))
}

/// At once where an earlier version has a pinned subnet on file, without a time.
fn is_half_over(lease: &HostLease) -> bool {
    lease.remaining() <= Duration::from_secs(lease.ttl) / 2
}

/// What others wrote into the store is not to look like lines of the log.
fn taken(key: String, owner: &str) -> Taken {
    Taken { key, owner: printable(owner), since: since_1970().as_secs() }
}
