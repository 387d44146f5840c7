//! How many files the process may have open.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// As many open files as the process may have at most, until the value is dropped. Programs that are executed then have what
/// they had (`setrlimit(2)`: the soft limit is inherited, and select(2) cannot do with files beyond 1,024).
#[derive(Debug)]
pub struct ManyFiles {
    /// The limits before, to be set back; `None` where both were the same, or could not be changed.
    before: Option<(rlim_t, rlim_t)>,
}

impl ManyFiles {
    /// Raises the soft limit to the hard one.
    #[must_use]
    pub fn allow() -> Self {
        let raise = |&(soft, hard): &(rlim_t, rlim_t)| {
            soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
        };
        Self { before: getrlimit(Resource::RLIMIT_NOFILE).ok().filter(raise) }
    }
}

impl Drop for ManyFiles {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.before
            && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
        {
            log::debug!("the limit of open files is not set back: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_for_a_while() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        let many = ManyFiles::allow();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        drop(many);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard - 1, hard));
    }
}
