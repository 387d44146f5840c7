//! The keys of what a runtime passes for one container, `runtimeConfig`.
//!
//! The conventions write `hostPort`; containerd's go-cni, by which CRI and nerdctl call plugins, writes `HostPort`, and
//! plugins in Go read either.

use serde_json::{Map, Value};

use crate::canonicalize_keys;

/// By capability, the keys that the conventions have (CONVENTIONS.md of the CNI specification).
const KEYS: &[(&str, &[&str])] = &[
    ("bandwidth", &["egressBurst", "egressRate", "ingressBurst", "ingressRate"]),
    ("dns", &["options", "searches", "servers"]),
    ("ipRanges", &["gateway", "rangeEnd", "rangeStart", "subnet"]),
    ("portMappings", &["containerPort", "hostIP", "hostPort", "protocol"]),
];

/// Writes the keys as the conventions do.
pub(crate) fn canonicalize(conf: &mut Map<String, Value>) {
    let Some(Value::Object(runtime)) = conf.get_mut("runtimeConfig") else { return };
    for (capability, keys) in KEYS {
        if let Some(value) = runtime.get_mut(*capability) {
            rename(value, keys);
        }
    }
}

fn rename(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, keys)),
        Value::Object(fields) => canonicalize_keys(fields, keys),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn canonical(mut runtime: Value) -> Value {
        let mut conf = Map::from_iter([("runtimeConfig".to_owned(), runtime.take())]);
        canonicalize(&mut conf);
        conf.remove("runtimeConfig").unwrap()
    }

    #[test]
    fn keys_of_containerd_are_those_of_the_conventions() {
        let of_containerd = json!({
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
            "bandwidth": {"IngressRate": 1, "IngressBurst": 2, "EgressRate": 3, "EgressBurst": 4},
            "dns": {"Servers": ["192.0.2.53"], "Searches": null, "Options": null},
            "ipRanges": [[{"Subnet": "10.0.0.0/24", "RangeStart": "", "RangeEnd": "", "Gateway": ""}]],
        });
        let of_conventions = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
            "dns": {"servers": ["192.0.2.53"], "searches": null, "options": null},
            "ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "", "rangeEnd": "", "gateway": ""}]],
        });
        assert_eq!(canonical(of_containerd), of_conventions);
        assert_eq!(canonical(of_conventions.clone()), of_conventions);
    }

    #[test]
    fn what_is_no_key_of_theirs_stays() {
        for runtime in [
            json!({"aliases": {"Servers": ["web"]}, "portMappings": [{"hostPort": 1, "HostPort": 2}]}),
            json!({"dns": "Servers", "bandwidth": null}),
            json!(7),
        ] {
            assert_eq!(canonical(runtime.clone()), runtime);
        }
    }
}
