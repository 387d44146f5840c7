//! One network: the loop that keeps the host as the store wants it.

mod lease;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Code, Error};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft::overlay::{Overlay, Rejected, Unreached};
use weft_state::Lock;
use weft_state::lease::{HostLease, Peers};

use super::conf::{Conf, NetworkConf};
use super::firewalls::Firewalls;
use super::heal::{Extent, Formers, heal};
use super::hosts::Hosts;
use super::kernel::{Cost, Kernel};
use super::log_once::{Outage, Rejections};
use super::metrics::Metrics;
use super::store::{News, Store};
use super::truth::{Refused, Truth};
use super::{LOOK, at, every};

/// How often peers are put on file at most: a thousand hosts that come at once are one or two files.
const SAVE: Duration = Duration::from_secs(1);

pub(super) struct Network {
    conf: NetworkConf,
    data_dir: PathBuf,
    state_dir: PathBuf,
    lease: Option<HostLease>,
    on_file: Option<HostLease>,
    formers: Formers,
    hosts: Hosts,
    kernel: Kernel,
    news: mpsc::Receiver<News>,
    truth: Rc<RefCell<Truth>>,
    metrics: Rc<Metrics>,
    /// Whether the hosts are what the store says, or the best that can be had while it is away. Until then nothing is
    /// removed: what an earlier agent made may be newer than what it had put on file.
    settled: bool,
    /// When peers.json is to be written, if it is not as the peers are.
    save_at: Option<Instant>,
    saved: Option<Instant>,
    outage: Outage,
    rejections: Rejections,
    firewalls: Firewalls,
    /// Hosts that their own records keep from being reached, by the last look that found it out.
    unreached: Vec<Unreached>,
    /// What could not be set up.
    damage: Option<String>,
    /// What could not be put on file, by the file.
    unfiled: BTreeMap<&'static str, String>,
    /// Of the two, what was logged last.
    said: Option<String>,
    _lock: Lock,
}

/// What the loop wakes up for.
enum Event {
    Store(Box<News>),
    KernelChanged,
    Timer,
    Save,
    Stop,
}

/// Why things are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Other hosts came, went or changed. What is done about it comes back as events, and then everything is looked at.
    Hosts,
    /// What ought to be there is another: differences are no damage.
    Desire,
    Look,
}

impl Network {
    /// Sets up what is known without the store, and starts to talk with it.
    ///
    /// # Errors
    /// [`Code::Io`] when what is on file cannot be read, [`Code::Kernel`] when the kernel gives no events.
    pub(super) fn start(
        (conf, lock): (NetworkConf, Lock),
        all: &Conf,
        truth: Rc<RefCell<Truth>>,
        metrics: Rc<Metrics>,
    ) -> Result<Self, Error> {
        let on_file = HostLease::read(&all.data_dir, &conf.name)?;
        let hosts = Hosts::new(Peers::read(&all.data_dir, &conf.name)?.unwrap_or_default());
        let (sender, news) = mpsc::channel(1024);
        let store = Store::new(&conf, all, on_file.clone(), sender);
        // Where it has ended, another host may have the subnet, and nobody is to come to it before etcd was asked.
        let is_void = |lease: &HostLease| lease.has_ended() || lease.prefix != conf.etcd.prefix;
        let lease = store.lease.clone().filter(|lease| !is_void(lease) || !store.is_unused());
        tokio::task::spawn_local(store.run());
        let mut network = Self {
            data_dir: all.data_dir.clone(),
            state_dir: all.state_dir.clone(),
            on_file,
            formers: Formers::default(),
            lease: None,
            hosts,
            kernel: Kernel::open()?,
            news,
            truth,
            metrics,
            settled: false,
            save_at: None,
            saved: None,
            outage: Outage::new(conf.name.clone()),
            rejections: Rejections::new(conf.name.clone()),
            firewalls: Firewalls::default(),
            unreached: Vec::new(),
            damage: None,
            unfiled: BTreeMap::new(),
            said: None,
            conf,
            _lock: lock,
        };
        if let Some(lease) = lease {
            network.take_up(lease)?;
        }
        Ok(network)
    }

    /// Looks after the network until told to stop. What was made stays.
    ///
    /// # Errors
    /// What leaves no way on: no events of the kernel, or nobody who talks with the store.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        let mut timer = every(LOOK);
        loop {
            let event = tokio::select! {
                news = self.news.recv() => Event::Store(Box::new(news.ok_or_else(store_ended)?)),
                changed = self.kernel.changed() => changed.map(|()| Event::KernelChanged)?,
                _ = timer.tick() => Event::Timer,
                () = at(self.save_at) => Event::Save,
                _ = stop.changed() => Event::Stop,
            };
            self.truth.borrow_mut().turned = std::time::Instant::now();
            match event {
                Event::Store(news) => self.learn(*news),
                Event::Timer if self.hosts.give_up() => {
                    self.save_soon();
                    self.sync(Cause::Desire);
                }
                Event::KernelChanged | Event::Timer => self.sync(Cause::Look),
                Event::Save => self.save(),
                Event::Stop => {
                    self.save();
                    return Ok(());
                }
            }
            self.outage.look(&self.truth.borrow().lease);
        }
    }

    /// Takes in what the store said, and what else it has said meanwhile, before anything is done about it: a thousand
    /// hosts that come at once are few syncs.
    fn learn(&mut self, first: News) {
        let mut all = vec![first];
        while let Ok(more) = self.news.try_recv() {
            all.push(more);
        }
        let is_of_hosts = all.iter().all(|news| matches!(news, News::Changed { .. }));
        if all.into_iter().fold(false, |changed, news| self.take(news) | changed) {
            self.sync(if is_of_hosts { Cause::Hosts } else { Cause::Desire });
        }
        self.truth.borrow_mut().settled = self.settled;
    }

    /// Whether anything ought to be different now.
    fn take(&mut self, news: News) -> bool {
        match &news {
            News::Leased(..) | News::Taken { .. } | News::Refused { .. } => self.hosts.can_return(true),
            News::Unconfigured { .. } | News::Failed(_) => self.hosts.can_return(false),
            News::Elsewhere(_) | News::Renewed(_) | News::Hosts(_) | News::Unknown | News::Changed { .. } => {
            }
        }
        if !matches!(news, News::Failed(_) | News::Elsewhere(_)) {
            self.outage.ends();
            self.truth.borrow_mut().store.answers();
        }
        match news {
            News::Elsewhere(stays) => self.elsewhere(stays),
            News::Leased(lease, _unused) => self.leased(lease),
            // What others wrote into the store is not to look like lines of the log.
            News::Taken { key, owner } => {
                self.taken(key, printable(&owner));
                false
            }
            News::Refused { why, unused } => {
                self.refused(Refused { why: why.msg, keeps: false }, unused.is_some());
                false
            }
            News::Unconfigured { why, keeps } => {
                self.refused(Refused { why: why.msg, keeps }, false);
                false
            }
            News::Renewed(lease) => {
                self.renewed(lease);
                false
            }
            News::Hosts(hosts) => {
                self.save_soon();
                self.hosts.replace(hosts, self.lease.as_ref()) | !std::mem::replace(&mut self.settled, true)
            }
            News::Unknown => !std::mem::replace(&mut self.settled, true),
            News::Changed { revision, records } => {
                self.save_soon();
                self.hosts.change(revision, records);
                true
            }
            News::Failed(cause) => {
                self.metrics.store_failed(self.conf.name.as_str());
                self.outage.fails(&cause);
                self.truth.borrow_mut().store.fails(cause);
                !std::mem::replace(&mut self.settled, true)
            }
        }
    }

    /// Whether something could be put on this file, or the file removed. When not, that is damage: it will be tried again.
    fn filed(&mut self, file: &'static str, outcome: Result<(), Error>) -> bool {
        let is_done = outcome.is_ok();
        match outcome {
            Ok(()) => self.unfiled.remove(file),
            Err(error) => self.unfiled.insert(file, error.msg),
        };
        self.judge(self.damage.clone());
        is_done
    }

    /// Compares everything in the kernel with what it ought to be, and corrects it.
    fn sync(&mut self, cause: Cause) {
        let Some(lease) = self.lease.as_ref().filter(|_| self.settled) else { return };
        let meter = Cost::meter();
        let (overlay, mut rejected) = match Overlay::new(lease, self.hosts.known()) {
            Ok(wanted) => wanted,
            Err(error) => return self.judge(Some(error.msg)),
        };
        let extent = if cause == Cause::Hosts && self.damage.is_none() { Extent::Way } else { Extent::All };
        let mut report = heal(&self.conf, (&self.state_dir, &self.data_dir), lease, &overlay, extent);
        let cost = meter();
        let network = self.conf.name.as_str();
        self.metrics.synced(network, cost.time);
        if cause == Cause::Look {
            for (object, count) in &report.healed {
                log::info!("network {network}: repaired {count} of kind {object}");
                self.metrics.healed(network, object, *count);
            }
        }
        self.kernel.watch(report.owned(&overlay), cost);
        if extent == Extent::All {
            self.firewalls.look(&self.conf, lease, &overlay);
        }
        if let Some(unreached) = report.unreached.take() {
            self.unreached = unreached;
        }
        rejected.extend(self.unreached.iter().map(Rejected::from));
        self.tell(overlay.peers(&self.unreached), &rejected);
        self.rejections.tell(&rejected);
        self.judge(report.damage());
    }

    fn tell(&self, peers: usize, rejected: &[Rejected]) {
        let mut truth = self.truth.borrow_mut();
        truth.peers = peers;
        truth.rejected.clear();
        for record in rejected {
            *truth.rejected.entry(record.kind).or_default() += 1;
        }
    }

    /// Says what is damaged when that changes, and when nothing is any more. `damage` is what could not be set up.
    fn judge(&mut self, damage: Option<String>) {
        self.damage = damage;
        let now = self.damage.clone().or_else(|| self.unfiled.values().next().cloned());
        let network = &self.conf.name;
        match (&now, &self.said) {
            (Some(now), said) if said.as_ref() != Some(now) => log::error!("network {network}: {now}"),
            (None, Some(_)) => log::info!("network {network}: everything could be set up again"),
            _ => {}
        }
        // Until the first look nothing is known to be right.
        if self.settled {
            self.truth.borrow_mut().damage.clone_from(&now);
        }
        self.said = now;
    }

    /// Has the peers put on file: at once, unless they just were.
    fn save_soon(&mut self) {
        let now = Instant::now();
        self.save_at.get_or_insert(self.saved.map_or(now, |saved| now.max(saved + SAVE)));
    }

    /// Puts the peers on file if they are not.
    fn save(&mut self) {
        if self.save_at.take().is_some() {
            self.saved = Some(Instant::now());
            let written = self.hosts.known().write(&self.data_dir, &self.conf.name);
            if !self.filed("peers.json", written) {
                self.save_soon();
            }
        }
    }
}

/// It ends only when this loop does, or by a panic.
fn store_ended() -> Error {
    Error::new(Code::Internal, "the task that talks with etcd has ended")
}
