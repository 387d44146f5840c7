//! Every system call of ADD fails in turn, and after each failure the world is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;

use serde_json::json;
use weft_tests::{Call, Host, Injection, Network, Pod, Reply, Tampered, World};

/// System calls that ADD makes on its way, with an error that each may have on a real host.
const FAILURES: &[(&str, &str)] = &[
    ("bind", "ENOBUFS"),
    ("clone", "EAGAIN"),
    ("clone3", "EAGAIN"),
    ("connect", "ECONNREFUSED"),
    ("dup", "EMFILE"),
    ("dup2", "EMFILE"),
    ("fcntl", "EINVAL"),
    ("flock", "ENOLCK"),
    ("fork", "EAGAIN"),
    ("fstat", "EIO"),
    ("fstatfs", "EIO"),
    ("ftruncate", "ENOSPC"),
    ("getdents64", "EIO"),
    ("link", "ENOSPC"),
    ("listen", "EADDRINUSE"),
    ("linkat", "ENOSPC"),
    ("lseek", "EIO"),
    ("lstat", "EIO"),
    ("mkdir", "ENOSPC"),
    ("mkdirat", "ENOSPC"),
    ("newfstatat", "EIO"),
    ("open", "EMFILE"),
    ("openat", "EMFILE"),
    ("pipe2", "EMFILE"),
    ("pread64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("read", "EIO"),
    ("readv", "EIO"),
    ("recvfrom", "ENOBUFS"),
    ("recvmsg", "ENOBUFS"),
    ("rename", "ENOSPC"),
    ("renameat", "ENOSPC"),
    ("renameat2", "ENOSPC"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "ENOBUFS"),
    ("setns", "EPERM"),
    ("setsockopt", "ENOMEM"),
    ("socket", "EMFILE"),
    ("stat", "EIO"),
    ("statx", "EIO"),
    ("timer_create", "EAGAIN"),
    ("unlink", "EROFS"),
    ("unlinkat", "EROFS"),
    ("vfork", "EAGAIN"),
    ("wait4", "ECHILD"),
    ("write", "ENOSPC"),
    ("writev", "ENOSPC"),
];

/// What the trace must show to have failed at least once: every kind of step that ADD takes. strace does not decode
/// what goes to another namespace's socket: there 0x18 is `RTM_NEWROUTE`.
const STEPS: &[&str] = &[
    "RTM_NEWLINK", "RTM_NEWADDR", "RTM_NEWQDISC", "RTM_NEWTFILTER", "nlmsg_type=0x18 ", "RTM_GETLINK",
    "NFNL_SUBSYS_NFTABLES", "NETLINK_NETFILTER", "NETLINK_ROUTE", "ip_forward", "/proc/sys/net/ipv6",
    "attachments", "ipam", "setns(", "flock(",
];

fn network() -> Network {
    Network::dual().with(&json!({
        "runtimeConfig": { "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp" },
        ], "bandwidth": { "ingressRate": 10_000_000, "egressRate": 10_000_000 } },
        "ipMasq": true,
        "hairpinMode": true,
        "sysctl": { "net.core.somaxconn": "500" },
        "txQLen": 77,
        "ipam": { "routes": [{ "dst": "192.0.2.0/24" }] },
    }))
}

/// What came of failing system calls one by one.
#[derive(Default)]
struct Failed {
    /// The traced lines that failed.
    hits: Vec<String>,
    /// After which of them the world was another one, or the answer was wrong. All of them, as one tells little.
    problems: Vec<String>,
}

impl Failed {
    /// Goes through all system calls of a process on one kind of stage.
    fn all(process: Tampered, stage: fn() -> Stage) -> Self {
        let mut failed = Self::default();
        for (syscall, errno) in FAILURES {
            failed.each(process, syscall, errno, stage);
        }
        assert!(failed.problems.is_empty(), "{}", failed.problems.join("\n\n"));
        failed
    }

    /// Fails one system call, from its first to its last occurrence.
    fn each(&mut self, process: Tampered, syscall: &'static str, errno: &'static str, stage: fn() -> Stage) {
        let mut staged = stage();
        for nth in 1.. {
            let (reply, hit) = Injection { process, syscall, errno, nth }.run(staged.add());
            let Some(line) = hit else {
                reply.result();
                return;
            };
            let answer = String::from_utf8_lossy(&reply.stdout).into_owned();
            let problems = staged.problems(&reply, &line);
            if !problems.is_empty() {
                self.problems.push(format!("{process:?} {nth}: {line}\n{answer}{}", problems.join("\n")));
            }
            if reply.succeeded() || lost(&reply) || !problems.is_empty() {
                drop(staged);
                staged = stage();
            }
            self.hits.push(line);
        }
    }
}

/// A host, a container to be attached, and the world before.
struct Stage {
    host: Host,
    pod: Pod,
    /// A container that is attached already, whose network must not suffer.
    neighbour: Option<Pod>,
    network: Network,
    before: World,
}

impl Stage {
    /// Nothing was ever attached: bridge, table and directories are to be made.
    fn fresh() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network: network(), before }
    }

    /// All that containers share is there, and in use.
    fn in_use() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        // The port is the other container's.
        network().with(&json!({ "runtimeConfig": { "portMappings": null } })).add(&neighbour);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network: network(), before }
    }

    /// The two containers may talk with each other, by a rule of the network and by one of the new one alone.
    fn private() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        let app = json!({ "label": "part=app" });
        let labels = json!([{ "key": "part", "value": "app" }]);
        let network = Network::dual()
            .with(&json!({ "icc": false, "allow": [{ "from": app, "to": app, "port": 80 }] }))
            .with(&json!({ "args": { "cni": { "labels": labels } } }));
        network.add(&neighbour);
        let network = network
            .with(&json!({ "args": { "weft": { "allow": [{ "to": { "container": neighbour.id } }] } } }));
        // What is made when it is first asked for stays.
        network.add(&pod);
        network.del(&pod);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network, before }
    }

    /// Another plugin has made the interface.
    fn chained() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let ipam = json!({ "type": "host-local", "subnet": "10.97.0.0/24" });
        let bridge = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipam": ipam });
        let previous = Call::any("bridge", "ADD", bridge.to_string()).pod(&pod).run().result();
        let network = Network::new("net", &[])
            .with(&json!({ "bridge": null, "chained": true, "prevResult": previous }))
            .with(&json!({ "runtimeConfig": network().conf["runtimeConfig"] }));
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before }
    }

    fn pods(&self) -> Vec<&Pod> {
        std::iter::once(&self.pod).chain(&self.neighbour).collect()
    }

    fn add(&self) -> Call {
        self.network.add_call(&self.pod)
    }

    /// What is wrong after a call in which something failed.
    fn problems(&self, reply: &Reply, line: &str) -> Vec<String> {
        if reply.succeeded() {
            // What failed was not needed, or was done in another way: then the attachment is whole.
            let check = self.network.check(&self.pod, &reply.result());
            let problem = || format!("ADD succeeded, but CHECK does not: {:?}", check.error());
            return if check.succeeded() { Vec::new() } else { vec![problem()] };
        }
        // Standard output itself may be what failed.
        if !line.starts_with("write(1,") {
            reply.any_error();
        }
        let lost = lost(reply);
        if lost {
            self.network.del(&self.pod);
        }
        let mut differences = self.before.differences(&World::of(&self.host, &self.pods()));
        // An empty record is the attachment's lock file and says nothing.
        differences.retain(|line| !(line.contains("/attachments/") && line.ends_with(" \"\"")));
        if lost {
            differences.retain(|line| line.contains("kind veth") || line.contains("file "));
        }
        differences
    }
}

/// A process that cannot return from the container's namespace panics on purpose, as no further step may happen
/// there, not even to take something back. Then DEL has to find what it made for the container.
fn lost(reply: &Reply) -> bool {
    !reply.succeeded() && !reply.stdout.is_empty() && reply.any_error().code == 100
}

#[test]
fn of_weft_on_a_fresh_host() {
    let hits = Failed::all(Tampered::Weft, Stage::fresh).hits;
    let missing: Vec<&&str> =
        STEPS.iter().filter(|step| !hits.iter().any(|line| line.contains(**step))).collect();
    assert!(missing.is_empty(), "these never failed: {missing:?} among\n{}", hits.join("\n"));
}

#[test]
fn of_weft_beside_another_container() {
    let hits = Failed::all(Tampered::Weft, Stage::in_use).hits;
    assert!(hits.len() > 30, "only {} system calls failed", hits.len());
}

#[test]
fn of_weft_where_rules_are_about_containers() {
    let hits = Failed::all(Tampered::Weft, Stage::private).hits;
    for step in ["/allow/asks-", "/allow/has-", "meeting.lock", "getdents64(", "NFNL_SUBSYS_NFTABLES"] {
        assert!(
            hits.iter().any(|line| line.contains(step)),
            "{step} never failed among\n{}",
            hits.join("\n")
        );
    }
}

#[test]
fn of_weft_behind_another_plugin() {
    let hits = Failed::all(Tampered::Weft, Stage::chained).hits;
    for step in
        ["RTM_NEWLINK", "RTM_NEWQDISC", "RTM_NEWTFILTER", "NFNL_SUBSYS_NFTABLES", "attachments", "setns("]
    {
        assert!(
            hits.iter().any(|line| line.contains(step)),
            "{step} never failed among\n{}",
            hits.join("\n")
        );
    }
}

#[test]
fn of_weft_ipam() {
    let hits = Failed::all(Tampered::Ipam, Stage::fresh).hits;
    for step in ["link", "mkdir", "flock(", "write("] {
        assert!(
            hits.iter().any(|line| line.contains(step)),
            "{step} never failed among\n{}",
            hits.join("\n")
        );
    }
}

/// The table above is complete: a system call that ADD makes and that is not in it is known not to fail, or to have
/// no effect outside of the process.
#[test]
fn no_system_call_is_forgotten() {
    const HARMLESS: &[&str] = &[
        "arch_prctl", "brk", "clock_gettime", "close", "execve", "exit", "exit_group", "getpid", "getrandom",
        "gettid", "getuid", "geteuid", "madvise", "mmap", "mprotect", "mremap", "munmap", "poll", "ppoll",
        "prctl", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "set_robust_list",
        "set_tid_address", "setitimer", "sigaltstack", "timer_settime", "timer_delete", "prlimit64", "rseq",
        "futex", "ioctl", "getsockname", "kill", "getppid", "uname", "tgkill", "wait4", "waitid", "umask",
        "access", "readlink", "pidfd_open",
    ];
    for process in [Tampered::Weft, Tampered::Ipam] {
        let stage = Stage::fresh();
        let made: BTreeSet<String> = Injection::survey(process, stage.add()).into_keys().collect();
        assert!(made.contains("openat") || made.contains("open"), "{made:?}");
        let known = |name: &str| HARMLESS.contains(&name) || FAILURES.iter().any(|(known, _)| *known == name);
        let forgotten: Vec<&String> = made.iter().filter(|name| !known(name)).collect();
        assert!(forgotten.is_empty(), "{process:?} makes these and no test fails them: {forgotten:?}");
    }
}
