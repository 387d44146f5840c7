//! `weftctl ipam ls`.

use std::collections::BTreeMap;

use cni_protocol::Error;
use cni_protocol::logging::printable;

use super::{Output, table};
use crate::agent::conf::Conf;

pub(super) fn list(conf: &Conf, output: Output) -> Result<String, Error> {
    let mut networks = BTreeMap::new();
    for network in &conf.networks {
        networks.insert(network.name.to_string(), weft_ipam::store::list(&conf.state_dir, &network.name)?);
    }
    if output == Output::Json {
        return Ok(serde_json::to_string_pretty(&networks).unwrap_or_default() + "\n");
    }
    let mut text = String::new();
    for (name, held) in networks {
        let rows: Vec<Vec<String>> = held
            .iter()
            .map(|held| {
                let age = format!("{} s", held.age);
                vec![held.address.to_string(), printable(&held.container_id), printable(&held.ifname), age]
            })
            .collect();
        text += &format!("network {name}: {} addresses held\n", held.len());
        if !rows.is_empty() {
            text += &table(&["ADDRESS", "CONTAINER", "INTERFACE", "HELD FOR"], &rows);
        }
    }
    Ok(text)
}
