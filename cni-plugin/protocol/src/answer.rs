//! What a plugin says about itself: to runtimes that ask for its versions, and to people.

use serde_json::{Map, Value, json};

use crate::{Code, Error, Plugin, Version};

/// The answer to VERSION: in the version that was asked in, or the newest if none was stated.
///
/// # Errors
/// [`Code::Decode`] for a `cniVersion` that is no version.
pub(crate) fn versions(request: &Map<String, Value>) -> Result<Value, Error> {
    let asked = match request.get("cniVersion") {
        None | Some(Value::Null) => Version::NEWEST.as_str(),
        Some(Value::String(text)) if text.is_empty() => Version::NEWEST.as_str(),
        Some(Value::String(text)) => match text.parse::<Version>() {
            // A version from the future still learns which ones there are.
            Err(error) if error.code != Code::IncompatibleVersion => return Err(error),
            _ => text,
        },
        Some(other) => return Err(Error::new(Code::Decode, format!("cniVersion is {other}, not a text"))),
    };
    Ok(json!({ "cniVersion": asked, "supportedVersions": Version::ALL.map(Version::as_str) }))
}

/// The text of `--version`.
pub(crate) fn version_text(plugin: &Plugin) -> String {
    format!("{} {}\nCNI versions {}\n", plugin.name, plugin.version, Version::list())
}

/// The text of `--help`.
pub(crate) fn help_text(plugin: &Plugin) -> String {
    format!(
        "{}{}\n\n\
         A container runtime executes this program, as the CNI specification says:\n  \
         CNI_COMMAND      ADD, DEL, CHECK, GC, STATUS or VERSION\n  \
         CNI_CONTAINERID  the container\n  \
         CNI_NETNS        its network namespace, a path\n  \
         CNI_IFNAME       the interface's name in it\n  \
         CNI_ARGS         KEY=VALUE;KEY=VALUE (optional)\n  \
         CNI_PATH         the directories of plugins\n  \
         stdin            the network configuration, JSON\n  \
         stdout           the result or the error, JSON\n\n\
         WEFT_STDIN_TIMEOUT  seconds to wait for stdin (10)\n\
         WEFT_LOG            level of the log on stderr: off, error, warn, info, debug, trace (warn)\n\n\
         By hand: CNI_PATH=DIRECTORY cnitool add NETWORK NETNS\n",
        version_text(plugin),
        plugin.about
    )
}

/// The line for a person who called the plugin without a command.
pub(crate) fn usage_line(plugin: &Plugin) -> String {
    format!(
        "{} {} is a CNI plugin: a container runtime executes it with CNI_COMMAND in the environment and a \
         network configuration on stdin; {} --help says more\n",
        plugin.name, plugin.version, plugin.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_answer_in_the_version_asked() {
        let answer = |request: Value| versions(request.as_object().unwrap());
        for version in ["0.1.0", "0.4.0", "1.1.0", "9.9.9"] {
            let json = answer(json!({ "cniVersion": version })).unwrap();
            assert_eq!(json["cniVersion"], version);
            assert_eq!(
                json["supportedVersions"],
                json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
            );
        }
        for request in [json!({}), json!({"cniVersion": ""}), json!({"cniVersion": null})] {
            assert_eq!(answer(request).unwrap()["cniVersion"], "1.1.0");
        }
        for request in [json!({"cniVersion": "x"}), json!({"cniVersion": 1})] {
            assert_eq!(answer(request).unwrap_err().code, Code::Decode);
        }
    }
}
