//! The CNI plugins of the host that changes over: flannel's own, until Weft's takes its place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_tests::{Call, Node, Pod, dist, peers, script};

/// What stands for `/opt/cni/bin` on a node, and the plugin's part of the conflist, which stays as it is.
pub(super) struct Plugins {
    directory: PathBuf,
    conf: Value,
}

impl Plugins {
    /// As a host has them where flanneld runs. flannel's own plugin cannot be built here, as it is no Go module that is to be had.
    /// For ADD it does no more than this (flannel.go of github.com/flannel-io/cni-plugin v1.7): it executes `bridge`, with what
    /// subnet.env says, and keeps what it told `bridge`.
    pub(super) fn of_flannel(node: &Node) -> Self {
        let directory = node.directory().join("bin");
        let (data, reservations) = (node.directory().join("flannel"), node.directory().join("host-local"));
        fs::create_dir_all(&data).expect("make a directory");
        let conf = json!({
            "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel", "subnetFile": node.subnet_file(),
            "dataDir": data, "ipam": { "dataDir": reservations },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true }
        });
        let delegate = node.directory().join("delegate.json");
        fs::write(&delegate, flannels_delegate(node, &reservations).to_string()).expect("write a file");
        let body = format!(
            "[ \"$CNI_COMMAND\" = ADD ] || exit 1\ncat >/dev/null\ntee \"{}/$CNI_CONTAINERID\" <{} | \"$CNI_PATH/bridge\"",
            data.display(),
            delegate.display()
        );
        script(directory.to_str().expect("a path in UTF-8"), "flannel", &body);
        for plugin in ["bridge", "host-local"] {
            symlink(peers().join(plugin), directory.join(plugin)).expect("link a plugin");
        }
        Self { directory, conf }
    }

    /// Weft's plugin takes the place of flannel's, beside its IPAM plugin: at no moment is there none.
    pub(super) fn replace(&self) {
        for plugin in ["weft-ipam", "flannel"] {
            let new = self.directory.join(format!(".{plugin}"));
            symlink(dist().join(plugin), &new).expect("link a plugin");
            fs::rename(&new, self.directory.join(plugin)).expect("rename a plugin into place");
        }
    }

    pub(super) fn call(&self, command: &str, node: &Node, pod: &Pod) -> Call {
        self.call_with(command, node, pod, &self.conf)
    }

    pub(super) fn check(&self, node: &Node, pod: &Pod, result: &Value) {
        let mut conf = self.conf.clone();
        conf["prevResult"] = result.clone();
        self.call_with("CHECK", node, pod, &conf).run().done();
    }

    fn call_with(&self, command: &str, node: &Node, pod: &Pod, conf: &Value) -> Call {
        let program = self.directory.join("flannel");
        let call = Call::new(program.to_str().expect("a path in UTF-8"), command, conf.to_string());
        call.on(node).pod(pod).env("CNI_PATH", &self.directory)
    }

    /// How many addresses host-local holds of the network.
    pub(super) fn held_by_host_local(&self) -> usize {
        let directory = self.conf["ipam"]["dataDir"].as_str().expect("a directory");
        let entries =
            fs::read_dir(Path::new(directory).join("cbr0")).expect("host-local's directory").flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).count()
    }
}

/// What flannel's own plugin tells `bridge`.
fn flannels_delegate(node: &Node, reservations: &Path) -> Value {
    let env = node.subnet_env();
    let subnets = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].iter().filter_map(|key| env.get(*key));
    // The file has the gateway's address with the subnet's prefix length.
    let range =
        |gateway: &String| json!([{ "subnet": gateway.replace("1/24", "0/24").replace("::1/", "::/") }]);
    let networks = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"].iter().filter_map(|key| env.get(*key));
    json!({
        "name": "cbr0", "cniVersion": "1.0.0", "type": "bridge", "hairpinMode": true,
        "isDefaultGateway": true, "isGateway": true,
        "ipMasq": env["FLANNEL_IPMASQ"] == "false",
        "mtu": env["FLANNEL_MTU"].parse::<u32>().expect("an MTU"),
        "ipam": {
            "type": "host-local", "dataDir": reservations,
            "ranges": subnets.map(range).collect::<Vec<_>>(),
            "routes": networks.map(|network| json!({ "dst": network })).collect::<Vec<_>>(),
        }
    })
}
