//! A thousand hosts that come at once and take a subnet each.

use std::collections::BTreeSet;
use std::time::Instant;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tokio::task::JoinSet;
use weft_tests::{Access, Cluster, Etcd, Weftd, take_all};

use crate::report::{Row, Target};
use crate::stats::interleave;

const RUNS: usize = 10;
const MANY: u16 = 1000;
/// Seconds that a lease lasts unless told otherwise.
const TTL: i64 = 86_400;

/// All of it, against the time that is etcd's own: a bare client that makes the same requests with the same answers, by a
/// connection per host, and thinks nothing of them. The first of each kind is for the caches of both.
pub(super) fn many_takers() -> Vec<Row> {
    let cluster = Cluster::new(0);
    // Each run leaves its connections for a minute, and among so many ports in use the kernel would search for ever longer.
    cluster.router().set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let etcd = cluster.etcd(1, Access::Open);
    let measure = |work: &dyn Fn()| {
        etcd.restart_empty();
        etcd.put(
            &format!("{}/config", Weftd::PREFIX),
            r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#,
        );
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    let all = || {
        let keys: BTreeSet<String> = take_all(&etcd, MANY).into_iter().collect();
        assert_eq!(keys.len(), usize::from(MANY), "each has a subnet of its own");
    };
    let pairs = interleave(RUNS + 1, |_| measure(&all), |_| measure(&|| ask_all(&etcd)));
    let row = Row::new(
        "1,000 hosts take a subnet at once",
        "etcd alone: the same requests",
        "ms",
        Target::More(500.0),
        &pairs[1..],
    );
    vec![row]
}

fn ask_all(etcd: &Etcd) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    runtime.block_on(async {
        let mut askers = JoinSet::new();
        for number in 0..MANY {
            // With all of its addresses it would connect to each, and a host talks with one.
            let endpoint = etcd.endpoints().swap_remove(0);
            askers.spawn(async move {
                let client = Client::connect([endpoint], None).await.expect("reach etcd");
                ask(client, number).await;
            });
        }
        askers.join_all().await;
    });
}

/// Reads the network, has a lease, and puts what a host puts under it, where nothing is.
async fn ask(mut client: Client, number: u16) {
    let (prefix, (key, value)) = (Weftd::PREFIX, super::record(Weftd::PREFIX, number));
    let address = format!("{prefix}/weft/hosts/{number}");
    let all = Some(GetOptions::new().with_prefix());
    let reads = [
        TxnOp::get(format!("{prefix}/config"), None),
        TxnOp::get(format!("{prefix}/subnets/"), all),
        TxnOp::get(address.as_str(), None),
    ];
    client.txn(Txn::new().and_then(reads)).await.expect("read the network");
    let lease = client.lease_grant(TTL, None).await.expect("a lease").id();
    let absent = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
    let when = [absent(&key).with_prefix(), absent(&address)];
    let put = |key: &str| TxnOp::put(key, value.as_str(), Some(PutOptions::new().with_lease(lease)));
    let puts = [put(&key), put(&address)];
    let done = client.txn(Txn::new().when(when).and_then(puts)).await.expect("put");
    assert!(done.succeeded(), "host {number} is there already");
}
