//! What plugins ask the kernel for, and each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;

use weft_tests::{Call, Host, Network, Pod, script};

/// Outside of what is compared.
const TRACE: &str = "/run/netns/.trace";
/// Of one process, without its children.
const STRACE: [&str; 8] = ["strace", "-qq", "-s", "512", "-e", "trace=sendto,write", "-o", TRACE];

fn traced() -> Vec<String> {
    fs::read_to_string(TRACE).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn one_message_makes_the_pair_and_one_write_tells_it() {
    let _host = Host::new();
    let (first, pod) = (Pod::new(), Pod::new());
    Network::dual().add(&first);
    Network::dual().add_call(&pod).through(STRACE).run().result();
    let lines = traced();
    let made: Vec<_> =
        lines.iter().filter(|line| line.contains("RTM_NEWLINK") && line.contains("NLM_F_CREATE")).collect();
    assert!(made.len() == 1 && made[0].contains("veth"), "{made:#?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("write(1,")).count(), 1, "{lines:#?}");
}

/// The kernel's wait for RCU is the child's: it deletes the link, and nobody waits for its end.
#[test]
fn who_calls_del_waits_for_no_rcu() {
    let _host = Host::new();
    let pod = Pod::new();
    Network::dual().add(&pod);
    Network::dual().call("DEL").pod(&pod).through(STRACE).run().done();
    let lines = traced();
    assert!(lines.iter().any(|line| line.contains("RTM_GETLINK")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("RTM_DELLINK")), "{lines:#?}");
}

#[test]
fn the_ipam_plugin_gets_what_weft_got() {
    const GOT: &str = "/run/netns/.got";
    let _host = Host::new();
    let pod = Pod::new();
    fs::create_dir_all(GOT).unwrap();
    let given = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"}]}"#;
    let body = format!(
        "cat >{GOT}/$CNI_COMMAND; env | grep ^CNI_ | sort >{GOT}/$CNI_COMMAND.env; [ $CNI_COMMAND != ADD ] || echo '{given}'"
    );
    script("/run/netns/.plugins", "weft-ipam", &body);
    let call = |command: &str, text: &str| {
        let call = Call::any("weft", command, text.to_owned()).pod(&pod);
        call.env("CNI_PATH", "/run/netns/.plugins").env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web").run()
    };
    let got = |name: &str| fs::read_to_string(format!("{GOT}/{name}")).unwrap();
    let mut network = Network::v4().conf;
    // Spaces, so that it is not what any library would write.
    let text = |network: &serde_json::Value| format!("{network:#}\n");
    let result = call("ADD", &text(&network)).result();
    assert_eq!(got("ADD"), text(&network));
    network["prevResult"] = result;
    for command in ["CHECK", "STATUS", "DEL"] {
        assert!(call(command, &text(&network)).succeeded(), "{command}");
        assert_eq!(got(command), text(&network), "{command}");
    }
    for command in ["ADD", "CHECK", "DEL"] {
        let env = got(&format!("{command}.env"));
        for variable in [
            format!("CNI_COMMAND={command}"),
            format!("CNI_CONTAINERID={}", pod.id),
            "CNI_IFNAME=eth0".to_owned(),
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web".to_owned(),
        ] {
            assert!(env.lines().any(|line| line == variable), "{command} lacks {variable}: {env}");
        }
    }
}
