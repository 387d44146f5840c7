//! Versions of the specification.

use std::fmt;
use std::str::FromStr;

use crate::{Code, Error};

/// A version of the CNI specification that Weft speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// What a configuration without `cniVersion` is written for: the key came with 0.2.0.
    pub const UNSTATED: Version = Self::V0_1_0;

    /// The newest version: for answers that cannot be given in the request's.
    pub const NEWEST: Version = Self::V1_1_0;

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All versions in one line, for a person.
    pub(crate) fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// # Errors
    /// [`Code::IncompatibleVersion`] for a version that Weft does not speak, [`Code::Decode`] for text that
    /// is no version at all.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(version) = Self::ALL.into_iter().find(|version| version.as_str() == text) {
            return Ok(version);
        }
        if is_semantic(text) {
            return Err(Error::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported: use one of {}", Self::list()),
            ));
        }
        Err(Error::new(
            Code::Decode,
            format!("cniVersion {text:?} is not a version: use one of {}", Self::list()),
        ))
    }
}

/// Whether a text has the form of Semantic Versioning 2.0: three numbers, then perhaps a pre-release or build.
fn is_semantic(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    core.split('.').count() == 3
        && core.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_order() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }
        assert!(Version::ALL.is_sorted());
    }

    #[test]
    fn unknown_versions_are_told_from_garbage() {
        for text in ["2.0.0", "1.2.0", "0.3.2", "1.1.0-rc1", "10.0.0"] {
            assert_eq!(text.parse::<Version>().unwrap_err().code, Code::IncompatibleVersion, "{text}");
        }
        for text in ["1.1", "v1.0.0", "abc", "1..0", "-1.0.0", "1.0.0.0", " 1.0.0"] {
            assert_eq!(text.parse::<Version>().unwrap_err().code, Code::Decode, "{text}");
        }
        let error = "9.9.9".parse::<Version>().unwrap_err();
        assert!(error.msg.contains("9.9.9") && error.msg.contains("0.3.1"), "{error}");
    }
}
