//! Drives the real binary as a runtime does.
#![expect(clippy::unwrap_used, reason = "tests: a panic is the failure")]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test program uses a part of this"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_weft-ipam");

/// What the binary answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    /// `Null` when stdout was empty.
    pub json: Value,
    pub stderr: String,
}

impl Answer {
    pub fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.json
    }

    /// The message of an error, after its code was compared.
    pub fn error(self, code: u64) -> String {
        assert!(!self.success, "{self:?}");
        assert_eq!(self.json["code"], code, "{self:?}");
        self.json["msg"].as_str().unwrap().to_owned()
    }

    pub fn ips(self) -> Vec<String> {
        let json = self.ok();
        let ips = json["ips"].as_array().unwrap();
        ips.iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
    }
}

/// A host with a state directory of its own.
pub struct Host {
    pub root: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// A network configuration with these keys of `ipam` besides `dataDir`.
    pub fn conf(&self, ipam: &Value) -> Value {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam});
        conf["ipam"]["type"] = "weft-ipam".into();
        conf["ipam"]["dataDir"] = self.root.path().to_str().unwrap().into();
        conf
    }

    pub fn store(&self) -> PathBuf {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        self.root.path().join("net").join(boot_id.trim()).join("ipam")
    }

    /// Everything below the state directory but locks, the memory of the order and empty parents.
    pub fn world(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut world = BTreeMap::new();
        let mut todo = vec![self.store()];
        while let Some(dir) = todo.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    todo.push(path.clone());
                }
                if name != "lock" && !name.starts_with("last.") {
                    world.insert(path.clone(), fs::read(&path).ok());
                }
            }
        }
        for part in ["addr", "pending", "owner"] {
            world.remove(&self.store().join(part));
        }
        world
    }

    pub fn is_untouched(&self) -> bool {
        fs::read_dir(self.root.path()).unwrap().next().is_none()
    }
}

pub fn command(verb: &str, container: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", "/nonexistent");
    if !matches!(verb, "GC" | "STATUS") {
        command.env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts the command and gives it the configuration.
pub fn start(command: &mut Command, conf: &Value) -> Child {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(conf.to_string().as_bytes()).unwrap();
    child
}

pub fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let json =
        if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).unwrap() };
    Answer {
        success: output.status.success(),
        json,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn run(verb: &str, container: &str, conf: &Value) -> Answer {
    finish(start(&mut command(verb, container), conf))
}

/// GC with these containers' eth0 as the only valid attachments.
pub fn gc(conf: &Value, valid: &[&str]) -> Answer {
    let mut conf = conf.clone();
    let valid: Vec<Value> = valid.iter().map(|c| json!({"containerID": c, "ifname": "eth0"})).collect();
    conf["cni.dev/valid-attachments"] = valid.into();
    run("GC", "", &conf)
}

/// Another network namespace, of a process that ends with this one: its stdin closes then. Tests run
/// as root of a user namespace, see .cargo/config.toml.
fn netns() -> &'static Path {
    static NETNS: OnceLock<(PathBuf, Child)> = OnceLock::new();
    &NETNS
        .get_or_init(|| {
            let mut child = Command::new("unshare")
                .args(["-n", "sh", "-c", "echo ready; exec cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            (PathBuf::from(format!("/proc/{}/ns/net", child.id())), child)
        })
        .0
}
