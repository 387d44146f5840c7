//! Notices when something that is the agent's changes in the kernel.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use cni_protocol::{Code, Error};
use ipnetwork::IpNetwork;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use weft::suspects::Suspects;
use weft_net::events::{Event, Events};
use weft_net::nft::{TABLE, Table};
use weft_net::{NetError, NlResult};
use weft_state::worked;

use super::{LOOK, at};

/// How long to wait for what comes along with a first change: a link that goes takes routes and neighbours with it.
const SETTLE: Duration = Duration::from_millis(50);
/// And at most, also where looking is slow.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// How soon to look again where a look was in vain.
const AGAIN: Duration = Duration::from_millis(500);

/// What a network has in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owned {
    /// Names and indices of its devices and of those that these stand on. A link that is made again has another index.
    pub(super) names: HashSet<String>,
    pub(super) indices: HashSet<u32>,
    /// Links of which only addresses matter, and whether they forward: containers' coming and going changes the rest of a bridge.
    pub(super) bridges: HashSet<u32>,
    /// Routes into these are its own.
    pub(super) prefixes: Vec<IpNetwork>,
    /// Host ends of containers, and the rules for frames on bridges, which each container's coming and going changes.
    pub(super) containers: bool,
    /// Something could not be set up: whatever changes may be what it waits for.
    pub(super) incomplete: bool,
}

impl Owned {
    fn has(&self, event: &Event) -> bool {
        self.incomplete || self.has_object(event)
    }

    fn has_object(&self, event: &Event) -> bool {
        match event {
            Event::Link { index, name } => self.indices.contains(index) || self.names.contains(name),
            Event::Address { index } => self.indices.contains(index) || self.bridges.contains(index),
            Event::Neighbour { index } => self.indices.contains(index),
            Event::Route { destination, index } => {
                index.is_some_and(|index| self.indices.contains(&index))
                    || destination.is_some_and(|ip| self.prefixes.iter().any(|prefix| prefix.contains(ip)))
            }
            Event::Table(table, name) | Event::Elements(table, name, _) => {
                name == TABLE && (*table == Table::Inet || self.containers)
            }
            Event::Forwarding { index: Some(index) } => {
                self.indices.contains(index) || self.bridges.contains(index)
            }
            Event::Forwarding { index: None } | Event::Lost => true,
        }
    }
}

/// Of which containers something may be missing.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Elements that were taken out of rules.
    pub(super) elements: Suspects,
    /// What they are attached by.
    pub(super) ports: Suspects,
}

impl Suspicion {
    pub(super) fn of_all() -> Self {
        Self { elements: Suspects::All, ports: Suspects::All }
    }

    /// Those of them at whom somebody is at work.
    pub(super) fn busy(&self, state_dir: &Path) -> Self {
        Self { elements: self.elements.busy(state_dir), ports: self.ports.busy(state_dir) }
    }

    fn is_nobody(&self) -> bool {
        self.elements.is_nobody() && self.ports.is_nobody()
    }

    /// Whether an event is about what is owned; of whom something may be missing after it is noted.
    fn note(&mut self, owned: &Owned, event: &Event) -> bool {
        let is_owned = owned.has(event);
        match event {
            Event::Lost => *self = Self::of_all(),
            Event::Elements(_, _, comments) if is_owned => self.elements.add_owners(comments),
            Event::Link { name, .. } if owned.containers => {
                let is_host_end = self.ports.add_host_end(name);
                if is_owned && !is_host_end {
                    self.ports = Suspects::All;
                }
                return is_owned || is_host_end;
            }
            Event::Address { .. } if is_owned => self.ports = Suspects::All,
            _ => {}
        }
        is_owned
    }
}

/// What a look at all of a network's objects costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Of that, what was work: on a busy machine most of it is waiting for a turn.
    pub(super) work: Duration,
}

impl Cost {
    /// Begins to measure: the result tells what it has cost since.
    pub(super) fn meter() -> impl Fn() -> Self {
        let (began, before) = (std::time::Instant::now(), worked());
        move || Self { time: began.elapsed(), work: worked().saturating_sub(before) }
    }

    /// How long to wait before the next look: so long that the agent takes little of a processor, and has as much time for other
    /// things. So the agent's own changes, which come back as events too, cost one more look that finds nothing to do; and whoever
    /// keeps changing something is answered at that pace.
    fn pause(self) -> Duration {
        (self.work * 20).max(self.time).clamp(SETTLE, SETTLE_MAX)
    }
}

/// Waits for changes of one network's objects.
pub(super) struct Kernel {
    interfaces: AsyncFd<Events>,
    tables: AsyncFd<Events>,
    owned: Owned,
    suspicion: Suspicion,
    /// When to report a change that was seen.
    due: Option<Instant>,
    settle: Duration,
    /// How long to wait before what was looked at in vain is looked at again.
    patience: Duration,
}

impl Kernel {
    /// # Errors
    /// [`Code::Kernel`] when the kernel gives no events.
    pub(super) fn open() -> Result<Self, Error> {
        let open = || {
            Ok(Self {
                interfaces: asynchronous(Events::of_interfaces()?)?,
                tables: asynchronous(Events::of_tables()?)?,
                owned: Owned::default(),
                // What happened before.
                suspicion: Suspicion::of_all(),
                due: None,
                settle: SETTLE,
                patience: AGAIN,
            })
        };
        open().map_err(|error: NetError| {
            Error::new(
                Code::Kernel,
                format!("ask the kernel for events: {error}: is netlink there, is this root?"),
            )
        })
    }

    /// From now on, changes of these are reported, after a pause that follows from what it cost to compare all of them.
    pub(super) fn watch(&mut self, owned: Owned, cost: Cost) {
        self.owned = owned;
        self.settle = cost.pause();
    }

    /// Of whom something may be missing since this was asked before.
    pub(super) fn take_suspicion(&mut self) -> Suspicion {
        std::mem::take(&mut self.suspicion)
    }

    /// Has these looked at again: what somebody is at work on, of whose end the kernel does not tell, and what could not be put right. That
    /// is soon, and later and later where it was in vain, so that a command that hangs costs little.
    pub(super) fn come_back_to(&mut self, more: Suspicion) {
        if more.is_nobody() {
            self.patience = AGAIN;
            return;
        }
        self.look_by(Instant::now() + self.settle.max(self.patience));
        self.patience = (self.patience * 2).min(LOOK);
        self.suspicion.elements.extend(more.elements);
        self.suspicion.ports.extend(more.ports);
    }

    fn look_by(&mut self, time: Instant) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }

    /// Returns once something has changed and the events that came along were taken. May be dropped and called again.
    ///
    /// # Errors
    /// [`Code::Kernel`] when events cannot be read.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        let broken = |error: NetError| Error::new(Code::Kernel, format!("read the kernel's events: {error}"));
        loop {
            let events = tokio::select! {
                () = at(self.due) => {
                    self.due = None;
                    return Ok(());
                }
                events = taken(&mut self.interfaces) => events.map_err(broken)?,
                events = taken(&mut self.tables) => events.map_err(broken)?,
            };
            // Each is to be noted.
            if events.iter().filter(|event| self.suspicion.note(&self.owned, event)).count() > 0 {
                self.look_by(Instant::now() + self.settle);
            }
        }
    }
}

fn asynchronous(events: Events) -> NlResult<AsyncFd<Events>> {
    #[expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]
    // SAFETY: the descriptor is that of a socket which `Events` owns and keeps until it is dropped.
    let registered = unsafe { AsyncFd::register(events) };
    registered.map_err(|error| std::io::Error::from(error).into())
}

/// The events that are there, once there are any.
async fn taken(events: &mut AsyncFd<Events>) -> NlResult<Vec<Event>> {
    let mut ready = events.readable_mut().await?;
    let mut taken = Vec::new();
    // Bounded, so that a flood of events keeps nothing else from its turn.
    for _ in 0..1024 {
        match ready.get_inner_mut().take()? {
            Some(found) => taken.extend(found),
            None => {
                ready.clear_ready();
                break;
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use cni_protocol::{Deadline, MacAddr};
    use weft_net::Netlink;

    use super::*;

    #[test]
    fn only_what_is_owned_counts() {
        let owned = Owned {
            names: HashSet::from(["weft.1".to_owned()]),
            indices: HashSet::from([7]),
            bridges: HashSet::from([8]),
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
            containers: false,
            incomplete: false,
        };
        let route = |destination: &str, index| Event::Route { destination: destination.parse().ok(), index };
        for (event, expected) in [
            (Event::Link { index: 9, name: "weft.1".into() }, true),
            (Event::Link { index: 7, name: "renamed".into() }, true),
            (Event::Link { index: 9, name: "veth1".into() }, false),
            (Event::Address { index: 7 }, true),
            (Event::Neighbour { index: 9 }, false),
            (route("10.1.2.0", Some(9)), true),
            (route("10.2.2.0", Some(9)), false),
            (route("10.2.2.0", Some(7)), true),
            (Event::Route { destination: None, index: None }, false),
            (Event::Address { index: 8 }, true),
            (Event::Neighbour { index: 8 }, false),
            (Event::Forwarding { index: None }, true),
            (Event::Forwarding { index: Some(7) }, true),
            (Event::Forwarding { index: Some(8) }, true),
            (Event::Forwarding { index: Some(9) }, false),
            (Event::Table(Table::Inet, "weft".into()), true),
            (Event::Table(Table::Bridge, "weft".into()), false),
            (Event::Table(Table::Inet, "docker".into()), false),
            (Event::Lost, true),
        ] {
            assert_eq!(owned.has(&event), expected, "{event:?}");
        }
        let of_bridges = Owned { containers: true, ..Owned::default() };
        assert!(of_bridges.has(&Event::Table(Table::Bridge, "weft".into())));
        assert!(Owned { incomplete: true, ..owned }.has(&Event::Address { index: 9 }));
    }

    #[test]
    fn looks_keep_a_distance_by_their_work_and_not_by_waiting_for_it() {
        for (time, work, pause) in
            [(1, 1, 50), (6, 6, 120), (65, 3, 65), (400, 10, 400), (70, 70, 1000), (3000, 3, 1000)]
        {
            let [time, work, pause] = [time, work, pause].map(Duration::from_millis);
            assert_eq!(Cost { time, work }.pause(), pause, "{time:?} {work:?}");
        }
    }

    #[test]
    fn a_change_is_reported_once_and_others_are_not() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kernel = Kernel::open().unwrap();
            kernel.watch(
                Owned { names: HashSet::from(["mine".to_owned()]), ..Owned::default() },
                Cost { time: Duration::ZERO, work: Duration::ZERO },
            );
            let mut netlink = Netlink::open(Deadline::after(Duration::from_secs(5))).unwrap();
            let mut bridge = |name: &str| {
                netlink.add_bridge(name, MacAddr::from([2, 0, 0, 0, 0, 1]), None).unwrap();
                netlink.delete_link(name).unwrap();
            };
            let short = Duration::from_millis(300);
            bridge("other");
            assert!(tokio::time::timeout(short, kernel.changed()).await.is_err());
            bridge("mine");
            let long = Duration::from_secs(2);
            tokio::time::timeout(long, kernel.changed()).await.unwrap().unwrap();
            assert!(tokio::time::timeout(short, kernel.changed()).await.is_err());
        });
    }
    /// Of the end of whatever is at work there is no event.
    #[test]
    fn containers_at_which_somebody_is_at_work_are_looked_at_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kernel = Kernel::open().unwrap();
            kernel.take_suspicion();
            kernel.come_back_to(Suspicion::default());
            let time = Duration::from_secs(1);
            assert!(tokio::time::timeout(time, kernel.changed()).await.is_err());
            let mut busy = Suspicion::default();
            busy.ports.add_host_end("weft0123456789a");
            kernel.come_back_to(busy);
            tokio::time::timeout(time, kernel.changed()).await.unwrap().unwrap();
            assert!(kernel.take_suspicion().ports.has("0123456789a"));
            // In vain, again and again; what happens meanwhile is looked at in its time.
            for _ in 0..10 {
                kernel.come_back_to(Suspicion::of_all());
                kernel.due = None;
            }
            kernel.come_back_to(Suspicion::of_all());
            let due = kernel.due.expect("it is looked at again");
            assert!(due > Instant::now() + LOOK / 2 && due <= Instant::now() + LOOK);
            kernel.look_by(Instant::now() + SETTLE);
            kernel.look_by(due);
            tokio::time::timeout(time, kernel.changed()).await.unwrap().unwrap();
        });
    }
}
