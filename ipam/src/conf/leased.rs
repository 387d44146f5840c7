//! The addresses of a network that spans hosts: those of the subnet that this host has leased.

use cni_protocol::{Code, Error, Route};
use flannel_records::{HostRecord, NetworkConfig};
use ipnetwork::IpNetwork;
use weft_state::lease::HostLease;

use super::{RawIpam, RawRange, invalid, wrong_range};
use crate::pool::{Misplaced, Pools};
use crate::range::{Range, RangeSpec};

/// What a host has leased of a network that spans hosts.
#[derive(Debug, Clone)]
pub struct Leased {
    /// One of each family.
    pub subnets: Vec<IpNetwork>,
    /// All hosts' addresses.
    pub networks: Vec<IpNetwork>,
}

impl Leased {
    /// What is on file of it.
    ///
    /// # Errors
    /// [`Code::Decode`] when it cannot be read.
    pub fn of(lease: &HostLease) -> Result<Self, Error> {
        let broken = |cause: String| {
            Error::new(
                Code::Decode,
                format!("read this host's lease: {cause}: remove lease.json below dataDir"),
            )
        };
        let config = NetworkConfig::parse(&lease.config).map_err(|error| broken(error.to_string()))?;
        let record =
            HostRecord::parse(&lease.key, &lease.value).map_err(|error| broken(error.to_string()))?;
        Ok(Self {
            subnets: record.segments().iter().map(|segment| segment.subnet).collect(),
            networks: config.pools().iter().map(flannel_records::Pool::network).collect(),
        })
    }

    /// A set for each subnet; its first address is the gateway.
    pub(super) fn pools(
        &self,
        ipam: &RawIpam,
        runtime: &[Vec<RawRange>],
        exclude: Vec<IpNetwork>,
    ) -> Result<Pools, Error> {
        let given = [
            ("ipam.subnet, rangeStart, rangeEnd or gateway", ipam.single_range().is_some()),
            ("ipam.ranges", ipam.ranges.as_ref().is_some_and(|ranges| !ranges.is_empty())),
            ("runtimeConfig.ipRanges", !runtime.is_empty()),
        ];
        if let Some((path, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(invalid(
                path,
                "is given",
                "beside ipam.etcd, which leases this host's subnet; keep one of them",
            ));
        }
        let set = |subnet: &IpNetwork| {
            let spec = RangeSpec { subnet: *subnet, start: None, end: None, gateway: None };
            Range::new(&spec).map(|range| vec![range]).map_err(|wrong| wrong_range("leased subnet", &wrong))
        };
        let sets = self.subnets.iter().map(set).collect::<Result<Vec<_>, Error>>()?;
        Pools::new(&sets, exclude).map_err(|Misplaced { invalid, .. }| wrong_range("leased subnet", &invalid))
    }
}

/// The configured routes, and those to all hosts' containers, as flannel gives them.
pub(super) fn all_routes(mut routes: Vec<Route>, leased: Option<&Leased>) -> Vec<Route> {
    for network in leased.iter().flat_map(|leased| &leased.networks) {
        if !routes.iter().any(|route| route.dst == *network) {
            routes.push(Route::to(*network));
        }
    }
    routes
}
