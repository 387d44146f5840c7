//! Weft behind other interface plugins: what it does for their interfaces, and that it leaves these as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

#[path = "chained/chain.rs"]
mod chain;
#[path = "chained/guard.rs"]
mod guard;
#[path = "chained/isolation.rs"]
mod isolation;
#[path = "chained/kill.rs"]
mod kill;
#[path = "chained/kinds.rs"]
mod kinds;
#[path = "chained/ports.rs"]
mod ports;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use chain::Chain;
use serde_json::{Value, json};
use weft_tests::{Call, CniTool, Host, Mirror, NetNs, Network, Outside, Pod, World, command, eventually, ip};

const PATIENCE: Duration = Duration::from_secs(3);

/// The reference bridge.
fn bridge(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "chain", "type": "bridge", "bridge": "br0",
        "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.97.0.0/24" }]] },
    })
}

/// What the reference bridge answers for a container.
fn bridged(pod: &Pod, version: &str) -> Value {
    Call::any("bridge", "ADD", bridge(version).to_string()).pod(pod).run().result()
}

fn unbridge(pod: &Pod, previous: &Value) {
    let mut conf = bridge("1.1.0");
    conf["prevResult"] = previous.clone();
    Call::any("bridge", "DEL", conf.to_string()).pod(pod).run().done();
}

/// Weft behind it, with these keys.
fn behind(previous: &Value, changes: &Value) -> Network {
    let conf = json!({ "cniVersion": previous["cniVersion"], "bridge": null, "chained": true });
    Network::new("chain", &[]).with(&conf).with(changes).previous(previous)
}

/// A host port and limits in both directions.
fn wishes() -> Value {
    let mapping = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    let limits = json!({ "ingressRate": 10_000_000, "egressRate": 10_000_000 });
    json!({ "runtimeConfig": { "portMappings": [mapping], "bandwidth": limits } })
}

/// The wishes without limits.
fn port_alone() -> Value {
    let mut wishes = wishes();
    wishes["runtimeConfig"]["bandwidth"] = Value::Null;
    wishes
}

/// A port besides: what several containers need of ports stays with the one that has it.
fn other_port() -> Value {
    json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8081, "containerPort": 81, "protocol": "tcp" }] } })
}

/// The host's end of the container's pair.
fn host_end(previous: &Value) -> &str {
    previous["interfaces"][1]["name"].as_str().unwrap()
}

/// A server in a container.
fn server(pod: &Pod) -> TcpListener {
    let server = pod.inside(|| TcpListener::bind(("0.0.0.0", 80))).unwrap();
    server.set_nonblocking(true).unwrap();
    server
}

/// Whether a server answers at an address of the host.
fn answers(server: &TcpListener, from: &NetNs, at: &str) -> bool {
    let target = SocketAddr::new(at.parse::<IpAddr>().unwrap(), 8080);
    let Ok(mut client) = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE)) else { return false };
    let (mut accepted, _) = eventually(PATIENCE, "a connection arrives", || server.accept().ok());
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text == "hello"
}

/// A host on which all that chains share was made once, by a container that is gone.
fn used_host() -> Host {
    let host = Host::new();
    let pod = Pod::new();
    let previous = bridged(&pod, "1.1.0");
    let network = behind(&previous, &wishes());
    network.add(&pod);
    network.del(&pod);
    unbridge(&pod, &previous);
    host
}

#[test]
fn the_result_is_the_one_before_in_its_own_shape() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let host = Host::new();
        let pod = Pod::new();
        let mut previous = bridged(&pod, version);
        // What nobody knows yet is passed on too.
        previous["example.org/more"] = json!([1, { "a": null }]);
        let has_interfaces = previous.get("interfaces").is_some();
        let network = behind(&previous, &if has_interfaces { wishes() } else { port_alone() });
        let result = network.add(&pod);
        assert_eq!(result, previous, "{version}");
        assert!(host.ruleset().contains("tcp . 8080"), "{}", host.ruleset());
        network.del(&pod);
        assert!(!host.ruleset().contains("tcp . 8080"), "{}", host.ruleset());
    }
}

#[test]
fn a_whole_list_with_limits_and_ports() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let host = Host::new();
        let outside = host.outside();
        let networks = Path::new("/run/networks");
        fs::create_dir_all(networks).unwrap();
        let mut first = bridge(version);
        let keys = first.as_object_mut().unwrap();
        keys.remove("name");
        keys.remove("cniVersion");
        let capabilities = json!({ "portMappings": true, "bandwidth": true });
        let list = json!({ "cniVersion": version, "name": "chain", "plugins": [
            first, { "type": "weft", "chained": true, "capabilities": capabilities },
        ] });
        fs::write(networks.join("10-chain.conflist"), list.to_string()).unwrap();
        let cnitool = CniTool::new(networks).capabilities(wishes()["runtimeConfig"].clone());
        let (pod, other) = (Pod::new(), Pod::new());
        cnitool.run("status", "chain", &pod);
        let result = cnitool.add("chain", &pod);
        cnitool.run("check", "chain", &pod);
        let server = server(&pod);
        for (from, at) in
            [(outside.netns(), Outside::HOST[0]), (host.netns(), "127.0.0.1"), (pod.netns(), "10.97.0.1")]
        {
            assert!(answers(&server, from, at), "from {at} in {version}");
        }
        let queue = command(&format!("tc qdisc show dev {}", host_end(&result)));
        assert!(queue.contains("tbf 1: root") && queue.contains("rate 10Mbit"), "{queue}");
        let taken = cnitool.attempt("add", "chain", &other);
        let told =
            String::from_utf8_lossy(&taken.stdout).into_owned() + &String::from_utf8_lossy(&taken.stderr);
        assert!(!taken.status.success() && told.contains("port 8080") && told.contains("held by"), "{told}");
        cnitool.run("del", "chain", &other);
        cnitool.run("del", "chain", &pod);
        assert!(host.ports("br0").is_empty() && !host.ruleset().contains("8080"), "{}", host.ruleset());
        assert!(!command("ip link").contains("wefe"), "the detour is gone");
    }
}

#[test]
fn del_leaves_what_the_other_plugin_made() {
    let host = used_host();
    let mut pod = Pod::new();
    let previous = bridged(&pod, "1.1.0");
    let before = World::of(&host, &[&pod]);
    let network = behind(&previous, &wishes());
    network.add(&pod);
    network.del(&pod);
    before.assert_unchanged(&host, &[&pod], "DEL");
    network.del(&pod);
    // Without a previous result, and without the key.
    network.add(&pod);
    Network::new("chain", &[]).del(&pod);
    before.assert_unchanged(&host, &[&pod], "DEL by key alone");
    // The container has gone, and its pair with it.
    network.add(&pod);
    pod.die();
    eventually(Duration::from_secs(20), "the pair is gone", || {
        host.link(host_end(&previous)).is_none().then_some(())
    });
    let call = network.call("DEL").env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
    call.run().done();
    for trace in ["8080", "kind ifb", "/attachments/"] {
        let left = World::of(&host, &[]);
        assert!(left.matching(trace).is_empty(), "{:?}", left.matching(trace));
    }
}

#[test]
fn check_tells_what_differs() {
    let tamperings: [(&str, &[&str]); 6] = [
        ("tc qdisc del dev V root", &["token bucket", "gone"]),
        ("tc qdisc del dev V clsact", &["filters", "altered"]),
        ("ip link delete D", &["wefe", "gone"]),
        ("nft flush ruleset", &["ruleset"]),
        ("nft flush map inet weft hostport-v4", &["ruleset", "8080"]),
        ("sysctl -qw net.ipv4.conf.br0.route_localnet=0", &["route_localnet"]),
    ];
    let host = used_host();
    for (line, words) in tamperings {
        let pod = Pod::new();
        let previous = bridged(&pod, "1.1.0");
        let network = behind(&previous, &wishes());
        let result = network.add(&pod);
        network.check(&pod, &result).done();
        let links = World::of(&host, &[]);
        let detour = links.matching("link wefe")[0].split(' ').nth(2).unwrap().to_owned();
        command(&line.replace('V', host_end(&previous)).replace('D', &detour));
        network.check(&pod, &result).error_code(105).assert_names(words);
        network.del(&pod);
        unbridge(&pod, &previous);
    }
    // The interface itself is gone.
    let pod = Pod::new();
    let previous = bridged(&pod, "1.1.0");
    let network = behind(&previous, &wishes());
    let result = network.add(&pod);
    pod.command("ip link delete eth0");
    network.check(&pod, &result).error_code(105).assert_names(&["no interface eth0"]);
}

#[test]
fn gc_takes_off_what_is_on_no_valid_container() {
    let host = used_host();
    let (stale, alive) = (Pod::new(), Pod::new());
    let (of_stale, of_alive) = (bridged(&stale, "1.1.0"), bridged(&alive, "1.1.0"));
    let limits = json!({ "egressRate": 8_000_000 });
    let kept = behind(&of_alive, &limits).with(&other_port()).add(&alive);
    let before = World::of(&host, &[&stale, &alive]);
    let network = behind(&of_stale, &wishes());
    network.add(&stale);
    network.gc(&[(&alive.id, "eth0")]);
    before.assert_unchanged(&host, &[&stale, &alive], "GC");
    behind(&of_alive, &limits).check(&alive, &kept).done();
    network.add(&stale);
    network.gc(&[]);
    assert!(!command("tc qdisc show").contains("tbf"), "an empty list has nobody");
}

#[test]
fn a_failed_add_is_taken_back() {
    let host = used_host();
    let (first, second) = (Pod::new(), Pod::new());
    let (of_first, of_second) = (bridged(&first, "1.1.0"), bridged(&second, "1.1.0"));
    behind(&of_first, &port_alone()).add(&first);
    let before = World::of(&host, &[&first, &second]);
    let network = behind(&of_second, &wishes());
    let conflict = network.add_call(&second).run().error_code(103);
    assert!(conflict.msg.contains(&first.id), "{}", conflict.msg);
    before.assert_unchanged(&host, &[&first, &second], "a port that another has");
    behind(&of_first, &port_alone()).del(&first);
    let before = World::of(&host, &[&first, &second]);
    let reply = network.add_call(&second).through(["sh", "-c", "exec \"$0\" >/dev/full"]).run();
    assert!(!reply.succeeded());
    before.assert_unchanged(&host, &[&first, &second], "a result that nobody could read");
}

#[test]
fn what_another_plugin_limits_is_left_alone() {
    let host = used_host();
    let pods = [Pod::new(), Pod::new()];
    for (pod, wish) in pods.iter().zip(["ingressRate", "egressRate"]) {
        let previous = bridged(pod, "1.1.0");
        let theirs = json!({
            "cniVersion": "1.1.0", "name": "chain", "type": "bandwidth", "prevResult": previous,
            (wish): 5_000_000, (wish.replace("Rate", "Burst")): 80_000,
        });
        let shaped = Call::any("bandwidth", "ADD", theirs.to_string()).pod(pod).run().result();
        if wish == "egressRate" {
            // They put their filters at the older of two hooks, which excludes the newer one.
            assert!(command(&format!("tc qdisc show dev {}", host_end(&previous))).contains("ingress"));
        }
        let before = World::of(&host, &[pod]);
        let network = behind(&shaped, &wishes());
        let error = network.add_call(pod).run().error_code(103);
        assert!(
            error.msg.contains("another plugin") && error.msg.contains(host_end(&previous)),
            "{}",
            error.msg
        );
        before.assert_unchanged(&host, &[pod], "ADD behind bandwidth");
        // Ports alone get along with it.
        let network = behind(&shaped, &port_alone());
        assert_eq!(network.add(pod), shaped);
        network.del(pod);
        before.assert_unchanged(&host, &[pod], "ADD and DEL of a port behind bandwidth");
    }
}

#[test]
fn refusals_name_key_value_and_remedy() {
    let host = used_host();
    let pod = Pod::new();
    let previous = bridged(&pod, "1.1.0");
    let before = World::of(&host, &[&pod]);
    for (changes, code, words) in [
        (json!({ "prevResult": null }), 7, ["chained", "prevResult", "behind the plugin"]),
        (json!({ "bridge": "weft0" }), 2, ["bridge", "weft0", "chained"]),
        (json!({ "ipam": { "type": "host-local" } }), 2, ["ipam", "host-local", "chained"]),
        (json!({ "ipMasq": true }), 2, ["ipMasq", "true", "chained"]),
        (
            json!({ "runtimeConfig": { "mac": "02:00:00:00:00:01" } }),
            2,
            ["runtimeConfig.mac", "02:", "chained"],
        ),
        (json!({ "chained": "yes" }), 7, ["chained", "yes", "true or false"]),
        (json!({ "chaind": true }), 2, ["chaind", "true", "chained"]),
        (
            json!({ "prevResult": { "interfaces": [{ "name": "eth1", "sandbox": "/x" }] } }),
            7,
            ["eth0", "prevResult", "sandbox"],
        ),
    ] {
        behind(&previous, &wishes())
            .with(&changes)
            .add_call(&pod)
            .run()
            .error_code(code)
            .assert_names(&words);
        before.assert_unchanged(&host, &[&pod], &changes.to_string());
    }
    let network = behind(&previous, &wishes());
    network.add(&pod);
    network.add_call(&pod).run().error_code(103).assert_names(&["attached already"]);
    for conf in [json!({ "bridge": "weft0" }), json!({ "chained": 1 })] {
        assert!(!network.clone().with(&conf).status().succeeded());
    }
    network.clone().with(&json!({ "prevResult": null })).status().done();
    assert_eq!(ip(&previous).to_string(), "10.97.0.3");
}

/// The other plugin gives each interface a default route, and which one the container answers by is not told. What comes to a port is masqueraded
/// where it had one before, so that it is answered in any case.
#[test]
fn the_port_of_a_second_interface_is_answered() {
    let host = Host::new();
    let outside = host.outside();
    let pod = Pod::new();
    Chain::new("one", "br1", 98).add(&pod);
    Chain::new("two", "br2", 99).with(&port_alone()).add_as(&pod, "eth1");
    let mirror = Mirror::on(&pod, 80);
    for (at, gateway) in Outside::HOST.iter().zip(["10.99.0.1", "fd00:99::1"]) {
        let seen = mirror.seen(&outside, (at.parse().unwrap(), 8080));
        assert_eq!(seen, Some(gateway.parse().unwrap()), "at {at}");
    }
}
