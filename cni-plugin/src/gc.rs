//! GC: removes what belongs to no valid attachment of the network, and nothing else.

mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use cni_protocol::{Code, Error, GcArgs, NetworkName, Outcome, ValidAttachment};
use log::{info, warn};
use weft_state::{Lock, boot_dir, state_dir};

use crate::conf;
use crate::fault::{Fault, failed};
use crate::holdings::erasure;
use crate::hostport;
use crate::ipam;
use crate::isolation;
use crate::key::host_veth_of;
use crate::localnet;
use crate::locks::network_lock;
use crate::masquerade::{self, Masquerade, ending};
use crate::pod::open_host;
use crate::record::{self, Record};
use crate::ruleset;
use crate::shaping;
use weft_net::nft::Nft;
use weft_net::{NetError, Netlink, NlResult};

use find::{Findings, Kept, Stale};

/// Collects the network's garbage. Goes on after an error and reports all of them.
pub fn gc(args: &GcArgs) -> Result<Outcome, Error> {
    let state_dir = state_dir(args.call.conf.get("stateDir"))?;
    let mut collector = Collector { args, state_dir, problems: Vec::new() };
    match collector.run() {
        Err(error) if error.code == Code::TryAgain => return Err(error),
        other => collector.note(other),
    }
    let mut problems = collector.problems;
    if problems.is_empty() {
        return Ok(Outcome::Done);
    }
    let msg = format!("GC of network {} left something: {}", args.call.network, problems.remove(0));
    Err(problems.into_iter().fold(Error::new(Code::Incomplete, msg), Error::detail))
}

struct Collector<'a> {
    args: &'a GcArgs,
    state_dir: PathBuf,
    /// What could not be done so far.
    problems: Vec<String>,
}

impl<'a> Collector<'a> {
    /// # Errors
    /// [`Code::TryAgain`] when an ADD is under way until the deadline: nothing was done then.
    fn run(&mut self) -> Result<(), Error> {
        let mut netlink = open_host(self.args.call.deadline)?;
        let (no_add, (mut stale, mut kept)) = self.find_alone(&mut netlink)?;
        // An address is given back after its link is gone, or not at all.
        let left = remove_links(&mut netlink, &stale, &mut self.problems);
        let is_all = left.is_empty();
        for hash in left {
            if let Some(Stale { key, links, .. }) = stale.remove(&hash) {
                kept.insert(hash, Kept { key, link: links.into_iter().next() });
            }
        }
        self.note(self.remove_elements(&mut netlink, &stale));
        for (hash, stale) in stale {
            info!("removing attachment {hash}");
            self.note(self.release(stale));
        }
        self.note(self.sweep_index(&mut netlink));
        self.note(self.collect_addresses(kept));
        self.note(self.retire_prefixes());
        if is_all && self.args.valid.is_empty() {
            self.remove_rules(no_add)?;
        }
        Ok(())
    }

    /// What [`Self::find`] finds while no ADD is under way: its attachment would not be in the runtime's list. A host on which none ever
    /// began has no lock, and gets none unless there is something to be removed.
    fn find_alone(&mut self, netlink: &mut Netlink) -> Result<(Option<Lock>, Findings), Error> {
        let lock = network_lock(&self.state_dir, self.network());
        if !lock.exists() {
            let found = self.find(netlink)?;
            if found.0.is_empty() {
                return Ok((None, found));
            }
            // It may be what the first ADD since boot has made meanwhile.
            self.problems.clear();
        }
        let no_add = self.keep_out_adds()?;
        Ok((Some(no_add), self.find(netlink)?))
    }

    fn keep_out_adds(&self) -> Result<Lock, Error> {
        boot_dir(&self.state_dir, self.network())?;
        Lock::exclusive(&network_lock(&self.state_dir, self.network()), self.args.call.deadline)
    }

    fn note(&mut self, outcome: Result<(), Error>) {
        self.problems.extend(outcome.err().into_iter().flat_map(Error::lines));
    }

    fn network(&self) -> &'a NetworkName {
        &self.args.call.network
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
            let is_gone =
                |hash: &str| stale.contains_key(hash) || erasure::is_dead(&self.state_dir, &links, hash);
            erasure::sweep(&mut nft, is_gone)?;
            let mut holders = localnet::holders(&self.state_dir)?;
            holders.retain(|hash| is_gone(hash));
            localnet::close(&self.state_dir, &holders, self.args.call.deadline)?;
            hostport::tidy(&mut nft, &self.state_dir)
        };
        remove(netlink).map_err(|fault| failed(&"remove stale elements from the ruleset", fault))
    }

    /// A container whose record is lost stays in the index of rules: that tells others that something of it is left.
    fn sweep_index(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let links = erasure::names_of_links(netlink).map_err(|error| failed(&"list links", error.into()))?;
        let has_link = |hash: &str| links.contains(&host_veth_of(hash));
        isolation::index::sweep(&self.state_dir, self.network(), has_link)
    }

    /// What former subnets of the network had masqueraded ends with their last container.
    fn retire_prefixes(&self) -> Result<(), Error> {
        let (state_dir, of) = (&self.state_dir, (self.network(), None));
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

    /// Removes what the network as a whole has in the ruleset, unless a container that came meanwhile needs it.
    fn remove_rules(&self, no_add: Option<Lock>) -> Result<(), Error> {
        let refused = |error: NetError| failed(&"remove the network's rules", error.into());
        let mut nft = Nft::open(self.args.call.deadline).map_err(refused)?;
        if no_add.is_none() && !self.has_rules(&mut nft).map_err(refused)? {
            return Ok(());
        }
        // Where no ADD had begun, one may have since: none may come between a look at the records and the removal.
        let _no_add = no_add.map_or_else(|| self.keep_out_adds(), Ok)?;
        if !record::hashes(&self.state_dir, self.network())?.is_empty() {
            return Ok(());
        }
        masquerade::remove(&mut nft, self.network()).map_err(refused)?;
        ruleset::network::restore(&mut nft, self.network(), &[]).map_err(refused)
    }
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
