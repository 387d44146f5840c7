//! A host on which real container runtimes run.
//!
//! The runtimes are those of the distribution, at their default CNI paths, with the binaries under test in
//! `/opt/cni/bin` and a sample of `conf/` in `/etc/cni/net.d`. What they start outlives its parent by design (shims,
//! monitors, containers), so everything runs in a PID namespace: its end is the end of all of it.

mod containerd;
mod engine;
mod image;
mod nerdctl;
mod podman;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::host::Host;
use crate::tools;
use crate::world::World;

pub use containerd::Containerd;
pub use engine::Engine;
pub use image::IMAGE;
pub use nerdctl::nerdctl;
pub use podman::podman;

/// What runs the containers: the program and the Debian package that has it.
const NEEDED: [(&str, &str); 7] = [
    ("bash", "bash"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("nsenter", "util-linux"),
    ("podman", "podman"),
    ("runc", "runc"),
];

/// Where runtimes look for plugins unless told.
const PLUGINS: &str = "/opt/cni/bin";

/// Where runtimes look for networks unless told.
const NETWORKS: &str = "/etc/cni/net.d";

/// The variables that the runtimes get. Nothing of the test's own may reach them, least of all another `HOME`.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/opt")];

/// Seconds that one command of a runtime may take before it counts as hung.
const LIMIT: &str = "60";

/// PID 1: reaps what is reparented to it, as bash does, until this process closes the pipe or dies.
const INIT: &str = "echo ready; read -r _";

/// A [`Host`] with its own `/etc`, `/opt` and `/dev/shm`, and a PID namespace for what runs on it.
pub struct Machine {
    /// `unshare`, whose child is PID 1 of the namespace and holds the other end of its standard input.
    unshare: Child,
    /// PID 1, as this process sees it.
    init: String,
    /// What runs as long as the machine.
    daemons: RefCell<Vec<Child>>,
    cgroup: String,
    host: Host,
}

impl Machine {
    /// A machine with the binaries under test, and with one of the networks of `conf/`.
    ///
    /// # Panics
    /// When a program is missing, and without real root: runtimes mount and make device nodes, which a user
    /// namespace must not.
    pub fn new(conflist: &str) -> Self {
        Self::with(conflist, |_| {})
    }

    /// The same, with a network that is changed.
    ///
    /// # Panics
    /// As [`Machine::new`].
    pub fn with(conflist: &str, change: impl FnOnce(&mut Value)) -> Self {
        require_root();
        tools::require(&NEEDED);
        let host = Host::new();
        mount_own();
        install_plugins();
        fs::create_dir_all(NETWORKS).expect("make the directory of networks");
        write_network(conflist, conflist, change);
        image::make();

        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/weft-test-{}-{number}", std::process::id());
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "bash", "-c", INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut line = String::new();
        let mut stdout = BufReader::new(unshare.stdout.take().expect("a pipe"));
        stdout.read_line(&mut line).expect("read from the namespace's init");
        assert_eq!(line, "ready\n", "the PID namespace did not come up");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = fs::read_to_string(children).expect("the namespace's init").trim().to_owned();
        Self { unshare, init, daemons: RefCell::default(), cgroup, host }
    }

    /// One more network, made of the same samples, by the name of its file.
    pub fn add_network(&self, file: &str, conflist: &str, change: impl FnOnce(&mut Value)) {
        write_network(file, conflist, change);
    }

    /// The host's network, as outside of the PID namespace.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The control group below which every container of this machine has to be: it is removed with the machine.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A program on this machine, about to be started. It has to end by itself or with the machine.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--pid", "--mount", "--"]).args(words);
        command.env_clear().envs(ENVIRONMENT).env("CONTAINERD_ADDRESS", Containerd::SOCKET);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn limited(&self, words: &[&str]) -> Command {
        self.command(&[&["timeout", "--kill-after=5", LIMIT], words].concat())
    }

    /// Runs a program and waits for its end, however that is.
    pub fn attempt(&self, words: &[&str]) -> Output {
        self.limited(words).output().expect("run nsenter")
    }

    /// Runs a program and returns what it printed.
    ///
    /// # Panics
    /// When it fails or takes too long, with what it said.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.attempt(words);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "`{}` failed, {}\nstandard output: {stdout}\nstandard error: {}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// Starts a program that goes on while others run; it is killed when it takes too long.
    pub fn start(&self, words: &[&str]) -> Child {
        self.limited(words).spawn().expect("start nsenter")
    }

    /// Starts a program that runs as long as the machine, with a log in a file.
    fn daemon(&self, words: &[&str], log: &str) {
        let log = File::create(log).unwrap_or_else(|error| panic!("{log}: {error}"));
        let daemon = self.command(words).stdout(Stdio::null()).stderr(log).spawn().expect("start nsenter");
        self.daemons.borrow_mut().push(daemon);
    }

    /// Panics when the host's network, Weft's state or libcni's cache is not as it was.
    /// The runtimes' own files (databases, locks) are their business.
    #[track_caller]
    pub fn assert_nothing_left(&self, before: &World) {
        let runtimes_own = |line: &&String| {
            line.contains(" file /") && !line.contains("/run/weft/") && !line.contains("/var/lib/cni/")
        };
        let differences = before.differences(&World::of(&self.host, &[]));
        let left: Vec<&String> = differences.iter().filter(|line| !runtimes_own(line)).collect();
        assert!(left.is_empty(), "the host is not as it was: {left:#?}");
    }
}

fn write_network(file: &str, conflist: &str, change: impl FnOnce(&mut Value)) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf").join(conflist);
    let text = fs::read(&sample).unwrap_or_else(|error| panic!("read {}: {error}", sample.display()));
    let mut network = serde_json::from_slice(&text).expect("a sample is JSON");
    change(&mut network);
    fs::write(Path::new(NETWORKS).join(file), network.to_string()).expect("write a network");
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The init reads the end of its input and ends; the kernel kills the rest of the namespace with it.
        drop(self.unshare.stdin.take());
        let status = self.unshare.wait();
        for daemon in self.daemons.get_mut() {
            // Killed by the kernel: its status says nothing.
            let _killed = daemon.wait();
        }
        let groups = remove_cgroups(&self.cgroup);
        if !std::thread::panicking() {
            status.expect("wait for the PID namespace");
            groups.expect("remove the control groups");
        }
    }
}

fn require_root() {
    let map = fs::read_to_string("/proc/self/uid_map").expect("this process has a user namespace");
    let words: Vec<&str> = map.split_whitespace().collect();
    assert!(
        nix::unistd::geteuid().is_root() && words == ["0", "0", "4294967295"],
        "container runtimes need the real root, not that of a user namespace: run `hack/test runtimes`"
    );
}

/// Directories that runtimes write to, besides those that every host of the testbed has for itself.
fn mount_own() {
    for directory in ["/opt", "/dev/shm"] {
        tools::command(&format!("mount -t tmpfs tmpfs {directory}"));
    }
    for directory in ["/opt/etc", "/opt/work", PLUGINS] {
        fs::create_dir_all(directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
    }
    tools::command("mount -t overlay overlay -o lowerdir=/etc,upperdir=/opt/etc,workdir=/opt/work /etc");
}

/// Copies, as the checkout may be in a place that this machine has mounted over. containerd needs the loopback
/// plugin for every pod.
fn install_plugins() {
    for binary in ["weft", "weft-ipam", "loopback"].map(|name| tools::dist().join(name)) {
        let to: PathBuf = Path::new(PLUGINS).join(binary.file_name().expect("a binary has a name"));
        tools::command(&format!("cp {} {}", binary.display(), to.display()));
    }
}

/// Removes a control group of this machine from every hierarchy, with those below it. Empty ones go at once.
fn remove_cgroups(parent: &str) -> std::io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mut places = vec![root.to_owned()];
    for entry in fs::read_dir(root)? {
        places.push(entry?.path());
    }
    for place in places {
        let group = place.join(parent.trim_start_matches('/'));
        if group.is_dir() {
            remove_cgroup(&group)?;
        }
    }
    Ok(())
}

fn remove_cgroup(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// The IPv4 address of `eth0` in what `ip -4 -o addr` of busybox prints.
fn address_in(text: &str) -> Option<Ipv4Addr> {
    let words = text.lines().find(|line| line.contains("eth0"))?.split_whitespace();
    words.skip_while(|word| *word != "inet").nth(1)?.split('/').next()?.parse().ok()
}
