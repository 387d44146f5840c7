//! A connection to etcd that is there already.

use etcd_client::Client;
use tokio::runtime::Runtime;

/// For many puts, and for those whose time matters: a process of etcdctl takes longer to start than all of that.
pub struct Connection {
    runtime: Runtime,
    client: Client,
}

impl Connection {
    /// To one or several members, from this thread's network namespace.
    pub fn to(endpoints: &[String]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
        let client = runtime.block_on(Client::connect(endpoints, None)).expect("reach etcd");
        Self { runtime, client }
    }

    /// Sets a key to a value.
    pub fn put(&self, key: &str, value: &str) {
        self.runtime.block_on(self.client.kv_client().put(key, value, None)).expect("put");
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) {
        self.runtime.block_on(self.client.kv_client().delete(key, None)).expect("delete");
    }
}
