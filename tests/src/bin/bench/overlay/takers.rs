//! A thousand hosts that come at once and take a subnet each.

use std::time::Instant;

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::task::JoinSet;
use weft_tests::{Access, Cluster, Etcd, Weftd, take_all};

use crate::report::{Row, Target};
use crate::stats::interleave;

const RUNS: usize = 10;
const MANY: u16 = 1000;
/// Seconds that a lease lasts unless told otherwise.
const TTL: i64 = 86_400;

/// All of it, against what etcd alone takes for what each host cannot do without: a connection, a lease, and a record put
/// under it where none is. The first of each kind is for the caches of both.
pub(super) fn many_takers() -> Vec<Row> {
    let cluster = Cluster::new(0);
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
        let keys = take_all(&etcd, MANY);
        assert_eq!(keys.len(), usize::from(MANY));
    };
    let pairs = interleave(RUNS + 1, |_| measure(&all), |_| measure(&|| ask_all(&etcd)));
    let row = Row::new(
        "1,000 hosts take a subnet at once",
        "a lease and a put each, by etcd alone",
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
            let endpoints = etcd.endpoints();
            askers.spawn(async move {
                let mut client = Client::connect(endpoints, None).await.expect("reach etcd");
                let lease = client.lease_grant(TTL, None).await.expect("a lease").id();
                let (key, value) = super::record(Weftd::PREFIX, number);
                let absent = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
                let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
                let done = client.txn(Txn::new().when([absent]).and_then([put])).await.expect("put");
                assert!(done.succeeded(), "host {number} is there already");
            });
        }
        askers.join_all().await;
    });
}
