//! What is compared with what, and the targets.

mod everything;
mod many;
mod ports;
mod rules;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use crate::machine::{Container, Host, ip};
use crate::overlay::overlay;
use crate::plugin::{Attached, Backend, Features, Network, Shape, Suite};
use crate::process::{self, Cost};
use crate::report::{Row, Target};
use crate::stats::{Pairs, in_turn, interleave};

/// Pairs per row.
const RUNS: usize = 60;
/// Pairs where one takes long.
const SLOW_RUNS: usize = 30;
/// Containers that one burst attaches, and how many at once.
const BURST: usize = 100;
const AT_ONCE: usize = 16;

/// A part's name and what it does.
pub(crate) type Part = (&'static str, fn(&Peers) -> Vec<Row>);

/// In this order: what leaves namespaces behind for the kernel to clear away comes last.
pub(crate) const PARTS: [Part; 12] = [
    ("plain", plain),
    ("floor", floor),
    ("masq", masquerade),
    ("memory", memory),
    ("everything", everything::everything),
    ("traffic", traffic::traffic),
    ("rules", rules::rules),
    ("ports", ports::ports),
    ("burst", burst),
    ("overlay", overlay),
    ("vxlan", traffic::vxlan),
    ("many", many::many),
];

/// Where the binaries are.
pub(crate) struct Peers {
    weft: PathBuf,
    reference: PathBuf,
    floor: PathBuf,
}

impl Peers {
    /// # Panics
    /// When one is missing, or is not a release build.
    pub(crate) fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let from_env =
            |name, default: &str| std::env::var_os(name).map_or_else(|| root.join(default), PathBuf::from);
        let myself = std::env::current_exe().expect("the path of this program");
        let peers = Self {
            weft: weft_tests::dist().to_owned(),
            reference: from_env("WEFT_PEERS", "target/peers"),
            floor: myself.with_file_name("floor"),
        };
        for binary in [peers.weft.join("weft"), peers.weft.join("weft-ipam"), peers.floor.clone()] {
            let bytes =
                std::fs::read(&binary).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
            assert!(is_stripped(&bytes), "{} is not a release build: run hack/build", binary.display());
        }
        for name in ["bridge", "host-local", "portmap"] {
            let path = peers.reference.join(name);
            assert!(path.is_file(), "{} is missing: run hack/peers", path.display());
        }
        peers
    }

    fn network<'a>(&'a self, host: &'a Host, suite: Suite, shape: Shape) -> Network<'a> {
        let directory = match suite {
            Suite::Weft => &self.weft,
            Suite::Reference => &self.reference,
        };
        Network::new(host, suite, directory, shape)
    }
}

/// Whether a 64-bit ELF file has no symbol table: only the release profile strips it.
fn is_stripped(elf: &[u8]) -> bool {
    const SHT_SYMTAB: usize = 2;
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).expect("an ELF file");
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    // The file's header says where the section headers are, how large one is and how many there are.
    let (offset, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    (0..count).all(|index| number(offset + index * size + 4, 4) != SHT_SYMTAB)
}

/// Wall-clock times of pairs of costs, in milliseconds.
fn walls(pairs: &Pairs<Cost>) -> Pairs<f64> {
    pairs.iter().map(|(ours, theirs)| (ours.milliseconds(), theirs.milliseconds())).collect()
}

/// ADD and then DEL of one container after the other on two hosts, interleaved.
/// The first pair is not counted: it makes bridges and tables.
fn attach_and_detach(ours: &Network, theirs: &Network, runs: usize) -> (Pairs<Cost>, Pairs<Cost>) {
    // Namespaces are all made before and removed after: the kernel takes its time for both.
    let containers = (Container::many(runs + 1), Container::many(runs + 1));
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for (run, (our_container, their_container)) in containers.0.iter().zip(&containers.1).enumerate() {
        let our_add = || settled(|| ours.add(our_container));
        let (our_own, their_own) = in_turn(run, our_add, || settled(|| theirs.add(their_container)));
        adds.push((our_own.cost, their_own.cost));
        dels.push(in_turn(run, || settled(|| our_own.del()), || settled(|| their_own.del())));
    }
    (adds.split_off(1), dels.split_off(1))
}

/// Does something, then waits for what it left running.
fn settled<T>(work: impl FnOnce() -> T) -> T {
    let done = work();
    process::settle();
    done
}

fn plain(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("plain-weft"), Host::new("plain-reference")];
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    let theirs = peers.network(&hosts[1], Suite::Reference, Shape::default());
    let (adds, dels) = attach_and_detach(&ours, &theirs, RUNS);
    let cpu = adds.iter().map(|(ours, theirs)| (ours.cpu_milliseconds(), theirs.cpu_milliseconds()));
    vec![
        Row::new("ADD", "bridge + host-local", "ms", Target::Ratio(0.25), &walls(&adds)),
        Row::new("DEL", "bridge + host-local", "ms", Target::Ratio(0.12), &walls(&dels)),
        Row::new(
            "CPU per ADD, user + system",
            "bridge + host-local",
            "ms",
            Target::Ratio(0.3),
            &cpu.collect::<Vec<_>>(),
        ),
    ]
}

fn masquerade(peers: &Peers) -> Vec<Row> {
    let mut rows = Vec::new();
    for (backend, name, add_target) in
        [(Backend::Iptables, "iptables", 0.12), (Backend::Nftables, "nftables", 0.06)]
    {
        let hosts = [Host::new(&format!("{name}-weft")), Host::new(&format!("{name}-reference"))];
        let shape = Shape { masquerade: Some(backend), ..Shape::default() };
        let ours = peers.network(&hosts[0], Suite::Weft, shape);
        let theirs = peers.network(&hosts[1], Suite::Reference, shape);
        let (adds, dels) = attach_and_detach(&ours, &theirs, SLOW_RUNS);
        let peer = format!("bridge + host-local, {name}");
        rows.push(Row::new("ADD, masquerade", &peer, "ms", Target::Ratio(add_target), &walls(&adds)));
        rows.push(Row::new("DEL, masquerade", &peer, "ms", Target::Ratio(0.03), &walls(&dels)));
    }
    rows
}

fn memory(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("memory-weft"), Host::new("memory-reference")];
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    let theirs = peers.network(&hosts[1], Suite::Reference, Shape::default());
    let containers = Container::many(2);
    let pairs = interleave(
        SLOW_RUNS,
        |_| ours.add_peak_memory(&containers[0]) / 1024.0,
        |_| theirs.add_peak_memory(&containers[1]) / 1024.0,
    );
    vec![Row::new(
        "peak memory of an ADD's largest process",
        "bridge + host-local",
        "MiB",
        Target::Ratio(0.6),
        &pairs,
    )]
}

fn floor(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("floor-weft"), Host::new("floor")];
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    hosts[1].inside(|| {
        ip(&["link", "add", "bench0", "type", "bridge"]);
        ip(&["addr", "add", "10.88.0.1/16", "dev", "bench0"]);
        ip(&["link", "set", "bench0", "up"]);
    });
    let containers = [Container::many(RUNS + 1), Container::many(RUNS + 1)];
    let pairs = interleave(
        RUNS + 1,
        |run| {
            let attached = ours.add(&containers[0][run]);
            let cost = attached.cost;
            settled(|| attached.del());
            cost
        },
        |run| {
            let mut command = Command::new(&peers.floor);
            command.arg(containers[1][run].path());
            command.args(["bench0", "weftfloor", "eth0", "10.88.0.2", "16", "10.88.0.1"]);
            hosts[1].inside(|| {
                let (cost, _) = process::measure(&mut command, &[]);
                ip(&["link", "delete", "weftfloor"]);
                cost
            })
        },
    );
    vec![Row::new(
        "ADD",
        "floor: the netlink messages alone",
        "ms",
        Target::Ratio(2.0),
        &walls(&pairs[1..].to_vec()),
    )]
}

/// Does `work` for all items, `AT_ONCE` at a time.
fn at_once<T: Send, I: Send>(items: Vec<I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    let queue = Mutex::new(items.into_iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let item = queue.lock().expect("no worker panicked").next();
                    let Some(item) = item else { return };
                    let result = work(item);
                    done.lock().expect("no worker panicked").push(result);
                }
            });
        }
    });
    done.into_inner().expect("no worker panicked")
}

/// Attaches all containers and detaches them again; the wall-clock times of both in milliseconds.
fn storm(network: &Network, containers: &[Container]) -> (f64, f64) {
    let start = Instant::now();
    let attached = at_once(containers.iter().collect(), |container| network.add(container));
    let adds = start.elapsed();
    process::settle();
    let start = Instant::now();
    at_once(attached, Attached::del);
    let dels = start.elapsed();
    process::settle();
    (adds.as_secs_f64() * 1e3, dels.as_secs_f64() * 1e3)
}

/// Attaches and detaches each container, one after the other on each of the places at once; the wall-clock time in milliseconds.
fn churn(network: &Network, containers: &[Container]) -> f64 {
    let start = Instant::now();
    at_once(containers.iter().collect(), |container| network.add(container).del());
    let took = start.elapsed();
    process::settle();
    took.as_secs_f64() * 1e3
}

fn burst(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("burst-weft"), Host::new("burst-reference")];
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    let theirs = peers.network(&hosts[1], Suite::Reference, Shape::default());
    let containers = [Container::many(BURST), Container::many(BURST)];
    // The first pair is not counted: it makes the bridges.
    let pairs =
        interleave(SLOW_RUNS + 1, |_| storm(&ours, &containers[0]), |_| storm(&theirs, &containers[1]));
    let counted = &pairs[1..];
    let adds: Vec<_> = counted.iter().map(|(ours, theirs)| (ours.0, theirs.0)).collect();
    let dels: Vec<_> = counted.iter().map(|(ours, theirs)| (ours.1, theirs.1)).collect();
    let churns = interleave(SLOW_RUNS, |_| churn(&ours, &containers[0]), |_| churn(&theirs, &containers[1]));
    vec![
        Row::new("100 ADD, 16 at once", "bridge + host-local", "ms", Target::Ratio(0.4), &adds),
        Row::without_target("100 DEL, 16 at once", "bridge + host-local", "ms", &dels),
        Row::without_target("100 ADD with their DEL, 16 at once", "bridge + host-local", "ms", &churns),
    ]
}
