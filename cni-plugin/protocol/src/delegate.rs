//! Executing another plugin: the specification's section 4.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::spawn::Process;
use crate::{Code, Error, Running, Verb};

/// Another plugin, found in `CNI_PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    plugin: String,
    program: PathBuf,
    searched: String,
}

impl Delegate {
    /// Looks a plugin up by its `type`: the first executable file of that name in the directories' order.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] for a type that is empty or a path (CVE-2021-20206), and for one that is in
    /// none of the directories, which are named; [`Code::InvalidEnvironment`] when there are no directories.
    pub fn find(plugin_type: &str, cni_path: &[PathBuf]) -> Result<Self, Error> {
        let refuse = |code, reason: String| Error::new(code, format!("plugin type {plugin_type:?} {reason}"));
        if plugin_type.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "plugin type is empty: give the name of a plugin"));
        }
        if plugin_type.contains(['/', '\0']) || plugin_type.contains("..") {
            return Err(refuse(
                Code::InvalidConfig,
                "is a path: give the name of a file in CNI_PATH, without '/' and '..'".to_owned(),
            ));
        }
        let searched = cni_path.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        if cni_path.is_empty() {
            return Err(refuse(
                Code::InvalidEnvironment,
                "cannot be looked up: CNI_PATH is not set (the runtime sets it to the plugins' directories)"
                    .to_owned(),
            ));
        }
        let mut not_executable = None;
        for directory in cni_path {
            let program = directory.join(plugin_type);
            match std::fs::metadata(&program) {
                Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                    return Ok(Self { plugin: plugin_type.to_owned(), program, searched });
                }
                Ok(found) if found.is_file() => not_executable = Some(program),
                _ => {}
            }
        }
        Err(refuse(
            Code::InvalidConfig,
            match not_executable {
                Some(program) => {
                    format!("is not executable: chmod +x {}, searched {searched}", program.display())
                }
                None => format!("was not found: install it in one of the directories searched, {searched}"),
            },
        ))
    }

    /// The file that is executed.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts the plugin with this process' environment, in which `CNI_COMMAND` is the verb's and `env` wins
    /// over all. It waits for its configuration, so that the caller can go on before [`Running::finish`].
    /// Its stderr is this process'.
    ///
    /// # Errors
    /// [`Code::Io`] when the kernel has no process to give. [`Running::finish`] tells when the file
    /// cannot be executed.
    pub fn start(&self, verb: Verb, env: &[(&str, &str)]) -> Result<Running, Error> {
        let env = [&[("CNI_COMMAND", verb.as_str())], env].concat();
        let process = Process::start(&self.program, &env).map_err(|error| {
            let remedy = "see that the container runtime's limits on processes, open files and memory leave room for one";
            Error::new(Code::Io, format!("no process for {}: {error}; {remedy}", self.program.display()))
        })?;
        Ok(Running::new(self.clone(), verb, process))
    }

    /// The error when the kernel did not take the file for a program.
    pub(crate) fn not_executed(&self, reason: Errno) -> Error {
        let (program, searched) = (self.program.display(), &self.searched);
        Error::new(Code::Io, format!("{program} cannot be executed: {reason} (searched {searched})"))
    }

    /// Type and command, for messages.
    pub(crate) fn name(&self, verb: Verb) -> String {
        format!("{} {}", self.plugin, verb.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(name: &str, mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(name);
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn the_first_executable_wins() {
        let (text, first, second) =
            (directory_with("ipam", 0o644), directory_with("ipam", 0o755), directory_with("ipam", 0o755));
        std::fs::create_dir(text.path().join("directory")).unwrap();
        let path: Vec<PathBuf> = [&text, &first, &second].map(|dir| dir.path().to_owned()).into();
        assert_eq!(Delegate::find("ipam", &path).unwrap().program(), first.path().join("ipam"));
        let error = Delegate::find("ipam", &path[..1]).unwrap_err();
        assert!(error.msg.contains("not executable"), "{error}");
        for missing in ["directory", "absent"] {
            let error = Delegate::find(missing, &path).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            for directory in &path {
                assert!(error.msg.contains(directory.to_str().unwrap()), "{error}");
            }
        }
    }

    #[test]
    fn paths_are_refused() {
        let directory = directory_with("ipam", 0o755);
        let path = [directory.path().to_owned()];
        for bad in ["", "..", "../ipam", "a/../ipam", "/bin/sh", "./ipam", "ipam/", "a..b", "ipam\0"] {
            let error = Delegate::find(bad, &path).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{bad}");
            assert!(!error.msg.contains("found"), "{error}");
        }
        let error = Delegate::find("ipam", &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.msg.contains("CNI_PATH"), "{error}");
    }
}
