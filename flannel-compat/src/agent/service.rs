//! What the agent tells systemd.

use std::os::unix::ffi::OsStrExt as _;

use sd_notify::NotifyState;

/// All is set up that can be: what needs the network may start.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub(super) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The agent is about to end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Whether another program was put at the place of this one's file, as by an upgrade: until it is started anew it and the plugins undo
/// each other's rules, where these differ between their versions.
pub(super) fn is_replaced() -> bool {
    // proc_pid_exe(5): the kernel says so behind the path.
    std::fs::read_link("/proc/self/exe")
        .is_ok_and(|path| path.as_os_str().as_bytes().ends_with(b" (deleted)"))
}

/// Says that the agent lives, twice as often as systemd asks for; for ever, if it asks at all. Everything of the agent
/// is on one thread: when something hangs, so does this, and systemd starts the agent anew.
pub(super) async fn watchdog() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut timer = tokio::time::interval(patience / 2);
    loop {
        timer.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Without systemd there is nobody to tell, which is no error.
fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("tell systemd: {error}");
    }
}
