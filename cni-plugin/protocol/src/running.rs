//! A plugin that was started: feed it, listen to it, wait for it, all until a deadline.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use serde_json::Value;

use crate::processor::move_away;
use crate::spawn::Process;
use crate::{Code, Deadline, Delegate, Error, Verb};

/// The longest output that is taken from a plugin, in bytes.
const OUTPUT_MAX: usize = 4 << 20;

/// How much of an output that is no error JSON is shown in the error, in bytes.
const HEAD: usize = 500;

/// How long a plugin may take to end before it is listened to.
const MOMENT: Duration = Duration::from_millis(10);

/// How long a killed plugin is waited for. One that sits in the kernel for longer is left to init.
const DEATH: Duration = Duration::from_secs(1);

/// A plugin that waits for its configuration. Dropped before [`Running::finish`] it is killed: fed nothing, it
/// had no effect yet; after [`Running::feed`] it may have had one. In a child that the caller forks meanwhile,
/// dropping it does nothing.
#[derive(Debug)]
pub struct Running {
    delegate: Delegate,
    /// Type and command, for messages.
    name: String,
    process: Process,
    /// The process whose child it is.
    parent: u32,
    /// How much of its configuration it was given.
    sent: usize,
    is_reaped: bool,
}

/// The pipes of a plugin and what has gone through them.
struct Pipes<'a> {
    to: Option<OwnedFd>,
    unsent: &'a [u8],
    from: Option<OwnedFd>,
    output: Vec<u8>,
}

impl Running {
    pub(crate) fn new(delegate: Delegate, verb: Verb, process: Process) -> Self {
        let name = delegate.name(verb);
        Self { delegate, name, process, parent: std::process::id(), sent: 0, is_reaped: false }
    }

    /// Whether the kernel took the file for a program. Known when [`Running::finish`] has failed.
    #[must_use]
    pub fn was_executed(&self) -> bool {
        self.process.not_executed().is_none()
    }

    /// Has the plugin work beside its caller, for who has other things to do before [`Running::finish`].
    #[must_use]
    pub fn beside(self) -> Self {
        move_away(self.process.pid);
        self
    }

    /// Sends as much of the configuration as the pipe takes at once, so that the plugin works while its caller
    /// does something else before [`Running::finish`], which wants the same bytes.
    ///
    /// # Errors
    /// [`Code::Io`] when the pipe fails.
    pub fn feed(&mut self, stdin: &[u8]) -> Result<(), Error> {
        let mut pipes =
            Pipes { to: self.process.stdin.take(), unsent: stdin, from: None, output: Vec::new() };
        let fed = pipes.set_nonblocking().and_then(|()| pipes.send());
        self.sent = stdin.len() - pipes.unsent.len();
        self.process.stdin = pipes.to;
        fed.map_err(|error| Error::new(Code::Io, format!("talking to {} failed: {error}", self.name)))
    }

    /// Sends the configuration, takes the output and waits for the end, however the plugin orders them.
    /// Returns what a successful plugin wrote to stdout.
    ///
    /// # Errors
    /// The plugin's own error with its code, its name put before the message; [`Code::Decode`] for a failure
    /// without error JSON or an output of more than 4 MiB; [`Code::Deadline`] when it had to be killed;
    /// [`Code::Io`] when it could not be executed, which names the file and the directories searched, and when the
    /// pipes fail.
    pub fn finish(&mut self, stdin: &[u8], deadline: Deadline) -> Result<Vec<u8>, Error> {
        let mut pipes = Pipes {
            to: self.process.stdin.take(),
            unsent: stdin.get(self.sent..).unwrap_or_default(),
            from: self.process.stdout.take(),
            output: Vec::new(),
        };
        let fail =
            |error: io::Error| Error::new(Code::Io, format!("talking to {} failed: {error}", self.name));
        pipes.set_nonblocking().map_err(fail)?;
        pipes.wait_for_end(&self.process.ended, deadline).map_err(fail)?;
        loop {
            let is_alive = pipes.exchange(&self.process.ended, deadline).map_err(fail)?;
            if pipes.output.len() > OUTPUT_MAX {
                return Err(Error::new(
                    Code::Decode,
                    format!("{} wrote more than 4 MiB to stdout", self.name),
                ));
            }
            if !is_alive {
                break;
            }
            if deadline.expired() {
                return Err(Error::new(
                    Code::Deadline,
                    format!("{} did not end in time and was killed (\"timeout\" sets the time)", self.name),
                ));
            }
        }
        let status = self.process.wait().map_err(fail)?;
        self.is_reaped = true;
        if let Some(reason) = self.process.not_executed() {
            return Err(self.delegate.not_executed(reason));
        }
        if status.success() { Ok(pipes.output) } else { Err(failure(&self.name, status, &pipes.output)) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_reaped || self.parent != std::process::id() {
            return;
        }
        let mut fds = [PollFd::new(self.process.ended.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(DEATH).unwrap_or(PollTimeout::MAX);
        let reaped = self.process.kill().and_then(|()| match poll(&mut fds, patience)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => self.process.wait(),
        });
        if let Err(error) = reaped {
            log::warn!("{} was killed and left to init: {error}", self.name);
            self.process.abandon();
        }
    }
}

impl Pipes<'_> {
    fn set_nonblocking(&self) -> io::Result<()> {
        if let Some(to) = &self.to {
            fcntl(to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        if let Some(from) = &self.from {
            fcntl(from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Gives a plugin that has its configuration a moment to end. What it says fits into the pipe mostly; to be woken up for
    /// that, and then for its end, takes two changes of process more.
    fn wait_for_end(&mut self, ended: &OwnedFd, deadline: Deadline) -> io::Result<()> {
        self.send()?;
        if self.to.is_some() {
            return Ok(());
        }
        let moment = Deadline::after(deadline.remaining().min(MOMENT));
        match poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], moment.poll_timeout()) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Moves what can be moved, waiting for it; false once the plugin has ended and nothing more can come.
    ///
    /// Its end counts, not that of its output: a daemon that it left behind may hold the pipe open.
    fn exchange(&mut self, ended: &OwnedFd, deadline: Deadline) -> io::Result<bool> {
        self.send()?;
        let has_ended = {
            let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.from.as_ref().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN)));
            fds.extend(self.to.as_ref().map(|to| PollFd::new(to.as_fd(), PollFlags::POLLOUT)));
            match poll(&mut fds, deadline.poll_timeout()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            fds.first().and_then(PollFd::any).unwrap_or_default()
        };
        self.receive()?;
        Ok(!has_ended)
    }

    /// Writes as much as the pipe takes, and closes it after the last byte. A plugin that does not read its
    /// configuration is no error by itself: what counts is how it ends.
    fn send(&mut self) -> io::Result<()> {
        while let Some(to) = &self.to {
            match if self.unsent.is_empty() { Ok(0) } else { write(to, self.unsent) } {
                Ok(count) => {
                    self.unsent = self.unsent.get(count..).unwrap_or_default();
                    if self.unsent.is_empty() {
                        self.to = None;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) => self.to = None,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Takes what there is in the pipe, up to a little more than the limit.
    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; 8192];
        while let Some(from) = &self.from
            && self.output.len() <= OUTPUT_MAX
        {
            match read(from, &mut chunk) {
                Ok(0) => self.from = None,
                Ok(count) => self.output.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// What a plugin's failure is to the runtime: its own error if it wrote one.
fn failure(name: &str, status: ExitStatus, output: &[u8]) -> Error {
    if let Ok(Value::Object(json)) = serde_json::from_slice(output)
        && let Some(number) =
            json.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok())
        && number != 0
    {
        let text =
            |key: &str| json.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
        let mut error = Error::new(
            Code::of_delegate(number),
            format!("{name}: {}", text("msg").unwrap_or("failed without a message")),
        );
        error
            .details
            .extend(text("details").into_iter().flat_map(str::lines).map(|line| format!("{name}: {line}")));
        return error;
    }
    let end = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    };
    let shown = output.trim_ascii();
    let head = String::from_utf8_lossy(shown.get(..HEAD).unwrap_or(shown)).into_owned();
    let wrote = if head.is_empty() { "nothing".to_owned() } else { format!("{head:?}") };
    Error::new(Code::Decode, format!("{name} failed ({end}) without a CNI error; on stdout it wrote {wrote}"))
}
