//! One call of a plugin, as a runtime makes it: environment, standard input, standard output, exit status.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cnitool::plugin_path;
use crate::netns::NetNs;
use crate::node::Node;
use crate::pod::Pod;
use crate::tools;

/// A call about to be made. Nothing of the test's own environment but `PATH` reaches the plugin.
#[derive(Clone)]
pub struct Call {
    program: PathBuf,
    /// Words before the program: a tracer, for example.
    prefix: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    stdin: Vec<u8>,
    /// Where it runs; nothing: where the thread is.
    netns: Option<NetNs>,
}

impl Call {
    /// A call of a binary under test with a command and the bytes of its configuration.
    pub fn new(binary: &str, command: &str, stdin: impl Into<Vec<u8>>) -> Self {
        let call = Self {
            program: tools::dist().join(binary),
            prefix: Vec::new(),
            env: BTreeMap::new(),
            stdin: stdin.into(),
            netns: None,
        };
        call.env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", tools::dist())
    }

    /// A call of a plugin under test or of a reference plugin, with all of them in reach.
    pub fn any(plugin: &str, command: &str, stdin: impl Into<Vec<u8>>) -> Self {
        let here = tools::dist().join(plugin);
        let program = if here.is_file() { here } else { tools::peers().join(plugin) };
        Self::new(program.to_str().expect("a path in UTF-8"), command, stdin).env("CNI_PATH", plugin_path())
    }

    /// The attachment that the call is about: `eth0` of a container.
    #[must_use]
    pub fn pod(self, pod: &Pod) -> Self {
        self.env("CNI_CONTAINERID", &pod.id).env("CNI_NETNS", pod.path()).ifname("eth0")
    }

    /// The host that the call is made on, one of several.
    #[must_use]
    pub fn on(mut self, node: &Node) -> Self {
        self.netns = Some(node.netns().clone());
        node.env().into_iter().fold(self, |call, (name, value)| call.env(name, value))
    }

    /// The name of the container's interface.
    #[must_use]
    pub fn ifname(self, ifname: &str) -> Self {
        self.env("CNI_IFNAME", ifname)
    }

    /// `CNI_ARGS`: `KEY=value;KEY=value`.
    #[must_use]
    pub fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// Sets one variable of the plugin's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.into(), value.as_ref().to_owned());
        self
    }

    /// Leaves one variable out of the plugin's environment.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.env.remove(OsStr::new(name));
        self
    }

    /// Another standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Runs the plugin by another program, which gets the plugin's path as its last argument.
    #[must_use]
    pub fn through<S: AsRef<OsStr>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix = prefix.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Makes the call and waits for its end.
    pub fn run(self) -> Reply {
        self.start().finish()
    }

    /// Makes an ADD. Where each asks for news of other hosts (`"peerRefresh": 0`), etcd's answer may take longer on a busy machine than
    /// ADD waits for it: then the container is deleted, and comes again, some times.
    #[track_caller]
    pub fn run_with_news(self) -> Reply {
        let attempts =
            if String::from_utf8_lossy(&self.stdin).contains(r#""peerRefresh":0"#) { 5 } else { 1 };
        for _ in 1..attempts {
            let reply = self.clone().run();
            if !reply.stderr.contains("etcd gave no answer within 200ms") {
                return reply;
            }
            self.clone().env("CNI_COMMAND", "DEL").run().done();
        }
        self.run()
    }

    /// Makes the call; its standard input is written and closed meanwhile.
    pub fn start(self) -> Running {
        let stdin = self.stdin.clone();
        let mut running = self.start_open(Stdio::piped());
        let mut pipe = running.child.stdin.take().expect("a pipe");
        if stdin.len() <= PIPE {
            feed(&mut pipe, &stdin);
        } else {
            // More than a pipe takes: the plugin may answer before it has read everything.
            running.feeder = Some(std::thread::spawn(move || feed(&mut pipe, &stdin)));
        }
        running
    }

    /// Makes the call with a standard output of one's own; standard input stays open and empty until
    /// [`Running::close_stdin`].
    pub fn start_open(self, stdout: Stdio) -> Running {
        let mut words = self.prefix.iter().map(OsString::as_os_str).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).env_clear().envs(&self.env);
        // A group of its own, so that a plugin can be killed with or without its children.
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).process_group(0);
        let child = match &self.netns {
            Some(netns) => netns.inside(|| command.spawn()),
            None => command.spawn(),
        };
        let child = child.unwrap_or_else(|error| panic!("start {}: {error}", self.program.display()));
        Running { child, feeder: None }
    }

    /// The variables and input, for a message that lets a person repeat the call.
    pub fn describe(&self) -> String {
        let variables = self.env.iter().map(|(name, value)| format!("{}={value:?} ", name.display()));
        let stdin = String::from_utf8_lossy(&self.stdin);
        format!("{}{} <<<'{stdin}'", variables.collect::<String>(), self.program.display())
    }
}

/// What a pipe takes without a reader.
const PIPE: usize = 64 * 1024;

fn feed(pipe: &mut impl Write, bytes: &[u8]) {
    match pipe.write_all(bytes) {
        Ok(()) => {}
        // A plugin that refuses before it has read everything is within its rights.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => panic!("write to the plugin: {error}"),
    }
}

/// A call under way.
pub struct Running {
    child: Child,
    feeder: Option<JoinHandle<()>>,
}

impl Running {
    /// The plugin's process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the plugin only, as the kernel's out-of-memory killer does. It may have ended already.
    pub fn kill(&self) {
        let _ended_already = kill(self.process(), Signal::SIGKILL);
    }

    /// Kills the plugin and every process that it started, as the end of a runtime's control group does.
    pub fn kill_group(&self) {
        let _ended_already = killpg(self.process(), Signal::SIGKILL);
    }

    fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process IDs fit"))
    }

    /// Writes to the standard input of a call made with [`Call::start_open`].
    pub fn write(&mut self, bytes: &[u8]) {
        feed(self.child.stdin.as_mut().expect("standard input is open"), bytes);
    }

    /// Closes the standard input of a call made with [`Call::start_open`].
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for the end. An open standard input stays open.
    pub fn finish(mut self) -> Reply {
        let stdin = self.child.stdin.take();
        let errors = self.child.stderr.take().map(|mut pipe| std::thread::spawn(move || read(&mut pipe)));
        let stdout = self.child.stdout.take().map(|mut pipe| read(&mut pipe)).unwrap_or_default();
        let status = self.child.wait().expect("wait for the plugin");
        drop(stdin);
        if let Some(feeder) = self.feeder {
            feeder.join().expect("write to the plugin");
        }
        let stderr = errors.map(|reader| reader.join().expect("read the plugin's standard error"));
        Reply { status, stdout, stderr: String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned() }
    }
}

fn read(pipe: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).expect("read from the plugin");
    bytes
}

/// How a call ended.
#[derive(Debug)]
pub struct Reply {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// The bytes of standard output.
    pub stdout: Vec<u8>,
    /// The text of standard error.
    pub stderr: String,
}

/// The error JSON of the CNI specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// The version that the error is written in.
    pub version: String,
    /// The specification's or Weft's own code.
    pub code: u64,
    /// What failed, in one line.
    pub msg: String,
    /// Why, and what is left.
    pub details: String,
}

impl CniError {
    /// Panics unless message or details contain every one of the words.
    #[track_caller]
    pub fn assert_names(&self, words: &[&str]) -> &Self {
        let text = format!("{}\n{}", self.msg, self.details);
        for word in words {
            assert!(text.contains(word), "the error does not name {word:?}: {self:?}");
        }
        self
    }
}

impl Reply {
    /// Whether the call succeeded.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// The result of a call that must succeed and print one.
    #[track_caller]
    pub fn result(&self) -> Value {
        self.assert_success();
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON, {error}: {}", String::from_utf8_lossy(&self.stdout)))
    }

    /// A call that must succeed and print nothing: DEL, CHECK, GC, STATUS.
    #[track_caller]
    pub fn done(&self) {
        self.assert_success();
        assert!(self.stdout.is_empty(), "it printed {}", String::from_utf8_lossy(&self.stdout));
    }

    #[track_caller]
    fn assert_success(&self) {
        assert!(
            self.status.success(),
            "the call failed, {}: {}\nstandard error: {}",
            self.status,
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
    }

    /// The error of a call that must fail. The code of a panic is a bug in any test that does not provoke one.
    #[track_caller]
    pub fn error(&self) -> CniError {
        let error = self.any_error();
        assert!(
            error.code != 100 && !self.stderr.contains("panicked at"),
            "it panicked: {error:?} {}",
            self.stderr
        );
        error
    }

    /// The error of a call that must fail, as the specification has it: an exit status other than 0, no signal, and
    /// one JSON object with version, code and message on standard output.
    #[track_caller]
    pub fn any_error(&self) -> CniError {
        let text = String::from_utf8_lossy(&self.stdout);
        assert!(!self.status.success(), "it succeeded, where an error is due: {text}");
        assert_eq!(self.status.signal(), None, "it died of a signal: {text} {}", self.stderr);
        let json: Value = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no error JSON, {error}: {text:?} {}", self.stderr));
        let field = |name: &str| json[name].as_str().map(str::to_owned);
        let version = field("cniVersion").unwrap_or_else(|| panic!("no cniVersion: {text}"));
        let code = json["code"].as_u64().unwrap_or_else(|| panic!("no code: {text}"));
        let msg = field("msg").unwrap_or_else(|| panic!("no msg: {text}"));
        assert_ne!(code, 0, "0 is no error's code: {text}");
        assert!(!msg.is_empty() && !msg.contains('\n'), "a message is one line: {text}");
        CniError { version, code, msg, details: field("details").unwrap_or_default() }
    }

    /// The error of a call that must fail with a certain code.
    #[track_caller]
    pub fn error_code(&self, code: u64) -> CniError {
        let error = self.error();
        assert_eq!(error.code, code, "{error:?}");
        error
    }
}

/// A directory for `CNI_PATH` in which some binaries are missing or other ones.
pub fn cni_path(directory: &Path, binaries: &[&str]) {
    std::fs::create_dir_all(directory).expect("make a plugin directory");
    for binary in binaries {
        std::os::unix::fs::symlink(tools::dist().join(binary), directory.join(binary))
            .expect("link a plugin");
    }
}

/// A plugin that is a shell script, in a directory for `CNI_PATH`.
///
/// A child process writes it: what this one had open for writing cannot be executed as long as a child that another test has just
/// forked has it open, too (`ETXTBSY`, execve(2)).
pub fn script(directory: &str, binary: &str, body: &str) {
    std::fs::create_dir_all(directory).expect("make a plugin directory");
    let path = Path::new(directory).join(binary);
    let draft = Path::new(directory).join(format!("{binary}.draft"));
    std::fs::write(&draft, format!("#!/bin/sh\n{body}\n")).expect("write a script");
    std::fs::set_permissions(&draft, Permissions::from_mode(0o755)).expect("make a script runnable");
    tools::command(&format!("cp -p {} {}", draft.display(), path.display()));
    std::fs::remove_file(&draft).expect("remove the draft of a script");
}
