//! Starting a plugin and measuring it from outside.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::wait::wait;

/// First argument of the helper process that measures memory.
pub(crate) const PEAK_MEMORY: &str = "--peak-memory";

/// What one process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// From before the process was started until it had ended and its output was read.
    pub(crate) wall: Duration,
    /// User and system time of the process and of the children it waited for.
    pub(crate) cpu: Duration,
    /// Largest resident set among them, in KiB.
    pub(crate) peak_kib: u64,
}

impl Cost {
    /// One after the other.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            peak_kib: self.peak_kib.max(next.peak_kib),
        }
    }

    /// Time of processors in milliseconds.
    pub(crate) fn cpu_milliseconds(self) -> f64 {
        self.cpu.as_secs_f64() * 1e3
    }

    /// Wall-clock time in milliseconds.
    pub(crate) fn milliseconds(self) -> f64 {
        self.wall.as_secs_f64() * 1e3
    }
}

/// Runs a command as a container runtime runs a plugin: input and both outputs are pipes, read until all who hold
/// them have closed them. Returns the cost and standard output.
///
/// # Panics
/// When the command cannot be started or fails: a failure's speed is of no interest.
pub(crate) fn measure(command: &mut Command, stdin: &[u8]) -> (Cost, Vec<u8>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    #[expect(clippy::zombie_processes, reason = "reap() waits for it")]
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    // A program that does not read its input (floor) may be gone already.
    if let Err(error) = child.stdin.take().expect("a pipe").write_all(stdin) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "write to {command:?}: {error}");
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().expect("a pipe").read_to_end(&mut stdout).expect("read the output");
    child.stderr.take().expect("a pipe").read_to_end(&mut stderr).expect("read the messages");
    let (status, usage) = reap(&child);
    let wall = start.elapsed();
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{command:?} failed with wait status {status}: {}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
    let peak_kib = u64::try_from(usage.ru_maxrss).expect("a size");
    (Cost { wall, cpu, peak_kib }, stdout)
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_micros(u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).expect("a duration"))
}

/// Waits for the child's end and takes what the kernel accounted to it.
fn reap(child: &Child) -> (libc::c_int, libc::rusage) {
    let pid = libc::pid_t::try_from(child.id()).expect("a process ID");
    let mut status = 0;
    #[expect(unsafe_code, reason = "nix has no wait4, and only wait4 tells what one child cost")]
    // SAFETY: rusage is a struct of integers, for which zeros are valid; both pointers are to live locals of the
    // types that wait4(2) fills.
    let (reaped, usage) = unsafe {
        let mut usage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
    };
    assert_eq!(reaped, pid, "wait4: {}", Errno::last());
    (status, usage)
}

/// Makes this process the parent of processes that outlive the plugin which forked them.
pub(crate) fn adopt_orphans() {
    prctl::set_child_subreaper(true).expect("become a subreaper");
}

/// Waits until everything that plugins left running in the background has ended, so that it is not in the way of
/// what is measured next.
pub(crate) fn settle() {
    while wait() != Err(Errno::ECHILD) {}
}

/// A command that runs `program` below a helper process, see [`report_peak_memory`].
pub(crate) fn with_peak_memory(program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(PEAK_MEMORY).arg(program);
    command
}

/// The helper's side: runs the program and prints its peak memory in KiB instead of its output.
///
/// The kernel counts what the parent had resident at the moment of exec towards the child's peak. This process has
/// just been started and is smaller than anything it measures; the benchmark itself is not.
pub(crate) fn report_peak_memory(program: &str, arguments: &[&str]) -> ExitCode {
    let mut stdin = Vec::new();
    std::io::stdin().read_to_end(&mut stdin).expect("read the input");
    let (cost, _) = measure(Command::new(program).args(arguments), &stdin);
    println!("{}", cost.peak_kib);
    ExitCode::SUCCESS
}
