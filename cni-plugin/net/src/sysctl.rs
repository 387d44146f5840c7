//! Kernel settings of the network namespace that the process is in: `sysctl net.…`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::{Family, NetError, NlResult};

/// A file below `/proc/sys/net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl(PathBuf);

impl Sysctl {
    /// `net.ipv4.ip_forward` or `net.ipv6.conf.all.forwarding`: whether the host routes between its links.
    pub fn forwarding(family: Family) -> Self {
        Self::at(match family {
            Family::V4 => "ipv4/ip_forward",
            Family::V6 => "ipv6/conf/all/forwarding",
        })
    }

    /// `net.ipv4.conf.IFNAME.forwarding` or that of IPv6. With 0 the kernel drops IPv4 packets that come in there and are for others;
    /// in IPv6 the interface takes advertisements of routers.
    pub fn forwarding_at(family: Family, ifname: &str) -> Self {
        match family {
            Family::V4 => Self::ipv4_of(ifname, "forwarding"),
            Family::V6 => Self::ipv6_of(ifname, "forwarding"),
        }
    }

    /// The settings of interfaces, and of new ones, that are 1: the kernel overwrites all with [`Sysctl::forwarding`].
    pub fn all_forwarding_at(family: Family) -> NlResult<Vec<Self>> {
        let Self(all) = Self::at(match family {
            Family::V4 => "ipv4/conf",
            Family::V6 => "ipv6/conf",
        });
        let mut found = Vec::new();
        for interface in fs::read_dir(&all).map_err(|error| refused(&all, error))? {
            let interface = interface.map_err(|error| refused(&all, error))?;
            let setting = Self::forwarding_at(family, &interface.file_name().to_string_lossy());
            if setting.get()?.as_deref() == Some("1") {
                found.push(setting);
            }
        }
        Ok(found)
    }

    /// `net.ipv4.conf.IFNAME.route_localnet`: whether packets from and to 127.0.0.0/8 may pass the interface.
    pub fn route_localnet(ifname: &str) -> Self {
        Self::ipv4_of(ifname, "route_localnet")
    }

    /// `net.ipv4.conf.IFNAME.KEY`. An interface name has no '/', so it cannot lead elsewhere.
    pub fn ipv4_of(ifname: &str, key: &str) -> Self {
        Self::at(&format!("ipv4/conf/{ifname}/{key}"))
    }

    /// `net.ipv6.conf.IFNAME.KEY`.
    pub fn ipv6_of(ifname: &str, key: &str) -> Self {
        Self::at(&format!("ipv6/conf/{ifname}/{key}"))
    }

    /// The setting with these parts in its name, `net` first; `None` when they could lead elsewhere.
    pub fn named(parts: &[String]) -> Option<Self> {
        let [net, rest @ ..] = parts else { return None };
        let strange = |part: &String| part.is_empty() || part.starts_with('.') || part.contains(['/', '\0']);
        if net != "net" || rest.is_empty() || rest.iter().any(strange) {
            return None;
        }
        Some(Self::at(&rest.join("/")))
    }

    fn at(path: &str) -> Self {
        Self(Path::new("/proc/sys/net").join(path))
    }

    /// The value, without the line's end. `None` where the kernel has no such setting (IPv6 built out).
    pub fn get(&self) -> NlResult<Option<String>> {
        match fs::read_to_string(&self.0) {
            Ok(value) => Ok(Some(value.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(&self.0, error)),
        }
    }

    /// Whether nobody may write it: the kernel shows its own settings so in namespaces other than the host's.
    pub fn is_read_only(&self) -> io::Result<bool> {
        Ok(fs::metadata(&self.0)?.permissions().readonly())
    }

    /// Writes the value. A setting that the kernel does not have is left: without IPv6 there is nothing to
    /// switch off.
    pub fn set(&self, value: &str) -> NlResult<()> {
        let written = OpenOptions::new().write(true).open(&self.0);
        match written.and_then(|mut file| file.write_all(value.as_bytes())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written.map_err(|error| refused(&self.0, error)),
        }
    }

    /// Whether this process could write it.
    pub fn is_writable(&self) -> NlResult<()> {
        access(&self.0, AccessFlags::W_OK).map_err(|errno| refused(&self.0, errno.into()))
    }

    /// `net.ipv6.conf.IFNAME.KEY=VALUE` for several keys. Their directory is looked up once: the kernel finds it among those
    /// of all namespaces, which have the same names. Where these are many, it is looked for in a procfs of the process' own.
    pub fn set_ipv6_of(ifname: &str, settings: &[(&str, &str)], are_many: bool) -> NlResult<()> {
        const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
        let Self(path) = Self::at(&format!("ipv6/conf/{ifname}"));
        let own = are_many.then(own_procfs).transpose().unwrap_or_else(|error| {
            // Root of a user namespace alone may not have one.
            log::debug!("no procfs of its own: {error}");
            None
        });
        let found = match (own, path.strip_prefix("/proc")) {
            (Some(own), Ok(path)) => openat(own, path, FLAGS, Mode::empty()),
            _ => open(&path, FLAGS, Mode::empty()),
        };
        let directory = match found {
            Err(Errno::ENOENT) => return Ok(()),
            other => other.map_err(|errno| refused(&path, errno.into()))?,
        };
        for (key, value) in settings {
            let opened = openat(&directory, *key, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            match opened
                .map_err(io::Error::from)
                .and_then(|file| File::from(file).write_all(value.as_bytes()))
            {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => written.map_err(|error| refused(&path.join(key), error))?,
            }
        }
        Ok(())
    }

    /// Writes the value unless it is set already; whether it had to.
    pub fn ensure(&self, value: &str) -> NlResult<bool> {
        match self.get()? {
            Some(found) if found != value => self.set(value).map(|()| true),
            _ => Ok(false),
        }
    }
}

/// What the kernel said, and of which setting.
fn refused(path: &Path, error: io::Error) -> NetError {
    NetError { explanation: Some(path.display().to_string()), ..error.into() }
}

/// A procfs that is mounted nowhere, and goes with what is open of it: `mount -t proc`.
fn own_procfs() -> io::Result<OwnedFd> {
    let procfs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&procfs)?;
    Ok(fsmount(procfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

impl std::fmt::Display for Sysctl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.display())
    }
}
