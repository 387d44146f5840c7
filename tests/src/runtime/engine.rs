//! What podman and nerdctl have in common: Docker's command line.

use std::net::Ipv4Addr;

use super::{IMAGE, Machine, address_in};

/// The options by which podman and nerdctl differ.
pub(super) struct Options {
    /// The program, and what comes before every command.
    pub program: Vec<String>,
    pub run: &'static [&'static str],
    pub remove: &'static [&'static str],
}

/// Runs containers on a [`Machine`].
pub struct Engine<'machine> {
    machine: &'machine Machine,
    options: Options,
}

impl<'machine> Engine<'machine> {
    pub(super) fn new(machine: &'machine Machine, options: Options) -> Self {
        Self { machine, options }
    }

    /// Runs a command, which must succeed.
    #[track_caller]
    pub(super) fn command(&self, words: &[&str]) -> String {
        let program: Vec<&str> = self.options.program.iter().map(String::as_str).collect();
        self.machine.run(&[&program, words].concat())
    }

    /// Starts a container that waits on a network; returns when its network is there.
    #[track_caller]
    pub fn run(&self, name: &str, network: &str) {
        self.run_with(name, network, &[], &["sleep", "infinity"]);
    }

    /// The same with further options and another program.
    #[track_caller]
    pub fn run_with(&self, name: &str, network: &str, more: &[&str], program: &[&str]) {
        let cgroup = self.machine.cgroup();
        let options = ["--detach", "--name", name, "--network", network, "--cgroup-parent", cgroup];
        self.command(&[&["run"], self.options.run, &options, more, &[IMAGE], program].concat());
    }

    /// Runs a program in a container, which must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, words: &[&str]) -> String {
        self.command(&[&["exec", name], words].concat())
    }

    /// The address of a container's `eth0`, as the container itself sees it.
    #[track_caller]
    pub fn address(&self, name: &str) -> Ipv4Addr {
        let text = self.exec(name, &["ip", "-4", "-o", "addr"]);
        address_in(&text).unwrap_or_else(|| panic!("{name} has no address: {text}"))
    }

    /// Ends a container and removes it.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.command(&[&["rm", "--force"], self.options.remove, &[name]].concat());
    }
}
