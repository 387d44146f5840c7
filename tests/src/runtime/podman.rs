//! podman with CNI networks.

use std::fs;

use super::engine::{Engine, Options};
use super::{IMAGE, Machine, image};

/// podman, configured for CNI and with the image; it has no daemon.
pub fn podman(machine: &Machine) -> Engine<'_> {
    fs::write("/etc/containers/containers.conf", configuration()).expect("write podman's configuration");
    fs::write("/etc/containers/storage.conf", STORAGE).expect("write podman's storage configuration");
    let options = Options {
        program: vec!["podman".to_owned()],
        // Without NET_RAW, which podman does not give, nobody can ping.
        run: &["--cap-add", "NET_RAW"],
        remove: &["--time", "0"],
    };
    let podman = Engine::new(machine, options);
    podman.command(&["import", image::LAYER, IMAGE]);
    podman
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
