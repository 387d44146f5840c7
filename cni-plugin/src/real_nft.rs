//! The real nft, for tests that look at what the kernel has.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use cni_protocol::Deadline;
use nix::sched::{CloneFlags, unshare};
use weft_net::nft::Nft;

pub(crate) fn open() -> Nft {
    Nft::open(Deadline::after(Duration::from_secs(30))).unwrap()
}

/// Moves this test's thread to a fresh network namespace.
pub(crate) fn fresh_host() -> Nft {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    open()
}

/// Runs `nft ARGS` with a script on its standard input.
pub(crate) fn nft(args: &[&str], script: &str) -> String {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need the tool nft");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {args:?} {script:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ruleset() -> String {
    nft(&["list", "ruleset"], "")
}
