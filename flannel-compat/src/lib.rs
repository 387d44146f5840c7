//! Weft beside and in place of flannel.

pub mod agent;
pub mod cni;
pub mod ctl;

pub use flannel_records::SubnetEnv;
