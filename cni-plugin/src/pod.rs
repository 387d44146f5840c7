//! The container's side: its network namespace and the interface in it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cni_protocol::{Code, ContainerNetns, Deadline, Error, IfName};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::conf::tuning::Tuning;
use crate::fault::{Fault, failed};
use crate::plan::Ipv6;
use weft_net::netns::NetNs;
use weft_net::sysctl::Sysctl;
use weft_net::{Detection, KernelRoute, Link, NetError, Netlink, NlResult, RT_TABLE_MAIN, Socket};

/// How soon to look again whether something has come about of which no event told: events can be lost.
const RECHECK: Duration = Duration::from_millis(20);

/// How long an address may take to be answered for. Once, on a busy machine, the kernel's route for one did not come in a minute; why is not
/// known.
const PATIENCE: Duration = Duration::from_secs(1);

/// With so many other namespaces a container's settings are looked for in a procfs of the process' own: making one takes as long as
/// looking among so many.
const MANY: u32 = 100;

/// Opens a socket in the host's namespace.
pub fn open_host(deadline: Deadline) -> Result<Netlink, Error> {
    Netlink::open(deadline).map_err(|error| failed(&"open a netlink socket", error.into()))
}

/// A container's network namespace, with a socket in it.
pub struct Pod {
    pub netns: NetNs,
    home: NetNs,
    pub netlink: Netlink,
}

impl Pod {
    /// Opens a socket in the namespace.
    pub fn open(container: &ContainerNetns, deadline: Deadline) -> Result<Self, Error> {
        let (netns, home) = (NetNs::of(container), NetNs::host_of(container));
        let opened = netns.run(&home, || Netlink::open(deadline)).map_err(Fault::from);
        let netlink =
            opened.and_then(|opened| Ok(opened?)).map_err(|fault| failed(&"open CNI_NETNS", fault))?;
        Ok(Self { netns, home, netlink })
    }

    /// Switches IPv6 of an interface as planned. Before the interface is up for the first time, so that
    /// nothing is sent that the network does not have.
    pub fn set_ipv6(&self, host: &mut Netlink, ifname: &IfName, ipv6: Ipv6) -> Result<(), Fault> {
        // The kernel gives a namespace the smallest number that no other has. One that took the place of another among many has a small
        // number, and costs what it did: this is a matter of speed alone.
        let number = host.number_of(&self.netns).unwrap_or_else(|error| {
            log::debug!("the container's number is not told: {error}");
            None
        });
        let are_many = number.is_some_and(|number| number >= MANY);
        let set = || Sysctl::set_ipv6_of(ifname.as_str(), ipv6_settings(ipv6), are_many);
        self.netns.run(&self.home, set)??;
        Ok(())
    }

    /// Has the kernel tell the interface's neighbours its addresses, whenever it comes up or [`Netlink::set_mac`] gives it an address.
    pub fn set_announcing(&self, ifname: &IfName) -> Result<(), Fault> {
        let name = ifname.as_str();
        let settings = [Sysctl::ipv4_of(name, "arp_notify"), Sysctl::ipv6_of(name, "ndisc_notify")];
        self.netns.run(&self.home, || settings.iter().try_for_each(|key| key.set("1")))??;
        Ok(())
    }

    /// The first of the planned settings that is different, with what it is.
    pub fn ipv6_difference(
        &self,
        ifname: &IfName,
        ipv6: Ipv6,
        tuning: &Tuning,
    ) -> Result<Option<String>, Fault> {
        let of_interface =
            |&(key, value): &(&str, &'static str)| (Sysctl::ipv6_of(ifname.as_str(), key), value);
        let mut settings: Vec<_> = ipv6_settings(ipv6).iter().map(of_interface).collect();
        // Whoever asks for another value gets it.
        let asked: Vec<Sysctl> = tuning.sysctls.iter().filter_map(|setting| setting.sysctl(ifname)).collect();
        settings.retain(|(key, _)| !asked.contains(key));
        let found = self.netns.run(&self.home, || {
            for (key, wanted) in &settings {
                if let Some(value) = key.get()?.filter(|value| value != wanted) {
                    return Ok(Some(format!("{key} is {value} instead of {wanted}")));
                }
            }
            Ok::<_, NetError>(None)
        })??;
        Ok(found)
    }

    /// Does something inside the namespace.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> std::io::Result<T> {
        self.netns.run(&self.home, work)
    }

    /// Sees to it that `lo` is up; whether it was down.
    pub fn ensure_loopback(&mut self) -> NlResult<bool> {
        if self.netlink.link("lo")?.is_some_and(|lo| lo.up) {
            return Ok(false);
        }
        self.netlink.set_up("lo").map(|()| true)
    }

    /// The default routes by some of its interfaces, those that are up.
    pub fn default_routes(&mut self, links: &[Link]) -> NlResult<Vec<KernelRoute>> {
        let mut defaults = Vec::new();
        for link in links.iter().filter(|link| link.up) {
            let routes = self.netlink.routes(link.index)?.into_iter();
            defaults.extend(routes.filter(|route| route.dst.prefix() == 0 && route.table == RT_TABLE_MAIN));
        }
        Ok(defaults)
    }

    /// Waits until no address of the interface is tentative any more.
    ///
    /// # Errors
    /// [`Code::Conflict`] when somebody on the link has one of the addresses.
    pub fn wait_for_detection(&mut self, index: u32) -> Result<(), Fault> {
        /// `RTNLGRP_IPV6_IFADDR` of linux/rtnetlink.h.
        const RTNLGRP_IPV6_IFADDR: u32 = 9;
        self.wait(RTNLGRP_IPV6_IFADDR, |netlink| {
            let states = netlink.detection(index)?;
            match states.iter().find(|(_, state)| *state == Detection::Failed) {
                None => Ok(states.iter().all(|(_, state)| *state == Detection::Passed)),
                Some((address, _)) => Err(Error::new(
                    Code::Conflict,
                    format!(
                        "{address} is in use by another host on the link: give it back or choose another"
                    ),
                )
                .into()),
            }
        })
    }

    /// Waits until the container answers for its addresses. With one of IPv6 the kernel leaves it to a work queue to join the group
    /// in which neighbours ask for it, and to make its route after that (`addrconf_dad_begin` of net/ipv6/addrconf.c). Usually that
    /// is done before anybody asks, but a question that comes first is lost, and repeated after a second.
    pub fn wait_for_addresses(&mut self, index: u32, addresses: &[IpAddr]) -> Result<(), Fault> {
        /// `RTNLGRP_IPV6_ROUTE` of linux/rtnetlink.h.
        const RTNLGRP_IPV6_ROUTE: u32 = 11;
        let mut missing = addresses.iter().filter(|address| address.is_ipv6()).peekable();
        let mut given = Instant::now();
        self.wait(RTNLGRP_IPV6_ROUTE, |netlink| {
            while let Some(address) = missing.peek() {
                if !netlink.takes_in(**address)? {
                    if given.elapsed() > PATIENCE {
                        give_again(netlink, index, **address)?;
                        given = Instant::now();
                    }
                    return Ok(false);
                }
                missing.next();
            }
            Ok(true)
        })
    }

    /// Waits until something is so that the kernel tells of in events of a group.
    fn wait(
        &mut self,
        group: u32,
        mut is_so: impl FnMut(&mut Netlink) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        if is_so(&mut self.netlink)? {
            return Ok(());
        }
        let deadline = self.netlink.deadline();
        let mut events = self.inside(|| {
            let mut events = Socket::open(NETLINK_ROUTE, deadline)?;
            events.subscribe(&[group])?;
            Ok::<_, NetError>(events)
        })??;
        while !is_so(&mut self.netlink)? {
            events.wait_for_events(RECHECK)?;
        }
        Ok(())
    }

    /// The container's interface.
    pub fn interface(&mut self, ifname: &IfName) -> NlResult<Option<Link>> {
        self.netlink.link(ifname.as_str())
    }
}

/// Takes an address from an interface and gives it back, so that the kernel tries once more what it could not do for it.
fn give_again(netlink: &mut Netlink, index: u32, address: IpAddr) -> NlResult<()> {
    log::warn!("the container does not answer for {address}: it is given the address once more");
    for whole in netlink.whole_addresses(index)?.iter().filter(|whole| whole.address.ip() == address) {
        netlink.take_away(whole)?;
        netlink.put_back(whole)?;
    }
    Ok(())
}

/// Router advertisements are accepted on no interface that has addresses: the routes are the network's to give (CVE-2020-10749).
fn ipv6_settings(ipv6: Ipv6) -> &'static [(&'static str, &'static str)] {
    match ipv6 {
        Ipv6::Untouched => &[],
        Ipv6::Off => &[("disable_ipv6", "1"), ("accept_ra", "0")],
        // A runtime may have switched IPv6 off in all namespaces.
        Ipv6::On => &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")],
        Ipv6::OnAfterDetection => &[("disable_ipv6", "0"), ("accept_ra", "0")],
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn an_address_without_its_route_is_given_again() {
        const LO: u32 = 1;
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let container = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
        let path = PathBuf::from(format!("/proc/self/fd/{}", container.as_raw_fd()));
        let deadline = Deadline::after(Duration::from_secs(20));
        let mut pod = Pod::open(&ContainerNetns::open(&path).unwrap(), deadline).unwrap();
        pod.ensure_loopback().unwrap();
        let address: IpAddr = "fd00:1::1".parse().unwrap();
        pod.netlink.add_address(LO, "fd00:1::1/64".parse().unwrap(), true).unwrap();
        pod.wait_for_addresses(LO, &[address]).unwrap();
        let lose = || {
            let line = "-6 route del local fd00:1::1 table local";
            assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success());
        };
        pod.inside(lose).unwrap();
        assert!(!pod.netlink.takes_in(address).unwrap());
        pod.wait_for_addresses(LO, &[address]).unwrap();
        assert!(pod.netlink.takes_in(address).unwrap());
    }
}
