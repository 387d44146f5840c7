//! flannel's records, as types. So far the file by which flanneld tells a host's plugins what it leased.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod subnet_env;

pub use subnet_env::{Leased, ParseError, SubnetEnv};
