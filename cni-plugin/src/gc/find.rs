//! What GC finds: what is to be removed, and what is kept although nobody asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_protocol::{Error, NetworkName, ValidAttachment};
use log::warn;
use serde_json::{Map, Value};
use weft_net::{Link, Netlink};
use weft_state::started;

use super::Collector;
use crate::fault::failed;
use crate::key::{AttachmentKey, VethEnd, group, hash_of_host_veth, hash_of_ifb};
use crate::record::{self, Found, Record};
use crate::shaping::Limited;

/// What is known of an attachment to be removed.
#[derive(Default)]
pub(super) struct Stale {
    pub(super) key: Option<AttachmentKey>,
    pub(super) record: Option<Record>,
    pub(super) links: Vec<String>,
    /// Addresses that other containers may be allowed to talk with.
    pub(super) addresses: Vec<IpAddr>,
    /// The link of another plugin that has its limits.
    pub(super) limited: Option<Limited>,
    /// What the configuration had about the IPAM plugin when it was made.
    pub(super) ipam: Option<Map<String, Value>>,
}

/// What is kept of an attachment that the runtime does not list: somebody is at work on it, or it cannot be removed or told.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) key: Option<AttachmentKey>,
    pub(super) link: Option<String>,
}

/// What is to be removed, and what is kept although the runtime does not list it, by hashes.
pub(super) type Findings = (BTreeMap<String, Stale>, BTreeMap<String, Kept>);

/// What is on record of an attachment that the runtime does not list.
enum Recorded {
    Stale(Stale),
    /// It is younger than the list, or somebody else's.
    Kept(Option<AttachmentKey>),
}

impl Collector<'_> {
    /// All that is not valid, by what the records say and by what the kernel's links say of themselves; and what
    /// is kept although it is not in the list: attached after the runtime wrote that, or in somebody's hands.
    /// An attachment of which nothing can be learned is kept, and a problem.
    pub(super) fn find(&mut self, netlink: &mut Netlink) -> Result<Findings, Error> {
        let hash_of = |valid: &ValidAttachment| {
            AttachmentKey::new(self.network(), &valid.container_id, &valid.ifname).hash().to_owned()
        };
        let valid: BTreeSet<String> = self.args.valid.iter().map(hash_of).collect();
        let (mut stale, mut kept) = Findings::default();
        for hash in record::hashes(&self.state_dir, self.network())? {
            if valid.contains(&hash) {
                continue;
            }
            match self.of_record(&hash) {
                Ok(Recorded::Stale(found)) => drop(stale.insert(hash, found)),
                Ok(Recorded::Kept(key)) => drop(kept.insert(hash, Kept { key, link: None })),
                Err(error) => {
                    self.problems.extend(error.lines());
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
        if !record::find_or_clear_place(&self.state_dir, self.network(), hash)? {
            return Ok(Recorded::Stale(Stale::default()));
        }
        let Some(record) = record::try_lock(&self.state_dir, self.network(), hash)? else {
            // A DEL is at work on it, or the IPAM plugin of an ADD that was killed: theirs it is.
            let found = record::peek(&self.state_dir, self.network(), hash)?;
            let holder = record::holder(&self.state_dir, self.network(), hash)?;
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
            } else if !has_veth() && !record::exists(&self.state_dir, hash) {
                stale.entry(hash.to_owned()).or_default().links.push(link.name.clone());
            }
        }
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
