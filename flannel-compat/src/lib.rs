//! Weft beside and in place of flannel.

pub mod agent;

pub use flannel_records::SubnetEnv;
