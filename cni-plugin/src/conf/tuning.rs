//! The container's interface and kernel settings, with the keys of the reference tuning plugin: in the configuration for
//! all containers, in `args.cni` for one.

use std::fs;
use std::io::ErrorKind;

use cni_protocol::{Code, Error, IfName, decode, decode_part};
use regex_lite::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};
use weft_net::sysctl::Sysctl;

use super::{conventions, invalid, mtu};

/// The settings that may be asked for: patterns, one a line.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// What is to be set in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Kernel settings of the container's namespace.
    pub sysctls: Vec<Setting>,
    pub promiscuous: bool,
    /// Whether all multicast frames are received; `None` leaves the kernel's default, as below.
    pub all_multicast: Option<bool>,
    /// Packets that wait to be sent.
    pub queue_length: Option<u32>,
    /// One container's own, in place of the network's.
    pub mtu: Option<u32>,
}

/// A kernel setting that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As it was asked for, like `net.ipv4.conf.IFNAME.arp_filter`.
    name: String,
    pub value: String,
}

impl Setting {
    /// The setting of a container with this interface.
    pub fn sysctl(&self, ifname: &IfName) -> Option<Sysctl> {
        let separator = if self.name.contains('/') { '/' } else { '.' };
        let parts: Vec<String> =
            self.name.split(separator).map(|part| part.replace("IFNAME", ifname.as_str())).collect();
        Sysctl::named(&parts)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    sysctl: Option<Map<String, Value>>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_q_len: Option<i64>,
    mtu: Option<i64>,
}

impl Tuning {
    /// Reads it out of a configuration.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] for a setting outside of `net.`, and for a value that cannot be meant.
    pub fn parse(conf: &Map<String, Value>) -> Result<Self, Error> {
        let network: Raw = decode(conf)?;
        let own: Raw = conventions(conf).map_or(Ok(Raw::default()), |own| decode_part("args.cni", own))?;
        let mut sysctls = Vec::new();
        for (place, settings) in [("sysctl", network.sysctl), ("args.cni.sysctl", own.sysctl)] {
            for (name, value) in settings.unwrap_or_default() {
                let setting = setting(place, name, &value)?;
                sysctls.retain(|other: &Setting| other.name != setting.name);
                sysctls.push(setting);
            }
        }
        Ok(Self {
            sysctls,
            promiscuous: own.promisc.or(network.promisc).unwrap_or_default(),
            all_multicast: own.allmulti.or(network.allmulti),
            queue_length: match (own.tx_q_len, network.tx_q_len) {
                (Some(own), _) => Some(queue_length("args.cni.txQLen", own)?),
                (None, network) => network.map(|length| queue_length("txQLen", length)).transpose()?,
            },
            mtu: own.mtu.map_or(Ok(None), |own| mtu("args.cni.mtu", own))?,
        })
    }

    /// Sees that the administrator of the host allows all settings that are asked for, as with the reference tuning plugin: without a
    /// list, any.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] naming setting and file, [`Code::Io`] when that cannot be read.
    pub fn refuse_unlisted(&self) -> Result<(), Error> {
        if self.sysctls.is_empty() {
            return Ok(());
        }
        match fs::read_to_string(ALLOWLIST) {
            Ok(list) => self.refuse_outside(&list),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                let why = "the list of the settings that may be asked for in sysctl; make it readable";
                Err(Error::new(Code::Io, format!("read {ALLOWLIST}: {error}: it is {why}")))
            }
        }
    }

    /// A pattern means every setting that has a match anywhere.
    fn refuse_outside(&self, list: &str) -> Result<(), Error> {
        let lines = list.lines().map(str::trim).filter(|line| !line.is_empty());
        let pattern = |line| {
            Regex::new(line).map_err(|error| {
                let msg = format!("{ALLOWLIST} has the pattern {line}: {error}: correct it");
                Error::new(Code::InvalidConfig, msg)
            })
        };
        let patterns = lines.map(pattern).collect::<Result<Vec<_>, _>>()?;
        let is_outside = |setting: &&Setting| !patterns.iter().any(|pattern| pattern.is_match(&setting.name));
        let Some(outside) = self.sysctls.iter().find(is_outside) else { return Ok(()) };
        let why = "is not allowed on this host: take it out, or have its administrator add it to";
        Err(Error::new(Code::InvalidConfig, format!("sysctl.{} {why} {ALLOWLIST}", outside.name)))
    }

    /// Whether the container's interface is to be as the kernel makes it.
    pub fn leaves_interface(&self) -> bool {
        !self.promiscuous && self.all_multicast.is_none() && self.queue_length.is_none()
    }
}

fn setting(place: &str, name: String, value: &Value) -> Result<Setting, Error> {
    let value = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        other => {
            return Err(invalid(&format!("{place}.{name}"), other, "give the value as text, like \"1\""));
        }
    };
    if value.contains(['\n', '\0']) {
        return Err(invalid(&format!("{place}.{name}"), &value.into(), "give a value of one line"));
    }
    let setting = Setting { name, value };
    // Any interface name will do to see whether the name can be one.
    match "eth0".parse().map(|ifname| setting.sysctl(&ifname)) {
        Ok(Some(_)) => Ok(setting),
        _ => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "{place} has {}, which is no setting of a network namespace: give one below net, like \
                 net.ipv4.conf.IFNAME.arp_filter",
                setting.name
            ),
        )),
    }
}

fn queue_length(key: &str, length: i64) -> Result<u32, Error> {
    u32::try_from(length)
        .ok()
        .filter(|length| i32::try_from(*length).is_ok())
        .ok_or_else(|| invalid(key, &length.into(), "give a number of packets from 0 to 2147483647"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: &Value) -> Result<Tuning, Error> {
        Tuning::parse(conf.as_object().unwrap())
    }

    fn paths(conf: &Value) -> Vec<String> {
        let ifname = "eth0.5".parse().unwrap();
        let tuning = parse(conf).unwrap();
        tuning.sysctls.iter().map(|setting| setting.sysctl(&ifname).unwrap().to_string()).collect()
    }

    #[test]
    fn a_container_goes_before_its_network() {
        let tuning = parse(&json!({
            "sysctl": { "net.core.somaxconn": "500", "net.ipv4.ip_forward": 1 }, "promisc": true, "txQLen": 10, "mtu": 1400,
            "args": { "cni": { "sysctl": { "net.core.somaxconn": "700" }, "promisc": false, "allmulti": true, "mtu": 1300 } },
        }))
        .unwrap();
        let values: Vec<_> = tuning.sysctls.iter().map(|setting| setting.value.as_str()).collect();
        assert_eq!(values, ["1", "700"]);
        assert_eq!((tuning.promiscuous, tuning.all_multicast), (false, Some(true)));
        assert_eq!((tuning.queue_length, tuning.mtu), (Some(10), Some(1300)));
        assert_eq!(parse(&json!({"mtu": 1400})).unwrap(), Tuning::default());
    }

    #[test]
    fn names_lead_below_net_only() {
        assert_eq!(
            paths(&json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})),
            ["/proc/sys/net/ipv4/conf/eth0.5/arp_filter"]
        );
        assert_eq!(
            paths(&json!({"sysctl": {"net/ipv4/conf/eth0.7/arp_filter": "1"}})),
            ["/proc/sys/net/ipv4/conf/eth0.7/arp_filter"]
        );
        for name in [
            "kernel.panic", "net", "net/../kernel/panic", "net..ipv4", "net/./x", "/net/x", "", "vm/x",
            "net/a\0",
        ] {
            let error = parse(&json!({"sysctl": {name: "1"}})).expect_err(name);
            assert_eq!(error.code, Code::InvalidConfig, "{name}");
            assert!(error.msg.contains("below net"), "{}", error.msg);
        }
    }

    #[test]
    fn patterns_of_an_allowlist_mean_what_they_match_anywhere() {
        let tuning = parse(&json!({
            "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" }, "args": { "cni": { "sysctl": { "net.core.somaxconn": "5" } } },
        }))
        .unwrap();
        for (list, word) in [
            ("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n  somaxconn  \n", None),
            ("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$", Some("sysctl.net.core.somaxconn")),
            ("", Some("allowlist.conf")),
            (".\n(", Some("pattern (")),
        ] {
            let refused = tuning.refuse_outside(list).map_err(|error| error.msg);
            let is_as_expected = match word {
                None => refused.is_ok(),
                Some(word) => refused.as_ref().is_err_and(|msg| msg.contains(word)),
            };
            assert!(is_as_expected, "{list}: {refused:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for conf in [
            json!({"txQLen": -1}),
            json!({"txQLen": 4_294_967_296_i64}),
            json!({"sysctl": {"net.core.somaxconn": ["1"]}}),
            json!({"sysctl": {"net.core.somaxconn": "1\n2"}}),
            json!({"args": {"cni": {"mtu": 5}}}),
            json!({"args": {"cni": {"txQLen": -1}}}),
            json!({"promisc": "yes"}),
        ] {
            assert_eq!(parse(&conf).expect_err(&conf.to_string()).code, Code::InvalidConfig, "{conf}");
        }
    }
}
