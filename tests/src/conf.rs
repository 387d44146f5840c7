//! Network configurations, and the calls that a runtime makes with them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::call::{Call, Reply};
use crate::node::Node;
use crate::pod::Pod;

/// One network: the configuration that libcni hands to `weft` or another plugin, whole.
#[derive(Clone)]
pub struct Network {
    /// The JSON that goes to standard input.
    pub conf: Value,
    plugin: &'static str,
}

impl Network {
    /// A network with a gateway address on bridge `weft0` and one range set per subnet; none: L2 only.
    pub fn new(name: &str, subnets: &[&str]) -> Self {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let mut conf = json!({ "cniVersion": "1.1.0", "name": name, "type": "weft", "bridge": "weft0" });
        if !ranges.is_empty() {
            conf["isGateway"] = json!(true);
            conf["ipam"] = json!({ "type": "weft-ipam", "ranges": ranges });
        }
        Self { conf, plugin: "weft" }
    }

    /// The network that most tests use: `10.88.0.0/24` with a default route.
    pub fn v4() -> Self {
        Self::new("net4", &["10.88.0.0/24"]).with(&json!({ "isDefaultGateway": true }))
    }

    /// Both families, with default routes.
    pub fn dual() -> Self {
        Self::new("dual", &["10.88.0.0/24", "fd00:88::/64"]).with(&json!({ "isDefaultGateway": true }))
    }

    /// A network on the subnets that flanneld or Weft's agent leased for a node, with its MTU: as flannel's own plugin
    /// would ask for it. `plugin` is `weft` with its IPAM plugin, or the reference `bridge` with `host-local`.
    pub fn leased(node: &Node, plugin: &'static str) -> Self {
        let env = node.subnet_env();
        // The file has the gateway's address with the subnet's prefix length.
        let subnet = |key: &&str| env.get(*key).map(|text| text.parse::<IpNetwork>().expect("a subnet"));
        let subnets = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].iter().filter_map(subnet);
        let subnets: Vec<String> =
            subnets.map(|subnet| format!("{}/{}", subnet.network(), subnet.prefix())).collect();
        let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
        let mtu: u32 = env["FLANNEL_MTU"].parse().expect("an MTU");
        let network = Self::new("leased", &subnets)
            .with(&json!({ "type": plugin, "mtu": mtu, "isDefaultGateway": true }));
        if plugin == "weft" {
            return network;
        }
        let state = node.directory().join("host-local");
        let network = network.with(&json!({ "ipam": { "type": "host-local", "dataDir": state } }));
        Self { plugin, ..network }
    }

    /// Changes keys, see [`merge`].
    #[must_use]
    pub fn with(mut self, changes: &Value) -> Self {
        merge(&mut self.conf, changes);
        self
    }

    /// The name of the network.
    pub fn name(&self) -> &str {
        self.conf["name"].as_str().expect("a name")
    }

    /// A call that is about no attachment.
    pub fn call(&self, command: &str) -> Call {
        // Not by `type`: a test may write anything there.
        if self.plugin == "weft" {
            return Call::new("weft", command, self.conf.to_string());
        }
        Call::any(self.plugin, command, self.conf.to_string())
    }

    /// ADD of `eth0`, to be changed or made.
    pub fn add_call(&self, pod: &Pod) -> Call {
        self.call("ADD").pod(pod)
    }

    /// DEL of `eth0`, to be changed or made. Without prevResult: the poorer case is the usual one in tests.
    pub fn del_call(&self, pod: &Pod) -> Call {
        self.call("DEL").pod(pod)
    }

    /// CHECK of `eth0` with the result of ADD, to be changed or made.
    pub fn check_call(&self, pod: &Pod, result: &Value) -> Call {
        self.previous(result).call("CHECK").pod(pod)
    }

    /// The same network with a prevResult.
    #[must_use]
    pub fn previous(&self, result: &Value) -> Self {
        self.clone().with(&json!({ "prevResult": result }))
    }

    /// ADD of `eth0`, which must succeed.
    #[track_caller]
    pub fn add(&self, pod: &Pod) -> Value {
        self.add_call(pod).run().result()
    }

    /// DEL of `eth0`, which must succeed.
    #[track_caller]
    pub fn del(&self, pod: &Pod) {
        self.del_call(pod).run().done();
    }

    /// CHECK of `eth0`.
    pub fn check(&self, pod: &Pod, result: &Value) -> Reply {
        self.check_call(pod, result).run()
    }

    /// GC with the attachments that live: container ID and interface.
    pub fn gc_call(&self, valid: &[(&str, &str)]) -> Call {
        let list: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
        self.clone().with(&json!({ "cni.dev/valid-attachments": list })).call("GC")
    }

    /// GC, which must succeed.
    #[track_caller]
    pub fn gc(&self, valid: &[(&str, &str)]) {
        self.gc_call(valid).run().done();
    }

    /// STATUS.
    pub fn status(&self) -> Reply {
        self.call("STATUS").run()
    }
}

/// [`Network::dual`], masqueraded.
pub fn masqueraded() -> Network {
    Network::dual().with(&json!({ "ipMasq": true }))
}

/// The container's addresses in a result of version 0.3.0 or later, in its order.
pub fn ips(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| {
        let text = ip["address"].as_str().unwrap_or_else(|| panic!("an address without text: {result}"));
        let (address, _prefix) = text.split_once('/').unwrap_or_else(|| panic!("no prefix length: {result}"));
        address.parse().unwrap_or_else(|error| panic!("{address}: {error}"))
    };
    result["ips"].as_array().map(|ips| ips.iter().map(address).collect()).unwrap_or_default()
}

/// The first of the container's addresses.
pub fn ip(result: &Value) -> IpAddr {
    *ips(result).first().unwrap_or_else(|| panic!("no address: {result}"))
}

/// Changes a JSON object key by key; objects are merged, `null` removes a key, all else replaces.
pub fn merge(target: &mut Value, changes: &Value) {
    let Value::Object(changes) = changes else {
        *target = changes.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let object = target.as_object_mut().expect("an object");
    for (key, value) in changes {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}
