//! How etcd is reached, and how this host shows itself: the keys `etcd`, `iface`, `publicIP`, `leaseTTL` of `ipam`.

use std::net::IpAddr;
use std::time::Duration;

use cni_protocol::{Code, Error};
use serde_json::{Map, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConf {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub timeout: Duration,
    pub public: Vec<IpAddr>,
    /// In seconds.
    pub ttl: u64,
}

impl EtcdConf {
    /// `None` without the key `etcd`.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] with key, value and remedy.
    pub fn parse(ipam: &Map<String, Value>) -> Result<Option<Self>, Error> {
        let Some(etcd) = ipam.get("etcd").and_then(Value::as_object) else { return Ok(None) };
        let endpoints: Vec<String> = etcd
            .get("endpoints")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        if endpoints.is_empty() || endpoints.iter().any(|endpoint| !endpoint.starts_with("http")) {
            let msg =
                format!("ipam.etcd.endpoints is {endpoints:?}: give URLs such as http://127.0.0.1:2379");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let text = |key| etcd.get(key).and_then(Value::as_str);
        let address = |key| ipam.get(key).and_then(Value::as_str).and_then(|text| text.parse().ok());
        Ok(Some(Self {
            endpoints,
            prefix: text("prefix").unwrap_or("/coreos.com/network").to_owned(),
            timeout: Duration::from_secs(2),
            public: ["publicIP", "publicIPv6"].into_iter().filter_map(address).collect(),
            ttl: ipam.get("leaseTTL").and_then(Value::as_u64).unwrap_or(86_400),
        }))
    }
}
