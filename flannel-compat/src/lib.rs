//! Weft beside and in place of flannel.

pub use flannel_records::SubnetEnv;
