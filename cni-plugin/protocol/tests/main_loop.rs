//! The main loop, driven as a runtime drives it: this program executes itself as a plugin, with environment,
//! stdin and stdout in every condition that a runtime may leave them in.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod main_loop_cases;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::catch_unwind;
use std::process::{Command as Process, ExitCode, Output, Stdio};

use cni_protocol::{AddResult, Code, Command, Error, Interface, Outcome, Plugin, run};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Set in the environment of the program where it is to be the plugin.
const AS_PLUGIN: &str = "AS_PLUGIN";

const PLUGIN: Plugin = Plugin { name: "example", version: "1.2.3", about: "An example.", handler: handle };

fn main() -> ExitCode {
    if std::env::var_os(AS_PLUGIN).is_some() {
        return run(&PLUGIN);
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut stdout = io::stdout();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in main_loop_cases::ALL.iter().filter(|(name, _)| name.contains(&filter)) {
        let is_ok = catch_unwind(case).is_ok();
        *(if is_ok { &mut passed } else { &mut failed }) += 1;
        writeln!(stdout, "test {name} ... {}", if is_ok { "ok" } else { "FAILED" }).unwrap();
    }
    writeln!(stdout, "\ntest result: {passed} passed; {failed} failed").unwrap();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does what the configuration's `do` says, and leaves a note of it in the file `note`.
#[expect(clippy::needless_pass_by_value, reason = "a handler gets its command for good")]
#[expect(clippy::panic, reason = "what a panic ends in is a case")]
fn handle(command: Command) -> Result<Outcome, Error> {
    let conf = command.call().conf.clone();
    let text = move |key: &str| conf.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let note = text("note");
    if !note.is_empty() {
        let written = std::fs::write(&note, format!("{command:?}"));
        written.map_err(|error| Error::new(Code::Io, format!("{note}: {error}")))?;
    }
    log::info!("the handler is at work");
    match text("do").as_str() {
        "fail" => Err(Error::new(Code::Kernel, "the step failed").detail("first").detail("second")),
        "panic" => panic!("the handler panicked"),
        "attach" => {
            let interfaces = vec![Interface { name: "eth0".into(), mtu: Some(1500), ..Interface::default() }];
            let result = AddResult { interfaces, ..AddResult::default() };
            let rollback = move || {
                std::fs::write(note, "rolled back").unwrap();
                vec!["one thing is left".to_owned()]
            };
            Ok(Outcome::Attached { result, rollback: Box::new(rollback) })
        }
        _ => Ok(Outcome::Done),
    }
}

/// A call of the plugin.
pub(crate) struct Call {
    pub(crate) process: Process,
    conf: Value,
}

impl Call {
    /// A call with nothing wrong in it.
    pub(crate) fn new(command: &str, netns: &Netns, conf: &Value) -> Self {
        let mut process = Process::new(std::env::current_exe().unwrap());
        process.env_clear();
        process.env(AS_PLUGIN, "1").env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c1");
        process.env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns.path()).env("CNI_PATH", "/nowhere");
        let mut whole = json!({"cniVersion": "1.1.0", "name": "n", "type": "example"});
        for (key, value) in conf.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Self { process, conf: whole }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.process.env(name, value);
        self
    }

    pub(crate) fn output(self) -> Output {
        let text = self.conf.to_string();
        self.output_with(text.as_bytes())
    }

    /// Runs it with this on stdin.
    pub(crate) fn output_with(mut self, stdin: &[u8]) -> Output {
        self.process.stdout(Stdio::piped());
        self.outcome(stdin)
    }

    /// Runs it with stdout as it was set in `process`.
    pub(crate) fn status_and_stderr(self) -> Output {
        let text = self.conf.to_string();
        self.outcome(text.as_bytes())
    }

    fn outcome(mut self, stdin: &[u8]) -> Output {
        let mut child = self.process.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Err(error) = child.stdin.take().unwrap().write_all(stdin) {
            // A plugin that refuses early does not read everything.
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        child.wait_with_output().unwrap()
    }
}

/// The one JSON document on the stdout of a failed call, of which every key is there.
pub(crate) fn error_of(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (key, is_there) in [
        ("cniVersion", json["cniVersion"].is_string()),
        ("code", json["code"].is_u64()),
        ("msg", json["msg"].as_str().is_some_and(|text| !text.is_empty() && !text.contains('\n'))),
        ("details", json["details"].as_str().is_some_and(|text| !text.is_empty())),
    ] {
        assert!(is_there, "{key}: {json}");
    }
    json
}

/// A network namespace other than this program's, as long as it is open.
pub(crate) struct Netns(File);

impl Netns {
    pub(crate) fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::scope(|scope| scope.spawn(open).join().unwrap()))
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}
