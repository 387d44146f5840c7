//! A host's part in a network that spans hosts, as ADD sees to it where no agent does.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cni_protocol::logging::printable;
use cni_protocol::{Code, Deadline, Error, NetworkName};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_net::{NetError, Netlink, NlResult};
use weft_state::lease::{HostLease, Peers, agent_lives, forget_attempt, lease_files};
use weft_state::{boot_dir, read_at_once, write_whole};

use super::sync::Underlay;
use super::{Direct, Overlay, Rejected, remove, sync};
use crate::conf::Network;
use crate::fault::failed;
use crate::locks::lock_overlay;

/// So many of the records that are passed over are named: there may be thousands.
const NAMED: usize = 5;

/// What an attachment has to know of the way to other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub overlay: Overlay,
    /// Of packets to other hosts, in bytes.
    pub mtu: u32,
    /// Whether this made the devices.
    pub made: bool,
}

/// Sees to it that this host reaches the others, as far as they are on file. Costs one look at the device when nothing
/// has changed since the last time; then it also has the MTU that it had.
///
/// # Errors
/// [`Code::TryAgain`] when there is no lease on file, or neither a device nor the address to other hosts; [`Code::Conflict`]
/// when the device or its VNI is another's; what the kernel refused.
pub fn join(
    netlink: &mut Netlink,
    (state_dir, data_dir): (&Path, &Path),
    network: &NetworkName,
    deadline: Deadline,
) -> Result<Joined, Error> {
    // Before the files are read: what changes in between is looked at again by the next one.
    let stamp = stamp(data_dir, network);
    let lease = HostLease::read(data_dir, network)?.ok_or_else(|| {
        let msg = "no lease of this host is on file: see whether ipam.dataDir and WEFT_DATA_DIR are the same everywhere";
        Error::new(Code::TryAgain, format!("network {network}: {msg}"))
    })?;
    let marker = boot_dir(state_dir, network)?.join("overlay");
    let (own, _) = Overlay::new(&lease, &Peers::default())?;
    let as_noted = |netlink: &mut Netlink| match Note::read(&marker) {
        note if Some(&note.stamp) == stamp.as_ref() => {
            Ok(mtus(netlink, &own)?.filter(|found| words(found) == note.mtus).and_then(smallest))
        }
        _ => Ok::<_, Error>(None),
    };
    let mtu = match as_noted(netlink)? {
        None if agent_lives(state_dir, network)? => mtus(netlink, &own)?.and_then(smallest),
        found => found,
    };
    if let Some(mtu) = mtu {
        return Ok(Joined { overlay: own, mtu, made: false });
    }
    // One at a time: of a hundred first ADDs one does the work.
    let _lock = lock_overlay(state_dir, network, deadline)?;
    match as_noted(netlink)? {
        Some(mtu) => Ok(Joined { overlay: own, mtu, made: false }),
        None => connect(netlink, network, data_dir, (lease, stamp), &marker),
    }
}

/// Makes the kernel so, and notes that it is. The caller holds the lock.
fn connect(
    netlink: &mut Netlink,
    network: &NetworkName,
    data_dir: &Path,
    (lease, mut stamp): (HostLease, Option<String>),
    marker: &Path,
) -> Result<Joined, Error> {
    let peers = Peers::read(data_dir, network)?.unwrap_or_default();
    let (overlay, mut rejected) = Overlay::new(&lease, &peers)?;
    let before = Note::read(marker);
    if let Some(former) = before.lease().filter(|former| *former != lease)
        && let Err(error) = retire(netlink, &former, &overlay)
    {
        log::warn!("network {network}: device or routes of the former configuration are left: {error}");
        // Not noted, so that the next one tries again.
        stamp = None;
    }
    let absent = is_absent(netlink, &overlay).map_err(unlooked)?;
    let changes = match sync(netlink, &overlay) {
        Ok(changes) => changes,
        Err(error) => {
            if absent && let Err(left) = remove(netlink, &overlay) {
                log::warn!("network {network}: the device to other hosts is left: {left}");
            }
            return go_on(netlink, (data_dir, network), overlay, error);
        }
    };
    rejected.extend(changes.unreached.iter().map(Rejected::from));
    let told = told(&rejected);
    if before.told != told {
        tell(network, &rejected);
    }
    // The next ADD looks again at what cannot be told now: the device is there, and this one knows what to take back.
    let found = mtus(netlink, &overlay).unwrap_or_default().unwrap_or_default();
    let lease = serde_json::to_string(&lease).unwrap_or_default();
    if let Some(stamp) = stamp
        && let Err(error) = (Note { stamp, told, mtus: words(&found), lease }).write(marker)
    {
        // The next ADD does the same again.
        log::warn!("network {network}: what was connected is not noted in {}: {error}", marker.display());
    }
    Ok(Joined { overlay, mtu: changes.mtu.unwrap_or_default(), made: absent })
}

/// With what was connected before, while the interface to other hosts has no address: the devices stay then, and what is not noted is
/// looked at again by the next one.
fn go_on(
    netlink: &mut Netlink,
    (data_dir, network): (&Path, &NetworkName),
    overlay: Overlay,
    error: NetError,
) -> Result<Joined, Error> {
    if error.errno != Errno::EADDRNOTAVAIL {
        return Err(unconnected(network, error));
    }
    let Some(mtu) = mtus(netlink, &overlay)?.and_then(smallest) else {
        forget_attempt(data_dir, network);
        let remedy = "try again, with etcd in reach where the host has another one by now; where its interface gets none any more, set \
                      ipam.iface";
        let error = Error::new(Code::TryAgain, format!("network {network}: {error}: {remedy}"));
        return Err(failed(&"connect with the other hosts", error.into()));
    };
    log::warn!("network {network}: {error}: going on with what was connected before");
    Ok(Joined { overlay, mtu, made: false })
}

/// The address by which an ADD would first have to connect this host with the others, where no interface has it: the IPAM plugin knows
/// whether it comes by another one.
///
/// # Errors
/// What the kernel refused.
pub fn missing_address(netlink: &mut Netlink, overlay: &Overlay) -> Result<Option<IpAddr>, Error> {
    if mtus(netlink, overlay)?.is_some() {
        return Ok(None);
    }
    for side in &overlay.sides {
        if netlink.holder_of(side.local).map_err(unlooked)?.is_none() {
            return Ok(Some(side.local));
        }
    }
    Ok(None)
}

/// Removes what a former lease led to and its successor does not, as with another VNI or backend.
///
/// # Errors
/// What the kernel refused.
pub fn retire(netlink: &mut Netlink, former: &HostLease, successor: &Overlay) -> NlResult<()> {
    match Overlay::new(former, &Peers::default()) {
        Ok((former, _)) => remove(netlink, &former.without(successor)),
        // A lease that cannot be read led nowhere.
        Err(_) => Ok(()),
    }
}

/// Stands for what was told, so that it is told once.
fn told(rejected: &[Rejected]) -> String {
    let parts: Vec<&str> = rejected.iter().flat_map(|record| [record.key.as_str(), &record.reason]).collect();
    format!("{:x}", weft_state::hash(&parts))
}

fn tell(network: &NetworkName, rejected: &[Rejected]) {
    for Rejected { key, kind, reason } in rejected.iter().take(NAMED) {
        // Anybody may have written them: they are not to look like lines of the log.
        let (key, reason) = (printable(key), printable(reason));
        log::warn!("network {network}: {key} is passed over: {kind}: {reason}");
    }
    if rejected.len() > NAMED {
        log::warn!("network {network}: {} more records are passed over", rejected.len() - NAMED);
    }
}

/// Whether there is none of the devices: then taking back means to remove them.
fn is_absent(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<bool> {
    for name in overlay.device_names() {
        if netlink.link(name)?.is_some() {
            return Ok(false);
        }
    }
    Ok(overlay.device_names().next().is_some())
}

fn unconnected(network: &NetworkName, error: NetError) -> Error {
    let fault = match error.exists() {
        true => Error::new(Code::Conflict, format!("network {network}: {error}")).into(),
        false => error.into(),
    };
    failed(&"connect with the other hosts", fault)
}

fn unlooked(error: NetError) -> Error {
    failed(&"look at the device to other hosts", error.into())
}

/// By what this host's containers reach those of other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub interface: String,
    /// Whether the interface is the network's; else it is the one to all hosts.
    pub is_own: bool,
    /// All hosts' addresses of the family for which this is.
    pub network: IpNetwork,
}

/// The ways to other hosts: the devices, and the interface of plain routes where there are any.
///
/// # Errors
/// What the kernel refused.
pub fn exits(netlink: &mut Netlink, overlay: &Overlay) -> NlResult<Vec<Exit>> {
    let mut found = Vec::new();
    for side in &overlay.sides {
        let network = side.network;
        let device = side.device.iter();
        found.extend(device.map(|device| Exit { interface: device.name.clone(), is_own: true, network }));
        if side.direct == Direct::None {
            continue;
        }
        let underlay = match Underlay::find(netlink, side.local) {
            Err(error) if error.errno == Errno::EADDRNOTAVAIL => continue,
            underlay => underlay?,
        };
        if side.is_direct(netlink, &underlay)? {
            found.push(Exit { interface: underlay.link.name, is_own: false, network });
        }
    }
    Ok(found)
}

/// What a network that spans hosts ought to have here, by what is on file; `None` for a network of this host alone, or
/// without a lease.
///
/// # Errors
/// [`Code::Io`], [`Code::Decode`] when the files cannot be read.
pub fn on_file(network: &Network) -> Result<Option<Overlay>, Error> {
    let Some(data_dir) = &network.data_dir else { return Ok(None) };
    let Some(lease) = HostLease::read(data_dir, &network.name)? else { return Ok(None) };
    let peers = Peers::read(data_dir, &network.name)?.unwrap_or_default();
    Overlay::new(&lease, &peers).map(|(overlay, _)| Some(overlay))
}

/// The MTUs of the devices, if all of them are there, up and nobody's port. Without any, hosts are reached by plain routes,
/// of which only a look at all of them tells.
fn mtus(netlink: &mut Netlink, overlay: &Overlay) -> Result<Option<Vec<u32>>, Error> {
    let mut found = Vec::new();
    for side in &overlay.sides {
        let Some(device) = &side.device else { return Ok(None) };
        match netlink.link(&device.name).map_err(unlooked)? {
            Some(link) if link.up && link.master.is_none() && link.mac == Some(device.mac) => {
                found.push(link.mtu);
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(found))
}

fn smallest(mtus: Vec<u32>) -> Option<u32> {
    mtus.into_iter().min()
}

fn words(mtus: &[u32]) -> String {
    mtus.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// What was set up when everything was looked at last: a line each.
#[derive(Default)]
struct Note {
    /// By which lease and which other hosts.
    stamp: String,
    /// Which records were told to be passed over.
    told: String,
    /// What the devices' MTUs were then.
    mtus: String,
    /// What a later lease may leave unused: as text, read only where there is a later one.
    lease: String,
}

impl Note {
    /// What is not there, or not whole, says nothing.
    fn read(file: &Path) -> Self {
        let text = read_at_once(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().map(str::to_owned);
        let mut next = || lines.next().unwrap_or_default();
        Self { stamp: next(), told: next(), mtus: next(), lease: next() }
    }

    fn lease(&self) -> Option<HostLease> {
        serde_json::from_str(&self.lease).ok()
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        let lines = [&self.stamp, &self.told, &self.mtus, &self.lease].map(|line| format!("{line}\n"));
        write_whole(file, lines.concat().as_bytes())
    }
}

/// Which lease and which other hosts are on file, without reading them: both files are written by renaming new ones
/// into place.
fn stamp(data_dir: &Path, network: &NetworkName) -> Option<String> {
    let one = |path: PathBuf| -> io::Result<String> {
        let file = fs::metadata(path)?;
        Ok(format!("{}.{}.{}", file.ino(), file.mtime(), file.mtime_nsec()))
    };
    let parts: io::Result<Vec<String>> = lease_files(data_dir, network).map(one).into_iter().collect();
    parts.ok().map(|parts| parts.join(" "))
}
