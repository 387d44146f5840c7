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
