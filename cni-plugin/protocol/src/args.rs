//! `CNI_ARGS`: what a user passed for one container.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::MacAddr;

/// The known keys of `CNI_ARGS`.
///
/// Source: <https://github.com/containernetworking/cni/blob/spec-v1.1.0/CONVENTIONS.md>, section "CNI_ARGS".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `IP`: addresses asked for, separated by commas; prefix lengths are allowed and dropped.
    pub ips: Vec<IpAddr>,
    /// `MAC`: the hardware address asked for.
    pub mac: Option<MacAddr>,
    /// `K8S_POD_*`: who the container is to Kubernetes, by the part of the key after `K8S_POD_`
    /// (`NAMESPACE`, `NAME`, `INFRA_CONTAINER_ID`, `UID`).
    pub k8s_pod: BTreeMap<String, String>,
    /// `NERDCTL_CNI_DHCP_HOSTNAME`: the container's host name, from nerdctl.
    pub hostname: Option<String>,
}

impl CniArgs {
    /// `NAMESPACE/NAME` of a pod, or `NAME` without a namespace, as podman gives its containers' names.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        let part = |key| self.k8s_pod.get(key).map(String::as_str).filter(|part| !part.is_empty());
        let name = part("NAME")?;
        Some(part("NAMESPACE").map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}")))
    }

    /// Reads `KEY=VALUE;KEY=VALUE`. An empty text has no arguments; an empty value asks for nothing.
    ///
    /// # Errors
    /// A reason, without the variable's name: a pair without '=', a key given twice, a value that is not
    /// what its key stands for, a key that is unknown while `IgnoreUnknown` is not set.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut args = Self::default();
        if text.is_empty() {
            return Ok(args);
        }
        let mut pairs = BTreeMap::new();
        for pair in text.split(';') {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| format!("{pair:?} is no KEY=VALUE (pairs are separated by ';')"))?;
            if pairs.insert(key, value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        let ignore_unknown = match pairs.remove("IgnoreUnknown") {
            None => false,
            Some(value) => {
                parse_bool(value).ok_or_else(|| format!("IgnoreUnknown={value} is neither true nor false"))?
            }
        };
        for (key, value) in pairs {
            match key {
                "IP" => args.ips = parse_ips(value)?,
                "MAC" if value.is_empty() => {}
                "NERDCTL_CNI_DHCP_HOSTNAME" => args.hostname = Some(value.to_owned()),
                "MAC" => args.mac = Some(value.parse().map_err(|error| format!("MAC: {error}"))?),
                _ => match key.strip_prefix("K8S_POD_") {
                    Some(rest) => {
                        args.k8s_pod.insert(rest.to_owned(), value.to_owned());
                    }
                    None if ignore_unknown => {}
                    None => {
                        return Err(format!(
                            "unknown key {key} with value {value:?} (IgnoreUnknown=true permits it)"
                        ));
                    }
                },
            }
        }
        Ok(args)
    }
}

/// The words that the reference implementation takes for a truth value.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn parse_ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut ips = Vec::new();
    for item in text.split(',').filter(|_| !text.is_empty()) {
        let refuse = || format!("IP={text}: {item:?} is no IP address");
        let (address, prefix) =
            item.split_once('/').map_or((item, None), |(address, prefix)| (address, Some(prefix)));
        let ip: IpAddr = address.trim().parse().ok().ok_or_else(refuse)?;
        if let Some(prefix) = prefix {
            let longest = if ip.is_ipv4() { 32 } else { 128 };
            prefix.parse::<u8>().ok().filter(|length| *length <= longest).ok_or_else(refuse)?;
        }
        ips.push(ip);
    }
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn known_keys() {
        let args = CniArgs::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;IP=10.0.0.7,fd00::7/64;MAC=02:00:00:00:00:01;NERDCTL_CNI_DHCP_HOSTNAME=web;FOO=a=b",
        )
        .unwrap();
        assert_eq!(args.ips, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(args.mac, Some(MacAddr::new([2, 0, 0, 0, 0, 1])));
        assert_eq!(args.pod().as_deref(), Some("default/p"));
        assert_eq!(args.hostname.as_deref(), Some("web"));
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
        assert_eq!(CniArgs::parse("IP=;MAC=").unwrap(), CniArgs::default());
        let pod = |text| CniArgs::parse(text).unwrap().pod();
        assert_eq!(pod("K8S_POD_NAMESPACE=;K8S_POD_NAME=p").as_deref(), Some("p"));
        assert_eq!(pod("K8S_POD_NAMESPACE=default;K8S_POD_NAME="), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("FOO=1", "FOO"),
            ("FOO=1;IgnoreUnknown=false", "FOO"),
            ("IgnoreUnknown=maybe", "maybe"),
            ("IP", "KEY=VALUE"),
            ("IP=10.0.0.1;", "KEY=VALUE"),
            ("=1", "KEY=VALUE"),
            ("IP=10.0.0.256", "10.0.0.256"),
            ("IP=10.0.0.1/33", "10.0.0.1/33"),
            ("IP=10.0.0.1,,10.0.0.2", "\"\""),
            ("MAC=zz", "zz"),
            ("IP=10.0.0.1;IP=10.0.0.2", "twice"),
        ] {
            let error = CniArgs::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
    /// The table in docs/configuration.md lists exactly the keys that are no mistake without `IgnoreUnknown`.
    #[test]
    fn keys_are_documented() {
        let is_known = |key: &str| {
            CniArgs::parse(&format!("{key}=")).err().is_none_or(|error| !error.contains("unknown key"))
        };
        let page = include_str!("../../../docs/configuration.md");
        let (_, table) = page.split_once("| key of `CNI_ARGS` |").unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let documented: BTreeSet<&str> =
            rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
        let words = include_str!("args.rs").split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        // A prefix is no key.
        let known = words.filter(|word| !word.is_empty() && !word.ends_with('_') && is_known(word)).collect();
        assert_eq!(documented, known);
    }
}
