//! Where a child runs.

use nix::sched::{sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// Makes a new child begin on another processor than this one, to work beside its caller. The kernel may leave it on the caller's, where it
/// waits until the caller has nothing to do, and balances by the millisecond, which is longer than both live. In the end the child may run
/// where it could before. A matter of speed, so no failure counts.
pub fn move_away(child: Pid) {
    let moved = || {
        let everywhere = sched_getaffinity(Pid::from_raw(0))?;
        let mut elsewhere = everywhere;
        elsewhere.unset(sched_getcpu()?)?;
        sched_setaffinity(child, &elsewhere)?;
        sched_setaffinity(child, &everywhere)
    };
    if let Err(errno) = moved() {
        // EINVAL: there is no other.
        log::debug!("process {child} begins on its caller's processor: {errno}");
    }
}
