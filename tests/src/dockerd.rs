//! A real dockerd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::tools;
use crate::wait::eventually;

/// What it needs: the program and the Debian package that has it.
const NEEDED: [(&str, &str); 3] =
    [("dockerd", "docker.io"), ("containerd", "containerd"), ("iptables", "iptables")];
/// What it makes rules with.
const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];
const DIRECTORY: &str = "/run/testbed/dockerd";
const SOCKET: &str = "/run/testbed/dockerd/socket";
const PATIENCE: Duration = Duration::from_secs(30);

/// dockerd as it is installed, on this thread's host, with its bridge for both families. It ends with this value; its
/// rules stay.
pub struct Dockerd(Daemon);

impl Dockerd {
    /// Returns when it serves, and so has made its rules: with iptables of the suffix `-nft` or `-legacy`.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    pub fn new(suffix: &str) -> Self {
        tools::require(&NEEDED);
        let programs = Path::new(DIRECTORY).join("bin");
        fs::create_dir_all(&programs).expect("make a directory");
        for program in PROGRAMS {
            let real = tools::find(&format!("{program}{suffix}")).expect("iptables comes with both");
            // It is one program for all, which goes by the name that it is called by.
            symlink(real, programs.join(program)).expect("link a program");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let directory = |name: &str| format!("{DIRECTORY}/{name}");
        let mut dockerd = Command::new("dockerd");
        dockerd.env("PATH", format!("{}:{path}", programs.display()));
        dockerd.args(["--data-root", &directory("data"), "--exec-root", &directory("exec")]);
        dockerd.args([
            "--pidfile",
            &directory("pid"),
            "--host",
            &format!("unix://{SOCKET}"),
            "--group",
            "root",
        ]);
        dockerd.args(["--storage-driver", "vfs", "--experimental", "--ip6tables", "--ipv6"]);
        dockerd.args(["--fixed-cidr-v6", "fd00:d0c::/64"]);
        let dockerd = Self(Daemon::start(&dockerd, Path::new("/run/testbed/dockerd.log")));
        eventually(PATIENCE, "dockerd serves", || {
            let ended = dockerd.0.ended();
            assert!(ended.is_none(), "dockerd ended: {ended:?}\n{}", dockerd.0.log());
            // Its socket is there before its rules are.
            dockerd.0.log().contains("API listen on").then_some(())
        });
        dockerd
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Asked to, it ends its containerd too.
        if !std::thread::panicking() {
            self.0.stop();
        }
    }
}
