//! Real container runtimes attach real containers with Weft, each to the network of a sample in `conf/`.
//!
//! These tests need the real root: `hack/test runtimes`. Each has its own network, mount and PID namespace.

#[path = "runtimes/cri.rs"]
mod cri;
#[path = "runtimes/crowd.rs"]
mod crowd;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use cri::Kubelet;
use k8s_cri::v1::{DnsConfig, PodSandboxConfig, PortMapping};
use serde_json::{Value, json};
use weft_tests::runtime::{self, Containerd, Machine};
use weft_tests::{CniTool, Etcd, Host, Mirror, Pod, World, command, eventually, ips};

/// What a container that serves on its port 80 runs.
const SERVE: [&str; 3] = ["sh", "-c", "while nc -l -p 80 -e echo served; do :; done"];

/// The host's address towards the containers of `20-weft-nerdctl-podman.conflist`.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 1);

/// What serves in a container is at the host's port 8080.
#[track_caller]
fn assert_serves(host: impl Into<IpAddr>) {
    let host = host.into();
    let asked = eventually(Duration::from_secs(5), "a container serves on the host's port", || {
        let mut stream = TcpStream::connect((host, 8080)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    assert_eq!(asked, "served\n");
}

/// Of three containers that have no network of their own one has `lo` only, one is where another one is, and one where the host is. No
/// plugin is called for any.
#[track_caller]
fn assert_modes(machine: &Machine, other: Ipv4Addr, exec: impl Fn(&str, &[&str]) -> String) {
    let links = |name: &str| exec(name, &["ip", "-o", "link"]);
    let alone = links("alone");
    assert!(alone.lines().count() == 1 && alone.contains(": lo:"), "{alone}");
    let beside = exec("beside", &["ip", "-4", "-o", "addr"]);
    assert!(beside.contains(&format!(" {other}/")), "{beside}");
    let bare = links("bare");
    assert!(bare.contains(": weft2:"), "{bare}");
    assert_eq!(machine.host().ports("weft2").len(), 2, "those of the two containers with a network");
}

/// One echo request that must be answered.
const PING: [&str; 5] = ["ping", "-c", "1", "-W", "3"];

fn conf() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../conf"))
}

/// Two containers reach their gateways; the second one serves, the host gets there, and the first one does not.
#[track_caller]
fn assert_kept_apart(host: &Host, (a, of_a): (&Pod, &Value), (b, of_b): (&Pod, &Value)) {
    const PORT: u16 = 80;
    for ip in of_a["ips"].as_array().expect("addresses") {
        let gateway: IpAddr = ip["gateway"].as_str().and_then(|text| text.parse().ok()).expect("a gateway");
        a.assert_reaches(gateway);
        b.assert_reaches(gateway);
    }
    let server = Mirror::on(b, PORT);
    for address in ips(of_b) {
        assert!(server.seen(host.netns(), (address, PORT)).is_some(), "the host does not reach {address}");
        assert!(server.is_closed_to(a, (address, PORT)), "icc is false, and there is a way to {address}");
    }
}

/// Every sample works as it is: two containers reach each other, unless it keeps them apart or has no network, and are gone
/// without a trace. The first attachments make what a network and a namespace keep (bridge, rules, `lo` up): one compares after them.
#[test]
fn cnitool_attaches_checks_and_detaches_with_every_sample() {
    let mut samples = 0;
    for entry in fs::read_dir(conf()).expect("read conf/") {
        let path = entry.expect("an entry of conf/").path();
        if path.extension().is_none_or(|extension| extension != "conflist") {
            continue;
        }
        let conflist: Value = serde_json::from_slice(&fs::read(&path).expect("read a sample")).expect("JSON");
        let network = conflist["name"].as_str().expect("a network has a name");

        let host = Host::new();
        let _store = conflist.to_string().contains("\"etcd\"").then(|| Etcd::beside(&host));
        let (a, b) = (Pod::new(), Pod::new());
        let cnitool = CniTool::new(conf());
        cnitool.run("status", network, &a);
        for pod in [&a, &b] {
            cnitool.add(network, pod);
            cnitool.run("del", network, pod);
        }
        let before = World::of(&host, &[&a, &b]);

        let (result_of_a, result_of_b) = (cnitool.add(network, &a), cnitool.add(network, &b));
        if conflist["plugins"][0]["icc"] == false {
            assert_kept_apart(&host, (&a, &result_of_a), (&b, &result_of_b));
        } else {
            for (of_a, of_b) in ips(&result_of_a).into_iter().zip(ips(&result_of_b)) {
                a.assert_reaches(of_b);
                b.assert_reaches(of_a);
            }
        }
        for pod in [&a, &b] {
            cnitool.run("check", network, pod);
        }
        cnitool.run("status", network, &a);
        for pod in [&a, &b, &a] {
            cnitool.run("del", network, pod);
        }
        before.assert_unchanged(
            &host,
            &[&a, &b],
            &format!("the life of two containers in {}", path.display()),
        );
        samples += 1;
    }
    assert!(samples > 0, "there is no conflist in {}", conf().display());
}

/// cnitool's `gc` lets libcni delete what its cache knows, and then calls the plugins' GC, but hands them no list of
/// what is valid (v1.3.0). An absent list never means "delete all": the rest is left alone.
#[test]
fn cnitool_gc_removes_what_libcni_knows_and_nothing_else() {
    let host = Host::new();
    let (known, unknown) = (Pod::new(), Pod::new());
    let cnitool = CniTool::new(conf());
    cnitool.add("weft", &unknown);
    let caches = fs::read_dir("/var/lib/cni/results").expect("libcni's cache");
    caches
        .for_each(|entry| fs::remove_file(entry.expect("an entry").path()).expect("remove a cached result"));
    cnitool.add("weft", &known);

    let output = cnitool.attempt("gc", "weft", &known);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(known.link("eth0").is_none());
    assert!(unknown.link("eth0").is_some());
    assert_eq!(host.ports("weft0").len(), 1);
    unknown.assert_reaches(Ipv4Addr::new(10, 88, 0, 1));
}

#[test]
fn containers_of_ctr_reach_each_other() {
    let machine = Machine::new("30-weft-containerd-cri.conflist");
    let containerd = Containerd::start(&machine);
    containerd.run("first").stop();
    let before = World::of(machine.host(), &[]);

    let (a, b) = (containerd.run("a"), containerd.run("b"));
    assert_eq!(machine.host().ports("weft3").len(), 2);
    a.exec(&[&PING[..], &[&b.address.to_string()]].concat());
    b.exec(&[&PING[..], &[&a.address.to_string()]].concat());
    a.stop();
    b.stop();
    machine.assert_nothing_left(&before);
}

#[test]
fn pods_of_containerd_reach_each_other() {
    let machine = Machine::new("30-weft-containerd-cri.conflist");
    let _containerd = Containerd::start(&machine);
    let mut kubelet = Kubelet::connect(&machine);
    let first = kubelet.run("first");
    kubelet.stop(&first);
    kubelet.remove(first);
    let before = World::of(machine.host(), &[]);

    let (a, b) = (kubelet.run("a"), kubelet.run("b"));
    assert_eq!(machine.host().ports("weft3").len(), 2);
    assert!(kubelet.exec(&a, &["ip", "-4", "-o", "addr"]).contains(&format!(" {}/", a.address)));
    kubelet.exec(&a, &[&PING[..], &[&b.address.to_string()]].concat());
    kubelet.exec(&b, &[&PING[..], &[&a.address.to_string()]].concat());
    for pod in [&a, &b, &a] {
        kubelet.stop(pod);
    }
    assert_eq!(machine.host().ports("weft3"), Vec::<String>::new());
    kubelet.remove(a);
    kubelet.remove(b);
    assert_eq!(kubelet.pods(), 0);
    machine.assert_nothing_left(&before);
}

/// A kubelet's wishes come by containerd in containerd's own spelling.
#[test]
fn a_pod_of_containerd_has_its_port_and_its_limits() {
    let machine = Machine::with("30-weft-containerd-cri.conflist", |conflist| {
        conflist["plugins"][0]["capabilities"]["dns"] = true.into();
    });
    let _containerd = Containerd::start(&machine);
    let mut kubelet = Kubelet::connect(&machine);
    let wishes = |pod: &mut PodSandboxConfig| {
        pod.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        pod.dns_config =
            Some(DnsConfig { servers: vec!["192.0.2.53".into()], searches: vec![], options: vec![] });
        let limit = |way: &str| (format!("kubernetes.io/{way}-bandwidth"), "10M".to_owned());
        pod.annotations = [limit("ingress"), limit("egress")].into();
    };
    let first = kubelet.run_with("first", wishes);
    kubelet.stop(&first);
    kubelet.remove(first);
    let before = World::of(machine.host(), &[]);

    let pod = kubelet.run_with("web", wishes);
    let serve = format!("({}) </dev/null >/dev/null 2>&1 &", SERVE[2]);
    kubelet.exec(&pod, &["sh", "-c", &serve]);
    assert_serves(Ipv4Addr::new(10, 92, 0, 1));
    let queues = command("tc qdisc show");
    assert_eq!(queues.matches("rate 10Mbit").count(), 2, "{queues}");
    kubelet.stop(&pod);
    kubelet.remove(pod);
    machine.assert_nothing_left(&before);
}

#[test]
fn containers_of_podman_reach_each_other() {
    let machine = Machine::new("20-weft-nerdctl-podman.conflist");
    let podman = runtime::podman(&machine);
    podman.run("first", "weft-net");
    podman.remove("first");
    let before = World::of(machine.host(), &[]);

    podman.run("a", "weft-net");
    podman.run("b", "weft-net");
    assert_eq!(machine.host().ports("weft2").len(), 2);
    for (from, to) in [("a", "b"), ("b", "a")] {
        let target = podman.address(to).to_string();
        podman.exec(from, &[&PING[..], &[&target]].concat());
    }
    podman.run("c", "weft-net:ip=10.91.0.77,mac=02:00:00:00:00:77");
    assert_eq!(podman.address("c"), Ipv4Addr::new(10, 91, 0, 77));
    assert!(podman.exec("c", &["ip", "link", "show", "eth0"]).contains("02:00:00:00:00:77"));
    podman.exec("a", &[&PING[..], &["10.91.0.77"]].concat());
    for name in ["a", "b", "c"] {
        podman.remove(name);
    }
    machine.assert_nothing_left(&before);
}

/// A port that is published, and an address that stays with the container's name.
#[test]
fn a_container_of_podman_comes_again_with_its_port_and_its_address() {
    let machine = Machine::with("20-weft-nerdctl-podman.conflist", |conflist| {
        conflist["plugins"][0]["ipam"]["sticky"] = "name".into();
    });
    let podman = runtime::podman(&machine);
    let web = || {
        podman.run_with("web", "weft-net", &["--publish", "8080:80"], &SERVE);
        assert_serves(BRIDGE);
        podman.address("web")
    };
    let first = web();
    podman.run("other", "weft-net");
    let from_other = podman.exec("other", &["nc", &BRIDGE.to_string(), "8080"]);
    assert_eq!(from_other, "served\n");
    for (name, network) in [("alone", "none"), ("beside", "container:web"), ("bare", "host")] {
        podman.run(name, network);
    }
    assert_modes(&machine, first, |name, words| podman.exec(name, words));
    for name in ["bare", "beside", "alone"] {
        podman.remove(name);
    }
    assert_serves(BRIDGE);
    podman.remove("web");
    podman.run("next", "weft-net");
    assert_ne!(podman.address("next"), first);
    assert_eq!(web(), first, "the address is kept for the name");
}

/// podman tells every network of a container all its ports.
#[test]
fn a_container_of_podman_on_two_networks_has_its_port() {
    let sample = "20-weft-nerdctl-podman.conflist";
    let machine = Machine::new(sample);
    machine.add_network("21-second.conflist", sample, |conflist| {
        conflist["name"] = "second".into();
        conflist["plugins"][0]["bridge"] = "weft3".into();
        conflist["plugins"][0]["ipam"]["ranges"] = json!([[{ "subnet": "10.92.0.0/16" }]]);
    });
    let podman = runtime::podman(&machine);
    podman.run_with("web", "weft-net,second", &["--publish", "8080:80"], &SERVE);
    assert_serves(BRIDGE);
    podman.remove("web");
}

/// By the sample: containers reach each other, one is at a port of the host, and comes again with its address.
#[test]
fn a_container_of_nerdctl_comes_again_with_its_port_and_its_address() {
    let machine = Machine::with("20-weft-nerdctl-podman.conflist", |conflist| {
        conflist["plugins"][0]["ipam"]["sticky"] = "name".into();
    });
    let nerdctl = runtime::nerdctl(&machine);
    let web = || {
        nerdctl.run_with("web", "weft-net", &["--hostname", "web", "--publish", "8080:80"], &SERVE);
        assert_serves(BRIDGE);
        nerdctl.address("web")
    };
    // Until when it is kept is another time each time.
    let only_kept = |address: Ipv4Addr| {
        let kept = command("find /run/weft -path */ipam/kept/* -print -delete");
        assert_eq!(kept.lines().count(), 1, "who has no host name of its own has no name: {kept}");
        assert!(kept.trim().ends_with(&format!("/{address}")), "{kept}");
    };
    let first = web();
    nerdctl.remove("web");
    only_kept(first);
    let before = World::of(machine.host(), &[]);

    assert_eq!(web(), first, "the address that it had");
    nerdctl.remove("web");
    nerdctl.run("other", "weft-net");
    assert_ne!(nerdctl.address("other"), first, "it is kept for the name");
    assert_eq!(web(), first, "the address that is kept for the name");
    assert_eq!(machine.host().ports("weft2").len(), 2);
    assert_eq!(nerdctl.exec("other", &["nc", &BRIDGE.to_string(), "8080"]), "served\n");
    nerdctl.exec("other", &[&PING[..], &[&first.to_string()]].concat());
    for (name, network) in [("alone", "none"), ("beside", "container:web"), ("bare", "host")] {
        nerdctl.run(name, network);
    }
    assert_modes(&machine, first, |name, words| nerdctl.exec(name, words));
    for name in ["bare", "beside", "alone"] {
        nerdctl.remove(name);
    }
    assert_serves(BRIDGE);
    for name in ["web", "other"] {
        nerdctl.remove(name);
    }
    only_kept(first);
    machine.assert_nothing_left(&before);
}

/// As docs/migrate-from-docker-bridge.md says: nerdctl asks for IPv4 where `--publish` names no address.
#[test]
fn a_container_of_nerdctl_has_its_port_by_both_families_when_both_are_asked_for() {
    let machine = Machine::with("20-weft-nerdctl-podman.conflist", |conflist| {
        let ranges = conflist["plugins"][0]["ipam"]["ranges"].as_array_mut().expect("ranges");
        ranges.push(json!([{ "subnet": "fd00:91::/64" }]));
    });
    let nerdctl = runtime::nerdctl(&machine);
    let by_ipv6: IpAddr = Ipv6Addr::new(0xfd00, 0x91, 0, 0, 0, 0, 0, 1).into();
    for (publish, has_ipv6) in [
        (&["--publish", "8080:80"][..], false),
        (&["--publish", "8080:80", "--publish", "[::]:8080:80"], true),
    ] {
        nerdctl.run_with("web", "weft-net", publish, &SERVE);
        assert_serves(BRIDGE);
        if has_ipv6 {
            assert_serves(by_ipv6);
        } else {
            TcpStream::connect((by_ipv6, 8080)).expect_err("nobody asked for it");
        }
        nerdctl.remove("web");
    }
}
