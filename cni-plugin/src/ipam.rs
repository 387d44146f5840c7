//! The IPAM plugin: the only process that Weft executes.

use cni_protocol::{AddResult, Call, Code, Deadline, Delegate, Error, Running, Verb};

use crate::key::AttachmentKey;
use crate::record::Record;

/// Has the plugin reserve addresses. It inherits the attachment's lock: should this process be killed, a
/// DEL waits until the plugin has ended, and finds what it reserved.
pub fn reserve(plugin: &str, call: &Call, record: Option<&Record>) -> Result<AddResult, Error> {
    let delegate = Delegate::find(plugin, &call.cni_path)?;
    if let Some(record) = record {
        record.share_with_children(true)?;
    }
    let started = delegate.start(Verb::Add, &[]);
    if let Some(record) = record {
        record.share_with_children(false)?;
    }
    let output = started?.finish(&call.stdin, call.deadline)?;
    let result = serde_json::from_slice(&output)
        .map_err(|error| Error::new(Code::Decode, format!("its output is no JSON: {error}")))
        .and_then(|json| AddResult::from_json(&json));
    result.map_err(|error| Error { msg: format!("{plugin} returned no valid result: {}", error.msg), ..error })
}

/// Has the plugin give back what the attachment holds.
pub fn release(plugin: &str, call: &Call, key: &AttachmentKey, deadline: Deadline) -> Result<(), Error> {
    begin_release(plugin, call, key)?.finish(&call.stdin, deadline).map(drop)
}

/// Starts the plugin for a DEL; it does nothing before it gets its input.
pub fn begin_release(plugin: &str, call: &Call, key: &AttachmentKey) -> Result<Running, Error> {
    let env = [("CNI_CONTAINERID", key.container_id.as_str()), ("CNI_IFNAME", key.ifname.as_str())];
    Delegate::find(plugin, &call.cni_path)?.start(Verb::Del, &env)
}

/// Forwards CHECK, GC or STATUS with its environment and configuration.
pub fn forward(verb: Verb, plugin: &str, call: &Call) -> Result<(), Error> {
    let delegate = Delegate::find(plugin, &call.cni_path)?;
    delegate.start(verb, &[])?.finish(&call.stdin, call.deadline).map(drop)
}
