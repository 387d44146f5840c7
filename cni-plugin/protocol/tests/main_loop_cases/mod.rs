//! What the main loop has to do in each condition.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use cni_protocol::{Deadline, Delegate, Verb};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};

use super::{AS_PLUGIN, Call, Netns, error_of};

/// Every case with its name.
pub(crate) const ALL: &[(&str, fn())] = &[
    ("without_a_command", without_a_command),
    ("for_people", for_people),
    ("versions", versions),
    ("result_in_the_requests_version", result_in_the_requests_version),
    ("success_of_others_is_silent", success_of_others_is_silent),
    ("every_invalid_variable_is_named", every_invalid_variable_is_named),
    ("required_variables", required_variables),
    ("del_in_poor_circumstances", del_in_poor_circumstances),
    ("check_needs_a_result", check_needs_a_result),
    ("gc_needs_a_list", gc_needs_a_list),
    ("commands_of_later_versions", commands_of_later_versions),
    ("hostile_stdin", hostile_stdin),
    ("stdin_held_open", stdin_held_open),
    ("errors_and_panics", errors_and_panics),
    ("result_that_cannot_be_delivered", result_that_cannot_be_delivered),
    ("stdout_closed_from_the_start", stdout_closed_from_the_start),
    ("stderr_closed", stderr_closed),
    ("logs", logs),
    ("a_forked_child_leaves_the_delegate_alone", a_forked_child_leaves_the_delegate_alone),
];

fn add(conf: &Value) -> Call {
    // The namespace lives until the call is over because the file is leaked on purpose.
    let netns: &'static Netns = Box::leak(Box::new(Netns::new()));
    Call::new("ADD", netns, conf)
}

fn without_a_command() {
    for command in [None, Some("")] {
        let mut call = add(&json!({}));
        match command {
            None => call.process.env_remove("CNI_COMMAND"),
            Some(text) => call.process.env("CNI_COMMAND", text),
        };
        // At once: nobody has to close stdin for it.
        let (_open, stdin) = pipe();
        let output = call.process.stdin(stdin).output().unwrap();
        let error = error_of(&output);
        assert_eq!(error["code"], 4);
        assert!(error["msg"].as_str().unwrap().contains("CNI_COMMAND"));
        assert_eq!(error["cniVersion"], "1.1.0");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.starts_with("example 1.2.3 is a CNI plugin") && stderr.matches('\n').count() == 1,
            "{stderr}"
        );
    }
    for command in ["add", "FOO", "ADD "] {
        let error = error_of(&add(&json!({})).env("CNI_COMMAND", command).output());
        assert_eq!(error["code"], 4);
        assert!(error["msg"].as_str().unwrap().contains("CNI_COMMAND"));
    }
}

fn pipe() -> (io::PipeWriter, Stdio) {
    let (reader, writer) = io::pipe().unwrap();
    (writer, reader.into())
}

fn for_people() {
    for (argument, text) in
        [("--version", "example 1.2.3"), ("-V", "1.1.0"), ("--help", "An example."), ("-h", "CNI_NETNS")]
    {
        let mut process = Process::new(std::env::current_exe().unwrap());
        let output = process.arg(argument).env(AS_PLUGIN, "1").stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success());
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(
            stdout.contains(text) && stdout.contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{stdout}"
        );
    }
}

fn versions() {
    for (stdin, answered) in [
        ("{\"cniVersion\":\"0.4.0\"}", "0.4.0"),
        ("{\"cniVersion\":\"9.9.9\"}", "9.9.9"),
        ("", "1.1.0"),
        ("{}", "1.1.0"),
    ] {
        let mut call = Call::new("VERSION", &Netns::new(), &json!({}));
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"] {
            call.process.env_remove(name);
        }
        let output = call.output_with(stdin.as_bytes());
        assert!(output.status.success());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["cniVersion"], answered);
        assert_eq!(json["supportedVersions"].as_array().unwrap().len(), 7);
    }
    assert_eq!(error_of(&Call::new("VERSION", &Netns::new(), &json!({})).output_with(b"x"))["code"], 6);
}

fn result_in_the_requests_version() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let output = add(&json!({"cniVersion": version, "do": "attach"})).output();
        assert!(output.status.success(), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["cniVersion"], version);
        assert_eq!(json["interfaces"][0]["name"], "eth0");
        assert_eq!(json["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
    }
    let output = add(&json!({"cniVersion": null, "do": "attach"})).output();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, json!({"cniVersion": "0.1.0", "dns": {}}));
}

fn success_of_others_is_silent() {
    let netns = Netns::new();
    let list = json!({"prevResult": {}, "cni.dev/valid-attachments": []});
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let output = Call::new(command, &netns, &list).output();
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

fn every_invalid_variable_is_named() {
    let call = add(&json!({"cniVersion": "0.4.0"})).env("CNI_CONTAINERID", "/").env("CNI_IFNAME", "a:b");
    let error = error_of(&call.env("CNI_NETNS", "/proc/self/ns/net").env("CNI_ARGS", "FOO=1").output());
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(4), &json!("0.4.0")));
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        assert!(error["msg"].as_str().unwrap().contains(name), "{error}");
    }
    // Also when nothing of the configuration can be read.
    let error = error_of(&add(&json!({})).env("CNI_IFNAME", "a:b").output_with(b"\xff"));
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(4), &json!("1.1.0")));
}

fn required_variables() {
    let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"];
    let conf = json!({"prevResult": {}, "cni.dev/valid-attachments": []});
    let netns = Netns::new();
    for (command, required) in [
        ("ADD", &names[..3]),
        ("CHECK", &names[..3]),
        ("DEL", &names[..2]),
        ("GC", &names[3..]),
        ("STATUS", &[]),
    ] {
        for name in names {
            let mut call = Call::new(command, &netns, &conf);
            call.process.env_remove(name);
            let output = call.output();
            assert_eq!(
                output.status.success(),
                !required.contains(&name),
                "{command} without {name}: {output:?}"
            );
            if required.contains(&name) {
                let error = error_of(&output);
                assert_eq!(error["code"], 4);
                assert!(error["msg"].as_str().unwrap().contains(name), "{error}");
            }
        }
    }
}

fn del_in_poor_circumstances() {
    for netns in ["", "/nowhere", "/proc/self/ns/net", "/dev/zero", "/"] {
        for conf in [
            json!({}),
            json!({"prevResult": {"interfaces": [null]}}),
            json!({"prevResult": 7, "timeout": -1}),
            json!({"cniVersion": "0.2.0", "prevResult": {"cniVersion": "3.0.0"}}),
        ] {
            let output =
                Call::new("DEL", &Netns::new(), &conf).env("CNI_NETNS", netns).env("CNI_ARGS", "=").output();
            assert!(output.status.success() && output.stdout.is_empty(), "{netns}: {output:?}");
        }
    }
}

fn check_needs_a_result() {
    let netns = Netns::new();
    let error = error_of(&Call::new("CHECK", &netns, &json!({})).output());
    assert_eq!(error["code"], 7);
    assert!(error["msg"].as_str().unwrap().contains("prevResult"));
    let error =
        error_of(&Call::new("CHECK", &netns, &json!({"prevResult": {"ips": [{"address": "x"}]}})).output());
    assert_eq!(error["code"], 6);
    assert!(error["msg"].as_str().unwrap().contains("ips[0].address"));
}

fn gc_needs_a_list() {
    let netns = Netns::new();
    let note = tempfile::NamedTempFile::new().unwrap();
    let gc = |mut conf: Value| {
        conf["note"] = note.path().to_str().unwrap().into();
        let output = Call::new("GC", &netns, &conf).output();
        assert_eq!(fs::read_to_string(note.path()).unwrap(), "", "the handler must not be asked");
        output
    };
    for absent in [json!({}), json!({"cni.dev/valid-attachments": null})] {
        assert!(gc(absent).status.success());
    }
    assert_eq!(error_of(&gc(json!({"cni.dev/attachments": [{}]})))["code"], 7);
}

fn commands_of_later_versions() {
    for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("STATUS", "0.4.0")]
    {
        let error = error_of(&Call::new(command, &Netns::new(), &json!({"cniVersion": version})).output());
        assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &json!(version)));
        assert!(error["msg"].as_str().unwrap().contains(command), "{error}");
    }
    let error = error_of(&add(&json!({"cniVersion": "2.0.0"})).output());
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &json!("1.1.0")));
}

fn hostile_stdin() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(128), "]".repeat(128));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    for stdin in ["", "{", "[]", "{}{}", r#"{"name":"n","name":"n"}"#, "{\"a\":\"\u{1}\"}", &deep, &long] {
        let error = error_of(&add(&json!({})).output_with(stdin.as_bytes()));
        assert_eq!(error["code"], 6, "{error}");
    }
    assert_eq!(error_of(&add(&json!({})).output_with(b"{\"a\":\"\xff\"}"))["code"], 6);
    for conf in [json!({"name": null}), json!({"name": 7}), json!({"name": "a/b"}), json!({"timeout": 0})] {
        assert_eq!(error_of(&add(&conf).output())["code"], 7);
    }
}

fn stdin_held_open() {
    let mut call = add(&json!({})).env("WEFT_STDIN_TIMEOUT", "1");
    let (_open, stdin) = pipe();
    let error = error_of(&call.process.stdin(stdin).output().unwrap());
    assert_eq!(error["code"], 5);
    assert!(error["msg"].as_str().unwrap().contains("stdin"), "{error}");
    let error = error_of(&add(&json!({})).env("WEFT_STDIN_TIMEOUT", "soon").output());
    assert_eq!(error["code"], 4);
    assert!(error["msg"].as_str().unwrap().contains("WEFT_STDIN_TIMEOUT"), "{error}");
}

fn errors_and_panics() {
    let error = error_of(&add(&json!({"cniVersion": "0.3.1", "do": "fail"})).output());
    assert_eq!(
        error,
        json!({"cniVersion": "0.3.1", "code": 102, "msg": "the step failed", "details": "first\nsecond"})
    );
    let error = error_of(&add(&json!({"cniVersion": "0.3.1", "do": "panic"})).output());
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(100), &json!("0.3.1")));
    let message = error["msg"].as_str().unwrap();
    assert!(message.contains("the handler panicked") && message.contains("main_loop.rs:"), "{error}");
}

fn result_that_cannot_be_delivered() {
    let note = tempfile::NamedTempFile::new().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(writer), File::options().write(true).open("/dev/full").unwrap().into()] {
        fs::write(note.path(), "").unwrap();
        let mut call = add(&json!({"do": "attach", "note": note.path()}));
        call.process.stdout(stdout);
        let output = call.status_and_stderr();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(fs::read_to_string(note.path()).unwrap(), "rolled back");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("one thing is left"), "{stderr}");
    }
}

fn stdout_closed_from_the_start() {
    let note = tempfile::NamedTempFile::new().unwrap();
    let closed = |command: &str| {
        let mut call = Call::new(command, &Netns::new(), &json!({"do": "attach", "note": note.path()}));
        let mut process = Process::new("/bin/sh");
        process.args(["-c", "exec \"$0\" >&-"]).arg(call.process.get_program()).env_clear();
        process.envs(call.process.get_envs().filter_map(|(name, value)| Some((name, value?))));
        call.process = process;
        call
    };
    let output = closed("ADD").env("CNI_NETNS", &Netns::new().path()).status_and_stderr();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read_to_string(note.path()).unwrap(), "", "nothing must be done for nobody");
    assert!(String::from_utf8(output.stderr).unwrap().contains("stdout is closed"));
    assert!(closed("DEL").status_and_stderr().status.success());
}

fn stderr_closed() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut call = add(&json!({"do": "fail", "logLevel": "trace"}));
    call.process.stderr(writer);
    let (mut stdin, read) = pipe();
    let child = call.process.stdin(read).stdout(Stdio::piped()).spawn().unwrap();
    io::Write::write_all(&mut stdin, br#"{"name":"n","do":"fail","logLevel":"trace"}"#).unwrap();
    drop(stdin);
    assert_eq!(error_of(&child.wait_with_output().unwrap())["code"], 102);
}

fn logs() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weft.log");
    let line = "INFO main_loop: the handler is at work\n";
    let output = add(&json!({"logLevel": "info", "logFile": file})).output();
    let (text, stderr) = (fs::read_to_string(&file).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.ends_with(line) && text.starts_with("20") && text == stderr, "{text}{stderr}");
    // The environment has the last word.
    let output = add(&json!({"logLevel": "info", "logFile": file})).env("WEFT_LOG", "off").output();
    assert!(output.stderr.is_empty() && fs::read_to_string(&file).unwrap() == text);
    // Neither mistake keeps a container from its network.
    let output = add(&json!({"do": "attach", "logLevel": "loud", "logFile": "/nowhere/weft.log"})).output();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("loud") && stderr.contains("/nowhere/weft.log"),
        "{stderr}"
    );
}

fn a_forked_child_leaves_the_delegate_alone() {
    let directory = tempfile::tempdir().unwrap();
    symlink("/bin/cat", directory.path().join("cat")).unwrap();
    let mut running =
        Delegate::find("cat", &[directory.path().to_owned()]).unwrap().start(Verb::Add, &[]).unwrap();
    #[expect(unsafe_code, reason = "fork is the point")]
    // SAFETY: this program has a single thread here, and the child only drops and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(running);
            // SAFETY: _exit takes a number and does not return.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            assert_eq!(running.finish(b"{}", Deadline::after(Duration::from_secs(60))).unwrap(), b"{}");
        }
    }
}
