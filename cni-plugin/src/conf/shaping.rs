//! Shaping: the capability `bandwidth`, and the keys of the reference bandwidth plugin.

use cni_protocol::{Code, Error};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{invalid, keys, prefixes};
use crate::key::Direction;

/// The plugin's keys, which stand in `runtimeConfig.bandwidth` too.
const KEYS: &[&str] =
    &["egressBurst", "egressRate", "ingressBurst", "ingressRate", "shapedSubnets", "unshapedSubnets"];

/// The least and the most that Kubernetes allows, in bits per second.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// What runtimes write as burst when they were told a rate only (2^31 - 1, 2^32 - 1 or more, in bits), which would let half
/// a gigabyte through before a limit is felt.
const NO_BURST: u64 = 2_147_483_647;
/// The reference plugin takes less than this, in bits: 4 GiB.
const BURST_MAX: u64 = 8 * 4_294_967_295;

/// A limit on one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits that may pass at once after a silence; `None` leaves it to Weft.
    pub burst: Option<u64>,
}

/// With whom traffic counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subnets {
    #[default]
    All,
    Only(Vec<IpNetwork>),
    Except(Vec<IpNetwork>),
}

/// How a container's traffic is limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shaping {
    pub ingress: Option<Limit>,
    pub egress: Option<Limit>,
    pub subnets: Subnets,
}

impl Shaping {
    /// What the network's configuration says.
    pub(super) fn of_network(conf: &Map<String, Value>) -> Result<Self, Error> {
        Self::parse("", conf)
    }

    /// What the runtime asks for, for one container.
    pub(super) fn requested(conf: &Map<String, Value>) -> Result<Self, Error> {
        let key = "runtimeConfig.bandwidth";
        match conf.get("runtimeConfig").and_then(|config| config.get("bandwidth")) {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(fields)) => {
                keys::refuse_others(key, fields, KEYS)?;
                Self::parse(&format!("{key}."), fields)
            }
            Some(other) => Err(invalid(key, other, "give an object with ingressRate or egressRate")),
        }
    }

    fn parse(prefix: &str, fields: &Map<String, Value>) -> Result<Self, Error> {
        Ok(Self {
            ingress: limit(prefix, Direction::Ingress, fields)?,
            egress: limit(prefix, Direction::Egress, fields)?,
            subnets: subnets(prefix, fields)?,
        })
    }

    /// The network's limits, and for a direction that it leaves free those of the container: the reference plugin's
    /// order.
    pub fn or(&self, requested: &Self) -> Self {
        let either = |of: fn(&Self) -> Option<Limit>| {
            if let (Some(ours), Some(theirs)) = (of(self), of(requested))
                && ours != theirs
            {
                log::warn!("runtimeConfig.bandwidth is ignored where the network's configuration has a rate");
            }
            of(self).or(of(requested))
        };
        let subnets = if self.subnets == Subnets::All { &requested.subnets } else { &self.subnets };
        Self {
            ingress: either(|shaping| shaping.ingress),
            egress: either(|shaping| shaping.egress),
            subnets: subnets.clone(),
        }
    }

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// The limit on a direction.
    pub fn limit(&self, direction: Direction) -> Option<Limit> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

fn limit(prefix: &str, direction: Direction, fields: &Map<String, Value>) -> Result<Option<Limit>, Error> {
    let (rate_key, burst_key) = (format!("{direction}Rate"), format!("{direction}Burst"));
    let rate = bits(prefix, &rate_key, fields, "bits per second from 1000 to 10^15")?;
    let burst = bits(prefix, &burst_key, fields, "bits")?;
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, burst) => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "{prefix}{burst_key} is {burst}, but there is no {rate_key}: give a rate or take out the burst"
            ),
        )),
        (rate, _) if !RATES.contains(&rate) => Err(invalid(
            &format!("{prefix}{rate_key}"),
            &rate.into(),
            "give bits per second from 1000 to 10^15, or 0 for no limit",
        )),
        (_, burst) if burst >= BURST_MAX => Err(invalid(
            &format!("{prefix}{burst_key}"),
            &burst.into(),
            "give less than 34359738360 bits (4 GiB), or 0 for Weft's default",
        )),
        (rate, burst) => Ok(Some(Limit { rate, burst: (1..NO_BURST).contains(&burst).then_some(burst) })),
    }
}

fn bits(prefix: &str, key: &str, fields: &Map<String, Value>, unit: &str) -> Result<u64, Error> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| {
            invalid(&format!("{prefix}{key}"), value, &format!("give a whole number of {unit}, or 0"))
        }),
    }
}

fn subnets(prefix: &str, fields: &Map<String, Value>) -> Result<Subnets, Error> {
    let [only, except] =
        ["shapedSubnets", "unshapedSubnets"].map(|key| list(&format!("{prefix}{key}"), fields.get(key)));
    match (only?, except?) {
        (only, except) if only.is_empty() && except.is_empty() => Ok(Subnets::All),
        (only, except) if except.is_empty() => Ok(Subnets::Only(only)),
        (only, except) if only.is_empty() => Ok(Subnets::Except(except)),
        _ => Err(Error::new(
            Code::InvalidConfig,
            format!("{prefix}shapedSubnets and {prefix}unshapedSubnets are both set: take one of them out"),
        )),
    }
}

fn list(key: &str, value: Option<&Value>) -> Result<Vec<IpNetwork>, Error> {
    let texts = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => serde_json::from_value::<Vec<String>>(value.clone())
            .ok()
            .ok_or_else(|| invalid(key, value, "give a list of prefixes, like [\"192.0.2.0/24\"]"))?,
    };
    let whole = |prefix: IpNetwork| IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix);
    Ok(prefixes(key, &texts)?.into_iter().map(whole).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(fields: &Value) -> Result<Shaping, Error> {
        Shaping::of_network(fields.as_object().unwrap())
    }

    #[test]
    fn nothing_asked_for_is_no_limit() {
        for fields in
            [json!({}), json!({"ingressRate": 0, "ingressBurst": null}), json!({"shapedSubnets": []})]
        {
            assert_eq!(parse(&fields).unwrap(), Shaping::default(), "{fields}");
        }
        assert!(parse(&json!({"shapedSubnets": ["10.0.0.0/8"]})).unwrap().is_none());
    }

    #[test]
    fn a_burst_that_a_runtime_makes_up_counts_as_none() {
        for burst in [0, 2_147_483_647_u64, 4_294_967_295, 34_359_738_352] {
            let shaping = parse(&json!({"egressRate": 10_000_000, "egressBurst": burst})).unwrap();
            assert_eq!(shaping.egress, Some(Limit { rate: 10_000_000, burst: None }), "{burst}");
        }
        let given = parse(&json!({"egressRate": 10_000_000, "egressBurst": 80_000})).unwrap();
        assert_eq!(given.egress.unwrap().burst, Some(80_000));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (fields, word) in [
            (json!({"ingressRate": -1}), "ingressRate is -1"),
            (json!({"ingressRate": 1.5}), "ingressRate is 1.5"),
            (json!({"ingressRate": "10M"}), "ingressRate is \"10M\""),
            (json!({"ingressRate": 999}), "ingressRate is 999"),
            (json!({"egressRate": u64::MAX}), "egressRate is 18446744073709551615"),
            (json!({"egressRate": 1e30}), "egressRate is 1e+30"),
            (json!({"egressBurst": 8}), "there is no egressRate"),
            (json!({"egressRate": 8000, "egressBurst": 34_359_738_360_u64}), "egressBurst is 34359738360"),
            (json!({"egressRate": 8000, "egressBurst": -8}), "egressBurst is -8"),
            (json!({"shapedSubnets": ["10.0.0.0/33"]}), "shapedSubnets[0]"),
            (json!({"unshapedSubnets": "10.0.0.0/8"}), "unshapedSubnets is"),
            (json!({"shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["10.0.0.0/8"]}), "both"),
        ] {
            let error = parse(&fields).expect_err(&fields.to_string());
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(word), "{}", error.msg);
        }
    }

    #[test]
    fn the_network_goes_before_the_container() {
        let of = |fields: Value| parse(&fields).unwrap();
        let network = of(json!({"ingressRate": 1_000_000, "unshapedSubnets": ["10.1.2.3/8"]}));
        let container = of(json!({"ingressRate": 2_000_000, "egressRate": 3_000_000}));
        let both = network.or(&container);
        assert_eq!(both.ingress.unwrap().rate, 1_000_000);
        assert_eq!(both.egress.unwrap().rate, 3_000_000);
        assert_eq!(both.subnets, Subnets::Except(vec!["10.0.0.0/8".parse().unwrap()]));
    }
}
