//! What the CNI specification says, as types.
//!
//! A plugin binary is a [`Plugin`] with a handler, and its `main` is [`run()`]: that reads environment and
//! stdin, checks everything the protocol asks for, calls the handler with a [`Command`] in which nothing is
//! unchecked, and answers with one JSON document. [`Delegate`] executes another plugin the way the
//! specification's section 4 wants it.
//!
//! Source: <https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md>

mod answer;
mod args;
mod command;
mod conf;
mod deadline;
mod delegate;
mod env;
mod error;
mod id;
mod json;
mod keys;
pub mod logging;
mod mac;
mod netns;
mod node;
mod processor;
mod request;
mod result;
mod run;
mod running;
mod runtime_config;
mod shape;
mod spawn;
mod stdin;
mod stdout;
mod unicast;
mod version;

pub use args::CniArgs;
pub use command::{
    AddArgs, Call, CheckArgs, Command, DelArgs, GcArgs, Outcome, StatusArgs, ValidAttachment, Verb,
};
pub use conf::{decode, decode_part, nearest};
pub use deadline::Deadline;
pub use delegate::Delegate;
pub use error::{Code, Error};
pub use id::{ContainerId, IfName, NetworkName};
pub use keys::canonicalize_keys;
pub use mac::MacAddr;
pub use netns::{ContainerNetns, own as own_netns};
pub use processor::move_away;
pub use request::{STDIN_TIMEOUT_ENV, VALID_ATTACHMENTS};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use run::{Plugin, run};
pub use running::Running;
pub use unicast::not_unicast;
pub use version::Version;
