//! flannel's records, as types: the configuration of a network, what a host writes of itself into etcd, and the file
//! by which it tells the plugins on the host.
//!
//! All of it is read from a store that others write to as well: a value of these types is checked. Text is made as
//! flannel v0.28 makes it, byte by byte, so that hosts with flanneld and hosts with Weft share one network.

mod backend;
mod config;
mod correction;
mod host;
mod subnet_env;

pub use backend::{Backend, Vni, Vxlan};
pub use config::{ConfigError, NetworkConfig, Pool, kept_by_link, overlap};
pub use correction::corrected;
pub use host::{HostRecord, RecordError, Segment, Transport, parse_key};
pub use subnet_env::{Leased, ParseError, SubnetEnv};
