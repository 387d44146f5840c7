//! What the kernel says of a request that it does not carry out.

use std::fmt::{self, Display};

use nix::errno::Errno;

pub type NlResult<T> = Result<T, NetError>;

/// What the kernel answered to a request it did not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetError {
    pub errno: Errno,
    /// The extended acknowledgement, where the kernel gave one.
    pub explanation: Option<String>,
}

impl NetError {
    /// What the kernel says to an address or route of IPv6 where that is switched off (`EACCES`), with the setting that does it.
    pub fn without_ipv6(interface: &str) -> Self {
        let explanation = format!("net.ipv6.conf.{interface}.disable_ipv6 is 1");
        Self { errno: Errno::EACCES, explanation: Some(explanation) }
    }

    /// Whether it is [`NetError::without_ipv6`].
    pub fn is_without_ipv6(&self) -> bool {
        let explanation = self.explanation.as_deref().unwrap_or_default();
        self.errno == Errno::EACCES && explanation.contains(".disable_ipv6 ")
    }

    /// Whether the object is there already.
    pub fn exists(&self) -> bool {
        self.errno == Errno::EEXIST
    }

    /// Whether the object is not there. The kernel says so in different ways for links, addresses,
    /// routes and tables.
    pub fn not_found(&self) -> bool {
        matches!(self.errno, Errno::ENODEV | Errno::ENOENT | Errno::EADDRNOTAVAIL | Errno::ESRCH)
    }
}

impl From<Errno> for NetError {
    fn from(errno: Errno) -> Self {
        Self { errno, explanation: None }
    }
}

impl From<std::io::Error> for NetError {
    fn from(error: std::io::Error) -> Self {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_raw).into()
    }
}

impl Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.errno.desc(), self.errno)?;
        match &self.explanation {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NetError {}
