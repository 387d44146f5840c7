//! The binary `weft-ipam`.

use std::process::ExitCode;

use cni_protocol::Plugin;
use dlmalloc::GlobalDlmalloc;

/// For a process of a millisecond: musl's allocator returns memory to the kernel as soon as it is free.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    // First of all: GC keeps what was reserved after this moment.
    weft_state::started();
    cni_protocol::run(&Plugin {
        name: "weft-ipam",
        version: env!("CARGO_PKG_VERSION"),
        about: "CNI IPAM plugin: gives addresses of local ranges; called by an interface plugin such as weft or bridge",
        handler: weft_ipam::handle,
    })
}
