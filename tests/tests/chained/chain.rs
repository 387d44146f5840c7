//! Networks of the reference bridge with Weft behind it, in both families.

use serde_json::{Value, json};
use weft_tests::{Call, Network, Pod, addresses_settle, merge};

use crate::behind;

/// One network.
#[derive(Clone)]
pub(crate) struct Chain {
    bridge: Value,
    weft: Value,
}

impl Chain {
    /// With the subnets `10.NUMBER.0.0/24` and `fd00:NUMBER::/64`, whose gateway the bridge is.
    pub(crate) fn new(name: &str, bridge: &str, number: u8) -> Self {
        let ranges = json!([[{ "subnet": format!("10.{number}.0.0/24") }], [{ "subnet": format!("fd00:{number}::/64") }]]);
        let bridge = json!({
            "cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": bridge, "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": ranges },
        });
        Self { bridge, weft: json!({ "name": name }) }
    }

    /// Changes the keys of bridge.
    #[must_use]
    pub(crate) fn on(mut self, changes: &Value) -> Self {
        merge(&mut self.bridge, changes);
        self
    }

    /// Changes Weft's.
    #[must_use]
    pub(crate) fn with(mut self, changes: &Value) -> Self {
        merge(&mut self.weft, changes);
        self
    }

    /// What bridge answers for a container, once its IPv6 addresses can be used.
    pub(crate) fn previous(&self, pod: &Pod) -> Value {
        self.previous_of(pod, "eth0")
    }

    fn previous_of(&self, pod: &Pod, ifname: &str) -> Value {
        let bridge = Call::any("bridge", "ADD", self.bridge.to_string());
        let result = bridge.pod(pod).ifname(ifname).run().result();
        addresses_settle();
        result
    }

    /// Weft behind that.
    pub(crate) fn behind(&self, previous: &Value) -> Network {
        behind(previous, &self.weft)
    }

    /// Attaches a container by both.
    pub(crate) fn add(&self, pod: &Pod) -> Value {
        self.add_as(pod, "eth0")
    }

    /// The same, with another interface.
    pub(crate) fn add_as(&self, pod: &Pod, ifname: &str) -> Value {
        let previous = self.previous_of(pod, ifname);
        self.behind(&previous).add_call(pod).ifname(ifname).run().result()
    }
}
