//! System calls that fail on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::call::{Call, Reply, script};
use crate::tools;

/// Which process of an ADD is tampered with: each counts its own system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tampered {
    /// The interface plugin.
    Weft,
    /// The IPAM plugin that it starts, and only for the same command.
    Ipam,
}

/// The `nth` call of a system call (from 1) fails with an error, without being carried out.
#[derive(Clone, Copy, Debug)]
pub struct Injection {
    /// Whose calls are counted.
    pub process: Tampered,
    /// The system call's name.
    pub syscall: &'static str,
    /// The error's name: `ENOBUFS`.
    pub errno: &'static str,
    /// Which call fails.
    pub nth: u32,
}

/// Outside of what [`crate::World`] looks at.
const DIRECTORY: &str = "/run/netns/.strace";

impl Injection {
    /// Makes a call under the injection. Returns how it ended and the traced line that failed; no line: the process
    /// makes fewer such calls, and was not disturbed.
    pub fn run(&self, call: Call) -> (Reply, Option<String>) {
        let only = format!("trace={}", self.syscall);
        let inject = format!("inject={}:error={}:when={}", self.syscall, self.errno, self.nth);
        let (reply, trace) = traced(self.process, &["-e", &only, "-e", &inject], call);
        (reply, trace.lines().find(|line| line.contains("(INJECTED)")).map(str::to_owned))
    }

    /// The names of the system calls that a process makes in a call that must succeed, and how many it makes of each.
    pub fn survey(process: Tampered, call: Call) -> BTreeMap<String, usize> {
        let (reply, trace) = traced(process, &[], call);
        reply.result();
        counts(&trace)
    }

    /// The same for an ADD's interface plugin, without calls that are for waiting, but with the bytes that the kernel told it over
    /// sockets: what depends on nothing but the work to be done. An ADD that had to wait for events of the kernel is taken back
    /// and made again.
    pub fn work(add: &dyn Fn() -> Call, del: &dyn Fn()) -> BTreeMap<String, usize> {
        for _ in 0..ATTEMPTS {
            let (reply, trace) = traced(Tampered::Weft, &[], add());
            reply.result();
            del();
            if !trace.lines().any(is_for_events) {
                return work_in(&trace);
            }
        }
        panic!("{ATTEMPTS} ADDs had to wait for the kernel");
    }
}

impl Injection {
    /// What the interface plugin asks nftables in a call that must succeed, what it is told, and the files that it looks at. All else
    /// in a DEL depends on when its link is gone.
    pub fn ruleset_work(call: Call) -> BTreeMap<String, usize> {
        let (reply, trace) = traced(Tampered::Weft, &[], call);
        reply.done();
        let mut work = counts(&trace);
        work.retain(|name, _| ["open", "openat", "getdents64", "unlink"].contains(&name.as_str()));
        let mut sockets = BTreeSet::new();
        for line in trace.lines() {
            let Some((name, rest)) = line.split_once('(') else { continue };
            let end = line.rsplit_once(" = ").and_then(|(_, end)| end.parse::<usize>().ok());
            let first = rest.split([',', ')']).next().and_then(|first| first.parse::<usize>().ok());
            let is_its = first.is_some_and(|first| sockets.contains(&first));
            match (name, end) {
                ("socket", Some(end)) if line.contains("NETLINK_NETFILTER") => drop(sockets.insert(end)),
                ("close", _) => drop(first.map(|first| sockets.remove(&first))),
                ("sendto", _) if is_its => *work.entry("asked of nftables".to_owned()).or_default() += 1,
                ("recvfrom", Some(end)) if is_its => {
                    *work.entry("bytes told by nftables".to_owned()).or_default() += end;
                }
                _ => {}
            }
        }
        work
    }
}

/// How often an ADD may have to wait on a busy machine.
const ATTEMPTS: usize = 20;

/// Only a socket for events needs a name.
fn is_for_events(line: &str) -> bool {
    line.starts_with("bind(") && line.contains("AF_NETLINK")
}

fn work_in(trace: &str) -> BTreeMap<String, usize> {
    // What is logged depends on what befell the machine. A setting below net/ that finds the kernel's lock taken is written again
    // and again by the kernel itself (rtnl_trylock, restart_syscall).
    let is_work = |line: &&str| !line.starts_with("write(2,") && !line.contains("ERESTARTNOINTR");
    let quiet: Vec<&str> = trace.lines().filter(is_work).collect();
    let mut work = counts(&quiet.join("\n"));
    work.retain(|name, _| !WAITING.contains(&name.as_str()));
    let received = trace.lines().filter(|line| line.starts_with("recvfrom("));
    let bytes = received.filter_map(|line| line.rsplit_once(" = ")?.1.parse::<usize>().ok()).sum();
    work.insert("bytes received".to_owned(), bytes);
    work
}

fn counts(trace: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (name, _) in trace.lines().filter_map(|line| line.split_once('(')) {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// Calls whose number is the scheduler's affair.
const WAITING: [&str; 8] = ["poll", "ppoll", "recvfrom", "read", "wait4", "waitid", "futex", "madvise"];

/// Makes a call with one of its processes under a tracer. Returns how it ended and the trace.
fn traced(process: Tampered, options: &[&str], call: Call) -> (Reply, String) {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory).expect("make a directory");
    let trace = directory.join("trace");
    fs::write(&trace, "").expect("empty the trace");
    let file = trace.to_string_lossy();
    // Without -f: children are not followed, and what they do is not counted.
    let strace = [&["strace", "-qq", "-s", "64", "-o", &file], options].concat();
    let reply = match process {
        Tampered::Weft => call.through(&strace).run(),
        Tampered::Ipam => call.env("CNI_PATH", wrapper(directory, &strace)).run(),
    };
    let lines = fs::read_to_string(&trace).expect("read the trace");
    fs::remove_dir_all(directory).expect("remove the directory");
    (reply, lines)
}

/// A plugin directory whose `weft-ipam` runs the real one under a tracer, for ADD only: what the rollback calls is
/// left alone, as only one thing fails at a time.
fn wrapper(directory: &Path, strace: &[&str]) -> PathBuf {
    let plugins = directory.join("plugins");
    let real = tools::dist().join("weft-ipam");
    let real = real.display();
    let traced: String = strace.iter().map(|word| format!("'{word}' ")).collect();
    let body = format!("[ \"$CNI_COMMAND\" = ADD ] || exec '{real}'\nexec {traced} '{real}'");
    script(&plugins.to_string_lossy(), "weft-ipam", &body);
    plugins
}
