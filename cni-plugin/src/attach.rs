//! ADD: the story, top to bottom.

use std::rc::Rc;

use cni_protocol::{AddArgs, AddResult, Code, Error, Interface, IpConfig, MacAddr, Outcome};
use weft_state::{Lock, boot_dir};

use crate::bridge;
use crate::conf::{Network, requested_mac};
use crate::detach;
use crate::ipam;
use crate::key::{AttachmentKey, VethEnd};
use crate::masquerade::{self, Ensured};
use crate::net::nft::Nft;
use crate::net::sysctl::Sysctl;
use crate::net::{BridgePort, Link, NetError, Netlink, NewVeth, is_bridge_full};
use crate::plan::{Ipv6, Plan};
use crate::pod::Pod;
use crate::record::{Content, Found, Record};
use crate::step::{Change, Fault, Journal, Step, failed};

/// Attaches the container. What was done goes with the result: who cannot deliver that takes all back.
pub fn add(args: AddArgs) -> Result<Outcome, Error> {
    let mut attachment = Attachment::begin(Rc::new(args))?;
    match attachment.attach() {
        Ok(result) => Ok(Outcome::Attached { result, rollback: Box::new(attachment.journal.into_rollback()) }),
        Err(error) => Err(attachment.journal.roll_back().into_iter().fold(error, Error::detail)),
    }
}

/// One attachment in the making.
struct Attachment {
    args: Rc<AddArgs>,
    network: Network,
    key: AttachmentKey,
    mac: MacAddr,
    host: Netlink,
    pod: Pod,
    journal: Journal,
}

impl Attachment {
    /// Checks all that was asked for, and takes the locks and the record. Nothing else is touched yet.
    fn begin(args: Rc<AddArgs>) -> Result<Self, Error> {
        let call = &args.call;
        let network = Network::parse(&call.network, &call.conf)?;
        let key = AttachmentKey {
            network: call.network.clone(),
            container_id: args.container_id.clone(),
            ifname: args.ifname.clone(),
        };
        let asked = requested_mac(&call.conf, &args.args)?;
        let mac = asked.unwrap_or_else(|| key.mac(VethEnd::Container));
        let pod = Pod::open(&args.netns, call.deadline).map_err(|fault| failed(&"open CNI_NETNS", fault))?;
        let host = Netlink::open(call.deadline).map_err(|e| failed(&"open a netlink socket", e.into()))?;
        let state_dir = &network.traces.state_dir;
        boot_dir(state_dir, &key.network)?;
        let host_lock = Lock::shared(&state_dir.join("lock"), call.deadline)?;
        let network_lock = Lock::shared(&network_lock_path(state_dir, &key), call.deadline)?;
        let record = Record::lock(state_dir, &key, call.deadline)?;
        refuse_or_clean(&record, &args, &key, &network)?;
        let journal = Journal::new(args.clone(), key.clone(), (host_lock, network_lock), record);
        Ok(Self { args, network, key, mac, host, pod, journal })
    }

    /// The steps, in their order: first what the host shares, then the pair, then the container's side.
    fn attach(&mut self) -> Result<AddResult, Error> {
        self.journal.write_record(false)?;
        let given = self.reserve()?;
        let plan = Plan::new(&self.network, &given.ips, &given.routes)?;
        let bridge = self.ensure_shared(&plan)?;
        self.connect(&bridge)?;
        self.configure(&plan)?;
        let result = self.read_back(&plan, given)?;
        self.journal.write_record(true)?;
        Ok(result)
    }

    /// Addresses from the IPAM plugin. Journaled before it runs: killed, it may have reserved.
    fn reserve(&mut self) -> Result<AddResult, Error> {
        let Some(plugin) = &self.network.traces.ipam else {
            return Ok(AddResult::default());
        };
        self.journal.note(Step::Reserve(plugin.clone()));
        let given = ipam::reserve(plugin, &self.args.call, self.journal.record())?;
        if given.ips.is_empty() {
            return Err(Error::new(
                Code::InvalidConfig,
                format!("{plugin} returned no address: correct its configuration, or leave ipam out"),
            ));
        }
        Ok(given)
    }

    /// What all attachments of the host share: the bridge, its gateway addresses, forwarding, masquerade.
    fn ensure_shared(&mut self, plan: &Plan) -> Result<Link, Error> {
        let (host, network) = (&mut self.host, &self.network);
        let name = &network.bridge;
        let bridge = self.journal.run(Step::Bridge(name.clone()), || bridge::ensure(host, network))?;
        if network.promiscuous {
            self.journal.run(Step::Promiscuous(name.clone()), || {
                bridge::ensure_promiscuous(host, &bridge).map(|change| ((), change))
            })?;
        }
        for gateway in &plan.gateways {
            self.journal.run(Step::Gateway(name.clone(), *gateway), || {
                bridge::ensure_gateway(host, network, &bridge, *gateway).map(|change| ((), change))
            })?;
        }
        for family in &plan.forwarding {
            self.journal.run(Step::Forwarding(*family), || {
                Sysctl::forwarding(*family).ensure("1").map(|changed| ((), Change::from(changed)))
            })?;
        }
        if !plan.masquerade.is_empty() {
            let ensured = self.journal.run(Step::Masquerade(Ensured::Nothing), || {
                let mut nft = Nft::open(self.args.call.deadline)?;
                let ensured = masquerade::ensure(&mut nft, &network.name, &plan.masquerade)?;
                Ok::<_, NetError>((ensured, Change::Found))
            })?;
            self.journal.note(Step::Masquerade(ensured));
        }
        Ok(bridge)
    }

    /// The veth pair, its host end a port of the bridge.
    fn connect(&mut self, bridge: &Link) -> Result<(), Error> {
        let name = self.key.host_veth();
        let veth = NewVeth {
            host_name: &name,
            host_mac: self.key.mac(VethEnd::Host),
            bridge: bridge.index,
            container_name: self.key.ifname.as_str(),
            container_mac: self.mac,
            container_netns: &self.pod.netns,
            mtu: self.network.mtu,
        };
        let made = self.host.add_veth(&veth);
        let made = made.map_err(|error| explain(&error, &self.network, &self.key, &mut self.pod));
        self.journal.run(Step::Veth(name.clone()), || made.map(|()| ((), Change::Made)))?;
        let port = BridgePort { hairpin: self.network.hairpin, isolated: self.network.isolated };
        self.journal.within(Step::Port(name.clone()), || {
            self.host.configure_port(&name, self.key.alias().as_deref(), port)
        })
    }

    /// The container's side, down until nothing is missing but the routes.
    fn configure(&mut self, plan: &Plan) -> Result<(), Error> {
        let ifname = &self.key.ifname;
        let (journal, pod) = (&mut self.journal, &mut self.pod);
        if plan.ipv6 != Ipv6::Untouched {
            journal.within(Step::Settings(ifname.clone()), || pod.set_ipv6(ifname, plan.ipv6))?;
        }
        journal.run(Step::Loopback, || pod.ensure_loopback().map(|changed| ((), Change::from(changed))))?;
        if plan.ips.is_empty() && self.network.interface_down {
            return Ok(());
        }
        let index = journal.run(Step::Up(ifname.clone()), || {
            pod.index_of(ifname).map(|index| (index, Change::Found))
        })?;
        for IpConfig { address, .. } in &plan.ips {
            let nodad = plan.ipv6 != Ipv6::OnAfterDetection;
            journal.within(Step::Address(*address), || pod.netlink.add_address(index, *address, nodad))?;
        }
        journal.within(Step::Up(ifname.clone()), || pod.netlink.set_up(ifname.as_str()))?;
        if plan.ipv6 == Ipv6::OnAfterDetection {
            journal.within(Step::Detection(ifname.clone()), || pod.wait_for_detection(index))?;
        }
        for route in plan.kernel_routes() {
            journal.within(Step::Route(route.dst, route.gw), || pod.netlink.add_route(index, &route))?;
        }
        Ok(())
    }

    /// The result, as the kernel has it now.
    fn read_back(&mut self, plan: &Plan, given: AddResult) -> Result<AddResult, Error> {
        let (host, pod, key) = (&mut self.host, &mut self.pod, &self.key);
        let (network, sandbox) = (&self.network, self.args.netns.display().to_string());
        let interfaces = self.journal.run(Step::ReadBack, || {
            let bridge = present(host.link(network.bridge.as_str())?, network.bridge.as_str())?;
            let veth = present(host.link(&key.host_veth())?, &key.host_veth())?;
            let inside = present(pod.interface(&key.ifname)?, key.ifname.as_str())?;
            let addresses = pod.netlink.addresses(inside.index)?;
            if let Some(missing) = plan.ips.iter().find(|ip| !addresses.contains(&ip.address)) {
                return Err(gone(&format!("address {}", missing.address)));
            }
            let interfaces =
                vec![describe(bridge, None), describe(veth, None), describe(inside, Some(sandbox))];
            Ok::<_, Fault>((interfaces, Change::Found))
        })?;
        let container = interfaces.len() - 1;
        let ips = plan.ips.iter().map(|ip| IpConfig { interface: Some(container), ..ip.clone() }).collect();
        let dns = network.dns.clone().unwrap_or(given.dns);
        Ok(AddResult { interfaces, ips, routes: plan.routes.clone(), dns })
    }
}

/// The lock that ADDs of a network share, and its GC has alone.
pub fn network_lock_path(state_dir: &std::path::Path, key: &AttachmentKey) -> std::path::PathBuf {
    state_dir.join(key.network.as_str()).join("lock")
}

/// A record that is there already: of an attachment that is held, or of an ADD that was killed.
fn refuse_or_clean(record: &Record, args: &AddArgs, key: &AttachmentKey, network: &Network) -> Result<(), Error> {
    let held = |why: &str| {
        Err(Error::new(Code::Conflict, format!("{key} {why}: call DEL for it before another ADD")))
    };
    match record.read()? {
        Found::Nothing => Ok(()),
        Found::Attached(Content { netns, .. }) => held(&format!("is attached already, in {netns}")),
        Found::Damaged => held(&format!("has a damaged record, {}", record.path().display())),
        Found::Begun(_) => {
            log::warn!("{key}: an ADD was killed; removing what it left");
            detach::remove(&args.call, key, &network.traces)
        }
    }
}

/// Why the pair could not be made.
fn explain(error: &NetError, network: &Network, key: &AttachmentKey, pod: &mut Pod) -> Fault {
    if is_bridge_full(error) {
        return bridge::full(&network.bridge).into();
    }
    if !error.exists() {
        return error.clone().into();
    }
    let conflict = if matches!(pod.interface(&key.ifname), Ok(Some(_))) {
        format!(
            "the container has an interface {} already: choose another CNI_IFNAME, or DEL whatever made it",
            key.ifname
        )
    } else {
        format!("the link exists, so {key} is attached although its record is lost: call DEL for it first")
    };
    Error::new(Code::Conflict, conflict).into()
}

fn present(link: Option<Link>, name: &str) -> Result<Link, Fault> {
    link.ok_or_else(|| gone(&format!("link {name}")))
}

fn gone(what: &str) -> Fault {
    Error::new(Code::Conflict, format!("{what} is gone again: somebody else removes what Weft makes")).into()
}

fn describe(link: Link, sandbox: Option<String>) -> Interface {
    Interface {
        name: link.name,
        mac: link.mac.map(|mac| mac.to_string()),
        mtu: Some(link.mtu),
        sandbox,
        ..Interface::default()
    }
}
