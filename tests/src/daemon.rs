//! Programs that run until they are told to end: etcd, flanneld, Weft's agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::wait::eventually;

/// How long a program may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lines of a log that a failed test shows.
const TAIL: usize = 40;

/// A running program. It ends with this value, and with the thread that started it, whatever happens to that.
pub struct Daemon {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program in the namespaces of this thread. What it prints is appended to a file. Of the test's own
    /// environment only `PATH` reaches it.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(command: &Command, log: &Path) -> Self {
        let directory = log.parent().expect("a log is in a directory");
        fs::create_dir_all(directory).expect("make the directory of a log");
        let file = File::options().create(true).append(true).open(log).expect("open a log");
        // The kernel kills it with the thread that started it: a test that is killed leaves nothing behind.
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        wrapped.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped.stdin(Stdio::null()).stdout(file.try_clone().expect("share a log")).stderr(file);
        let child = wrapped.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child: Mutex::new(child), log: log.to_owned() }
    }

    /// The program's process ID.
    pub fn pid(&self) -> u32 {
        self.with_child(|child| child.id())
    }

    /// Everything that it has printed so far, also in earlier lives with the same log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.with_child(|child| child.try_wait().expect("look after a program"))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended within ten seconds.
    pub fn wait(&self) -> ExitStatus {
        eventually(PATIENCE, "a program ends", || self.ended())
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        self.with_child(|child| {
            // A process ID is given away again only once its process was waited for, which happens in here.
            if child.try_wait().expect("look after a program").is_none() {
                let pid = process_id(child);
                kill(pid, signal).unwrap_or_else(|error| panic!("send {signal} to {pid}: {error}"));
            }
        });
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Ends it as the kernel's out-of-memory killer does.
    pub fn kill(&self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.wait()
    }

    /// Holds it in the middle of whatever it does: its sockets stay open and nobody answers.
    ///
    /// # Panics
    /// When it has ended.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        // Its threads run on for a moment. What is found is left for whoever asks how it ended.
        let found = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let stopped = self.with_child(|child| waitid(Id::Pid(process_id(child)), found));
        assert!(matches!(stopped, Ok(WaitStatus::Stopped(..))), "{stopped:?}");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn with_child<T>(&self, work: impl FnOnce(&mut Child) -> T) -> T {
        // Poisoned means that another thread's test has failed; the process is to be ended all the same.
        work(&mut self.child.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn process_id(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process IDs fit"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_already = self.with_child(|child| child.kill().and_then(|()| child.wait()));
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            println!("--- the end of {}\n{}", self.log.display(), tail.join("\n"));
        }
    }
}
