//! Weft's agent and flanneld: one etcd, and each on a host of its own with a network of its own, so that one sleeps
//! while the other is measured.

mod takers;

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::json;
use weft_tests::{Access, Cluster, Connection, Daemon, Etcd, Flanneld, Node, Weftd};

use crate::forwarding::Entries;
use crate::report::{Row, Target};
use crate::scenario::Peers;
use crate::stats::{Pairs, interleave};

const RUNS: usize = 60;
const SLOW_RUNS: usize = 30;
/// Hosts of a large network.
const MANY: u16 = 1000;
/// How long both agents are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn overlay(_peers: &Peers) -> Vec<Row> {
    let mut rows = takers::many_takers();
    rows.extend(agents());
    rows
}

fn agents() -> Vec<Row> {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(1, Access::Open);
    let agents = [
        Agent { kind: Kind::Weftd, node: cluster.node(0), etcd: &etcd },
        Agent { kind: Kind::Flanneld, node: cluster.node(1), etcd: &etcd },
    ];
    let store = Connection::to(&etcd.endpoints());
    for agent in &agents {
        let config =
            r#"{"Network": "10.240.0.0/12", "SubnetMax": "10.251.255.0", "Backend": {"Type": "vxlan"}}"#;
        store.put(&format!("{}/config", agent.prefix()), config);
    }
    let mut rows = start(&agents);
    rows.extend(one_more_host(&agents, &store));
    rows.extend(many_hosts(&agents, &store));
    rows
}

#[derive(Clone, Copy)]
enum Kind {
    Weftd,
    Flanneld,
}

/// One of the two, on its host.
struct Agent<'a> {
    kind: Kind,
    node: &'a Node,
    etcd: &'a Etcd,
}

/// It runs as long as this lives. It is ended by force: flanneld may wait for itself when it is asked to end at once.
enum Running {
    Weftd(Weftd),
    Flanneld(Flanneld),
}

impl Running {
    fn daemon(&self) -> &Daemon {
        match self {
            Self::Weftd(weftd) => weftd.daemon(),
            Self::Flanneld(flanneld) => flanneld.daemon(),
        }
    }
}

impl Agent<'_> {
    fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::Weftd => "/weft",
            Kind::Flanneld => "/flannel",
        }
    }

    fn start(&self) -> Running {
        match self.kind {
            Kind::Weftd => {
                let changes = json!({ "etcd": { "prefix": self.prefix() } });
                Running::Weftd(Weftd::start(self.node, self.etcd, &changes))
            }
            Kind::Flanneld => Running::Flanneld(Flanneld::start(self.node, self.etcd, self.prefix(), &[])),
        }
    }

    /// Starts it and waits for its subnet.env; how long that took.
    fn up(&self) -> (Running, Duration) {
        let file = self.node.subnet_file();
        let directory = file.parent().expect("a file in a directory");
        fs::create_dir_all(directory).expect("make the node's directory");
        if file.exists() {
            fs::remove_file(&file).expect("remove subnet.env");
        }
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        watch.add_watch(directory, AddWatchFlags::IN_MOVED_TO).expect("watch the node's directory");
        let start = Instant::now();
        let running = self.start();
        while !file.exists() {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let mut events = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).expect("some seconds");
            let count = poll(&mut events, timeout).expect("wait for subnet.env");
            assert!(count > 0, "no subnet.env within {PATIENCE:?}: {}", running.daemon().log());
            watch.read_events().expect("an event is there");
        }
        (running, start.elapsed())
    }

    /// Takes away the device with all that leads through it.
    fn forget(&self) {
        let device = match self.kind {
            Kind::Weftd => "weft.1",
            Kind::Flanneld => "flannel.1",
        };
        self.node.command(&format!("ip link delete {device}"));
    }
}

/// From the start of the process until consumers of subnet.env can go on, with the lease of before.
fn start(agents: &[Agent; 2]) -> Vec<Row> {
    let measure = |agent: &Agent| {
        let (running, time) = agent.up();
        running.daemon().kill();
        time.as_secs_f64() * 1e3
    };
    // The first pair takes the leases and makes the devices.
    let pairs = interleave(SLOW_RUNS + 1, |_| measure(&agents[0]), |_| measure(&agents[1]));
    vec![Row::new("agent: start → subnet.env", "flanneld", "ms", Target::Value(30.0), &pairs[1..])]
}

/// From the put of another host's record until packets to its containers find their way.
fn one_more_host(agents: &[Agent; 2], store: &Connection) -> Vec<Row> {
    let running = agents.each_ref().map(Agent::up);
    let entries = agents.each_ref().map(|agent| agent.node.inside(Entries::watch));
    let measure = |which: usize| {
        let (key, value) = record(agents[which].prefix(), 0);
        let start = Instant::now();
        store.put(&key, &value);
        let put = start.elapsed();
        let entry = entries[which].wait(1, PATIENCE).duration_since(start);
        store.delete(&key);
        entries[which].wait_gone(PATIENCE);
        (entry.as_secs_f64() * 1e3, put.as_secs_f64() * 1e3)
    };
    let pairs = interleave(RUNS + 1, |_| measure(0), |_| measure(1));
    for (running, _) in running {
        running.daemon().kill();
    }
    let ours: Vec<_> = pairs[1..].iter().map(|(ours, _)| *ours).collect();
    let both: Vec<_> = pairs[1..].iter().map(|(ours, theirs)| (ours.0, theirs.0)).collect();
    vec![
        Row::new("agent: etcd put → FDB entry", "the put alone", "ms", Target::More(0.4), &ours),
        Row::without_target("agent: etcd put → FDB entry", "flanneld", "ms", &both),
    ]
}

/// From the start of the process until all hosts of a large network are programmed; its memory; its idle life.
fn many_hosts(agents: &[Agent; 2], store: &Connection) -> Vec<Row> {
    for agent in agents {
        for number in 0..MANY {
            let (key, value) = record(agent.prefix(), number);
            store.put(&key, &value);
        }
    }
    let measure = |agent: &Agent| {
        agent.forget();
        let entries = agent.node.inside(Entries::watch);
        let start = Instant::now();
        let running = agent.start();
        let time = entries.wait(usize::from(MANY), PATIENCE).duration_since(start);
        let memory = peak_memory(running.daemon().pid());
        running.daemon().kill();
        (time.as_secs_f64() * 1e3, memory)
    };
    let pairs = interleave(SLOW_RUNS, |_| measure(&agents[0]), |_| measure(&agents[1]));
    let times: Pairs<f64> = pairs.iter().map(|(ours, theirs)| (ours.0, theirs.0)).collect();
    let memory: Pairs<f64> = pairs.iter().map(|(ours, theirs)| (ours.1, theirs.1)).collect();
    vec![
        Row::new("agent: start → 1,000 hosts programmed", "flanneld", "ms", Target::Value(150.0), &times),
        Row::new("agent: peak memory with 1,000 hosts", "flanneld", "MiB", Target::Value(12.0), &memory),
        Row::new("agent: CPU when idle", "flanneld", "%", Target::Value(0.2), &[idle(agents)]),
    ]
}

/// Percent of one CPU that each takes while nothing happens.
fn idle(agents: &[Agent; 2]) -> (f64, f64) {
    let running = agents.each_ref().map(|agent| agent.up().0);
    // What follows a start is over by then.
    pause(Duration::from_secs(5));
    let before = running.each_ref().map(|running| cpu_time(running.daemon().pid()));
    pause(IDLE);
    let after = running.each_ref().map(|running| cpu_time(running.daemon().pid()));
    let percent = |which: usize| (after[which] - before[which]).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    (percent(0), percent(1))
}

#[expect(clippy::disallowed_methods, reason = "what is measured is a time in which nothing happens")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Key and value of a host's record, as flanneld writes them.
fn record(prefix: &str, number: u16) -> (String, String) {
    let [high, low] = number.to_be_bytes();
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
    let public = format!("172.31.{high}.{low}");
    let value =
        format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#);
    // The last four of the network's sixteen /16 hold them all: room enough is left for the agents' own subnets.
    (format!("{prefix}/subnets/10.{}.{}.0-24", 252 + number / 256, number % 256), value)
}

/// Largest resident set so far, in MiB.
fn peak_memory(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

/// Time on a CPU of all its threads.
fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the agent runs");
    let nanoseconds = tasks.map(|task| {
        let file = task.expect("a thread").path().join("schedstat");
        let text = fs::read_to_string(file).expect("the thread's times");
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).expect("a number")
    });
    Duration::from_nanos(nanoseconds.sum())
}
