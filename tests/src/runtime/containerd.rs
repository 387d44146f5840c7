//! containerd and its client `ctr`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::Duration;

use super::{IMAGE, Machine, address_in, image};

/// How long containerd may take to start.
const STARTUP: Duration = Duration::from_secs(30);

/// Where it tells that it serves.
const NOTIFY: &str = "/opt/notify";

/// What it says.
const LOG: &str = "/opt/containerd.log";

/// Kubernetes' part of containerd sees only the images of this namespace.
const KUBERNETES: &str = "k8s.io";

/// A containerd that ends with its [`Machine`].
pub struct Containerd<'machine> {
    machine: &'machine Machine,
}

impl<'machine> Containerd<'machine> {
    /// Where it listens.
    pub const SOCKET: &'static str = "/opt/containerd/socket";

    /// Starts the daemon, waits until it serves, and gives it the image.
    pub fn start(machine: &'machine Machine) -> Self {
        fs::create_dir_all("/etc/containerd").expect("make /etc/containerd");
        fs::write("/etc/containerd/config.toml", configuration()).expect("write containerd's configuration");
        // It reports as to systemd that it is up.
        let notify = UnixDatagram::bind(NOTIFY).expect("make a notification socket");
        notify.set_read_timeout(Some(STARTUP)).expect("limit the wait");
        machine.daemon(&["env", &format!("NOTIFY_SOCKET={NOTIFY}"), "containerd"], LOG);
        let containerd = Self { machine };
        let mut message = [0; 64];
        let length = notify.recv(&mut message).unwrap_or_else(|error| {
            panic!("containerd does not serve after {STARTUP:?}: {error}\n{}", containerd.log())
        });
        assert!(message[..length].starts_with(b"READY=1"), "containerd stopped: {}", containerd.log());
        for namespace in ["default", KUBERNETES] {
            containerd.ctr(&["--namespace", namespace, "image", "import", image::ARCHIVE]);
        }
        containerd
    }

    /// What the daemon has said so far, for the message of a test that fails.
    pub fn log(&self) -> String {
        fs::read_to_string(LOG).unwrap_or_else(|error| format!("({LOG}: {error})"))
    }

    /// Runs `ctr`, which must succeed.
    #[track_caller]
    pub fn ctr(&self, words: &[&str]) -> String {
        self.machine.run(&[&["ctr"], words].concat())
    }

    /// `ctr run --cni`, in the foreground: only so does it call DEL when the container ends.
    pub fn run(&self, name: &str) -> Container<'_> {
        let cgroup = format!("{}/{name}", self.machine.cgroup());
        let words = ["ctr", "run", "--rm", "--cni", "--cgroup", &cgroup, IMAGE, name];
        let mut process = self.machine.start(&words);
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let address = stdout.lines().find_map(|line| address_in(&line.expect("read from the container")));
        let Some(address) = address else {
            let mut stderr = String::new();
            let _best_effort = process.stderr.take().expect("a pipe").read_to_string(&mut stderr);
            panic!("`{}` showed no address: {stderr}\n{}", words.join(" "), self.log());
        };
        Container { containerd: self, name: name.to_owned(), process, address }
    }
}

/// A container of `ctr run`.
pub struct Container<'containerd> {
    containerd: &'containerd Containerd<'containerd>,
    name: String,
    process: Child,
    /// Of `eth0`, as the container itself sees it.
    pub address: Ipv4Addr,
}

impl Container<'_> {
    /// Runs a program in the container, which must succeed.
    #[track_caller]
    pub fn exec(&self, words: &[&str]) -> String {
        self.containerd.ctr(&[&["task", "exec", "--exec-id", "exec", &self.name], words].concat())
    }

    /// Ends the container and waits until `ctr run` has called DEL and is done.
    #[track_caller]
    pub fn stop(self) {
        self.containerd.ctr(&["task", "kill", "--signal", "SIGKILL", &self.name]);
        let output = self.process.wait_with_output().expect("wait for ctr run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        // ctr ends with the container's status, which is that of SIGKILL, and logs what DEL said.
        assert!(
            output.status.code() == Some(137) && stderr.is_empty(),
            "`ctr run` of {} ended with {}: {stderr}",
            self.name,
            output.status
        );
    }
}

/// Below `/opt`: what containerd keeps is none of the test's business when it compares the host's files.
/// Without the two last settings of `cri`, containers do not start on a machine that has no AppArmor or lets nobody
/// lower an OOM score.
fn configuration() -> String {
    format!(
        r#"version = 2
root = "/opt/containerd/root"
state = "/opt/containerd/state"
[grpc]
address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
"#,
        Containerd::SOCKET,
        super::PLUGINS,
        super::NETWORKS,
    )
}
