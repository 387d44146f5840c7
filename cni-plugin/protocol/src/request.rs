//! From environment and stdin to a checked command.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::env::{Attachment, RawEnv};
use crate::{
    AddArgs, AddResult, Call, CheckArgs, Code, Command, ContainerNetns, Deadline, DelArgs, Error, GcArgs,
    NetworkName, StatusArgs, ValidAttachment, Verb, Version, json, logging, runtime_config, stdin,
};

/// The environment variable with the time for stdin in seconds.
pub const STDIN_TIMEOUT_ENV: &str = "WEFT_STDIN_TIMEOUT";
const STDIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for a whole command unless the configuration's `timeout` says otherwise, and the most it may say.
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT_MAX_SECS: u64 = 24 * 3600;

/// Where GC finds the attachments that live: the specification's key, and the one that libcni used before.
pub const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// What a runtime wants.
pub(crate) enum Request {
    /// The object in which VERSION was asked.
    Versions(Map<String, Value>),
    Command(Box<Command>),
    /// GC without a list of what lives: nothing can be told dead, so nothing is done.
    NothingToCollect,
}

/// Reads and checks everything that a command needs. `version` is set to the request's as soon as it is
/// known, for the error's JSON.
///
/// # Errors
/// All the specification's errors for a wrong request. Errors of the environment come before those of stdin, which
/// is read nevertheless: it has the version to answer in, and the runtime shall not write into a closed pipe.
pub(crate) fn read(verb: Verb, raw: &RawEnv, version: &Cell<Version>) -> Result<Request, Error> {
    let start = Instant::now();
    let read_call = || {
        let (stdin, conf) = read_conf(version)?;
        call(verb, raw, stdin, conf, start)
    };
    let command = match verb {
        Verb::Version => return read_version().map(Request::Versions),
        Verb::Add => {
            let call = read_call();
            add(raw.present_container()?, call?)?
        }
        Verb::Check => {
            let call = read_call();
            check(raw.present_container()?, call?)?
        }
        Verb::Del => {
            let call = read_call();
            del(raw.perhaps_gone_container()?, call?)
        }
        Verb::Gc => {
            let call = read_call();
            raw.required_cni_path()?;
            let call = call?;
            let Some(valid) = valid_attachments(&call.conf)? else {
                return Ok(Request::NothingToCollect);
            };
            Command::Gc(GcArgs { valid, call })
        }
        Verb::Status => Command::Status(StatusArgs { call: read_call()? }),
    };
    Ok(Request::Command(Box::new(command)))
}

fn add(attachment: Attachment<ContainerNetns>, call: Call) -> Result<Command, Error> {
    let Attachment { container_id, ifname, netns, args } = attachment;
    let prev_result = prev_result(&call.conf)?;
    Ok(Command::Add(AddArgs { call, container_id, ifname, netns, args, prev_result }))
}

fn check(attachment: Attachment<ContainerNetns>, call: Call) -> Result<Command, Error> {
    let Attachment { container_id, ifname, netns, args } = attachment;
    let prev_result = prev_result(&call.conf)?.ok_or_else(|| {
        Error::new(
            Code::InvalidConfig,
            "prevResult is missing, and CHECK compares with it: pass the result of the container's ADD",
        )
    })?;
    Ok(Command::Check(CheckArgs { call, container_id, ifname, netns, args, prev_result }))
}

fn del(attachment: Attachment<Option<PathBuf>>, call: Call) -> Command {
    let Attachment { container_id, ifname, netns, args } = attachment;
    let prev_result = prev_result(&call.conf).unwrap_or_else(|error| {
        log::warn!("DEL goes on without a result of ADD: {error}");
        None
    });
    Command::Del(DelArgs { call, container_id, ifname, netns, args, prev_result })
}

/// Reads stdin as one JSON object and settles runtimes' spellings in it. Its version and its wishes about logs hold from then on.
///
/// # Errors
/// [`Code::Io`] and [`Code::Decode`] of stdin, [`Code::InvalidEnvironment`] for a wrong time for it.
fn read_conf(version: &Cell<Version>) -> Result<(Vec<u8>, Map<String, Value>), Error> {
    let stdin = read_stdin()?;
    let mut conf = json::parse_object(&stdin, "the network configuration on stdin")?;
    json::leave_out_nulls(&mut conf);
    runtime_config::canonicalize(&mut conf);
    let text = |key: &str| conf.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    logging::init(text("logLevel"), text("logFile").map(Path::new));
    if let Ok(stated) = stated_version(&conf) {
        version.set(stated);
    }
    Ok((stdin, conf))
}

/// Reads what VERSION is asked with: an object with `cniVersion`. Older versions of the specification have
/// no input for it, and at a terminal nobody writes one.
fn read_version() -> Result<Map<String, Value>, Error> {
    if std::io::stdin().is_terminal() {
        return Ok(Map::new());
    }
    let text = read_stdin()?;
    if text.is_empty() { Ok(Map::new()) } else { json::parse_object(&text, "the version on stdin") }
}

fn read_stdin() -> Result<Vec<u8>, Error> {
    stdin::read_all(std::io::stdin(), Deadline::after(stdin_timeout()?))
}

fn stdin_timeout() -> Result<Duration, Error> {
    match std::env::var_os(STDIN_TIMEOUT_ENV).filter(|value| !value.is_empty()) {
        None => Ok(STDIN_TIMEOUT),
        Some(value) => {
            value.to_str().and_then(|text| text.parse().ok()).map(Duration::from_secs).ok_or_else(|| {
                Error::new(
                    Code::InvalidEnvironment,
                    format!("invalid environment: {STDIN_TIMEOUT_ENV} is {value:?}, not a number of seconds"),
                )
            })
        }
    }
}

/// What the commands have in common.
fn call(
    verb: Verb,
    raw: &RawEnv,
    stdin: Vec<u8>,
    conf: Map<String, Value>,
    start: Instant,
) -> Result<Call, Error> {
    let version = stated_version(&conf)?;
    if version < verb.since() {
        return Err(Error::new(
            Code::IncompatibleVersion,
            format!(
                "{} came with version {} of the CNI specification, and cniVersion is {version}: raise cniVersion",
                verb.as_str(),
                verb.since()
            ),
        ));
    }
    let network = network_name(&conf)?;
    let timeout = match timeout(&conf) {
        Err(error) if verb == Verb::Del || verb == Verb::Gc => {
            log::warn!("{} goes on with {} s: {error}", verb.as_str(), TIMEOUT.as_secs());
            TIMEOUT
        }
        other => other?,
    };
    let deadline = Deadline::counted_from(start, timeout);
    Ok(Call { version, network, conf, stdin, cni_path: raw.cni_path(), deadline })
}

fn stated_version(conf: &Map<String, Value>) -> Result<Version, Error> {
    match conf.get("cniVersion") {
        None | Some(Value::Null) => Ok(Version::UNSTATED),
        Some(Value::String(text)) if text.is_empty() => Ok(Version::UNSTATED),
        Some(Value::String(text)) => text.parse(),
        Some(other) => Err(Error::new(
            Code::Decode,
            format!("cniVersion is {other}: give a text, like \"{}\"", Version::NEWEST),
        )),
    }
}

fn network_name(conf: &Map<String, Value>) -> Result<NetworkName, Error> {
    match conf.get("name") {
        Some(Value::String(name)) => name.parse(),
        None | Some(Value::Null) => Err(Error::new(
            Code::InvalidConfig,
            "name is missing: give the network a name in its configuration",
        )),
        Some(other) => {
            Err(Error::new(Code::InvalidConfig, format!("name is {other}: give the network a name")))
        }
    }
}

fn timeout(conf: &Map<String, Value>) -> Result<Duration, Error> {
    match conf.get("timeout") {
        None | Some(Value::Null) => Ok(TIMEOUT),
        Some(value) => match value.as_u64().filter(|seconds| (1..=TIMEOUT_MAX_SECS).contains(seconds)) {
            Some(seconds) => Ok(Duration::from_secs(seconds)),
            None => Err(Error::new(
                Code::InvalidConfig,
                format!("timeout is {value}: give 1 to {TIMEOUT_MAX_SECS} whole seconds"),
            )),
        },
    }
}

fn prev_result(conf: &Map<String, Value>) -> Result<Option<AddResult>, Error> {
    match conf.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(json) => match AddResult::from_json(json) {
            Ok(result) => Ok(Some(result)),
            Err(error) => Err(Error { msg: format!("prevResult: {}", error.msg), ..error }),
        },
    }
}

/// The attachments that GC must keep. `None` without a list, which is never the same as an empty one; it is
/// no error, as libcni's own GC gives none (v1.3.0, `cnitool gc`).
fn valid_attachments(conf: &Map<String, Value>) -> Result<Option<Vec<ValidAttachment>>, Error> {
    let given =
        VALID_ATTACHMENTS.iter().find_map(|key| Some((key, conf.get(*key).filter(|list| !list.is_null())?)));
    let Some((key, list)) = given else {
        return Ok(None);
    };
    let refuse = |reason: String| Error::new(Code::InvalidConfig, format!("{key}{reason}"));
    let items = list.as_array().ok_or_else(|| refuse(format!(" is {list}, not a list")))?;
    let read = |(index, item): (usize, &Value)| {
        let text = |field: &str| {
            item.get(field)
                .and_then(Value::as_str)
                .ok_or_else(|| refuse(format!("[{index}].{field} is no text")))
        };
        let named = |field: &str, error: Error| refuse(format!("[{index}].{field}: {error}"));
        Ok(ValidAttachment {
            container_id: text("containerID")?.parse().map_err(|error| named("containerID", error))?,
            ifname: text("ifname")?.parse().map_err(|error| named("ifname", error))?,
        })
    };
    items.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call_of(verb: Verb, conf: &Value) -> Result<Call, Error> {
        let conf = conf.as_object().unwrap().clone();
        call(verb, &RawEnv::default(), Vec::new(), conf, Instant::now())
    }

    #[test]
    fn versions() {
        for (conf, version) in [
            (json!({"name": "n"}), Version::V0_1_0),
            (json!({"name": "n", "cniVersion": ""}), Version::V0_1_0),
            (json!({"name": "n", "cniVersion": "1.1.0"}), Version::V1_1_0),
        ] {
            assert_eq!(call_of(Verb::Add, &conf).unwrap().version, version);
        }
        for (json, code) in [(json!("3.0.0"), 1), (json!("x"), 6), (json!(1), 6), (json!(["1.0.0"]), 6)] {
            let error = call_of(Verb::Del, &json!({"name": "n", "cniVersion": json})).unwrap_err();
            assert_eq!(error.code.number(), code, "{json}");
        }
    }

    #[test]
    fn commands_of_later_versions_are_refused() {
        for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status] {
            for version in Version::ALL {
                let call = call_of(verb, &json!({"name": "n", "cniVersion": version.as_str()}));
                let expected = match verb {
                    Verb::Check => version >= Version::V0_4_0,
                    Verb::Gc | Verb::Status => version >= Version::V1_1_0,
                    _ => true,
                };
                assert_eq!(call.is_ok(), expected, "{verb:?} {version}");
                if let Err(error) = call {
                    assert_eq!(error.code, Code::IncompatibleVersion);
                    assert!(
                        error.msg.contains(verb.as_str()) && error.msg.contains(version.as_str()),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn names_of_networks() {
        for name in [json!(null), json!(1), json!(""), json!("a/b"), json!(".."), json!("x".repeat(201))] {
            assert_eq!(
                call_of(Verb::Add, &json!({"name": name})).unwrap_err().code,
                Code::InvalidConfig,
                "{name}"
            );
        }
        assert!(call_of(Verb::Add, &json!({})).unwrap_err().msg.contains("name is missing"));
    }

    #[test]
    fn timeouts() {
        let left =
            |conf: &Value| call_of(Verb::Add, conf).map(|call| call.deadline.remaining().as_secs_f64());
        assert!((59.0..=60.0).contains(&left(&json!({"name": "n"})).unwrap()));
        assert!((6.0..=7.0).contains(&left(&json!({"name": "n", "timeout": 7})).unwrap()));
        for bad in [json!(0), json!(-1), json!("7"), json!(1.5), json!(86_401)] {
            let conf = json!({"name": "n", "timeout": bad});
            let error = left(&conf).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains("timeout"), "{error}");
            assert!(call_of(Verb::Del, &conf).is_ok());
        }
        let documented = format!("\n| `timeout` | `{}` |", TIMEOUT.as_secs());
        assert!(include_str!("../../../docs/configuration.md").contains(&documented), "{documented}");
    }

    #[test]
    fn attachments_that_live() {
        let read = |conf: Value| valid_attachments(conf.as_object().unwrap());
        let one = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for key in VALID_ATTACHMENTS {
            let valid = read(json!({key: one})).unwrap().unwrap();
            assert_eq!(valid.len(), 1);
            assert_eq!((valid[0].container_id.as_str(), valid[0].ifname.as_str()), ("c1", "eth0"));
            assert_eq!(read(json!({key: []})).unwrap().unwrap(), []);
        }
        let [spec_key, older_key] = VALID_ATTACHMENTS;
        assert_eq!(read(json!({spec_key: one, older_key: []})).unwrap().unwrap().len(), 1);
        assert_eq!(read(json!({spec_key: null, older_key: one})).unwrap().unwrap().len(), 1);
        assert_eq!(read(json!({})).unwrap(), None);
        assert_eq!(read(json!({spec_key: null})).unwrap(), None);
        for (conf, reason) in [
            (json!({spec_key: {}}), "not a list"),
            (json!({spec_key: [null]}), "[0].containerID"),
            (json!({spec_key: [{"containerID": "c1"}]}), "[0].ifname"),
            (
                json!({spec_key: [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "/", "ifname": "x"}]}),
                "[1]",
            ),
            (json!({spec_key: [{"containerID": "c1", "ifname": ""}]}), "[0].ifname"),
        ] {
            let error = read(conf).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(reason), "{error}");
        }
    }

    #[test]
    fn previous_results() {
        let read = |conf: Value| prev_result(conf.as_object().unwrap());
        assert_eq!(read(json!({})).unwrap(), None);
        assert_eq!(read(json!({"prevResult": null})).unwrap(), None);
        assert_eq!(read(json!({"prevResult": {}})).unwrap(), Some(AddResult::default()));
        for bad in [json!(1), json!([]), json!({"interfaces": [null]}), json!({"ips": [{}]})] {
            let error = read(json!({"prevResult": bad})).unwrap_err();
            assert_eq!(error.code, Code::Decode);
            assert!(error.msg.starts_with("prevResult: "), "{error}");
        }
    }
}
