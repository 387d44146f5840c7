//! What people run to see Weft at work comes to its end, leaves nothing, and can be stopped in the middle.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use weft_tests::{Host, World, command, eventually};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Every process of a demo has it in its environment, with another value for each.
const MARK: &str = "WEFT_TEST_DEMO";
/// What ends a process may have to do first.
const WITHIN: Duration = Duration::from_secs(5);

/// A demo that runs, in a process group of its own as at a terminal.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    mark: String,
    said: Vec<String>,
    /// For temporary files.
    directory: tempfile::TempDir,
}

impl Demo {
    fn start(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().display().to_string();
        // As from a terminal: whoever runs tests in the background may ignore the signal of ctrl-C, and processes inherit that.
        let mut demo = Command::new("env");
        demo.arg("--default-signal=INT").arg(Path::new(ROOT).join("hack/demo"));
        demo.arg(name).env(MARK, &mark).env("TMPDIR", directory.path()).process_group(0);
        // What it builds is not to depend on who starts it.
        for (variable, _) in std::env::vars_os() {
            if variable
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
            {
                demo.env_remove(variable);
            }
        }
        let mut child =
            demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, mark, said: Vec::new(), directory }
    }

    /// Reads what it says until it says this.
    #[track_caller]
    fn read_until(&mut self, words: &str) {
        for line in self.lines.by_ref() {
            self.said.push(line.unwrap());
            if self.said.last().unwrap().contains(words) {
                return;
            }
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("it never says {words:?}:\n{}\n{errors}", self.said.join("\n"));
    }

    /// Its exit status. Nothing of it is left then: no process, and no file.
    fn finish(mut self) -> Option<i32> {
        // What it still says fits into the pipe; its end would not come while a process that is left has the pipe.
        let status = self.child.wait().unwrap();
        eventually(WITHIN, "all processes of the demo end", || self.processes().is_empty().then_some(()));
        let files: Vec<_> = fs::read_dir(self.directory.path()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        assert!(
            !Path::new("/run/netns").exists(),
            "network namespaces are left: {}",
            command("ip netns list")
        );
        status.code()
    }

    fn processes(&self) -> Vec<PathBuf> {
        let wanted = format!("{MARK}={}", self.mark);
        let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        // One that is gone by now has no environment.
        let is_ours = |path: &PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        };
        all.filter(is_ours).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            killpg(group(&self.child), Signal::SIGKILL).expect("end the demo of a test that has failed");
            self.child.wait().expect("the demo ends");
        }
    }
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[test]
fn one_host_from_add_to_del() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    let mut demo = Demo::start("single");
    demo.read_until("ADD:");
    assert!(!demo.processes().is_empty(), "it is not known by its mark");
    for words in ["container db", "CHECK job", "detached", "What is left", "everything shown worked"] {
        demo.read_until(words);
    }
    assert_eq!(demo.finish(), Some(0));
    before.assert_unchanged(&host, &[], "the demo");
}

#[test]
fn everything_on_one_host() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    let mut demo = Demo::start("everything");
    for words in [
        "Host port 8080 is port 80 of web",
        "web may ask db at 5432",
        "egress.deny",
        "Limits, measured by iperf3",
        "Names and settings",
        "CHECK and STATUS",
        "web comes again",
        "DEL",
        "What is left",
        "everything shown worked",
    ] {
        demo.read_until(words);
    }
    assert_eq!(demo.finish(), Some(0));
    before.assert_unchanged(&host, &[], "the demo");
}

/// At any of its stages: before containers are there, among them, and while they are taken away.
#[test]
fn stopped_in_the_middle() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    for words in ["host: namespaces", "The containers talk", "DEL: detach"] {
        let mut demo = Demo::start("single");
        demo.read_until(words);
        assert!(!demo.processes().is_empty());
        killpg(group(&demo.child), Signal::SIGINT).unwrap();
        assert_eq!(demo.finish(), Some(130), "stopped at {words:?}");
        before.assert_unchanged(&host, &[], &format!("the demo stopped at {words:?}"));
    }
}

/// What the words `hack/demo` alone show.
const HOSTS: [&str; 7] = [
    "Three hosts lease a subnet each",
    "ADD: two containers on each",
    "Everybody reaches everybody",
    "What host one says",
    "etcd is away",
    "etcd is back",
    "loses its power, and boots again",
];

#[test]
fn three_hosts_of_which_one_dies_and_comes_back() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    let mut demo = Demo::start("");
    for words in HOSTS.into_iter().chain(["everything shown worked"]) {
        demo.read_until(words);
    }
    assert_eq!(demo.finish(), Some(0));
    before.assert_unchanged(&host, &[], "the demo");
}

/// It stays, and what it says can be done to look around can be done.
#[test]
fn three_hosts_that_stay_until_told_to_go() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    let mut demo = Demo::start("--keep");
    for words in HOSTS.into_iter().chain(["It stays up until ctrl-C", "nsenter --target"]) {
        demo.read_until(words);
    }
    let there = demo.said.last().unwrap().trim().trim_end_matches("bash").to_owned();
    for (words, shows) in [("ip netns list", "three-b"), ("ip netns exec one-a ping", " 0% packet loss")] {
        demo.read_until(words);
        let shown = demo.said.last().unwrap().trim().replace("ping", "ping -c 1");
        let line = shown.split("  ").next().unwrap();
        let text = command(&format!("{there}{line}"));
        assert!(text.contains(shows), "{line}: {text}");
    }
    killpg(group(&demo.child), Signal::SIGINT).unwrap();
    assert_eq!(demo.finish(), Some(130));
    before.assert_unchanged(&host, &[], "the demo");
}
