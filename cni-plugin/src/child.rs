//! Children that outlive the plugin: for what a runtime need not wait for.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Which of the two this process is.
pub enum Forked {
    Parent { child: Pid },
    Child(Child),
}

/// This process is the child. It ends in [`Child::exit`], and never as its parent would.
pub struct Child {
    /// Whether the runtime need not wait for it: that reads a plugin's output to its end, and signals its process group.
    pub detached: nix::Result<()>,
}

/// Forks.
///
/// # Errors
/// Those of fork(2).
pub fn fork() -> nix::Result<Forked> {
    #[expect(unsafe_code, reason = "only a process of its own can wait in the caller's place")]
    // SAFETY: a plugin has one thread, so no lock can be held by another that the child lacks.
    let forked = unsafe { nix::unistd::fork() }?;
    Ok(match forked {
        ForkResult::Parent { child } => Forked::Parent { child },
        ForkResult::Child => Forked::Child(Child { detached: detach() }),
    })
}

impl Child {
    /// Ends the child and nothing else.
    pub fn exit(self, is_well: bool) -> ! {
        #[expect(unsafe_code, reason = "exit(3) would run the parent's exit handlers and flush its buffers")]
        // SAFETY: _exit(2) only ends the process.
        unsafe {
            nix::libc::_exit(i32::from(!is_well))
        }
    }
}

fn detach() -> nix::Result<()> {
    setsid()?;
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(null)
}
