//! What plugins ask the kernel for, and each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's panic is its verdict")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::{Value, json};
use weft_tests::{Call, Host, Injection, Network, Pod, Tampered, script};

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
    let text = |network: &Value| format!("{network:#}\n");
    let result = call("ADD", &text(&network)).result();
    assert_eq!(got("ADD"), text(&network));
    network["prevResult"] = result;
    network["cni.dev/valid-attachments"] = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    for command in ["CHECK", "STATUS", "GC", "DEL"] {
        assert!(call(command, &text(&network)).succeeded(), "{command}");
        assert_eq!(got(command), text(&network), "{command}");
    }
    for command in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
        let env = format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web\nCNI_COMMAND={command}\nCNI_CONTAINERID={}\nCNI_IFNAME=eth0\n\
             CNI_NETNS={}\nCNI_PATH=/run/netns/.plugins\n",
            pod.id,
            pod.path().display()
        );
        assert_eq!(got(&format!("{command}.env")), env, "{command}");
    }
}

/// The reservations of a network on this host, by their files.
struct Store(PathBuf);

impl Store {
    fn of(network: &Network) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        Self(["/run/weft", network.name(), boot_id.trim(), "ipam"].iter().collect())
    }

    /// As if containers had come and got these addresses, up to one that was the last given.
    fn hold(&self, addresses: impl Iterator<Item = u32>) {
        for address in addresses.map(Ipv4Addr::from) {
            let file = self.0.join(format!("addr/{address}"));
            fs::write(&file, "").unwrap();
            let owner = self.0.join(format!("owner/test-{address}"));
            fs::create_dir(&owner).unwrap();
            fs::hard_link(file, owner.join(address.to_string())).unwrap();
        }
    }

    fn set_last(&self, address: u32) {
        fs::write(self.0.join("last.0"), format!("{:<45}\n", Ipv4Addr::from(address).to_string())).unwrap();
    }
}

/// Where the next address is free, whoever else has one. Where many that are held come first, once around the pool, a file is read for
/// each block of 256 of them.
#[test]
fn what_a_reservation_costs_with_many_held() {
    /// As many addresses are a block, and as many are looked at one by one, before blocks and in the one with the free one.
    const BLOCK: usize = 256;
    const PROBES: usize = 16;
    /// To look at an address or a block.
    const CALLS: usize = 8;
    let _host = Host::new();
    let network = Network::new("many", &["10.64.0.0/16"]);
    let pod = Pod::new();
    let cost = || -> usize {
        let calls = Injection::survey(Tampered::Ipam, network.add_call(&pod));
        network.del(&pod);
        // How often it waits for its input and for memory is not the store's affair.
        let of_files = |name: &&String| {
            !["poll", "ppoll", "read", "madvise", "mmap", "munmap", "brk"].contains(&name.as_str())
        };
        calls.iter().filter(|(name, _)| of_files(name)).map(|(_, count)| count).sum()
    };
    network.add(&pod);
    network.del(&pod);
    let store = Store::of(&network);
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 2));
    store.hold(first..first + 100);
    store.set_last(first + 99);
    let with_few = cost();
    store.hold(first + 100..first + 16_000);
    store.set_last(first + 15_999);
    assert_eq!(cost(), with_few);

    let around = u32::from(Ipv4Addr::new(10, 64, 255, 254));
    store.set_last(around);
    // Whoever comes first notes which blocks are full.
    network.add(&pod);
    network.del(&pod);
    store.set_last(around);
    let found = cost();
    let most = with_few + (16_000 / BLOCK + PROBES + BLOCK) * CALLS;
    assert!(found <= most, "{found} calls instead of {with_few}, at most {most}");
}
