//! What a host writes of itself: its record and its addresses, in one transaction each.

use std::collections::BTreeSet;

use cni_protocol::Error;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};

use super::claim::Claim;
use super::failure::{Kind, kind};
use super::{Registry, text};

/// What a host puts below `<prefix>/subnets/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its key's last part.
    pub key: &'a str,
    pub value: &'a str,
    /// The number of the lease that it ends with; 0 for one that never ends.
    pub lease: i64,
}

/// A record that a host would like to put.
#[derive(Debug)]
pub struct Candidate<'a> {
    pub record: Record<'a>,
    /// There must be no record whose key begins with this.
    pub taken_if: &'a str,
    pub claim: Claim,
}

/// What became of an attempt to put a record.
#[derive(Debug)]
pub enum Attempt {
    /// Which of the candidates is there now, counted from 0.
    Done(usize),
    /// Somebody was faster. The keys that are taken.
    Lost(Vec<String>),
    /// An endpoint may have done it before it failed, so that the answer of the next says nothing.
    Unsure,
}

/// What became of an attempt to remove a record.
#[derive(Debug)]
pub enum Removal {
    /// No record is left at the key.
    Done,
    /// What stands there is not the host's, and stays; its value.
    Other(String),
    /// Nothing was done: the addresses are not as they were seen any more.
    Again,
}

impl Registry {
    /// Puts the first of these records that nobody is in the way of, under its lease, with the host's addresses. One transaction
    /// does it all: of many hosts that come at once hardly one has to ask again.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn take(&mut self, candidates: &[Candidate<'_>]) -> Result<Attempt, Error> {
        let attempt = |Candidate { record, taken_if, claim }: &Candidate<'_>| {
            let free = Compare::create_revision(format!("{}{taken_if}", self.subnets()), CompareOp::Equal, 0);
            let mut puts = vec![self.put(record)];
            puts.extend(self.puts(claim));
            puts.extend(self.deletes(&claim.former));
            self.attempt(free.with_prefix(), claim, puts)
        };
        let attempts = candidates.iter().map(attempt).collect();
        self.first_of("take a subnet", attempts).await
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
        let mut puts = self.puts(claim);
        puts.extend(self.deletes(&claim.former));
        // Every put is news to all other hosts.
        if old != record {
            puts.push(self.put(record));
        }
        if puts.is_empty() {
            return Ok(Attempt::Done(0));
        }
        let attempt = self.attempt(same, claim, puts);
        self.first_of("write this host's record", vec![attempt]).await
    }

    /// Sees that this host may put what it would, and that etcd has space. etcd looks at both first, and then at the condition, which
    /// never holds.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`]; [`cni_protocol::Code::InvalidConfig`] when etcd's user may not.
    pub async fn rehearse(&mut self) -> Result<(), Error> {
        let keys = [self.subnets(), self.hosts_key()];
        // No revision is below 0.
        let never = Compare::create_revision(keys[0].as_str(), CompareOp::Less, 0);
        let txn = Txn::new().when([never]).and_then(keys.map(|key| TxnOp::put(key, "", None)));
        let call = async |client: &mut Client| client.txn(txn.clone()).await;
        self.call("take a subnet", call).await.map(drop)
    }

    fn put(&self, record: &Record<'_>) -> TxnOp {
        let options = PutOptions::new().with_lease(record.lease);
        TxnOp::put(format!("{}{}", self.subnets(), record.key), record.value, Some(options))
    }

    /// Puts something under a condition, unless the host's addresses are others' by now.
    fn attempt(&self, when: Compare, claim: &Claim, puts: Vec<TxnOp>) -> Txn {
        let mut all = vec![when];
        all.extend(self.as_seen(claim));
        Txn::new().when(all).and_then(puts)
    }

    /// Does the first of these that can be done: each is nested in the one before it. The first is not nested itself, as etcd 3.4
    /// lets a user put by a nested transaction what that user may only read.
    async fn first_of(&mut self, step: &str, attempts: Vec<Txn>) -> Result<Attempt, Error> {
        let count = attempts.len();
        let keys = GetOptions::new().with_prefix().with_keys_only();
        let used = Txn::new().and_then([TxnOp::get(self.subnets(), Some(keys))]);
        let nest = |otherwise, attempt: Txn| attempt.or_else([TxnOp::txn(otherwise)]);
        let txn = attempts.into_iter().rfold(used, nest);
        let before = self.current;
        let mut answer = self.call(step, async |client: &mut Client| client.txn(txn.clone()).await).await?;
        for number in 0..count {
            if answer.succeeded() {
                return Ok(Attempt::Done(number));
            }
            let Some(TxnOpResponse::Txn(otherwise)) = answer.op_responses().pop() else { break };
            answer = otherwise;
        }
        if self.current != before {
            return Ok(Attempt::Unsure);
        }
        let Some(TxnOpResponse::Get(used)) = answer.op_responses().pop() else {
            return Ok(Attempt::Lost(Vec::new()));
        };
        Ok(Attempt::Lost(used.kvs().iter().filter_map(|kv| self.own_part(kv.key())).collect()))
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
        let call = async |client: &mut Client| client.txn(txn.clone()).await;
        self.call("remove this host's record", call).await.map(drop)
    }

    /// Removes a record, if it hangs on one of the host's leases or, where somebody has pinned it, has this value, and the claim's
    /// addresses, and ends the leases.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn release(
        &mut self,
        (key, value): (&str, &str),
        leases: &BTreeSet<i64>,
        claim: &Claim,
    ) -> Result<Removal, Error> {
        let key = format!("{}{key}", self.subnets());
        let hangs_on = |lease| Compare::lease(key.as_str(), CompareOp::Equal, lease);
        let delete = |when: Vec<Compare>, otherwise: TxnOp| {
            let delete = TxnOp::delete(key.as_str(), None::<DeleteOptions>);
            TxnOp::txn(Txn::new().when(when).and_then([delete]).or_else([otherwise]))
        };
        let same = Compare::value(key.as_str(), CompareOp::Equal, value);
        let pinned = delete(vec![hangs_on(0), same], TxnOp::get(key.as_str(), None));
        let removal =
            leases.iter().fold(pinned, |otherwise, lease| delete(vec![hangs_on(*lease)], otherwise));
        let mut parts = vec![removal];
        parts.extend(self.deletes(&claim.addresses));
        let txn = Txn::new().when(self.as_seen(claim)).and_then(parts);
        let call = async |client: &mut Client| client.txn(txn.clone()).await;
        let answer = self.call("remove this host's record", call).await?;
        if !answer.succeeded() {
            return Ok(Removal::Again);
        }
        for lease in leases {
            self.call("end the lease", async |client: &mut Client| end(client, *lease).await).await?;
        }
        Ok(answer.op_responses().first().and_then(left).map_or(Removal::Done, Removal::Other))
    }

    /// Ends a lease, unless a key hangs on it.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn end_if_unused(&mut self, lease: i64) -> Result<(), Error> {
        let keys = LeaseTimeToLiveOptions::new().with_keys();
        let call = async |client: &mut Client| {
            let answer = client.lease_time_to_live(lease, Some(keys.clone())).await?;
            if answer.keys().is_empty() { end(client, lease).await } else { Ok(()) }
        };
        self.call("end the former lease", call).await
    }
}

/// The value of a record that was not removed, by what came of it.
fn left(outcome: &TxnOpResponse) -> Option<String> {
    match outcome {
        TxnOpResponse::Txn(removal) if !removal.succeeded() => removal.op_responses().first().and_then(left),
        TxnOpResponse::Get(there) => there.kvs().first().map(text),
        _ => None,
    }
}

async fn end(client: &mut Client, lease: i64) -> Result<(), etcd_client::Error> {
    match client.lease_revoke(lease).await {
        Err(error) if kind(&error) == Kind::LeaseGone => Ok(()),
        other => other.map(drop),
    }
}
