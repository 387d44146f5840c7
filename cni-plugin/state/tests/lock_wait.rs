//! Waiting for a lock, in a process with one thread and with real other holders.
#![expect(clippy::unwrap_used, reason = "a test program: a panic is its failure")]

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use cni_protocol::{Code, Deadline};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};
use weft_state::Lock;

/// Another process that holds the lock until its stdin is closed.
struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    /// Passes our lock on and lets go of it: the child alone holds it then.
    fn inherit(lock: Lock) -> Self {
        lock.share_with_children(true).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stdin = child.stdin.take();
        drop(lock);
        Self { child, stdin }
    }

    fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let soon = || Deadline::after(Duration::from_secs(20));

    let holder = Holder::inherit(Lock::exclusive(&path, soon()).unwrap());
    the_wait_ends_at_the_deadline(&path);
    the_wait_ends_with_the_holder(&path, holder);
    a_lock_no_longer_shared_is_not_inherited(&path);
    a_lock_that_was_taken_back_is_not_kept(&path);
    who_was_given_it_by_one_who_has_ended_is_named(&path);
    a_forked_child_does_not_keep_it(&path);
}

fn the_wait_ends_at_the_deadline(path: &Path) {
    for attempt in [Lock::exclusive, Lock::shared] {
        let start = Instant::now();
        let error = attempt(path, Deadline::after(Duration::from_millis(150))).unwrap_err();
        let waited = start.elapsed();
        assert_eq!(error.code, Code::TryAgain, "{}", error.msg);
        assert!(waited >= Duration::from_millis(150), "gave up after {waited:?}");
        assert!(waited < Duration::from_secs(5), "gave up only after {waited:?}");
    }
}

fn the_wait_ends_with_the_holder(path: &Path, holder: Holder) {
    assert!(Lock::try_exclusive(path).unwrap().is_none());
    // Ends the holder while this process already waits in flock(2).
    let killer = Command::new("sh")
        .args(["-c", "until grep -q -- \"-> FLOCK .*:$1 \" /proc/locks; do :; done; kill \"$0\""])
        .arg(holder.child.id().to_string())
        .arg(std::fs::metadata(path).unwrap().ino().to_string())
        .spawn()
        .unwrap();
    let lock = Lock::exclusive(path, Deadline::after(Duration::from_secs(20))).unwrap();
    assert!(killer.wait_with_output().unwrap().status.success());
    drop(lock);
    let Holder { mut child, .. } = holder;
    assert!(!child.wait().unwrap().success(), "killed, not ended");
}

fn a_lock_no_longer_shared_is_not_inherited(path: &Path) {
    let lock = Lock::exclusive(path, Deadline::after(Duration::from_secs(20))).unwrap();
    lock.share_with_children(true).unwrap();
    lock.share_with_children(false).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    drop(lock);
    assert!(Lock::try_exclusive(path).unwrap().is_some());
    let stdin = child.stdin.take();
    Holder { child, stdin }.end();
}

/// Like what an IPAM plugin leaves behind.
fn a_lock_that_was_taken_back_is_not_kept(path: &Path) {
    let lock = Lock::exclusive(path, Deadline::after(Duration::from_secs(20))).unwrap();
    lock.share_with_children(true).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    lock.take_from_children();
    drop(lock);
    assert!(Lock::try_exclusive(path).unwrap().is_some());
    let stdin = child.stdin.take();
    Holder { child, stdin }.end();
}

/// By the kernel's list it is flock(1) that holds it.
fn who_was_given_it_by_one_who_has_ended_is_named(path: &Path) {
    let script = "exec 9>>\"$0\"; flock 9; echo; exec cat";
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let error = Lock::exclusive(path, Deadline::after(Duration::ZERO)).unwrap_err();
    let given = format!("by pid {} (", child.id());
    assert!(error.msg.contains(&given) && error.msg.contains("which has ended"), "{}", error.msg);
    let stdin = child.stdin.take();
    Holder { child, stdin }.end();
}

/// As the process that deletes a link, which lives on for some milliseconds after ADD has failed.
fn a_forked_child_does_not_keep_it(path: &Path) {
    let lock = Lock::exclusive(path, Deadline::after(Duration::from_secs(20))).unwrap();
    let (parent_lives, keeps_child) = pipe().unwrap();
    #[expect(unsafe_code, reason = "a child with all descriptors, as no program that is executed gets them")]
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(keeps_child);
            let ended = File::from(parent_lives).read(&mut [0]).is_ok();
            // SAFETY: _exit(2) only ends the process.
            unsafe { nix::libc::_exit(i32::from(!ended)) }
        }
        ForkResult::Parent { child } => {
            drop((parent_lives, lock));
            assert!(Lock::try_exclusive(path).unwrap().is_some(), "the child keeps the lock");
            drop(keeps_child);
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}
