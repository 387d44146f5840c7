//! Of which bridge a container's host end is a port, as it is on file.

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::{BridgePort, Link};

use crate::plan::Plan;

/// The bridge, what the attachment needs of it, and how its port is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    pub bridge: String,
    pub mac: Option<MacAddr>,
    pub gateways: Vec<IpNetwork>,
    hairpin: bool,
    isolated: bool,
    forwards_bpdus: bool,
}

impl Membership {
    pub fn new(bridge: &Link, plan: &Plan, port: BridgePort) -> Self {
        Self {
            bridge: bridge.name.clone(),
            mac: bridge.mac,
            gateways: plan.gateways.clone(),
            hairpin: port.hairpin,
            isolated: port.isolated,
            forwards_bpdus: port.forwards_bpdus,
        }
    }

    /// How the port is set.
    pub fn port(&self) -> BridgePort {
        BridgePort { hairpin: self.hairpin, isolated: self.isolated, forwards_bpdus: self.forwards_bpdus }
    }
}
