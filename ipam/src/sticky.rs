//! Addresses that stay with a name: a pod that comes again gets the address that it had.
//!
//! ```text
//! <dataDir>/<network>/<boot id>/ipam/
//!     name/<hash>   the addresses that a name was last given
//!     kept/<ip>     for whom a free address is kept, and until when
//! ```
//!
//! `addr/` and `owner/` alone say who holds an address; what is here only steers the choice among free ones. So a file
//! that is lost or garbage costs a name its address and is no error, and nothing here can have an address held. The
//! record of a reservation has the name: whoever frees it, DEL or GC, needs no more to keep it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni_protocol::{CniArgs, Code, ContainerId, Error, IfName};
use serde::{Deserialize, Serialize};
use weft_state::{monotonic, read_at_once, short_hash, write_whole};

use crate::record::Record;
use crate::reservation::Reservation;
use crate::store::{Store, addresses_in, names_in, read_text, remove_file};

/// How many characters of the container ID nerdctl makes a host name of, as Docker does.
const MADE_UP: usize = 12;
/// How long an address is kept for a name, in seconds, unless `stickyFor` says otherwise.
const TIME: u64 = 3600;
const TIME_MAX: u64 = 365 * 24 * 3600;

/// Reads `ipam.sticky` and `ipam.stickyFor`: how long addresses are kept for names; `None` where they are not.
///
/// # Errors
/// [`Code::InvalidConfig`] for values that cannot be.
pub(crate) fn time(sticky: Option<&str>, time: Option<u64>) -> Result<Option<Duration>, Error> {
    let refuse = |what: String| Err(Error::new(Code::InvalidConfig, what));
    match (sticky.filter(|sticky| !sticky.is_empty()), time) {
        (None, None) => Ok(None),
        (None, Some(time)) => refuse(format!(
            "ipam.stickyFor: {time} means nothing without ipam.sticky; add \"sticky\": \"name\" or take it out"
        )),
        (Some("name"), time) => match time.unwrap_or(TIME) {
            time @ 1..=TIME_MAX => Ok(Some(Duration::from_secs(time))),
            time => refuse(format!(
                "ipam.stickyFor: {time} is no time to keep an address; write 1 to {TIME_MAX} seconds"
            )),
        },
        (Some(other), _) => {
            refuse(format!("ipam.sticky: {other:?} is unknown; write \"name\", or leave it out"))
        }
    }
}

/// One interface of a container that has a name, in a network whose addresses stay with names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What people call the container: `NAMESPACE/NAME` of a pod, or its host name.
    name: String,
    ifname: String,
    /// How long its addresses are kept, in seconds.
    #[serde(rename = "keptFor")]
    time: u64,
}

impl Name {
    /// The name that a runtime gives a container; `None` when it gives none. nerdctl tells the host name, which is the
    /// beginning of the container ID unless somebody chose it; to CNI it tells that ID behind its namespace and a dash.
    #[must_use]
    pub fn of(args: &CniArgs, container_id: &ContainerId, ifname: &IfName, time: Duration) -> Option<Self> {
        let id = container_id.as_str();
        let is_made_up = |name: &String| {
            name.len() >= MADE_UP
                && [Some(id), id.rsplit('-').next()].iter().flatten().any(|id| id.starts_with(name))
        };
        let chosen = || args.hostname.clone().filter(|name| !is_made_up(name));
        let name = args.pod().or_else(chosen).filter(|name| !name.is_empty())?;
        Some(Self { name, ifname: ifname.to_string(), time: time.as_secs() })
    }

    fn hash(&self) -> String {
        short_hash(&[&self.name, &self.ifname])
    }

    fn is(&self, other: &Self) -> bool {
        (&self.name, &self.ifname) == (&other.name, &other.ifname)
    }
}

/// For whom a free address is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    name: Name,
    /// Nanoseconds of the monotonic clock.
    until: u64,
}

impl Kept {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&read_at_once(path).ok()?).ok()
    }

    fn left(&self) -> Option<Duration> {
        Duration::from_nanos(self.until).checked_sub(monotonic()).filter(|left| !left.is_zero())
    }
}

impl Reservation<'_> {
    /// Notes that the addresses are those of the name from now on.
    pub(crate) fn give_to(&self, name: &Name, addresses: &[IpAddr]) {
        let text: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if let Err(error) = self.store.write("name", &name.hash(), text.join("\n").as_bytes()) {
            log::warn!("{:?} may not get the same address again: {error}", name.name);
        }
    }
}

impl Store {
    /// The addresses that a name was last given.
    #[must_use]
    pub fn had(&self, name: &Name) -> Vec<IpAddr> {
        self.listed(&name.hash())
    }

    fn listed(&self, hash: &str) -> Vec<IpAddr> {
        let text = read_text(&self.part("name", hash));
        text.split_whitespace().filter_map(|ip| ip.parse().ok()).collect()
    }

    /// For whom else than `name` an address is kept, in words for a message.
    #[must_use]
    pub fn kept_for_another(&self, ip: IpAddr, name: Option<&Name>) -> Option<String> {
        let kept = Kept::read(&self.part("kept", &ip.to_string()))?;
        if name.is_some_and(|name| name.is(&kept.name)) {
            return None;
        }
        Some(format!("{:?} ({}) for {} s", kept.name.name, kept.name.ifname, kept.left()?.as_secs()))
    }

    /// The free addresses that are kept for others than `name`.
    ///
    /// # Errors
    /// [`Code::Io`] when the directory cannot be read.
    pub fn all_kept_for_others(&self, name: Option<&Name>) -> Result<HashSet<IpAddr>, Error> {
        let all = addresses_in(&self.dir().join("kept"))?.into_iter();
        Ok(all.filter(|ip| self.kept_for_another(*ip, name).is_some()).collect())
    }

    /// Every address that is kept, the one whose time ends first at the beginning: where a network keeps all for the same
    /// time, that has been free the longest.
    ///
    /// # Errors
    /// [`Code::Io`] when the directory cannot be read.
    pub fn oldest_kept(&self) -> Result<Vec<IpAddr>, Error> {
        let mut all = addresses_in(&self.dir().join("kept"))?;
        let until = |ip: &IpAddr| Kept::read(&self.part("kept", &ip.to_string())).map(|kept| kept.until);
        all.sort_by_cached_key(until);
        Ok(all)
    }

    /// Keeps what a finished reservation holds for the name in its records. Called before it is freed: after a kill in
    /// between, whoever frees the rest does this again. What has a newer address does not keep an older one. Whether there are as many
    /// addresses as the records say.
    pub(crate) fn keep(&self, dir: &Path) -> bool {
        let (mut kept_for, mut links, mut of) = (None, 0, 0);
        for address in names_in(dir).ok().flatten().unwrap_or_default() {
            let Ok(ip) = address.parse::<IpAddr>() else { continue };
            links += 1;
            let Some(record) = Record::read(&dir.join(&address)) else { continue };
            of = of.max(record.of());
            let Some(name) = record.name() else { continue };
            if !self.had(&name).contains(&ip) {
                continue;
            }
            kept_for = Some(name.time);
            let until = monotonic().saturating_add(Duration::from_secs(name.time)).as_nanos();
            let kept = Kept { name, until: u64::try_from(until).unwrap_or(u64::MAX) };
            warn_of(ip, self.write("kept", &address, &serde_json::to_vec(&kept).unwrap_or_default()));
        }
        if let Some(time) = kept_for {
            self.forget_now_and_then(time);
        }
        links >= of
    }

    fn write(&self, part: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        match write_whole(&self.part(part, name), bytes) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(self.dir().join(part))?;
                write_whole(&self.part(part, name), bytes)
            }
            other => other,
        }
    }

    /// [`Store::forget`] where no GC comes. It looks at all names, so it is done at most once in so much `time`.
    fn forget_now_and_then(&self, time: u64) {
        let path = self.dir().join("forgotten");
        let last = read_text(&path).trim().parse::<u64>().ok();
        let now = monotonic().as_secs();
        if last.is_some_and(|last| now.saturating_sub(last) < time) {
            return;
        }
        self.forget();
        if let Err(error) = write_whole(&path, now.to_string().as_bytes()) {
            log::warn!("write {}: {error}", path.display());
        }
    }

    /// Removes what is kept no longer, and names that have no address any more.
    pub(crate) fn forget(&self) {
        let mut living: HashMap<String, HashSet<IpAddr>> = HashMap::new();
        let mut lives = |name: &Name, ip| living.entry(name.hash()).or_default().insert(ip);
        for ip in addresses_in(&self.dir().join("kept")).unwrap_or_default() {
            let path = self.part("kept", &ip.to_string());
            match Kept::read(&path) {
                Some(kept) if kept.left().is_some() => drop(lives(&kept.name, ip)),
                _ => warn_of(ip, remove_file(&path)),
            }
        }
        for ip in addresses_in(&self.dir().join("addr")).unwrap_or_default() {
            if let Some(name) = Record::read(&self.address_file(ip)).and_then(Record::name) {
                lives(&name, ip);
            }
        }
        for hash in names_in(&self.dir().join("name")).ok().flatten().unwrap_or_default() {
            let addresses = self.listed(&hash);
            let lives = |living: &HashSet<IpAddr>| addresses.iter().any(|ip| living.contains(ip));
            if !living.get(&hash).is_some_and(lives) {
                let path = self.part("name", &hash);
                if let Err(error) = remove_file(&path) {
                    log::warn!("remove {}: {error}", path.display());
                }
            }
        }
    }
}

/// It is a preference and not worth a container.
fn warn_of(ip: IpAddr, result: io::Result<()>) {
    if let Err(error) = result {
        log::warn!("{ip} may not be kept for its name as long as it should: {error}");
    }
}

#[cfg(test)]
mod tests;
