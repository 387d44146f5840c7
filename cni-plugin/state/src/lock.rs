//! Locks that die with their holder.

mod holder;

use std::cell::Cell;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::files::{displace, remedy};
use holder::held;
pub use holder::holder;

/// flock(2) on a file, let go when dropped or when the process ends, however it ends.
///
/// A child that was given the lock ([`Lock::share_with_children`]) goes on holding it; one that was forked and happens
/// to have the descriptor does not. The file may hold a record ([`Lock::read`], [`Lock::write`]); it must then never be
/// replaced by a rename, because a lock belongs to the file and not to its name.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    mode: Mode,
    deadline: Option<Deadline>,
    /// Whether children were ever given it.
    is_given: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

impl Mode {
    fn operation(self) -> libc::c_int {
        match self {
            Self::Shared => libc::LOCK_SH,
            Self::Exclusive => libc::LOCK_EX,
        }
    }
}

impl Lock {
    /// Waits until nobody else holds the file, creating it (mode 0600) if it is not there; its
    /// directory must be. A directory or FIFO in its place gives way.
    ///
    /// # Errors
    /// [`Code::TryAgain`] naming the holder when the deadline comes first; [`Code::Io`] when the
    /// file cannot be opened.
    pub fn exclusive(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        Self::acquire(path, Mode::Exclusive, deadline)
    }

    /// As [`Lock::exclusive`], but beside other shared holders.
    ///
    /// # Errors
    /// As [`Lock::exclusive`].
    pub fn shared(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        Self::acquire(path, Mode::Shared, deadline)
    }

    /// The lock if it is to be had at once, `None` if somebody holds it or there is no such file: none is made.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be opened.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, Error> {
        Self::try_acquire(path, Mode::Exclusive)
    }

    /// As [`Lock::try_exclusive`], but beside other shared holders.
    ///
    /// # Errors
    /// As [`Lock::try_exclusive`].
    pub fn try_shared(path: &Path) -> Result<Option<Self>, Error> {
        Self::try_acquire(path, Mode::Shared)
    }

    fn new(file: File, path: &Path, mode: Mode, deadline: Option<Deadline>) -> Self {
        Self { file, path: path.to_owned(), mode, deadline, is_given: Cell::new(false) }
    }

    fn try_acquire(path: &Path, mode: Mode) -> Result<Option<Self>, Error> {
        loop {
            let file = match open(path, false) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(|e| failed(path, &e))?,
            };
            if !try_flock(&file, mode).map_err(|e| failed(path, &e.into()))? {
                return Ok(None);
            }
            if is_at(&file, path).map_err(|e| failed(path, &e))?.is_some() {
                return Ok(Some(Self::new(file, path, mode, None)));
            }
        }
    }

    fn acquire(path: &Path, mode: Mode, deadline: Deadline) -> Result<Self, Error> {
        loop {
            let Some(file) = open_any(path).map_err(|e| failed(path, &e))? else { continue };
            if !flock_until(&file, mode, deadline).map_err(|e| failed(path, &e.into()))? {
                return Err(held(path, &file));
            }
            // Its last holder may have removed the file while we waited for it: then others lock
            // another file of the same name, and so must we.
            match is_at(&file, path).map_err(|e| failed(path, &e))? {
                Some(kind) if kind.is_file() => return Ok(Self::new(file, path, mode, Some(deadline))),
                Some(_) => give_way(path, &file, deadline)?,
                None => {}
            }
        }
    }

    /// Makes a shared lock exclusive if nobody else holds it now.
    ///
    /// The kernel has no atomic change: it lets go of the old lock first. So after `Ok(true)` and
    /// after `Ok(false)` (shared as before) somebody else may have held the lock in between, and
    /// what was read before must be read again.
    ///
    /// # Errors
    /// [`Code::TryAgain`] when the shared lock could not be had again by the deadline of its
    /// acquisition, [`Code::Io`] as for [`Lock::shared`]; the lock then counts as lost.
    pub fn upgrade_now(&mut self) -> Result<bool, Error> {
        if self.mode == Mode::Exclusive {
            return Ok(true);
        }
        let got = try_flock(&self.file, Mode::Exclusive).map_err(|e| failed(&self.path, &e.into()))?;
        if got && is_at(&self.file, &self.path).map_err(|e| failed(&self.path, &e))?.is_some() {
            self.mode = Mode::Exclusive;
            return Ok(true);
        }
        let deadline = self.deadline.unwrap_or(Deadline::after(Duration::ZERO));
        *self = Self::acquire(&self.path.clone(), Mode::Shared, deadline)?;
        Ok(false)
    }

    /// With `true`, programs executed from now on inherit the lock: it is held until the last of
    /// them has ended, also when this process is killed before. With `false`, no longer.
    ///
    /// # Errors
    /// [`Code::Io`] when the kernel refuses to change the flag of the descriptor.
    pub fn share_with_children(&self, share: bool) -> Result<(), Error> {
        let flags = if share { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        fcntl(&self.file, FcntlArg::F_SETFD(flags)).map_err(|e| failed(&self.path, &e.into()))?;
        self.is_given.set(self.is_given.get() || share);
        Ok(())
    }

    /// Has children that were given it lose it with this process: they are done, and what they left behind may stay for ever.
    pub fn take_from_children(&self) {
        self.is_given.set(false);
    }

    /// What is written in the file.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the file anew, in place: a kill in the middle may leave the new beginning with the
    /// old end, so a reader must be able to tell a whole record from a broken one.
    ///
    /// # Errors
    /// Those of write(2) and ftruncate(2).
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, 0)?;
        self.file.set_len(bytes.len() as u64)
    }

    /// Removes the file while it is held, so that no waiter can have it; then lets go. For an
    /// exclusive lock only: under a shared one, other holders would lose theirs unnoticed.
    ///
    /// # Errors
    /// [`Code::Io`] when the file cannot be removed. One that is gone already is no error.
    pub fn remove_file(self) -> Result<(), Error> {
        debug_assert_eq!(self.mode, Mode::Exclusive, "other holders would lose their lock unnoticed");
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let msg = format!("remove the lock file {}: {e}: {}", self.path.display(), remedy(&e));
                Err(Error::new(Code::Io, msg))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would leave it to a forked child until that ends.
        if !self.is_given.get()
            && let Err(error) = flock(&self.file, libc::LOCK_UN)
        {
            log::debug!("unlock {}: {error}", self.path.display());
        }
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    // The file behind a symbolic link would never be the one at the path.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)
}

fn failed(path: &Path, cause: &io::Error) -> Error {
    Error::new(Code::Io, format!("lock {}: {cause}: {}", path.display(), remedy(cause)))
}

/// Opens or makes what is at the path. A directory in a lock's place can be locked too, and is before it gives way; `None` where it has
/// just given way to another.
fn open_any(path: &Path) -> io::Result<Option<File>> {
    match open(path, true) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {}
        opened => return opened.map(Some),
    }
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Has what is no file give way to a lock. Whoever else has opened it waits until it is gone, and looks again.
fn give_way(path: &Path, found: &File, deadline: Deadline) -> Result<(), Error> {
    if !flock_until(found, Mode::Exclusive, deadline).map_err(|e| failed(path, &e.into()))? {
        return Err(held(path, found));
    }
    let is_there = is_at(found, path).map_err(|e| failed(path, &e))?.is_some();
    if is_there { displace(path).map_err(|e| failed(path, &e)) } else { Ok(()) }
}

/// What `path` names, if that still is what was opened.
fn is_at(file: &File, path: &Path) -> io::Result<Option<FileType>> {
    let mine = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(((there.dev(), there.ino()) == (mine.dev(), mine.ino())).then(|| mine.file_type())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// flock(2) as it is. `nix` offers it only as a guard that unlocks when dropped, which would take
/// the lock away from children that share it; `std` does not say whether it goes on after a signal.
#[expect(unsafe_code, reason = "a system call without a safe wrapper that fits")]
fn flock(file: &File, operation: libc::c_int) -> Result<(), Errno> {
    // SAFETY: flock(2) touches no memory, and the descriptor is open as long as `file` lives.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

fn try_flock(file: &File, mode: Mode) -> Result<bool, Errno> {
    match flock(file, mode.operation() | libc::LOCK_NB) {
        Ok(()) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `false` when the deadline came first.
fn flock_until(file: &File, mode: Mode, deadline: Deadline) -> Result<bool, Errno> {
    if try_flock(file, mode)? {
        return Ok(true);
    }
    if deadline.expired() {
        return Ok(false);
    }
    let _alarm = wake_from(deadline.remaining())?;
    loop {
        match flock(file, mode.operation()) {
            Ok(()) => return Ok(true),
            Err(Errno::EINTR) if deadline.expired() => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A timer whose signal interrupts a blocking call after `delay`, and again every 10 ms: the first
/// may come just before the call begins, and would be lost.
fn wake_from(delay: Duration) -> Result<Timer, Errno> {
    interruptible()?;
    let signal = SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(signal))?;
    // A delay of zero would switch the timer off.
    let delay = delay.max(Duration::from_micros(1));
    let expiration = Expiration::IntervalDelayed(delay.into(), Duration::from_millis(10).into());
    timer.set(expiration, TimerSetTimeFlags::empty())?;
    Ok(timer)
}

extern "C" fn only_interrupt(_signal: libc::c_int) {}

/// SIGALRM gets a handler without SA_RESTART, so that it ends a blocking call with EINTR, and is
/// unblocked, in case the caller of this program had it blocked. The handler stays: a signal still
/// under way when the timer is gone must not end the process.
#[expect(unsafe_code, reason = "installing a signal handler has no safe wrapper")]
fn interruptible() -> Result<(), Errno> {
    let action = SigAction::new(SigHandler::Handler(only_interrupt), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may run at any moment.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    SigSet::from(Signal::SIGALRM).thread_unblock()
}

#[cfg(test)]
mod tests;
