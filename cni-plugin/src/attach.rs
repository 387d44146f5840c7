//! ADD: the story, top to bottom.

mod links;
mod result;
mod routing;

use std::net::IpAddr;
use std::rc::Rc;

use cni_protocol::{AddArgs, AddResult, Error, IpConfig, MacAddr, Outcome};

use crate::bridge::membership::Membership;
use crate::conf::names::Names;
use crate::conf::{Asked, DHCP, Network, chooses_addresses, requested_mac};
use crate::fault::{Change, Fault, failed};
use crate::guard::Port;
use crate::holdings::Holdings;
use crate::holdings::hold::hold;
use crate::ipam::Reserving;
use crate::key::{AttachmentKey, VethEnd, group};
use crate::plan::{Ipv6, Plan};
use crate::pod::{Pod, open_host};
use crate::ruleset::Rules;
use crate::shaping::{self, HostEnd};
use crate::step::{Journal, Shared, Step};
use crate::{begin, bridge, overlay, tuning};
use links::{container_end, explain, present, warn_of_mtu};
use weft_net::{BridgePort, Entry, Link, NetError, Netlink, NewVeth, index_of};

/// The MTU of a veth pair that is given none (linux/if_ether.h, and `ether_setup` of net/ethernet/eth.c).
const ETH_DATA_LEN: u32 = 1500;

/// Attaches the container. What was done goes with the result: a caller that cannot deliver that takes all back.
pub fn add(args: AddArgs) -> Result<Outcome, Error> {
    let mut attachment = Attachment::begin(Rc::new(args))?;
    match attachment.attach() {
        Ok(result) => {
            Ok(Outcome::Attached { result, rollback: Box::new(attachment.journal.into_rollback()) })
        }
        Err(error) => {
            // A plugin still at work would end after its reservation was taken back.
            drop(attachment.reserving);
            Err(attachment.journal.fail(error))
        }
    }
}

/// One attachment in the making.
struct Attachment {
    args: Rc<AddArgs>,
    network: Network,
    asked: Asked,
    key: AttachmentKey,
    mac: MacAddr,
    /// Whether other containers are to be told whose the addresses are.
    announces: bool,
    host: Netlink,
    pod: Pod,
    /// The IPAM plugin at work. Before the journal, also where both are dropped.
    reserving: Option<Reserving>,
    /// Opened while the IPAM plugin is at work.
    rules: Option<Rules>,
    journal: Journal,
}

impl Attachment {
    /// Checks all that was asked for, takes the locks and the record, and starts what is needed. Nothing is touched yet.
    fn begin(args: Rc<AddArgs>) -> Result<Self, Error> {
        let call = &args.call;
        let network = Network::parse(&call.network, &call.conf)?;
        let key = AttachmentKey::new(&call.network, &args.container_id, &args.ifname);
        log::info!("ADD {key}");
        let asked = Asked::parse(&call.conf)?;
        let names = Names::parse(&call.conf, &args.args)?;
        asked.tuning.refuse_unlisted()?;
        asked.refuse_rules_of_others(args.container_id.as_str(), &names)?;
        let mac = requested_mac(&call.conf, &args.args)?;
        let mac = mac.unwrap_or_else(|| key.mac(VethEnd::Container));
        let announces = chooses_addresses(&call.conf, &args.args) && !network.interface_down;
        let mut journal = begin::open_journal(&args, &key, &network.state_dir)?;
        journal.content.names = names;
        let open = || {
            // Its process starts while other things are done, and does nothing before it is fed.
            let plugin = network.ipam.as_ref();
            let reserving =
                plugin.map(|plugin| Reserving::begin(plugin, call, journal.record())).transpose()?;
            Ok((reserving, Pod::open(&args.netns, call.deadline)?, open_host(call.deadline)?))
        };
        let (reserving, pod, host) = open().map_err(|error| journal.fail(error))?;
        Ok(Self { args, network, asked, key, mac, announces, host, pod, reserving, rules: None, journal })
    }

    /// The steps, in their order. What does not depend on the addresses is done while the IPAM plugin reserves them. In a
    /// network that spans hosts they do depend on them, as the lease says how large packets may be.
    fn attach(&mut self) -> Result<AddResult, Error> {
        self.journal.write_record(false)?;
        let asks_by_interface = self.network.ipam.as_deref() == Some(DHCP);
        if !asks_by_interface {
            self.reserve()?;
        }
        let mut given = None;
        if self.network.data_dir.is_some() {
            given = Some(self.addresses()?);
            self.join_hosts()?;
        }
        let bridge = self.ensure_bridge()?;
        self.network.mtu = self.asked.tuning.mtu.or(self.network.mtu);
        let index = self.connect(&bridge)?;
        let detours = self.limit(index)?;
        self.open_port()?;
        let (container, others) = container_end(&mut self.journal, &mut self.pod, &self.key.ifname)?;
        if asks_by_interface {
            self.reserve()?;
        }
        self.look_at_rules()?;
        let given = given.map_or_else(|| self.addresses(), Ok)?;
        let plan = self.plan(&given, &others)?;
        self.ensure_routing(&bridge, &plan)?;
        let port = Port { index, mac: self.mac, quiet: !bridge.snoops };
        let holdings = Holdings::new(&self.network, &self.asked, &plan, port)?;
        // Nobody is to see an address that is not this container's for sure.
        self.end_reservation()?;
        let rules = self.rules.take();
        let _hold =
            hold(&mut self.journal, rules, &self.args.call, &self.key, &self.network.state_dir, holdings)?;
        self.forget_neighbours(&bridge, &plan)?;
        self.configure(&plan, container.index)?;
        let veth = self.host_end()?;
        self.journal.content.membership = Some(Membership::new(&self.network, &bridge, &plan, self.port()));
        self.settle(&bridge)?;
        self.await_addresses(&plan, container.index)?;
        if self.announces {
            self.announce()?;
        }
        let result = self.result(&plan, given, [bridge, veth, container], detours);
        self.journal.write_record(true)?;
        Ok(result)
    }

    /// Sets the IPAM plugin to work. Journaled before: whatever becomes of it, it may have reserved.
    fn reserve(&mut self) -> Result<(), Error> {
        let Some(reserving) = &mut self.reserving else { return Ok(()) };
        self.journal.note(Step::Reserve(reserving.plugin().to_owned()));
        reserving.feed(&self.args.call)
    }

    /// The addresses that the plugin chose. One that was never executed reserved nothing.
    fn addresses(&mut self) -> Result<AddResult, Error> {
        let Some(reserving) = &mut self.reserving else { return Ok(AddResult::default()) };
        reserving.addresses(&self.args.call).inspect_err(|_| {
            if !reserving.was_begun() {
                self.journal.strike(&Step::Reserve(reserving.plugin().to_owned()));
            }
        })
    }

    /// By now the plugin has ended too, unless it does more than it was asked for.
    fn end_reservation(&mut self) -> Result<(), Error> {
        self.reserving.take().map_or(Ok(()), |mut reserving| reserving.end(&self.args.call))
    }

    /// The way to the network's other hosts, which all its attachments share.
    fn join_hosts(&mut self) -> Result<(), Error> {
        let Some(data_dir) = &self.network.data_dir else { return Ok(()) };
        let dirs = (self.network.state_dir.as_path(), data_dir.as_path());
        let joined = overlay::join(&mut self.host, dirs, &self.network.name, self.args.call.deadline)?;
        self.network.all_hosts.clone_from(&joined.overlay.networks);
        warn_of_mtu(&self.network, &self.asked, joined.mtu);
        self.network.mtu = self.network.mtu.or(Some(joined.mtu));
        if joined.made {
            self.journal.note(Step::Shared(Shared::Overlay(joined.overlay)));
        }
        Ok(())
    }

    /// The bridge, which all attachments to it share.
    fn ensure_bridge(&mut self) -> Result<Link, Error> {
        let (host, network) = (&mut self.host, &self.network);
        let name = &network.bridge;
        let found =
            self.journal.run(Step::Shared(Shared::Bridge(name.clone())), || bridge::create(host, network))?;
        let bridge = self
            .journal
            .run(Step::Shared(Shared::BridgeUp(name.clone())), || bridge::adopt(host, network, found))?;
        if network.promiscuous {
            self.journal.run(Step::Shared(Shared::Promiscuous(name.clone())), || {
                bridge::ensure_promiscuous(host, &bridge).map(|change| ((), change))
            })?;
        }
        Ok(bridge)
    }

    /// An address that somebody else had a moment ago must not be looked for at the former MAC address for half a minute.
    fn forget_neighbours(&mut self, bridge: &Link, plan: &Plan) -> Result<(), Error> {
        let (index, mac) = (bridge.index, self.mac);
        let known = plan.ips.iter().map(|ip| Entry::Neighbour { index, address: ip.address.ip(), mac });
        let known: Vec<Entry> = known.collect();
        self.journal.within(Step::Neighbours(self.network.bridge.clone()), || {
            self.host.remove_entries(&known)?.into_iter().try_for_each(|removed| removed.map(drop))
        })
    }

    /// The veth pair, its host end a port of the bridge, and down. Returns the host end's number.
    fn connect(&mut self, bridge: &Link) -> Result<u32, Error> {
        let name = self.key.host_veth();
        let (host, pod, key, network) = (&mut self.host, &mut self.pod, &self.key, &self.network);
        self.journal.run(Step::Veth(name.clone()), || {
            let veth = NewVeth {
                host_name: &name,
                host_mac: key.mac(VethEnd::Host),
                bridge: bridge.index,
                group: group(&key.network),
                container_name: key.ifname.as_str(),
                container_mac: self.mac,
                container_netns: &pod.netns,
                mtu: network.mtu,
            };
            let made = host.add_veth(&veth).map_err(|error| explain(&error, network, key, pod));
            made.map(|()| ((), Change::Made))
        })?;
        self.journal.within(Step::ReadBack(name.clone()), || index_of(&name))
    }

    /// The port as it ought to be, and up.
    fn open_port(&mut self) -> Result<(), Error> {
        let name = self.key.host_veth();
        let port = self.port();
        self.journal.within(Step::Port(name.clone()), || {
            self.host.configure_port(&name, self.key.alias().as_deref(), port)
        })
    }

    fn port(&self) -> BridgePort {
        self.network.port(!self.asked.mappings.is_empty())
    }

    /// The limits on the container's traffic. Returns the links that some of it takes a detour through.
    fn limit(&mut self, index: u32) -> Result<Vec<Link>, Error> {
        let limits = self.network.shaping.or(&self.asked.shaping);
        if limits.is_none() {
            return Ok(Vec::new());
        }
        let name = &self.key.host_veth();
        let veth = HostEnd { name, index, mtu: self.network.mtu.unwrap_or(ETH_DATA_LEN) };
        shaping::apply(&mut self.journal, &mut self.host, &self.key, &veth, &limits)
    }

    /// What the addresses come to.
    fn plan(&mut self, given: &AddResult, others: &[Link]) -> Result<Plan, Error> {
        let metric = self.network.metrics.get(self.key.ifname.as_str()).copied();
        let plan = Plan::new(&self.network, &given.ips, &given.routes)?.with_metric(metric);
        let defaults = self.pod.default_routes(others);
        Ok(plan.behind(&defaults.map_err(|error| failed(&"look at the container's routes", error.into()))?))
    }

    /// Looks whether the rules that will be needed are there.
    fn look_at_rules(&mut self) -> Result<(), Error> {
        let expected = Holdings::expected(&self.network, &self.asked);
        if expected.is_empty() {
            return Ok(());
        }
        let look = || {
            let mut rules = Rules::open(self.args.call.deadline)?;
            rules.look_at(expected).map(|()| rules)
        };
        self.rules = Some(look().map_err(|error: NetError| failed(&Step::Rules, error.into()))?);
        Ok(())
    }

    /// The container's side.
    fn configure(&mut self, plan: &Plan, index: u32) -> Result<(), Error> {
        let ifname = &self.key.ifname;
        let (journal, pod, host) = (&mut self.journal, &mut self.pod, &mut self.host);
        if plan.ipv6 != Ipv6::Untouched {
            journal.within(Step::Settings(ifname.clone()), || pod.set_ipv6(host, ifname, plan.ipv6))?;
        }
        if self.announces {
            journal.within(Step::Neighbours(ifname.clone()), || pod.set_announcing(ifname))?;
        }
        if plan.by_gateway {
            tuning::refuse_redirects(journal, pod, ifname)?;
        }
        tuning::apply(journal, pod, ifname, &self.asked.tuning)?;
        if !self.network.interface_down {
            journal.within(Step::Up(ifname.clone()), || pod.netlink.set_up(ifname.as_str()))?;
        }
        for IpConfig { address, .. } in &plan.ips {
            let nodad = plan.ipv6 != Ipv6::OnAfterDetection;
            // Once the interface is up: for an IPv6 address that is there before, the kernel makes the subnet's route as it comes up.
            // It may not wait for memory then, and tells nobody if it gets none (addrconf_permanent_addr).
            journal.within(Step::Address(*address), || match plan.by_gateway {
                true => pod.netlink.add_address_without_route(index, *address, nodad),
                false => pod.netlink.add_address(index, *address, nodad),
            })?;
        }
        if plan.ipv6 == Ipv6::OnAfterDetection {
            journal.within(Step::Detection(ifname.clone()), || pod.wait_for_detection(index))?;
        }
        for route in plan.kernel_routes() {
            journal.within(Step::Route(route.dst, route.gw), || pod.netlink.add_route(index, &route))?;
        }
        Ok(())
    }

    /// The pair's host end. Asking for it makes the kernel settle its carrier, which is work for the whole bridge: so it is asked
    /// when the container's end is up, and the bridge passes the port's frames then. By itself the kernel leaves that to a work
    /// queue; a packet in between would be lost, and the first question for an address is repeated after a second.
    fn host_end(&mut self) -> Result<Link, Error> {
        let name = self.key.host_veth();
        self.journal
            .within(Step::ReadBack(name.clone()), || Ok::<_, Fault>(present(self.host.link(&name)?, &name)?))
    }

    /// With its first port the bridge itself gets a carrier, of which the same is true: until it is settled the host's packets
    /// are lost.
    fn settle(&mut self, bridge: &Link) -> Result<(), Error> {
        if bridge.running || self.network.interface_down {
            return Ok(());
        }
        self.journal.within(Step::ReadBack(bridge.name.clone()), || self.host.link(&bridge.name).map(drop))
    }

    /// Whoever looks for the container from now on finds it at once.
    fn await_addresses(&mut self, plan: &Plan, index: u32) -> Result<(), Error> {
        if self.network.interface_down {
            return Ok(());
        }
        let (pod, ifname) = (&mut self.pod, &self.key.ifname);
        let addresses: Vec<IpAddr> = plan.ips.iter().map(|ip| ip.address.ip()).collect();
        self.journal.within(Step::Answering(ifname.clone()), || pod.wait_for_addresses(index, &addresses))
    }

    /// Other containers may still look for an address at its former holder's MAC address. What the kernel sent when the
    /// interface came up is lost where the port was not open yet.
    fn announce(&mut self) -> Result<(), Error> {
        let (pod, mac, ifname) = (&mut self.pod, self.mac, &self.key.ifname);
        self.journal.within(Step::Neighbours(ifname.clone()), || pod.netlink.set_mac(ifname.as_str(), mac))
    }
}
