//! What containers of all networks of the host hold in its rules, also of networks that no agent has to look after
//! otherwise: put back when it was flushed or altered.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use cni_protocol::{Deadline, Error};
use tokio::time::{MissedTickBehavior, interval};
use weft::holdings::restore::restore;

use super::kernel::{Cost, Kernel, Owned};
use super::metrics::Metrics;

/// How long it may take until a change is noticed of which the kernel does not tell.
const LOOK: Duration = Duration::from_secs(10);
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks after them for ever.
///
/// # Errors
/// The kernel gives no events.
pub(super) async fn keep(state_dir: PathBuf, metrics: Rc<Metrics>) -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    let mut timer = interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        let meter = Cost::meter();
        let suspects = kernel.take_suspects();
        match restore(&state_dir, &suspects, Deadline::after(PATIENCE)) {
            Ok(false) => said = None,
            Ok(true) => {
                log::warn!("rules of containers were flushed or altered, and are back");
                metrics.healed("", "rules", 1);
                said = None;
            }
            Err(error) if said.as_ref() == Some(&error.msg) => {}
            Err(error) => {
                log::error!("{}", error.msg);
                said = Some(error.msg);
            }
        }
        // Of links and addresses nothing is of interest here.
        kernel.watch(Owned { bridge_rules: true, ..Owned::default() }, meter());
        tokio::select! {
            changed = kernel.changed() => changed?,
            _ = timer.tick() => {}
        }
    }
}
