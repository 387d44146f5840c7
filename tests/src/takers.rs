//! Many hosts at once, which are no machines: what takes their subnets is the code of plugin and agent.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::task::{JoinSet, LocalSet};
use weft_ipam::conf::etcd::EtcdConf;
use weft_ipam::lease::{Claimant, Lease, acquire};
use weft_ipam::registry::Registry;

use crate::etcd::Etcd;
use crate::weftd::Weftd;

/// A host that knows of no subnet.
pub const NEWCOMER: Claimant<'static> = Claimant::by_plugin(None, true, &[]);

/// A host that is only an address, in the network at [`Weftd::PREFIX`].
pub fn host_at(etcd: &Etcd, number: u16) -> EtcdConf {
    let [high, low] = number.to_be_bytes();
    let ipam = json!({
        "etcd": { "endpoints": etcd.endpoints(), "prefix": Weftd::PREFIX, "timeout": 20 },
        "publicIP": Ipv4Addr::new(198, 18, high, low),
        "publicIPv6": format!("2001:db8::{number:x}"),
        // The router of a cluster has it.
        "iface": "wire0",
    });
    EtcdConf::parse(ipam.as_object().expect("an object")).expect("valid").expect("with etcd")
}

/// So many hosts take a subnet each, all at once, each by a connection of its own. Returns their keys.
pub fn take_all(etcd: &Etcd, hosts: u16) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    LocalSet::new().block_on(&runtime, async {
        let mut takers = JoinSet::new();
        for number in 1..=hosts {
            let conf = host_at(etcd, number);
            takers.spawn_local(async move {
                let mut registry = Registry::new(&conf).expect("a registry");
                for _ in 0..5 {
                    match acquire(&mut registry, &conf, NEWCOMER).await {
                        Ok(Lease::Held(lease)) => return lease.key,
                        // All in one event loop: on a busy machine some are kept waiting for longer than etcd may be silent.
                        Err(error) if error.msg.contains("gave no answer") => {}
                        other => panic!("{other:?}"),
                    }
                }
                panic!("etcd gave host {number} no answer five times")
            });
        }
        takers.join_all().await
    })
}
