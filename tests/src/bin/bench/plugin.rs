//! The plugins that are compared, their configuration and their calls.

use std::net::IpAddr;
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
    /// A host port for each container; the reference plugins do it by this backend.
    pub(crate) port: Option<Backend>,
    pub(crate) dual_stack: bool,
    /// What only Weft has.
    pub(crate) features: Features,
}

/// How much of what a network can have besides containers' addresses.
#[derive(Clone, Copy, Default)]
pub(crate) enum Features {
    /// What is on where a configuration says nothing.
    #[default]
    Usual,
    /// Limits in both directions, containers kept apart, the guard.
    All,
    /// No guard, and networks are open to each other.
    None,
}

impl Features {
    fn configure(self, conf: &mut Value) {
        match self {
            Self::Usual => {}
            Self::All => {
                conf["icc"] = json!(false);
                conf["ingressRate"] = json!(1_000_000_000);
                conf["egressRate"] = json!(1_000_000_000);
            }
            Self::None => {
                conf["isolation"] = json!("none");
                conf["guard"] = json!(false);
            }
        }
    }
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
    /// The configuration of portmap, where it follows in the chain.
    portmap: Option<Value>,
    has_port: bool,
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
        shape.features.configure(&mut conf);
        match (suite, shape.masquerade) {
            (Suite::Weft, _) => conf["stateDir"] = json!(host.state()),
            (Suite::Reference, Some(Backend::Iptables)) => conf["ipMasqBackend"] = json!("iptables"),
            (Suite::Reference, Some(Backend::Nftables)) => conf["ipMasqBackend"] = json!("nftables"),
            (Suite::Reference, None) => {}
        }
        let portmap = shape.port.filter(|_| suite == Suite::Reference).map(|backend| {
            let backend = match backend {
                Backend::Iptables => "iptables",
                Backend::Nftables => "nftables",
            };
            json!({ "cniVersion": "1.1.0", "name": "bench", "type": "portmap", "backend": backend })
        });
        Self { host, directory, plugin, conf, portmap, has_port: shape.port.is_some() }
    }

    /// The configuration with a container's host port in it.
    fn conf_for(&self, conf: &Value, container: &Container) -> Value {
        let mut conf = conf.clone();
        if self.has_port {
            let mapping = json!({ "hostPort": container.port, "containerPort": 80, "protocol": "tcp" });
            conf["runtimeConfig"] = json!({ "portMappings": [mapping] });
        }
        conf
    }

    /// Attaches a container.
    pub(crate) fn add<'n>(&'n self, container: &'n Container) -> Attached<'n, 'a> {
        let program = self.directory.join(self.plugin);
        // The bridge plugin is not told of ports.
        let conf =
            if self.portmap.is_some() { self.conf.clone() } else { self.conf_for(&self.conf, container) };
        let (mut cost, result) = self.call(Command::new(program), "ADD", container, &conf);
        let result: Value = serde_json::from_slice(&result).expect("a result");
        if let Some(portmap) = &self.portmap {
            let mut conf = self.conf_for(portmap, container);
            conf["prevResult"] = result.clone();
            let program = self.directory.join("portmap");
            cost = cost.and(self.call(Command::new(program), "ADD", container, &conf).0);
        }
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
    /// The container's first address.
    pub(crate) fn address(&self) -> IpAddr {
        let text = self.result["ips"][0]["address"].as_str().expect("an address");
        text.split('/').next().and_then(|text| text.parse().ok()).expect("an address with its prefix length")
    }

    /// Detaches the container, giving the plugin the result of its ADD as runtimes do.
    pub(crate) fn del(self) -> Cost {
        let Self { network, container, .. } = self;
        let portmap = network.portmap.as_ref().map(|portmap| {
            let mut conf = network.conf_for(portmap, container);
            conf["prevResult"] = self.result.clone();
            network.call(Command::new(network.directory.join("portmap")), "DEL", container, &conf).0
        });
        let mut conf =
            if portmap.is_some() { network.conf.clone() } else { network.conf_for(&network.conf, container) };
        conf["prevResult"] = self.result;
        let program = network.directory.join(network.plugin);
        let cost = network.call(Command::new(program), "DEL", container, &conf).0;
        portmap.map_or(cost, |portmap| portmap.and(cost))
    }
}
