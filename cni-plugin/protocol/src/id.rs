//! Names that come from outside and end up in file names, aliases and kernel messages.

use std::fmt;
use std::str::FromStr;

use crate::{Code, Error};

/// The longest network name in bytes: it names a directory (255 bytes in most file systems) to which
/// suffixes are added.
const NETWORK_NAME_MAX: usize = 200;

/// `IFNAMSIZ` of linux/if.h without the terminating zero.
const IFNAME_MAX: usize = 15;

/// A type around a `String` that only its parser makes.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $check:ident, $code:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                $check(text).map_err(|reason| Error::new($code, reason))?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self, Error> {
                text.parse()
            }
        }
    };
}

checked_name! {
    /// A container's ID: `^[A-Za-z0-9][A-Za-z0-9_.-]*$`.
    ContainerId, check_container_id, Code::InvalidEnvironment
}

checked_name! {
    /// A network's name: `^[A-Za-z0-9][A-Za-z0-9_.-]*$`, 200 bytes at most since it names a directory.
    NetworkName, check_network_name, Code::InvalidConfig
}

checked_name! {
    /// The name of an interface: 1 to 15 bytes, none of them a '/', ':', '%' or white space, and not ".",
    /// "..", "all" or "default".
    IfName, check_ifname, Code::InvalidEnvironment
}

fn check_container_id(text: &str) -> Result<(), String> {
    check_pattern("container ID", text)
}

fn check_network_name(text: &str) -> Result<(), String> {
    check_pattern("network name", text)?;
    if text.len() > NETWORK_NAME_MAX {
        return Err(format!(
            "network name of {} bytes is too long: it names a directory, use at most {NETWORK_NAME_MAX} bytes",
            text.len()
        ));
    }
    Ok(())
}

/// The pattern that the specification has for container IDs and network names.
fn check_pattern(what: &str, text: &str) -> Result<(), String> {
    let first = text.bytes().next().ok_or_else(|| format!("{what} is empty"))?;
    if !first.is_ascii_alphanumeric() {
        return Err(format!("{what} {text:?} must start with an ASCII letter or digit"));
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        Some(bad) => {
            Err(format!("{what} {text:?} contains {bad:?}: use ASCII letters, digits, '_', '.' and '-'"))
        }
        None => Ok(()),
    }
}

/// The specification's rules, and those of the kernel on top: it takes '%' for a number to be chosen, calls
/// the byte 0xa0 a space, and its sysctl directories "all" and "default" cannot be an interface's.
fn check_ifname(text: &str) -> Result<(), String> {
    let name = format!("interface name {text:?}");
    match text {
        "" => return Err("interface name is empty".to_owned()),
        "." | ".." => return Err(format!("{name} is a directory")),
        "all" | "default" => return Err(format!("{name} is reserved by the kernel's sysctl tree")),
        _ => {}
    }
    if text.len() > IFNAME_MAX {
        return Err(format!("{name} has {} bytes: Linux allows {IFNAME_MAX}", text.len()));
    }
    if let Some(bad) = text.chars().find(|c| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace()) {
        return Err(format!("{name} contains {bad:?}"));
    }
    if text.bytes().any(|byte| byte == 0xa0) {
        return Err(format!("{name} contains the byte 0xa0, which the kernel takes for a space"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn container_ids() {
        for good in ["a", "0", "a.b_c-d", "A9", &"x".repeat(500)] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "a\n", "é", "a:b", "../x"] {
            let error = bad.parse::<ContainerId>().unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{bad:?}");
        }
    }

    #[test]
    fn network_names_fit_a_directory() {
        assert!("x".repeat(200).parse::<NetworkName>().is_ok());
        let error = "x".repeat(201).parse::<NetworkName>().unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("directory"), "{error}");
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "a", "fifteen-bytes-x", "-", "…", "net@1", "..."] {
            assert!(good.parse::<IfName>().is_ok(), "{good:?}");
        }
        let too_long = "sixteen-bytes-xx";
        for bad in [
            "", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{2003}", "à", "eth%d", "all", "default", too_long,
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_one_path_component(text in "\\PC{0,24}") {
            for accepted in [
                text.parse::<ContainerId>().map(|id| id.to_string()).ok(),
                text.parse::<NetworkName>().map(|id| id.to_string()).ok(),
                text.parse::<IfName>().map(|id| id.to_string()).ok(),
            ].into_iter().flatten() {
                prop_assert_eq!(&accepted, &text);
                let path = std::path::Path::new("/d").join(&accepted);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/d")));
                prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(text.as_str()));
            }
        }
    }
}
