//! nerdctl, by which people run containers of containerd.

use super::engine::{Engine, Options};
use super::{Containerd, Machine, NETWORKS, PLUGINS};
use crate::tools;

/// nerdctl with a containerd for it, which runs as long as the machine.
///
/// # Panics
/// When nerdctl is not there.
pub fn nerdctl(machine: &Machine) -> Engine<'_> {
    let program = tools::peers().join("nerdctl");
    assert!(program.is_file(), "{} is missing: run hack/peers", program.display());
    Containerd::start(machine);
    let program = program.to_str().expect("a path in UTF-8");
    // Below `/opt`, as all that runtimes keep.
    let own = [program, "--data-root", "/opt/nerdctl", "--cni-path", PLUGINS, "--cni-netconfpath", NETWORKS];
    Engine::new(
        machine,
        Options { program: own.map(str::to_owned).to_vec(), run: &["--pull", "never"], remove: &[] },
    )
}
