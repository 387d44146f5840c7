//! `weftctl config get` and `put`.

use std::io::Read as _;
use std::path::Path;

use cni_protocol::logging::printable;
use cni_protocol::{Code, Error};
use flannel_records::parse_key;
use weft_ipam::lease::{fits, parse_config};
use weft_ipam::registry::{Registry, in_event_loop};

use crate::agent::conf::NetworkConf;

pub(super) fn get(network: &NetworkConf) -> Result<String, Error> {
    in_event_loop(async { Registry::new(&network.etcd)?.config().await })
        .map(|text| text.trim_end().to_owned() + "\n")
}

pub(super) fn put(network: &NetworkConf, file: &Path, force: bool) -> Result<String, Error> {
    let text = read(file)?;
    let prefix = &network.etcd.prefix;
    let config = parse_config(prefix, &text)?;
    in_event_loop(async {
        let mut registry = Registry::new(&network.etcd)?;
        let before = match registry.config().await {
            Ok(before) => Some(before),
            // None is there yet.
            Err(error) if error.code == Code::InvalidConfig => None,
            Err(error) => return Err(error),
        };
        let hosts = registry.hosts().await?;
        // What is no record is nobody's loss.
        let is_lost = |key: &&String| parse_key(key).is_some() && !fits(&config, key);
        let lost: Vec<String> = hosts.records.keys().filter(is_lost).map(|key| printable(key)).collect();
        if !lost.is_empty() && !force {
            let msg = format!(
                "put {prefix}/config: hosts have subnets that it has not, or not in the same families, and would be cut off or could not \
                 follow it: {}: keep them in it, or --force",
                lost.join(", ")
            );
            return Err(Error::new(Code::Conflict, msg));
        }
        if !registry.put_config(before.as_deref(), text.trim()).await? {
            let msg =
                format!("put {prefix}/config: somebody has changed it meanwhile: look at it and try again");
            return Err(Error::new(Code::TryAgain, msg));
        }
        Ok(format!("{prefix}/config is put; hosts with weftd see it at once, others with an ADD\n"))
    })
}

fn read(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|content| text = content)
    };
    let remedy = "name a file with the configuration, or - for standard input";
    read.map(|()| text)
        .map_err(|error| Error::new(Code::Io, format!("read {}: {error}: {remedy}", file.display())))
}
