//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Code, Error};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The address made one of those that anybody may give an interface: locally administered, unicast
    /// (IEEE 802-2014 §8.2.2).
    #[must_use]
    pub const fn locally_administered(self) -> Self {
        let [first, b, c, d, e, f] = self.0;
        Self([(first | 0x02) & 0xfe, b, c, d, e, f])
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    /// Reads six bytes in hex, separated by ':' or '-'.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] for any other text.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = || {
            Error::new(
                Code::InvalidConfig,
                format!("{text:?} is not a MAC address: give six bytes in hex, like 02:42:ac:11:00:02"),
            )
        };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refuse)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).ok().ok_or_else(refuse)?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_round_trip(octets: [u8; 6]) {
            let mac = MacAddr::new(octets);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
            prop_assert_eq!(mac.to_string().to_uppercase().replace(':', "-").parse::<MacAddr>().unwrap(), mac);
        }
    }

    #[test]
    fn other_text_is_refused() {
        for bad in [
            "", "02:42", "02:42:ac:11:00:02:03", "02:42:ac:11:00:0g", "2:42:ac:11:0:2", "02-42:ac-11-00-02",
            "+2:42:ac:11:00:02",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
