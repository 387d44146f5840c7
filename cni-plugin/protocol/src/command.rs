//! What a runtime asks for, checked.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::{
    AddResult, CniArgs, ContainerId, ContainerNetns, Deadline, IfName, NetworkName, VALID_ATTACHMENTS,
    Version,
};

/// What every command with a configuration has.
#[derive(Debug, Clone)]
pub struct Call {
    /// The version of the specification that the runtime speaks and is answered in.
    pub version: Version,
    pub network: NetworkName,
    /// The whole configuration; no key stands in it twice.
    pub conf: Map<String, Value>,
    /// The configuration as it came, for delegated plugins.
    pub stdin: Vec<u8>,
    /// The directories of `CNI_PATH`, in their order.
    pub cni_path: Vec<PathBuf>,
    /// When the command has to be over: `timeout` of the configuration in seconds, else 60 s after its start.
    pub deadline: Deadline,
}

impl Call {
    /// Has delegated plugins get the configuration as it is in `conf` now.
    pub fn write_stdin(&mut self) {
        self.stdin = Value::Object(self.conf.clone()).to_string().into_bytes();
    }
}

/// A command for a plugin. VERSION is not among them: the main loop answers it.
#[derive(Debug, Clone)]
pub enum Command {
    Add(AddArgs),
    Del(DelArgs),
    Check(CheckArgs),
    Gc(GcArgs),
    Status(StatusArgs),
}

impl Command {
    #[must_use]
    pub fn call(&self) -> &Call {
        match self {
            Self::Add(args) => &args.call,
            Self::Del(args) => &args.call,
            Self::Check(args) => &args.call,
            Self::Gc(args) => &args.call,
            Self::Status(args) => &args.call,
        }
    }

    #[must_use]
    pub fn verb(&self) -> Verb {
        match self {
            Self::Add(_) => Verb::Add,
            Self::Del(_) => Verb::Del,
            Self::Check(_) => Verb::Check,
            Self::Gc(_) => Verb::Gc,
            Self::Status(_) => Verb::Status,
        }
    }
}

/// ADD: attach a container to the network.
#[derive(Debug, Clone)]
pub struct AddArgs {
    pub call: Call,
    pub container_id: ContainerId,
    pub ifname: IfName,
    /// A network namespace that exists and is not the caller's own.
    pub netns: ContainerNetns,
    pub args: CniArgs,
    /// What the plugin before this one in the chain returned.
    pub prev_result: Option<AddResult>,
}

/// DEL: detach a container from the network.
#[derive(Debug, Clone)]
pub struct DelArgs {
    pub call: Call,
    pub container_id: ContainerId,
    pub ifname: IfName,
    /// `None` when the variable is unset or empty. What it names may be gone, no network namespace, or the caller's own: most
    /// plugins need none to remove an attachment, so it is not looked at.
    pub netns: Option<PathBuf>,
    /// Empty when they cannot be parsed: that must not keep a container's remains on the host.
    pub args: CniArgs,
    /// What the container's last ADD returned, if the runtime knows and it can be parsed.
    pub prev_result: Option<AddResult>,
}

/// CHECK: is everything as ADD left it?
#[derive(Debug, Clone)]
pub struct CheckArgs {
    pub call: Call,
    pub container_id: ContainerId,
    pub ifname: IfName,
    /// A network namespace that exists and is not the caller's own.
    pub netns: ContainerNetns,
    pub args: CniArgs,
    /// What the container's last ADD returned.
    pub prev_result: AddResult,
}

/// GC: remove whatever belongs to attachments that are gone.
#[derive(Debug, Clone)]
pub struct GcArgs {
    pub call: Call,
    /// The network's attachments that are still there. Empty only if the runtime said so.
    pub valid: Vec<ValidAttachment>,
}

impl GcArgs {
    /// Adds what is to be kept although the runtime does not name it: to the list, and to the configuration that a
    /// delegate gets.
    pub fn keep(&mut self, kept: &[ValidAttachment]) {
        if kept.is_empty() {
            return;
        }
        self.valid.extend_from_slice(kept);
        let entry = |one: &ValidAttachment| json!({ "containerID": one.container_id.as_str(), "ifname": one.ifname.as_str() });
        for name in VALID_ATTACHMENTS {
            if let Some(Value::Array(list)) = self.call.conf.get_mut(name) {
                list.extend(kept.iter().map(entry));
            }
        }
        self.call.write_stdin();
    }
}

/// One attachment that GC keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValidAttachment {
    pub container_id: ContainerId,
    pub ifname: IfName,
}

/// STATUS: would an ADD succeed?
#[derive(Debug, Clone)]
pub struct StatusArgs {
    pub call: Call,
}

/// What a command ended with.
pub enum Outcome {
    /// ADD: a result to be written to stdout.
    Attached {
        result: AddResult,
        /// Undoes the attachment when its result cannot be delivered; returns what it could not undo.
        rollback: Box<dyn FnOnce() -> Vec<String>>,
    },
    /// ADD behind another plugin whose result stays as it is.
    Passed {
        /// In the version's own form.
        result: Value,
        /// As for [`Outcome::Attached`].
        rollback: Box<dyn FnOnce() -> Vec<String>>,
    },
    /// Every other command: success has nothing to say.
    Done,
}

/// The value of `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    const ALL: [Verb; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }

    /// The version of the specification that brought the command.
    pub(crate) fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }
}
