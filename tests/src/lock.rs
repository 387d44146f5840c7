//! Locks that a test holds as another call would.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// Locks a file that is there, for this call alone, until the value is dropped.
///
/// A [`File`] is not enough: closing it gives up the lock only where nobody else has the description, and a child that another
/// test has just forked has it until it executes its program (flock(2)).
pub fn hold(path: impl AsRef<Path>) -> Flock<File> {
    lock(path.as_ref(), FlockArg::LockExclusive)
}

/// Locks a file that is there as one of several that share it, until the value is dropped.
pub fn hold_shared(path: impl AsRef<Path>) -> Flock<File> {
    lock(path.as_ref(), FlockArg::LockShared)
}

fn lock(path: &Path, how: FlockArg) -> Flock<File> {
    let file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    Flock::lock(file, how).unwrap_or_else(|(_, error)| panic!("lock {}: {error}", path.display()))
}
