//! SIGKILL before every system call of every command, one after the other: what a kill leaves must
//! be found by a retry, by DEL, by GC and by those who need the addresses.
#![expect(clippy::unwrap_used, reason = "tests: a panic is the failure")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::Command;

use common::{Answer, Host, command, finish, gc, run, start};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Counts in networks whose addresses stay with names.
const VICTIM: &str = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=victim";

type World = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Runs the command and kills it when it is about to make its `nth` system call. The answer if it
/// ended before.
#[expect(unsafe_code, reason = "only the child itself can ask to be traced")]
fn killed_before(nth: usize, command: &mut Command, conf: &Value) -> Option<Answer> {
    // SAFETY: ptrace(2) is a bare system call and may be made between fork and exec.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = start(command, conf);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // The stop at exec(2).
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(..)));
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
    let mut stops = 0;
    let mut pass_on = None;
    loop {
        ptrace::syscall(pid, pass_on.take()).unwrap();
        // Its end is left to be waited for with its output.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        let status = loop {
            match waitid(nix::sys::wait::Id::Pid(pid), flags) {
                Err(Errno::EINTR) => {}
                other => break other.unwrap(),
            }
        };
        if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
            return Some(finish(child));
        }
        match waitpid(pid, None).unwrap() {
            // Each call stops twice: before and after.
            WaitStatus::PtraceSyscall(_) if stops == 2 * nth => break,
            WaitStatus::PtraceSyscall(_) => stops += 1,
            WaitStatus::Stopped(_, signal) => pass_on = Some(signal),
            _ => {}
        }
    }
    kill(pid, Signal::SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(9));
    None
}

/// Calls `then` after a kill before each system call of `verb`, and at last after none. Returns in
/// how many different states the kills left the store.
fn at_every_call(
    host: &Host,
    conf: &Value,
    verb: &str,
    mut prepare: impl FnMut(),
    mut then: impl FnMut(),
) -> usize {
    let mut states: Vec<World> = Vec::new();
    for nth in 0.. {
        prepare();
        let answer = killed_before(nth, command(verb, "victim").env("CNI_ARGS", VICTIM), conf);
        let state: World = host.world().into_keys().map(|path| (path, None)).collect();
        if !states.contains(&state) {
            states.push(state);
        }
        then();
        if let Some(answer) = answer {
            answer.ok();
            break;
        }
    }
    states.len()
}

fn dual() -> Value {
    json!({"ranges": [[{"subnet": "10.5.0.0/29"}], [{"subnet": "fd05::/125"}]]})
}

/// A host with another container that nothing may happen to.
fn host() -> (Host, Value, World) {
    let host = Host::new();
    let conf = host.conf(&dual());
    run("ADD", "other", &conf).ok();
    let before = host.world();
    (host, conf, before)
}

#[test]
fn add_is_undone_by_del() {
    let (host, conf, before) = host();
    let states = at_every_call(
        &host,
        &conf,
        "ADD",
        || {},
        || {
            run("DEL", "victim", &conf).ok();
            assert_eq!(host.world(), before);
        },
    );
    assert!(states >= 7, "each step was seen: {states}");
}

#[test]
fn add_is_undone_by_gc() {
    let (host, conf, before) = host();
    at_every_call(
        &host,
        &conf,
        "ADD",
        || {},
        || {
            gc(&conf, &["other"]).ok();
            assert_eq!(host.world(), before);
        },
    );
}

#[test]
fn add_again_gives_the_same_address_or_says_that_it_is_held() {
    let (host, conf, before) = host();
    at_every_call(
        &host,
        &conf,
        "ADD",
        || {},
        || {
            let reserved = host.world().into_keys().filter(|p| !before.contains_key(p)).collect::<Vec<_>>();
            let committed = reserved.iter().any(|p| p.to_str().unwrap().contains("/owner/"));
            let answer = run("ADD", "victim", &conf);
            if committed {
                assert!(answer.error(103).contains("container victim (eth0)"));
            } else {
                let ips = answer.ips();
                for path in reserved.iter().filter(|p| p.to_str().unwrap().contains("/addr/")) {
                    let ip = path.file_name().unwrap().to_str().unwrap();
                    assert!(
                        ips.iter().any(|given| given.starts_with(&format!("{ip}/"))),
                        "{ip} not in {ips:?}"
                    );
                }
            }
            run("DEL", "victim", &conf).ok();
            assert_eq!(host.world(), before);
        },
    );
}

#[test]
fn the_first_add_on_a_host() {
    let mut host = Host::new();
    let conf = |host: &Host| host.conf(&dual());
    for nth in 0.. {
        let answer = killed_before(nth, &mut command("ADD", "victim"), &conf(&host));
        run("DEL", "victim", &conf(&host)).ok();
        run("STATUS", "", &conf(&host)).ok();
        let ips = run("ADD", "next", &conf(&host)).ips();
        assert_eq!(ips.len(), 2);
        run("DEL", "next", &conf(&host)).ok();
        assert!(host.world().is_empty());
        if answer.is_some() {
            break;
        }
        host = Host::new();
    }
}

#[test]
fn what_nobody_was_told_does_not_fill_the_pool() {
    let (host, conf, _) = host();
    // Five addresses of v4 and six of v6: one is held by the other container, three by these.
    for container in ["a", "b", "c"] {
        run("ADD", container, &conf).ok();
    }
    let before = host.world();
    let mut reclaimed = 0;
    at_every_call(
        &host,
        &conf,
        "ADD",
        || {},
        || {
            let is_in = |part: &str| {
                host.world()
                    .into_keys()
                    .any(|p| p.starts_with(host.store().join(part)) && !before.contains_key(&p))
            };
            let (finished, taken) = (is_in("owner"), is_in("addr"));
            if finished {
                run("STATUS", "", &conf).error(50);
                run("ADD", "last", &conf).error(104);
                run("DEL", "victim", &conf).ok();
            } else {
                // Asked for by name or found as the last one, both times from another container.
                let mut asking = conf.clone();
                asking["runtimeConfig"] = json!({"ips": ["10.5.0.6"]});
                let conf = if reclaimed % 2 == 0 { &conf } else { &asking };
                run("STATUS", "", conf).ok();
                assert_eq!(run("ADD", "last", conf).ips()[0], "10.5.0.6/29");
                run("ADD", "none", conf).error(if reclaimed % 2 == 0 { 104 } else { 103 });
                run("DEL", "last", conf).ok();
                run("DEL", "victim", conf).ok();
                reclaimed += usize::from(taken);
            }
            assert_eq!(host.world(), before);
        },
    );
    assert!(reclaimed >= 4, "unfinished reservations were seen: {reclaimed}");
}

#[test]
fn del_is_completed_by_del_and_by_gc() {
    let (host, conf, before) = host();
    let add = || drop(run("ADD", "victim", &conf).ok());
    let states = at_every_call(&host, &conf, "DEL", add, || {
        run("DEL", "victim", &conf).ok();
        assert_eq!(host.world(), before);
    });
    assert!(states >= 6, "each step was seen: {states}");
    at_every_call(&host, &conf, "DEL", add, || {
        gc(&conf, &["other"]).ok();
        assert_eq!(host.world(), before);
    });
}

#[test]
fn gc_is_completed_by_gc_and_never_touches_the_living() {
    let (host, mut conf, before) = host();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "other", "ifname": "eth0"}]);
    let add = || drop(run("ADD", "victim", &conf).ok());
    at_every_call(&host, &conf, "GC", add, || {
        run("GC", "", &conf).ok();
        assert_eq!(host.world(), before);
    });
}

#[test]
fn a_name_keeps_its_address_whatever_is_killed() {
    let host = Host::new();
    let mut ipam = dual();
    ipam["sticky"] = "name".into();
    let conf = host.conf(&ipam);
    let add = || finish(start(command("ADD", "victim").env("CNI_ARGS", VICTIM), &conf)).ips();
    let first = add();
    run("DEL", "victim", &conf).ok();
    let nobody_else_has_it = || {
        for container in ["a", "b", "c", "d"] {
            let given = run("ADD", container, &conf).ips();
            assert!(!given.iter().any(|ip| first.contains(ip)), "{given:?} of {first:?}");
        }
        for container in ["a", "b", "c", "d"] {
            run("DEL", container, &conf).ok();
        }
    };
    for (verb, taken_back_by_gc) in [("ADD", false), ("ADD", true), ("DEL", false), ("DEL", true)] {
        let prepare = || {
            if verb == "DEL" {
                assert_eq!(add(), first);
            }
        };
        at_every_call(&host, &conf, verb, prepare, || {
            if taken_back_by_gc {
                gc(&conf, &[]).ok();
            } else {
                run("DEL", "victim", &conf).ok();
            }
            nobody_else_has_it();
            assert_eq!(add(), first);
            run("DEL", "victim", &conf).ok();
        });
    }
    // GC itself, too.
    let mut collecting = conf.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    at_every_call(
        &host,
        &collecting,
        "GC",
        || assert_eq!(add(), first),
        || {
            run("GC", "", &collecting).ok();
            nobody_else_has_it();
        },
    );
}
