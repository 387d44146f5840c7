//! A network's VXLAN device.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_net::{Link, NetError, Netlink, NlResult, Vxlan};

use super::sync::{Changes, Underlay};
use super::{Device, OWNER};
use crate::plan::IPV6_MTU_MIN;

impl Device {
    fn wanted(&self, underlay: &Underlay) -> Vxlan {
        Vxlan {
            vni: self.vni,
            port: self.port,
            learning: self.learning,
            underlay: underlay.link.index,
            local: underlay.address.ip(),
        }
    }

    /// Its own MTU on this underlay.
    ///
    /// # Errors
    /// `EINVAL` with what to do where that is too little for IPv6, which the kernel would not have on the device.
    pub(super) fn mtu_on(&self, underlay: &Link) -> NlResult<u32> {
        let (mtu, v4) = (self.mtu(underlay.mtu), self.address.is_ipv4());
        if v4 || mtu >= IPV6_MTU_MIN {
            return Ok(mtu);
        }
        // The network's own MTU is never that small.
        let (name, headers) = (&underlay.name, flannel_records::Vxlan::encapsulation(v4));
        let explanation = format!(
            "{} would have MTU {mtu} ({name} {} − {headers}), and IPv6 needs {IPV6_MTU_MIN}: raise {name} to {} at least",
            self.name,
            underlay.mtu,
            IPV6_MTU_MIN + headers
        );
        Err(NetError { explanation: Some(explanation), ..Errno::EINVAL.into() })
    }

    /// Makes it or sets it right, and returns its index.
    pub(super) fn ensure(
        &self,
        netlink: &mut Netlink,
        underlay: &Underlay,
        mtu: u32,
        changes: &mut Changes,
    ) -> NlResult<u32> {
        let wanted = self.wanted(underlay);
        let found = netlink.link(&self.name)?;
        found.as_ref().map_or(Ok(()), |link| self.claim(link))?;
        let link = match found {
            Some(link) if netlink.vxlan(&self.name)? == Some(wanted) => link,
            found => {
                if found.is_some() {
                    netlink.delete_link(&self.name)?;
                }
                let made = netlink.add_vxlan(&self.name, self.mac, mtu, wanted);
                match (made, netlink.link(&self.name)?) {
                    (Ok(()), link) => {
                        changes.links += 1;
                        link.ok_or(Errno::ENODEV)?
                    }
                    // Somebody was faster: this network's agent, or another network.
                    (Err(error), Some(link)) if error.exists() => self.claim(&link).map(|()| link)?,
                    (Err(error), _) => return Err(self.explain(netlink, error)),
                }
            }
        };
        let is_marked = link.alias.as_ref() == Some(&self.owner);
        let is_link_right = link.up && link.master.is_none();
        if link.mac != Some(self.mac) || link.mtu != mtu || !is_link_right || !is_marked {
            netlink.set_vxlan(&self.name, self.mac, mtu, &self.owner)?;
            changes.macs += usize::from(link.mac != Some(self.mac));
            changes.mtus += usize::from(link.mtu != mtu);
            changes.links += usize::from(!is_link_right);
        }
        let (missing, foreign) = self.addresses(netlink, link.index)?;
        for other in foreign {
            netlink.delete_address(link.index, other)?;
            changes.addresses += 1;
        }
        if missing {
            netlink.add_address(link.index, self.address, true)?;
            changes.addresses += 1;
        }
        Ok(link.index)
    }

    /// Deletes it, unless it is another network's.
    pub(super) fn remove(&self, netlink: &mut Netlink) -> NlResult<()> {
        match netlink.link(&self.name)? {
            Some(link) if self.claim(&link).is_ok() => netlink.delete_link(&self.name),
            _ => Ok(()),
        }
    }

    /// Two networks with one VNI would take the device from each other for ever. One without a mark is this network's when it has the
    /// network's MAC address, with which it is made: the mark comes a message later, and an earlier version of Weft made none.
    fn claim(&self, link: &Link) -> NlResult<()> {
        let other = match &link.alias {
            Some(owner) if *owner == self.owner => return Ok(()),
            Some(owner) => owner.strip_prefix(OWNER).map(|other| format!("the network at {other} in etcd")),
            None => None,
        };
        if other.is_none() && link.mac == Some(self.mac) {
            return Ok(());
        }
        let (name, vni) = (&self.name, self.vni);
        let own = self.owner.strip_prefix(OWNER).unwrap_or_default();
        let explanation = format!(
            "{name} is the device of {}, and the one at {own} has VNI {vni}, too: give one \
             of them another VNI, with \"VNI\" in \"Backend\": etcdctl put {own}/config …; if the other one is gone, \
             `ip link delete {name}`",
            other.as_deref().unwrap_or("another network")
        );
        Err(NetError { explanation: Some(explanation), ..Errno::EEXIST.into() })
    }

    /// Whether the device lacks its address, and the addresses that are not its own.
    fn addresses(&self, netlink: &mut Netlink, index: u32) -> NlResult<(bool, Vec<IpNetwork>)> {
        let mut found = netlink.addresses(index)?;
        let missing = !found.contains(&self.address);
        let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        found.retain(|address| *address != self.address && !link_local(address.ip()));
        Ok((missing, found))
    }

    /// Who has the VNI: mostly flanneld's device, on a host that is about to change over.
    fn explain(&self, netlink: &mut Netlink, error: NetError) -> NetError {
        if !error.exists() {
            return error;
        }
        let links = netlink.links(None).unwrap_or_default();
        let same = |link: &&Link| matches!(netlink.vxlan(&link.name), Ok(Some(other)) if other.vni == self.vni && other.port == self.port);
        let other = links.iter().find(same).map_or("another device", |link| &link.name);
        let remedy =
            "end what made it (flanneld?), then `ip link delete` it, or give the network another VNI";
        let explanation = format!("VNI {} is that of {other}: {remedy}", self.vni);
        NetError { explanation: Some(explanation), ..error }
    }

    /// What is not as it ought to be, in sentences.
    pub(super) fn differences(
        &self,
        netlink: &mut Netlink,
        underlay: &Underlay,
        link: &Link,
    ) -> NlResult<Vec<String>> {
        if let Err(taken) = self.claim(link) {
            return Ok(taken.explanation.into_iter().collect());
        }
        let (name, mtu) = (&self.name, self.mtu(underlay.link.mtu));
        let mut found = Vec::new();
        let mut require = |holds: bool, what: String| {
            if !holds {
                found.push(what);
            }
        };
        let wanted = self.wanted(underlay);
        let there = netlink.vxlan(name)?;
        require(there == Some(wanted), format!("device {name} is {there:?} instead of {wanted:?}"));
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        require(link.mac == Some(self.mac), format!("device {name} has MAC {mac} instead of {}", self.mac));
        require(link.mtu == mtu, format!("device {name} has MTU {} instead of {mtu}", link.mtu));
        require(link.up, format!("device {name} is down"));
        // That link would take in all that comes from other hosts.
        require(link.master.is_none(), format!("device {name} is a port of another link"));
        let (missing, foreign) = self.addresses(netlink, link.index)?;
        require(!missing, format!("device {name} has not the address {}", self.address));
        require(foreign.is_empty(), format!("device {name} has addresses that are not Weft's: {foreign:?}"));
        Ok(found)
    }
}
