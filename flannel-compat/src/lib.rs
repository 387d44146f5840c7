//! Weft beside and in place of flannel.

pub mod agent;
pub mod cni;
pub mod ctl;
mod tenants;

pub use flannel_records::SubnetEnv;
