//! Who may talk with a network's containers: `isolation`, `icc`, `allow`, `internal`, `egress`, `hostAccess`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni_protocol::{Code, Error, decode, decode_part};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::names::Names;
use super::ports::Protocol;
use super::{conventions, invalid, keys, prefixes};

/// What a network says of who may talk with its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationPolicy {
    /// Whether containers of other networks are kept out, and whether everybody else outside is, except from published ports.
    pub closed: bool,
    pub published_only: bool,
    /// Whether the network's containers may talk with each other without a rule that allows it.
    pub icc: bool,
    /// What is allowed where `icc` is off.
    pub allow: Vec<Allow>,
    /// Where containers may go, besides their own network; `None` is everywhere.
    pub egress_allow: Option<Vec<IpNetwork>>,
    pub egress_deny: Vec<IpNetwork>,
    /// Whether nobody outside may come in, either.
    pub internal: bool,
    /// Whether containers may use services of the host.
    pub host_access: bool,
    /// The network's subnets, as far as the configuration tells.
    pub subnets: Vec<IpNetwork>,
}

/// Traffic that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    pub from: Peer,
    pub to: Peer,
    /// Everything where it is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

/// A protocol and its ports, the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Service {
    pub protocol: Protocol,
    pub ports: (u16, u16),
}

/// One side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Peer {
    /// The container that the rule came with.
    Own,
    /// A container by its ID, its name or an alias.
    Container(String),
    /// Containers by a label, `KEY=VALUE`.
    Label(String),
    Prefix(IpNetwork),
}

impl Peer {
    /// Whether it means a container by one of its names. Whom other sides mean is not a matter of names.
    pub fn names(&self, container_id: &str, names: &Names) -> bool {
        match self {
            Self::Container(name) => name == container_id || names.have(name),
            Self::Label(label) => names.labels.contains(label),
            Self::Own | Self::Prefix(_) => false,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    isolation: Option<String>,
    icc: Option<bool>,
    allow: Vec<Map<String, Value>>,
    internal: bool,
    egress: Option<Map<String, Value>>,
    host_access: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawEgress {
    allow: Option<Vec<String>>,
    deny: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAllow {
    from: Option<BTreeMap<String, String>>,
    to: Option<BTreeMap<String, String>>,
    protocol: Option<String>,
    port: Option<Value>,
}

impl IsolationPolicy {
    /// Whether it says nothing but whether the network is closed.
    pub fn is_plain(&self) -> bool {
        self.icc
            && self.host_access
            && !self.published_only
            && !self.internal
            && self.egress_allow.is_none()
            && self.egress_deny.is_empty()
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// [`Code::UnsupportedField`] for an unknown key; [`Code::InvalidConfig`] for a value that cannot be meant, by itself or
    /// beside another.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let raw: Raw = decode(conf)?;
        let Some((closed, published_only)) = extent(raw.isolation.as_deref().unwrap_or_default()) else {
            let value = raw.isolation.unwrap_or_default().into();
            return Err(invalid("isolation", &value, "give \"network\", \"closed\" or \"none\""));
        };
        let egress = raw.egress.unwrap_or_default();
        keys::refuse_others("egress", &egress, &["allow", "deny"])?;
        let egress: RawEgress = decode_part("egress", &egress)?;
        if raw.internal && egress.allow.is_some() {
            let msg = "internal is true and egress.allow names ways out: leave one of them out";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let icc = raw.icc.unwrap_or(true);
        if icc && !raw.allow.is_empty() {
            let msg = "allow has rules, but icc is true, so that all is allowed: set icc to false or leave allow out";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let allowed = egress.allow.map(|texts| prefixes("egress.allow", &texts)).transpose()?;
        Ok(Self {
            closed,
            published_only,
            icc,
            allow: allow_rules("allow", &raw.allow, None)?,
            egress_allow: if raw.internal { Some(Vec::new()) } else { allowed.map(reduced) },
            egress_deny: reduced(prefixes("egress.deny", egress.deny.as_deref().unwrap_or_default())?),
            internal: raw.internal,
            host_access: raw.host_access.unwrap_or(true),
            subnets: subnets(conf),
        })
    }
}

/// What a value of `isolation` says: whether the network is closed to other networks, and whether to all outside; `None` for any other
/// value.
pub fn extent(isolation: &str) -> Option<(bool, bool)> {
    match isolation {
        "" | "network" => Some((true, false)),
        "closed" => Some((true, true)),
        "none" => Some((false, false)),
        _ => None,
    }
}

impl Allow {
    /// Sees that a prefix of the rule, which `key` has, is one of containers of a network with these subnets.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`]: it would allow nothing.
    pub fn has_sides_in(&self, key: &str, subnets: &[IpNetwork]) -> Result<(), Error> {
        let outside = [&self.from, &self.to].into_iter().find_map(|side| match side {
            Peer::Prefix(prefix) => {
                (!subnets.iter().any(|subnet| flannel_records::overlap(*subnet, *prefix))).then_some(prefix)
            }
            Peer::Own | Peer::Container(_) | Peer::Label(_) => None,
        });
        let Some(outside) = outside else { return Ok(()) };
        let subnets = subnets.iter().map(IpNetwork::to_string).collect::<Vec<_>>().join(" and ");
        let msg = format!(
            "{key} has the prefix {outside}, which is outside of the network ({subnets}): its rules are between containers of the \
             network; others reach these by host ports (portMappings), or where both networks have isolation \"none\""
        );
        Err(Error::new(Code::InvalidConfig, msg))
    }
}

/// Rules in a list. `own` stands for a side that is left out; without it both have to be there.
///
/// # Errors
/// [`Code::UnsupportedField`] for an unknown key; [`Code::InvalidConfig`] for a value that cannot be meant.
pub(super) fn allow_rules(
    key: &str,
    rules: &[Map<String, Value>],
    own: Option<&Peer>,
) -> Result<Vec<Allow>, Error> {
    let parse = |(at, rule): (usize, &Map<String, Value>)| {
        let key = format!("{key}[{at}]");
        keys::refuse_others(&key, rule, &["from", "to", "protocol", "port"])?;
        let raw: RawAllow = decode_part(&key, rule)?;
        let side = |name: &str, raw: Option<&BTreeMap<String, String>>| match (raw, own) {
            (Some(raw), _) => peer(&format!("{key}.{name}"), raw),
            (None, Some(own)) => Ok(own.clone()),
            (None, None) => Err(Error::new(
                Code::InvalidConfig,
                format!("{key} has no {name}: add a container, label or prefix"),
            )),
        };
        let (from, to) = (side("from", raw.from.as_ref())?, side("to", raw.to.as_ref())?);
        if own.is_some() && from == to {
            let msg = format!("{key} has neither from nor to: name the other side");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        Ok(Allow { from, to, service: service(&key, raw.protocol.as_deref(), raw.port.as_ref())? })
    };
    rules.iter().enumerate().map(parse).collect()
}

fn peer(key: &str, raw: &BTreeMap<String, String>) -> Result<Peer, Error> {
    let remedy = "give one of {\"container\": NAME}, {\"label\": \"KEY=VALUE\"} and {\"prefix\": PREFIX}";
    let value = || serde_json::to_value(raw).unwrap_or_default();
    let mut sides = raw.iter();
    let (Some((kind, text)), None) = (sides.next(), sides.next()) else {
        return Err(invalid(key, &value(), remedy));
    };
    match kind.as_str() {
        "container" if !text.is_empty() => Ok(Peer::Container(text.clone())),
        "label" if text.contains('=') => Ok(Peer::Label(text.clone())),
        "prefix" => text.parse().map(Peer::Prefix).ok().ok_or_else(|| invalid(key, &value(), remedy)),
        _ => Err(invalid(key, &value(), remedy)),
    }
}

/// `"port": 80`, `"port": "8000-8999"`.
fn service(key: &str, protocol: Option<&str>, port: Option<&Value>) -> Result<Option<Service>, Error> {
    let (protocol, port) = match (protocol, port) {
        (None, None) => return Ok(None),
        (protocol, port) => (Protocol::parse(&format!("{key}.protocol"), protocol.unwrap_or("tcp"))?, port),
    };
    let Some(port) = port else { return Ok(Some(Service { protocol, ports: (0, u16::MAX) })) };
    let text = port.as_str().map_or_else(|| port.to_string(), str::to_owned);
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first != 0 && first <= last => {
            Ok(Some(Service { protocol, ports: (first, last) }))
        }
        _ => {
            Err(invalid(&format!("{key}.port"), port, "give a port from 1 to 65535, or two as \"8000-8999\""))
        }
    }
}

/// The subnets that an `ipam` section names, as weft-ipam and host-local have them.
fn subnets(conf: &Map<String, Value>) -> Vec<IpNetwork> {
    let ipam = conf.get("ipam");
    let sets = ipam.and_then(|ipam| ipam.get("ranges")).and_then(Value::as_array);
    let ranges = sets.into_iter().flatten().filter_map(Value::as_array).flatten();
    let subnet = |range: &Value| range.get("subnet").and_then(Value::as_str)?.parse::<IpNetwork>().ok();
    reduced(ranges.chain(ipam).filter_map(subnet).map(crate::plan::prefix).collect())
}

/// Without those that others cover, and without host bits.
pub fn reduced(mut prefixes: Vec<IpNetwork>) -> Vec<IpNetwork> {
    prefixes.sort_unstable_by_key(|prefix| (prefix.prefix(), prefix.network()));
    let mut kept: Vec<IpNetwork> = Vec::new();
    for prefix in prefixes {
        let covers = |other: &IpNetwork| match (other, prefix.network()) {
            (IpNetwork::V4(other), IpAddr::V4(ip)) => other.contains(ip),
            (IpNetwork::V6(other), IpAddr::V6(ip)) => other.contains(ip),
            _ => false,
        };
        if !kept.iter().any(covers) {
            kept.push(crate::plan::prefix(prefix));
        }
    }
    kept
}

/// The labels of one container, `KEY=VALUE`: of the CNI conventions, `args.cni.labels`.
///
/// # Errors
/// [`Code::InvalidConfig`] for something else than a list of objects with key and value.
pub(super) fn labels(conf: &Map<String, Value>) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Label {
        key: String,
        value: String,
    }
    let Some(raw) = conventions(conf).and_then(|cni| cni.get("labels")) else { return Ok(Vec::new()) };
    let labels = Vec::<Label>::deserialize(raw).ok().ok_or_else(|| {
        invalid("args.cni.labels", raw, "give a list like [{\"key\": \"role\", \"value\": \"web\"}]")
    })?;
    Ok(labels.into_iter().map(|label| format!("{}={}", label.key, label.value)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: &Value) -> Result<IsolationPolicy, Error> {
        IsolationPolicy::parse(conf.as_object().unwrap())
    }

    #[test]
    fn networks_are_closed_to_each_other_and_otherwise_open() {
        let policy = parse(&json!({})).unwrap();
        assert!(policy.closed && policy.icc && policy.host_access && !policy.internal);
        assert_eq!(policy.egress_allow, None);
        assert!(!parse(&json!({"isolation": "none"})).unwrap().closed);
        assert!(policy.is_plain());
        let policy = parse(&json!({"isolation": "closed"})).unwrap();
        assert!(policy.closed && policy.published_only && !policy.is_plain());
        assert_eq!(policy.egress_allow, None);
        assert_eq!(parse(&json!({"internal": true})).unwrap().egress_allow, Some(Vec::new()));
    }

    #[test]
    fn rules_name_both_sides_and_what_passes() {
        let policy = parse(&json!({"icc": false, "allow": [
            {"from": {"container": "web"}, "to": {"label": "role=db"}, "port": 5432},
            {"from": {"prefix": "10.0.0.0/8"}, "to": {"container": "web"}, "protocol": "UDP", "port": "5000-5009"},
            {"from": {"label": "a=b"}, "to": {"label": "a=b"}}]}));
        let rules = policy.unwrap().allow;
        let service = |protocol, ports| Some(Service { protocol, ports });
        assert_eq!(rules[0].to, Peer::Label("role=db".into()));
        assert_eq!(rules[0].service, service(Protocol::Tcp, (5432, 5432)));
        assert_eq!(rules[1].from, Peer::Prefix("10.0.0.0/8".parse().unwrap()));
        assert_eq!(rules[1].service, service(Protocol::Udp, (5000, 5009)));
        assert_eq!(rules[2].service, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let rule = |rule: Value| json!({"icc": false, "allow": [rule]});
        let web = || json!({"container": "web"});
        for (conf, named) in [
            (json!({"isolation": "all"}), "isolation"),
            (json!({"internal": true, "egress": {"allow": []}}), "internal"),
            (json!({"egress": {"permit": []}}), "egress.permit"),
            (json!({"egress": {"deny": ["10.0.0.0/33"]}}), "egress.deny[0]"),
            (json!({"allow": [{"from": web(), "to": web()}]}), "icc"),
            (rule(json!({"from": web()})), "allow[0] has no to"),
            (rule(json!({"from": web(), "to": {"pod": "x"}})), "allow[0].to"),
            (rule(json!({"from": web(), "to": {}})), "allow[0].to"),
            (rule(json!({"from": web(), "to": web(), "port": 0})), "allow[0].port"),
            (rule(json!({"from": web(), "to": web(), "port": "9-1"})), "allow[0].port"),
            (rule(json!({"from": web(), "to": web(), "protocol": "gre"})), "allow[0].protocol"),
            (rule(json!({"from": web(), "to": web(), "ports": 1})), "allow[0].ports"),
        ] {
            let error = parse(&conf).unwrap_err();
            assert!(error.msg.contains(named), "{conf}: {}", error.msg);
        }
    }

    #[test]
    fn prefixes_that_others_cover_are_left_out() {
        let list =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let all = list(&["10.1.0.0/16", "10.0.0.0/8", "fd00::1/64", "10.0.0.0/8", "192.0.2.1/32"]);
        assert_eq!(reduced(all), list(&["10.0.0.0/8", "192.0.2.1/32", "fd00::/64"]));
    }
}
