//! Starting a program without waiting for it.
//!
//! `std::process::Command` stops its caller until the child has executed the program, as the two share their
//! memory until then: 0.1 ms at best, and more where the child starts on a processor that slept. Here the child
//! has a stack of its own, and its caller goes on at once; waiting for the child tells if the program could not
//! be executed.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

/// The child's stack in bytes: a handful of system calls, and the frame of a signal.
const STACK: usize = 32 * 1024;

/// A child process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Readable once the child has ended.
    pub(crate) ended: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    /// `None` once it was leaked, as the child may still be in need of it.
    launch: Option<Box<Launch>>,
}

/// What the child reads and writes between clone(2) and execve(2). It stays where it is until the child has ended.
#[derive(Debug)]
struct Launch {
    program: CString,
    /// `name=value`; what `pointers` points to.
    _environment: Vec<CString>,
    /// Pointers to the environment, then null.
    pointers: Vec<*const c_char>,
    stdin: RawFd,
    stdout: RawFd,
    stack: Vec<u128>,
    /// Why the program was not executed; 0 as long as nothing failed.
    errno: AtomicI32,
}

impl Process {
    /// Starts a program with this process' environment, in which `env` wins, with pipes at its stdin and stdout. This process'
    /// ends of these do not block.
    ///
    /// # Errors
    /// When the kernel has no process or pipe to give. What keeps the program from being executed is in
    /// [`Process::not_executed`] when it has ended.
    pub(crate) fn start(program: &Path, env: &[(&str, &str)]) -> io::Result<Self> {
        let (child_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        for end in [&stdin, &stdout] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let mut launch =
            Box::new(Launch::new(program, env, child_stdin.as_raw_fd(), child_stdout.as_raw_fd())?);
        let (pid, ended) = launch.clone_process()?;
        let (stdin, stdout) = (Some(stdin), Some(stdout));
        Ok(Self { pid, ended, stdin, stdout, launch: Some(launch) })
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(kill(self.pid, Signal::SIGKILL)?)
    }

    /// Waits for the child's end.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            #[expect(unsafe_code, reason = "nix' waitpid knows no status that std could show")]
            // SAFETY: waitpid(2) writes the status and touches no other memory.
            match Errno::result(unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, 0) }) {
                Ok(_) => return Ok(ExitStatus::from_raw(status)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Why the program was not executed, of a child that has ended.
    pub(crate) fn not_executed(&self) -> Option<Errno> {
        let errno = self.launch.as_ref()?.errno.load(Ordering::Acquire);
        (errno != 0).then(|| Errno::from_raw(errno))
    }

    /// Gives up waiting for a child that may not have executed its program yet.
    pub(crate) fn abandon(&mut self) {
        if let Some(launch) = self.launch.take() {
            Box::leak(launch);
        }
    }
}

impl Launch {
    fn new(program: &Path, env: &[(&str, &str)], stdin: RawFd, stdout: RawFd) -> io::Result<Self> {
        let is_replaced = |name: &OsStr| env.iter().any(|(replaced, _)| name == *replaced);
        let environment = std::env::vars_os()
            .filter(|(name, _)| !is_replaced(name))
            .chain(env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", &value.into_vec()].concat()))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = environment.iter().map(|entry| entry.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self {
            program: CString::new(program.as_os_str().as_bytes())?,
            _environment: environment,
            pointers,
            stdin,
            stdout,
            stack: Vec::with_capacity(STACK / size_of::<u128>()),
            errno: AtomicI32::new(0),
        })
    }

    /// clone(2) with [`Launch::run`] for the child. Returns its process ID and pidfd.
    fn clone_process(&mut self) -> io::Result<(Pid, OwnedFd)> {
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut pidfd: c_int = -1;
        let top = self.stack.spare_capacity_mut().as_mut_ptr_range().end;
        let this: *mut Self = self;
        #[expect(unsafe_code, reason = "std and nix start processes only by stopping the caller")]
        // SAFETY: the child runs on the memory of `self.stack`, which nothing else uses, reads `self`, which is on
        // the heap and stays there until the child has ended (or for ever, `Process::abandon`), and writes nothing
        // but `errno`, which is atomic. It allocates nothing and takes no lock. execve(2), when it fails, also sets
        // errno(3), which the child shares with the calling thread: that may then report another reason for a
        // failure of its own in the same instant, of a command that fails in any case.
        let pid = unsafe { libc::clone(Self::run, top.cast(), flags, this.cast(), &raw mut pidfd) };
        let pid = Pid::from_raw(Errno::result(pid)?);
        #[expect(
            unsafe_code,
            reason = "a descriptor fresh from the kernel is a number that somebody has to own"
        )]
        // SAFETY: the kernel has just made the descriptor, so nothing else owns or closes it.
        Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
    }

    /// The child's life until it executes the program.
    extern "C" fn run(launch: *mut c_void) -> c_int {
        #[expect(unsafe_code, reason = "clone(2) hands over a pointer without a type")]
        // SAFETY: it is the pointer to a live `Launch` that `clone_process` gave.
        let launch = unsafe { &*launch.cast::<Self>() };
        let errno = launch.execute();
        launch.errno.store(errno as i32, Ordering::Release);
        127
    }

    /// Returns only when something failed.
    fn execute(&self) -> Errno {
        let arguments = [self.program.as_ptr(), ptr::null()];
        #[expect(unsafe_code, reason = "what nix wraps allocates, or wants descriptors that are owned")]
        #[expect(
            clippy::multiple_unsafe_ops_per_block,
            reason = "one after the other, all for the same reason"
        )]
        // SAFETY: both descriptors were inherited and are open. The strings and the arrays of pointers, which end
        // with null, live in `self` and on this stack. SIGPIPE is ignored in Rust programs, and SIGXFSZ in plugins; both would be in the
        // program executed; the child has signal dispositions of its own.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            if libc::dup2(self.stdin, libc::STDIN_FILENO) != -1
                && libc::dup2(self.stdout, libc::STDOUT_FILENO) != -1
            {
                libc::execve(self.program.as_ptr(), arguments.as_ptr(), self.pointers.as_ptr());
            }
        }
        Errno::last()
    }
}
