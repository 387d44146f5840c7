//! One of several hosts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::conf::Network;
use crate::daemon::Daemon;
use crate::netns::NetNs;
use crate::pod::{self, Pod};
use crate::tools;

/// A host of a [`crate::Cluster`]: a network namespace with `eth0` on the underlay, a default route of each family, and
/// directories of its own. Files are the thread's: `/run` and `/var/lib` are shared by all nodes, so what runs on a
/// node is told where its own are.
pub struct Node {
    /// Its name, which is also that of its directory.
    pub name: String,
    /// Its address on the underlay.
    pub ipv4: Ipv4Addr,
    /// Its address on the underlay.
    pub ipv6: Ipv6Addr,
    /// What joins it to the underlay.
    pub cable: Cable,
    netns: NetNs,
}

impl Node {
    /// A machine on a segment of the underlay, whose router this thread is on.
    pub(crate) fn connect(name: &str, segment: u8, number: u8) -> Self {
        let ipv4 = Ipv4Addr::new(172, 30, segment, number);
        // The same digits in both families are easier to read than the same number.
        let ipv6: Ipv6Addr =
            format!("fd30:0:0:{segment}::{number}").parse().expect("digits are hexadecimal ones too");
        let cable = Cable { router: NetNs::current(), port: name.to_owned() };
        let netns = NetNs::create();
        let path = netns.path();
        tools::command(&format!("ip link add {name} type veth peer name eth0 netns {}", path.display()));
        tools::command(&format!("ip link set {name} master wire{segment} up"));
        netns.inside(|| {
            tools::command("ip link set lo up");
            // Usable at once; only here, as the node's other interfaces are for those under test.
            tools::set_sysctl("net/ipv6/conf/eth0/accept_dad", "0");
            tools::command("ip link set eth0 up");
            tools::command(&format!("ip addr add {ipv4}/24 dev eth0"));
            tools::command(&format!("ip addr add {ipv6}/64 dev eth0 nodad"));
            tools::command(&format!("ip route add default via 172.30.{segment}.1"));
            tools::command(&format!("ip route add default via fd30:0:0:{segment}::1"));
        });
        Self { name: name.to_owned(), ipv4, ipv6, cable, netns }
    }

    /// The node's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Does something on the node: sockets that are opened and processes that are started there stay there.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.netns.inside(work)
    }

    /// Runs a command line on the node and returns what it printed.
    pub fn command(&self, line: &str) -> String {
        self.inside(|| tools::command(line))
    }

    /// Runs a command line that prints JSON on the node.
    pub fn json(&self, line: &str) -> Value {
        self.inside(|| tools::json(line))
    }

    /// Gives the node an address on the underlay in place of one that it has, of the same family and segment.
    pub fn renumber(&self, from: &str, to: &str) {
        let segment = self.ipv4.octets()[2];
        let (length, flags, router) = match to.parse().expect("an address") {
            IpAddr::V4(_) => (24, "", format!("172.30.{segment}.1")),
            IpAddr::V6(_) => (64, "nodad", format!("fd30:0:0:{segment}::1")),
        };
        self.command(&format!("ip addr del {from}/{length} dev eth0"));
        self.command(&format!("ip addr add {to}/{length} dev eth0 {flags}"));
        self.command(&format!("ip route replace default via {router} dev eth0"));
    }

    /// Has the node's addresses as clouds give them: each is a prefix of its own, and a route says who else is on the link.
    pub fn single_address(&self) {
        let segment = self.ipv4.octets()[2];
        for (family, own, length, link, router) in [
            (
                "-4",
                self.ipv4.to_string(),
                "24",
                format!("172.30.{segment}.0/24"),
                format!("172.30.{segment}.1"),
            ),
            (
                "-6",
                self.ipv6.to_string(),
                "64",
                format!("fd30:0:0:{segment}::/64"),
                format!("fd30:0:0:{segment}::1"),
            ),
        ] {
            self.command(&format!("ip addr del {own}/{length} dev eth0"));
            self.command(&format!("ip addr add {own} dev eth0"));
            self.command(&format!("ip {family} route add {link} dev eth0"));
            self.command(&format!("ip {family} route replace default via {router} dev eth0"));
        }
    }

    /// What `ip -d link` says about an interface, or nothing when there is none of that name.
    pub fn link(&self, ifname: &str) -> Option<Value> {
        self.inside(|| pod::link(ifname))
    }

    /// The addresses of an interface with their prefix lengths, without link-local ones.
    pub fn addresses(&self, ifname: &str) -> Vec<String> {
        pod::addresses_of(&self.json(&format!("ip -j addr show dev {ifname}")))
    }

    /// A kernel setting of the node, without the line's end.
    pub fn sysctl(&self, path: &str) -> String {
        self.inside(|| tools::sysctl(path))
    }

    /// Sets a kernel setting of the node.
    pub fn set_sysctl(&self, path: &str, value: &str) {
        self.inside(|| tools::set_sysctl(path, value));
    }

    /// Where everything is that belongs to this node alone.
    pub fn directory(&self) -> PathBuf {
        Path::new("/run/hosts").join(&self.name)
    }

    /// What stands for `/run/weft` on this node.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("run")
    }

    /// What stands for `/var/lib/weft` on this node.
    pub fn data_dir(&self) -> PathBuf {
        self.directory().join("lib")
    }

    /// What stands for `/run/flannel/subnet.env` on this node.
    pub fn subnet_file(&self) -> PathBuf {
        self.directory().join("subnet.env")
    }

    /// What flanneld or Weft's agent wrote into [`Node::subnet_file`], by key.
    ///
    /// # Panics
    /// When the file is not there or has other lines.
    pub fn subnet_env(&self) -> BTreeMap<String, String> {
        let file = self.subnet_file();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let pair = |line: &str| {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no KEY=VALUE: {line}"));
            (key.to_owned(), value.to_owned())
        };
        text.lines().map(pair).collect()
    }

    /// The environment that tells Weft's programs where this node's directories are.
    pub fn env(&self) -> [(&'static str, OsString); 2] {
        [("WEFT_STATE_DIR", self.state_dir().into()), ("WEFT_DATA_DIR", self.data_dir().into())]
    }

    /// A new container on this node, attached to a network: it and the result of ADD.
    #[track_caller]
    pub fn attach(&self, network: &Network) -> (Pod, Value) {
        let pod = Pod::new();
        let result = network.add_call(&pod).on(self).run_with_news().result();
        (pod, result)
    }

    /// Starts a program that goes on on this node, with the node's environment.
    pub fn start(&self, mut command: Command) -> Daemon {
        command.envs(self.env());
        let name = Path::new(command.get_program()).file_name().expect("a program has a name");
        let log = Path::new(tools::OWN).join(&self.name).join(name).with_extension("log");
        self.inside(|| Daemon::start(&command, &log))
    }
}

/// What joins a machine to the underlay.
pub struct Cable {
    router: NetNs,
    /// The underlay's end.
    port: String,
}

impl Cable {
    /// Nothing passes any more, and nobody notices: a partition of the network.
    pub fn cut(&self) {
        self.port("bridge link set dev {} state 0");
    }

    /// Undoes [`Cable::cut`].
    pub fn join(&self) {
        self.port("bridge link set dev {} state 3");
    }

    /// The machine's `eth0` loses its carrier.
    pub fn unplug(&self) {
        self.port("ip link set {} down");
    }

    /// Undoes [`Cable::unplug`].
    pub fn plug(&self) {
        self.port("ip link set {} up");
    }

    fn port(&self, line: &str) {
        self.router.inside(|| tools::command(&line.replace("{}", &self.port)));
    }
}
