//! Weft's agent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::conf::{Network, merge};
use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::http::{self, Answer};
use crate::netns::NetNs;
use crate::node::Node;
use crate::tools;
use crate::wait::eventually;

/// Where it answers questions, on its node.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9454);

/// How long its start may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// `weftd` on one node. It ends with this value; what it made in the node's kernel stays, as with the real one.
pub struct Weftd {
    daemon: Daemon,
    netns: NetNs,
}

impl Weftd {
    /// The key prefix that it has unless told otherwise.
    pub const PREFIX: &'static str = "/coreos.com/network";
    /// The network's name, see [`Weftd::network`].
    pub const NETWORK: &'static str = "pods";

    /// Starts it for [`Weftd::PREFIX`] without waiting for anything; `changes` are merged into the network's part of
    /// its configuration.
    pub fn start(node: &Node, etcd: &Etcd, changes: &Value) -> Self {
        let mut network = Self::conf(node, etcd);
        merge(&mut network, changes);
        Self::with(node, &json!({ "networks": [network] }))
    }

    /// The part of a node's configuration that is about its network.
    pub fn conf(node: &Node, etcd: &Etcd) -> Value {
        json!({
            "name": Self::NETWORK,
            "etcd": { "endpoints": etcd.endpoints(), "prefix": Self::PREFIX },
            "subnetFile": node.subnet_file(),
        })
    }

    /// Starts it with a configuration.
    pub fn with(node: &Node, conf: &Value) -> Self {
        Self::by(node, Self::command(node, conf))
    }

    /// Starts it by a command that [`Weftd::command`] gave, or by one that executes that.
    pub fn by(node: &Node, command: Command) -> Self {
        Self { daemon: node.start(command), netns: node.netns().clone() }
    }

    /// The command that starts it with a configuration.
    pub fn command(node: &Node, conf: &Value) -> Command {
        let file = node.directory().join("weftd.json");
        fs::create_dir_all(node.directory()).expect("make a node's directory");
        fs::write(&file, conf.to_string()).expect("write the agent's configuration");
        let program = tools::dist().join("weftd");
        assert!(program.is_file(), "{} is missing: run hack/build", program.display());
        let mut command = Command::new(program);
        command.arg("--config").arg(file);
        command
    }

    /// Starts it and waits until it is ready.
    pub fn up(node: &Node, etcd: &Etcd) -> Self {
        let weftd = Self::start(node, etcd, &json!({}));
        weftd.ready();
        weftd
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn ready(&self) {
        eventually(PATIENCE, "weftd is ready", || {
            let ended = self.daemon.ended();
            assert!(ended.is_none(), "weftd has ended: {ended:?}");
            (self.ask("/readyz")?.status == 200).then_some(())
        });
    }

    /// What it answers at a path.
    pub fn ask(&self, path: &str) -> Option<Answer> {
        self.netns.inside(|| http::get(LISTEN, path))
    }

    /// The value of a metric: `weft_heals_total{network="pods",object="route"}`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.ask("/metrics")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line.parse().unwrap_or_else(|error| panic!("{name} is {line}: {error}")))
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The network as a container runtime has it, in which a pod's traffic goes to all other hosts.
    pub fn network(etcd: &Etcd) -> Network {
        Network::new(Self::NETWORK, &[]).with(&json!({
            "isGateway": true,
            "isDefaultGateway": true,
            "ipam": {
                "type": "weft-ipam",
                "etcd": { "endpoints": etcd.endpoints(), "prefix": Self::PREFIX },
            },
        }))
    }
}
