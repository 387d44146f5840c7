//! The agent as a service: one per network, its configuration, its unit, and what it tells systemd.

use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

use weft_tests::dist;

use super::heal::{assert_repaired, damages_of_the_device};
use super::*;

fn conf(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf").join(file)
}

fn weftd(words: &[&str]) -> Output {
    Command::new(dist().join("weftd")).args(words).output().expect("run weftd")
}

#[test]
fn the_sample_configuration_is_accepted() {
    let sample = conf("weftd.json");
    let output = weftd(&["--check", "--config", sample.to_str().expect("a path")]);
    assert!(output.status.success(), "{output:?}");
    let flags = "--name pods --etcd-endpoints http://127.0.0.1:2379 --ip-masq";
    let words: Vec<&str> = ["--check"].into_iter().chain(flags.split(' ')).collect();
    assert!(weftd(&words).status.success());
    let shown = fs::read_to_string(conf("../docs/weftd.md")).expect("docs/weftd.md");
    assert!(shown.contains(&format!("weftd {flags}")), "docs/weftd.md shows the same as flags");
    let sample = fs::read_to_string(sample).expect("the sample");
    assert!(shown.contains(&sample), "docs/weftd.md shows conf/weftd.json");
}

#[test]
fn a_wrong_configuration_is_refused_in_one_line() {
    for (words, names) in [
        (&["--check", "--config", "/nonexistent"][..], ["/nonexistent", "--config"]),
        (&["--check", "--name", "../x"], ["../x", "name"]),
        (
            &["--check", "--name", "pods", "--etcd-endpoints", "http://[::1]:2379", "--listen", "0.0.0.0:1"],
            ["0.0.0.0:1", "loopback"],
        ),
        (&["--check", "--name", "pods", "--etcd-endpoints", "nonsense"], ["nonsense", "endpoints"]),
    ] {
        let output = weftd(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words:?}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for name in names {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}

#[test]
fn the_documentation_has_every_flag_and_key() {
    let text = fs::read_to_string(conf("../docs/weftd.md")).expect("docs/weftd.md");
    let source = fs::read_to_string(conf("../flannel-compat/src/agent/conf.rs")).expect("conf.rs");
    for line in source.lines() {
        if let Some(field) = line.trim().strip_prefix("pub ").and_then(|line| line.split_once(": Option<")) {
            let mut words = field.0.split('_');
            let first = words.next().expect("a word").to_owned();
            let camel = words.fold(first, |key, word| key + &word[..1].to_uppercase() + &word[1..]);
            let key = camel.replace("Ttl", "TTL").replace("publicIp", "publicIP");
            assert!(text.contains(&format!("`{key}`")), "docs/weftd.md does not mention {key}");
        }
    }
    let help = String::from_utf8_lossy(&weftd(&["--help"]).stdout).into_owned();
    for flag in
        ["--name", "--etcd-endpoints", "--ip-masq", "--listen", "--state-dir", "--data-dir", "--log-level"]
    {
        assert!(help.contains(flag) && text.contains(flag), "{flag}");
    }
}

fn unit() -> String {
    fs::read_to_string(conf("weftd.service")).expect("the unit")
}

/// What systemd says of the unit on a host with these other ones.
#[track_caller]
fn assert_valid(others: &[(&str, &str)]) {
    let program = "/usr/local/bin/weftd";
    assert!(unit().contains(program));
    let directory = tempfile::tempdir().expect("a directory");
    let here = dist().join("weftd");
    let unit = unit().replace(program, here.to_str().expect("a path"));
    let units = others.iter().copied().chain([("weftd.service", unit.as_str())]);
    let files = units.map(|(name, text)| {
        let file = directory.path().join(name);
        fs::write(&file, text).expect("write a unit");
        file
    });
    let mut path = OsString::from(directory.path());
    // The machine's own come after these.
    path.push(":");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(files)
        .env("SYSTEMD_UNIT_PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("systemd-analyze: {error}: apt-get install systemd"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !text.contains("weftd.service"), "{text}");
}

/// systemd finds nothing to complain about in the unit, and never gives it up.
#[test]
fn the_unit_is_valid() {
    assert_valid(&[]);
    let unit = unit();
    let (head, service) = unit.split_once("\n[Service]\n").expect("two sections");
    assert!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{unit}");
    assert!(service.lines().any(|line| line == "Restart=always"), "{unit}");
}

/// Of whatever runtime: nothing that etcd needs waits for the agent.
#[test]
fn etcd_may_be_a_container_of_the_host() {
    let runtime = "[Service]\nExecStart=/bin/true\n";
    for name in ["containerd", "crio", "docker", "kubelet"].map(|name| format!("{name}.service")) {
        let etcd = format!("[Unit]\nRequires={name}\nAfter={name}\n{runtime}");
        let boot = format!("[Unit]\nWants={name} etcd.service weftd.service\n");
        assert_valid(&[(&name, runtime), ("etcd.service", &etcd), ("boot.target", &boot)]);
    }
}

/// With what the unit leaves it.
#[test]
fn its_capabilities_are_enough() {
    let mut fleet = Fleet::of(2, CONFIG, &json!({ "ipMasq": true }));
    fleet.acquainted();
    let (one, _) = fleet.pod(0);
    let (_other, address) = fleet.pod(1);
    let unit = unit();
    let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a set");
    let names: Vec<&str> = names.split_whitespace().collect();
    let bounds = names
        .iter()
        .fold("-all".to_owned(), |set, name| set + ",+" + &name.trim_start_matches("CAP_").to_lowercase());
    assert!(unit.contains("NoNewPrivileges=yes"));
    fleet.agents[0].daemon().stop();
    let node = fleet.node(0);
    // Nothing that it needs is there yet.
    for line in ["nft flush ruleset", "sysctl -q -w net.ipv4.ip_forward=0"] {
        node.command(line);
    }
    node.command(&format!("ip link del {DEVICE}"));
    fs::remove_file(node.subnet_file()).expect("remove subnet.env");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", &bounds, "--no-new-privs", "--"]).arg(dist().join("weftd"));
    command.arg("--config").arg(node.directory().join("weftd.json"));
    fleet.agents[0] = Weftd::by(node, command);
    let (node, agent) = (fleet.node(0), &fleet.agents[0]);
    agent.ready();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.daemon().pid())).expect("a process");
    let has = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("its capabilities");
    let has = u64::from_str_radix(has, 16).expect("a number");
    assert_eq!(has.count_ones() as usize, names.len(), "{status}");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    assert!(node.subnet_file().is_file());
    for damage in damages_of_the_device(node, Family::V4) {
        assert_repaired(&fleet, &damage, &one, address);
    }
}

/// A second agent for the same network ends, naming the first; a plugin sees that one lives.
#[test]
fn one_agent_per_network() {
    let fleet = Fleet::new(1);
    let node = fleet.node(0);
    let second = Weftd::start(node, &fleet.etcd, &json!({}));
    assert!(!second.daemon().wait().success());
    let first = fleet.agents[0].daemon().pid();
    let log = second.daemon().log();
    assert!(log.contains(&format!("pid {first}")), "{log}");
    assert!(log.contains("agent.lock"), "{log}");
    fleet.agents[0].ready();
}

/// What systemd is told.
struct Told(UnixDatagram);

impl Told {
    /// Starts the agent with somebody who listens.
    fn by(node: &Node, etcd: &Etcd) -> (Self, Daemon) {
        fs::create_dir_all(node.directory()).expect("make a node's directory");
        let path = node.directory().join("notify");
        drop(fs::remove_file(&path));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("set a limit");
        let mut command = Weftd::command(node, &json!({ "networks": [Weftd::conf(node, etcd)] }));
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "3000000");
        (Self(socket), node.start(command))
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        loop {
            match self.0.recv(&mut buffer) {
                // A signal of this process, like that of a child of another test.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                told => {
                    let length = told.expect("the agent tells something");
                    return String::from_utf8_lossy(&buffer[..length]).into_owned();
                }
            }
        }
    }

    /// Waits for this, before which `never` is not told.
    #[track_caller]
    fn until(&self, wanted: &str, never: &str) {
        for _ in 0..200 {
            let told = self.next();
            assert!(never.is_empty() || !told.contains(never), "{told}");
            if told.contains(wanted) {
                return;
            }
        }
        panic!("{wanted} was not told");
    }
}

#[test]
fn systemd_is_told() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(1, Access::Open);
    let (told, agent) = Told::by(cluster.node(0), &etcd);
    // Without a configuration in etcd there is nothing to wait for, and it says why there is no subnet.
    told.until("/coreos.com/network/config is not in etcd", "READY=1");
    told.until("READY=1", "STOPPING=1");
    etcd.put("/coreos.com/network/config", CONFIG);
    told.until("STATUS=pods: subnet 10.", "READY=1");
    for _ in 0..3 {
        let began = Instant::now();
        told.until("WATCHDOG=1", "STOPPING=1");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    told.until("STOPPING=1", "");
    assert!(agent.wait().success());
}

/// Whoever starts after it finds what could be had: all of it with etcd, without etcd what is on file.
#[test]
fn systemd_hears_that_it_has_started_once_all_is_set_up_that_can_be() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    for _ in 0..2 {
        let (told, agent) = Told::by(node, &etcd);
        told.until("READY=1", "STOPPING=1");
        assert!(node.link(DEVICE).is_some() && node.subnet_file().is_file());
        agent.stop();
        node.command(&format!("ip link del {DEVICE}"));
        fs::remove_file(node.subnet_file()).expect("remove subnet.env");
        etcd.stop();
    }
}

#[test]
fn it_answers_at_a_socket_file() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let path = node.directory().join("run/weftd.sock");
    let listen = format!("unix:{}", path.display());
    let _agent = Weftd::with(node, &json!({ "networks": [Weftd::conf(node, &etcd)], "listen": listen }));
    eventually(PATIENCE, "it is ready", || {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&path).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains(" 200 ").then_some(())
    });
    assert!(command("ip -br link").contains("wire0"), "the thread is on the router as before");
}

/// As by an upgrade: who runs on says that it is to be restarted, and is ready all the same.
#[test]
fn its_file_is_replaced() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let etcd = cluster.etcd(1, Access::Open);
    etcd.put("/coreos.com/network/config", CONFIG);
    let original = Weftd::command(node, &json!({ "networks": [Weftd::conf(node, &etcd)] }));
    let [program, next] = ["weftd", "weftd.next"].map(|name| node.directory().join(name));
    let start = || {
        let mut command = Command::new(&program);
        command.args(original.get_args());
        Weftd::by(node, command)
    };
    let copy = |to: &Path| node.command(&format!("cp {} {}", dist().join("weftd").display(), to.display()));
    copy(&program);
    let agent = start();
    agent.ready();
    let says = |agent: &Weftd| agent.ask("/readyz").expect("an answer").body.contains("restart weftd");
    assert!(!says(&agent));
    copy(&next);
    fs::rename(&next, &program).expect("replace it");
    assert!(says(&agent));
    agent.ready();
    eventually(PATIENCE, "the log says it", || agent.daemon().log().contains("restart weftd").then_some(()));
    assert!(agent.daemon().stop().success());
    let agent = start();
    agent.ready();
    assert!(!says(&agent));
}
