//! What an attachment holds in the host's rules, as its record keeps it. In the files below: how ADD gets it, how DEL takes it
//! back, and how it is put back where the rules were flushed.

use cni_protocol::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::conf::{Asked, Network};
use crate::guard::{self, Guard, Port};
use crate::hostport::{self, Ports, Reach};
use crate::isolation::{self, Isolation};
use crate::key::AttachmentKey;
use crate::plan::Plan;
use crate::ruleset::{Elements, Group};

pub mod company;
pub mod erasure;
pub mod hold;
pub mod network;
pub mod restore;

/// What an attachment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Holdings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// The container's port of a bridge, where another plugin made it and rules name it. On record before the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

impl Holdings {
    /// Works out what an attachment needs. Pure.
    pub fn new(network: &Network, asked: &Asked, plan: &Plan, container: Port) -> Result<Self, Error> {
        if !asked.mappings.is_empty() && plan.gateways.is_empty() {
            return Err(Error::new(
                Code::InvalidConfig,
                "portMappings are asked for, but the host is not the containers' gateway: set isGateway or isDefaultGateway",
            ));
        }
        let reach = Reach::Bridge(network.bridge.to_string());
        let known = [network.all_hosts.as_slice(), &network.isolation.subnets].concat();
        Ok(Self {
            ports: Ports::new(&network.ports, &reach, asked, plan, Some(&known))?,
            isolation: Isolation::new(
                &network.isolation,
                Some(network.bridge.as_str()),
                &network.all_hosts,
                &asked.allow,
                plan,
            )?,
            guard: Guard::new(&network.guard, network.ipam.as_deref(), asked, plan, container)?,
            port: None,
        })
    }

    /// The elements that stand for it.
    pub fn elements(&self, key: &AttachmentKey) -> Elements {
        let mut all = Elements::default();
        let ports = self.ports.as_ref().map(Ports::elements);
        let port = self.port.clone().unwrap_or_else(|| key.host_veth());
        let isolation = self.isolation.as_ref().map(|isolation| isolation.elements(&key.network));
        let guard = self.guard.as_ref().map(|guard| guard.elements(&port));
        for part in [ports, isolation, guard].into_iter().flatten() {
            all.extend(part);
        }
        all.of(key)
    }

    /// The groups that an attachment will need, whatever its addresses are.
    pub fn expected(network: &Network, asked: &Asked) -> Vec<&'static Group> {
        let ports = (!asked.mappings.is_empty()).then_some(&hostport::GROUP);
        let guard = (!network.guard.is_empty()).then_some(&guard::GROUP);
        ports.into_iter().chain(isolation::GROUPS).chain(guard).collect()
    }

    /// What others may have been allowed with it.
    pub fn private(&self) -> Option<&Isolation> {
        self.isolation.as_ref().filter(|isolation| isolation.policy.private)
    }

    /// The interface that must route 127.0.0.1.
    pub fn localnet(&self) -> Option<&str> {
        self.ports.as_ref().and_then(Ports::localnet)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
