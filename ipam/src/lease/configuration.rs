//! A network's configuration, as flannel has it in etcd.

use cni_protocol::{Code, Error};
use flannel_records::NetworkConfig;

use crate::conf::etcd::EtcdConf;
use crate::registry::{SAMPLE, Snapshot, put_line};

/// A network's configuration, as it stands in etcd.
///
/// # Errors
/// [`Code::InvalidConfig`] with what is wrong, and the command that puts what was meant where that can be told.
pub fn parse_config(prefix: &str, text: &str) -> Result<NetworkConfig, Error> {
    let key = format!("{prefix}/config");
    NetworkConfig::parse(text).map_err(|error| {
        let mut msg = format!("{key}: {error}");
        if text.trim().is_empty() {
            msg += &format!(": for example {}", put_line(&key, SAMPLE));
        } else if let Some(meant) = flannel_records::corrected(text) {
            msg += &format!(": {}", put_line(&key, &meant));
        }
        Error::new(Code::InvalidConfig, msg)
    })
}

/// The configuration in a snapshot, with its text.
pub(super) fn configured<'a>(
    conf: &EtcdConf,
    snapshot: &'a Snapshot,
) -> Result<(NetworkConfig, &'a str), Error> {
    let text = snapshot.config.as_ref().map_err(Error::clone)?;
    Ok((parse_config(&conf.prefix, text)?, text))
}
