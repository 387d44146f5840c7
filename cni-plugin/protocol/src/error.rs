//! Errors as CNI carries them: a number, a line, and what stands behind it.

use serde_json::{Value, json};

use crate::Version;

/// Why a command failed, as the number that a runtime sees.
///
/// 0 to 99 are the specification's, 100 and above are Weft's own; `docs/errors.md` explains each with its
/// remedy.
///
/// Source: CNI specification 1.1.0, section 5 "Error".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 1: the version of the specification is not supported, or has no such command.
    IncompatibleVersion,
    /// 2: a key of the configuration is unknown or not supported; the message has key and value.
    UnsupportedField,
    /// 3: the container is unknown; the runtime needs no clean-up.
    UnknownContainer,
    /// 4: an environment variable is missing or invalid; the message has its name.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: what was read is not what it should be: stdin, a result, another plugin's output.
    Decode,
    /// 7: the configuration contradicts itself or cannot be meant.
    InvalidConfig,
    /// 11: the same call can succeed later.
    TryAgain,
    /// 50: STATUS: an ADD would fail.
    NotAvailable,
    /// 51: STATUS: an ADD would fail, and running containers may be cut off.
    LimitedConnectivity,
    /// 100: a bug in the plugin.
    Internal,
    /// 101: the command did not end in its time.
    Deadline,
    /// 102: the kernel refused a step.
    Kernel,
    /// 103: a name, an address or an attachment belongs to somebody else.
    Conflict,
    /// 104: nothing is left of something finite: addresses, ports of a bridge.
    Exhausted,
    /// 105: CHECK found something other than what ADD promised.
    CheckFailed,
    /// 106: DEL or GC could not remove everything.
    Incomplete,
    /// A code of a delegated plugin that has its own meaning there (100 and above), passed on.
    Delegate(u32),
}

impl Code {
    /// Every code except the open-ended [`Code::Delegate`], in the order of their numbers.
    pub const ALL: [Code; 17] = [
        Self::IncompatibleVersion,
        Self::UnsupportedField,
        Self::UnknownContainer,
        Self::InvalidEnvironment,
        Self::Io,
        Self::Decode,
        Self::InvalidConfig,
        Self::TryAgain,
        Self::NotAvailable,
        Self::LimitedConnectivity,
        Self::Internal,
        Self::Deadline,
        Self::Kernel,
        Self::Conflict,
        Self::Exhausted,
        Self::CheckFailed,
        Self::Incomplete,
    ];

    /// The number in the error's JSON.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Internal => 100,
            Self::Deadline => 101,
            Self::Kernel => 102,
            Self::Conflict => 103,
            Self::Exhausted => 104,
            Self::CheckFailed => 105,
            Self::Incomplete => 106,
            Self::Delegate(number) => number,
        }
    }

    /// What the code means, in a few words; the heading of its section in `docs/errors.md`.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::IncompatibleVersion => "incompatible CNI version",
            Self::UnsupportedField => "unsupported field in the network configuration",
            Self::UnknownContainer => "unknown container",
            Self::InvalidEnvironment => "invalid environment variable",
            Self::Io => "input or output failed",
            Self::Decode => "content that cannot be decoded",
            Self::InvalidConfig => "invalid network configuration",
            Self::TryAgain => "try again later",
            Self::NotAvailable => "not available",
            Self::LimitedConnectivity => "not available, and containers may be cut off",
            Self::Internal => "internal error",
            Self::Deadline => "deadline exceeded",
            Self::Kernel => "the kernel refused a step",
            Self::Conflict => "held by another",
            Self::Exhausted => "exhausted",
            Self::CheckFailed => "CHECK found a difference",
            Self::Incomplete => "clean-up incomplete",
            Self::Delegate(_) => "error of a delegated plugin",
        }
    }

    /// The code for a number that a delegated plugin reported. Numbers of the specification keep their
    /// meaning; from 100 on every plugin has its own.
    pub(crate) fn of_delegate(number: u32) -> Self {
        let well_known = Self::ALL.into_iter().find(|code| code.number() == number && number < 100);
        well_known.unwrap_or(Self::Delegate(number))
    }
}

/// A failed command: its code, the failing step in one line, and further lines for whoever looks into it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Error {
    pub code: Code,
    /// Step, object, cause and remedy in one line.
    pub msg: String,
    /// The chain of causes, what was rolled back, what is left: a line each.
    pub details: Vec<String>,
}

impl Error {
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: Vec::new() }
    }

    /// Adds a line of details.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Message and details, for an error that is one of several.
    pub fn lines(self) -> impl Iterator<Item = String> {
        std::iter::once(self.msg).chain(self.details)
    }

    /// The error as the specification wants it on stdout. `details` is never missing: where there is
    /// nothing to add it says what the code means.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let number = self.code.number();
        let details = if self.details.is_empty() {
            format!("code {number}: {} (docs/errors.md)", self.code.meaning())
        } else {
            self.details.join("\n")
        };
        json!({ "cniVersion": version, "code": number, "msg": self.msg, "details": details })
    }

    /// [`Error::to_json`] in the protocol version of a request.
    pub(crate) fn answer(&self, version: Version) -> Value {
        self.to_json(version.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_every_key() {
        let json = Error::new(Code::InvalidConfig, "mtu is -5").answer(Version::V0_4_0);
        assert_eq!(json["cniVersion"], "0.4.0");
        assert_eq!(json["code"], 7);
        assert_eq!(json["msg"], "mtu is -5");
        assert_eq!(json["details"], "code 7: invalid network configuration (docs/errors.md)");
        let json = Error::new(Code::Kernel, "x").detail("a").detail("b").answer(Version::V1_1_0);
        assert_eq!(json["details"], "a\nb");
    }

    #[test]
    fn numbers_of_delegates_keep_their_meaning() {
        for code in Code::ALL {
            let passed_on = Code::of_delegate(code.number());
            assert_eq!(passed_on.number(), code.number());
            assert_eq!(passed_on == code, code.number() < 100, "{code:?}");
        }
        assert_eq!(Code::of_delegate(999), Code::Delegate(999));
    }

    #[test]
    fn every_code_is_documented() {
        let docs = include_str!("../../../docs/errors.md");
        for code in Code::ALL {
            let heading = format!("\n## {} – {}\n", code.number(), code.meaning());
            assert!(docs.contains(&heading), "docs/errors.md has no section{heading}");
        }
        assert_eq!(docs.matches("\n## ").count(), Code::ALL.len() + 1, "one more for delegates' codes");
    }
}
