//! GC: removes what belongs to no valid attachment of the network, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_protocol::{Code, Deadline, Error, GcArgs, NetworkName, Outcome, ValidAttachment};
use log::{info, warn};
use serde_json::{Map, Value};
use weft_state::{Lock, boot_dir, started};

use crate::conf::{self, Traces};
use crate::fault::{Fault, failed};
use crate::holdings::erasure;
use crate::hostport;
use crate::ipam;
use crate::isolation;
use crate::key::{AttachmentKey, VethEnd, group, hash_of_host_veth, hash_of_ifb, host_veth_of};
use crate::localnet;
use crate::locks::network_lock;
use crate::masquerade::{self, Masquerade, ending};
use crate::record::{self, Found, Record};
use crate::ruleset;
use crate::shaping::{self, Limited};
use weft_net::nft::Nft;
use weft_net::{Link, NetError, Netlink, NlResult};

/// Collects the network's garbage. Goes on after an error and reports all of them.
pub fn gc(args: &GcArgs) -> Result<Outcome, Error> {
    let mut problems = Vec::new();
    let traces = Traces::parse(&args.call.conf)?;
    let collector = Collector { args, traces };
    match collector.run(&mut problems) {
        Err(error) if error.code == Code::TryAgain => return Err(error),
        Err(error) => problems.extend(error.lines()),
        Ok(()) => {}
    }
    if problems.is_empty() {
        return Ok(Outcome::Done);
    }
    let msg = format!("GC of network {} left something: {}", args.call.network, problems.remove(0));
    Err(problems.into_iter().fold(Error::new(Code::Incomplete, msg), Error::detail))
}

struct Collector<'a> {
    args: &'a GcArgs,
    traces: Traces,
}

/// What is known of an attachment to be removed.
#[derive(Default)]
struct Stale {
    key: Option<AttachmentKey>,
    record: Option<Record>,
    links: Vec<String>,
    /// Addresses that other containers may be allowed to talk with.
    addresses: Vec<IpAddr>,
    /// The link of another plugin that has its limits.
    limited: Option<Limited>,
    /// What the configuration had about the IPAM plugin when it was made.
    ipam: Option<Map<String, Value>>,
}

/// What is kept of an attachment that the runtime does not list: somebody is at work on it, or it cannot be removed or told.
#[derive(Default)]
struct Kept {
    key: Option<AttachmentKey>,
    link: Option<String>,
}

/// What is to be removed, and what is kept although the runtime does not list it, by hashes.
type Findings = (BTreeMap<String, Stale>, BTreeMap<String, Kept>);

/// What is on record of an attachment that the runtime does not list.
enum Recorded {
    Stale(Stale),
    /// It is younger than the list, or somebody else's.
    Kept(Option<AttachmentKey>),
}

impl Collector<'_> {
    /// # Errors
    /// [`Code::TryAgain`] when an ADD is under way until the deadline: nothing was done then.
    fn run(&self, problems: &mut Vec<String>) -> Result<(), Error> {
        let mut netlink = open(self.args.call.deadline)?;
        let (no_add, (mut stale, mut kept)) = self.find_alone(&mut netlink, problems)?;
        // An address is given back after its link is gone, or not at all.
        let left = remove_links(&mut netlink, &stale, problems);
        let is_all = left.is_empty();
        for hash in left {
            if let Some(Stale { key, links, .. }) = stale.remove(&hash) {
                kept.insert(hash, Kept { key, link: links.into_iter().next() });
            }
        }
        if let Err(error) = self.remove_elements(&mut netlink, &stale) {
            problems.extend(error.lines());
        }
        for (hash, stale) in stale {
            info!("removing attachment {hash}");
            if let Err(error) = self.release(stale) {
                problems.extend(error.lines());
            }
        }
        if let Err(error) = self.sweep_index(&mut netlink) {
            problems.extend(error.lines());
        }
        if let Err(error) = self.collect_addresses(kept) {
            problems.extend(error.lines());
        }
        if let Err(error) = self.retire_prefixes() {
            problems.extend(error.lines());
        }
        if is_all && self.args.valid.is_empty() {
            self.remove_rules(no_add)?;
        }
        Ok(())
    }

    /// What [`Self::find`] finds while no ADD is under way: such a one is not in the runtime's list. A host on which none ever began has no
    /// lock, and gets none unless there is something to be removed.
    fn find_alone(
        &self,
        netlink: &mut Netlink,
        problems: &mut Vec<String>,
    ) -> Result<(Option<Lock>, Findings), Error> {
        let lock = network_lock(&self.traces.state_dir, self.network());
        if !lock.exists() {
            let found = self.find(netlink, problems)?;
            if found.0.is_empty() {
                return Ok((None, found));
            }
            // It may be what the first ADD since boot has made meanwhile.
            problems.clear();
        }
        let no_add = self.keep_out_adds()?;
        Ok((Some(no_add), self.find(netlink, problems)?))
    }

    fn keep_out_adds(&self) -> Result<Lock, Error> {
        boot_dir(&self.traces.state_dir, self.network())?;
        Lock::exclusive(&network_lock(&self.traces.state_dir, self.network()), self.args.call.deadline)
    }

    fn network(&self) -> &NetworkName {
        &self.args.call.network
    }

    /// All that is not valid, by what the records say and by what the kernel's links say of themselves; and what
    /// is kept although it is not in the list: attached after the runtime wrote that, or in somebody's hands.
    /// An attachment of which nothing can be learned is kept, and a problem.
    fn find(&self, netlink: &mut Netlink, problems: &mut Vec<String>) -> Result<Findings, Error> {
        let hash_of = |valid: &ValidAttachment| {
            AttachmentKey::new(self.network(), &valid.container_id, &valid.ifname).hash().to_owned()
        };
        let valid: BTreeSet<String> = self.args.valid.iter().map(hash_of).collect();
        let (mut stale, mut kept) = Findings::default();
        for hash in record::hashes(&self.traces.state_dir, self.network())? {
            if valid.contains(&hash) {
                continue;
            }
            match self.of_record(&hash) {
                Ok(Recorded::Stale(found)) => drop(stale.insert(hash, found)),
                Ok(Recorded::Kept(key)) => drop(kept.insert(hash, Kept { key, link: None })),
                Err(error) => {
                    problems.extend(error.lines());
                    kept.insert(hash, Kept::default());
                }
            }
        }
        let links = netlink.links(None).map_err(|error| failed(&"list links", error.into()))?;
        for link in links.iter().filter(|link| link.kind.as_deref() == Some("veth")) {
            // Somebody may have given it another name.
            let key =
                link.alias.as_deref().and_then(|alias| AttachmentKey::from_alias(self.network(), alias));
            let by_name = || hash_of_host_veth(&link.name).map(str::to_owned);
            let by_mac = || hash_of_renamed(&stale, link).filter(|_| is_nameless(link, self.network()));
            let by_key = key.as_ref().map(|key| key.hash().to_owned());
            let Some(hash) = by_key.or_else(by_name).or_else(by_mac) else { continue };
            // Its record may not tell whose it is.
            if let Some(known) = stale.get_mut(&hash) {
                known.key = known.key.take().or(key);
                known.links.push(link.name.clone());
            } else if let Some(known) = kept.get_mut(&hash) {
                known.key = known.key.take().or(key);
                known.link = Some(link.name.clone());
            } else if !valid.contains(&hash) && (key.is_some() || is_nameless(link, self.network())) {
                stale.insert(hash, Stale { key, links: vec![link.name.clone()], ..Stale::default() });
            }
        }
        self.find_detours(&links, &mut stale);
        Ok((stale, kept))
    }

    /// What a record that is not listed says.
    fn of_record(&self, hash: &str) -> Result<Recorded, Error> {
        if !record::find_or_clear_place(&self.traces.state_dir, self.network(), hash)? {
            return Ok(Recorded::Stale(Stale::default()));
        }
        let Some(record) = record::try_lock(&self.traces.state_dir, self.network(), hash)? else {
            // A DEL is at work on it, or the IPAM plugin of an ADD that was killed: theirs it is.
            let found = record::peek(&self.traces.state_dir, self.network(), hash)?;
            let holder = record::holder(&self.traces.state_dir, self.network(), hash)?;
            warn!("attachment {hash} is left to {holder}, which holds its record");
            return Ok(Recorded::Kept(found.key(self.network())));
        };
        let found = record.read()?;
        let key = found.key(self.network());
        if is_younger(&found) {
            return Ok(Recorded::Kept(key));
        }
        let addresses = found.private_addresses();
        let content = found.content();
        let limited = content.and_then(|content| content.limited.clone());
        let ipam = content.and_then(|content| content.ipam.clone());
        Ok(Recorded::Stale(Stale { key, record: Some(record), addresses, limited, ipam, ..Stale::default() }))
    }

    /// Adds the links that traffic of stale attachments takes a detour through, and those of no attachment of the host.
    fn find_detours(&self, links: &[Link], stale: &mut BTreeMap<String, Stale>) {
        for link in links {
            let Some(hash) = hash_of_ifb(link) else { continue };
            let has_veth = || links.iter().any(|veth| hash_of_host_veth(&veth.name) == Some(hash));
            if let Some(known) = stale.get_mut(hash) {
                known.links.push(link.name.clone());
            } else if !has_veth() && !record::exists(&self.traces.state_dir, hash) {
                stale.entry(hash.to_owned()).or_default().links.push(link.name.clone());
            }
        }
    }

    /// Has the IPAM plugin do the same, with what this GC keeps in the list. The plugin cannot tell by its own
    /// times, as an ADD reserves before this command begins and is attached after that. An address of a link that is left is not given back,
    /// so the plugin is left alone as long as nobody can tell whose a link is.
    fn collect_addresses(&self, kept: BTreeMap<String, Kept>) -> Result<(), Error> {
        let Some((plugin, _)) = conf::ipam(&self.args.call.conf)? else { return Ok(()) };
        if let Some(link) =
            kept.values().filter(|kept| kept.key.is_none()).find_map(|kept| kept.link.as_ref())
        {
            let left_out = format!(
                "GC of {plugin} is left out, as nobody can tell whose link {link} is, which may have addresses: see why its record cannot \
                 be read, or delete the link, and call GC again"
            );
            return Err(Error::new(Code::Incomplete, left_out));
        }
        let keys = kept.into_values().filter_map(|kept| kept.key);
        let kept: Vec<_> =
            keys.map(|key| ValidAttachment { container_id: key.container_id, ifname: key.ifname }).collect();
        let mut args = self.args.clone();
        args.keep(&kept);
        ipam::collect_garbage(plugin, &args.call)
    }

    fn release(&self, stale: Stale) -> Result<(), Error> {
        let call = ipam::call_as_recorded(&self.args.call, stale.ipam.as_ref());
        match (conf::ipam(&call.conf)?, &stale.key) {
            (Some((plugin, _)), Some(key)) => {
                ipam::release(plugin, &call, key, call.deadline)
                    .map_err(|error| failed(&format!("give back the addresses of {key}"), error.into()))?;
            }
            // The plugin's own GC finds what nobody can name.
            (Some(_), None) if stale.record.is_none() => {}
            (Some(_), None) => warn!("a damaged record does not tell whose it is"),
            (None, _) => {}
        }
        stale.record.map_or(Ok(()), Record::remove)
    }

    /// Takes out of the ruleset what is the stale attachments', and what is nobody's any more, and closes what was open for them.
    fn remove_elements(&self, netlink: &mut Netlink, stale: &BTreeMap<String, Stale>) -> Result<(), Error> {
        let remove = |netlink: &mut Netlink| {
            let Some(mut nft) = Nft::open_if_there(self.args.call.deadline)? else { return Ok(()) };
            let links = erasure::names_of_links(netlink)?;
            let addresses: Vec<IpAddr> = stale.values().flat_map(|stale| stale.addresses.clone()).collect();
            isolation::forget(&mut nft, &addresses, false)?;
            let is_gone = |hash: &str| {
                stale.contains_key(hash) || erasure::is_dead(&self.traces.state_dir, &links, hash)
            };
            erasure::sweep(&mut nft, is_gone)?;
            let mut holders = localnet::holders(&self.traces.state_dir)?;
            holders.retain(|hash| is_gone(hash));
            localnet::close(&self.traces.state_dir, &holders, self.args.call.deadline)?;
            hostport::tidy(&mut nft, &self.traces.state_dir)
        };
        remove(netlink).map_err(|fault| failed(&"remove stale elements from the ruleset", fault))
    }

    /// A container whose record is lost stays in the index of rules: that tells others that something of it is left.
    fn sweep_index(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let links = erasure::names_of_links(netlink).map_err(|error| failed(&"list links", error.into()))?;
        let has_link = |hash: &str| links.contains(&host_veth_of(hash));
        isolation::index::sweep(&self.traces.state_dir, self.network(), has_link)
    }

    /// What former subnets of the network had masqueraded ends with their last container.
    fn retire_prefixes(&self) -> Result<(), Error> {
        let (state_dir, of) = (&self.traces.state_dir, (self.network(), None));
        let retire = || {
            let Some(mut nft) = Nft::open_if_there(self.args.call.deadline)? else { return Ok(()) };
            match ending::stale(&mut nft, state_dir, of, &Masquerade::default())? {
                stale if stale.is_empty() => Ok(()),
                stale => ending::retire(&mut nft, state_dir, of, stale),
            }
        };
        retire()
            .map_err(|error: NetError| failed(&"take prefixes out of the network's masquerade", error.into()))
    }

    fn has_rules(&self, nft: &mut Nft) -> NlResult<bool> {
        Ok(ending::is_there(nft, self.network())? || ruleset::network::is_there(nft, self.network())?)
    }

    /// Removes what the network as a whole has in the ruleset, unless one that came meanwhile is in need of it.
    fn remove_rules(&self, no_add: Option<Lock>) -> Result<(), Error> {
        let refused = |error: NetError| failed(&"remove the network's rules", error.into());
        let mut nft = Nft::open(self.args.call.deadline).map_err(refused)?;
        if no_add.is_none() && !self.has_rules(&mut nft).map_err(refused)? {
            return Ok(());
        }
        // Where none had begun, one may have since: between a look at the records and the removal none is to come.
        let _no_add = no_add.map_or_else(|| self.keep_out_adds(), Ok)?;
        if !record::hashes(&self.traces.state_dir, self.network())?.is_empty() {
            return Ok(());
        }
        masquerade::remove(&mut nft, self.network()).map_err(refused)?;
        ruleset::network::restore(&mut nft, self.network(), &[]).map_err(refused)
    }
}

/// Whether a host end is of the network, and has no alias that says of whom: there are names too long for one.
fn is_nameless(link: &Link, network: &NetworkName) -> bool {
    link.alias.is_none() && link.group == group(network)
}

/// The stale attachment of which a link has the host end's MAC address: somebody gave it another name, and its own names are too long for an
/// alias.
fn hash_of_renamed(stale: &BTreeMap<String, Stale>, link: &Link) -> Option<String> {
    let is_its =
        |stale: &Stale| stale.key.as_ref().is_some_and(|key| link.mac == Some(key.mac(VethEnd::Host)));
    stale.iter().find(|(_, stale)| is_its(stale)).map(|(hash, _)| hash.clone())
}

/// Whether the attachment was made after this command began, so that the runtime's list cannot have it.
fn is_younger(found: &Found) -> bool {
    matches!(found, Found::Attached(content) if content.since() > started())
}

fn open(deadline: Deadline) -> Result<Netlink, Error> {
    Netlink::open(deadline).map_err(|error| failed(&"open a netlink socket", error.into()))
}

/// Deletes the links, and takes off the limits on those of other plugins. Returns the attachments of which something is left.
fn remove_links(
    netlink: &mut Netlink,
    stale: &BTreeMap<String, Stale>,
    problems: &mut Vec<String>,
) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    let mut report = |hash: &str, what: String, error: NetError| {
        problems.push(failed(&what, Fault::Net(error)).msg);
        left.insert(hash.to_owned());
    };
    for (hash, stale) in stale {
        if let Some(limited) = &stale.limited
            && let Err(error) = shaping::take_off(netlink, limited)
        {
            report(hash, format!("take the limits off {}", limited.link), error);
        }
    }
    // As one group: one by one, each waits ~15 ms for RCU.
    let links: Vec<&str> = stale.values().flat_map(|stale| &stale.links).map(String::as_str).collect();
    if netlink.delete_links(&links).is_ok() {
        return left;
    }
    for (hash, stale) in stale {
        for link in &stale.links {
            match netlink.delete_link(link) {
                Err(error) if !error.not_found() => report(hash, format!("delete link {link}"), error),
                _ => {}
            }
        }
    }
    left
}
