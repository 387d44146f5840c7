//! Every system call of ADD fails in turn, and after each failure the world is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;

use serde_json::json;
use weft_tests::{Call, Host, Injection, Network, Pod, Tampered, World};

/// System calls that ADD makes on its way, with an error that each may have on a real host.
const FAILURES: &[(&str, &str)] = &[
    ("bind", "ENOBUFS"),
    ("clone", "EAGAIN"),
    ("dup", "EMFILE"),
    ("fcntl", "EBADF"),
    ("flock", "ENOLCK"),
    ("fork", "EAGAIN"),
    ("fstat", "EIO"),
    ("fstatfs", "EIO"),
    ("ftruncate", "ENOSPC"),
    ("getdents64", "EIO"),
    ("link", "ENOSPC"),
    ("linkat", "ENOSPC"),
    ("lseek", "EIO"),
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

/// What the trace must show to have failed at least once: every kind of step that ADD takes.
const STEPS: &[&str] = &[
    "RTM_NEWLINK",
    "RTM_NEWADDR",
    "RTM_NEWROUTE",
    "RTM_GETLINK",
    "NFNL_SUBSYS_NFTABLES",
    "NETLINK_NETFILTER",
    "NETLINK_ROUTE",
    "ip_forward",
    "/proc/sys/net/ipv6",
    "attachments",
    "ipam",
    "setns(",
    "flock(",
];

fn network() -> Network {
    Network::dual().with(&json!({
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": { "routes": [{ "dst": "192.0.2.0/24" }] },
    }))
}

/// Fails one system call, from its first to its last occurrence. Returns the traced lines that failed.
fn fail_each(
    process: Tampered,
    syscall: &'static str,
    errno: &'static str,
    stage: fn() -> Stage,
) -> Vec<String> {
    let mut hits = Vec::new();
    let mut staged = stage();
    for nth in 1.. {
        let injection = Injection { process, syscall, errno, nth };
        let (reply, hit) = injection.run(staged.add());
        let Some(line) = hit else {
            reply.result();
            return hits;
        };
        if reply.succeeded() {
            // What failed was not needed, or was done in another way: then the attachment is whole.
            staged.assert_attached(&reply.result(), &line);
            drop(staged);
            staged = stage();
        } else {
            let error = reply.error();
            assert!(!error.msg.is_empty(), "{line}");
            staged.before.assert_unchanged(
                &staged.host,
                &staged.pods(),
                &format!("{process:?} {nth}: {line}: {error:?}"),
            );
        }
        hits.push(line);
    }
    unreachable!("a process makes finitely many system calls")
}

/// A host, a container to be attached, and the world before.
struct Stage {
    host: Host,
    pod: Pod,
    /// A container that is attached already, whose network must not suffer.
    neighbour: Option<Pod>,
    before: World,
}

impl Stage {
    /// Nothing was ever attached: bridge, table and directories are to be made.
    fn fresh() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, before }
    }

    /// All that containers share is there, and in use.
    fn in_use() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        network().add(&neighbour);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), before }
    }

    fn pods(&self) -> Vec<&Pod> {
        std::iter::once(&self.pod).chain(&self.neighbour).collect()
    }

    fn add(&self) -> Call {
        network().add_call(&self.pod)
    }

    fn assert_attached(&self, result: &serde_json::Value, line: &str) {
        let check = network().check(&self.pod, result);
        assert!(
            check.succeeded(),
            "ADD succeeded although this failed, but CHECK does not: {line}: {:?}",
            check.error()
        );
    }
}

/// Goes through all system calls of a process on one kind of stage, and returns the lines that failed.
fn fail_all(process: Tampered, stage: fn() -> Stage) -> Vec<String> {
    FAILURES.iter().flat_map(|(syscall, errno)| fail_each(process, syscall, errno, stage)).collect()
}

#[test]
fn of_weft_on_a_fresh_host() {
    let hits = fail_all(Tampered::Weft, Stage::fresh);
    let missing: Vec<&&str> =
        STEPS.iter().filter(|step| !hits.iter().any(|line| line.contains(**step))).collect();
    assert!(missing.is_empty(), "these never failed: {missing:?} among\n{}", hits.join("\n"));
}

#[test]
fn of_weft_beside_another_container() {
    let hits = fail_all(Tampered::Weft, Stage::in_use);
    assert!(hits.len() > 30, "only {} system calls failed", hits.len());
}

#[test]
fn of_weft_ipam() {
    let hits = fail_all(Tampered::Ipam, Stage::fresh);
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
        "arch_prctl",
        "brk",
        "clock_gettime",
        "close",
        "execve",
        "exit",
        "exit_group",
        "getpid",
        "getrandom",
        "gettid",
        "getuid",
        "geteuid",
        "madvise",
        "mmap",
        "mprotect",
        "mremap",
        "munmap",
        "poll",
        "ppoll",
        "prctl",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "sched_getaffinity",
        "set_robust_list",
        "set_tid_address",
        "setitimer",
        "sigaltstack",
        "timer_settime",
        "timer_delete",
        "prlimit64",
        "rseq",
        "futex",
        "ioctl",
        "getsockname",
        "kill",
        "getppid",
        "uname",
        "tgkill",
        "wait4",
        "waitid",
        "umask",
        "access",
        "readlink",
        "pidfd_open",
    ];
    for process in [Tampered::Weft, Tampered::Ipam] {
        let stage = Stage::fresh();
        let made: BTreeSet<String> = Injection::survey(process, stage.add());
        assert!(made.contains("openat") || made.contains("open"), "{made:?}");
        let known = |name: &str| HARMLESS.contains(&name) || FAILURES.iter().any(|(known, _)| *known == name);
        let forgotten: Vec<&String> = made.iter().filter(|name| !known(name)).collect();
        assert!(forgotten.is_empty(), "{process:?} makes these and no test fails them: {forgotten:?}");
    }
}
