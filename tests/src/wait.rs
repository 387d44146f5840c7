//! Waiting for what can only be observed from outside.

use std::thread;
use std::time::{Duration, Instant};

use crate::tools::command;

/// How often an observation is repeated. Short, as the whole wait is usually one or two rounds.
const PAUSE: Duration = Duration::from_millis(2);

/// Duplicate address detection takes two seconds at most, on a machine that has nothing else to do.
const SETTLED: Duration = Duration::from_secs(10);

/// Repeats an observation until it has a value, and panics with `what` when it has none within `limit`.
///
/// This is for effects whose moment nobody announces: another process has ended, the kernel has flushed an entry.
/// What has an event (a process's end, a connection) is waited for by that event, never by this.
pub fn eventually<T>(limit: Duration, what: &str, mut observe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = observe() {
            return value;
        }
        assert!(Instant::now() < end, "within {limit:?} it did not come about: {what}");
        thread::sleep(PAUSE);
    }
}

/// Waits until the IPv6 addresses of this host can be used, as those that reference plugins make there cannot before the kernel
/// has found them to be nobody else's.
pub fn addresses_settle() {
    eventually(SETTLED, "no IPv6 address of the host is tentative any more", || {
        command("ip -6 addr show scope global tentative").trim().is_empty().then_some(())
    });
}
