//! Every command through the real binary.

mod common;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cni_protocol::Deadline;
use common::{BINARY, Host, command, finish, gc, run, start};
use serde_json::{Value, json};
use weft_state::Lock;

fn dual() -> Value {
    json!({"ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]})
}

#[test]
fn add_answers_in_every_version() {
    let host = Host::new();
    let resolv_conf = host.root.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 10.5.0.53\nsearch example.org\n").unwrap();
    let mut conf = host.conf(&dual());
    conf["ipam"]["resolvConf"] = resolv_conf.to_str().unwrap().into();
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for (i, version) in versions.iter().enumerate() {
        conf["cniVersion"] = (*version).into();
        let result = run("ADD", &format!("c{i}"), &conf).ok();
        let (v4, v6) = (format!("10.5.0.{}/24", i + 2), format!("fd05::{}/64", i + 2));
        assert_eq!(result["cniVersion"], *version);
        assert_eq!(result["dns"], json!({"nameservers": ["10.5.0.53"], "search": ["example.org"]}));
        if i < 2 {
            assert_eq!(result["ip4"]["ip"], v4);
            assert_eq!(result["ip4"]["gateway"], "10.5.0.1");
            assert_eq!(result["ip4"]["routes"], json!([{"dst": "0.0.0.0/0"}]));
            assert_eq!(result["ip6"]["ip"], v6);
        } else {
            let ips = &result["ips"];
            assert_eq!((&ips[0]["address"], &ips[0]["gateway"]), (&json!(v4), &json!("10.5.0.1")));
            assert_eq!((&ips[1]["address"], &ips[1]["gateway"]), (&json!(v6), &json!("fd05::1")));
            assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
            assert_eq!(result.get("interfaces"), None);
        }
    }
}

#[test]
fn a_second_add_of_one_attachment_is_a_conflict() {
    let host = Host::new();
    let conf = host.conf(&dual());
    run("ADD", "one", &conf).ok();
    let before = host.world();
    let message = run("ADD", "one", &conf).error(103);
    for part in ["container one (eth0)", "10.5.0.2", "fd05::2", "DEL"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(host.world(), before);
    // Another interface of the container, and the same one in another network, are other attachments.
    let ips = finish(start(command("ADD", "one").env("CNI_IFNAME", "eth1"), &conf)).ips();
    assert_eq!(ips, ["10.5.0.3/24", "fd05::3/64"]);
    let mut other = conf;
    other["name"] = "other".into();
    assert_eq!(run("ADD", "one", &other).ips(), ["10.5.0.2/24", "fd05::2/64"]);
}

#[test]
fn a_freed_address_is_not_given_again_at_once() {
    let host = Host::new();
    let conf = host.conf(&json!({"subnet": "10.5.0.0/29"}));
    for n in [2, 3, 4, 5, 6, 2, 3] {
        assert_eq!(run("ADD", "one", &conf).ips(), [format!("10.5.0.{n}/29")]);
        run("DEL", "one", &conf).ok();
    }
}

#[test]
fn addresses_asked_for() {
    let host = Host::new();
    let mut conf = host.conf(&dual());
    conf["runtimeConfig"] = json!({"ips": ["10.5.0.77/24"]});
    conf["args"] = json!({"cni": {"ips": ["10.5.0.78"]}});
    let add = |container, conf: &Value| {
        finish(start(command("ADD", container).env("CNI_ARGS", "IP=10.5.0.79"), conf))
    };
    assert_eq!(add("one", &conf).ips(), ["10.5.0.77/24", "fd05::2/64"]);
    let before = host.world();
    let message = add("two", &conf).error(103);
    assert!(message.contains("10.5.0.77") && message.contains("container one (eth0)"), "{message}");
    assert_eq!(host.world(), before);
    conf["runtimeConfig"] = Value::Null;
    assert_eq!(add("two", &conf).ips(), ["10.5.0.78/24", "fd05::3/64"]);
    conf["args"] = Value::Null;
    assert_eq!(add("three", &conf).ips(), ["10.5.0.79/24", "fd05::4/64"]);
    // What was asked for does not move the order.
    assert_eq!(run("ADD", "four", &conf).ips(), ["10.5.0.2/24", "fd05::5/64"]);
    conf["runtimeConfig"] = json!({"ips": ["10.6.0.1"]});
    assert!(add("five", &conf).error(7).contains("outside"));
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let host = Host::new();
    for (ipam, code) in [
        (json!({"subnet": "10.5.0.1/24"}), 7),
        (json!({"subnet": "10.5.0.0/24", "resolveConf": "/x"}), 2),
        (json!({"subnet": "10.5.0.0/24", "resolvConf": "/nonexistent"}), 5),
    ] {
        let conf = host.conf(&ipam);
        for verb in ["ADD", "STATUS"] {
            let answer = run(verb, "one", &conf);
            let code = if verb == "STATUS" && code == 5 { 50 } else { code };
            answer.error(code);
            assert!(host.is_untouched());
        }
        // Nothing of it matters for what has to be freed.
        run("DEL", "one", &conf).ok();
        gc(&conf, &[]).ok();
    }
}

#[test]
fn a_fresh_host_stays_untouched_by_all_but_add() {
    let host = Host::new();
    let mut conf = host.conf(&dual());
    run("DEL", "one", &conf).ok();
    run("STATUS", "", &conf).ok();
    gc(&conf, &[]).ok();
    conf["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]});
    let message = run("CHECK", "one", &conf).error(105);
    assert!(message.contains("since the machine started"), "{message}");
    assert!(host.is_untouched());
}

#[test]
fn a_full_pool_says_so_beforehand_and_names_the_way_out() {
    let host = Host::new();
    let conf = host.conf(&json!({"ranges": [[{"subnet": "10.5.0.0/29"}], [{"subnet": "fd05::/64"}]]}));
    for n in 0..5 {
        run("STATUS", "", &conf).ok();
        run("ADD", &format!("c{n}"), &conf).ok();
    }
    let before = host.world();
    for message in [run("ADD", "six", &conf).error(104), run("STATUS", "", &conf).error(50)] {
        for part in ["range set 0", "10.5.0.0/29", "5 of 5", "GC"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert_eq!(host.world(), before, "a failed ADD keeps nothing of the other set either");
    run("DEL", "c3", &conf).ok();
    run("STATUS", "", &conf).ok();
    assert_eq!(run("ADD", "six", &conf).ips()[0], "10.5.0.5/29");
}

#[test]
fn a_large_pool_with_many_neighbours_held() {
    let host = Host::new();
    let conf = host.conf(&json!({"subnet": "10.5.0.0/24"}));
    for n in 0..150 {
        run("ADD", &format!("c{n}"), &conf).ok();
    }
    run("DEL", "c140", &conf).ok();
    // As if the order had begun anew: more are held in a row than are looked at one by one.
    fs::remove_file(host.store().join("last.0")).unwrap();
    assert_eq!(run("ADD", "again", &conf).ips(), ["10.5.0.142/24"]);
    assert_eq!(run("ADD", "next", &conf).ips(), ["10.5.0.152/24"]);
}

#[test]
fn check_finds_what_is_wrong() {
    let host = Host::new();
    let mut conf = host.conf(&dual());
    let result = run("ADD", "one", &conf).ok();
    conf["prevResult"] = result.clone();
    run("CHECK", "one", &conf).ok();
    let message = run("CHECK", "two", &conf).error(105);
    assert!(message.contains("container two (eth0)") && message.contains("none"), "{message}");
    let mut with = |ips: Value| {
        conf["prevResult"]["ips"] = ips;
        run("CHECK", "one", &conf)
    };
    let (v4, v6) = (result["ips"][0].clone(), result["ips"][1].clone());
    let message = with(json!([v4])).error(105);
    assert!(message.contains("fd05::2"), "{message}");
    let message = with(json!([v4, v6, {"address": "10.5.0.9/24"}])).error(105);
    assert!(message.contains("10.5.0.9 is not reserved"), "{message}");
    // An address of another plugin in the chain.
    with(json!([v4, v6, {"address": "192.0.2.1/24"}])).ok();
    let address = host.store().join("addr/10.5.0.2");
    fs::write(&address, b"").unwrap();
    let answer = with(json!([v4, v6]));
    assert!(answer.stderr.contains("damaged"), "{answer:?}");
    answer.ok();
    fs::remove_file(address).unwrap();
    let message = with(json!([v4, v6])).error(105);
    assert!(message.contains("10.5.0.2") && message.contains("missing"), "{message}");
}

#[test]
fn gc_frees_the_dead_and_only_them() {
    let host = Host::new();
    let conf = host.conf(&dual());
    for container in ["live", "dead", "gone"] {
        run("ADD", container, &conf).ok();
    }
    gc(&conf, &["live", "gone"]).ok();
    let addresses = |host: &Host| {
        let names = fs::read_dir(host.store().join("addr")).unwrap();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<HashSet<_>>()
    };
    let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
    assert_eq!(addresses(&host), of(&["10.5.0.2", "fd05::2", "10.5.0.4", "fd05::4"]));
    // No list is no list, not an empty one.
    run("GC", "", &conf).ok();
    assert_eq!(addresses(&host).len(), 4);
    // The interface plugin was called before the last ADD: its list cannot have it.
    let started = weft_state::monotonic();
    run("ADD", "newer", &conf).ok();
    let mut empty = conf.clone();
    empty["cni.dev/valid-attachments"] = json!([]);
    let mut command = command("GC", "");
    command.env(weft_state::STARTED_ENV, started.as_nanos().to_string());
    finish(start(&mut command, &empty)).ok();
    assert_eq!(addresses(&host), of(&["10.5.0.5", "fd05::5"]));
    // A time from the future is not believed.
    let future = (weft_state::monotonic() + Duration::from_secs(3600)).as_nanos().to_string();
    let mut command = common::command("GC", "");
    finish(start(command.env(weft_state::STARTED_ENV, future), &empty)).ok();
    assert_eq!(addresses(&host), of(&[]));
}

#[test]
fn what_boot_this_is_may_be_told() {
    let host = Host::new();
    let conf = host.conf(&dual());
    let told = "00000000-1111-2222-3333-444444444444";
    let add_told = |container: &str, boot: &str| {
        finish(start(command("ADD", container).env(weft_state::BOOT_ID_ENV, boot), &conf)).ok();
    };
    let here = host.store();
    let there = here.parent().unwrap().with_file_name(told);
    add_told("one", told);
    assert!(there.join("ipam/addr/10.5.0.2").exists() && !here.exists());
    for nonsense in ["", "..", "../../../../../../tmp/elsewhere-than-here"] {
        add_told(&format!("c{}", nonsense.len()), nonsense);
    }
    assert!(["10.5.0.2", "10.5.0.3", "10.5.0.4"].iter().all(|ip| here.join("addr").join(ip).exists()));
}

/// All of it in one error, a line for each.
#[test]
fn what_stays_is_reported_and_the_rest_goes() {
    let host = Host::new();
    let conf = host.conf(&dual());
    for container in ["one", "two", "three"] {
        run("ADD", container, &conf).ok();
    }
    // Of an ADD that did not finish, and of two that did.
    let mut owners = fs::read_dir(host.store().join("owner")).unwrap().map(|entry| entry.unwrap().path());
    let obstacles = [
        host.store().join("pending/obstacle/10.5.0.9"),
        owners.next().unwrap().join("10.5.0.8"),
        owners.next().unwrap().join("10.5.0.7"),
    ];
    for obstacle in &obstacles {
        fs::create_dir_all(obstacle.join("inside")).unwrap();
    }
    let answer = gc(&conf, &[]);
    let details: Vec<&str> = answer.json["details"].as_str().unwrap().lines().collect();
    for obstacle in &obstacles {
        let line = format!("remove {}: ", obstacle.display());
        assert!(details.iter().any(|detail| detail.starts_with(&line)), "{line}: {details:#?}");
    }
    let count = format!("{} left behind", details.len());
    assert!(answer.error(106).contains(&count), "{count}");
    assert_eq!(fs::read_dir(host.store().join("addr")).unwrap().count(), 0);
    // It goes on where it stopped.
    obstacles.iter().for_each(|obstacle| fs::remove_dir(obstacle.join("inside")).unwrap());
    obstacles.iter().for_each(|obstacle| fs::remove_dir(obstacle).unwrap());
    gc(&conf, &[]).ok();
    assert_eq!(fs::read_dir(host.store().join("owner")).unwrap().count(), 0);
}

#[test]
fn a_result_that_cannot_be_delivered_is_taken_back() {
    let host = Host::new();
    let conf = host.conf(&dual());
    run("ADD", "other", &conf).ok();
    let before = host.world();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stdout in [Stdio::from(writer), Stdio::from(full)] {
        let answer = finish(start(command("ADD", "one").stdout(stdout), &conf));
        assert!(!answer.success);
        assert_eq!(host.world(), before);
    }
}

#[test]
fn a_lock_that_is_not_let_go_names_its_holder() {
    let host = Host::new();
    let mut conf = host.conf(&dual());
    run("ADD", "one", &conf).ok();
    conf["timeout"] = 1.into();
    let _held =
        Lock::exclusive(&host.store().join("lock"), Deadline::after(Duration::from_secs(20))).unwrap();
    for verb in ["ADD", "DEL", "STATUS"] {
        let message = run(verb, "two", &conf).error(11);
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    }
    gc(&conf, &[]).error(11);
}

#[test]
fn sixteen_processes_at_once_share_nothing() {
    const PROCESSES: usize = 16;
    const ROUNDS: usize = 12;
    let host = Host::new();
    let conf = host.conf(&json!({"ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/112"}]]}));
    let mut given = HashSet::new();
    for round in 0..ROUNDS {
        let name = |n: usize| format!("c{round}-{n}");
        let running: Vec<_> = (0..PROCESSES).map(|n| start(&mut command("ADD", &name(n)), &conf)).collect();
        for child in running {
            for ip in finish(child).ips() {
                assert!(given.insert(ip.clone()), "{ip} given twice");
            }
        }
    }
    assert_eq!(given.len(), 2 * PROCESSES * ROUNDS);
    let all = (0..ROUNDS).flat_map(|r| (0..PROCESSES).map(move |n| format!("c{r}-{n}")));
    for chunk in all.collect::<Vec<_>>().chunks(PROCESSES) {
        let running: Vec<_> = chunk.iter().map(|c| start(&mut command("DEL", c), &conf)).collect();
        running.into_iter().for_each(|child| drop(finish(child).ok()));
    }
    assert!(host.world().is_empty());
}

#[test]
fn more_at_once_than_the_pool_has() {
    let host = Host::new();
    let conf = host.conf(&json!({"subnet": "10.5.0.0/28"}));
    let running: Vec<_> = (0..20).map(|n| start(&mut command("ADD", &format!("c{n}")), &conf)).collect();
    let answers: Vec<_> = running.into_iter().map(finish).collect();
    assert_eq!(answers.iter().filter(|a| a.success).count(), 13);
    answers.into_iter().filter(|a| !a.success).for_each(|a| drop(a.error(104)));
}

#[test]
fn a_reboot_frees_everything() {
    let host = Host::new();
    let conf = host.conf(&json!({"subnet": "10.5.0.0/29"}));
    for n in 0..5 {
        run("ADD", &format!("c{n}"), &conf).ok();
    }
    let old = host.store();
    let rebooted = |verb: &str, container: &str| {
        let boot_id = host.root.path().join("boot_id");
        fs::write(&boot_id, "11111111-2222-3333-4444-555555555555\n").unwrap();
        let mut command = command(verb, container);
        let environment: Vec<_> =
            command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        command = Command::new("unshare");
        command.args([
            "-m",
            "sh",
            "-c",
            "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && exec \"$2\"",
            "sh",
        ]);
        command
            .arg(boot_id)
            .arg(BINARY)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(start(&mut command, &conf))
    };
    // DEL of a container from before the reboot.
    rebooted("DEL", "c0").ok();
    assert!(old.exists());
    assert_eq!(rebooted("ADD", "new").ips(), ["10.5.0.2/29"]);
    assert!(!Path::new(&old).exists(), "of the earlier boot");
}
