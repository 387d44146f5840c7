//! The testbed: a host, its containers and the calls of a container runtime, all real.
//!
//! A [`Host`] is a network and a mount namespace of the calling thread, a [`Pod`] is a container's network
//! namespace, a [`Network`] is a network configuration whose plugins are called as a runtime calls them, and a
//! [`World`] is everything that a call may change, to be compared. Nothing is faked: kernel, nftables, files and
//! binaries are those of production.
//!
//! A [`Cluster`] is several hosts on one network, each a [`Node`], with a real [`Etcd`] and, if need be, [`Flanneld`].
//!
//! Every process is started from the thread that owns the [`Host`], so tests run in parallel without meeting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::print_stdout,
    reason = "a test's panic is its verdict; the bans are for the plugins, which are single-threaded and own their stdout"
)]

mod call;
mod cluster;
mod cnitool;
mod conf;
mod daemon;
mod dockerd;
mod etcd;
mod family;
mod firewalld;
mod flanneld;
pub mod frames;
mod host;
pub mod http;
mod lock;
mod mirror;
mod netns;
mod node;
mod pod;
mod random;
pub mod records;
mod relay;
pub mod runtime;
pub mod sctp;
mod strace;
mod takers;
mod tools;
mod traffic;
mod wait;
mod weftd;
mod world;

pub use call::{Call, CniError, Reply, Running, cni_path, script};
pub use cluster::Cluster;
pub use cnitool::CniTool;
pub use conf::{Network, ip, ips, masqueraded, merge};
pub use daemon::Daemon;
pub use dockerd::Dockerd;
pub use etcd::{Access, Connection, Etcd, Identity, Lease, Member, Tls};
pub use family::Family;
pub use firewalld::Firewalld;
pub use flanneld::Flanneld;
pub use host::{Host, Outside};
pub use lock::{hold, hold_shared};
pub use mirror::{Mirror, Place, answered_as, assert_way, is_answered};
pub use netns::NetNs;
pub use node::{Cable, Node};
pub use pod::Pod;
pub use random::Random;
pub use relay::Relay;
pub use strace::{Injection, Tampered};
pub use takers::{NEWCOMER, host_at, take_all};
pub use tools::{command, dist, json, peers};
pub use traffic::{assert_all_reach, transfer};
pub use wait::{addresses_settle, eventually};
pub use weftd::Weftd;
pub use world::World;
