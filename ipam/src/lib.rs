//! The IPAM plugin `weft-ipam`: gives each attachment one address of every configured range set.
//!
//! [`conf`] turns the configuration into checked [`pool::Pools`], which say what may be given and in
//! which order; [`store::Store`] remembers what was given; [`handle`] does the commands.
//!
//! Source: <https://www.cni.dev/docs/spec/#section-4-plugin-delegation> for what an IPAM plugin is,
//! <https://www.cni.dev/plugins/current/ipam/host-local/> for the keys it shares with host-local.

mod commands;
pub mod conf;
mod dns;
mod full;
mod gc;
mod host;
pub mod lease;
pub mod pool;
pub mod range;
mod record;
pub mod registry;
mod reservation;
pub mod sticky;
pub mod store;
pub mod underlay;

pub use commands::handle;
pub use record::Owner;
