//! The CNI project's own runtime, which calls a whole list of plugins.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::pod::Pod;
use crate::tools;

/// `cnitool` with the networks of one directory, and with the binaries under test and the reference plugins to run.
pub struct CniTool<'a> {
    networks: &'a Path,
    capabilities: Option<Value>,
}

impl<'a> CniTool<'a> {
    /// With the conflists of a directory.
    pub fn new(networks: &'a Path) -> Self {
        Self { networks, capabilities: None }
    }

    /// What becomes `runtimeConfig`, for the plugins that declare the capability.
    #[must_use]
    pub fn capabilities(mut self, values: Value) -> Self {
        self.capabilities = Some(values);
        self
    }

    /// Calls `cnitool COMMAND NETWORK NETNS` and waits for its end, however that is.
    pub fn attempt(&self, command: &str, network: &str, pod: &Pod) -> Output {
        let mut process = Command::new(tools::peers().join("cnitool"));
        process.args([command, network]).arg(pod.path()).env_clear();
        process.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        process.env("NETCONFPATH", self.networks);
        process.env("CNI_PATH", plugin_path());
        if let Some(capabilities) = &self.capabilities {
            process.env("CAP_ARGS", capabilities.to_string());
        }
        process.output().expect("run cnitool")
    }

    /// Calls cnitool, which must succeed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    #[track_caller]
    pub fn run(&self, command: &str, network: &str, pod: &Pod) {
        self.answer(command, network, pod);
    }

    /// `cnitool add`, which must succeed: the result of the last plugin.
    #[track_caller]
    pub fn add(&self, network: &str, pod: &Pod) -> Value {
        let answer = self.answer("add", network, pod);
        serde_json::from_slice(&answer)
            .unwrap_or_else(|error| panic!("no JSON, {error}: {}", String::from_utf8_lossy(&answer)))
    }

    #[track_caller]
    fn answer(&self, command: &str, network: &str, pod: &Pod) -> Vec<u8> {
        let output = self.attempt(command, network, pod);
        assert!(
            output.status.success(),
            "cnitool {command} {network} failed, {}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        output.stdout
    }
}

/// `CNI_PATH` with the binaries under test and the reference plugins.
pub(crate) fn plugin_path() -> String {
    format!("{}:{}", tools::dist().display(), tools::peers().display())
}
