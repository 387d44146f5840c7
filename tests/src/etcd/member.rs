//! One process of etcd.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Tls;
use crate::daemon::Daemon;
use crate::http;
use crate::netns::NetNs;
use crate::node::Cable;
use crate::wait::eventually;

/// The port of clients.
const CLIENTS: u16 = 2379;
/// The port of other members.
const PEERS: u16 = 2380;
/// The port that tells of the member's state, always without TLS and password.
const STATE: u16 = 2381;

/// How long a member may take to serve.
const PATIENCE: Duration = Duration::from_secs(20);

/// Milliseconds. The defaults (100, 1000) are for networks and disks. Here both are memory, but a leader that gets no processor for so
/// long loses its office.
const TIMING: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "500"];

/// Where a member runs.
pub(crate) struct Place {
    pub(crate) netns: NetNs,
    /// The addresses that it serves at, the first of them also for other members.
    pub(crate) addresses: Vec<IpAddr>,
    /// What joins it to the underlay, where it is not on loopback.
    pub(crate) cable: Option<Cable>,
}

/// One process of etcd.
pub struct Member {
    pub(super) name: String,
    place: Place,
    directory: PathBuf,
    arguments: Vec<String>,
    daemon: Mutex<Option<Daemon>>,
}

impl Member {
    pub(super) fn new(number: usize, place: Place, directory: PathBuf) -> Self {
        let name = format!("etcd{number}");
        Self { name, place, directory, arguments: Vec::new(), daemon: Mutex::default() }
    }

    /// What it is started with, once all members are known.
    pub(super) fn configure(&mut self, cluster: &str, tls: Option<&Tls>) {
        let urls = |scheme: &str, port| {
            let urls =
                self.place.addresses.iter().map(|ip| format!("{scheme}://{}", SocketAddr::new(*ip, port)));
            urls.collect::<Vec<_>>().join(",")
        };
        let clients = urls(if tls.is_some() { "https" } else { "http" }, CLIENTS);
        let mut arguments: Vec<String> = [
            ["--name", &self.name],
            ["--data-dir", self.directory.join("data").to_str().expect("a path in UTF-8")],
            ["--listen-client-urls", &clients],
            ["--advertise-client-urls", &clients],
            ["--listen-peer-urls", &self.peer_url()],
            ["--initial-advertise-peer-urls", &self.peer_url()],
            ["--listen-metrics-urls", &urls("http", STATE)],
            ["--initial-cluster", cluster],
            // A password costs as little as it may: etcd computes each login that is asked for to its end, also of who has gone.
            ["--bcrypt-cost", "4"],
            ["--logger", "zap"],
            ["--log-level", "warn"],
        ]
        .concat()
        .into_iter()
        .chain(TIMING)
        .map(str::to_owned)
        .collect();
        if let Some(tls) = tls {
            let server = tls.server();
            let files = [
                ("--cert-file", server.certificate),
                ("--key-file", server.key),
                ("--trusted-ca-file", tls.ca()),
            ];
            for (option, file) in files {
                arguments.extend([option.to_owned(), file.display().to_string()]);
            }
            arguments.push("--client-cert-auth".to_owned());
        }
        self.arguments = arguments;
    }

    /// Gives it an option from its next start on. Of two of one name the later one counts.
    pub(super) fn set(&mut self, option: [&str; 2]) {
        self.arguments.extend(option.map(str::to_owned));
    }

    /// The URL at which other members reach it.
    pub(super) fn peer_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.place.addresses[0], PEERS))
    }

    /// Where clients reach it: addresses and ports.
    pub fn clients(&self) -> impl Iterator<Item = SocketAddr> {
        self.place.addresses.iter().map(|ip| SocketAddr::new(*ip, CLIENTS))
    }

    /// Starts it on the data that it has. [`Member::ready`] waits until it serves.
    pub fn start(&self) {
        let mut command = Command::new("etcd");
        command.args(&self.arguments);
        let daemon = self.place.netns.inside(|| Daemon::start(&command, &self.directory.join("etcd.log")));
        *self.daemon() = Some(daemon);
    }

    /// Waits until it serves clients. In a cluster this needs a leader.
    pub fn ready(&self) {
        eventually(PATIENCE, &format!("{} serves", self.name), || {
            let ended = self.daemon().as_ref().and_then(Daemon::ended);
            assert!(ended.is_none(), "{} has ended: {ended:?}", self.name);
            self.is_healthy().then_some(())
        });
    }

    /// Whether it says that it serves clients.
    pub fn is_healthy(&self) -> bool {
        self.ask("/health").is_some_and(|answer| answer.contains(r#""health":"true""#))
    }

    /// Whether it believes that it leads. For the moment of an election two members may.
    pub(super) fn leads(&self) -> bool {
        self.ask("/metrics").is_some_and(|answer| answer.contains("\netcd_server_is_leader 1\n"))
    }

    /// How many calls of a method it has got since its start: `Txn`, `LeaseKeepAlive`.
    pub fn calls(&self, method: &str) -> u64 {
        let text = self.ask("/metrics").expect("etcd's metrics");
        let start = format!("grpc_server_started_total{{grpc_method=\"{method}\",");
        let count = |line: &str| line.starts_with(&start).then(|| line.rsplit_once(' ')?.1.parse().ok());
        text.lines().find_map(count).flatten().unwrap_or_else(|| panic!("no count of {method} in\n{text}"))
    }

    /// What it answers when asked for its state, from its own machine: nothing while it is down or frozen.
    fn ask(&self, path: &str) -> Option<String> {
        let address = SocketAddr::new(self.place.addresses[0], STATE);
        self.place.netns.inside(|| http::get(address, path)).map(|answer| answer.body)
    }

    /// What it has logged, warnings and errors only.
    ///
    /// # Panics
    /// When it does not run.
    pub fn log(&self) -> String {
        self.running(Daemon::log)
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&self) {
        if let Some(daemon) = self.daemon().take() {
            daemon.stop();
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(daemon) = self.daemon().take() {
            daemon.kill();
        }
    }

    /// Holds it: connections to it are made and nobody answers on them.
    pub fn freeze(&self) {
        self.running(Daemon::freeze);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.running(Daemon::thaw);
    }

    /// What joins its machine to the underlay of a [`crate::Cluster`].
    ///
    /// # Panics
    /// When it runs on loopback.
    pub fn cable(&self) -> &Cable {
        self.place.cable.as_ref().unwrap_or_else(|| panic!("{} is on loopback", self.name))
    }

    /// Forgets everything that was ever put.
    pub(super) fn lose_data(&self) {
        assert!(self.daemon().is_none(), "{} runs: its data cannot be lost", self.name);
        fs::remove_dir_all(self.directory.join("data")).expect("remove etcd's data");
    }

    fn running<T>(&self, work: impl FnOnce(&Daemon) -> T) -> T {
        work(self.daemon().as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)))
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
