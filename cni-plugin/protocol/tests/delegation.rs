//! Other plugins, executed for real: good, failing, silent, talkative and stuck ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cni_protocol::{Code, Deadline, Delegate, Error, Running, Verb};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A directory with one plugin, `ipam`, which is a shell script.
struct Plugin {
    directory: tempfile::TempDir,
}

impl Plugin {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("ipam");
        // Written under another name: a file that another thread's child still has open cannot be executed.
        let draft = directory.path().join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
        let copied = std::process::Command::new("cp").arg("-p").arg(&draft).arg(&program).status().unwrap();
        assert!(copied.success());
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, verb: Verb, env: &[(&str, &str)]) -> Running {
        let delegate = Delegate::find("ipam", &[self.directory.path().to_owned()]).unwrap();
        delegate.start(verb, env).unwrap()
    }

    fn add(&self, stdin: &[u8]) -> Result<Vec<u8>, Error> {
        self.start(Verb::Add, &[]).finish(stdin, in_time())
    }
}

fn in_time() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[test]
fn configuration_command_and_environment_arrive() {
    let plugin = Plugin::new(r#"printf '%s %s %s|' "$CNI_COMMAND" "$CNI_IFNAME" "$HOME"; cat"#);
    let mut running = plugin.start(Verb::Check, &[("CNI_IFNAME", "eth7")]);
    let output = running.finish(b"{\"name\":\"n\"}", in_time()).unwrap();
    let home = std::env::var("HOME").unwrap_or_default();
    assert_eq!(String::from_utf8(output).unwrap(), format!("CHECK eth7 {home}|{{\"name\":\"n\"}}"));
}

#[test]
fn more_than_a_pipe_holds_in_both_directions() {
    let sent = vec![b'x'; 1 << 20];
    assert_eq!(Plugin::new("exec cat").add(&sent).unwrap(), sent);
}

#[test]
fn fed_before_it_is_waited_for() {
    for size in [2, 1 << 20] {
        let sent = vec![b'x'; size];
        let plugin = Plugin::new("exec cat");
        let mut running = plugin.start(Verb::Add, &[]);
        running.feed(&sent).unwrap();
        assert_eq!(running.finish(&sent, in_time()).unwrap(), sent);
    }
    // It works with what it was fed while its caller does something else.
    let plugin = Plugin::new(r#"cat >"${0%/*}/fifo"; echo '{}'"#);
    mkfifo(&plugin.path("fifo"), Mode::S_IRWXU).unwrap();
    let mut running = plugin.start(Verb::Add, &[]);
    running.feed(b"whole").unwrap();
    assert_eq!(fs::read_to_string(plugin.path("fifo")).unwrap(), "whole");
    assert_eq!(running.finish(b"whole", in_time()).unwrap(), b"{}\n");
}

/// A plugin that has told all it has to tell may end while its caller goes on; how it ends counts all the same.
#[test]
fn heard_before_its_end() {
    let plugin = Plugin::new(r#"cat; exec >&-; read -r status <"${0%/*}/fifo"; exit "$status""#);
    mkfifo(&plugin.path("fifo"), Mode::S_IRWXU).unwrap();
    let sent = vec![b'x'; 1 << 20];
    for status in ["0", "1"] {
        let mut running = plugin.start(Verb::Add, &[]);
        assert_eq!(running.listen(&sent, in_time()).unwrap(), sent);
        fs::write(plugin.path("fifo"), status).unwrap();
        match running.finish(&sent, in_time()) {
            Ok(output) => assert!(output == sent && status == "0"),
            Err(error) => assert!(error.msg.contains("exit status 1") && status == "1", "{error}"),
        }
    }
}

#[test]
fn a_configuration_that_is_not_read_is_no_error() {
    assert_eq!(Plugin::new("exec <&-; echo '{}'").add(&vec![b'x'; 1 << 20]).unwrap(), b"{}\n");
}

#[test]
fn an_error_is_passed_on() {
    let script =
        r#"printf '%s' '{"cniVersion":"1.1.0","code":11,"msg":"busy ","details":"one\ntwo"}'; exit 1"#;
    let error = Plugin::new(script).add(b"{}").unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    assert_eq!(error.msg, "ipam ADD: busy");
    assert_eq!(error.details, ["ipam ADD: one", "ipam ADD: two"]);
    let error = Plugin::new(r#"echo '{"code":999,"msg":"own"}'; exit 1"#).add(b"{}").unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (Code::Delegate(999), "ipam ADD: own"));
}

#[test]
fn a_failure_without_an_error_shows_what_was_written() {
    for (script, reason) in [
        ("echo 'segfault in line 7'; exit 3", "segfault in line 7"),
        ("exit 3", "exit status 3"),
        ("exit 3", "wrote nothing"),
        ("kill -9 $$", "signal 9"),
        (r#"echo '{"code":0,"msg":"well"}'; exit 1"#, "well"),
        (r#"echo '{"code":-1}'; exit 1"#, "exit status 1"),
        ("head -c 2000000 /dev/zero; exit 1", "exit status 1"),
    ] {
        let error = Plugin::new(script).add(b"{}").unwrap_err();
        assert_eq!(error.code, Code::Decode, "{script}");
        assert!(error.msg.contains(reason) && error.msg.starts_with("ipam ADD "), "{script}: {error}");
        assert!(error.msg.len() < 5000, "{} bytes", error.msg.len());
    }
}

#[test]
fn too_much_output_ends_it() {
    let error = Plugin::new("exec cat /dev/zero").add(b"{}").unwrap_err();
    assert_eq!(error.code, Code::Decode);
    assert!(error.msg.contains("4 MiB"), "{error}");
}

#[test]
fn a_file_that_is_no_program_is_named() {
    let plugin = Plugin::new("");
    fs::write(plugin.path("ipam"), "#!/nowhere/sh\n").unwrap();
    let searched = plugin.directory.path().display().to_string();
    for fed in [false, true] {
        let mut running = plugin.start(Verb::Add, &[]);
        if fed {
            running.feed(b"{}").unwrap();
        }
        let error = running.finish(b"{}", in_time()).unwrap_err();
        assert_eq!(error.code, Code::Io, "{error}");
        assert!(error.msg.contains("cannot be executed: ENOENT"), "{error}");
        assert!(error.msg.contains(&searched), "{error}");
    }
    // And one that is dropped unfed takes nothing of the caller's with it.
    drop(plugin.start(Verb::Del, &[]));
}

#[test]
fn a_stuck_plugin_is_killed_at_the_deadline() {
    for hang in ["exec sleep 600", "exec sleep 600 >&- <&-", "cat >/dev/null; exec sleep 600"] {
        let plugin = Plugin::new(&format!("echo $$ >\"${{0%/*}}/fifo\"; {hang}"));
        mkfifo(&plugin.path("fifo"), Mode::S_IRWXU).unwrap();
        let mut running = plugin.start(Verb::Del, &[]);
        let pid = fs::read_to_string(plugin.path("fifo")).unwrap();
        let begin = Instant::now();
        let error = running.finish(b"{}", Deadline::after(Duration::from_millis(100))).unwrap_err();
        drop(running);
        assert_eq!(error.code, Code::Deadline, "{hang}: {error}");
        assert!(error.msg.contains("ipam DEL"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists(), "{hang}: {pid} is alive");
    }
}

#[test]
fn a_daemon_that_keeps_the_pipe_open_is_not_waited_for() {
    // The daemon ends when the test drops its end of the FIFO.
    let plugin = Plugin::new(r#"(read -r line <"${0%/*}/fifo") & echo '{"ips":[]}'"#);
    mkfifo(&plugin.path("fifo"), Mode::S_IRWXU).unwrap();
    assert_eq!(plugin.add(b"{}").unwrap(), b"{\"ips\":[]}\n");
    drop(fs::OpenOptions::new().write(true).open(plugin.path("fifo")).unwrap());
}

#[test]
fn dropped_before_its_configuration_it_is_killed() {
    let plugin =
        Plugin::new(r#"echo started >"${0%/*}/fifo"; cat >/dev/null; echo effect >"${0%/*}/effect""#);
    mkfifo(&plugin.path("fifo"), Mode::S_IRWXU).unwrap();
    let running = plugin.start(Verb::Add, &[]);
    assert_eq!(fs::read_to_string(plugin.path("fifo")).unwrap(), "started\n");
    drop(running);
    assert!(!plugin.path("effect").exists());
}
