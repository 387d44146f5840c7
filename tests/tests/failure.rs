//! Every system call of ADD fails in turn, and after each failure the world is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::collections::BTreeSet;

use weft_tests::{CniError, Injection, Random, Reply, Tampered};

#[path = "failure/stage.rs"]
mod stage;
#[path = "failure/steps.rs"]
mod steps;

use stage::Stage;

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

/// Those by which ADD learns of the host and changes it. What a process does on every host alike, as with its own descriptors, fails
/// on [`Stage::fresh`] alone.
const OF_THE_HOST: &[&str] = &[
    "clone", "flock", "getdents64", "link", "linkat", "mkdir", "open", "openat", "pwrite64", "recvfrom",
    "rename", "sendto", "setns", "unlink", "write",
];

/// strace does not decode what goes to another namespace's socket: this is `RTM_NEWROUTE`.
const NEW_ROUTE_IN_THE_POD: &str = "nlmsg_type=0x18 ";

/// Calls that a library makes for every answer and every file in one place, half of an ADD's: a run fails each of so many, others in each
/// run.
const ALIKE: &[&str] = &["fcntl", "fstat", "recvfrom"];
const SOME: u32 = 4;

/// Steps that only [`Stage::forced`], [`Stage::spanning`], [`Stage::chained`], [`Stage::without_ipv6`] and [`Stage::unmasqueraded`] come to, or where only there is something to be
/// taken back. All others are those of [`Stage::fresh`].
const FORCED: &[&str] = &["Promiscuous", "ReplaceAddress", "Detection"];
const SPANNING: &[&str] = &["Overlay", "BridgeUp"];
const CHAINED: &[&str] = &["Hooks", "Queue"];
const WITHOUT_IPV6: &[&str] = &["Ipv6", "Advertisements"];
const UNMASQUERADED: &[&str] = &["EndMasquerade"];
/// Steps whose every trace goes with the veth pair.
const WITH_THE_PAIR: &[&str] = &[
    "Port", "Shape", "Settings", "Tune", "Address", "Up", "Detection", "Answering", "Route", "ReadBack",
    "Neighbours",
];

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
    /// Goes through all system calls of a process on a fresh host.
    fn all(process: Tampered) -> Self {
        Self::some(process, Stage::fresh, |_| true)
    }

    /// Goes through those of weft that are about the host, on another kind of stage.
    fn of_the_host(stage: fn() -> Stage) -> Self {
        Self::some(Tampered::Weft, stage, |syscall| OF_THE_HOST.contains(&syscall))
    }

    /// Goes through those of some names.
    fn some(process: Tampered, stage: fn() -> Stage, is_meant: fn(&str) -> bool) -> Self {
        let mut failed = Self::default();
        let some = 1 + u32::try_from(Random::new().below(SOME.into())).unwrap();
        // What undoes is called only after something has failed.
        let made = Injection::survey(process, stage().add());
        let is_made = |syscall: &str| made.contains_key(syscall);
        for (syscall, errno) in FAILURES.iter().filter(|(syscall, _)| is_meant(syscall) && is_made(syscall)) {
            let first = if ALIKE.contains(syscall) { some } else { 1 };
            failed.each(process, syscall, errno, stage, first);
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

    /// Fails one system call, from some occurrence to its last. Returns how many there are, or of those that are alike up to three more.
    fn each(
        &mut self,
        process: Tampered,
        syscall: &'static str,
        errno: &'static str,
        stage: fn() -> Stage,
        first: u32,
    ) -> u32 {
        let mut staged = stage();
        let mut nth = first;
        loop {
            let is_first = staged.is_first();
            let (reply, hit) = Injection { process, syscall, errno, nth }.run(staged.add());
            let Some(line) = hit else {
                reply.result();
                return nth - 1;
            };
            let answer = String::from_utf8_lossy(&reply.stdout).into_owned();
            let mut problems = staged.problems(&reply, &line);
            if !reply.succeeded() && !answer.is_empty() {
                let error = reply.any_error();
                if lacks_remedy(&error) {
                    problems.push(format!("it names no remedy: {}", error.msg));
                }
                self.taken_back.extend(steps::taken_back(&error.details));
                self.messages.push(error.msg);
            }
            if !problems.is_empty() {
                self.problems.push(format!("{process:?} {nth}: {line}\n{answer}{}", problems.join("\n")));
            }
            if is_first || reply.succeeded() || lost(&reply) || !problems.is_empty() {
                drop(staged);
                staged = stage();
            }
            self.hits.push(line);
            nth += if ALIKE.contains(&syscall) { SOME } else { 1 };
        }
    }
}

/// A process that cannot return from the container's namespace panics on purpose, as no further step may happen
/// there, not even to take something back. Then DEL has to find what it made for the container.
fn lost(reply: &Reply) -> bool {
    !reply.succeeded() && !reply.stdout.is_empty() && reply.any_error().code == 100
}

/// Whether an error ends with its cause, or with where one may learn more. What is wrong with a variable of the environment is told by
/// its name, and a panic is a bug.
fn lacks_remedy(error: &CniError) -> bool {
    let text = error.msg.trim_end_matches(|c: char| c.is_ascii_digit() || c == ')');
    let ends_with_cause = text.ends_with("(os error ") || text.ends_with("wrote nothing");
    ![4, 100].contains(&error.code) && (ends_with_cause || error.msg.contains("see the kernel log"))
}

#[test]
fn of_weft_as_the_first_on_a_host() {
    let failed = Failed::all(Tampered::Weft);
    failed.assert_hits(&[
        "RTM_NEWLINK", "RTM_NEWADDR", "RTM_NEWQDISC", "RTM_NEWTFILTER", NEW_ROUTE_IN_THE_POD, "RTM_GETLINK",
        "NFNL_SUBSYS_NFTABLES", "NETLINK_NETFILTER", "NETLINK_ROUTE", "ip_forward", "/proc/sys/net/ipv6",
        "attachments", "ipam", "setns(", "flock(",
    ]);
    failed.assert_steps(|step| {
        ![FORCED, SPANNING, CHAINED, WITHOUT_IPV6, UNMASQUERADED].concat().contains(&step)
    });
}

#[test]
fn of_weft_beside_another_container() {
    let hits = Failed::of_the_host(Stage::in_use).hits;
    assert!(hits.len() > 30, "only {} system calls failed", hits.len());
}

#[test]
fn of_weft_where_rules_are_about_containers() {
    Failed::of_the_host(Stage::private)
        .assert_hits(&["/allow/asks-", "/allow/has-", "meeting.lock", "getdents64(", "NFNL_SUBSYS_NFTABLES"]);
}

#[test]
fn of_weft_behind_another_plugin() {
    let failed = Failed::of_the_host(Stage::chained);
    failed.assert_steps(|step| CHAINED.contains(&step));
    failed.assert_hits(&[
        "RTM_NEWLINK", "RTM_NEWQDISC", "RTM_NEWTFILTER", "NFNL_SUBSYS_NFTABLES", "attachments", "setns(",
    ]);
}

/// Each ADD that comes to the end waits for duplicate address detection, so only what is new here fails.
#[test]
fn of_weft_on_a_bridge_with_other_addresses() {
    let mut failed = Failed::default();
    let mut fail_from = |first| {
        let last = failed.each(Tampered::Weft, "sendto", "ENOBUFS", Stage::forced, first);
        assert!(failed.problems.is_empty(), "{}", failed.problems.join("\n\n"));
        let announcing = "correct what neighbours on eth0 know";
        (last, failed.messages.iter().any(|message| message.starts_with(announcing)))
    };
    let (mut last, mut announcing) = fail_from(1);
    // How often ADD looks at addresses that are being detected varies, so the last calls may have been passed over.
    for _ in 0..10 {
        if !announcing {
            (last, announcing) = fail_from(last.saturating_sub(3).max(1));
        }
    }
    assert!(announcing, "{:#?}", failed.messages);
    failed.assert_steps(|step| FORCED.contains(&step));
}

#[test]
fn of_weft_on_a_bridge_without_ipv6() {
    let failed = Failed::some(Tampered::Weft, Stage::without_ipv6, |syscall| {
        ["open", "openat", "setns"].contains(&syscall)
    });
    failed.assert_hits(&["weft0/disable_ipv6", "/forwarding", "routed1/accept_ra"]);
    failed.assert_steps(|step| WITHOUT_IPV6.contains(&step) || step == "Forwarding");
}

#[test]
fn of_weft_where_masquerade_ends() {
    let failed = Failed::some(Tampered::Weft, Stage::unmasqueraded, |syscall| {
        ["sendto", "rename", "renameat", "recvfrom"].contains(&syscall)
    });
    failed.assert_hits(&["/masquerade-ended"]);
    failed.assert_steps(|step| UNMASQUERADED.contains(&step));
}

#[test]
fn of_weft_where_the_network_had_another_subnet() {
    let failed = Failed::some(Tampered::Weft, Stage::renumbered, |syscall| {
        ["sendto", "getdents64"].contains(&syscall)
    });
    failed.assert_steps(|step| ["ReplaceAddress", "Masquerade"].contains(&step));
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
    Failed::all(Tampered::Ipam).assert_hits(&["link", "mkdir", "flock(", "write("]);
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
        "access", "readlink", "pidfd_open", "getcpu", "sched_setaffinity",
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
