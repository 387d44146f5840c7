//! The binary `flannel`.

use std::process::ExitCode;

use cni_protocol::Plugin;
use dlmalloc::GlobalDlmalloc;

/// musl's allocator maps and unmaps memory for every few kilobytes.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    // First of all: what is made from now on, GC must not take for garbage.
    weft_state::started();
    cni_protocol::run(&Plugin {
        name: "flannel",
        version: env!("CARGO_PKG_VERSION"),
        about: "CNI plugin of type flannel: attaches containers to the subnet that flanneld or weftd leased",
        handler: weft_flannel::cni::handle,
    })
}
