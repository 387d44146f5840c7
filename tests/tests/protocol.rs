//! The edge of the program: what comes from outside is checked before anything is done.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs::{self, OpenOptions};
use std::io::{Write as _, pipe};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::libc;
use serde_json::json;
use weft_tests::{Call, Host, Network, Pod, World, eventually};

/// Calls by both binaries with some bytes on standard input, of which nothing good can come.
fn assert_refused(host: &Host, pod: &Pod, what: &str, stdin: &[u8], codes: &[u64], words: &[&str]) {
    let before = World::of(host, &[pod]);
    for plugin in ["weft", "weft-ipam"] {
        for command in ["ADD", "CHECK", "GC", "STATUS"] {
            let error = Call::new(plugin, command, stdin).pod(pod).run().error();
            assert!(codes.contains(&error.code), "{plugin} {command}, {what}: {error:?}");
            error.assert_names(words);
        }
        // DEL need not clean with a configuration that cannot be read, but must not break either.
        Call::new(plugin, "DEL", stdin).pod(pod).run().error();
    }
    before.assert_unchanged(host, &[pod], what);
}

#[test]
fn standard_input_that_is_no_configuration() {
    let host = Host::new();
    let pod = Pod::new();
    let conf = Network::v4().conf.to_string();
    let refuse = |what: &str, stdin: &[u8], codes: &[u64], words: &[&str]| {
        assert_refused(&host, &pod, what, stdin, codes, words);
    };
    refuse("nothing", b"", &[6], &[]);
    refuse("white space", b" \n\t ", &[6], &[]);
    refuse("no JSON", b"hello", &[6], &[]);
    refuse("half of it", &conf.as_bytes()[..conf.len() / 2], &[6], &[]);
    refuse("two documents", format!("{conf}{conf}").as_bytes(), &[6], &[]);
    refuse("something after it", format!("{conf} x").as_bytes(), &[6], &[]);
    refuse("a list", b"[]", &[6, 7], &[]);
    refuse("a string", b"\"text\"", &[6, 7], &[]);
    refuse("null", b"null", &[6, 7], &[]);
    refuse("invalid UTF-8", &[conf.as_bytes(), b"\xff\xfe"].concat(), &[6], &[]);
    let in_a_string: Vec<&[u8]> = conf.split("weft0").map(str::as_bytes).collect();
    refuse("invalid UTF-8 in a string", &in_a_string.join(&b"we\xffft"[..]), &[6], &[]);
    refuse("a control character in a string", &conf.replace("weft0", "we\u{1}ft").into_bytes(), &[6], &[]);
    refuse("a NUL byte", &[conf.as_bytes(), b"\0"].concat(), &[6], &[]);
    refuse("a byte order mark", &[b"\xef\xbb\xbf", conf.as_bytes()].concat(), &[6], &[]);
    let twice = conf.replacen('{', "{\"mtu\":1400,\"mtu\":1300,", 1);
    refuse("a key twice", twice.as_bytes(), &[6], &["mtu"]);
    let deep_twice = conf.replace("\"ipam\":{", "\"ipam\":{\"x\":[{\"a\":1,\"a\":2}],");
    refuse("a key twice, deeper", deep_twice.as_bytes(), &[6], &["a"]);
    let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep = conf.replacen('{', &format!("{{\"args\":{nested},"), 1);
    refuse("too deep", deep.as_bytes(), &[6], &["128"]);
    let long = conf.replacen('{', &format!("{{\"args\":\"{}\",", "x".repeat(1 << 20)), 1);
    refuse("too long", long.as_bytes(), &[6], &[]);
    refuse("much too long", &vec![b' '; 8 << 20], &[6], &[]);
    refuse(
        "no name",
        Network::v4().with(&json!({ "name": null })).conf.to_string().as_bytes(),
        &[7],
        &["name"],
    );
    for name in ["", "a/b", "../x", ".hidden", "-x", "a b", "ü"] {
        let stdin = Network::v4().with(&json!({ "name": name })).conf.to_string();
        refuse(&format!("name {name:?}"), stdin.as_bytes(), &[7], &["name"]);
    }
    let number = Network::v4().with(&json!({ "name": 5 })).conf.to_string();
    refuse("a number as name", number.as_bytes(), &[6, 7], &["name"]);
}

/// As large and as deep as is allowed.
#[test]
fn the_limits_themselves_are_allowed() {
    let _host = Host::new();
    let network = Network::v4();
    let text = network.conf.to_string();
    let padded = format!("{text}{}", " ".repeat((1 << 20) - text.len()));
    network.add_call(&Pod::new()).stdin(padded).run().result();
    let mut inner = json!("end");
    for _ in 0..120 {
        inner = json!([inner]);
    }
    network.with(&json!({ "args": { "other": inner } })).add(&Pod::new());
}

#[test]
fn errors_name_the_path_in_the_configuration() {
    let _host = Host::new();
    for (change, path) in [
        (json!({ "isGateway": "yes" }), "isGateway"),
        (json!({ "mtu": "big" }), "mtu"),
        (json!({ "dns": { "nameservers": [1] } }), "dns.nameservers"),
        (json!({ "ipam": { "ranges": [[{ "subnet": 5 }]] } }), "subnet"),
        (json!({ "ipam": { "routes": [{ "dst": "nonsense" }] } }), "routes"),
        (json!({ "runtimeConfig": { "mac": 5 } }), "runtimeConfig.mac"),
        (json!({ "timeout": "long" }), "timeout"),
    ] {
        let error = Network::v4().with(&change).add_call(&Pod::new()).run().error();
        assert!([6, 7].contains(&error.code), "{error:?}");
        error.assert_names(&[path]);
    }
}

#[test]
fn environment() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    let add = || Network::v4().add_call(&pod);
    let cases: Vec<(Call, &[&str])> = vec![
        (add().unset("CNI_CONTAINERID"), &["CNI_CONTAINERID"]),
        (add().unset("CNI_NETNS"), &["CNI_NETNS"]),
        (add().env("CNI_NETNS", ""), &["CNI_NETNS"]),
        (add().unset("CNI_IFNAME"), &["CNI_IFNAME"]),
        (add().unset("CNI_PATH"), &["CNI_PATH"]),
        (add().env("CNI_CONTAINERID", ""), &["CNI_CONTAINERID"]),
        (add().env("CNI_CONTAINERID", "../up"), &["CNI_CONTAINERID", "../up"]),
        (add().env("CNI_CONTAINERID", "a/b"), &["CNI_CONTAINERID", "a/b"]),
        (add().env("CNI_CONTAINERID", "-a"), &["CNI_CONTAINERID", "-a"]),
        (add().ifname("sixteen-bytes-xx"), &["CNI_IFNAME", "sixteen-bytes-xx"]),
        (add().ifname("a/b"), &["CNI_IFNAME", "a/b"]),
        (add().ifname("a:b"), &["CNI_IFNAME", "a:b"]),
        (add().ifname("a b"), &["CNI_IFNAME", "a b"]),
        (add().ifname("."), &["CNI_IFNAME"]),
        (add().ifname(".."), &["CNI_IFNAME"]),
        (add().args("nonsense"), &["CNI_ARGS", "nonsense"]),
        (add().args("UNKNOWN=1"), &["CNI_ARGS", "UNKNOWN"]),
        (add().args("IP=nonsense"), &["IP", "nonsense"]),
        (add().args("MAC=nonsense"), &["MAC", "nonsense"]),
        (add().args("IgnoreUnknown=perhaps"), &["IgnoreUnknown", "perhaps"]),
        (add().unset("CNI_COMMAND"), &["CNI_COMMAND"]),
        (add().env("CNI_COMMAND", ""), &["CNI_COMMAND"]),
        (add().env("CNI_COMMAND", "add"), &["CNI_COMMAND", "add", "ADD"]),
        (add().env("CNI_COMMAND", "PURGE"), &["CNI_COMMAND", "PURGE"]),
        // All that is invalid in one error.
        (
            add().unset("CNI_CONTAINERID").unset("CNI_NETNS").ifname("a/b"),
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        ),
    ];
    for (call, words) in cases {
        let what = call.describe();
        let reply = call.run();
        let error = reply.error();
        assert_eq!(error.code, 4, "{what}: {error:?}");
        error.assert_names(words);
    }
    for plugin in ["weft", "weft-ipam"] {
        let reply = Call::new(plugin, "ADD", "{}").unset("CNI_COMMAND").run();
        reply.error_code(4);
        assert_eq!(reply.stderr.trim().lines().count(), 1, "one line for a person: {}", reply.stderr);
        assert!(reply.stderr.contains(plugin));
    }
    before.assert_unchanged(&host, &[&pod], "calls with a hostile environment");
}

#[test]
fn an_error_has_the_version_of_the_request() {
    let _host = Host::new();
    for version in ["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let network = Network::v4().with(&json!({ "cniVersion": version, "mtu": -5 }));
        assert_eq!(network.add_call(&Pod::new()).run().error().version, version);
    }
    assert_eq!(Network::v4().add_call(&Pod::new()).stdin("{").run().error().version, "1.1.0");
}

/// A result that nobody can receive: the attachment is taken back.
#[test]
fn closed_standard_output() {
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::dual().with(&json!({ "ipMasq": true }));
    let before = World::of(&host, &[&pod]);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut running = network.add_call(&pod).start_open(Stdio::from(writer));
    running.write(network.conf.to_string().as_bytes());
    running.close_stdin();
    let reply = running.finish();
    assert!(!reply.succeeded());
    assert_eq!(reply.status.signal(), None, "no death by SIGPIPE");
    before.assert_unchanged(&host, &[&pod], "ADD into a closed pipe");

    let reply = network.add_call(&pod).through(["sh", "-c", "exec \"$0\" >&-"]).run();
    assert!(!reply.succeeded() && reply.status.signal().is_none(), "{reply:?}");
    before.assert_unchanged(&host, &[&pod], "ADD without standard output");

    let reply = network.add_call(&pod).through(["sh", "-c", "exec \"$0\" >/dev/full"]).run();
    assert!(!reply.succeeded() && reply.status.signal().is_none(), "{reply:?}");
    before.assert_unchanged(&host, &[&pod], "ADD to a full device");
}

/// Somebody else came while it waited: what both need stays.
#[test]
fn a_result_that_nobody_takes_any_more() {
    let host = Host::new();
    let (first, second) = (Pod::new(), Pod::new());
    let network = Network::dual().with(&json!({ "ipMasq": true }));
    let (reader, writer) = pipe().unwrap();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    while filler.write(&[b' '; 4096]).is_ok() {}
    drop(filler);
    let mut waiting = network.add_call(&first).start_open(Stdio::from(writer));
    waiting.write(network.conf.to_string().as_bytes());
    waiting.close_stdin();
    let is_attached = || {
        let boots = fs::read_dir("/run/weft/dual").ok()?.flatten();
        let records =
            boots.filter_map(|boot| fs::read_dir(boot.path().join("attachments")).ok()).flatten().flatten();
        let mut texts = records.filter_map(|record| fs::read_to_string(record.path()).ok());
        texts.any(|text| text.contains("\"attached\":true")).then_some(())
    };
    eventually(Duration::from_secs(5), "the first one is attached", is_attached);
    let result = network.add(&second);
    drop(reader);
    assert!(!waiting.finish().succeeded());
    assert_eq!(first.link("eth0"), None);
    network.check(&second, &result).done();
    second.assert_reaches([10, 88, 0, 1]);
    assert!(host.link("weft0").is_some());
}

#[test]
fn standard_streams_that_are_missing() {
    let _host = Host::new();
    let network = Network::v4();
    network.add_call(&Pod::new()).through(["sh", "-c", "exec \"$0\" <&-"]).run().error();
    // Logs are a courtesy: without standard error all works the same.
    let pod = Pod::new();
    let result = network
        .add_call(&pod)
        .env("WEFT_LOG", "trace")
        .through(["sh", "-c", "exec \"$0\" 2>&-"])
        .run()
        .result();
    network.check(&pod, &result).done();
}

#[test]
fn standard_input_held_open() {
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::v4();
    let before = World::of(&host, &[&pod]);
    for plugin in ["weft", "weft-ipam"] {
        for sent in [String::new(), network.conf.to_string()] {
            let call = Call::new(plugin, "ADD", "").pod(&pod).env("WEFT_STDIN_TIMEOUT", "1");
            let start = Instant::now();
            let mut running = call.start_open(Stdio::piped());
            running.write(sent.as_bytes());
            running.finish().error_code(5);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(5), "{plugin} waited {took:?} instead of 1 s");
        }
    }
    before.assert_unchanged(&host, &[&pod], "ADD whose standard input stays open");
}

/// Unless another time is set: ten seconds, for each plugin, whatever has come until then.
#[test]
fn standard_input_held_open_without_a_limit_of_ones_own() {
    const DEFAULT: Duration = Duration::from_secs(10);
    let host = Host::new();
    let pod = Pod::new();
    let conf = Network::v4().conf.to_string();
    let before = World::of(&host, &[&pod]);
    let start = Instant::now();
    // All at once, as each waits.
    let running = ["weft", "weft-ipam", "flannel", "loopback"].map(|plugin| {
        let mut running = Call::new(plugin, "ADD", "").pod(&pod).start_open(Stdio::piped());
        running.write(conf.as_bytes());
        running
    });
    for running in running {
        let error = running.finish().error_code(5);
        error.assert_names(&["stdin was not closed in time", &format!("{} bytes came", conf.len())]);
        let took = start.elapsed();
        assert!(took >= DEFAULT && took < DEFAULT + Duration::from_secs(5), "{took:?} instead of 10 s");
    }
    before.assert_unchanged(&host, &[&pod], "ADD whose standard input stays open");
}

/// An IPAM plugin that never ends does not hang the runtime for ever.
#[test]
fn an_ipam_plugin_that_hangs() {
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::v4().with(&json!({ "timeout": 1 }));
    weft_tests::script(
        "/run/netns/.hang",
        "weft-ipam",
        "[ \"$CNI_COMMAND\" = ADD ] && exec sleep 600; exit 0",
    );
    let before = World::of(&host, &[&pod]);
    let start = Instant::now();
    let reply = network.add_call(&pod).env("CNI_PATH", "/run/netns/.hang").run();
    reply.error_code(101).assert_names(&["weft-ipam"]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    before.assert_unchanged(&host, &[&pod], "ADD with an IPAM plugin that hangs");
}

/// Whatever becomes of an IPAM plugin's ADD, it is told to give back what it may have reserved; and what it says on its
/// standard error is for the runtime's log.
#[test]
fn an_ipam_plugin_that_fails_is_told_to_clean_up() {
    const CALLS: &str = "/run/netns/.calls";
    let host = Host::new();
    let pod = Pod::new();
    let network = Network::v4().with(&json!({ "timeout": 1 }));
    for failure in [
        "printf '%s' '{\"cniVersion\":\"1.1.0\",\"code\":119,\"msg\":\"on fire\"}'; exit 1",
        "echo nonsense",
        "kill -9 $$",
        "exec sleep 600",
        // What it told first counts for nothing.
        "echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.88.0.2/24\"}]}'; exec >&-; exit 1",
        "echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.88.0.2/24\"}]}'; exec >&-; exec sleep 600",
    ] {
        let before = World::of(&host, &[&pod]);
        let body = format!(
            "echo $CNI_COMMAND $CNI_CONTAINERID >> {CALLS}; echo smoke >&2; [ \"$CNI_COMMAND\" = ADD ] || exit 0; {failure}"
        );
        weft_tests::script("/run/netns/.failing", "weft-ipam", &body);
        let reply = network.add_call(&pod).env("CNI_PATH", "/run/netns/.failing").run();
        assert!(!reply.succeeded(), "{failure}");
        assert!(reply.stderr.contains("smoke"), "{failure}: {}", reply.stderr);
        let calls = fs::read_to_string(CALLS).unwrap();
        assert_eq!(calls, format!("ADD {0}\nDEL {0}\n", pod.id), "{failure}");
        fs::remove_file(CALLS).unwrap();
        fs::remove_file("/run/netns/.failing/weft-ipam").unwrap();
        before.assert_unchanged(&host, &[&pod], failure);
    }
}

/// What it says when it can neither reserve nor give back is passed on, all of it.
#[test]
fn an_ipam_plugin_that_cannot_clean_up_is_quoted() {
    let _host = Host::new();
    let answer = r#"{"cniVersion": "1.1.0", "code": 119, "msg": "it burns", "details": "one\ntwo"}"#;
    weft_tests::script("/run/netns/.burning", "weft-ipam", &format!("printf '%s' '{answer}'; exit 1"));
    let pod = Pod::new();
    let call = Network::v4().add_call(&pod).env("CNI_PATH", "/run/netns/.burning");
    let error = call.run().error_code(119);
    let details: Vec<&str> = error.details.lines().collect();
    for line in ["ADD: one", "ADD: two", "DEL: one", "DEL: two"].map(|line| format!("weft-ipam {line}")) {
        assert_eq!(details.iter().filter(|detail| **detail == line).count(), 1, "{line}: {error:?}");
    }
    let left =
        |line: &&str| line.starts_with("not taken back: ") && line.ends_with("weft-ipam DEL: it burns");
    assert!(details.iter().any(left), "{error:?}");
}

/// What an IPAM plugin may print instead of a result.
#[test]
fn an_ipam_plugin_that_talks_nonsense() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    for answer in [
        "",
        "nonsense",
        "[]",
        "{}",
        "{\"cniVersion\":\"1.1.0\"}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[]}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"x\"}]}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[null]}",
        "{\"cniVersion\":\"7.7.7\",\"ips\":[{\"address\":\"10.88.0.2/24\"}]}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.88.0.2/24\",\"gateway\":\"fd00::1\"}]}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.88.0.2/24\"}],\"routes\":[{\"dst\":\"1.2.3.4/40\"}]}",
        "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.88.0.2/24\"}],\"routes\":[{\"dst\":\"192.0.2.0/24\",\"gw\":\"172.31.0.1\"}]}",
    ] {
        let body = format!("[ \"$CNI_COMMAND\" = ADD ] && printf '%s' '{answer}'; exit 0");
        weft_tests::script("/run/netns/.nonsense", "weft-ipam", &body);
        let reply = Network::v4().add_call(&pod).env("CNI_PATH", "/run/netns/.nonsense").run();
        assert!(!reply.succeeded(), "accepted from the IPAM plugin: {answer}");
        reply.error();
        before.assert_unchanged(&host, &[&pod], answer);
    }
}
