//! Whether the host's rules have what an attachment holds in them.

use std::path::Path;

use cni_protocol::Deadline;
use weft_net::nft::Nft;
use weft_net::sysctl::Sysctl;
use weft_state::lease::agent_lives;

use crate::fault::Fault;
use crate::holdings::Holdings;
use crate::key::AttachmentKey;
use crate::record;
use crate::ruleset;

/// What is different from what an attachment holds in the host's rules.
pub fn rules(
    state_dir: &Path,
    key: &AttachmentKey,
    holdings: &mut Holdings,
    deadline: Deadline,
) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    if holdings.elements(key).is_empty() {
        return Ok(found);
    }
    let mut nft = Nft::open(deadline)?;
    while let Err(difference) = ruleset::check(&mut nft, &holdings.elements(key)) {
        if !have_others_left(state_dir, key, holdings)? {
            // It has had the time to put that back, if it is a difference to it.
            let remedy = if agent_lives(state_dir, &key.network).unwrap_or(false) {
                "; restart weftd, which may be of another version, or else"
            } else {
                ""
            };
            found.push(format!("ruleset: {difference}{remedy}"));
            break;
        }
    }
    if let Some(interface) = holdings.localnet() {
        let key = Sysctl::route_localnet(interface);
        let value = key.get()?;
        if value.as_deref() != Some("1") {
            found.push(format!("{key} is {value:?} instead of 1"));
        }
    }
    Ok(found)
}

/// Whether others have left since a look at what the attachment holds with them: that is less now.
fn have_others_left(state_dir: &Path, key: &AttachmentKey, holdings: &mut Holdings) -> Result<bool, Fault> {
    let now = record::up_to_date(state_dir, key)?.and_then(|content| content.holdings.isolation);
    let (Some(before), Some(now)) = (&mut holdings.isolation, now) else { return Ok(false) };
    let is_less = now.grants.len() < before.grants.len();
    before.grants = now.grants;
    Ok(is_less)
}
