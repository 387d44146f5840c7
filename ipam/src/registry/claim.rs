//! Who publishes a public address: a key per address beside flannel's, which ends with the host's lease.

use std::net::IpAddr;
use std::time::Duration;

use cni_protocol::Error;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};

use super::failure::{Kind, kind};
use super::{Registry, text};

/// What stands at an address's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub value: String,
    pub revision: i64,
    /// The number of the lease that it ends with.
    pub lease: i64,
}

/// The time of a lease by etcd's clock, which tells it in whole seconds.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// How long it lasts after it was renewed.
    pub granted: Duration,
    /// How long ago that was. A new leader of etcd starts all leases anew.
    pub silence: Duration,
}

/// The addresses that a host wants for itself, each with what was seen at its key: whoever is faster makes it fail.
#[derive(Debug)]
pub struct Claim {
    pub addresses: Vec<(IpAddr, Option<Held>)>,
    /// What is to stand there.
    pub value: String,
    /// The number of the lease that it ends with there: what never ends would outlive its host.
    pub lease: i64,
    /// Addresses that the host had before: nothing is to stand there any more.
    pub former: Vec<(IpAddr, Option<Held>)>,
}

impl Registry {
    /// What stands at the keys of public addresses.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn holders(&mut self, addresses: &[IpAddr]) -> Result<Vec<(IpAddr, Option<Held>)>, Error> {
        let txn = Txn::new().and_then(self.reads(addresses));
        let call = async |client: &mut Client| client.txn(txn.clone()).await;
        let answer = self.call("read who has this host's address", call).await?;
        Ok(held(addresses, answer.op_responses()))
    }

    pub(super) fn reads(&self, addresses: &[IpAddr]) -> Vec<TxnOp> {
        addresses.iter().map(|address| TxnOp::get(self.address_key(*address), None::<GetOptions>)).collect()
    }

    /// A lease's time; `None` when it has ended.
    ///
    /// # Errors
    /// [`cni_protocol::Code::TryAgain`].
    pub async fn term(&mut self, lease: i64) -> Result<Option<Term>, Error> {
        let call = async |client: &mut Client| match client
            .lease_time_to_live(lease, None::<LeaseTimeToLiveOptions>)
            .await
        {
            Err(error) if kind(&error) == Kind::LeaseGone => Ok(None),
            other => other.map(Some),
        };
        let answer = self.call("read the age of a lease", call).await?;
        // A lease that has ended has -1 seconds left.
        let seconds = |count: i64| Duration::from_secs(u64::try_from(count).unwrap_or_default());
        Ok(answer.filter(|answer| answer.ttl() >= 0).map(|answer| Term {
            granted: seconds(answer.granted_ttl()),
            silence: seconds(answer.granted_ttl() - answer.ttl()),
        }))
    }

    pub(super) fn as_seen(&self, claim: &Claim) -> Vec<Compare> {
        let compare = |(address, held): &(IpAddr, Option<Held>)| {
            // A key that is not there has revision 0.
            let revision = held.as_ref().map_or(0, |held| held.revision);
            Compare::mod_revision(self.address_key(*address), CompareOp::Equal, revision)
        };
        claim.addresses.iter().chain(&claim.former).map(compare).collect()
    }

    /// What makes the addresses the host's: nothing where they are already.
    pub(super) fn puts(&self, claim: &Claim) -> Vec<TxnOp> {
        let is_there = |held: &Held| held.value == claim.value && held.lease == claim.lease;
        let missing = claim.addresses.iter().filter(|(_, held)| !held.as_ref().is_some_and(is_there));
        let put = |(address, _): &(IpAddr, Option<Held>)| {
            let options = PutOptions::new().with_lease(claim.lease);
            TxnOp::put(self.address_key(*address), claim.value.as_str(), Some(options))
        };
        missing.map(put).collect()
    }

    pub(super) fn deletes(&self, addresses: &[(IpAddr, Option<Held>)]) -> impl Iterator<Item = TxnOp> {
        addresses.iter().map(|(address, _)| TxnOp::delete(self.address_key(*address), None::<DeleteOptions>))
    }

    pub(super) fn address_key(&self, address: IpAddr) -> String {
        address_key(&self.prefix, address)
    }

    /// Where the addresses' keys are.
    pub(super) fn hosts_key(&self) -> String {
        format!("{}{HOSTS}", self.prefix)
    }
}

/// What was read of addresses, in their order.
pub(super) fn held(
    addresses: &[IpAddr],
    parts: impl IntoIterator<Item = TxnOpResponse>,
) -> Vec<(IpAddr, Option<Held>)> {
    let held = |part: TxnOpResponse| match part {
        TxnOpResponse::Get(answer) => answer.kvs().first().map(|kv| Held {
            value: text(kv),
            revision: kv.mod_revision(),
            lease: kv.lease(),
        }),
        _ => None,
    };
    addresses.iter().copied().zip(parts.into_iter().map(held)).collect()
}

/// Outside of flannel's directory: flanneld takes every key in there for a host.
const HOSTS: &str = "/weft/hosts/";

pub(crate) fn address_key(prefix: &str, address: IpAddr) -> String {
    format!("{prefix}{HOSTS}{address}")
}
