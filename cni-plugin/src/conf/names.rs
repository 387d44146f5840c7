//! Who a container is to people: for addresses that stay with a name, and for a name service.

use cni_protocol::{CniArgs, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The names of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// `NAMESPACE/NAME` of a pod, or the name of a container of podman.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container's own name for itself, where the runtime tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Names of one container on this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `KEY=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Names {
    /// Reads the names that runtimes give: `CNI_ARGS`; the capability `aliases`, a list or, from podman, lists by network; labels
    /// of the CNI conventions.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`](cni_protocol::Code::InvalidConfig) for an alias that cannot be a host's name.
    pub fn parse(conf: &Map<String, Value>, args: &CniArgs) -> Result<Self, Error> {
        let aliases = match conf.get("runtimeConfig").and_then(|config| config.get("aliases")) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(by_network)) => {
                let own = conf.get("name").and_then(Value::as_str).and_then(|name| by_network.get(name));
                own.map_or(Ok(Vec::new()), list)?
            }
            Some(names) => list(names)?,
        };
        let hostname = args.hostname.clone().filter(|name| is_name(name));
        Ok(Self { pod: pod(args), hostname, aliases, labels: super::isolation::labels(conf)? })
    }

    /// Whether a container with these goes by a name.
    pub fn have(&self, name: &str) -> bool {
        let pod = self.pod.as_deref();
        pod == Some(name)
            || pod.and_then(|pod| pod.split_once('/')).is_some_and(|(_, pod)| pod == name)
            || self.hostname.as_deref() == Some(name)
            || self.aliases.iter().any(|alias| alias == name)
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn pod(args: &CniArgs) -> Option<String> {
    args.pod().filter(|pod| pod.splitn(2, '/').all(is_name))
}

fn list(names: &Value) -> Result<Vec<String>, Error> {
    let remedy = "give a list of host names of letters, digits, '-', '_' and '.'";
    let refuse = || super::invalid("runtimeConfig.aliases", names, remedy);
    let names: Vec<String> = Vec::deserialize(names).ok().ok_or_else(refuse)?;
    if names.iter().all(|name| is_name(name)) { Ok(names) } else { Err(refuse()) }
}

/// What DNS takes for a name (RFC 1123 §2.1), and the underscores that container names have.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use cni_protocol::Code;
    use serde_json::json;

    use super::*;

    fn parse(conf: &Value) -> Result<Names, Error> {
        Names::parse(conf.as_object().unwrap(), &CniArgs::default())
    }

    #[test]
    fn aliases_come_as_a_list_or_by_network() {
        let list = json!({"name": "net", "runtimeConfig": {"aliases": ["web", "web_1"]}});
        assert_eq!(parse(&list).unwrap().aliases, ["web", "web_1"]);
        let by_network =
            json!({"name": "net", "runtimeConfig": {"aliases": {"net": ["web"], "other": ["db"]}}});
        assert_eq!(parse(&by_network).unwrap().aliases, ["web"]);
        assert!(parse(&json!({"name": "net"})).unwrap().is_empty());
        for aliases in [json!(["a/b"]), json!([""]), json!([1]), json!("web"), json!(["x".repeat(254)])] {
            let error = parse(&json!({"name": "net", "runtimeConfig": {"aliases": aliases}})).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
        }
    }

    #[test]
    fn a_pod_has_a_namespace_and_a_container_of_podman_has_none() {
        let mut args = CniArgs::default();
        let names = |args: &CniArgs| Names::parse(&Map::new(), args).unwrap().pod;
        args.k8s_pod.insert("NAME".into(), "web-0".into());
        assert_eq!(names(&args), Some("web-0".into()));
        args.k8s_pod.insert("NAMESPACE".into(), "default".into());
        assert_eq!(names(&args), Some("default/web-0".into()));
        args.k8s_pod.insert("NAME".into(), "../web".into());
        assert_eq!(names(&args), None);
    }

    #[test]
    fn a_container_of_nerdctl_has_its_host_name() {
        let of = |hostname: &str| {
            let args = CniArgs { hostname: Some(hostname.into()), ..CniArgs::default() };
            Names::parse(&Map::new(), &args).unwrap().hostname
        };
        assert_eq!(of("web"), Some("web".into()));
        assert_eq!(of("../web"), None);
    }
}
