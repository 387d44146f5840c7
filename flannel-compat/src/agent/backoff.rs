//! How long to wait before the next attempt.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
/// etcd that is back has to be noticed within two seconds, and one second of that is for the attempt itself.
const LONGEST: Duration = Duration::from_millis(900);

/// Twice as long each time, up to a limit, and never quite as long as the other hosts wait.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // Half of it for certain, the rest by chance. Every RandomState is seeded anew.
        let chance = u32::try_from(RandomState::new().hash_one(self.failures) >> 40).unwrap_or_default();
        longest / 2 + (longest / 2).mul_f64(f64::from(chance) / f64::from(1 << 24))
    }

    /// It went well: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{:?}", waits[0]);
        for wait in &waits[6..] {
            assert!(*wait >= LONGEST / 2 && *wait <= LONGEST, "{wait:?}");
        }
        assert!(waits[10..].iter().any(|wait| *wait != waits[10]));
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
