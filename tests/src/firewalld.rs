//! A real firewalld.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::daemon::Daemon;
use crate::tools;
use crate::wait::eventually;

/// What it needs: the program and the Debian package that has it.
const NEEDED: [(&str, &str); 3] =
    [("firewalld", "firewalld"), ("firewall-cmd", "firewalld"), ("dbus-daemon", "dbus-daemon")];
/// Where firewalld and its client look for the bus.
const BUS: &str = "/run/dbus/system_bus_socket";
/// A bus on which everybody may say everything.
const BUS_CONF: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"#;
const PATIENCE: Duration = Duration::from_secs(30);

/// firewalld as it is installed, with a system bus of its own, on this thread's host. It ends with this value.
pub struct Firewalld {
    _firewalld: Daemon,
    _bus: Daemon,
}

impl Firewalld {
    /// Returns when it has made its rules.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    #[expect(clippy::new_without_default, reason = "a program that is started is no default")]
    pub fn new() -> Self {
        tools::require(&NEEDED);
        fs::create_dir_all("/run/dbus").expect("make a directory");
        fs::write("/run/bus.conf", BUS_CONF).expect("write the bus's configuration");
        let mut bus = Command::new("dbus-daemon");
        bus.args(["--config-file=/run/bus.conf", "--nofork", "--nopidfile"]);
        let bus = Daemon::start(&bus, Path::new("/run/testbed/bus.log"));
        eventually(PATIENCE, "the system bus is there", || Path::new(BUS).exists().then_some(()));
        // What is set up permanently stays on this host.
        mount(Some("tmpfs"), "/etc/firewalld", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("mount a tmpfs at /etc/firewalld");
        let mut firewalld = Command::new("firewalld");
        firewalld.args(["--nofork", "--nopid", "--log-target", "console"]);
        let firewalld = Daemon::start(&firewalld, Path::new("/run/testbed/firewalld.log"));
        eventually(PATIENCE, "firewalld runs", || {
            tools::attempt("firewall-cmd --state").status.success().then_some(())
        });
        Self { _firewalld: firewalld, _bus: bus }
    }
}
