//! The CNI plugin type `flannel`, with files as flanneld writes them, and with real flannelds beside Weft.

mod flannel {
    mod changeover;
    mod delegates;
    mod peers;
    mod stores;
}

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use weft_tests::{Call, Host, Pod, World, command, hold, ips, merge};

const ENV: &str =
    "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.240.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
const DUAL: &str = "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.240.34.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48\n\
                    FLANNEL_IPV6_SUBNET=fd00:42:0:31::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
const FILE: &str = "/run/flannel/subnet.env";

/// A host on which flanneld or weftd has written its file.
fn leased(env: &str) -> Host {
    let host = Host::new();
    fs::create_dir_all("/run/flannel").expect("make a directory");
    fs::write(FILE, env).expect("write subnet.env");
    host
}

/// kube-flannel's own configuration, as it stands in its manifest, for one plugin.
fn conf(changes: &Value) -> Value {
    let mut conf = json!({
        "name": "cbr0", "cniVersion": "1.1.0", "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true }
    });
    merge(&mut conf, changes);
    conf
}

fn call(command: &str, conf: &Value, pod: &Pod) -> Call {
    Call::any("flannel", command, conf.to_string()).pod(pod)
}

#[test]
fn kube_flannels_configuration() {
    let host = leased(ENV);
    let (one, two) = (Pod::new(), Pod::new());
    let conf = conf(&json!({}));
    let first = call("ADD", &conf, &one).run().result();
    let second = call("ADD", &conf, &two).run().result();
    assert_eq!(ips(&first)[0].to_string(), "10.240.34.2");
    assert_eq!(host.addresses("cni0"), ["10.240.34.1/24"]);
    assert_eq!(one.link("eth0").expect("an interface")["mtu"], 1450);
    let routes = one.command("ip route");
    assert!(
        routes.contains("default via 10.240.34.1") && routes.contains("10.240.0.0/12 via 10.240.34.1"),
        "{routes}"
    );
    one.assert_reaches(ips(&second)[0]);
    assert!(host.ruleset().contains("masquerade"), "flanneld does not masquerade, so the delegate does");
    let with_result = conf.clone().merged(&json!({ "prevResult": first }));
    call("CHECK", &with_result, &one).run().done();
    call("STATUS", &conf, &one).run().done();
    // Nothing is kept beside Weft's own records.
    assert!(!Path::new("/var/lib/cni").exists());
    for pod in [&one, &two, &one] {
        call("DEL", &conf, pod).run().done();
    }
    assert!(host.ports("cni0").is_empty());
}

/// Outside of what is compared.
const TRACE: &str = "/run/netns/.trace";
/// Of the process and all that it starts.
const STRACE: [&str; 8] = ["strace", "-f", "-qq", "-s", "256", "-e", "trace=execve", "-o"];

/// The programs that a traced call has executed, itself first.
fn executed() -> Vec<String> {
    let trace = fs::read_to_string(TRACE).expect("a trace");
    let made = trace.lines().filter(|line| !line.contains(" = -1 "));
    let program = made.filter_map(|line| line.split_once("execve(\"")?.1.split_once('"'));
    program.filter_map(|(path, _)| path.rsplit('/').next().map(str::to_owned)).collect()
}

/// The delegates that are Weft, by each of their names: nobody is executed but the IPAM plugin, although plugins of these names
/// are there.
#[test]
fn the_delegates_bridge_and_weft_are_not_executed() {
    let by_default = conf(&json!({}));
    for kind in ["bridge", "weft"] {
        let host = leased(ENV);
        let conf = conf(&json!({ "delegate": { "type": kind } }));
        let (pod, peer) = (Pod::new(), Pod::new());
        let traced = |verb: &str, conf: &Value, ipam: usize| {
            let reply = call(verb, conf, &pod).through(STRACE.into_iter().chain([TRACE])).run();
            assert!(reply.succeeded(), "{kind} {verb}: {:?}", reply.error());
            assert_eq!(executed(), [vec!["flannel"], vec!["weft-ipam"; ipam]].concat(), "{kind} {verb}");
            reply
        };
        let reserved = || World::of(&host, &[]).matching("/ipam/addr/10.240.34.2 ").len();
        let result = traced("ADD", &conf, 1).result();
        assert_eq!((ips(&result)[0].to_string().as_str(), reserved()), ("10.240.34.2", 1));
        assert_eq!(host.addresses("cni0"), ["10.240.34.1/24"]);
        assert_eq!(pod.link("eth0").expect("an interface")["mtu"], 1450);
        let other = call("ADD", &by_default, &peer).run().result();
        pod.assert_reaches(ips(&other)[0]);
        let with_result = conf.clone().merged(&json!({ "prevResult": result }));
        traced("CHECK", &with_result, 1);
        pod.command("ip addr flush dev eth0");
        call("CHECK", &with_result, &pod).run().error_code(105).assert_names(&["eth0", "10.240.34.2"]);
        traced("STATUS", &conf, 1);
        traced("DEL", &conf, 1);
        assert!(pod.link("eth0").is_none() && reserved() == 0);
        let nobody = conf.clone().merged(&json!({ "cni.dev/valid-attachments": [] }));
        // The other container's DEL, and GC.
        traced("GC", &nobody, 2);
        assert!(host.ports("cni0").is_empty() && peer.link("eth0").is_none());
        assert!(!Path::new("/var/lib/cni").exists(), "nothing is kept beside Weft's own records");
    }
}

/// `Value` with changes merged in.
trait Merged {
    fn merged(self, changes: &Value) -> Value;
}

impl Merged for Value {
    fn merged(mut self, changes: &Value) -> Value {
        merge(&mut self, changes);
        self
    }
}

#[test]
fn both_families_and_masquerade_by_the_daemon() {
    let host = leased(DUAL);
    let pod = Pod::new();
    let result = call("ADD", &conf(&json!({})), &pod).run().result();
    let addresses: Vec<String> = ips(&result).iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.240.34.2", "fd00:42:0:31::2"]);
    assert!(!host.ruleset().contains("masquerade"), "the daemon does it");
    call("DEL", &conf(&json!({})), &pod).run().done();
}

/// flannel's own plugin reads a list, too.
#[test]
fn each_of_several_networks_has_a_route() {
    let networks =
        DUAL.replace("/12\n", "/12,10.96.0.0/16\n").replace("fd00:42::/48\n", "fd00:42::/48,fd00:43::/48\n");
    let _host = leased(&networks);
    let pod = Pod::new();
    let result = call("ADD", &conf(&json!({})), &pod).run().result();
    let routes = result["routes"].as_array().expect("a list").iter();
    let routes: Vec<&str> = routes.filter_map(|route| route["dst"].as_str()).collect();
    for network in ["10.240.0.0/12", "10.96.0.0/16", "fd00:42::/48", "fd00:43::/48"] {
        assert_eq!(routes.iter().filter(|route| **route == network).count(), 1, "{routes:?}");
    }
    assert!(pod.command("ip route").contains("10.96.0.0/16 via 10.240.34.1"));
    call("CHECK", &conf(&json!({ "prevResult": result })), &pod).run().done();
}

/// A container that is deleted on a host whose daemon never came back.
#[test]
fn everything_but_add_works_without_the_file() {
    let host = leased(ENV);
    let pod = Pod::new();
    let conf = conf(&json!({}));
    let result = call("ADD", &conf, &pod).run().result();
    fs::remove_file(FILE).expect("lose the file");
    let error = call("ADD", &conf, &Pod::new()).run().error_code(11);
    error.assert_names(&[FILE, "flanneld or weftd"]);
    call("STATUS", &conf, &pod).run().error_code(50).assert_names(&[FILE]);
    call("CHECK", &conf.clone().merged(&json!({ "prevResult": result })), &pod).run().done();
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": pod.id, "ifname": "eth0" }] });
    call("GC", &conf.clone().merged(&valid), &pod).run().done();
    assert_eq!(host.ports("cni0").len(), 1);
    call("DEL", &conf, &pod).run().done();
    assert!(host.ports("cni0").is_empty());
}

/// The daemon writes another file under a container, as when the MTU between hosts changes, or the host gets another subnet.
#[test]
fn check_goes_by_what_the_container_was_given() {
    // Results before 1.1.0 have no MTU.
    for version in ["1.0.0", "1.1.0"] {
        let _host = leased(ENV);
        let pod = Pod::new();
        let conf = conf(&json!({ "cniVersion": version }));
        let mut result = call("ADD", &conf, &pod).run().result();
        // A later plugin's.
        pod.command("ip addr add 192.0.2.7/32 dev eth0");
        let of_container = result["ips"][0]["interface"].clone();
        let ips = result["ips"].as_array_mut().expect("a list");
        ips.push(json!({ "address": "192.0.2.7/32", "interface": of_container }));
        let checked = conf.clone().merged(&json!({ "prevResult": result }));
        let check = || call("CHECK", &checked, &pod).run();
        for (was, is) in [
            ("1450", "1450"),
            ("1450", "8950"),
            ("240.34.1", "240.9.1"),
            ("=false", "=true"),
            ("NETWORK", "X"),
        ] {
            fs::write(FILE, ENV.replace(was, is)).expect("write subnet.env");
            check().done();
        }
        // What is broken is found all the same.
        fs::write(FILE, ENV.replace("1450", "8950")).expect("write subnet.env");
        pod.command("ip link set eth0 mtu 1300");
        check().error_code(105).assert_names(&["eth0", "MTU 1300", "1450"]);
        pod.command("ip link set eth0 mtu 1450");
        pod.command("ip route del 10.240.0.0/12");
        check().error_code(105).assert_names(&["10.240.0.0/12"]);
        pod.command("ip route add 10.240.0.0/12 via 10.240.34.1");
        command("nft delete chain inet weft masq-cbr0");
        check().error_code(105).assert_names(&["masquerade"]);
        call("DEL", &conf, &pod).run().done();
    }
}

#[test]
fn a_network_of_host_local_goes_on_with_it() {
    let host = leased(ENV);
    let (old, new) = (Pod::new(), Pod::new());
    let with_host_local = conf(&json!({ "ipam": { "type": "host-local" } }));
    call("ADD", &with_host_local, &old).run().result();
    let state = Path::new("/var/lib/cni/flannel").join(format!("{}@eth0", old.id));
    assert!(state.is_file(), "host-local is told the same again at the end");
    // The type is left out: two stores would give one address twice.
    let second = call("ADD", &conf(&json!({})), &new).run().result();
    assert_eq!(ips(&second)[0].to_string(), "10.240.34.3");
    let held = || fs::read_dir("/var/lib/cni/networks/cbr0").expect("host-local's reservations").count();
    let before = held();
    fs::remove_file(FILE).expect("lose the file");
    for pod in [&old, &new] {
        call("DEL", &conf(&json!({})), pod).run().done();
    }
    assert_eq!(held(), before - 2);
    assert!(!state.exists() && host.ports("cni0").is_empty());
}

/// A container that flannel's own plugin attached, before this one took its place.
#[test]
fn a_container_of_flannels_own_plugin_is_deleted_as_it_was_added() {
    let host = leased(ENV);
    let pod = Pod::new();
    let delegate = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.240.34.0/24" }]] }
    });
    Call::any("bridge", "ADD", delegate.to_string()).pod(&pod).run().result();
    fs::create_dir_all("/var/lib/cni/flannel").expect("make a directory");
    fs::write(Path::new("/var/lib/cni/flannel").join(&pod.id), delegate.to_string())
        .expect("write flannel's state");
    fs::remove_file(FILE).expect("lose the file");
    call("DEL", &conf(&json!({})), &pod).run().done();
    assert!(host.ports("cni0").is_empty());
    assert!(!Path::new("/var/lib/cni/networks/cbr0/10.240.34.2").exists());
    assert!(!Path::new("/var/lib/cni/flannel").join(&pod.id).exists());
}

/// A container that is in the network twice, by flannel's own plugin and by this one: each attachment is undone as it was made.
#[test]
fn two_interfaces_of_one_container() {
    let host = leased(ENV);
    let pod = Pod::new();
    let conf = conf(&json!({ "ipam": { "type": "host-local" } }));
    let directory = Path::new("/var/lib/cni/flannel");
    let attach = |ifname: &str| call("ADD", &conf, &pod).ifname(ifname).run().result();
    let first = attach("eth0");
    // flannel's own plugin leaves no record of Weft's, and one file per container, which is the first interface's.
    command("find /run/weft -path */attachments/* -type f -delete");
    let results = [("eth0", first), ("eth1", attach("eth1")), ("eth2", attach("eth2"))];
    fs::rename(directory.join(format!("{}@eth0", pod.id)), directory.join(&pod.id)).expect("as flannel's");
    let known: Value =
        serde_json::from_slice(&fs::read(directory.join(&pod.id)).expect("what was told")).expect("JSON");
    fs::write(directory.join(&pod.id), known["delegate"].to_string()).expect("flannel's form");
    fs::remove_file(FILE).expect("lose the file");
    let held = || fs::read_dir("/var/lib/cni/networks/cbr0").expect("host-local's reservations").count();
    let before = held();
    for (gone, (ifname, _)) in [1, 0, 2].into_iter().map(|index| &results[index]).enumerate() {
        call("DEL", &conf, &pod).ifname(ifname).run().done();
        assert_eq!(held(), before - gone - 1, "{ifname}");
        assert_eq!(host.ports("cni0").len(), 2 - gone, "{ifname}");
        assert_eq!(directory.join(&pod.id).exists(), gone < 1, "{ifname}");
        for (other, result) in results.iter().filter(|(other, _)| pod.link(other).is_some()) {
            let with_result = conf.clone().merged(&json!({ "prevResult": result }));
            call("CHECK", &with_result, &pod).ifname(other).run().done();
        }
    }
}

/// What a runtime wants of one container goes on to the delegate, which is Weft here.
#[test]
fn what_the_runtime_wants_arrives() {
    let host = leased(ENV);
    let pod = Pod::new();
    let wants = json!({ "runtimeConfig": {
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "mac": "02:00:00:00:00:07",
    } });
    let conf = conf(&wants);
    let result = call("ADD", &conf, &pod).run().result();
    assert_eq!(pod.link("eth0").expect("an interface")["address"], "02:00:00:00:00:07");
    assert!(host.ruleset().contains("8080"), "{}", host.ruleset());
    call("CHECK", &conf.clone().merged(&json!({ "prevResult": result })), &pod).run().done();
    call("DEL", &conf, &pod).run().done();
    assert!(!host.ruleset().contains("8080"), "{}", host.ruleset());
}

#[test]
fn gc_forgets_what_is_gone() {
    let host = leased(ENV);
    let conf = conf(&json!({ "ipam": { "type": "host-local" } }));
    let (dead, living) = (Pod::new(), Pod::new());
    for pod in [&dead, &living] {
        call("ADD", &conf, pod).run().result();
    }
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": living.id, "ifname": "eth0" }] });
    call("GC", &conf.clone().merged(&valid), &living).run().done();
    assert_eq!(host.ports("cni0").len(), 1);
    let states = fs::read_dir("/var/lib/cni/flannel").expect("states").flatten();
    assert_eq!(states.filter(|entry| entry.file_name().to_string_lossy().contains('@')).count(), 1);
    assert!(!Path::new("/var/lib/cni/networks/cbr0/10.240.34.2").exists());
}

#[test]
fn damaged_files_and_wrong_keys_are_told() {
    let host = leased(ENV);
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    for (changes, code, parts) in [
        (json!({ "subnetfile": "/x" }), 2, vec!["subnetfile", "subnetFile"]),
        (json!({ "delegate": { "name": "x" } }), 7, vec!["delegate.name", "x"]),
        (json!({ "delegate": { "ipam": {} } }), 7, vec!["delegate.ipam", "beside"]),
        (json!({ "delegate": { "type": 1 } }), 7, vec!["delegate.type", "1"]),
        (json!({ "delegate": { "isGatway": true } }), 2, vec!["isGatway", "isGateway"]),
        (json!({ "delegate": [] }), 7, vec!["delegate is []"]),
        (json!({ "subnetFile": "x" }), 7, vec!["subnetFile", "absolute"]),
        (json!({ "delegate": { "type": "../bin/sh" } }), 7, vec!["is a path"]),
    ] {
        let error = call("ADD", &conf(&changes), &pod).run().error_code(code);
        error.assert_names(&parts);
    }
    for (text, part) in
        [("", "FLANNEL_SUBNET"), ("FLANNEL_MTU", "KEY=VALUE"), (&ENV.replace("/24", "/x"), "FLANNEL_SUBNET")]
    {
        fs::write(FILE, text).expect("damage the file");
        call("ADD", &conf(&json!({})), &pod).run().error_code(11).assert_names(&[FILE, part]);
    }
    fs::write(FILE, ENV).expect("repair the file");
    before.assert_unchanged(&host, &[&pod], "refused ADDs");
}

/// Without the agent nobody knows whether it still is: flanneld may be back.
#[test]
fn a_subnet_that_was_taken_counts_while_the_agent_lives() {
    let _host = leased(ENV);
    fs::create_dir_all("/var/lib/weft/cbr0").expect("make a directory");
    let taken = json!({ "key": "10.240.34.0-24", "owner": "192.0.2.9", "since": 1 });
    fs::write("/var/lib/weft/cbr0/taken.json", taken.to_string()).expect("write it");
    let (conf, pod) = (conf(&json!({})), Pod::new());
    call("STATUS", &conf, &pod).run().done();
    call("ADD", &conf, &pod).run().result();
    let agent = "/run/weft/cbr0/agent.lock";
    fs::write(agent, "").expect("the agent's file");
    let _lives = hold(agent);
    let names = ["10.240.34.0-24", "192.0.2.9"];
    call("STATUS", &conf, &pod).run().error_code(51).assert_names(&names);
    call("ADD", &conf, &Pod::new()).run().error_code(103).assert_names(&names);
}
