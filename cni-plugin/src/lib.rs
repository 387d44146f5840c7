//! The interface plugin: bridge and veth for a container's network namespace.
//!
//! Start with [`attach`] for ADD and [`detach`] for DEL. [`conf`] and [`plan`] are pure; [`step`] has the
//! journal that takes a failed ADD back; [`weft_net`] has thin verbs over the kernel's interfaces.

#![expect(
    clippy::missing_errors_doc,
    reason = "every verb can fail with what the kernel refused; documented are the errors that a caller tells apart"
)]

pub mod attach;
pub mod begin;
pub mod bridge;
pub mod chained;
pub mod check;
pub mod child;
pub mod conf;
pub mod detach;
pub mod fault;
pub mod firewalls;
pub mod forwarding;
pub mod gc;
pub mod guard;
pub mod holdings;
pub mod hostport;
pub mod ipam;
pub mod isolation;
pub mod key;
pub mod localnet;
pub mod locks;
pub mod loopback;
pub mod masquerade;
pub mod overlay;
pub mod plan;
pub mod pod;
#[cfg(test)]
mod real_nft;
pub mod record;
pub mod ruleset;
pub mod shaping;
pub mod status;
pub mod step;
pub mod suspects;
pub mod tuning;
pub mod veth;

use cni_protocol::{Command, Error, Outcome};

use conf::chained::is_chained;

/// Carries out a CNI command.
pub fn handle(command: Command) -> Result<Outcome, Error> {
    match command {
        Command::Add(args) if is_chained(&args.call.conf)? => chained::add(args),
        Command::Check(args) if is_chained(&args.call.conf)? => chained::check(&args),
        Command::Status(args) if is_chained(&args.call.conf)? => chained::status(&args),
        Command::Add(args) => attach::add(args),
        Command::Del(args) => detach::del(&args),
        Command::Check(args) => check::check(&args),
        Command::Gc(args) => gc::gc(&args),
        Command::Status(args) => status::status(&args),
    }
}
