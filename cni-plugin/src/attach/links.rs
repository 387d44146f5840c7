//! Links of an ADD that are not as it needs them.

use cni_protocol::{Code, Error};

use crate::bridge;
use crate::conf::Network;
use crate::fault::Fault;
use crate::key::AttachmentKey;
use crate::pod::Pod;
use weft_net::{Link, NetError, is_bridge_full};

/// Why the pair could not be made.
pub(super) fn explain(error: &NetError, network: &Network, key: &AttachmentKey, pod: &mut Pod) -> Fault {
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

/// A link that has to be there.
pub(super) fn present(link: Option<Link>, name: &str) -> Result<Link, Error> {
    link.ok_or_else(|| {
        Error::new(
            Code::Conflict,
            format!("{name} is gone again: find out what removes the links that Weft makes"),
        )
    })
}
