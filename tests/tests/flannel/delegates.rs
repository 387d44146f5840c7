//! A delegate that is not Weft is executed, as the specification has it: told what flannel's plugin tells it, and the
//! same again when it has to look at the attachment or undo it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Call, Pod, Running, World, addresses_settle, command, eventually, ips, peers, script};

use super::super::{DUAL, ENV, FILE, Merged as _, conf, leased};

const PATIENCE: Duration = Duration::from_secs(10);
/// Where the delegate is, which notes how it was called.
const DIRECTORY: &str = "/run/delegates";
const NOTES: &str = "/run/delegates/notes";
const STATES: &str = "/var/lib/cni/flannel";
/// While this pipe is there, the delegate's ADD waits until somebody writes a line into it.
const GATE: &str = "/run/delegates/gate";

/// The reference plugin `ptp`, as delegate `noted`: every call goes through it, and is noted.
fn noted() -> Value {
    let ptp = peers().join("ptp");
    let body = format!(
        "input=$(cat)\nprintf '%s %s\\n' \"$CNI_COMMAND\" \"$input\" >>{NOTES}\n\
         [ \"$CNI_COMMAND\" != ADD ] || [ ! -p {GATE} ] || read -r _ <{GATE}\n\
         printf '%s' \"$input\" | {}",
        ptp.display()
    );
    script(DIRECTORY, "noted", &body);
    let delegate = json!({
        "type": "noted", "hairpinMode": null, "isDefaultGateway": null, "ipMasqBackend": "nftables"
    });
    let wants = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    conf(&json!({ "delegate": delegate, "dns": { "nameservers": ["192.0.2.53"] }, "runtimeConfig": wants }))
}

fn call(verb: &str, conf: &Value, pod: &Pod) -> Call {
    let path = format!("{DIRECTORY}:{}", peers().display());
    super::super::call(verb, conf, pod).env("CNI_PATH", path)
}

/// The configurations that the delegate was called with, by command, since the last time.
fn calls() -> Vec<(String, Value)> {
    let notes = fs::read_to_string(NOTES).unwrap_or_default();
    fs::write(NOTES, "").expect("forget the notes");
    let note = |line: &str| {
        let (verb, conf) = line.split_once(' ').expect("a command and a configuration");
        (verb.to_owned(), serde_json::from_str(conf).expect("JSON"))
    };
    notes.lines().map(note).collect()
}

/// What the delegate was called with; it was called once.
#[track_caller]
fn only(verb: &str) -> Value {
    let calls = calls();
    assert!(calls.len() == 1 && calls[0].0 == verb, "{verb}: {calls:?}");
    calls[0].1.clone()
}

fn states() -> usize {
    let names = fs::read_dir(STATES).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().contains('@')).count()
}

/// host-local's reservations.
fn held() -> usize {
    let entries = fs::read_dir("/var/lib/cni/networks/cbr0").expect("host-local's directory").flatten();
    let address = |name: std::ffi::OsString| name.to_str()?.parse::<std::net::IpAddr>().ok();
    entries.filter_map(|entry| address(entry.file_name())).count()
}

/// A delegate is told what the daemon has leased, and what its configuration has.
fn assert_told(told: &Value, conf: &Value, ranges: &[Value]) {
    assert_eq!(told["ipam"]["ranges"], json!(ranges), "{told}");
    assert_eq!(told["ipam"]["type"], "host-local");
    assert_eq!(told["ipam"]["routes"][0]["dst"], "10.240.0.0/12");
    assert_eq!((&told["name"], &told["cniVersion"]), (&json!("cbr0"), &json!("1.1.0")));
    assert_eq!((&told["dns"], &told["runtimeConfig"]), (&conf["dns"], &conf["runtimeConfig"]));
}

#[test]
fn every_command_goes_to_the_delegate() {
    for (env, subnets, mtu, masquerade) in [
        (ENV, vec!["10.240.34.0/24"], 1450, true),
        (DUAL, vec!["10.240.34.0/24", "fd00:42:0:31::/64"], 1430, false),
    ] {
        let host = leased(env);
        let conf = noted();
        let (one, other) = (Pod::new(), Pod::new());
        let result = call("ADD", &conf, &one).run().result();
        let told = only("ADD");
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        assert_told(&told, &conf, &ranges);
        assert_eq!((&told["mtu"], &told["ipMasq"]), (&json!(mtu), &json!(masquerade)), "{told}");
        assert_eq!(result["dns"], conf["dns"]);
        assert_eq!(one.link("eth0").expect("an interface")["mtu"], mtu);
        let second = call("ADD", &conf, &other).run().result();
        assert_eq!(ips(&second).len(), subnets.len());
        // ptp does not wait until the gateway has them.
        addresses_settle();
        for address in ips(&second) {
            one.assert_reaches(address);
        }
        assert_eq!(host.ruleset().contains("masquerade"), masquerade);
        assert_eq!((states(), held()), (2, 2 * subnets.len()));
        calls();

        // What it is told later is what it was told, whatever the daemon has leased since, or when nothing is leased.
        let lost = [env.replace("34.1/24", "35.1/24").replace("MTU=14", "MTU=13"), String::new()];
        for now in lost {
            if now.is_empty() {
                fs::remove_file(FILE).expect("lose the file");
            } else {
                fs::write(FILE, now).expect("another lease");
            }
            let with_result = conf.clone().merged(&json!({ "prevResult": result }));
            call("CHECK", &with_result, &one).run().done();
            assert_eq!(only("CHECK"), told.clone().merged(&json!({ "prevResult": result })));
        }
        call("STATUS", &conf, &one).run().error_code(50).assert_names(&[FILE]);
        assert!(calls().is_empty(), "without a lease there is nothing to ask a delegate");

        let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": one.id, "ifname": "eth0" }] });
        call("GC", &conf.clone().merged(&valid), &one).run().done();
        // ptp has no GC: what is not valid is deleted as it was added.
        let mut done = calls();
        assert_eq!(done.remove(0).1["cni.dev/valid-attachments"], valid["cni.dev/valid-attachments"]);
        assert_eq!(done, [("DEL".to_owned(), told.clone())]);
        assert_eq!((states(), held()), (1, subnets.len()));
        call("DEL", &conf, &one).run().done();
        assert_eq!(only("DEL"), told);
        assert_eq!((states(), held()), (0, 0));
        assert!(one.link("eth0").is_none());
        call("DEL", &conf, &one).run().done();
        assert!(calls().is_empty(), "it is gone already");
        fs::write(FILE, env).expect("the lease is back");
        call("STATUS", &conf, &one).run().done();
        assert_eq!(only("STATUS")["ipam"]["ranges"], json!(ranges));
    }
}

/// The delegate's own errors are the runtime's to see, and a failed ADD leaves nothing.
#[test]
fn a_delegate_that_fails() {
    let host = leased(ENV);
    let conf = noted();
    let pod = Pod::new();
    pod.command("ip link add eth0 type bridge");
    // What the reference plugins keep for good is there before.
    let warm = Pod::new();
    call("ADD", &conf, &warm).run().result();
    call("DEL", &conf, &warm).run().done();
    calls();
    let before = World::of(&host, &[]);
    call("ADD", &conf, &pod).run().error().assert_names(&["eth0"]);
    let verbs: Vec<String> = calls().into_iter().map(|(verb, _)| verb).collect();
    assert_eq!(verbs, ["ADD", "DEL"], "what it may have begun is taken back");
    before.assert_unchanged(&host, &[], "a failed ADD");
    assert_eq!((states(), held()), (0, 0));

    let pod = Pod::new();
    let result = call("ADD", &conf, &pod).run().result();
    pod.command("ip addr flush dev eth0");
    let with_result = conf.clone().merged(&json!({ "prevResult": result }));
    call("CHECK", &with_result, &pod).run().error();
    // Its binary is gone at the end: said, and nothing is forgotten until it is back.
    fs::rename(format!("{DIRECTORY}/noted"), "/run/noted").expect("lose the delegate");
    call("DEL", &conf, &pod).run().error_code(7).assert_names(&["noted", "searched"]);
    assert_eq!((states(), held()), (1, 1));
    fs::rename("/run/noted", format!("{DIRECTORY}/noted")).expect("the delegate is back");
    call("DEL", &conf, &pod).run().done();
    assert_eq!((states(), held()), (0, 0));
    assert!(!command("ip -o link").contains("veth"));
}

#[test]
fn a_delegate_that_is_not_there() {
    let _host = leased(ENV);
    let pod = Pod::new();
    let conf =
        conf(&json!({ "delegate": { "type": "absent", "hairpinMode": null, "isDefaultGateway": null } }));
    call("ADD", &conf, &pod).run().error_code(7).assert_names(&["absent", "searched"]);
    assert!(Path::new(STATES).is_dir() && states() == 0);
}

/// The configuration for a GC that is to keep some containers' attachments.
fn keeping(conf: &Value, valid: &[&Pod]) -> Value {
    let entry = |pod: &&Pod| json!({ "containerID": pod.id, "ifname": "eth0" });
    let list: Vec<Value> = valid.iter().map(entry).collect();
    conf.clone().merged(&json!({ "cni.dev/valid-attachments": list }))
}

/// Waits until a process does nothing but wait itself.
fn asleep(running: &Running) {
    eventually(PATIENCE, "it waits", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).ok()?;
        stat.contains("(flannel) S").then_some(())
    });
}

/// Waits until somebody waits for a lock of this plugin's.
fn queued() {
    eventually(PATIENCE, "it waits for the other one", || {
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(format!("{STATES}/.cbr0.lock")).ok()?);
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        locks.lines().any(|line| line.contains("->") && line.contains(&format!(":{inode} "))).then_some(())
    });
}

fn open_gate() {
    fs::write(GATE, "\n").expect("open the gate");
    fs::remove_file(GATE).expect("remove the gate");
}

#[track_caller]
fn assert_attached(conf: &Value, pod: &Pod, result: &Value) {
    call("CHECK", &conf.clone().merged(&json!({ "prevResult": result })), pod).run().done();
}

/// Its runtime wrote the list before: what was attached meanwhile is in no list.
#[test]
fn gc_keeps_what_was_attached_since_it_began() {
    for ipam in [json!({}), json!({ "type": "host-local" })] {
        let _host = leased(ENV);
        // An executed delegate, and Weft with another's IPAM plugin, for which there are notes here, too.
        let executed = ipam == json!({});
        let conf = if executed { noted() } else { conf(&json!({ "ipam": ipam })) };
        let [listed, dead, young] = [(); 3].map(|()| Pod::new());
        let result = call("ADD", &conf, &listed).run().result();
        call("ADD", &conf, &dead).run().result();
        let request = keeping(&conf, &[&listed]);
        let mut collecting = call("GC", &request, &listed).start_open(Stdio::piped());
        asleep(&collecting);
        let late = call("ADD", &conf, &young).run().result();
        if executed {
            calls();
        }
        collecting.write(request.to_string().as_bytes());
        collecting.close_stdin();
        collecting.finish().done();
        assert_eq!((states(), held()), (2, 2));
        if executed {
            let told = calls();
            let list = &told[0].1["cni.dev/valid-attachments"];
            assert_eq!(list[0]["containerID"], listed.id.as_str(), "{list}");
            assert_eq!(list[1]["containerID"], young.id.as_str(), "{list}");
            assert_eq!(told.len(), 2, "GC, and a DEL of what is gone: {told:?}");
        }
        assert_attached(&conf, &listed, &result);
        assert_attached(&conf, &young, &late);
        // The next list has it, or it is gone.
        call("GC", &keeping(&conf, &[&listed]), &listed).run().done();
        assert_eq!((states(), held()), (1, 1));
        call("DEL", &conf, &listed).run().done();
    }
}

/// What is being attached is in no list either: GC waits until it is.
#[test]
fn gc_waits_for_an_add_under_way() {
    let _host = leased(ENV);
    let conf = noted();
    let [listed, young, killed] = [(); 3].map(|()| Pod::new());
    call("ADD", &conf, &listed).run().result();
    command(&format!("mkfifo {GATE}"));
    let adding = call("ADD", &conf, &young).start();
    eventually(PATIENCE, "the delegate is at work", || (states() == 2).then_some(()));
    let collecting = call("GC", &keeping(&conf, &[&listed]), &listed).start();
    queued();
    open_gate();
    let result = adding.finish().result();
    collecting.finish().done();
    assert_attached(&conf, &young, &result);
    assert_eq!((states(), held()), (2, 2));

    // Killed, the plugin leaves its delegate, which GC waits for; nobody was told its result.
    command(&format!("mkfifo {GATE}"));
    calls();
    let adding = call("ADD", &conf, &killed).start();
    eventually(PATIENCE, "the delegate is at work", || {
        fs::read_to_string(NOTES).is_ok_and(|notes| notes.ends_with('\n')).then_some(())
    });
    only("ADD");
    adding.kill();
    let collecting = call("GC", &keeping(&conf, &[&listed, &young]), &listed).start();
    queued();
    open_gate();
    collecting.finish().done();
    assert!(!adding.finish().succeeded());
    assert_eq!((states(), held()), (2, 2));
    let verbs: Vec<String> = calls().into_iter().map(|(verb, _)| verb).collect();
    assert_eq!(verbs, ["GC", "DEL"]);
}

/// The delegate fails from here on where a pattern of the shell is met by command and container, and says why.
fn burning(pattern: &str) {
    let error = r#"{"cniVersion": "1.1.0", "code": 119, "msg": "it burns", "details": "one\ntwo"}"#;
    let body = format!(
        "case \"$CNI_COMMAND $CNI_CONTAINERID\" in {pattern}) printf '%s' '{error}'; exit 1;; esac\nexec {}",
        peers().join("ptp").display()
    );
    script(DIRECTORY, "noted", &body);
}

#[test]
fn what_a_delegate_says_is_passed_on() {
    let _host = leased(ENV);
    let conf = noted();
    burning("*");
    let pod = Pod::new();
    let error = call("ADD", &conf, &pod).run().error_code(119);
    let told = [
        "noted ADD: one",
        "noted ADD: two",
        "not taken back: noted DEL: it burns",
        "noted DEL: one",
        "noted DEL: two",
    ];
    assert_eq!(
        (error.msg.as_str(), error.details.lines().collect::<Vec<_>>()),
        ("noted ADD: it burns", told.to_vec())
    );
}

/// A delegate that fails at GC, and one of the containers that are gone: the others go, and all is told with all that was said.
#[test]
fn gc_goes_on_after_failures_and_reports_them_all() {
    let _host = leased(ENV);
    let conf = noted();
    let [listed, broken, dead] = [(); 3].map(|()| Pod::new());
    let result = call("ADD", &conf, &listed).run().result();
    for pod in [&broken, &dead] {
        call("ADD", &conf, pod).run().result();
    }
    burning(&format!("GC*|'DEL {}'", broken.id));
    let request = keeping(&conf, &[&listed]);
    let error = call("GC", &request, &listed).run().error_code(119);
    assert_eq!(error.msg, "noted GC: it burns");
    let whose = format!("delete interface eth0 of container {}: noted DEL: it burns", broken.id);
    let told = ["noted GC: one", "noted GC: two", &whose, "noted DEL: one", "noted DEL: two"];
    assert_eq!(error.details.lines().collect::<Vec<_>>(), told);
    assert_eq!((states(), held()), (2, 2));
    noted();
    call("GC", &request, &listed).run().done();
    assert_eq!((states(), held()), (1, 1));
    assert_attached(&conf, &listed, &result);
}
