//! The moment at which a command gives up.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// A moment in the monotonic clock until which something may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment after a duration from now. Durations beyond the clock's range end after a century.
    #[must_use]
    pub fn after(duration: Duration) -> Self {
        Self::counted_from(Instant::now(), duration)
    }

    pub(crate) fn counted_from(start: Instant, duration: Duration) -> Self {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        Self(start + duration.min(CENTURY))
    }

    /// How long is left; zero when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    #[must_use]
    pub fn expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The time left for poll(2): whole milliseconds, rounded up so that a wait never ends just before the
    /// deadline and spins.
    #[must_use]
    pub fn poll_timeout(&self) -> PollTimeout {
        let millis = self.remaining().as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left() {
        let past = Deadline::after(Duration::ZERO);
        assert!(past.expired());
        assert_eq!(past.poll_timeout(), PollTimeout::ZERO);
        let soon = Deadline::after(Duration::from_nanos(900_000_000));
        assert!(!soon.expired());
        assert!(soon.poll_timeout().as_millis().is_some_and(|ms| (1..=900).contains(&ms)));
        let far = Deadline::after(Duration::MAX);
        assert!(!far.expired());
        assert_eq!(far.poll_timeout(), PollTimeout::MAX);
    }
}
