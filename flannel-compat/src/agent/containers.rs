//! Puts back what containers of all networks of the host are attached by and hold in its rules, when it was deleted, flushed or
//! altered. That includes networks that no agent has to look after otherwise.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cni_protocol::{Deadline, Error};
use weft::{bridge, holdings};

use super::kernel::{Cost, Kernel, Owned, Suspicion};
use super::metrics::Metrics;
use super::{LOOK, PATIENCE, every};

/// Looks after them for ever.
///
/// # Errors
/// The kernel gives no events.
pub(super) async fn keep(state_dir: PathBuf, metrics: Rc<Metrics>) -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    let mut timer = every(LOOK);
    let mut said = BTreeSet::new();
    let mut owned = Owned { containers: true, ..Owned::default() };
    loop {
        let meter = Cost::meter();
        let suspicion = kernel.take_suspicion();
        // Before: whoever ends meanwhile is looked at, and whoever begins causes events of its own.
        let mut again = suspicion.busy(&state_dir);
        // In this order: no port is back before what keeps its container in bounds.
        let rules = look_at_rules(&state_dir, &suspicion, &metrics);
        let ports = look_at_ports(&state_dir, &suspicion, &metrics, &mut owned);
        let trouble: BTreeSet<String> = rules.err().into_iter().chain(ports).map(|error| error.msg).collect();
        if !trouble.is_empty() {
            again = Suspicion::of_all();
        }
        kernel.come_back_to(again);
        trouble.difference(&said).for_each(|new| log::error!("{new}"));
        said = trouble;
        kernel.watch(owned.clone(), meter());
        tokio::select! {
            changed = kernel.changed() => changed?,
            _ = timer.tick() => {}
        }
    }
}

fn look_at_ports(
    state_dir: &Path,
    suspicion: &Suspicion,
    metrics: &Metrics,
    owned: &mut Owned,
) -> Vec<Error> {
    let restored = bridge::restore::restore(state_dir, &suspicion.ports, Deadline::after(PATIENCE));
    for (object, count) in [("bridge", restored.bridges), ("port", restored.ports)] {
        if count > 0 {
            log::warn!("what containers are attached by was altered: repaired {count} of kind {object}");
            metrics.healed("", object, count);
        }
    }
    owned.names.extend(restored.names);
    owned.bridges.extend(restored.indices);
    restored.trouble
}

fn look_at_rules(state_dir: &Path, suspicion: &Suspicion, metrics: &Metrics) -> Result<(), Error> {
    if holdings::restore::restore(state_dir, &suspicion.elements, Deadline::after(PATIENCE))? {
        log::warn!("rules of containers were flushed or altered, and are back");
        metrics.healed("", "rules", 1);
    }
    Ok(())
}
