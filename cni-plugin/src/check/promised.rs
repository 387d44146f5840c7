//! What an ADD's result promises.

use cni_protocol::{AddResult, CheckArgs, Code, Error, Interface, IpConfig, MacAddr, Version};
use serde_json::{Map, Value};

use crate::key::{AttachmentKey, VethEnd};

/// What the previous result says of this attachment.
pub(super) struct Promised {
    pub(super) container: Interface,
    pub(super) host: Option<Interface>,
    /// The bridge's MAC address: containers know the gateway by it.
    pub(super) bridge_mac: Option<String>,
    /// Results before 1.1.0 have none.
    pub(super) bridge_mtu: Option<u32>,
    pub(super) ips: Vec<IpConfig>,
    /// Whether a route without a metric has none. Results before 1.1.0 have no metrics, and a runtime may have converted one
    /// since.
    pub(super) has_metrics: bool,
}

impl Promised {
    pub(super) fn read(args: &CheckArgs, key: &AttachmentKey, bridge: &str) -> Result<Self, Error> {
        let AddResult { interfaces, ips, .. } = &args.prev_result;
        let sandboxed =
            |interface: &Interface| interface.sandbox.as_deref().is_some_and(|path| !path.is_empty());
        let at = interfaces.iter().position(|found| found.name == args.ifname.as_str() && sandboxed(found));
        let Some((at, container)) = at.and_then(|at| Some((at, interfaces.get(at)?))) else {
            return Err(Error::new(
                Code::InvalidConfig,
                format!(
                    "prevResult has no interface {} with a sandbox: pass the result of this ADD",
                    args.ifname
                ),
            ));
        };
        let on_host = |name: &str| interfaces.iter().find(|found| !sandboxed(found) && found.name == name);
        Ok(Self {
            container: container.clone(),
            host: on_host(&key.host_veth()).cloned(),
            bridge_mac: on_host(bridge).and_then(|bridge| bridge.mac.clone()),
            bridge_mtu: on_host(bridge).and_then(|bridge| bridge.mtu),
            ips: ips.iter().filter(|ip| ip.interface.is_none_or(|of| of == at)).cloned().collect(),
            has_metrics: has_metrics(&args.call.conf),
        })
    }

    /// The container's MAC address; where the result does not say it, what follows from the key.
    pub(super) fn mac(&self, key: &AttachmentKey) -> MacAddr {
        let mac = self.container.mac.as_ref().and_then(|mac| mac.parse().ok());
        mac.unwrap_or_else(|| key.mac(VethEnd::Container))
    }
}

fn has_metrics(conf: &Map<String, Value>) -> bool {
    let version = conf.get("prevResult").and_then(|result| result.get("cniVersion"));
    let routes = conf.get("ipam").and_then(|ipam| ipam.get("routes")).and_then(Value::as_array);
    version.and_then(Value::as_str) == Some(Version::V1_1_0.as_str())
        && routes.is_none_or(|routes| routes.iter().all(|route| route.get("priority").is_none()))
}
