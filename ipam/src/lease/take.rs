//! A subnet is taken from etcd, among others who do the same.

use cni_protocol::{Code, Error};
use ipnetwork::IpNetwork;
use weft_state::lease::HostLease;

use super::{ATTEMPTS, Lease, Search, elder};
use crate::registry::{Attempt, Candidate, Record, Registry, Snapshot};

/// What became of an attempt at certain subnets.
pub(super) enum Take {
    Held(HostLease),
    /// Somebody was faster; the keys that are taken.
    Lost(Vec<String>),
    /// Others changed something meanwhile: everything is to be looked at again.
    Again,
}

impl Search<'_> {
    /// Takes a free one, at random: the loser of a race learns what is taken and tries again at once.
    pub(super) async fn take_any(
        &self,
        registry: &mut Registry,
        snapshot: &Snapshot,
    ) -> Result<Option<Lease>, Error> {
        let records = &snapshot.hosts.records;
        let mut keys: Vec<String> = records.keys().cloned().collect();
        for _ in 0..ATTEMPTS {
            let choices = self.free(&keys, records)?;
            match self.take(registry, &choices).await? {
                Take::Held(lease) => return Ok(Some(Lease::Held(lease))),
                Take::Lost(taken) => keys = taken,
                Take::Again => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Puts a record for the first of these choices, which looked free, that still is. An endpoint that puts one and fails before it
    /// says so does not make the next one put another: the host's addresses are not as they were seen then. They are where this very
    /// claim was there already; but that names the subnet of the lease on file, which is a choice alone ([`super::Place::Before`]).
    pub(super) async fn take(
        &self,
        registry: &mut Registry,
        choices: &[Vec<IpNetwork>],
    ) -> Result<Take, Error> {
        let lease = self.lease_id();
        let record =
            |subnets: &Vec<IpNetwork>| self.record(subnets).map(|record| (record.key(), record.value()));
        let records: Vec<(String, String)> = choices.iter().map(record).collect::<Result<_, Error>>()?;
        let candidates = records.iter().zip(choices).map(|((key, value), subnets)| Candidate {
            record: Record { key, value, lease },
            // A key begins with its IPv4 subnet, if it has one: no other key may, whatever follows in it.
            taken_if: if subnets[0].is_ipv4() { key.split('&').next().unwrap_or(key) } else { key },
            claim: self.claim(key, lease),
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        registry.lease(lease, self.conf.ttl).await?;
        let attempt = registry.take(&candidates).await;
        let attempt = Self::or_end(registry, lease, attempt).await?;
        let is_taken =
            |one: &Candidate<'_>, keys: &[String]| keys.iter().any(|key| key.starts_with(one.taken_if));
        match attempt {
            Attempt::Done(number) => {
                let record = candidates[number].record;
                if !Self::is_alone(registry, record.key).await? {
                    registry.remove(record.key, record.value).await?;
                    return Ok(Take::Again);
                }
                self.end_former(registry, 0, lease).await;
                Ok(Take::Held(self.held(&record, lease)))
            }
            Attempt::Lost(keys) if candidates.iter().all(|one| is_taken(one, &keys)) => Ok(Take::Lost(keys)),
            // Not the subnet, but the address: another host came to it.
            Attempt::Lost(_) | Attempt::Unsure => Ok(Take::Again),
        }
    }

    /// An attempt under a lease, which is ended where etcd's user may not put what is to hang on it.
    pub(super) async fn or_end(
        registry: &mut Registry,
        lease: i64,
        attempt: Result<Attempt, Error>,
    ) -> Result<Attempt, Error> {
        if attempt.as_ref().is_err_and(|error| error.code == Code::InvalidConfig)
            && let Err(error) = registry.end_if_unused(lease).await
        {
            log::warn!("{}: the lease of a record that may not be put is left to its end", error.msg);
        }
        attempt
    }

    /// Whether no other host was there before with one of the key's subnets. In a network of IPv4 alone the record was put only
    /// where none was.
    async fn is_alone(registry: &mut Registry, key: &str) -> Result<bool, Error> {
        let own = flannel_records::parse_key(key).unwrap_or_default();
        Ok(own.iter().all(IpNetwork::is_ipv4) || elder(&registry.hosts().await?, key).is_none())
    }
}
