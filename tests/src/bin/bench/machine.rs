//! Hosts and containers for the benchmark: network namespaces, all on one machine.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use weft_tests::NetNs;

use crate::process;

/// Where hosts keep their plugins' state.
const STATE: &str = "/run/bench";

/// Gives this process a `/run` and a `/var/lib` in memory. All plugins keep their state there, so the disk has no
/// say in who is faster, and nothing stays behind.
pub(crate) fn private_mounts() {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("run me by hack/bench, as root");
    for directory in ["/run", "/var/lib"] {
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .unwrap_or_else(|error| panic!("mount a tmpfs at {directory}: {error}"));
    }
}

/// A host: a network namespace and a directory.
pub(crate) struct Host {
    netns: NetNs,
    state: PathBuf,
}

impl Host {
    /// A host with nothing on it.
    pub(crate) fn new(name: &str) -> Self {
        let state = Path::new(STATE).join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).expect("make the state directory");
        let host = Self { netns: NetNs::create(), state };
        host.inside(|| ip(&["link", "set", "lo", "up"]));
        host
    }

    /// The directory for the state of plugins on this host.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Does something on this host: processes that are started there run there.
    pub(crate) fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.netns.inside(work)
    }

    /// Waits until no packet has moved on any interface for a second, and returns how long that took.
    ///
    /// # Panics
    /// After two minutes.
    pub(crate) fn quiet(&self) -> Duration {
        const INTERVAL: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let mut last = self.packets();
        loop {
            #[expect(
                clippy::disallowed_methods,
                reason = "silence is defined by a time in which nothing happens"
            )]
            std::thread::sleep(INTERVAL);
            let now = self.packets();
            if now == last {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(120), "packets still move on an idle host");
            last = now;
        }
    }

    /// Packets received and sent so far, over all interfaces.
    fn packets(&self) -> u64 {
        let text =
            self.inside(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("interface counters");
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(_, counters)| {
                let counters: Vec<u64> =
                    counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                // Columns: received bytes and packets, six more; sent bytes and packets.
                counters[1] + counters[9]
            })
            .sum()
    }
}

/// A container: an ID and an empty network namespace.
pub(crate) struct Container {
    pub(crate) id: String,
    /// A port of the host that no other container of the benchmark has.
    pub(crate) port: u32,
    netns: NetNs,
}

impl Container {
    pub(crate) fn many(count: usize) -> Vec<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let new = |_| {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            Self { id: format!("bench-{number}"), port: 10_000 + number % 50_000, netns: NetNs::create() }
        };
        (0..count).map(new).collect()
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The value for `CNI_NETNS`.
    pub(crate) fn path(&self) -> PathBuf {
        self.netns.path()
    }
}

/// Runs `ip`, unmeasured.
pub(crate) fn ip(arguments: &[&str]) {
    process::measure(Command::new("ip").args(arguments), &[]);
}

/// Waits until the kernel has cleared away all network namespaces that nobody has any more, and returns how long that took. It does so
/// for all that there are at a time, in batches, one after the other: so when a second one that ended later is gone, the earlier ones
/// are, too.
///
/// # Panics
/// After two minutes.
pub(crate) fn wait_for_the_dead() -> Duration {
    const INTERVAL: Duration = Duration::from_millis(20);
    const LINK: &str = "sentinel";
    let start = Instant::now();
    for _ in 0..2 {
        let last = NetNs::create();
        let path = last.path().display().to_string();
        ip(&["link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", &path]);
        drop(last);
        while Path::new("/proc/sys/net/ipv4/conf").join(LINK).exists() {
            assert!(start.elapsed() < Duration::from_secs(120), "namespaces are not cleared away");
            #[expect(clippy::disallowed_methods, reason = "the kernel tells nobody")]
            std::thread::sleep(INTERVAL);
        }
    }
    start.elapsed()
}
