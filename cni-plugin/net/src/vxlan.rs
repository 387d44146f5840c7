//! VXLAN devices: `ip link … type vxlan`.

use std::net::IpAddr;

use cni_protocol::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVxlan};

use super::error::NlResult;
use super::socket::Netlink;

/// What a VXLAN device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    pub port: u16,
    pub learning: bool,
    /// The index of the interface that it stands on.
    pub underlay: u32,
    pub local: IpAddr,
}

impl Netlink {
    /// `ip link add NAME address MAC mtu MTU up type vxlan id … local … dev … dstport … [no]learning`.
    pub fn add_vxlan(&mut self, name: &str, mac: MacAddr, mtu: u32, vxlan: Vxlan) -> NlResult<()> {
        let mut link = LinkVxlan::new(name, vxlan.vni)
            .dev(vxlan.underlay)
            .port(vxlan.port)
            .learning(vxlan.learning)
            .address(mac.octets().to_vec())
            .mtu(mtu)
            .up();
        link = match vxlan.local {
            IpAddr::V4(local) => link.local(local),
            IpAddr::V6(local) => link.local6(local),
        };
        self.request(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// `ip -d link show dev NAME`; `None` when there is no such device, or when it is no VXLAN device.
    pub fn vxlan(&mut self, name: &str) -> NlResult<Option<Vxlan>> {
        let query = LinkUnspec::new_with_name(name);
        match self.socket.request(RouteNetlinkMessage::GetLink(query.build()), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_vxlan)),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `ip link set NAME address MAC mtu MTU up nomaster alias TEXT`. The kernel takes no alias when it makes a link.
    pub fn set_vxlan(&mut self, name: &str, mac: MacAddr, mtu: u32, alias: &str) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).address(mac.octets().to_vec()).mtu(mtu).up();
        let link = link.nocontroller().alias(alias);
        self.request(RouteNetlinkMessage::SetLink(link.build()), 0).map(drop)
    }
}

fn as_vxlan(message: RouteNetlinkMessage) -> Option<Vxlan> {
    let RouteNetlinkMessage::NewLink(LinkMessage { attributes, .. }) = message else { return None };
    let infos = attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let data = infos.into_iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let (mut vni, mut port, mut learning, mut underlay, mut local) = (0, 0, false, 0, None);
    for part in data {
        match part {
            InfoVxlan::Id(id) => vni = id,
            InfoVxlan::Port(number) => port = number,
            InfoVxlan::Learning(on) => learning = on,
            InfoVxlan::Link(index) => underlay = index,
            InfoVxlan::Local(ip) => local = Some(ip.into()),
            InfoVxlan::Local6(ip) => local = Some(ip.into()),
            _ => {}
        }
    }
    Some(Vxlan { vni, port, learning, underlay, local: local? })
}
