//! What a host writes of itself: its record and its addresses, in one transaction each.

use cni_protocol::Error;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};

use super::claim::Claim;
use super::failure::{Kind, kind};
use super::{Registry, keys_only};

/// What a host puts below `<prefix>/subnets/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its key's last part.
    pub key: &'a str,
    pub value: &'a str,
    /// The number of the lease that it ends with; 0 for one that never ends.
    pub lease: i64,
}

/// What became of an attempt to put a record.
#[derive(Debug)]
pub enum Attempt {
    Done,
    /// Somebody was faster. The keys that are taken.
    Lost(Vec<String>),
    /// An endpoint may have done it before it failed, so that the answer of the next says nothing.
    Unsure,
}

impl Registry {
    /// Puts a record under a lease, with the host's addresses, unless there is a record whose key begins with
    /// `taken_if`.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn take(
        &mut self,
        record: &Record<'_>,
        taken_if: &str,
        claim: &Claim,
    ) -> Result<Attempt, Error> {
        let free = Compare::create_revision(format!("{}{taken_if}", self.subnets()), CompareOp::Equal, 0);
        let mut puts = vec![self.put(record)];
        puts.extend(self.puts(claim, record.lease));
        puts.extend(self.deletes(&claim.former));
        self.attempt("take a subnet", free.with_prefix(), claim, puts).await
    }

    /// Puts a record in place of another one, or of itself, with the host's addresses.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn replace(
        &mut self,
        old: &Record<'_>,
        record: &Record<'_>,
        claim: &Claim,
    ) -> Result<Attempt, Error> {
        let same = Compare::value(format!("{}{}", self.subnets(), old.key), CompareOp::Equal, old.value);
        let mut puts = self.puts(claim, record.lease);
        puts.extend(self.deletes(&claim.former));
        // Every put is news to all other hosts.
        if old != record {
            puts.push(self.put(record));
        }
        if puts.is_empty() {
            return Ok(Attempt::Done);
        }
        self.attempt("write this host's record", same, claim, puts).await
    }

    fn put(&self, record: &Record<'_>) -> TxnOp {
        let options = PutOptions::new().with_lease(record.lease);
        TxnOp::put(format!("{}{}", self.subnets(), record.key), record.value, Some(options))
    }

    async fn attempt(
        &mut self,
        step: &str,
        when: Compare,
        claim: &Claim,
        puts: Vec<TxnOp>,
    ) -> Result<Attempt, Error> {
        let mut when = vec![when];
        when.extend(self.as_seen(claim));
        let used = TxnOp::get(self.subnets(), Some(keys_only()));
        let txn = Txn::new().when(when).and_then(puts).or_else([used]);
        let call = async |mut client: Client| client.txn(txn.clone()).await;
        let before = self.current;
        let answer = self.call(step, call).await?;
        if answer.succeeded() {
            return Ok(Attempt::Done);
        }
        if self.current != before {
            return Ok(Attempt::Unsure);
        }
        let used = answer.op_responses().into_iter().find_map(|part| match part {
            TxnOpResponse::Get(keys) => Some(self.revisions(&keys).into_keys().collect()),
            _ => None,
        });
        Ok(Attempt::Lost(used.unwrap_or_default()))
    }

    /// Removes a record, if its value is this one.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn remove(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let key = format!("{}{key}", self.subnets());
        let same = Compare::value(key.as_str(), CompareOp::Equal, value);
        let delete = TxnOp::delete(key.as_str(), None::<DeleteOptions>);
        let txn = Txn::new().when([same]).and_then([delete]);
        let call = async |mut client: Client| client.txn(txn.clone()).await;
        self.call("remove this host's record", call).await.map(drop)
    }

    /// Removes a record, if its value is this one, and the host's addresses, and ends the lease of both. `false`, with
    /// nothing done, when the addresses are not as they were seen any more.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn release(
        &mut self,
        key: &str,
        value: &str,
        lease: i64,
        claim: &Claim,
    ) -> Result<bool, Error> {
        let key = format!("{}{key}", self.subnets());
        let record = [
            Compare::value(key.as_str(), CompareOp::Equal, value),
            Compare::lease(key.as_str(), CompareOp::Equal, lease),
        ];
        let delete = TxnOp::delete(key, None::<DeleteOptions>);
        let mut parts = vec![TxnOp::txn(Txn::new().when(record).and_then([delete]))];
        parts.extend(self.deletes(&claim.addresses));
        let txn = Txn::new().when(self.as_seen(claim)).and_then(parts);
        let call = async |mut client: Client| client.txn(txn.clone()).await;
        if !self.call("remove this host's record", call).await?.succeeded() {
            return Ok(false);
        }
        if lease == 0 {
            return Ok(true);
        }
        self.call("end the lease", async |client: Client| end(client, lease).await).await?;
        Ok(true)
    }

    /// Ends a lease, unless a key hangs on it.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn end_if_unused(&mut self, lease: i64) -> Result<(), Error> {
        let keys = LeaseTimeToLiveOptions::new().with_keys();
        let call = async |mut client: Client| {
            let answer = client.lease_time_to_live(lease, Some(keys.clone())).await?;
            if answer.keys().is_empty() { end(client, lease).await } else { Ok(()) }
        };
        self.call("end the former lease", call).await
    }
}

async fn end(mut client: Client, lease: i64) -> Result<(), etcd_client::Error> {
    match client.lease_revoke(lease).await {
        Err(error) if kind(&error) == Kind::LeaseGone => Ok(()),
        other => other.map(drop),
    }
}
