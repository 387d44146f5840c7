//! docs/migrate-from-flannel.md, step by step, there and back: subnet, containers and their connections stay.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use weft_tests::{Family, Flanneld, Node, Pod, Weftd};

use super::peers::{Fleet, V4, talk};

const DUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48",
    "Backend": {"Type": "vxlan"}}"#;
/// How long an answer from outside may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What containers send each other after each change.
const BYTES: usize = 64 << 10;

/// As the page has them.
const REMOVE_FLANNELS_RULES: [&str; 2] = [
    "iptables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG && \
     iptables -t nat -F FLANNEL-POSTRTG && iptables -t nat -X FLANNEL-POSTRTG",
    "ip6tables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG && \
     ip6tables -t nat -F FLANNEL-POSTRTG && ip6tables -t nat -X FLANNEL-POSTRTG",
];
const REMOVE_FLANNELS_TABLES: &str = "nft delete table ip flannel-ipv4 && nft delete table ip6 flannel-ipv6";
const REMOVE_WEFTS_RULES: &str = "nft delete chain inet weft masq-cbr0";

/// A command line with quotes.
#[track_caller]
fn shell(node: &Node, line: &str) -> String {
    let output = node.inside(|| Command::new("sh").args(["-c", line]).output().expect("run a shell"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A connection from a container to the machine outside of the network, which lives through everything.
struct Conversation {
    container: TcpStream,
    outside: TcpStream,
}

impl Conversation {
    fn begin(pod: &Pod, node: &Node, outside: IpAddr) -> Self {
        let listener = TcpListener::bind((outside, 0)).expect("listen outside");
        let container = pod.connect(listener.local_addr().expect("an address")).expect("connect to outside");
        let (outside, seen) = listener.accept().expect("a connection that was made");
        assert_eq!(seen.ip(), Family::of(seen.ip()).address(node), "outside sees the host");
        Self { container, outside }
    }

    fn goes_on(&self) {
        let (mut container, mut outside) = (&self.container, &self.outside);
        for _ in 0..2 {
            container.write_all(b"x").expect("send");
            outside.set_read_timeout(Some(PATIENCE)).expect("set a limit");
            outside.read_exact(&mut [0]).expect("receive");
            (container, outside) = (outside, container);
        }
    }
}

/// Whom the machine outside of the network sees when a container begins to send.
fn seen(pod: &Pod, outside: IpAddr) -> IpAddr {
    let socket = UdpSocket::bind((outside, 0)).expect("a socket outside");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    let target = socket.local_addr().expect("an address");
    let any: IpAddr =
        if outside.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = pod.inside(|| UdpSocket::bind(SocketAddr::new(any, 0)).expect("a socket"));
    client.send_to(b"x", target).expect("send");
    socket.recv_from(&mut [0; 8]).expect("a datagram").1.ip()
}

/// How many rules masquerade: those of flanneld, and Weft's.
fn masquerades(node: &Node) -> (usize, usize) {
    let iptables = shell(node, "iptables -t nat -S && ip6tables -t nat -S");
    let jumps = iptables.lines().filter(|line| line.starts_with("-A POSTROUTING")).count();
    let by_iptables = iptables.lines().filter(|line| line.contains("-j MASQUERADE")).count();
    assert_eq!(by_iptables, jumps * 2, "two rules per family: {iptables}");
    let tables = shell(node, "nft list tables");
    let by_nftables = tables.lines().filter(|line| line.contains(" flannel-"));
    let count =
        |table: &str| shell(node, &format!("nft list {table}")).matches(" masquerade fully-random").count();
    let flannels = by_iptables + by_nftables.map(count).sum::<usize>();
    let wefts = shell(node, "nft list table inet weft").matches("masquerade fully-random").count();
    (flannels, wefts)
}

/// A host that is flanneld's and becomes Weft's and flanneld's again.
struct Changing {
    fleet: Fleet,
    /// Whether the daemons masquerade; else the plugin does, for the containers that it attaches.
    masquerade: bool,
    /// How flanneld's rules are removed, if the daemons masquerade.
    remove_flannels: Vec<&'static str>,
    families: Vec<Family>,
    subnets: Vec<String>,
    conversations: Vec<Conversation>,
}

impl Changing {
    fn node(&self) -> &Node {
        self.fleet.node(0)
    }

    fn flannel(&self, index: usize) -> Flanneld {
        let options: &[&str] = if self.masquerade { &["--ip-masq"] } else { &[] };
        let flanneld = Flanneld::start(self.fleet.node(index), &self.fleet.etcd, Flanneld::PREFIX, options);
        flanneld.ready();
        flanneld
    }

    fn weft(&self) -> Weftd {
        let changes = json!({ "name": "cbr0", "ipMasq": self.masquerade });
        let weftd = Weftd::start(self.node(), &self.fleet.etcd, &changes);
        weftd.ready();
        weftd
    }

    fn outside(&self) -> Vec<IpAddr> {
        self.families.iter().map(|family| family.neighbour(1)).collect()
    }

    /// What holds at every moment.
    fn assert_goes_on(&self, pod: &Pod) {
        assert_eq!(self.fleet.subnets(), self.subnets, "the subnet is the same");
        for outside in self.outside() {
            assert_eq!(seen(pod, outside), Family::of(outside).address(self.node()), "outside sees the host");
        }
        self.conversations.iter().for_each(Conversation::goes_on);
    }

    fn to_weft(&self, flanneld: &Flanneld, pod: &Pod) -> Weftd {
        flanneld.stop();
        self.assert_goes_on(pod);
        for family in &self.families {
            self.node().command(&format!(
                "ip link delete {}",
                family.device().replace("weft6", "flannel-v6").replace("weft", "flannel")
            ));
        }
        self.assert_goes_on(pod);
        let weftd = self.weft();
        self.assert_goes_on(pod);
        for line in &self.remove_flannels {
            shell(self.node(), line);
        }
        self.assert_goes_on(pod);
        assert_eq!(masquerades(self.node()), (0, 2));
        weftd
    }

    fn to_flannel(&self, weftd: &Weftd, pod: &Pod) -> Flanneld {
        weftd.daemon().stop();
        self.assert_goes_on(pod);
        for family in &self.families {
            self.node().command(&format!("ip link delete {}", family.device()));
        }
        let flanneld = self.flannel(0);
        self.assert_goes_on(pod);
        if self.masquerade {
            shell(self.node(), REMOVE_WEFTS_RULES);
        }
        self.assert_goes_on(pod);
        self.assert_is_flannels();
        flanneld
    }

    fn assert_is_flannels(&self) {
        let expected = if self.masquerade { (2 * self.families.len(), 0) } else { (0, 2) };
        assert_eq!(masquerades(self.node()), expected, "nothing is left, nothing is doubled");
    }
}

#[test]
fn the_page_has_the_commands() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrate-from-flannel.md");
    let page = std::fs::read_to_string(page).expect("docs/migrate-from-flannel.md");
    for command in REMOVE_FLANNELS_RULES.into_iter().chain([REMOVE_FLANNELS_TABLES, REMOVE_WEFTS_RULES]) {
        assert!(page.contains(command), "{command}");
    }
}

fn there_and_back(config: &str, families: &[Family], masquerade: bool) {
    let fleet = Fleet::new(config);
    let remove_flannels = match config.contains("EnableNFTables") {
        _ if !masquerade => Vec::new(),
        true => vec![REMOVE_FLANNELS_TABLES],
        false => REMOVE_FLANNELS_RULES[..families.len()].to_vec(),
    };
    let mut changing = Changing {
        fleet,
        masquerade,
        remove_flannels,
        families: families.to_vec(),
        subnets: Vec::new(),
        conversations: Vec::new(),
    };
    let flanneld = changing.flannel(0);
    let _others = changing.flannel(1);
    changing.subnets = changing.fleet.subnets();
    let (one, other) = (changing.fleet.pod(0), changing.fleet.pod(1));
    talk(&one, &other, BYTES);
    let begin = |outside| Conversation::begin(&one.0, changing.node(), outside);
    changing.conversations = changing.outside().into_iter().map(begin).collect();
    changing.assert_is_flannels();
    let file = changing.node().subnet_env();

    let weftd = changing.to_weft(&flanneld, &one.0);
    let now = changing.node().subnet_env();
    for key in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET", "FLANNEL_IPMASQ"] {
        assert_eq!(now.get(key), file.get(key), "{key}");
    }
    talk(&one, &other, BYTES);
    let late = changing.fleet.pod(0);
    talk(&late, &other, BYTES);

    let flanneld = changing.to_flannel(&weftd, &late.0);
    talk(&one, &other, BYTES);
    talk(&late, &other, BYTES);

    // And once more: what Weft had said of the address before does not count for flanneld's record.
    let _weftd = changing.to_weft(&flanneld, &late.0);
    talk(&late, &other, BYTES);
    for (index, pod) in [(0, one), (0, late), (1, other)] {
        changing.fleet.call("DEL", index, &pod.0).run().done();
    }
}

#[test]
fn a_host_changes_over_and_back() {
    there_and_back(V4, &[Family::V4], false);
}

#[test]
fn a_host_of_both_families_changes_over_and_back() {
    there_and_back(DUAL, &[Family::V4, Family::V6], false);
}

#[test]
fn a_host_that_masquerades_changes_over_and_back() {
    there_and_back(DUAL, &[Family::V4, Family::V6], true);
}

/// flanneld makes its rules by itself in place of iptables where the network says so, of both families wherever there is one.
#[test]
fn a_host_that_masquerades_by_nftables_changes_over_and_back() {
    for (config, families) in [(V4, &[Family::V4][..]), (DUAL, &[Family::V4, Family::V6])] {
        let config = config.replacen('{', r#"{"EnableNFTables": true, "#, 1);
        there_and_back(&config, families, true);
    }
}

/// By what flanneld has written on this host: its lease ended, or etcd came back empty, before Weft came.
#[test]
fn a_record_that_is_gone_on_the_way_is_put_anew() {
    let fleet = Fleet::new(V4);
    let node = fleet.node(0);
    let change_over = |between: &dyn Fn(&str)| {
        let flanneld = Flanneld::start(node, &fleet.etcd, Flanneld::PREFIX, &[]);
        flanneld.ready();
        let own = fleet.subnets().remove(0);
        flanneld.stop();
        node.command("ip link delete flannel.1");
        fleet.etcd.del(&own);
        between(&own);
        let weftd = Weftd::start(node, &fleet.etcd, &json!({ "name": "cbr0" }));
        weftd.ready();
        (own, weftd)
    };
    let (own, weftd) = change_over(&|_| {});
    assert_eq!(fleet.subnets(), [own]);
    weftd.daemon().stop();
    node.command("ip link delete weft.1");
    std::fs::remove_dir_all(node.data_dir().join("cbr0")).expect("forget the lease");

    // Another host was faster: there is no way but to say so.
    let other = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"host-gw"}"#;
    let (own, weftd) = change_over(&|own| fleet.etcd.put(own, other));
    assert_eq!(fleet.subnets().len(), 2);
    let (_, own) = own.rsplit_once('/').expect("a path");
    let log = weftd.daemon().log();
    assert!(log.contains(&format!("subnet.env names {own}, which this host cannot have any more")), "{log}");
}
