//! A plugin that was started: feed it, listen to it, wait for it, all until a deadline.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;
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

/// How long a plugin whose end alone is awaited may take before it is listened to.
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
    pipes: Pipes,
    is_reaped: bool,
}

/// The pipes of a plugin, and what has gone through them.
#[derive(Debug)]
struct Pipes {
    to: Option<OwnedFd>,
    /// How much of its configuration it was given.
    sent: usize,
    /// `None`: its output is whole.
    from: Option<OwnedFd>,
    output: Vec<u8>,
}

impl Running {
    pub(crate) fn new(delegate: Delegate, verb: Verb, mut process: Process) -> Self {
        let name = delegate.name(verb);
        let (to, from) = (process.stdin.take(), process.stdout.take());
        let pipes = Pipes { to, sent: 0, from, output: Vec::new() };
        Self { delegate, name, process, parent: std::process::id(), pipes, is_reaped: false }
    }

    /// Whether the kernel took the file for a program. Known when [`Running::finish`] has failed.
    #[must_use]
    pub fn was_executed(&self) -> bool {
        self.process.not_executed().is_none()
    }

    /// Makes the plugin work beside its caller, which has other things to do before [`Running::finish`].
    #[must_use]
    pub fn beside(self) -> Self {
        move_away(self.process.pid);
        self
    }

    /// Sends as much of the configuration as the pipe takes at once, so that the plugin works while its caller
    /// does something else before [`Running::listen`] and [`Running::finish`], which want the same bytes.
    ///
    /// # Errors
    /// [`Code::Io`] when the pipe fails.
    pub fn feed(&mut self, stdin: &[u8]) -> Result<(), Error> {
        self.pipes.send(stdin).map_err(|error| self.talking(&error))
    }

    /// Waits until the plugin has closed its output or ended, and returns the output. Whether the plugin ends well, only
    /// [`Running::finish`] tells.
    ///
    /// # Errors
    /// As [`Running::finish`], except for those about the plugin's end.
    pub fn listen(&mut self, stdin: &[u8], deadline: Deadline) -> Result<&[u8], Error> {
        self.exchange(stdin, deadline, |pipes| pipes.from.is_none())?;
        Ok(&self.pipes.output)
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
        let ended = &self.process.ended;
        self.pipes.wait_for_end(ended, stdin, deadline).map_err(|error| self.talking(&error))?;
        self.exchange(stdin, deadline, |_| false)?;
        let status = self.process.wait().map_err(|error| self.talking(&error))?;
        self.is_reaped = true;
        if let Some(reason) = self.process.not_executed() {
            return Err(self.delegate.not_executed(reason));
        }
        let output = std::mem::take(&mut self.pipes.output);
        if status.success() { Ok(output) } else { Err(failure(&self.name, status, &output)) }
    }

    /// Until it is enough, or the plugin has ended and nothing more can come.
    fn exchange(
        &mut self,
        stdin: &[u8],
        deadline: Deadline,
        is_enough: impl Fn(&Pipes) -> bool,
    ) -> Result<(), Error> {
        while !is_enough(&self.pipes) {
            let exchanged = self.pipes.exchange(&self.process.ended, stdin, deadline);
            let is_alive = exchanged.map_err(|error| self.talking(&error))?;
            if self.pipes.output.len() > OUTPUT_MAX {
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
        Ok(())
    }

    fn talking(&self, error: &io::Error) -> Error {
        let remedy = "its messages on stderr may tell why; call again";
        Error::new(Code::Io, format!("talking to {} failed: {error}; {remedy}", self.name))
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

impl Pipes {
    /// Gives a plugin that has its configuration a moment to end. What it says mostly fits into the pipe; being woken up for
    /// that and then for its end takes two more changes of process.
    fn wait_for_end(&mut self, ended: &OwnedFd, stdin: &[u8], deadline: Deadline) -> io::Result<()> {
        self.send(stdin)?;
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
    /// The plugin's end counts, not its output's: a daemon that it left behind may hold the pipe open.
    fn exchange(&mut self, ended: &OwnedFd, stdin: &[u8], deadline: Deadline) -> io::Result<bool> {
        self.send(stdin)?;
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
    fn send(&mut self, stdin: &[u8]) -> io::Result<()> {
        while let Some(to) = &self.to {
            let unsent = stdin.get(self.sent..).unwrap_or_default();
            match if unsent.is_empty() { Ok(0) } else { write(to, unsent) } {
                Ok(count) => {
                    self.sent += count;
                    if self.sent >= stdin.len() {
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
    Error::new(
        Code::Decode,
        format!(
            "{name} failed ({end}) without a CNI error; on stdout it wrote {wrote}; see its messages on stderr"
        ),
    )
}
