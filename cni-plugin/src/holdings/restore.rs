//! The agent's part: how what attachments hold is put back.

use std::path::Path;

use cni_protocol::{Deadline, Error};
use weft_net::NetError;
use weft_net::nft::{ATTEMPTS, Nft};

use crate::fault::failed;
use crate::record;
use crate::ruleset::{self, Elements};

/// Puts back what attachments hold in rules that were flushed or altered; whether there was anything to put back. For
/// whoever looks after the host while no container comes.
///
/// # Errors
/// [`Code::Kernel`].
pub fn restore(state_dir: &Path, deadline: Deadline) -> Result<bool, Error> {
    let refused = |error: NetError| failed(&"put back what containers hold in the ruleset", error.into());
    let mut nft = Nft::open(deadline).map_err(refused)?;
    let mended = ruleset::mend(&mut nft).map_err(refused)?;
    if ruleset::is_whole(&mut nft).map_err(refused)? {
        return Ok(mended);
    }
    // Their locks are held until their elements are back: no DEL can come in between.
    let attached = record::attached(state_dir);
    let held: Vec<Elements> = attached.iter().map(|(key, holdings, _lock)| holdings.elements(key)).collect();
    let mut all = Elements::default();
    held.iter().cloned().for_each(|elements| all.extend(elements));
    let mut lost = false;
    for _ in 0..ATTEMPTS {
        // Once more, until nothing is missing: what was back may have been flushed while the rest was put back.
        let mut missing = false;
        ruleset::ensure(&mut nft, &all, &mut Vec::new(), &mut || {
            missing = true;
            held.clone()
        })
        .map_err(refused)?;
        if !missing {
            break;
        }
        lost = true;
    }
    Ok(lost || mended)
}
