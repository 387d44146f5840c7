//! nerdctl, by which people run containers of containerd.

use std::net::Ipv4Addr;

use super::{Containerd, IMAGE, Machine, NETWORKS, PLUGINS, address_in};
use crate::tools;

/// nerdctl on a [`Machine`] with a [`Containerd`].
pub struct Nerdctl<'machine> {
    machine: &'machine Machine,
    program: String,
    _containerd: Containerd<'machine>,
}

impl<'machine> Nerdctl<'machine> {
    /// Starts a containerd for it.
    ///
    /// # Panics
    /// When nerdctl is not there.
    pub fn start(machine: &'machine Machine) -> Self {
        let program = tools::peers().join("nerdctl");
        assert!(program.is_file(), "{} is missing: run hack/peers", program.display());
        let program = program.to_str().expect("a path in UTF-8").to_owned();
        Self { machine, program, _containerd: Containerd::start(machine) }
    }

    /// Runs nerdctl, which must succeed.
    #[track_caller]
    pub fn nerdctl(&self, words: &[&str]) -> String {
        // Below `/opt`, as all that runtimes keep.
        let own = ["--data-root", "/opt/nerdctl", "--cni-path", PLUGINS, "--cni-netconfpath", NETWORKS];
        self.machine.run(&[&[self.program.as_str()], &own[..], words].concat())
    }

    /// Starts a container on a network; returns when its network is there.
    #[track_caller]
    pub fn run(&self, name: &str, network: &str, more: &[&str], program: &[&str]) {
        let cgroup = self.machine.cgroup();
        let options = ["--detach", "--name", name, "--network", network, "--cgroup-parent", cgroup];
        self.nerdctl(&[&["run", "--pull", "never"], &options[..], more, &[IMAGE], program].concat());
    }

    /// Runs a program in a container, which must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, words: &[&str]) -> String {
        self.nerdctl(&[&["exec", name], words].concat())
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
        self.nerdctl(&["rm", "--force", name]);
    }
}
