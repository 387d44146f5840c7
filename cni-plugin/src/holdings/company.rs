//! Processes that change the ruleset at the same time, and the end of the last of them.
//!
//! Whoever closes a netfilter socket while nftables has deleted objects to free waits for RCU (8 to 16 ms) and keeps every other
//! change of the namespace's ruleset waiting, the removal of links too (`nft_rcv_nl_event` of net/netfilter/nf_tables_api.c).
//! So while others are at work, no socket is closed: children that outlive their DELs, and the ADDs among these, close
//! theirs together, and the kernel waits once.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{close, mkfifo, pipe2};
use weft_state::monotonic;

use crate::child::{self, Forked};

/// In the state directory; no network has such a name.
const FIFO: &str = ".erasing";
/// Where there is always another at work, all close at multiples of this on the monotonic clock.
const INTERVAL: Duration = Duration::from_millis(500);

const FLAGS: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// A place in the company, with the socket that is to be closed when nobody is at work. It is left when this is dropped, or with
/// the process.
pub struct Company {
    /// Let go before the place, in the order of these lines: a child that waits for that has the last one.
    socket: OwnedFd,
    /// The end of a FIFO for writing. Nothing is ever written.
    place: OwnedFd,
    /// Its other end: it hangs up when nobody has a place any more.
    others: OwnedFd,
}

impl Company {
    /// Joins all that work with the same state directory. Where that has no room for a FIFO, one is alone.
    ///
    /// # Errors
    /// Those of pipe(2) and dup(2).
    pub fn join(state_dir: &Path, socket: impl AsFd) -> io::Result<Self> {
        let path = state_dir.join(FIFO);
        let joined = match ends(&path) {
            Err(Errno::ENOENT) => mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .or_else(|error| if error == Errno::EEXIST { Ok(()) } else { Err(error) })
                .and_then(|()| ends(&path)),
            opened => opened,
        };
        let (others, place) = joined.or_else(|error| {
            log::debug!("{}: {error}", path.display());
            pipe2(OFlag::O_CLOEXEC)
        })?;
        Ok(Self { place, others, socket: socket.as_fd().try_clone_to_owned()? })
    }

    /// Joins those who are there. `None`: nobody is, which takes three system calls to find out.
    pub fn find(state_dir: &Path, socket: impl AsFd) -> Option<Self> {
        let path = state_dir.join(FIFO);
        let mut others = File::from(open(&path, FLAGS | OFlag::O_RDONLY, Mode::empty()).ok()?);
        match others.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Self::join(state_dir, socket).ok(),
            _ => None,
        }
    }

    /// Has a child outlast the others in the place of this process, which lets go of its socket before its place, or it might close
    /// that last.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn leave(self, own_socket: impl Sized) -> Result<(), Errno> {
        let child = match child::fork()? {
            Forked::Child(child) => child,
            Forked::Parent { .. } => {
                drop(own_socket);
                return Ok(());
            }
        };
        let is_well = child.detached.is_ok() && self.given_up().stay().is_ok();
        child.exit(is_well)
    }

    /// Gives the place up, but not the socket.
    pub fn given_up(self) -> Rest {
        drop(self.place);
        Rest { others: self.others, socket: self.socket }
    }
}

/// What is left to a process that has done its work: to wait for the others.
pub struct Rest {
    others: OwnedFd,
    socket: OwnedFd,
}

impl Rest {
    /// The rest of a child's life: it keeps nothing but the socket, and outlasts the others.
    ///
    /// # Errors
    /// Those of reading /proc and of poll(2).
    pub fn stay(self) -> io::Result<()> {
        close_all_but(&[&self.others, &self.socket].map(AsRawFd::as_raw_fd))?;
        self.outlast()
    }

    /// Waits until nobody has a place; at most until the next multiple of [`INTERVAL`], when all stop waiting.
    fn outlast(self) -> io::Result<()> {
        let interval = INTERVAL.as_millis();
        let rest = interval - monotonic().as_millis() % interval;
        let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(self.others.as_fd(), PollFlags::empty())], timeout)?;
        Ok(())
    }
}

/// Both ends of the FIFO, without blocking: a reader need not wait for a writer, and a writer finds the own reader.
fn ends(path: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let others = open(path, FLAGS | OFlag::O_RDONLY, Mode::empty())?;
    let kind = SFlag::from_bits_truncate(fstat(&others)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO {
        return Err(Errno::ESPIPE);
    }
    Ok((others, open(path, FLAGS | OFlag::O_WRONLY, Mode::empty())?))
}

/// Locks among them would be held as long as the child lives.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for fd in open.into_iter().filter(|fd| !kept.contains(fd)) {
        match close(fd) {
            // That of the directory is closed already.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use cni_protocol::Deadline;
    use weft_state::Lock;

    use super::*;

    /// A child that is forked meanwhile would have another test's places for a moment.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    fn join(dir: &Path) -> Company {
        Company::join(dir, null()).unwrap()
    }

    /// Whether somebody still has a place.
    fn has_others(rest: &Rest) -> bool {
        let mut fds = [PollFd::new(rest.others.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
    }

    #[test]
    fn who_has_left_sees_the_last_one_leave() {
        let _alone = ONE_AT_A_TIME.lock();
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = [(); 3].map(|()| join(dir.path()));
        let first = first.given_up();
        assert!(has_others(&first));
        drop(second);
        assert!(has_others(&first));
        drop(third);
        assert!(!has_others(&first));
        // Whoever comes later is another company's first.
        assert!(!has_others(&join(dir.path()).given_up()));
    }

    /// Whether the child was seen with the socket after it had let go of the lock: on a busy machine the interval may end before.
    fn keeps_the_socket_and_nothing_else() -> bool {
        let dir = tempfile::tempdir().unwrap();
        let (mut here, there) = UnixStream::pair().unwrap();
        assert!(Company::find(dir.path(), &there).is_none());
        let stays = join(dir.path());
        let path = dir.path().join("lock");
        let lock = Lock::exclusive(&path, Deadline::after(INTERVAL)).unwrap();
        lock.share_with_children(true).unwrap();
        // From here on there is a whole interval.
        join(dir.path()).given_up().outlast().unwrap();
        Company::find(dir.path(), &there).unwrap().leave(there).unwrap();
        drop(lock);
        Lock::exclusive(&path, Deadline::after(10 * INTERVAL)).unwrap();
        here.set_nonblocking(true).unwrap();
        let is_kept = here.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        drop(stays);
        here.set_nonblocking(false).unwrap();
        assert_eq!(here.read(&mut [0]).unwrap(), 0, "it ends with the company");
        assert!(Company::find(dir.path(), null()).is_none());
        is_kept
    }

    #[test]
    fn a_child_keeps_the_socket_and_nothing_else() {
        let _alone = ONE_AT_A_TIME.lock();
        assert!((0..10).any(|_| keeps_the_socket_and_nothing_else()));
    }

    /// Notes, when it is dropped, whether a descriptor of this process is open.
    struct Watched<'a>(RawFd, &'a mut bool);

    impl Drop for Watched<'_> {
        fn drop(&mut self) {
            *self.1 = fs::read_link(format!("/proc/self/fd/{}", self.0)).is_ok();
        }
    }

    #[test]
    fn the_own_socket_is_let_go_before_the_place() {
        let _alone = ONE_AT_A_TIME.lock();
        let dir = tempfile::tempdir().unwrap();
        let company = join(dir.path());
        let mut had_the_place = false;
        let socket = Watched(company.place.as_raw_fd(), &mut had_the_place);
        company.leave(socket).unwrap();
        assert!(had_the_place);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let _alone = ONE_AT_A_TIME.lock();
        let dir = tempfile::tempdir().unwrap();
        let watches = join(dir.path()).given_up();
        let other = join(dir.path());
        join(dir.path()).given_up().outlast().unwrap();
        assert!(has_others(&watches), "nobody had left");
        drop(other);
    }

    #[test]
    fn without_a_fifo_one_is_alone() {
        let _alone = ONE_AT_A_TIME.lock();
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join(FIFO);
        let _elsewhere = join(dir.path());
        fs::remove_file(&fifo).unwrap();
        assert!(!has_others(&join(&dir.path().join("missing")).given_up()));
        fs::create_dir(&fifo).unwrap();
        assert!(!has_others(&join(dir.path()).given_up()));
        fs::remove_dir(&fifo).unwrap();
        fs::write(&fifo, "").unwrap();
        assert!(!has_others(&join(dir.path()).given_up()));
        assert!(Company::find(dir.path(), null()).is_none());
    }
}
