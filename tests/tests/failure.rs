//! Every system call of ADD fails in turn, and after each failure the world is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use weft_tests::{
    Call, Etcd, Host, Injection, Network, Outside, Pod, Reply, Tampered, Weftd, World, command,
};

#[path = "failure/steps.rs"]
mod steps;

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

/// strace does not decode what goes to another namespace's socket: this is `RTM_NEWROUTE`.
const NEW_ROUTE_IN_THE_POD: &str = "nlmsg_type=0x18 ";

/// Steps that only [`Stage::forced`], [`Stage::spanning`] and [`Stage::chained`] come to, or where only there is something to be
/// taken back. All others are those of [`Stage::fresh`].
const FORCED: &[&str] = &["Promiscuous", "ReplaceAddress", "Detection"];
const SPANNING: &[&str] = &["Overlay", "BridgeUp"];
const CHAINED: &[&str] = &["Hooks", "Queue"];
/// Steps whose every trace goes with the veth pair.
const WITH_THE_PAIR: &[&str] = &[
    "Port", "Shape", "Settings", "Tune", "Address", "Up", "Detection", "Answering", "Route", "ReadBack",
    "Neighbours",
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
    /// What errors said.
    messages: Vec<String>,
    /// The steps that were taken back, as errors have it.
    taken_back: BTreeSet<&'static str>,
    /// After which of them the world was another one, or the answer was wrong. All of them, as one tells little.
    problems: Vec<String>,
}

impl Failed {
    /// Goes through all system calls of a process on one kind of stage.
    fn all(process: Tampered, stage: fn() -> Stage) -> Self {
        Self::some(process, stage, |_| true)
    }

    /// Goes through those of some names.
    fn some(process: Tampered, stage: fn() -> Stage, is_meant: fn(&str) -> bool) -> Self {
        let mut failed = Self::default();
        for (syscall, errno) in FAILURES.iter().filter(|(syscall, _)| is_meant(syscall)) {
            failed.each(process, syscall, errno, stage);
        }
        assert!(failed.problems.is_empty(), "{}", failed.problems.join("\n\n"));
        failed
    }

    /// Panics unless all of these steps have failed, and have been taken back where there is something to.
    #[track_caller]
    fn assert_steps(&self, is_meant: impl Fn(&str) -> bool) {
        let mut all = steps::all();
        all.retain(|step| is_meant(step));
        // What the IPAM plugin says is passed on as it is.
        let failed: BTreeSet<_> =
            self.messages.iter().filter_map(|message| steps::named(message)).chain(["Reserve"]).collect();
        let missing: Vec<_> = all.difference(&failed).collect();
        assert!(missing.is_empty(), "these never failed: {missing:?}, only {failed:?}");
        all.retain(|step| !WITH_THE_PAIR.contains(step));
        let missing: Vec<_> = all.difference(&self.taken_back).collect();
        assert!(missing.is_empty(), "these were never taken back: {missing:?}, only {:?}", self.taken_back);
    }

    /// Panics unless each of these texts is in the trace of a system call that failed.
    #[track_caller]
    fn assert_hits(&self, texts: &[&str]) {
        let missing: Vec<_> =
            texts.iter().filter(|text| !self.hits.iter().any(|line| line.contains(**text))).collect();
        assert!(missing.is_empty(), "these never failed: {missing:?} among\n{}", self.hits.join("\n"));
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
            if !reply.succeeded() && !answer.is_empty() {
                let error = reply.any_error();
                self.taken_back.extend(steps::taken_back(&error.details));
                self.messages.push(error.msg);
            }
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
    /// A way to other hosts, and where they meet.
    _others: Option<(Outside, Etcd)>,
}

impl Stage {
    /// Nothing was ever attached: bridge, table and directories are to be made.
    fn fresh() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network: network(), before, _others: None }
    }

    /// All that containers share is there, and in use.
    fn in_use() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        // The port is the other container's.
        network().with(&json!({ "runtimeConfig": { "portMappings": null } })).add(&neighbour);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network: network(), before, _others: None }
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
        Self { host, pod, neighbour: Some(neighbour), network, before, _others: None }
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
        Self { host, pod, neighbour: None, network, before, _others: None }
    }

    /// The bridge is somebody else's, with addresses of every kind in the way of the gateways; the container's own are asked for and
    /// looked for on the link, and announced.
    fn forced() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        command("ip link add weft0 up address 02:00:00:00:00:77 type bridge");
        for address in [
            "10.88.0.254/24 brd 10.88.0.127 label weft0:old valid_lft 3600 preferred_lft 1800",
            // The gateway itself goes with the one above.
            "10.88.0.1/24 brd + label weft0:gw",
            "10.88.0.253/24",
            "10.88.0.252 peer 10.88.0.77/32",
            "10.88.7.1/16 scope site noprefixroute metric 77",
            "fd00:88::fe/64 nodad noprefixroute valid_lft 3600 preferred_lft 1800",
            "fd00:88::fd/64 nodad home",
        ] {
            command(&format!("ip addr add {address} dev weft0"));
        }
        // Detection begins at once: every ADD that comes so far waits for it.
        let setting = "/proc/sys/net/ipv6/conf/default/router_solicitation_delay";
        pod.inside(|| fs::write(setting, "0")).unwrap();
        let network = Network::dual().with(&json!({
            "forceAddress": true, "promiscMode": true, "enabledad": true,
            // What this test is not about.
            "guard": false, "isolation": "none",
            "runtimeConfig": { "ips": ["10.88.0.9/24", "fd00:88::9/64"] },
        }));
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: None }
    }

    /// This host has a lease, but knows no way to others yet, and its bridge is down.
    fn spanning() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let others = Etcd::beside(&host);
        let network = Weftd::network(&others.1);
        network.add(&pod);
        network.del(&pod);
        command("ip link delete weft.1");
        command("ip link set weft0 down");
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: Some(others) }
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
    let failed = Failed::all(Tampered::Weft, Stage::fresh);
    failed.assert_hits(&[
        "RTM_NEWLINK", "RTM_NEWADDR", "RTM_NEWQDISC", "RTM_NEWTFILTER", NEW_ROUTE_IN_THE_POD, "RTM_GETLINK",
        "NFNL_SUBSYS_NFTABLES", "NETLINK_NETFILTER", "NETLINK_ROUTE", "ip_forward", "/proc/sys/net/ipv6",
        "attachments", "ipam", "setns(", "flock(",
    ]);
    failed.assert_steps(|step| ![FORCED, SPANNING, CHAINED].concat().contains(&step));
}

#[test]
fn of_weft_beside_another_container() {
    let hits = Failed::all(Tampered::Weft, Stage::in_use).hits;
    assert!(hits.len() > 30, "only {} system calls failed", hits.len());
}

#[test]
fn of_weft_where_rules_are_about_containers() {
    Failed::all(Tampered::Weft, Stage::private)
        .assert_hits(&["/allow/asks-", "/allow/has-", "meeting.lock", "getdents64(", "NFNL_SUBSYS_NFTABLES"]);
}

#[test]
fn of_weft_behind_another_plugin() {
    let failed = Failed::all(Tampered::Weft, Stage::chained);
    failed.assert_steps(|step| CHAINED.contains(&step));
    failed.assert_hits(&[
        "RTM_NEWLINK", "RTM_NEWQDISC", "RTM_NEWTFILTER", "NFNL_SUBSYS_NFTABLES", "attachments", "setns(",
    ]);
}

/// Each ADD that comes to the end waits for duplicate address detection, so only what is new here fails.
#[test]
fn of_weft_on_a_bridge_with_other_addresses() {
    let failed = Failed::some(Tampered::Weft, Stage::forced, |syscall| syscall == "sendto");
    failed.assert_steps(|step| FORCED.contains(&step));
    let announcing = "correct what neighbours on eth0 know";
    assert!(failed.messages.iter().any(|message| message.starts_with(announcing)), "{:#?}", failed.messages);
}

#[test]
fn of_weft_in_a_network_that_spans_hosts() {
    let failed = Failed::some(Tampered::Weft, Stage::spanning, |syscall| {
        ["sendto", "rename", "renameat", "flock"].contains(&syscall)
    });
    failed.assert_hits(&["/overlay"]);
    failed.assert_steps(|step| SPANNING.contains(&step));
}

#[test]
fn of_weft_ipam() {
    Failed::all(Tampered::Ipam, Stage::fresh).assert_hits(&["link", "mkdir", "flock(", "write("]);
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
