//! flannel's records, as types. So far the file by which flanneld tells a host's plugins what it leased.

mod subnet_env;

pub use subnet_env::{Leased, ParseError, SubnetEnv};
