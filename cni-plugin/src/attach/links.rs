//! Links of an ADD, and what becomes of one that is not as the ADD needs it.

use cni_protocol::{Code, Error, IfName};

use crate::bridge;
use crate::conf::{Asked, Network};
use crate::fault::{Change, Fault};
use crate::key::AttachmentKey;
use crate::pod::Pod;
use crate::step::{Journal, Shared, Step};
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

/// Tells in the log of an MTU with which packets to other hosts are too large. Within the host they are not, so it is done as asked.
pub(super) fn warn_of_mtu(network: &Network, asked: &Asked, fits: u32) {
    let wishes = [("args.cni.mtu", asked.tuning.mtu), ("mtu", network.mtu)];
    let wish = wishes.into_iter().find_map(|(key, mtu)| Some((key, mtu?)));
    if let Some((key, mtu)) = wish.filter(|(_, mtu)| *mtu > fits) {
        log::warn!(
            "{key} is {mtu}, but {fits} fits between hosts: what is larger is refused or lost on the way to another host; leave {key} out, or \
             give {fits} at most"
        );
    }
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

/// What the container's side needs whatever its addresses are. Returns its interface, and the others that it has.
pub(super) fn container_end(
    journal: &mut Journal,
    pod: &mut Pod,
    ifname: &IfName,
) -> Result<(Link, Vec<Link>), Error> {
    let name = ifname.as_str();
    // Read before it is up: the kernel settles a new carrier first, on all ports of the bridge.
    let mut links = journal.within(Step::ReadBack(name.to_owned()), || pod.netlink.links(None))?;
    let mut take = |name: &str| links.extract_if(.., |link| link.name == name).next();
    let (lo, own) = (take("lo"), take(name));
    if !lo.is_some_and(|lo| lo.up) {
        journal
            .run(Step::Shared(Shared::Loopback), || pod.netlink.set_up("lo").map(|()| ((), Change::Made)))?;
    }
    Ok((present(own, name)?, links))
}
