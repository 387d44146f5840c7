//! podman with CNI networks.

use std::fs;
use std::net::Ipv4Addr;

use super::{IMAGE, Machine, address_in, image};

/// podman on a [`Machine`]; it has no daemon.
pub struct Podman<'machine> {
    machine: &'machine Machine,
}

impl<'machine> Podman<'machine> {
    /// Configures podman for CNI and gives it the image.
    pub fn new(machine: &'machine Machine) -> Self {
        fs::write("/etc/containers/containers.conf", configuration()).expect("write podman's configuration");
        fs::write("/etc/containers/storage.conf", STORAGE).expect("write podman's storage configuration");
        let podman = Self { machine };
        podman.podman(&["import", image::LAYER, IMAGE]);
        podman
    }

    /// Runs podman, which must succeed.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> String {
        self.machine.run(&[&["podman"], words].concat())
    }

    /// Starts a container on a network; returns when its network is there.
    #[track_caller]
    pub fn run(&self, name: &str, network: &str) {
        self.run_with(name, network, &[], &["sleep", "infinity"]);
    }

    /// The same with further options and another program.
    #[track_caller]
    pub fn run_with(&self, name: &str, network: &str, more: &[&str], program: &[&str]) {
        let cgroup = self.machine.cgroup();
        let options = ["--detach", "--name", name, "--network", network, "--cgroup-parent", cgroup];
        // Without NET_RAW, which podman does not give, nobody can ping.
        let words = [&["run", "--cap-add", "NET_RAW"], &options[..], more, &[IMAGE], program].concat();
        self.podman(&words);
    }

    /// Runs a program in a container, which must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, words: &[&str]) -> String {
        self.podman(&[&["exec", name], words].concat())
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
        self.podman(&["rm", "--force", "--time", "0", name]);
    }
}

/// crun refuses cgroups that are half v1 and half v2, runc does not; no systemd is asked for groups. The limits are
/// those that any root may set, where podman's own raise them.
fn configuration() -> String {
    format!(
        r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
static_dir = "/opt/podman/static"
tmp_dir = "/opt/podman/tmp"
volume_path = "/opt/podman/volumes"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{}"]
network_config_dir = "{}"
"#,
        super::PLUGINS,
        super::NETWORKS,
    )
}

/// Below `/opt`: what podman keeps is none of the test's business when it compares the host's files.
const STORAGE: &str = r#"[storage]
driver = "overlay"
graphroot = "/opt/podman/storage"
runroot = "/opt/podman/run"
"#;
