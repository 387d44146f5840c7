//! Limits on containers' traffic: they hold from the first second on, nothing waits long, and nothing stays behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

#[path = "shaping/rates.rs"]
mod rates;

use serde_json::{Value, json};
use weft_tests::{Host, Injection, Network, Pod, Tampered, World, command};

/// 10 Mbit/s both ways.
fn limited() -> Network {
    limited_to(10_000_000)
}

/// As Kubernetes' annotations ask for it: by runtimes that write a burst of 4 Gbit beside it.
fn limited_to(rate: u32) -> Network {
    let bandwidth = json!({
        "ingressRate": rate, "ingressBurst": 4_294_967_295_u32, "egressRate": rate, "egressBurst": 4_294_967_295_u32,
    });
    Network::dual().with(&json!({ "runtimeConfig": { "bandwidth": bandwidth } }))
}

/// The names of the links that traffic takes a detour through.
fn detours(result: &Value) -> Vec<String> {
    let interfaces = result["interfaces"].as_array().unwrap();
    interfaces[3..].iter().map(|interface| interface["name"].as_str().unwrap().to_owned()).collect()
}

fn veth(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}

#[test]
fn the_result_names_the_detour_and_del_removes_it() {
    let host = Host::new();
    let (pod, plain) = (Pod::new(), Pod::new());
    Network::dual().add(&plain);
    let before = World::of(&host, &[&plain]);
    let result = limited().add(&pod);
    let [ifb] = detours(&result).try_into().unwrap();
    assert_eq!(host.link(&ifb).unwrap()["linkinfo"]["info_kind"], "ifb");
    limited().check(&pod, &result).done();
    limited().del(&pod);
    before.assert_unchanged(&host, &[&plain], "DEL of a limited container");
    limited().del(&pod);
}

/// By the container's key alone: no record, no previous result, no namespace.
#[test]
fn del_without_anything_else_removes_the_detour() {
    let host = Host::new();
    let mut pod = Pod::new();
    let result = limited().add(&pod);
    command("rm -r /run/weft");
    pod.die();
    let call = Network::dual().call("DEL").env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
    call.run().done();
    for name in detours(&result).iter().map(String::as_str).chain([veth(&result)]) {
        assert!(host.link(name).is_none(), "{name} is still there");
    }
}

#[test]
fn gc_removes_detours_of_the_dead_only() {
    let host = Host::new();
    let (dead, lost, alive) = (Pod::new(), Pod::new(), Pod::new());
    let result = limited().add(&alive);
    let before = World::of(&host, &[&alive]);
    limited().add(&dead);
    let lost_result = limited().add(&lost);
    // Nothing but its name tells whose it is.
    command(&format!("find /run/weft -name {} -delete", &veth(&lost_result)[4..]));
    command(&format!("ip link delete {}", veth(&lost_result)));
    limited().gc(&[(&alive.id, "eth0")]);
    before.assert_unchanged(&host, &[&alive], "GC");
    limited().check(&alive, &result).done();
}

fn replace(bucket: &str) -> String {
    format!("tc qdisc replace dev V root handle 1: tbf rate {bucket}")
}

#[test]
fn check_tells_what_differs() {
    // The host's end of the pair is V, the detour D.
    let tamperings: [(&str, &[&str]); 10] = [
        ("tc qdisc del dev V root", &["token bucket", "gone"]),
        ("tc qdisc del dev D root", &["token bucket", "gone"]),
        (
            &replace("20mbit burst 7812 limit 62500"),
            &["token bucket", "2500000 bytes per second", "instead of 1250000"],
        ),
        (&replace("10mbit burst 25000 limit 62500"), &["token bucket"]),
        (&replace("10mbit burst 7812 limit 900000"), &["token bucket", "900000 waiting"]),
        ("ip link delete D", &["wefe", "gone"]),
        ("ip link set D down", &["wefe", "down"]),
        ("tc filter del dev V ingress", &["filters", "altered"]),
        ("tc qdisc del dev V clsact", &["filters", "altered"]),
        (
            "tc filter add dev V ingress protocol ip prio 9 u32 match u32 0 0 classid 1:1",
            &["filters", "altered"],
        ),
    ];
    for (line, words) in tamperings {
        let _host = Host::new();
        let pod = Pod::new();
        let result = limited().add(&pod);
        limited().check(&pod, &result).done();
        command(&line.replace('V', veth(&result)).replace('D', &detours(&result)[0]));
        let reply = limited().check(&pod, &result);
        assert!(!reply.succeeded(), "CHECK did not notice: {line}");
        reply.error_code(105).assert_names(words);
        limited().del(&pod);
    }
}

/// What does not fit together, or cannot be meant, is told before anything is touched.
#[test]
fn refusals_name_key_value_and_remedy() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    for (conf, code, words) in [
        (json!({ "ingressRate": -1 }), 7, ["ingressRate", "-1", "bits per second"]),
        (json!({ "egressRate": 1e40 }), 7, ["egressRate", "1e+40", "bits per second"]),
        (json!({ "egressRate": 10 }), 7, ["egressRate", "10", "1000"]),
        (json!({ "ingressBurst": 8000 }), 7, ["ingressBurst", "8000", "ingressRate"]),
        (
            json!({ "shapedSubnets": ["0.0.0.0/0"], "unshapedSubnets": ["::/0"] }),
            7,
            ["shapedSubnets", "unshapedSubnets", "take"],
        ),
        (json!({ "bandwidth": { "ingressRate": 8000 } }), 2, ["bandwidth", "capabilities", "8000"]),
        (
            json!({ "runtimeConfig": { "bandwidth": { "egressRate": "1M" } } }),
            7,
            ["runtimeConfig.bandwidth.egressRate", "1M", "whole number"],
        ),
        (
            json!({ "runtimeConfig": { "bandwidth": { "rate": 8000 } } }),
            2,
            ["runtimeConfig.bandwidth.rate", "8000", "egressRate"],
        ),
    ] {
        Network::v4().with(&conf).add_call(&pod).run().error_code(code).assert_names(&words);
        before.assert_unchanged(&host, &[&pod], &conf.to_string());
    }
}

/// STATUS does once what ADD would do, and where it is not seen.
#[test]
fn status_rehearses() {
    let host = Host::new();
    let network = Network::v4()
        .with(&json!({ "ingressRate": 8_000_000, "egressRate": 8_000_000, "shapedSubnets": ["::/0"] }));
    let before = World::of(&host, &[]);
    network.status().done();
    let injection = Injection { process: Tampered::Weft, syscall: "unshare", errno: "EPERM", nth: 1 };
    let (reply, hit) = injection.run(network.call("STATUS"));
    hit.expect("STATUS makes a namespace");
    reply.error_code(50).assert_names(&["limit traffic", "EPERM"]);
    before.assert_unchanged(&host, &[], "STATUS");
}
