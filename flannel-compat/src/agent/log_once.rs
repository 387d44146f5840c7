//! Lines that are logged once, however often their cause is met.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cni_protocol::NetworkName;
use cni_protocol::logging::printable;
use weft::overlay::Rejected;

use super::truth::Held;

/// How often an outage that goes on is spoken of.
const REMINDER: Duration = Duration::from_secs(60);
/// Ten thousand bad records are not ten thousand lines: so many are named within [`REMINDER`].
const LINES: usize = 20;
/// The longest part of a reason that is logged, in characters.
const LENGTH: usize = 200;

/// An outage of etcd: one line when it begins, one when it ends, one now and then, and one when the host's lease ends in it.
pub(super) struct Outage {
    network: NetworkName,
    now: Option<Current>,
}

struct Current {
    since: Instant,
    said: Instant,
    /// The cause that was said: another one is worth another line, but a third is not.
    causes: BTreeSet<String>,
    failures: u32,
    /// Whether it was said that the lease has ended.
    is_end_said: bool,
}

impl Outage {
    pub(super) fn new(network: NetworkName) -> Self {
        Self { network, now: None }
    }

    /// etcd did not answer.
    pub(super) fn fails(&mut self, cause: &str) {
        let network = &self.network;
        let now = Instant::now();
        let Some(outage) = &mut self.now else {
            log::warn!("network {network}: etcd: {cause}: the host goes on with what it knows");
            let causes = BTreeSet::from([cause.to_owned()]);
            self.now = Some(Current { since: now, said: now, causes, failures: 1, is_end_said: false });
            return;
        };
        outage.failures += 1;
        let another = outage.causes.len() < 3 && outage.causes.insert(cause.to_owned());
        if another || outage.said.elapsed() >= REMINDER {
            outage.said = now;
            let (failures, seconds) = (outage.failures, outage.since.elapsed().as_secs());
            log::warn!("network {network}: etcd: {cause}: {failures} failures in {seconds} s");
        }
    }

    /// Says that the lease has ended, if it has.
    pub(super) fn look(&mut self, lease: &Held) {
        let (Some(outage), Held::Lease(lease)) = (&mut self.now, lease) else { return };
        if lease.has_ended() && !std::mem::replace(&mut outage.is_end_said, true) {
            log::error!(
                "network {}: the lease of {} has ended, so other hosts drop this one, and another one may get its subnet: see to etcd",
                self.network,
                lease.key
            );
        }
    }

    /// etcd answered.
    pub(super) fn ends(&mut self) {
        if let Some(outage) = self.now.take() {
            let (failures, seconds) = (outage.failures, outage.since.elapsed().as_secs());
            log::info!("network {}: etcd is back after {seconds} s and {failures} failures", self.network);
        }
    }
}

/// Records that are rejected: one line each, until they are gone and come again.
pub(super) struct Rejections {
    network: NetworkName,
    said: BTreeSet<(String, String)>,
    /// How many more may be named, since when.
    budget: (usize, Instant),
}

impl Rejections {
    pub(super) fn new(network: NetworkName) -> Self {
        Self { network, said: BTreeSet::new(), budget: (LINES, Instant::now()) }
    }

    pub(super) fn tell(&mut self, rejected: &[Rejected]) {
        let now: BTreeSet<(String, String)> = rejected
            .iter()
            .map(|record| (record.key.clone(), format!("{}: {}", record.kind, record.reason)))
            .collect();
        if self.budget.1.elapsed() >= REMINDER {
            self.budget = (LINES, Instant::now());
        }
        let mut left = self.budget.0;
        for (key, reason) in now.difference(&self.said) {
            if left == 0 {
                break;
            }
            left -= 1;
            // Anybody may have written it: it is not to look like lines of the log, and not to fill it.
            let reason: String = printable(reason).chars().take(LENGTH).collect();
            log::warn!("network {}: record {key:?} is passed over: {reason}", self.network);
        }
        if left == 0 && self.budget.0 > 0 {
            log::warn!("network {}: more records are passed over: weftctl status lists them", self.network);
        }
        self.budget.0 = left;
        self.said = now;
    }
}
