//! DEL in all its poor circumstances: it knows network, container and interface, and needs nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use weft_tests::{Call, Host, Network, Pod, Running, World, script};

/// A host on which the network was used once, so that what its attachments share is there; and that world.
struct Used {
    host: Host,
    network: Network,
    world: World,
}

impl Used {
    fn new() -> Self {
        let host = Host::new();
        let network = Network::dual().with(&json!({ "ipMasq": true }));
        let pod = Pod::new();
        network.add(&pod);
        network.del(&pod);
        drop(pod);
        let world = World::of(&host, &[]);
        Self { host, network, world }
    }

    /// ADD, something in between, DEL: nothing must be left on the host, and the address must be free.
    fn survives(&self, circumstance: &str, spoil: impl FnOnce(&mut Pod, &Value), del: impl Fn(&Pod) -> Call) {
        let mut pod = Pod::new();
        let result = self.network.add(&pod);
        spoil(&mut pod, &result);
        let reply = del(&pod).run();
        assert!(
            reply.succeeded(),
            "{circumstance}: {} {}",
            String::from_utf8_lossy(&reply.stdout),
            reply.stderr
        );
        self.world.assert_unchanged(&self.host, &[], circumstance);
        del(&pod).run().done();
        self.world.assert_unchanged(&self.host, &[], &format!("{circumstance}, repeated"));
    }
}

#[test]
fn everything_is_gone_at_return() {
    let used = Used::new();
    let pod = Pod::new();
    let before = World::of(&used.host, &[&pod]);
    used.network.add(&pod);
    used.network.del(&pod);
    // The container's lo stays up: others may use it by now.
    let differences = before.differences(&World::of(&used.host, &[&pod]));
    assert!(differences.iter().all(|line| line.contains(" link lo ")), "{differences:#?}");
}

#[test]
fn poor_namespaces() {
    let used = Used::new();
    let nothing = |_: &mut Pod, _: &Value| {};
    let del = |pod: &Pod| used.network.del_call(pod);
    used.survives("CNI_NETNS is empty", nothing, |pod| del(pod).env("CNI_NETNS", ""));
    used.survives("CNI_NETNS is unset", nothing, |pod| del(pod).unset("CNI_NETNS"));
    used.survives("CNI_NETNS names nothing", nothing, |pod| del(pod).env("CNI_NETNS", "/run/netns/nothing"));
    used.survives("the namespace is gone", |pod, _| pod.die(), del);
    used.survives("an empty file is left of the namespace", |pod, _| pod.unmount(), del);
    used.survives("a directory is at the path", nothing, |pod| del(pod).env("CNI_NETNS", "/run"));
    used.survives("CNI_NETNS is the host's own", nothing, |pod| {
        del(pod).env("CNI_NETNS", "/proc/self/ns/net")
    });
    used.survives("another namespace is at the path", |pod, _| pod.replace(), del);
}

/// What another namespace at the path has is not this attachment's.
#[test]
fn a_stranger_in_a_replaced_namespace_stays() {
    let used = Used::new();
    let mut pod = Pod::new();
    used.network.add(&pod);
    pod.replace();
    pod.command("ip link add eth0 type veth peer name other");
    used.network.del(&pod);
    assert!(pod.link("eth0").is_some(), "the interface of another namespace was deleted");
    used.world.assert_unchanged(&used.host, &[], "DEL with a stranger at the path");
}

#[test]
fn poor_previous_results() {
    let used = Used::new();
    let network = &used.network;
    let del_with = |previous: Value| {
        move |pod: &Pod| network.clone().with(&json!({ "prevResult": previous })).call("DEL").pod(pod)
    };
    let nothing = |_: &mut Pod, _: &Value| {};
    let foreign = json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "lo" }], "ips": [{ "address": "10.88.0.99/24" }] });
    used.survives("no prevResult", nothing, del_with(Value::Null));
    used.survives("a foreign prevResult", nothing, del_with(foreign));
    used.survives(
        "prevResult of another version",
        nothing,
        del_with(json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.0.0.1/8" } })),
    );
    for corrupt in [
        json!(5),
        json!("text"),
        json!([]),
        json!({ "cniVersion": "9.9" }),
        json!({ "cniVersion": "1.1.0", "ips": [null] }),
        json!({ "cniVersion": "1.1.0", "ips": [{ "address": "nonsense" }], "interfaces": null }),
    ] {
        used.survives(&format!("prevResult {corrupt}"), nothing, del_with(corrupt));
    }
}

/// A mistake made in the configuration after ADD must not keep a container's remains.
#[test]
fn poor_configurations() {
    let used = Used::new();
    let nothing = |_: &mut Pod, _: &Value| {};
    for change in [
        json!({ "mtu": -5 }),
        json!({ "bridge": "other0" }),
        json!({ "unknownKey": 1 }),
        json!({ "vlan": 7 }),
        json!({ "isGateway": "yes" }),
        json!({ "ipMasq": false }),
        json!({ "runtimeConfig": { "mac": "x" } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "10.99.0.0/24" }]] } }),
        json!({ "ipam": { "ranges": [[{ "subnet": "x" }]] } }),
    ] {
        let network = used.network.clone().with(&change);
        used.survives(&format!("configuration with {change}"), nothing, |pod| network.del_call(pod));
    }
    used.survives("CNI_ARGS that cannot be read", nothing, |pod| {
        used.network.del_call(pod).args("nonsense;IP=x")
    });
}

/// What cannot be read is not needed: what ADD had is on record.
#[test]
fn an_ipam_that_cannot_be_read() {
    let used = Used::new();
    for ipam in [json!("x"), json!({ "tpye": "weft-ipam" }), json!({ "type": 7 })] {
        let mut network = used.network.clone();
        network.conf["ipam"] = ipam.clone();
        let pod = Pod::new();
        used.network.add(&pod);
        network.del(&pod);
        used.world.assert_unchanged(&used.host, &[], &format!("ipam is {ipam}"));
        // Without a record nobody knows who has the address; all else goes.
        used.network.add(&pod);
        let record = weft_tests::command("find /run/weft -path */attachments/* -type f");
        fs::remove_file(record.trim()).unwrap();
        network.del_call(&pod).run().error_code(7).assert_names(&["ipam"]);
        assert!(pod.link("eth0").is_none(), "ipam is {ipam}, and there is no record");
        used.network.del(&pod);
        used.world.assert_unchanged(&used.host, &[], &format!("ipam was {ipam}, and there is no record"));
    }
}

/// The address goes back to where it came from.
#[test]
fn another_ipam_since_the_container_came() {
    let used = Used::new();
    let nothing = |_: &mut Pod, _: &Value| {};
    for change in [
        json!({ "ipam": { "type": "host-local" } }),
        json!({ "ipam": { "dataDir": "/run/elsewhere" } }),
        json!({ "ipam": null }),
        json!({ "chained": true }),
    ] {
        let conf = used.network.clone().with(&change).conf.to_string();
        used.survives(&format!("configuration with {change}"), nothing, |pod| {
            Call::any("weft", "DEL", conf.as_str()).pod(pod)
        });
    }
}

/// Weft's lock on the attachment, which the plugin was given, does not last as long as what the plugin leaves behind.
#[test]
fn a_process_that_the_ipam_plugin_left_behind_keeps_nobody_out() {
    let used = Used::new();
    let ipam = weft_tests::dist().join("weft-ipam");
    let leaves = "[ $CNI_COMMAND != ADD ] || { sleep 20 </dev/null >/dev/null 2>&1 & echo $! >$0.pid; }";
    script("/run/netns/.leaves", "weft-ipam", &format!("{leaves}\nexec {}", ipam.display()));
    let network = used.network.clone().with(&json!({ "timeout": 5 }));
    let pod = Pod::new();
    network.add_call(&pod).env("CNI_PATH", "/run/netns/.leaves").run().result();
    let reply = network.del_call(&pod).run();
    let stayed = fs::read_to_string("/run/netns/.leaves/weft-ipam.pid").unwrap();
    weft_tests::command(&format!("kill {}", stayed.trim()));
    reply.done();
    used.world.assert_unchanged(&used.host, &[], "DEL beside what the IPAM plugin left behind");
}

/// How a file is spoiled.
type Spoil = (&'static str, fn(&PathBuf));

/// Every file of an attachment, spoiled in every way, while the rest is whole, and the runtime has no result.
#[test]
fn poor_state() {
    let used = Used::new();
    let spoils: &[Spoil] = &[
        ("missing", |path| fs::remove_file(path).unwrap()),
        ("empty", |path| fs::write(path, "").unwrap()),
        ("truncated", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("corrupt", |path| fs::write(path, b"\xff\xfe{]nonsense").unwrap()),
        ("another type of JSON", |path| fs::write(path, "[1,2,3]").unwrap()),
    ];
    let count = {
        let pod = Pod::new();
        let before = files();
        used.network.add(&pod);
        let count = files().iter().filter(|file| !before.contains(file)).count();
        used.network.del(&pod);
        count
    };
    assert!(count > 0, "an attachment leaves no files to be spoiled");
    for number in 0..count {
        for (how, spoil) in spoils {
            let before = files();
            let damage = |_: &mut Pod, _: &Value| {
                let name = files().into_iter().filter(|file| !before.contains(file)).nth(number).unwrap();
                spoil(&name);
            };
            used.survives(&format!("file {number} {how}"), damage, |pod| used.network.del_call(pod));
        }
    }
    // By the content of the addresses' own files.
    for (what, parts) in [("links", &["owner"][..]), ("links and record", &["owner", "attachments"])] {
        let damage = |pod: &mut Pod, _: &Value| {
            for part in parts {
                weft_tests::command(&format!("find /run/weft -path */{part}/* -type f -delete"));
            }
            pod.die();
        };
        used.survives(&format!("{what} are missing, namespace and result too"), damage, |pod| {
            used.network.del_call(pod)
        });
    }
    let directory = |_: &mut Pod, _: &Value| {
        let record = weft_tests::command("find /run/weft -path */attachments/* -type f");
        fs::remove_file(record.trim()).unwrap();
        fs::create_dir(record.trim()).unwrap();
    };
    used.survives("the record is a directory", directory, |pod| used.network.del_call(pod));
    let all = |_: &mut Pod, _: &Value| fs::remove_dir_all("/run/weft").unwrap();
    used.survives("all state is missing", all, |pod| used.network.del_call(pod));
}

/// Whoever looks into it learns that there was something to look for.
#[test]
fn a_damaged_record_is_told() {
    let used = Used::new();
    let pod = Pod::new();
    for spoil in [b"{\"containerID\":".as_slice(), b"\xff\xfe{]nonsense"] {
        used.network.add(&pod);
        let record = weft_tests::command("find /run/weft -path */attachments/* -type f");
        fs::write(record.trim(), spoil).unwrap();
        let reply = used.network.del_call(&pod).run();
        reply.done();
        let told = format!("interface eth0 of container {} on network dual: its record is damaged", pod.id);
        assert!(reply.stderr.contains(&told), "{}", reply.stderr);
    }
}

/// All files below the state directory but locks, in a stable order.
fn files() -> Vec<PathBuf> {
    let list =
        weft_tests::command("find /run/weft -type f -not -name lock -not -name .lock -not -name last*");
    let mut files: Vec<PathBuf> = list.lines().map(PathBuf::from).collect();
    files.sort();
    files
}

#[test]
fn half_of_an_attachment() {
    let used = Used::new();
    let del = |pod: &Pod| used.network.del_call(pod);
    let host_end = |result: &Value| result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    used.survives("eth0 deleted", |pod, _| drop(pod.command("ip link delete eth0")), del);
    used.survives("eth0 renamed", |pod, _| drop(pod.command("ip link set eth0 down name other0")), del);
    let rename = |_: &mut Pod, result: &Value| {
        weft_tests::command(&format!("ip link set {} down name renamed0", host_end(result)));
    };
    used.survives("host end renamed", rename, del);
    used.survives("host end renamed, no CNI_NETNS", rename, |pod| del(pod).unset("CNI_NETNS"));
    used.survives(
        "both ends renamed",
        |pod, result| {
            rename(pod, result);
            pod.command("ip link set eth0 down name other0");
        },
        del,
    );
    used.survives(
        "host end off its bridge",
        |_, result| {
            weft_tests::command(&format!("ip link set {} nomaster", host_end(result)));
        },
        del,
    );
}

#[test]
fn the_bridge_gone() {
    let host = Host::new();
    let network = Network::dual();
    let pod = Pod::new();
    network.add(&pod);
    weft_tests::command("ip link delete weft0");
    network.del(&pod);
    assert!(pod.link("eth0").is_none());
    let left = World::of(&host, &[]);
    assert_eq!(left.matching("file /run/weft"), Vec::<&str>::new());
}

#[test]
fn parallel_dels_of_one_attachment() {
    let used = Used::new();
    for _ in 0..5 {
        let pod = Pod::new();
        used.network.add(&pod);
        let running: Vec<Running> = (0..8).map(|_| used.network.del_call(&pod).start()).collect();
        running.into_iter().for_each(|del| del.finish().done());
        used.world.assert_unchanged(&used.host, &[], "parallel DELs");
        assert!(pod.link("eth0").is_none());
    }
}

/// Of what was never attached there is nothing to delete, and nothing to create.
#[test]
fn a_fresh_host_stays_fresh() {
    let host = Host::new();
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    for network in [Network::dual().with(&json!({ "ipMasq": true })), Network::new("flat", &[])] {
        network.del(&pod);
        before.assert_unchanged(&host, &[&pod], "DEL on a fresh host");
        assert!(!fs::exists("/run/weft").unwrap(), "DEL created a state directory");
    }
}

/// A container that joined an attachment of another network keeps it.
#[test]
fn only_the_named_attachment_goes() {
    let _host = Host::new();
    let networks = [Network::v4(), Network::new("other", &["10.2.0.0/24"])];
    let pod = Pod::new();
    networks[0].add(&pod);
    let result = networks[1].add_call(&pod).ifname("eth1").run().result();
    networks[0].del(&pod);
    networks[0].del_call(&pod).ifname("eth1").run().done();
    networks[1].check_call(&pod, &result).ifname("eth1").run().done();
}
