//! The locks of the state directory. A command that needs several takes them in this order.
//!
//! * The host's: every ADD shared, until it ends. Exclusive, without waiting, to take back what attachments share.
//! * A network's: every ADD of it shared, until it ends. Exclusive: its GC, `weftctl leave`, and the end of its masquerade.
//! * An attachment's: its [record](crate::record).
//! * `overlay.lock`, of a network, exclusive: an ADD that sets up the way to other hosts where no agent does.
//! * Of all networks, exclusive: an ADD or the agent that changes what a network has in the rules.
//! * `meeting.lock`, of a network, exclusive: an ADD until its record has what was worked out between containers, and a DEL that
//!   takes that out.
//! * Of ports, exclusive: an ADD with host ports, and a change of what these have besides their elements.
//!
//! `agent.lock`, of a network, is the agent's: [`weft_state::lease::agent_lives`].

use std::fs;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Deadline, Error, NetworkName};
use weft_state::{Lock, boot_dir};

use crate::key::AttachmentKey;

/// In the state directory beside the directories of networks. No network has such a name, nor one of the other two.
const HOST: &str = ".lock";
/// What ports have besides their elements is in there too.
pub const PORTS_DIR: &str = ".hostport";
const NETWORKS_DIR: &str = ".networks";

/// The lock that all ADDs of the host share.
///
/// # Errors
/// Here and below [`Code::TryAgain`] when another call has it until the deadline, [`Code::Io`].
pub fn share_host(state_dir: &Path, deadline: Deadline) -> Result<Lock, Error> {
    Lock::shared(&state_dir.join(HOST), deadline)
}

/// The file of the lock that ADDs of a network share, and its GC has alone.
pub fn network_lock(state_dir: &Path, network: &NetworkName) -> PathBuf {
    state_dir.join(network.as_str()).join("lock")
}

/// The lock of a network whose way to other hosts is looked at.
pub fn lock_overlay(state_dir: &Path, network: &NetworkName, deadline: Deadline) -> Result<Lock, Error> {
    Lock::exclusive(&state_dir.join(network.as_str()).join("overlay.lock"), deadline)
}

/// The lock of a network that ADDs hold while they work out what is allowed between containers.
pub fn lock_meeting(state_dir: &Path, key: &AttachmentKey, deadline: Deadline) -> Result<Lock, Error> {
    Lock::exclusive(&boot_dir(state_dir, &key.network)?.join("meeting.lock"), deadline)
}

/// The lock that an ADD with host ports holds while it looks whether they are free.
pub fn lock_ports(state_dir: &Path, deadline: Deadline) -> Result<Lock, Error> {
    lock_beside_networks(state_dir, PORTS_DIR, deadline)
}

/// The lock that an ADD holds while it changes what its network has in the rules.
pub fn lock_networks(state_dir: &Path, deadline: Deadline) -> Result<Lock, Error> {
    lock_beside_networks(state_dir, NETWORKS_DIR, deadline)
}

fn lock_beside_networks(state_dir: &Path, dir: &str, deadline: Deadline) -> Result<Lock, Error> {
    let dir = state_dir.join(dir);
    if !dir.is_dir() {
        fs::create_dir_all(&dir).map_err(|error| {
            let remedy = "see that the state directory is writable and not full";
            Error::new(Code::Io, format!("create {}: {error}: {remedy}", dir.display()))
        })?;
    }
    Lock::exclusive(&dir.join("lock"), deadline)
}
