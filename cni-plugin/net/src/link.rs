//! Links: `ip link`, and `bridge link` for the ports of a bridge.

mod answer;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

use cni_protocol::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoPortData, InfoPortKind,
    InfoVeth, LinkAttribute, LinkExtentMask, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use self::answer::LinkAnswer;
use super::error::{NetError, NlResult};
use super::netns::NetNs;
use super::socket::Netlink;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `None` for hardware: only virtual links have a kind.
    pub kind: Option<String>,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    pub up: bool,
    /// Up with a carrier that the kernel has taken notice of: packets pass.
    pub running: bool,
    pub promiscuous: bool,
    pub all_multicast: bool,
    /// How many packets may wait to be sent, where it has a queue.
    pub queue_length: u32,
    pub alias: Option<String>,
    /// The index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// `ip link set … group`
    pub group: u32,
    /// The index of a veth's other end, in that end's namespace.
    pub peer: Option<u32>,
    /// What it is allowed as a port; `None` when it is no bridge port.
    pub port: Option<BridgePort>,
    /// Whether it is a port that passes nothing (`bridge link set … state 0`), as is one without a carrier.
    pub port_disabled: bool,
    /// Whether it is a bridge that passes multicast on only to ports where it heard that somebody listens (`mcast_snooping`).
    pub snoops: bool,
}

/// The settings of a bridge port that Weft sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgePort {
    pub hairpin: bool,
    pub isolated: bool,
    /// Whether what bridges tell each other is forwarded like other frames, and so passes the rules. Otherwise a bridge
    /// that takes part in the spanning tree protocol takes it in by itself.
    pub forwards_bpdus: bool,
}

/// In the words of `bridge link set`.
impl fmt::Display for BridgePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |is_on| if is_on { "on" } else { "off" };
        let (hairpin, isolated) = (switch(self.hairpin), switch(self.isolated));
        write!(
            f,
            "hairpin {hairpin}, isolated {isolated}, forwarding of BPDUs {}",
            switch(self.forwards_bpdus)
        )
    }
}

/// The bit of 01:80:c2:00:00:00 in a port's `group_fwd_mask`.
const BPDUS: u16 = 1;

/// The number of a link, by if_nametoindex(3): a request by netlink would have the kernel settle the link's carrier first.
///
/// # Errors
/// `ENODEV` without such a link; what else the kernel says.
pub fn index_of(name: &str) -> NlResult<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// What a veth pair is made of.
pub struct NewVeth<'a> {
    pub host_name: &'a str,
    pub host_mac: MacAddr,
    pub bridge: u32,
    pub group: u32,
    pub container_name: &'a str,
    pub container_mac: MacAddr,
    pub container_netns: &'a NetNs,
    /// `None` leaves the kernel's default.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// `ip link show dev NAME`.
    pub fn link(&mut self, name: &str) -> NlResult<Option<Link>> {
        self.look_up(LinkUnspec::new_with_name(name))
    }

    /// `ip link show`, of the link with this index.
    pub fn link_at(&mut self, index: u32) -> NlResult<Option<Link>> {
        self.look_up(LinkUnspec::new_with_index(index))
    }

    fn look_up(&mut self, query: LinkMessageBuilder<LinkUnspec>) -> NlResult<Option<Link>> {
        match self.socket.request(RouteNetlinkMessage::GetLink(without_stats(query)), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|LinkAnswer(link)| link)),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `ip link show master BRIDGE`; every link of the namespace without one.
    pub fn links(&mut self, master: Option<u32>) -> NlResult<Vec<Link>> {
        let mut query = LinkMessageBuilder::<LinkUnspec>::default();
        if let Some(index) = master {
            query = query.controller(index);
        }
        let answers = self.socket.dump(&RouteNetlinkMessage::GetLink(without_stats(query)))?;
        // Kernels before 4.20 ignore the filter.
        let links = answers.into_iter().filter_map(|LinkAnswer(link)| link);
        Ok(links.filter(|link| master.is_none() || link.master == master).collect())
    }

    /// `ip link add NAME address MAC mtu MTU type bridge mcast_snooping 0`: it is down. An address that is set, not
    /// inherited, does not change when ports join. Snooping without a querier saves no packet, and restarts
    /// the timers of all ports whenever one joins.
    pub fn add_bridge(&mut self, name: &str, mac: MacAddr, mtu: Option<u32>) -> NlResult<()> {
        // `LinkBridge::new` would have it up.
        let mut bridge =
            LinkMessageBuilder::<LinkBridge>::new(name).mcast_snooping(false).address(mac.octets().to_vec());
        if let Some(mtu) = mtu {
            bridge = bridge.mtu(mtu);
        }
        self.request(RouteNetlinkMessage::NewLink(bridge.build()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `ip link add HOST master BRIDGE group GROUP type veth peer name CONTAINER netns NETNS`, in one message: moving
    /// the peer afterwards would wait ~17 ms for RCU. The peer cannot be set up in it (ENOTCONN).
    pub fn add_veth(&mut self, veth: &NewVeth<'_>) -> NlResult<()> {
        let mut peer = LinkUnspec::new_with_name(veth.container_name)
            .address(veth.container_mac.octets().to_vec())
            .setns_by_fd(veth.container_netns.as_fd().as_raw_fd());
        let mut host = LinkVeth::new(veth.host_name, veth.container_name)
            .address(veth.host_mac.octets().to_vec())
            .controller(veth.bridge)
            .link_group(veth.group);
        if let Some(mtu) = veth.mtu {
            peer = peer.mtu(mtu);
            host = host.mtu(mtu);
        }
        let peer = one_queue(peer).build();
        let host = one_queue(host).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        self.request(RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `ip link set NAME up alias TEXT addrgenmode none type bridge_slave hairpin … isolated … group_fwd_mask …`: what a
    /// container's bridge port needs beyond its creation, in one message. The port needs no IPv6 address
    /// of its own, and with 1,000 of them on a bridge each one's chatter goes to all others. The kernel makes ports with all
    /// settings off.
    pub fn configure_port(&mut self, name: &str, alias: Option<&str>, port: BridgePort) -> NlResult<()> {
        let mut link = LinkUnspec::new_with_name(name).up();
        if port != BridgePort::default() {
            link = link.set_port_kind(InfoPortKind::Bridge).set_port_data(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(port.hairpin),
                InfoBridgePort::Isolated(port.isolated),
                InfoBridgePort::GroupFwdMask(if port.forwards_bpdus { BPDUS } else { 0 }),
            ]));
        }
        if let Some(alias) = alias {
            link = link.alias(alias);
        }
        let mut link = link.build();
        let without_ipv6 = link.clone();
        link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        match self.request(RouteNetlinkMessage::NewLink(link), 0) {
            // The link has no IPv6: its MTU is too small for that, or the kernel's is switched off.
            Err(error) if error.errno == Errno::EAFNOSUPPORT => {
                self.request(RouteNetlinkMessage::NewLink(without_ipv6), 0)
            }
            other => other,
        }
    }

    /// `ip link set NAME master BRIDGE`; `nomaster` without one.
    pub fn set_master(&mut self, name: &str, bridge: Option<u32>) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).controller(bridge.unwrap_or_default()).build();
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// `ip link set NAME up`.
    pub fn set_up(&mut self, name: &str) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).up().build();
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// `ip link set NAME address MAC`. The kernel takes that for a change also where the link has that address already. With
    /// `arp_notify` and `ndisc_notify` set it announces the link's addresses (`NETDEV_CHANGEADDR` in net/ipv4/devinet.c,
    /// net/ipv6/ndisc.c). A bridge keeps it from then on, whatever ports come and go (`br_stp_change_bridge_id`).
    pub fn set_mac(&mut self, name: &str, mac: MacAddr) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).address(mac.octets().to_vec()).build();
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// `ip link set NAME down`.
    pub fn set_down(&mut self, name: &str) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).down().build();
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// `ip link set NAME promisc on`.
    pub fn set_promiscuous(&mut self, name: &str, on: bool) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).promiscuous(on).build();
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// `ip link set NAME promisc … allmulticast … [txqueuelen LENGTH]`.
    pub fn tune(
        &mut self,
        name: &str,
        (promiscuous, all_multicast): (bool, bool),
        queue_length: Option<u32>,
    ) -> NlResult<()> {
        let mut link = LinkUnspec::new_with_name(name).promiscuous(promiscuous).allmulticast(all_multicast);
        if let Some(length) = queue_length {
            link = link.append_extra_attribute(LinkAttribute::TxQueueLen(length));
        }
        self.request(RouteNetlinkMessage::SetLink(link.build()), 0)
    }

    /// `ip link del NAME`. Waits ~15 ms for RCU although the link is gone from every table after ~0.5 ms:
    /// see `weft::veth::remove` for callers in a hurry. A link that is not there is no error.
    pub fn delete_link(&mut self, name: &str) -> NlResult<()> {
        let link = LinkUnspec::new_with_name(name).build();
        match self.request(RouteNetlinkMessage::DelLink(link), 0) {
            Err(error) if error.not_found() => Ok(()),
            other => other,
        }
    }

    /// `ip link set NAME group N` for each, then `ip link del group N`: RCU is waited for once for all of
    /// them. Links that are not there are no error.
    pub fn delete_links(&mut self, names: &[&str]) -> NlResult<()> {
        for name in names {
            let link = LinkUnspec::new_with_name(name).link_group(REMOVAL_GROUP).build();
            match self.request(RouteNetlinkMessage::SetLink(link), 0) {
                Err(error) if !error.not_found() => return Err(error),
                _ => {}
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let group = LinkMessageBuilder::<LinkUnspec>::default().link_group(REMOVAL_GROUP).build();
        match self.request(RouteNetlinkMessage::DelLink(group), 0) {
            Err(error) if error.not_found() => Ok(()),
            other => other,
        }
    }
}

/// A group that only links in removal are in: a GC that was killed in between leaves links there that the
/// next one deletes as well.
const REMOVAL_GROUP: u32 = 0x5745_4654;

/// More queues than one per end cost memory and time, and help nothing between two namespaces.
fn one_queue<T>(link: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    link.append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
}

/// The kernel's answer to a port too many: `br_add_if` gives EXFULL ("Exchange full") at 1,023.
pub fn is_bridge_full(error: &NetError) -> bool {
    error.errno == Errno::EXFULL
}

fn without_stats(query: LinkMessageBuilder<LinkUnspec>) -> LinkMessage {
    query.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])).build()
}
