//! What an address file says about its owner.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_state::{open_to_write, read_at_once, short_hash};

use crate::sticky::Name;
use crate::store::Held;

/// Who holds addresses: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    container_id: String,
    ifname: String,
    hash: String,
}

impl Owner {
    /// The owner for a container ID and an interface name.
    #[must_use]
    pub fn new(container_id: &str, ifname: &str) -> Self {
        let hash = short_hash(&[container_id, ifname]);
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned(), hash }
    }

    /// The name of the owner's directory in the store.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} ({})", self.container_id, self.ifname)
    }
}

/// The content of an address file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
    /// Nanoseconds of the monotonic clock, see [`weft_state::monotonic`].
    #[serde(rename = "reservedAt")]
    reserved_at: u64,
    /// How many addresses its owner has; 0 where that is not known.
    #[serde(default)]
    of: usize,
    /// For whom the address is kept when it is free again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sticky: Option<Name>,
}

impl Record {
    pub(crate) fn bytes(owner: &Owner, reserved_at: Duration, of: usize, name: Option<&Name>) -> Vec<u8> {
        let record = Self {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            reserved_at: u64::try_from(reserved_at.as_nanos()).unwrap_or(u64::MAX),
            of,
            sticky: name.cloned(),
        };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// For people.
    pub(crate) fn held(self, address: IpAddr) -> Held {
        let since = Duration::from_nanos(self.reserved_at);
        let age = weft_state::monotonic().saturating_sub(since).as_secs();
        Held { address, container_id: self.container_id, ifname: self.ifname, age }
    }

    /// `None` if there is no file or no whole record in it.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&read_at_once(path).ok()?).ok()
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner::new(&self.container_id, &self.ifname)
    }

    pub(crate) fn of(&self) -> usize {
        self.of
    }

    pub(crate) fn name(self) -> Option<Name> {
        self.sticky
    }

    pub(crate) fn reserved_at(&self) -> Duration {
        Duration::from_nanos(self.reserved_at)
    }
}

/// Writes the record of an address anew if it is damaged. In place, so that all links keep it;
/// a kill in the middle leaves it damaged as before.
pub(crate) fn repair_record(owner: &Owner, path: &Path) {
    if Record::read(path).is_some() {
        return;
    }
    let record = Record::bytes(owner, Duration::ZERO, 0, None);
    match open_to_write(path, true).and_then(|mut file| file.write_all(&record)) {
        Ok(()) => log::warn!("{}: damaged, written anew for {owner}", path.display()),
        Err(e) => log::warn!("{}: damaged, and not to be written anew: {e}", path.display()),
    }
}
