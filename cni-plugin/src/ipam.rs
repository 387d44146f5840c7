//! The IPAM plugin: the only process that Weft executes.

use std::borrow::Cow;

use cni_protocol::{AddResult, Call, Code, Deadline, Delegate, Error, Running, STDIN_TIMEOUT_ENV, Verb};
use serde_json::{Map, Value};
use weft_state::{BOOT_ID_ENV, STARTED_ENV, boot_id, started};

use crate::conf;
use crate::key::AttachmentKey;
use crate::record::Record;

/// A plugin at work on an ADD.
pub struct Reserving {
    plugin: String,
    running: Running,
}

impl Reserving {
    /// Starts the plugin; it does nothing before [`Reserving::feed`]. It inherits the attachment's lock: should
    /// this process be killed, a DEL waits until the plugin has ended, and finds what it reserved.
    pub fn begin(plugin: &str, call: &Call, record: Option<&Record>) -> Result<Self, Error> {
        let delegate = Delegate::find(plugin, &call.cni_path)?;
        let boot = boot_id()?;
        if let Some(record) = record {
            record.share_with_children(true)?;
        }
        let started = delegate.start(Verb::Add, &[(BOOT_ID_ENV, boot)]).map(Running::beside);
        if let Some(record) = record {
            record.share_with_children(false)?;
        }
        Ok(Self { plugin: plugin.to_owned(), running: started? })
    }

    /// Has the plugin begin to reserve.
    pub fn feed(&mut self, call: &Call) -> Result<(), Error> {
        self.running.feed(&call.stdin)
    }

    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Whether there was a plugin at work at all. Known when [`Reserving::addresses`] has failed.
    pub fn was_begun(&self) -> bool {
        self.running.was_executed()
    }

    /// Waits for the addresses. The plugin may be about to end then, which [`Reserving::end`] waits for.
    pub fn addresses(&mut self, call: &Call) -> Result<AddResult, Error> {
        let Self { plugin, running } = self;
        match given(running.listen(&call.stdin, call.deadline)?) {
            Ok(given) => Ok(given),
            // What a plugin that fails has to say is no result.
            Err(error) => {
                running.finish(&call.stdin, call.deadline)?;
                Err(Error { msg: format!("{plugin} {}", error.msg), ..error })
            }
        }
    }

    /// Waits for the plugin's end. Only one that ends well has reserved.
    pub fn end(&mut self, call: &Call) -> Result<(), Error> {
        self.running.finish(&call.stdin, call.deadline).map(drop)
    }
}

/// The addresses in what a plugin said.
fn given(output: &[u8]) -> Result<AddResult, Error> {
    let json = serde_json::from_slice(output).map_err(|error| {
        Error::new(Code::Decode, format!("returned no valid result: its output is no JSON: {error}"))
    })?;
    let given = AddResult::from_json(&json)
        .map_err(|error| Error { msg: format!("returned no valid result: {}", error.msg), ..error })?;
    if given.ips.is_empty() {
        let msg = "returned no address: correct its configuration, or leave ipam out";
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    Ok(given)
}

/// The call as it is for the plugin that has a recorded attachment's addresses: the configuration may name another one by now, or
/// have the plugin look elsewhere.
pub fn call_as_recorded<'a>(call: &'a Call, recorded: Option<&Map<String, Value>>) -> Cow<'a, Call> {
    let Some(then) = recorded else { return Cow::Borrowed(call) };
    if matches!(conf::ipam(&call.conf), Ok(Some((_, now))) if now == then) {
        return Cow::Borrowed(call);
    }
    log::warn!("the configuration has another ipam than at ADD: the addresses are given back to that one");
    let mut call = call.clone();
    call.conf.remove("chained");
    call.conf.insert("ipam".to_owned(), then.clone().into());
    call.write_stdin();
    Cow::Owned(call)
}

/// Has the plugin give back what the attachment holds.
pub fn release(plugin: &str, call: &Call, key: &AttachmentKey, deadline: Deadline) -> Result<(), Error> {
    begin_release(plugin, call, key)?.finish(&call.stdin, deadline).map(drop)
}

/// Starts the plugin for a DEL; it does nothing before it gets its input, for which it waits as long as the DEL may take.
pub fn begin_release(plugin: &str, call: &Call, key: &AttachmentKey) -> Result<Running, Error> {
    let patience = (call.deadline.remaining().as_secs() + 1).to_string();
    let env = [
        ("CNI_CONTAINERID", key.container_id.as_str()),
        ("CNI_IFNAME", key.ifname.as_str()),
        (BOOT_ID_ENV, boot_id()?),
        (STDIN_TIMEOUT_ENV, &patience),
    ];
    Delegate::find(plugin, &call.cni_path)?.start(Verb::Del, &env)
}

/// Forwards GC. The plugin is told when this command began: on a host where no lock was there to be taken, an
/// ADD may have begun since.
pub fn collect_garbage(plugin: &str, call: &Call) -> Result<(), Error> {
    let began = started().as_nanos().to_string();
    let delegate = Delegate::find(plugin, &call.cni_path)?;
    delegate.start(Verb::Gc, &[(STARTED_ENV, &began)])?.finish(&call.stdin, call.deadline).map(drop)
}

/// Forwards CHECK or STATUS with its environment, and what is beside that, and its configuration.
pub fn forward(verb: Verb, plugin: &str, call: &Call, env: &[(&str, &str)]) -> Result<(), Error> {
    Delegate::find(plugin, &call.cni_path)?.start(verb, env)?.finish(&call.stdin, call.deadline).map(drop)
}
