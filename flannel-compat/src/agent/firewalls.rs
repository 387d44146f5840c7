//! Firewalls of others that drop what a network's containers send or get. Nothing of theirs is changed; what is in the way is logged, as nobody
//! may ask for STATUS. A host that came from flanneld has its rule of `FORWARD` until the next boot only.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cni_protocol::{Code, Deadline, Error};
use weft::firewalls::{Findings, Traffic, look};
use weft::overlay::{Overlay, exits};
use weft_net::nft::Nft;
use weft_net::{NetError, Netlink};
use weft_state::lease::HostLease;

use super::PATIENCE;
use super::conf::NetworkConf;
use super::heal::bridges;

/// There may be thousands of rules, and events of the kernel that come at any pace.
const PAUSE: Duration = Duration::from_secs(2);

/// What was said of them last.
#[derive(Default)]
pub(super) struct Firewalls {
    said: BTreeSet<String>,
    looked: Option<Instant>,
}

impl Firewalls {
    /// Looks at them unless it just did, and says what is new. That is no damage: they are their owner's.
    pub(super) fn look(&mut self, conf: &NetworkConf, lease: &HostLease, overlay: &Overlay) {
        if self.looked.is_some_and(|then| then.elapsed() < PAUSE) {
            return;
        }
        self.looked = Some(Instant::now());
        let network = &conf.name;
        let now = in_the_way(conf, lease, overlay).unwrap_or_else(|error| BTreeSet::from([error.msg]));
        now.difference(&self.said).for_each(|new| log::warn!("network {network}: {new}"));
        if now.is_empty() && !self.said.is_empty() {
            log::info!("network {network}: no firewall of others is in the way any more");
        }
        self.said = now;
    }
}

/// What is at bridges that are there: the first container makes its network's.
fn in_the_way(conf: &NetworkConf, lease: &HostLease, overlay: &Overlay) -> Result<BTreeSet<String>, Error> {
    let deadline = Deadline::after(PATIENCE);
    let failed = |error: NetError| Error::new(Code::Kernel, format!("look at firewalls of others: {error}"));
    let mut netlink = Netlink::open(deadline).map_err(failed)?;
    let bridges = bridges(&mut netlink, lease).map_err(failed)?;
    if bridges.is_empty() {
        return Ok(BTreeSet::new());
    }
    let exits = exits(&mut netlink, overlay).map_err(failed)?;
    let mut nft = Nft::open(deadline).map_err(failed)?;
    let mut found = BTreeSet::new();
    for (family, bridge) in bridges {
        let traffic = Traffic {
            bridge: &bridge.name,
            families: &[family],
            goes_out: !conf.internal,
            // What runtimes ask for is not told to the agent.
            has_ports: false,
            exits: &exits,
        };
        let Findings { obstacles, doubts, .. } = look(&mut nft, &traffic)?;
        found.extend(obstacles.into_iter().chain(doubts));
    }
    Ok(found)
}
