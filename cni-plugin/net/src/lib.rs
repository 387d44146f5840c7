//! Thin verbs over the kernel's interfaces: links, addresses, routes, nftables, sysctls, network namespaces.
//!
//! Everything is synchronous: a plugin's process lives for about a millisecond and forks in DEL, so an
//! event loop would cost more than it gives. The messages are built with rtnetlink's builders and
//! netlink-packet-netfilter; only sending and receiving is done here ([`socket`]).

#![expect(
    clippy::missing_errors_doc,
    reason = "every verb can fail with what the kernel refused; documented are the errors that a caller tells apart"
)]

mod addr;
mod attribute;
pub mod conntrack;
mod error;
pub mod events;
mod family;
pub mod foreign;
mod link;
mod neigh;
mod netconf;
pub mod netns;
pub mod nft;
mod route;
mod socket;
pub mod sysctl;
mod tc;
mod vxlan;

pub use addr::{Detection, Lasting, WholeAddress};
pub use error::{NetError, NlResult};
pub use family::Family;
pub use link::{BridgePort, Link, NewVeth, index_of, is_bridge_full};
pub use neigh::{Detour, Entry};
pub use route::{KernelRoute, ROUTE_PROTOCOL, RT_TABLE_MAIN, Way, default_priority};
pub use socket::{Netlink, Socket};
pub use tc::{Filter, FoundBucket, Hook, TokenBucket};
pub use vxlan::Vxlan;
