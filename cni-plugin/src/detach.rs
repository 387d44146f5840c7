//! DEL: by the attachment's key alone. No namespace, previous result or record is needed, and a wrong one
//! is not in the way.

use std::path::Path;

use cni_protocol::{Call, DelArgs, Error, Outcome};
use log::warn;
use weft_state::state_dir;

use crate::conf;
use crate::conf::chained::is_chained;
use crate::fault::{Fault, failed};
use crate::holdings::company::Company;
use crate::holdings::erasure::Erasure;
use crate::ipam;
use crate::key::AttachmentKey;
use crate::localnet;
use crate::record::{Content, Found, Record};
use crate::shaping;
use crate::veth::{self, Removal};
use weft_net::{NetError, Netlink};

/// Detaches the container.
pub fn del(args: &DelArgs) -> Result<Outcome, Error> {
    // No more of the configuration is read than this, and which plugin has the addresses: a mistake in the rest must not keep a
    // container's remains on the host.
    let state_dir = &state_dir(args.call.conf.get("stateDir"))?;
    let key = AttachmentKey::new(&args.call.network, &args.container_id, &args.ifname);
    log::info!("DEL {key}");
    let record = Record::lock_existing(state_dir, &key, args.call.deadline)?;
    let found = record.as_ref().map(Record::read).transpose()?;
    if matches!(found, Some(Found::Damaged)) {
        warn!("{key}: its record is damaged; what it has is searched for");
    }
    // Containers to come must not be allowed anything with addresses that will be another's.
    record.iter().for_each(Record::hide);
    let content = found.as_ref().and_then(Found::content);
    if let (Some(record), Some(content)) = (&record, content) {
        record.announce_leaving(content);
    }
    remove(&args.call, &key, state_dir, content)?;
    record.map_or(Ok(()), Record::remove)?;
    Ok(Outcome::Done)
}

/// Removes everything of an attachment but its record. The address is given back after link and rules are gone: before, two
/// containers could answer to it. What an attachment not recorded as attached may have is searched for.
pub fn remove(
    call: &Call,
    key: &AttachmentKey,
    state_dir: &Path,
    recorded: Option<&Content>,
) -> Result<(), Error> {
    let call = ipam::call_as_recorded(call, recorded.and_then(|content| content.ipam.as_ref()));
    let plugin = plugin(&call, recorded);
    if let Some(limited) = recorded.and_then(|content| content.limited.as_ref()) {
        let taken_off =
            Netlink::open(call.deadline).and_then(|mut host| shaping::take_off(&mut host, limited));
        taken_off.map_err(|error| failed(&format!("take the limits off {}", limited.link), error.into()))?;
    }
    let known = recorded.filter(|content| content.attached);
    let links = match known {
        Some(content) if content.shaping.is_none() => vec![key.host_veth()],
        _ => key.links(),
    };
    let link_error = |error| failed(&format!("delete {}", links.join(", ")), Fault::Net(error));
    let rules_error = |error| failed(&"remove the attachment from the ruleset", Fault::Net(error));
    let erasure = Erasure::prepare(key, known, state_dir, call.deadline).map_err(rules_error)?;
    let renamed = |host: &mut Netlink| {
        let pair = known.filter(|_| !matches!(is_chained(&call.conf), Ok(true)))?;
        veth::renamed(host, key, Path::new(&pair.netns), call.deadline)
    };
    // The IPAM plugin's process starts while the kernel removes the link, and gets its input after that.
    let company = erasure.as_ref().map(|erasure| Company::join(state_dir, erasure)).transpose();
    let removal = company
        .map_err(NetError::from)
        .and_then(|company| Removal::begin(&links, renamed, company, call.deadline))
        .map_err(link_error);
    let release =
        plugin.and_then(|plugin| plugin.map(|plugin| ipam::begin_release(plugin, &call, key)).transpose());
    let removed = removal.and_then(|mut removal| {
        removal.as_mut().map_or(Ok(()), |removal| removal.wait().map_err(link_error))?;
        // Its socket is closed before the child is let go.
        erasure.map_or(Ok(()), |erasure| erasure.carry_out(key).map_err(rules_error))?;
        let has_none = |content: &Content| content.holdings.localnet().is_none();
        if known.is_some_and(has_none) {
            return Ok(());
        }
        localnet::close(state_dir, &[key.hash()], call.deadline)
            .map_err(|fault| failed(&"close the way of 127.0.0.1 to containers", fault))
    });
    let released = match (&removed, release) {
        // Its address stays reserved as long as the container may use it.
        (Err(_), _) | (_, Ok(None)) => Ok(()),
        (Ok(()), Ok(Some(mut running))) => running.finish(&call.stdin, call.deadline).map(drop),
        (Ok(()), Err(error)) => Err(error),
    };
    match (removed, released) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(error), _) | (_, Err(error)) => {
            warn!("{key}: {}", error.msg);
            Err(error.detail("what is left will be removed by the next DEL or GC"))
        }
    }
}

/// The plugin that has the attachment's addresses. The record of one that had none says so, whatever the configuration has by now.
fn plugin<'a>(call: &'a Call, recorded: Option<&Content>) -> Result<Option<&'a str>, Error> {
    match conf::ipam(&call.conf) {
        Err(error) if recorded.is_some() => {
            warn!("{}; it is not needed", error.msg);
            Ok(None)
        }
        ipam => Ok(ipam?.map(|(plugin, _)| plugin)),
    }
}
