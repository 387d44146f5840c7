//! The binary of the CNI type `loopback`.

use std::process::ExitCode;

use cni_protocol::Plugin;
use dlmalloc::GlobalDlmalloc;

/// As in the plugin `weft`.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    cni_protocol::run(&Plugin {
        name: "loopback",
        version: env!("CARGO_PKG_VERSION"),
        about: "CNI plugin: sets lo up in a container's network namespace",
        handler: weft::loopback::handle,
    })
}
