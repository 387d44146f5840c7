//! Processes that change the ruleset at the same time, and the end of the last of them.
//!
//! Whoever closes a netfilter socket while nftables has deleted objects to free waits for RCU (8 to 16 ms) and keeps every other
//! change of the namespace's ruleset waiting, the removal of links too (`nft_rcv_nl_event` of net/netfilter/nf_tables_api.c).
//! So while others are at it, none is closed: children that outlive their DELs, and the ADDs among these, close theirs
//! together, and the kernel waits once.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{close, mkfifo, pipe2};
use weft_state::monotonic;

use crate::child;

/// In the state directory; no network has such a name.
const FIFO: &str = ".erasing";
/// Where there is always another at work, all close at the same moments.
const INTERVAL: Duration = Duration::from_millis(500);

const FLAGS: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// A place in the company. It is left when this is dropped, or with the process.
pub struct Company {
    /// The end of a FIFO for writing. Nothing is ever written.
    place: OwnedFd,
    /// Its other end: it hangs up when nobody has a place any more.
    others: OwnedFd,
}

impl Company {
    /// Joins all that work with the same state directory. Where that has no room for a FIFO, one is alone.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub fn join(state_dir: &Path) -> Result<Self, Errno> {
        let path = state_dir.join(FIFO);
        let joined = match Self::open(&path) {
            Err(Errno::ENOENT) => mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .or_else(|error| if error == Errno::EEXIST { Ok(()) } else { Err(error) })
                .and_then(|()| Self::open(&path)),
            opened => opened,
        };
        joined.or_else(|error| {
            log::debug!("{}: {error}", path.display());
            let (others, place) = pipe2(OFlag::O_CLOEXEC)?;
            Ok(Self { place, others })
        })
    }

    /// Joins those who are there. `None`: nobody is, which is a matter of three system calls.
    pub fn find(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FIFO);
        let mut others = File::from(open(&path, FLAGS | OFlag::O_RDONLY, Mode::empty()).ok()?);
        match others.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Self::open(&path).ok(),
            _ => None,
        }
    }

    /// Not blocking: a reader need not wait for a writer, and a writer finds the own reader.
    fn open(path: &Path) -> Result<Self, Errno> {
        let others = open(path, FLAGS | OFlag::O_RDONLY, Mode::empty())?;
        Ok(Self { place: open(path, FLAGS | OFlag::O_WRONLY, Mode::empty())?, others })
    }

    /// Has a child outlast the others in the place of this process, with a socket that this one needs no more.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn leave_open(self, socket: impl AsFd) -> Result<(), Errno> {
        let Some(child) = child::fork()? else { return Ok(()) };
        let kept = [self.place.as_raw_fd(), self.others.as_raw_fd(), socket.as_fd().as_raw_fd()];
        let is_alone = child.detached.is_ok() && close_all_but(&kept).and_then(|()| self.outlast()).is_ok();
        child.exit(is_alone)
    }

    /// Gives the place up, and waits until nobody has one; not longer than until all wait no longer.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn outlast(self) -> io::Result<()> {
        let Self { place, others } = self;
        drop(place);
        let interval = INTERVAL.as_millis();
        let rest = interval - monotonic().as_millis() % interval;
        let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(others.as_fd(), PollFlags::empty())], timeout)?;
        Ok(())
    }
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
    use std::time::Instant;

    use cni_protocol::Deadline;
    use weft_state::Lock;

    use super::*;

    /// Whether somebody still has a place.
    fn has_others(company: &Company) -> bool {
        let mut fds = [PollFd::new(company.others.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
    }

    fn without_place(company: Company) -> Company {
        let null = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        Company { place: null, ..company }
    }

    #[test]
    fn who_has_left_sees_the_last_one_leave() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = [(); 3].map(|()| Company::join(dir.path()).unwrap());
        let first = without_place(first);
        assert!(has_others(&first));
        drop(second);
        assert!(has_others(&first));
        drop(third);
        assert!(!has_others(&first));
        // Who comes later is another company's first.
        let next = without_place(Company::join(dir.path()).unwrap());
        assert!(!has_others(&next));
        next.outlast().unwrap();
    }

    #[test]
    fn a_child_keeps_the_socket_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Company::find(dir.path()).is_none());
        let stays = Company::join(dir.path()).unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::exclusive(&path, Deadline::after(INTERVAL)).unwrap();
        lock.share_with_children(true).unwrap();
        let (mut here, there) = UnixStream::pair().unwrap();
        // From here on there is a whole interval.
        Company::join(dir.path()).unwrap().outlast().unwrap();
        Company::find(dir.path()).unwrap().leave_open(&there).unwrap();
        drop((lock, there));
        Lock::exclusive(&path, Deadline::after(10 * INTERVAL)).unwrap();
        here.set_nonblocking(true).unwrap();
        assert_eq!(here.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "its own lives on");
        drop(stays);
        here.set_nonblocking(false).unwrap();
        assert_eq!(here.read(&mut [0]).unwrap(), 0, "and ends with the company");
        assert!(Company::find(dir.path()).is_none());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let _stays = Company::join(dir.path()).unwrap();
        let start = Instant::now();
        Company::join(dir.path()).unwrap().outlast().unwrap();
        assert!(start.elapsed() < 10 * INTERVAL);
    }

    #[test]
    fn without_a_fifo_one_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join(FIFO);
        let _elsewhere = Company::join(dir.path()).unwrap();
        fs::remove_file(&fifo).unwrap();
        // Neither a directory that is missing nor what has the name keeps anybody.
        Company::join(&dir.path().join("missing")).unwrap().outlast().unwrap();
        fs::create_dir(&fifo).unwrap();
        Company::join(dir.path()).unwrap().outlast().unwrap();
        fs::remove_dir(&fifo).unwrap();
        fs::write(&fifo, "").unwrap();
        Company::join(dir.path()).unwrap().outlast().unwrap();
    }
}
