//! How what was tried ended: what it changed, or why it failed and what helps.

use std::fmt;
use std::io;

use cni_protocol::{Code, Error};
use nix::errno::Errno;
use weft_net::NetError;

/// Why a step failed.
#[derive(Debug)]
pub enum Fault {
    Net(NetError),
    Io(io::Error),
    /// An error with its own code and remedy.
    Told(Error),
}

impl From<NetError> for Fault {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

/// The error of a step: what was done, on what, why it failed, and what helps.
pub fn failed(step: &dyn fmt::Display, fault: Fault) -> Error {
    let has_no_ipv6 = matches!(&fault, Fault::Net(error) if error.is_without_ipv6());
    let (text, errno) = match fault {
        Fault::Told(error) => return Error { msg: format!("{step}: {}", error.msg), ..error },
        Fault::Net(error) => (error.to_string(), Some(error.errno)),
        Fault::Io(error) => (error.to_string(), error.raw_os_error().map(Errno::from_raw)),
    };
    let remedy = match errno {
        _ if has_no_ipv6 => {
            "set it to 0, and net.ipv6.conf.default.disable_ipv6, with which interfaces begin; or leave IPv6 out of the \
             network's ranges and routes"
        }
        Some(Errno::EPERM | Errno::EACCES) => {
            "run the container runtime as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        }
        Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => {
            "the kernel lacks this: load its module (bridge, veth, nf_tables, nft_masq)"
        }
        Some(Errno::EROFS) => {
            "mount it read-write where the container runtime runs: `mount -o remount,rw /proc/sys`"
        }
        Some(Errno::ENOMEM | Errno::ENOBUFS) => "the kernel has no memory for it: free some and try again",
        Some(Errno::EMFILE | Errno::ENFILE) => {
            "too many files are open: raise the limit of the container runtime (LimitNOFILE) or of the host (fs.file-max)"
        }
        Some(Errno::ENOSPC) => "the file system or a table of the kernel is full: make room and try again",
        Some(Errno::EIO) => "a device of the host has failed: repair what `dmesg` names and try again",
        Some(Errno::ETIMEDOUT) => "the kernel did not answer in the command's time: raise the key timeout",
        _ => "see the kernel log for more; nothing was left behind unless the details say so",
    };
    let code = if errno == Some(Errno::ETIMEDOUT) { Code::Deadline } else { Code::Kernel };
    Error::new(code, format!("{step}: {text}; {remedy}"))
}

/// Whether a step changed anything. What was only found is not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Made,
    Found,
}

impl From<bool> for Change {
    fn from(changed: bool) -> Self {
        if changed { Self::Made } else { Self::Found }
    }
}
