//! The lock that says that a process looks after a network.

use std::path::Path;
use std::time::Duration;

use cni_protocol::{Code, Deadline, Error, NetworkName};
use weft_state::Lock;
use weft_state::lease::agent_lock;

/// Each ADD has it for a moment to look whether an agent lives, and many may come at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Says that this process looks after the network: plugins leave lease and peers to it, and no agent starts.
///
/// # Errors
/// [`Code::TryAgain`] naming the process that does already, [`Code::Io`] when there is no place for the lock.
pub(crate) fn take(state_dir: &Path, network: &NetworkName) -> Result<Lock, Error> {
    let path = agent_lock(state_dir, network);
    let dir = path.parent().unwrap_or(&path);
    std::fs::create_dir_all(dir).map_err(|error| {
        let remedy = "make it writable or choose another stateDir";
        Error::new(Code::Io, format!("create {}: {error}: {remedy}", dir.display()))
    })?;
    Lock::exclusive(&path, Deadline::after(PATIENCE))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use weft_state::lease::agent_lives;

    use super::*;

    #[test]
    fn whoever_looks_whether_an_agent_lives_keeps_none_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let network: NetworkName = "net".parse().unwrap();
        drop(take(dir.path(), &network).unwrap());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        agent_lives(dir.path(), &network).unwrap();
                    }
                });
            }
            let taken: Vec<_> = (0..100).map(|_| take(dir.path(), &network).map(drop)).collect();
            over.store(true, Ordering::Relaxed);
            assert_eq!(taken, vec![Ok(()); 100]);
        });
    }
}
