//! The environment variables by which a runtime passes its parameters.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{CniArgs, Code, ContainerId, ContainerNetns, Error, IfName};

/// The variables as they are. An empty one is as good as unset.
#[derive(Debug, Default, Clone)]
pub(crate) struct RawEnv {
    pub(crate) container_id: Option<OsString>,
    pub(crate) ifname: Option<OsString>,
    pub(crate) netns: Option<OsString>,
    pub(crate) args: Option<OsString>,
    pub(crate) path: Option<OsString>,
}

/// Which attachment a command is about, and where the container is.
pub(crate) struct Attachment<N> {
    pub(crate) container_id: ContainerId,
    pub(crate) ifname: IfName,
    pub(crate) netns: N,
    pub(crate) args: CniArgs,
}

impl RawEnv {
    pub(crate) fn of_process() -> Self {
        Self {
            container_id: non_empty("CNI_CONTAINERID"),
            ifname: non_empty("CNI_IFNAME"),
            netns: non_empty("CNI_NETNS"),
            args: non_empty("CNI_ARGS"),
            path: non_empty("CNI_PATH"),
        }
    }

    /// The parameters of ADD and CHECK, for which the container must be there.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`] with the name of every variable that is missing or invalid.
    pub(crate) fn present_container(&self) -> Result<Attachment<ContainerNetns>, Error> {
        self.attachment(checked_netns(self.netns.as_deref()), parse_args(self.args.as_deref()))
    }

    /// The parameters of DEL, for which container and arguments may be gone or wrong.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`] with the name of every variable that is missing or invalid.
    pub(crate) fn perhaps_gone_container(&self) -> Result<Attachment<Option<PathBuf>>, Error> {
        let netns = self.netns.as_deref().map(PathBuf::from);
        let args = parse_args(self.args.as_deref()).unwrap_or_else(|reason| {
            log::warn!("DEL goes on without the arguments: {reason}");
            CniArgs::default()
        });
        self.attachment(Ok(netns), Ok(args))
    }

    /// Joins what was checked, or every reason why something was not fit.
    fn attachment<N>(
        &self,
        netns: Result<N, String>,
        args: Result<CniArgs, String>,
    ) -> Result<Attachment<N>, Error> {
        let container_id = parse("CNI_CONTAINERID", self.container_id.as_deref());
        let ifname = parse("CNI_IFNAME", self.ifname.as_deref());
        match (container_id, ifname, netns, args) {
            (Ok(container_id), Ok(ifname), Ok(netns), Ok(args)) => {
                Ok(Attachment { container_id, ifname, netns, args })
            }
            (container_id, ifname, netns, args) => {
                let reasons = [container_id.err(), ifname.err(), netns.err(), args.err()];
                let reasons: Vec<String> = reasons.into_iter().flatten().collect();
                Err(Error::new(
                    Code::InvalidEnvironment,
                    format!("invalid environment: {}", reasons.join("; ")),
                ))
            }
        }
    }

    /// The directories of `CNI_PATH`; none when it is unset.
    pub(crate) fn cni_path(&self) -> Vec<PathBuf> {
        let path = self.path.as_deref().unwrap_or_default();
        std::env::split_paths(path).filter(|directory| !directory.as_os_str().is_empty()).collect()
    }

    /// The directories of `CNI_PATH` for GC, the only command that requires the variable.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`] when there is none.
    pub(crate) fn required_cni_path(&self) -> Result<Vec<PathBuf>, Error> {
        let directories = self.cni_path();
        if directories.is_empty() {
            return Err(Error::new(
                Code::InvalidEnvironment,
                "invalid environment: CNI_PATH is not set: GC needs the directories of the plugins",
            ));
        }
        Ok(directories)
    }
}

fn non_empty(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn parse<T: FromStr<Err = Error>>(name: &str, value: Option<&OsStr>) -> Result<T, String> {
    let value = value.ok_or_else(|| format!("{name} is not set"))?;
    let text = value.to_str().ok_or_else(|| format!("{name} is not UTF-8"))?;
    text.parse().map_err(|error| format!("{name}: {error}"))
}

fn checked_netns(value: Option<&OsStr>) -> Result<ContainerNetns, String> {
    let value = value.ok_or("CNI_NETNS is not set")?;
    // The result has to name it, and JSON is UTF-8.
    let path = Path::new(value.to_str().ok_or("CNI_NETNS is not UTF-8")?);
    ContainerNetns::open(path).map_err(|reason| format!("CNI_NETNS: {reason}"))
}

fn parse_args(value: Option<&OsStr>) -> Result<CniArgs, String> {
    let text = value.unwrap_or_default().to_str().ok_or("CNI_ARGS is not UTF-8")?;
    CniArgs::parse(text).map_err(|reason| format!("CNI_ARGS: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::netns::tests::other_netns;

    fn env(container_id: &str, ifname: &str, netns: &str) -> RawEnv {
        let value = |text: &str| Some(OsString::from(text)).filter(|text| !text.is_empty());
        RawEnv {
            container_id: value(container_id),
            ifname: value(ifname),
            netns: value(netns),
            ..RawEnv::default()
        }
    }

    #[test]
    fn every_invalid_variable_is_named() {
        let mut raw = env("", "a/b", "/nowhere");
        raw.args = Some("FOO=1".into());
        let error = raw.present_container().err().unwrap();
        assert_eq!(error.code, Code::InvalidEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
            assert!(error.msg.contains(name), "{name}: {error}");
        }
        let not_utf8 = Some(OsString::from_vec(vec![0xff]));
        let raw = RawEnv {
            container_id: not_utf8.clone(),
            ifname: not_utf8.clone(),
            netns: not_utf8.clone(),
            args: not_utf8,
            path: None,
        };
        let error = raw.present_container().err().unwrap();
        assert_eq!(error.msg.matches("is not UTF-8").count(), 4, "{error}");
    }

    #[test]
    fn only_what_is_wrong_is_named() {
        let error = env("c1", "eth0", "/proc/self/ns/net").present_container().err().unwrap();
        assert!(error.msg.contains("CNI_NETNS") && error.msg.contains("host's own"), "{error}");
        assert!(!error.msg.contains("CNI_IFNAME") && !error.msg.contains("CNI_CONTAINERID"), "{error}");
    }

    #[test]
    fn a_present_container() {
        let (_file, path) = other_netns();
        let attachment = env("c1", "eth0", path.to_str().unwrap()).present_container().unwrap();
        assert_eq!(attachment.container_id.as_str(), "c1");
        assert_eq!(attachment.ifname.as_str(), "eth0");
        assert_eq!(attachment.netns.path(), path);
    }

    #[test]
    fn del_needs_only_the_names() {
        for netns in ["", "/nowhere", "/proc/self/ns/net", "/dev/null"] {
            let mut raw = env("c1", "eth0", netns);
            raw.args = Some("garbage".into());
            let attachment = raw.perhaps_gone_container().unwrap();
            let named = (!netns.is_empty()).then(|| PathBuf::from(netns));
            assert_eq!(attachment.netns, named);
            assert_eq!(attachment.args, CniArgs::default());
        }
        let error = env("", "", "").perhaps_gone_container().err().unwrap();
        assert!(error.msg.contains("CNI_CONTAINERID") && error.msg.contains("CNI_IFNAME"), "{error}");
    }

    #[test]
    fn directories_of_plugins() {
        let mut raw = RawEnv::default();
        assert!(raw.required_cni_path().unwrap_err().msg.contains("CNI_PATH"));
        raw.path = Some(":".into());
        assert!(raw.required_cni_path().is_err());
        raw.path = Some("/a::/b:".into());
        assert_eq!(raw.required_cni_path().unwrap(), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(raw.cni_path(), raw.required_cni_path().unwrap());
    }
}
