//! Weft's two halves with the halves of others: the reference bridge over `weft-ipam`, `weft` over the reference
//! IPAM plugins, and `weft` in chains with plugins that come after it.

#[path = "interop/renumbered.rs"]
mod renumbered;

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use weft_tests::{Call, CniTool, Host, Pod, Reply, World, command, ip, ips, merge};

/// Those that have CHECK, each with its own shape of result or conflist.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// A network `interop` on bridge `br0` with a gateway; `type` names the plugin.
fn network(kind: &str, ipam: &Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "interop", "type": kind,
        "bridge": "br0", "isGateway": true, "isDefaultGateway": true, "ipam": ipam,
    })
}

fn with(conf: &Value, changes: &Value) -> Value {
    let mut conf = conf.clone();
    merge(&mut conf, changes);
    conf
}

/// An IPAM plugin with the keys that host-local and weft-ipam share: two addresses of each family to give.
fn two_addresses(kind: &str) -> Value {
    json!({ "type": kind, "ranges": [
        [{ "subnet": "10.97.0.0/24", "rangeStart": "10.97.0.10", "rangeEnd": "10.97.0.11", "gateway": "10.97.0.1" }],
        [{ "subnet": "fd00:97::/64", "rangeStart": "fd00:97::10", "rangeEnd": "fd00:97::11", "gateway": "fd00:97::1" }],
    ] })
}

/// A call of the plugin that the configuration names.
fn call(conf: &Value, command: &str) -> Call {
    Call::any(conf["type"].as_str().expect("a type"), command, conf.to_string())
}

#[track_caller]
fn add(conf: &Value, pod: &Pod) -> Value {
    call(conf, "ADD").pod(pod).run().result()
}

fn check(conf: &Value, pod: &Pod, result: &Value) -> Reply {
    call(&with(conf, &json!({ "prevResult": result })), "CHECK").pod(pod).run()
}

/// As libcni does it: with the result of ADD.
#[track_caller]
fn del(conf: &Value, pod: &Pod, result: &Value) {
    call(&with(conf, &json!({ "prevResult": result })), "DEL").pod(pod).run().done();
}

/// Code and message of a call that must fail. The reference plugins' errors have no `cniVersion`.
#[track_caller]
fn refused(reply: &Reply) -> (u64, String) {
    assert!(!reply.succeeded(), "it succeeded, where an error is due");
    let error: Value = serde_json::from_slice(&reply.stdout).expect("an error is JSON");
    (error["code"].as_u64().expect("a code"), error["msg"].as_str().expect("a message").to_owned())
}

/// Two containers are attached, reach each other, pass CHECK and are gone without a trace, in one version.
/// The first attachments make what a network and a namespace keep (bridge, forwarding, `lo` up): one compares after them.
fn live_and_leave(host: &Host, conf_of: impl Fn(u8) -> Value) {
    let (a, b) = (Pod::new(), Pod::new());
    let (conf_of_a, conf_of_b) = (conf_of(10), conf_of(11));
    for (conf, pod) in [(&conf_of_a, &a), (&conf_of_b, &b)] {
        let result = add(conf, pod);
        del(conf, pod, &result);
    }
    let before = World::of(host, &[&a, &b]);

    let (result_of_a, result_of_b) = (add(&conf_of_a, &a), add(&conf_of_b, &b));
    assert_eq!(result_of_a["cniVersion"], conf_of_a["cniVersion"]);
    let (ips_of_a, ips_of_b) = (ips(&result_of_a), ips(&result_of_b));
    assert_eq!(a.addresses("eth0"), [format!("{}/24", ips_of_a[0]), format!("{}/64", ips_of_a[1])]);
    for (of_a, of_b) in ips_of_a.into_iter().zip(ips_of_b) {
        assert_ne!(of_a, of_b);
        if conf_of_a["type"] == "bridge" {
            assert!(a.ping(of_b).status.success(), "{of_b}");
        }
        a.assert_reaches(of_b);
        b.assert_reaches(of_a);
    }
    check(&conf_of_a, &a, &result_of_a).done();
    check(&conf_of_b, &b, &result_of_b).done();
    del(&conf_of_a, &a, &result_of_a);
    if conf_of_a["cniVersion"] == "1.1.0" {
        call(&conf_of_a, "STATUS").run().done();
    }
    del(&conf_of_a, &a, &result_of_a);
    del(&conf_of_b, &b, &result_of_b);
    before.assert_unchanged(host, &[&a, &b], &format!("two containers in {conf_of_a}"));
}

#[test]
fn reference_bridge_over_weft_ipam() {
    for version in VERSIONS {
        let host = Host::new();
        let conf = with(&network("bridge", &two_addresses("weft-ipam")), &json!({ "cniVersion": version }));
        live_and_leave(&host, |_| conf.clone());
    }
}

#[test]
fn weft_over_host_local() {
    for version in VERSIONS {
        let host = Host::new();
        let conf = with(&network("weft", &two_addresses("host-local")), &json!({ "cniVersion": version }));
        live_and_leave(&host, |_| conf.clone());
    }
}

#[test]
fn weft_over_static() {
    for version in VERSIONS {
        let host = Host::new();
        live_and_leave(&host, |last_byte| {
            let address = format!("10.97.0.{last_byte}/24");
            let ipv6 = format!("fd00:97::{last_byte}/64");
            let ipam = json!({ "type": "static", "addresses": [
                { "address": address, "gateway": "10.97.0.1" }, { "address": ipv6, "gateway": "fd00:97::1" },
            ] });
            with(&network("weft", &ipam), &json!({ "cniVersion": version }))
        });
    }
}

/// Addresses for static may come from the runtime, by capability or by arguments.
#[test]
fn weft_over_static_gives_the_runtimes_address() {
    let _host = Host::new();
    let (a, b) = (Pod::new(), Pod::new());
    let conf = network("weft", &json!({ "type": "static" }));
    let by_capability = with(&conf, &json!({ "runtimeConfig": { "ips": ["10.97.0.20/24"] } }));
    add(&by_capability, &a);
    assert_eq!(a.addresses("eth0"), ["10.97.0.20/24"]);
    let arguments = "IgnoreUnknown=1;IP=10.97.0.21/24;GATEWAY=10.97.0.1";
    let result = call(&conf, "ADD").pod(&b).args(arguments).run().result();
    assert_eq!(b.addresses("eth0"), ["10.97.0.21/24"]);
    let conf = with(&conf, &json!({ "prevResult": result }));
    call(&conf, "CHECK").pod(&b).args(arguments).run().done();
    call(&conf, "DEL").pod(&b).args(arguments).run().done();
}

/// The same container again is refused by both halves, and the first attachment is as it was.
#[test]
fn a_duplicate_is_refused_in_every_mix() {
    for (kind, ipam) in [("bridge", "weft-ipam"), ("weft", "host-local")] {
        let _host = Host::new();
        let conf = network(kind, &two_addresses(ipam));
        let (a, elsewhere, b) = (Pod::new(), Pod::new(), Pod::new());
        let result = add(&conf, &a);
        let again = call(&conf, "ADD").pod(&a).run();
        assert_ne!(refused(&again).0, 0, "{kind}: the same container again");
        let again = call(&conf, "ADD").pod(&elsewhere).env("CNI_CONTAINERID", &a.id).run();
        let (_, message) = refused(&again);
        assert!(message.contains(&a.id), "{kind} over {ipam}: {message:?} does not name the container");
        check(&conf, &a, &result).done();

        let result_of_b = add(&conf, &b);
        assert_ne!(ip(&result), ip(&result_of_b));
        a.assert_reaches(ip(&result_of_b));
    }
}

#[test]
fn reference_bridge_hears_that_the_pool_is_exhausted() {
    let _host = Host::new();
    let conf = network("bridge", &two_addresses("weft-ipam"));
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let first = add(&conf, &pods[0]);
    let second = add(&conf, &pods[1]);
    let (code, message) = refused(&call(&conf, "ADD").pod(&pods[2]).run());
    assert_eq!(code, 104, "{message}");
    assert!(message.contains("2 of 2 used"), "{message}");
    // A runtime deletes what it could not add.
    call(&conf, "DEL").pod(&pods[2]).run().done();
    let (code, message) = refused(&call(&conf, "STATUS").run());
    assert_eq!(code, 50, "{message}");

    del(&conf, &pods[1], &second);
    call(&conf, "STATUS").run().done();
    assert_eq!(ips(&add(&conf, &pods[2])), ips(&second), "the address that came free");
    check(&conf, &pods[0], &first).done();
}

#[test]
fn reference_bridge_hears_of_a_lost_reservation() {
    let _host = Host::new();
    let conf = network("bridge", &two_addresses("weft-ipam"));
    let pod = Pod::new();
    let result = add(&conf, &pod);
    check(&conf, &pod, &result).done();
    // As an administrator who calls the IPAM plugin alone may.
    call(&with(&conf, &json!({ "type": "weft-ipam" })), "DEL").pod(&pod).run().done();
    let (code, message) = refused(&check(&conf, &pod, &result));
    assert_eq!(code, 105, "{message}");
}

/// host-local has no GC of its own: the addresses come free by its DEL.
#[test]
fn gc_frees_addresses_of_host_local() {
    let host = Host::new();
    let conf = network("weft", &two_addresses("host-local"));
    let (living, dead) = (Pod::new(), Pod::new());
    let result = add(&conf, &living);
    let address_of_dead = ip(&add(&conf, &dead));
    let reservation = Path::new("/var/lib/cni/networks/interop").join(address_of_dead.to_string());
    assert!(reservation.is_file());

    let valid = json!([{ "containerID": living.id, "ifname": "eth0" }]);
    call(&with(&conf, &json!({ "cni.dev/valid-attachments": valid })), "GC").run().done();
    assert!(!reservation.exists(), "{} is still held", reservation.display());
    assert!(dead.link("eth0").is_none());
    assert_eq!(host.ports("br0").len(), 1);
    check(&conf, &living, &result).done();
    assert_eq!(ip(&add(&conf, &Pod::new())), address_of_dead);
}

/// What a conflist for the reference bridge says, Weft does: the container and its bridge come out the same.
#[test]
fn a_conflist_migrates_by_its_type_alone() {
    let mut ipam = two_addresses("host-local");
    merge(
        &mut ipam,
        &json!({ "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "10.97.0.7" }] }),
    );
    let conf = with(
        &network("bridge", &ipam),
        &json!({
            "forceAddress": false, "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400, "hairpinMode": true,
            "promiscMode": false, "dns": { "nameservers": ["10.97.0.1"], "search": ["example.test"] },
        }),
    );
    let flat =
        json!({ "isGateway": false, "isDefaultGateway": false, "ipMasq": false, "ipam": null, "dns": null });
    let by_runtime = json!({ "runtimeConfig": {
        "mac": "02:00:00:00:00:77", "ips": ["10.97.0.11/24", "fd00:97::11/64"],
    } });
    thread::scope(|scope| {
        for changes in [
            json!({}),
            json!({ "ipam": { "ranges": [[{ "subnet": "10.97.0.0/24" }]] } }),
            json!({ "hairpinMode": false, "promiscMode": true }),
            json!({ "portIsolation": true }),
            json!({ "enabledad": true }),
            json!({ "forceAddress": true }),
            flat,
            by_runtime,
        ] {
            let conf = with(&conf, &changes);
            scope.spawn(move || {
                let of_bridge = what_comes_out(&conf);
                let of_weft = what_comes_out(&with(&conf, &json!({ "type": "weft" })));
                assert_eq!(of_bridge, of_weft, "{changes}");
            });
        }
    });
}

/// Result and kernel, without what is each plugin's own: names and MACs of veths, and the 1.1.0 MTU that the
/// reference does not report.
fn what_comes_out(conf: &Value) -> Value {
    let host = Host::new();
    if conf["forceAddress"] == true {
        // Which has to give way.
        command("ip link add br0 type bridge");
        command("ip addr add 10.97.0.254/24 dev br0");
        command("ip addr add fd00:97::fe/64 dev br0 nodad");
    }
    let pod = Pod::named("migrated");
    let mut result = add(conf, &pod);
    // The reference has no CHECK of a network without addresses.
    if conf["type"] == "weft" || conf.get("ipam").is_some() {
        check(conf, &pod, &result).done();
    }
    let neighbour = Pod::named("neighbour");
    // What the runtime asked for is for one.
    let others = ips(&add(&with(conf, &json!({ "runtimeConfig": null })), &neighbour));
    let reached: Vec<bool> = others.iter().map(|address| pod.ping(*address).status.success()).collect();
    // What is empty may as well be left out.
    result.as_object_mut().expect("an object").retain(|_, part| *part != json!({}) && *part != json!([]));
    for interface in result["interfaces"].as_array_mut().expect("interfaces") {
        let is_bridge = interface["name"] == "br0";
        let interface = interface.as_object_mut().expect("an interface");
        interface.retain(|key, _| key == "sandbox" || (key == "name" && is_bridge));
    }
    let ports = host.ports("br0");
    let port = host.link(&ports[0]).expect("a port");
    let (bridge, eth0) = (host.link("br0").expect("br0"), pod.link("eth0").expect("eth0"));
    let flags = &port["linkinfo"]["info_slave_data"];
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|key| host.sysctl(key));
    let mac = conf["runtimeConfig"]["mac"].as_str().map(|_| eth0["address"].clone());
    json!({
        "result": result,
        "addresses": pod.addresses("eth0"),
        "routes": [routes(&pod, "-4"), routes(&pod, "-6")],
        "mac": mac,
        "mtu": [eth0["mtu"], bridge["mtu"], port["mtu"]],
        "port": [flags["hairpin"], flags["isolated"]],
        "promiscuous": bridge["promiscuity"],
        "gateway": host.addresses("br0"),
        "forwarding": forwarding,
        "masquerades": host.ruleset().contains("masquerade"),
        "reaches": reached,
    })
}

fn routes(pod: &Pod, family: &str) -> Vec<String> {
    let text = pod.command(&format!("ip {family} route show"));
    // Who made a route is a label: the reference leaves it out. Link-local ones are the kernel's.
    let lines = text.lines().filter(|line| !line.starts_with("fe80:"));
    let mut routes: Vec<String> =
        lines.map(|line| line.replace(" proto static", "").trim().to_owned()).collect();
    routes.sort();
    routes
}

/// Plugins that come after Weft in the list change the container; CHECK, DEL, GC and STATUS of the whole list work.
#[test]
fn weft_leads_a_chain_of_reference_plugins() {
    for version in VERSIONS {
        let host = Host::new();
        let networks = Path::new("/run/networks");
        fs::create_dir_all(networks).expect("make a directory of networks");
        let mut first = network("weft", &two_addresses("weft-ipam"));
        merge(&mut first, &json!({ "cniVersion": null, "name": null, "ipMasq": true }));
        let chain = json!({
            "cniVersion": version, "name": "chain",
            "plugins": [
                first,
                { "type": "tuning", "mac": "02:00:00:00:00:77", "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } },
                { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(networks.join("10-chain.conflist"), chain.to_string()).expect("write a conflist");
        let mapping =
            json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
        let cnitool = CniTool::new(networks).capabilities(mapping);
        let pod = Pod::new();
        cnitool.run("status", "chain", &pod);
        let result = cnitool.add("chain", &pod);
        assert_eq!(pod.link("eth0").expect("eth0")["address"], "02:00:00:00:00:77");
        cnitool.run("check", "chain", &pod);
        assert!(host.ruleset().contains(&format!("dnat to {}:80", ip(&result))), "{}", host.ruleset());
        cnitool.run("del", "chain", &pod);
        assert!(pod.link("eth0").is_none());
        assert!(!host.ruleset().contains("dnat to"), "{}", host.ruleset());
    }
}
