//! A host of its own for every test.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::netns::NetNs;
use crate::pod;
use crate::tools;

/// The settings of br_netfilter, where it is loaded.
const BR_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// Has all hosts of a run go without it, though it is on in a new network namespace: hack/test runs the tests of connections both ways.
const WITHOUT_BR_NETFILTER: &str = "WITHOUT_BR_NETFILTER";

/// A machine: network namespace, mount namespace, empty `/run` and `/var/lib`. The thread that makes it is on it
/// until the value is dropped, so are the processes that the thread starts. The kernel clears it away.
pub struct Host {
    netns: NetNs,
    /// Where the thread came from, for the next test on the same thread.
    home: (NetNs, OwnedFd),
}

impl Host {
    /// # Panics
    /// When a tool or a binary under test is missing, or when namespaces cannot be made.
    pub fn new() -> Self {
        tools::require_tools();
        tools::dist();
        let home_mounts = File::open("/proc/thread-self/ns/mnt").expect("a thread has a mount namespace");
        let home = (NetNs::current(), home_mounts.into());
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("namespaces need root or the runner of .cargo/config.toml (unshare -rnm)");
        let host = Self { netns: NetNs::current(), home };
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("keep mounts private");
        for directory in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
                .unwrap_or_else(|error| panic!("mount a tmpfs at {directory}: {error}"));
        }
        tools::command("ip link set lo up");
        if std::env::var_os(WITHOUT_BR_NETFILTER).is_some() {
            host.set_br_netfilter(false);
            // Comes with the report of a test that fails.
            println!("br_netfilter is off");
        }
        host
    }

    /// The host's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// What `ip -d link` says about an interface, or nothing when there is none of that name.
    pub fn link(&self, ifname: &str) -> Option<Value> {
        pod::link(ifname)
    }

    /// The addresses of an interface with their prefix lengths, without link-local ones.
    pub fn addresses(&self, ifname: &str) -> Vec<String> {
        pod::addresses_of(&tools::json(&format!("ip -j addr show dev {ifname}")))
    }

    /// The names of the ports of a bridge.
    pub fn ports(&self, bridge: &str) -> Vec<String> {
        let links = tools::json(&format!("ip -j link show master {bridge}"));
        let names = links.as_array().expect("a list").iter().map(|link| link["ifname"].as_str());
        names.map(|name| name.expect("a name").to_owned()).collect()
    }

    /// A kernel setting of this host, without the line's end.
    pub fn sysctl(&self, path: &str) -> String {
        tools::sysctl(path)
    }

    /// Sets a kernel setting of this host.
    pub fn set_sysctl(&self, path: &str, value: &str) {
        tools::set_sysctl(path, value);
    }

    /// Ways in which a kernel can treat what bridges forward: as it is, and with br_netfilter, which hands it to the host's rules for
    /// IP. Where that is not loaded there is one.
    pub fn br_netfilter_ways() -> &'static [bool] {
        if Path::new(BR_NETFILTER).exists() { &[false, true] } else { &[false] }
    }

    /// Has the kernel do it in one of these ways.
    pub fn set_br_netfilter(&self, is_on: bool) {
        if Self::br_netfilter_ways().contains(&true) {
            for family in ["ip", "ip6", "arp"] {
                self.set_sysctl(
                    &format!("net/bridge/bridge-nf-call-{family}tables"),
                    if is_on { "1" } else { "0" },
                );
            }
        }
    }

    /// Loads rules as an administrator does.
    pub fn nft(&self, rules: &str) {
        let file = "/run/rules.nft";
        fs::write(file, rules).expect("write rules");
        tools::command(&format!("nft -f {file}"));
        fs::remove_file(file).expect("remove the rules' file");
    }

    /// The whole ruleset as text, without counters' values.
    pub fn ruleset(&self) -> String {
        tools::command("nft -s list ruleset")
    }

    /// The world outside this host, joined by a cable.
    pub fn outside(&self) -> Outside {
        Outside::connect()
    }

    /// As after a reboot that kept the files below `/run`: another boot id, and no network objects.
    /// Containers do not survive it either, which is the caller's to do.
    pub fn reboot(&self) {
        let file = "/run/boot_id";
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a random UUID");
        fs::write(file, id).expect("write another boot id");
        mount(Some(file), "/proc/sys/kernel/random/boot_id", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("mount another boot id");
        for link in tools::json("ip -j link").as_array().expect("a list") {
            let name = link["ifname"].as_str().expect("a name");
            if name == "lo" {
                continue;
            }
            // A veth goes with its other end, and with a namespace that the kernel is just clearing away.
            let deleted = tools::attempt(&format!("ip link delete {name}"));
            assert!(
                deleted.status.success() || self.link(name).is_none(),
                "{name} cannot be deleted: {deleted:?}"
            );
        }
        tools::command("nft flush ruleset");
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.set_sysctl(setting, "0");
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.home.0.enter();
        // A helper thread that has been joined may not have given back the directories that threads share.
        unshare(CloneFlags::CLONE_FS).expect("directories of one's own");
        setns(&self.home.1, CloneFlags::CLONE_NEWNS).expect("return to the mounts of before");
    }
}

/// Another machine on the host's uplink. It has routes to nowhere but the cable: what it answers came with an
/// address of the cable.
pub struct Outside {
    netns: NetNs,
}

impl Outside {
    /// The host's addresses on the cable.
    pub const HOST: [&'static str; 2] = ["198.51.100.1", "2001:db8:ffff::1"];
    /// The outside's own addresses.
    pub const PEER: [&'static str; 2] = ["198.51.100.2", "2001:db8:ffff::2"];

    fn connect() -> Self {
        let netns = NetNs::create();
        let path = netns.path();
        tools::command(&format!("ip link add up0 type veth peer name eth0 netns {}", path.display()));
        cable("up0", &Self::HOST);
        netns.inside(|| cable("eth0", &Self::PEER));
        Self { netns }
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Does something on the other machine.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.netns.inside(work)
    }

    /// A listening TCP socket on the other machine.
    pub fn listen(&self, address: IpAddr) -> TcpListener {
        let address = SocketAddr::new(address, 0);
        self.inside(|| {
            TcpListener::bind(address).unwrap_or_else(|error| panic!("listen at {address}: {error}"))
        })
    }

    /// A UDP socket on the other machine.
    pub fn udp(&self, address: IpAddr) -> UdpSocket {
        let address = SocketAddr::new(address, 0);
        self.inside(|| UdpSocket::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}")))
    }
}

/// Up for seconds already, so to speak: as long as its link-local address is being looked for elsewhere, an interface asks nobody for a
/// router's or a neighbour's address on behalf of what it forwards (`ndisc_solicit` of net/ipv6/ndisc.c).
fn cable(ifname: &str, addresses: &[&str; 2]) {
    tools::set_sysctl(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0");
    tools::command(&format!("ip link set {ifname} up"));
    tools::command(&format!("ip addr add {}/24 dev {ifname}", addresses[0]));
    tools::command(&format!("ip addr add {}/64 dev {ifname} nodad", addresses[1]));
}
