//! The bridge that a container's host end is a port of, as it is on file.

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use weft_net::{BridgePort, Link};

use crate::conf::Network;
use crate::plan::Plan;

/// The bridge, what the attachment needs of it, and how its port is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    pub bridge: String,
    pub mac: Option<MacAddr>,
    pub promiscuous: bool,
    pub gateways: Vec<IpNetwork>,
    #[serde(with = "PortOnFile")]
    pub port: BridgePort,
}

/// How [`BridgePort`], of a crate that writes nothing down, is on file.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BridgePort", rename_all = "camelCase")]
struct PortOnFile {
    hairpin: bool,
    isolated: bool,
    forwards_bpdus: bool,
}

impl Membership {
    pub fn new(network: &Network, bridge: &Link, plan: &Plan, port: BridgePort) -> Self {
        Self {
            bridge: bridge.name.clone(),
            mac: bridge.mac,
            promiscuous: network.promiscuous,
            gateways: plan.gateways.clone(),
            port,
        }
    }
}
