//! When things happened, comparable between processes of one boot.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

static STARTED: OnceLock<Duration> = OnceLock::new();

/// Time since the machine started, the same for every process of this boot; steps of the wall clock
/// do not touch it. Zero if the kernel has no monotonic clock.
#[must_use]
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// When this command began: the moment of the first call of this function, which is therefore the first
/// thing that `main` does.
pub fn started() -> Duration {
    *STARTED.get_or_init(monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_fixed_at_the_first_call() {
        let first = started();
        assert!(first <= monotonic());
        assert_eq!(first, started());
    }
}
