//! GC beside others at work, and beside what somebody did to what it needs.

use std::fs;
use std::time::Duration;

use serde_json::json;
use weft_tests::{Host, Network, Pod, World, command, eventually, hold, hold_shared};

use super::{live, network, records};

const PATIENCE: Duration = Duration::from_secs(20);
/// Outside of what [`World`] looks at.
const TRACE: &str = "/run/netns/.trace";

/// The directory of the network's records, which is not there yet.
fn future_records(network: &Network) -> String {
    let pod = Pod::new();
    network.add(&pod);
    network.del(&pod);
    let records = command("find /run/weft -name attachments").trim().to_owned();
    fs::remove_dir_all("/run/weft").unwrap();
    records
}

#[test]
fn a_fresh_host_stays_fresh() {
    let host = Host::new();
    let before = World::of(&host, &[]);
    network().gc(&[]);
    network().gc(&[("someone", "eth0")]);
    before.assert_unchanged(&host, &[], "GC on a fresh host");
    assert!(!fs::exists("/run/weft").unwrap(), "GC created a state directory");
}

/// It comes after GC has looked for the network's lock and for records, and before it looks at the links.
#[test]
fn racing_the_first_add_since_boot() {
    let _host = Host::new();
    let network = network();
    let records = future_records(&network);
    let pod = Pod::new();
    fs::write(TRACE, "").unwrap();
    let stop = "inject=open,openat:signal=SIGSTOP:when=1";
    let strace = ["strace", "-qq", "-o", TRACE, "-P", &records, "-e", "trace=open,openat", "-e", stop];
    let gc = network.gc_call(&[]).through(strace).start();
    eventually(PATIENCE, "GC looks for records", || {
        fs::read_to_string(TRACE).unwrap().contains("stopped by SIGSTOP").then_some(())
    });
    let result = network.add(&pod);
    command(&format!("kill -CONT -- -{}", gc.pid()));
    gc.finish().done();
    network.check(&pod, &result).done();
    // The next one is not of that moment.
    network.gc(&[]);
    assert!(pod.link("eth0").is_none());
}

/// It comes after GC has seen that no container is in need of the network's rules, which an earlier one left, and before these go.
#[test]
fn racing_an_add_for_the_rules() {
    let _host = Host::new();
    let network = network();
    let records = future_records(&network);
    let pod = Pod::new();
    fs::write(TRACE, "").unwrap();
    let stop = "inject=open,openat:signal=SIGSTOP:when=2";
    let strace = ["strace", "-qq", "-o", TRACE, "-P", &records, "-e", "trace=open,openat", "-e", stop];
    let gc = network.gc_call(&[]).through(strace).start();
    eventually(PATIENCE, "GC looks for records once more", || {
        fs::read_to_string(TRACE).unwrap().contains("stopped by SIGSTOP").then_some(())
    });
    let add = network.add_call(&pod).start();
    eventually(PATIENCE, "ADD has ended, or waits for GC", || {
        let process = format!("/proc/{}", add.pid());
        let waits = |line: &str| line.contains("->") && line.contains(&format!(" {} ", add.pid()));
        let has_ended = fs::read_to_string(format!("{process}/stat")).unwrap().contains(") Z ");
        (has_ended || fs::read_to_string("/proc/locks").unwrap().lines().any(waits)).then_some(())
    });
    command(&format!("kill -CONT -- -{}", gc.pid()));
    gc.finish().done();
    let result = add.finish().result();
    network.check(&pod, &result).done();
}

/// Neither its name nor an alias tells whose it is, but its MAC address.
#[test]
fn a_renamed_link_with_names_too_long_for_an_alias() {
    let host = Host::new();
    let long = Network::new(&"n".repeat(190), &["10.88.0.0/24"]);
    let (alive, dead) = (Pod::named(&"a".repeat(64)), Pod::named(&"d".repeat(64)));
    let result = long.add(&alive);
    let before = World::of(&host, &[&alive]);
    let names =
        [result, long.add(&dead)].map(|result| result["interfaces"][1]["name"].as_str().unwrap().to_owned());
    command(&format!("ip link set {} down name renamed1", names[1]));
    long.gc(&[live(&alive)]);
    before.assert_unchanged(&host, &[&alive], "GC with a link of another name");
    assert!(dead.link("eth0").is_none());
    assert!(host.link(&names[0]).is_some());
}

/// It has not begun then, and says so.
#[test]
fn while_an_add_is_under_way() {
    let _host = Host::new();
    let network = network().with(&json!({ "timeout": 1 }));
    let (alive, dead) = (Pod::new(), Pod::new());
    let result = network.add(&alive);
    network.add(&dead);
    let lock = hold_shared("/run/weft/dual/lock");
    let error = network.gc_call(&[live(&alive)]).run().error_code(11);
    error.assert_names(&["/run/weft/dual/lock", &format!("pid {} ", std::process::id())]);
    assert!(dead.link("eth0").is_some());
    drop(lock);
    network.gc(&[live(&alive)]);
    assert!(dead.link("eth0").is_none());
    network.check(&alive, &result).done();
}

/// No record can be in it, so nothing is known but what the links say.
#[test]
fn a_file_in_place_of_the_records() {
    let _host = Host::new();
    let network = network();
    let dead = Pod::new();
    network.add(&dead);
    let records = command("find /run/weft -name attachments").trim().to_owned();
    fs::remove_dir_all(&records).unwrap();
    fs::write(&records, "").unwrap();
    network.gc(&[]);
    assert!(dead.link("eth0").is_none());
    assert_eq!(command("find /run/weft -type f -path */ipam/owner/*"), "", "addresses are held");
}

/// Addresses go back by what is on record; that the plugin's own GC was not called is told.
#[test]
fn an_ipam_that_cannot_be_read() {
    let host = Host::new();
    let network = network();
    let alive = Pod::new();
    network.add(&alive);
    let before = World::of(&host, &[&alive]);
    for ipam in [json!("x"), json!({ "tpye": "weft-ipam" }), json!({ "type": 7 })] {
        let dead = Pod::new();
        network.add(&dead);
        let mut slip = network.clone();
        slip.conf["ipam"] = ipam.clone();
        slip.gc_call(&[live(&alive)]).run().error_code(106).assert_names(&["ipam"]);
        assert!(dead.link("eth0").is_none());
        before.assert_unchanged(&host, &[&alive], &format!("GC with ipam {ipam}"));
    }
}

/// The addresses that are on links of the host's containers.
fn used(pods: &[Pod]) -> Vec<String> {
    let with_link = pods.iter().filter(|pod| pod.link("eth0").is_some());
    let mut used: Vec<String> = with_link
        .flat_map(|pod| pod.addresses("eth0"))
        .map(|address| address.split('/').next().unwrap().to_owned())
        .collect();
    used.sort();
    used
}

/// Those that nobody else can get.
fn held() -> Vec<String> {
    let list = command("find /run/weft -path */ipam/addr/* -printf %f\\n");
    let mut held: Vec<String> = list.lines().map(str::to_owned).collect();
    held.sort();
    held
}

/// It cannot read all records at once, which is told, and has not deleted the links of those that it could not.
#[test]
fn few_open_files() {
    let _host = Host::new();
    let network = Network::v4();
    let pods: Vec<Pod> = (0..40).map(|_| Pod::new()).collect();
    pods.iter().for_each(|pod| drop(network.add(pod)));
    let error = network.gc_call(&[]).through(["prlimit", "--nofile=32:32"]).run().error_code(106);
    error.assert_names(&["LimitNOFILE"]);
    let used = used(&pods);
    assert!(!used.is_empty() && used.len() < pods.len(), "{used:?}");
    assert_eq!(held(), used);
    network.gc(&[]);
    assert_eq!(held(), Vec::<String>::new());
}

/// The link may say whose it is, or there may be nobody who can.
#[test]
fn a_damaged_record_in_the_hands_of_another() {
    for (name, id) in [("net", "a"), (&"n".repeat(190), &"a".repeat(64))] {
        let _host = Host::new();
        let network = Network::new(name, &["10.88.0.0/24"]);
        let (pod, dead) = (Pod::named(id), Pod::new());
        network.add(&pod);
        let [record] = &records().into_iter().collect::<Vec<_>>()[..] else { panic!("one record") };
        fs::write(record, "{").unwrap();
        network.add(&dead);
        let lock = hold(record);
        let reply = network.gc_call(&[]).run();
        if name == "net" {
            reply.done();
        } else {
            reply.error_code(106).assert_names(&["weft-ipam", "nobody can tell whose link"]);
        }
        assert_eq!(held(), used(&[pod, dead]));
        drop(lock);
        network.gc(&[]);
        assert_eq!(held(), Vec::<String>::new());
    }
}

/// Of an attachment that nothing is known of but its link, which cannot be deleted.
#[test]
fn a_link_that_stays() {
    let _host = Host::new();
    let network = Network::v4();
    let pod = Pod::new();
    network.add(&pod);
    records().iter().for_each(|record| fs::remove_file(record).unwrap());
    let trace = ["strace", "-f", "-qq", "-o", TRACE, "-e", "trace=sendto", "-e"];
    // From the removal on: what comes before it are a few questions.
    let refused = (1..20).map(|nth| format!("inject=sendto:error=ENOBUFS:when={nth}+"));
    let mut was_left = false;
    for inject in refused {
        let reply = network.gc_call(&[]).through(trace.iter().copied().chain([inject.as_str()])).run();
        assert_eq!(held().is_empty(), pod.link("eth0").is_none(), "{inject}: {reply:?}");
        if held().is_empty() {
            break;
        }
        was_left |= reply.stderr.contains("delete link") || reply.error().msg.contains("delete link");
    }
    assert!(was_left);
}
