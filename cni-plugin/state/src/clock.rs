//! When things happened, comparable between processes of one boot.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// The environment variable by which a plugin tells the plugin it executes when the command began, in
/// nanoseconds of the monotonic clock. An IPAM plugin's GC needs it: an address reserved after the interface
/// plugin was given its list of valid attachments, and before the IPAM plugin started, is not in that list
/// and yet alive.
pub const STARTED_ENV: &str = "WEFT_STARTED";

static STARTED: OnceLock<Duration> = OnceLock::new();

/// Time since the machine started, the same for every process of this boot; steps of the wall clock
/// do not touch it. Zero if the kernel has no monotonic clock.
#[must_use]
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The earliest time, by the wall clock, at which this boot can have begun: a file with an older time is of another boot. A clock that
/// was set since then gives another time now; /proc has the time of its mount, and the earlier of the two counts.
#[must_use]
pub fn boot_began() -> SystemTime {
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    let by_now = SystemTime::now().checked_sub(up).unwrap_or(SystemTime::UNIX_EPOCH);
    let by_then = std::fs::metadata("/proc").and_then(|proc| proc.modified());
    by_then.map_or(by_now, |then| then.min(by_now))
}

/// How long this thread has been at work on a processor: without the time in which it waited, for something or for its turn.
#[must_use]
pub fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// When this command began: what the calling plugin said in [`STARTED_ENV`], or the moment of the first call
/// of this function, which is therefore the first thing that `main` does. A value from the future or one
/// that is no number is ignored.
pub fn started() -> Duration {
    *STARTED.get_or_init(|| {
        let now = monotonic();
        let told = std::env::var(STARTED_ENV).ok().and_then(|v| v.parse().ok()).map(Duration::from_nanos);
        told.filter(|t| *t <= now).unwrap_or(now)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn waiting_is_no_work() {
        let (began, before) = (monotonic(), worked());
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let mut nothing_comes = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut nothing_comes, 200_u8), Ok(0));
        let waited = worked() - before;
        assert!(waited < Duration::from_millis(100) && monotonic() - began >= Duration::from_millis(200));
        while worked() - before < Duration::from_millis(20) {}
        assert!(monotonic() - began >= Duration::from_millis(220) - waited);
    }

    #[test]
    fn the_start_is_fixed_at_the_first_call() {
        let first = started();
        assert!(first <= monotonic());
        assert_eq!(first, started());
    }
}
