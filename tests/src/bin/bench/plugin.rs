//! The plugins that are compared, their configuration and their calls.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::machine::{Container, Host};
use crate::process::{self, Cost};

const IFNAME: &str = "eth0";

/// The netfilter tool that the reference plugins use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Iptables,
    Nftables,
}

/// What the network is like, whoever makes it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shape {
    /// Masquerade; the reference plugins do it by this backend.
    pub(crate) masquerade: Option<Backend>,
    pub(crate) dual_stack: bool,
}

/// Which plugins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// weft and weft-ipam
    Weft,
    /// bridge and host-local
    Reference,
}

/// A network on a host: one plugin with its IPAM plugin.
pub(crate) struct Network<'a> {
    host: &'a Host,
    directory: &'a Path,
    plugin: &'static str,
    conf: Value,
}

impl<'a> Network<'a> {
    pub(crate) fn new(host: &'a Host, suite: Suite, directory: &'a Path, shape: Shape) -> Self {
        let (plugin, ipam) = match suite {
            Suite::Weft => ("weft", "weft-ipam"),
            Suite::Reference => ("bridge", "host-local"),
        };
        let mut ranges = vec![json!([{ "subnet": "10.88.0.0/16" }])];
        if shape.dual_stack {
            ranges.push(json!([{ "subnet": "fd77:6566:7400::/64" }]));
        }
        let mut conf = json!({
            "cniVersion": "1.1.0",
            "name": "bench",
            "type": plugin,
            "bridge": "bench0",
            "isGateway": true,
            "isDefaultGateway": true,
            "ipMasq": shape.masquerade.is_some(),
            "ipam": { "type": ipam, "ranges": ranges, "dataDir": host.state() },
        });
        match (suite, shape.masquerade) {
            (Suite::Weft, _) => conf["stateDir"] = json!(host.state()),
            (Suite::Reference, Some(Backend::Iptables)) => conf["ipMasqBackend"] = json!("iptables"),
            (Suite::Reference, Some(Backend::Nftables)) => conf["ipMasqBackend"] = json!("nftables"),
            (Suite::Reference, None) => {}
        }
        Self { host, directory, plugin, conf }
    }

    /// Attaches a container.
    pub(crate) fn add<'n>(&'n self, container: &'n Container) -> Attached<'n, 'a> {
        let program = self.directory.join(self.plugin);
        let (cost, result) = self.call(Command::new(program), "ADD", container, &self.conf);
        let result = serde_json::from_slice(&result).expect("a result");
        Attached { network: self, container, cost, result }
    }

    /// Attaches and detaches a container; returns the largest memory in KiB that a process of ADD had.
    pub(crate) fn add_peak_memory(&self, container: &Container) -> f64 {
        let program = self.directory.join(self.plugin);
        let (_, output) = self.call(process::with_peak_memory(&program), "ADD", container, &self.conf);
        self.call(Command::new(program), "DEL", container, &self.conf);
        process::settle();
        String::from_utf8_lossy(&output).trim().parse().expect("a number")
    }

    fn call(&self, mut command: Command, verb: &str, container: &Container, conf: &Value) -> (Cost, Vec<u8>) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", container.path())
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", self.directory);
        let stdin = conf.to_string();
        self.host.inside(|| process::measure(&mut command, stdin.as_bytes()))
    }
}

/// A container with a network, and what that cost.
pub(crate) struct Attached<'n, 'a> {
    network: &'n Network<'a>,
    container: &'n Container,
    pub(crate) cost: Cost,
    result: Value,
}

impl Attached<'_, '_> {
    /// Detaches the container, giving the plugin the result of its ADD as runtimes do.
    pub(crate) fn del(self) -> Cost {
        let mut conf = self.network.conf.clone();
        conf["prevResult"] = self.result;
        let program = self.network.directory.join(self.network.plugin);
        self.network.call(Command::new(program), "DEL", self.container, &conf).0
    }
}
