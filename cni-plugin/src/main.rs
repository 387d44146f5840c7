//! The plugin's binary.

use std::process::ExitCode;

use cni_protocol::Plugin;
use dlmalloc::GlobalDlmalloc;

/// For a process of a millisecond: musl's allocator returns memory to the kernel as soon as it is free.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    // First of all: what is made from now on, GC must not take for garbage.
    weft_state::started();
    cni_protocol::run(&Plugin {
        name: "weft",
        version: env!("CARGO_PKG_VERSION"),
        about: "CNI interface plugin: bridge and veth for a container's network namespace",
        handler: weft::handle,
    })
}
