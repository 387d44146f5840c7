//! Writing the one document that a runtime gets.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::write;

use crate::Deadline;

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the process was started with its stdout closed.
///
/// Before `main`, Rust's runtime opens /dev/null in place of a closed stdout, and an ADD would deliver its
/// result into nothing and succeed. So this is asked before: by a function that the loader calls.
pub(crate) fn was_closed() -> bool {
    WAS_CLOSED.load(Ordering::Relaxed)
}

#[used]
#[unsafe(link_section = ".init_array")]
#[expect(
    unsafe_code,
    reason = "the loader's list of functions to call before main is a section of the binary"
)]
static LOOK_AT_STDOUT: extern "C" fn() = look_at_stdout;

extern "C" fn look_at_stdout() {
    #[expect(unsafe_code, reason = "the descriptor may be closed, so nothing owns it that could be borrowed")]
    // SAFETY: F_GETFD has no argument and changes nothing, whatever the descriptor is.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// Writes everything; a reader that takes nothing is waited for until the deadline.
///
/// # Errors
/// What write(2) says, [`io::ErrorKind::TimedOut`] at the deadline. SIGPIPE is ignored in Rust programs, so a
/// closed pipe is an error too.
pub(crate) fn write_all(output: impl AsFd, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(&output, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_writable(&output, deadline)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Closes stdout, after which nothing may be written there: whoever reads it need not wait for the process' end, and a plugin's
/// caller goes on meanwhile.
///
/// # Errors
/// What close(2) says.
pub(crate) fn close() -> io::Result<()> {
    Ok(nix::unistd::close(libc::STDOUT_FILENO)?)
}

fn wait_writable(output: &impl AsFd, deadline: Deadline) -> io::Result<()> {
    let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, deadline.poll_timeout()) {
        Ok(0) if deadline.expired() => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn a_full_pipe_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let sent = vec![7; 1 << 20];
        let in_time = Deadline::after(Duration::from_secs(20));
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).map(|_| got)
            });
            write_all(&writer, &sent, in_time).unwrap();
            drop(writer);
            assert_eq!(reader.join().unwrap().unwrap(), sent);
        });
    }

    #[test]
    fn nobody_reads() {
        let (reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let error =
            write_all(&writer, &[7; 1 << 20], Deadline::after(Duration::from_millis(20))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(reader);
        let error = write_all(&writer, b"x", Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
