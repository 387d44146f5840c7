//! The binaries under test and the tools that tests look with.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// What the testbed needs beside the plugins: the program and the Debian package that has it.
const NEEDED: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("strace", "strace"),
    ("unshare", "util-linux"),
];

/// Files of the testbed itself, below the `/run` of the thread's host.
pub(crate) const OWN: &str = "/run/testbed";

/// The directory with the binaries under test, which serves as `CNI_PATH`: `WEFT_DIST`, else `target/dist`.
///
/// # Panics
/// When the binaries are not there: a test that is skipped proves nothing.
pub fn dist() -> &'static Path {
    static DIST: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = std::env::var_os("WEFT_DIST")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist"), PathBuf::from);
        let absolute = directory.canonicalize().unwrap_or(directory);
        for binary in ["weft", "weft-ipam"] {
            assert!(
                absolute.join(binary).is_file(),
                "{} is missing: run hack/build, or set WEFT_DIST to a directory with the binaries",
                absolute.join(binary).display()
            );
        }
        absolute
    });
    &DIST
}

/// Panics unless every tool of the testbed is installed, naming what to install.
pub(crate) fn require_tools() {
    static CHECKED: LazyLock<()> = LazyLock::new(|| require(&NEEDED));
    LazyLock::force(&CHECKED);
}

/// Panics unless every one of some programs is installed, naming the package to install.
pub(crate) fn require(programs: &[(&str, &str)]) {
    for (program, package) in programs {
        assert!(find(program).is_some(), "{program} is not installed: apt-get install {package}");
    }
}

/// The path of an installed program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// The directory with the reference plugins, cnitool, flanneld and nerdctl: `WEFT_PEERS`, else `target/peers`.
///
/// # Panics
/// When they are not there: a test that is skipped proves nothing.
pub fn peers() -> &'static Path {
    static PEERS: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = std::env::var_os("WEFT_PEERS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers"), PathBuf::from);
        let absolute = directory.canonicalize().unwrap_or(directory);
        for program in ["bridge", "cnitool", "flanneld", "host-local", "loopback", "static"] {
            assert!(
                absolute.join(program).is_file(),
                "{} is missing: run hack/peers, or set WEFT_PEERS to a directory with the programs",
                absolute.join(program).display()
            );
        }
        absolute
    });
    &PEERS
}

/// Runs a command line, split at white space, in the namespaces of this thread.
/// Standard input is empty: a tool that would ask must not wait.
pub(crate) fn attempt(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command line has a program");
    run(program, words)
}

fn run(program: &str, arguments: impl Iterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

/// Runs a command line, split at white space, and returns what it printed.
///
/// # Panics
/// When it fails, with what it said.
pub fn command(line: &str) -> String {
    let output = attempt(line);
    assert!(
        output.status.success(),
        "`{line}` failed, {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command line that prints JSON. `ip -j` prints nothing at all for an empty table: that is an empty list.
pub fn json(line: &str) -> Value {
    let text = command(line);
    if text.trim().is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{line}` printed no JSON, {error}: {text}"))
}

/// A kernel setting of this thread's network namespace, without the line's end.
pub(crate) fn sysctl(path: &str) -> String {
    let path = format!("/proc/sys/{path}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

/// Sets a kernel setting of this thread's network namespace.
pub(crate) fn set_sysctl(path: &str, value: &str) {
    let path = format!("/proc/sys/{path}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
