//! Waiting for what can only be observed from outside.

use std::thread;
use std::time::{Duration, Instant};

/// How often an observation is repeated. Short, as the whole wait is usually one or two rounds.
const PAUSE: Duration = Duration::from_millis(2);

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
