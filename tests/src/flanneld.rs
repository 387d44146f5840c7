//! A real flanneld.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::http;
use crate::netns::NetNs;
use crate::node::Node;
use crate::tools;
use crate::wait::eventually;

/// Where it tells that it is ready, on its node.
const STATE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8471);

/// How long its start may take: a quarter of a second on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// flanneld does not start where br_netfilter has no settings, and does not read them. A user namespace cannot load a module, so it
/// sees some of its own, in a mount namespace of its own, next to all others as they are.
const WITH_SETTINGS: &str = r#"set -e
mount --bind /proc/sys/net "$0"
mount -t tmpfs settings /proc/sys/net
cd /proc/sys/net
for entry in "$0"/*; do
    name=${entry##*/}
    [ "$name" != bridge ] || continue
    if [ -d "$entry" ]; then mkdir "$name"; else : >"$name"; fi
    mount --bind "$entry" "$name"
done
mkdir bridge
echo 0 | tee bridge/bridge-nf-call-iptables >bridge/bridge-nf-call-ip6tables
cd /
exec "$@"
"#;

/// flanneld on one node, with `eth0` and the node's [`Node::subnet_file`]. It ends with this value; what it made in
/// the node's kernel stays, as with the real one.
pub struct Flanneld {
    daemon: Daemon,
    netns: NetNs,
}

impl Flanneld {
    /// The key prefix that it has unless told otherwise.
    pub const PREFIX: &'static str = "/coreos.com/network";

    /// Starts it for a prefix of the store, with further options, without waiting for anything.
    pub fn start(node: &Node, etcd: &Etcd, prefix: &str, options: &[&str]) -> Self {
        tools::require(&[("iptables", "iptables")]);
        tools::require(&[("unshare", "util-linux"), ("mount", "mount")]);
        let settings = node.directory().join("settings");
        fs::create_dir_all(&settings).expect("make a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", WITH_SETTINGS]).arg(settings);
        command.arg(tools::peers().join("flanneld"));
        command.arg(format!("--etcd-endpoints={}", etcd.endpoints().join(",")));
        command.arg(format!("--etcd-prefix={prefix}"));
        command.args(etcd.flanneld_options());
        command.arg("--iface=eth0");
        command.arg(format!("--subnet-file={}", node.subnet_file().display()));
        command.arg(format!("--healthz-ip={}", STATE.ip())).arg(format!("--healthz-port={}", STATE.port()));
        command.args(options);
        Self { daemon: node.start(command), netns: node.netns().clone() }
    }

    /// Starts it for [`Flanneld::PREFIX`]; returns when it has a subnet, its device and its rules.
    pub fn up(node: &Node, etcd: &Etcd) -> Self {
        let flanneld = Self::start(node, etcd, Self::PREFIX, &[]);
        flanneld.ready();
        flanneld
    }

    /// Waits until it has a subnet, its device and its rules.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn ready(&self) {
        eventually(PATIENCE, "flanneld is ready", || {
            let ended = self.daemon.ended();
            assert!(ended.is_none(), "flanneld has ended: {ended:?}");
            let answer = self.netns.inside(|| http::get(STATE, "/readyz"))?;
            (answer.status == 200).then_some(())
        });
    }

    /// Asks it to end and waits until it has. Its lease, its device and its routes stay.
    pub fn stop(&self) -> ExitStatus {
        self.daemon.stop()
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}
