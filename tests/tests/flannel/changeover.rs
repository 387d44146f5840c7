//! docs/migrate-from-flannel.md, step by step, there and back: subnet, containers and their connections stay.

mod pinned;
mod plugins;
mod public;
mod third;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Family, Flanneld, Node, Pod, Weftd, ips, records};

use super::peers::{Fleet, V4, talk};
use plugins::Plugins;
use third::{FLUSH_FLANNELS_ROUTES, FLUSH_WEFTS_ROUTES, Third};

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
const REMOVE_FLANNELS_BRIDGE: &str = "ip link delete cni0";

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

/// How many rules masquerade.
#[derive(Debug, PartialEq, Eq)]
struct Masquerades {
    flanneld: usize,
    /// Of the reference plugin, for containers that it attached.
    bridge: usize,
    weft: usize,
}

impl Masquerades {
    fn on(node: &Node) -> Self {
        let iptables = shell(node, "iptables -t nat -S && ip6tables -t nat -S");
        let count = |chain: &str, part: &str| {
            iptables.lines().filter(|line| line.starts_with(chain) && line.contains(part)).count()
        };
        let (jumps, by_iptables) =
            (count("-A POSTROUTING", "-j FLANNEL-POSTRTG"), count("-A FLANNEL-POSTRTG", "-j MASQUERADE"));
        assert_eq!(by_iptables, jumps * 2, "two rules per family: {iptables}");
        let tables = shell(node, "nft list tables");
        let in_tables = |name: &str| {
            let tables = tables.lines().filter(|line| line.contains(name));
            let count =
                |table| shell(node, &format!("nft list {table}")).matches(" masquerade fully-random").count();
            tables.map(count).sum::<usize>()
        };
        let flanneld = by_iptables + in_tables(" flannel-");
        Self { flanneld, bridge: count("-A CNI-", "-j MASQUERADE"), weft: in_tables("table inet weft") }
    }
}

/// A host that is flanneld's and becomes Weft's and flanneld's again.
struct Changing {
    fleet: Fleet,
    plugins: Plugins,
    /// Whether the daemons masquerade; else the plugin does, for the containers that it attaches.
    masquerade: bool,
    /// Whether other hosts are reached by devices, or by plain routes.
    has_devices: bool,
    /// How flanneld's rules are removed, if the daemons masquerade.
    remove_flannels: Vec<&'static str>,
    families: Vec<Family>,
    subnets: Vec<String>,
    conversations: Vec<Conversation>,
}

fn flannel(fleet: &Fleet, index: usize, masquerade: bool) -> Flanneld {
    let options: &[&str] = if masquerade { &["--ip-masq"] } else { &[] };
    let flanneld = Flanneld::start(fleet.node(index), &fleet.etcd, Flanneld::PREFIX, options);
    flanneld.ready();
    flanneld
}

impl Changing {
    /// Both hosts are flanneld's.
    fn begin(config: &str, families: &[Family], masquerade: bool) -> (Self, [Flanneld; 2]) {
        let fleet = Fleet::new(&records::apart(config));
        let daemons = [0, 1].map(|index| flannel(&fleet, index, masquerade));
        let remove_flannels = match config.contains("EnableNFTables") {
            _ if !masquerade => Vec::new(),
            true => vec![REMOVE_FLANNELS_TABLES],
            false => REMOVE_FLANNELS_RULES[..families.len()].to_vec(),
        };
        let changing = Self {
            plugins: Plugins::of_flannel(fleet.node(0)),
            subnets: fleet.subnets(),
            fleet,
            masquerade,
            has_devices: config.contains("vxlan"),
            remove_flannels,
            families: families.to_vec(),
            conversations: Vec::new(),
        };
        (changing, daemons)
    }

    fn node(&self) -> &Node {
        self.fleet.node(0)
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

    /// Steps 2 to 5.
    fn to_weft(&self, flanneld: &Flanneld, pod: &Pod, third: Option<&Third>) -> Weftd {
        let before = Masquerades::on(self.node());
        flanneld.stop();
        third.iter().for_each(|third| third.leave(self));
        self.assert_goes_on(pod);
        self.delete_devices(|weft| weft.replace("weft6", "flannel-v6").replace("weft", "flannel"));
        self.assert_goes_on(pod);
        let weftd = self.weft();
        self.assert_goes_on(pod);
        self.flush_routes(FLUSH_FLANNELS_ROUTES);
        third.iter().for_each(|third| third.assert_is_forgotten(self));
        for line in &self.remove_flannels {
            shell(self.node(), line);
        }
        self.assert_goes_on(pod);
        let weft = if self.masquerade { 2 } else { before.weft };
        assert_eq!(Masquerades::on(self.node()), Masquerades { flanneld: 0, weft, ..before });
        weftd
    }

    fn to_flannel(&self, weftd: &Weftd, pod: &Pod) -> Flanneld {
        let third = Third::come(self);
        weftd.daemon().stop();
        third.leave(self);
        self.assert_goes_on(pod);
        self.delete_devices(str::to_owned);
        self.flush_routes(FLUSH_WEFTS_ROUTES);
        let flanneld = flannel(&self.fleet, 0, self.masquerade);
        third.assert_is_forgotten(self);
        self.assert_goes_on(pod);
        if self.masquerade {
            shell(self.node(), REMOVE_WEFTS_RULES);
        }
        self.assert_goes_on(pod);
        flanneld
    }

    /// Nothing is left of the other daemon, and nothing is doubled: by rules of the daemon, or those that plugins made for the
    /// containers that they attached.
    #[track_caller]
    fn assert_is_flannels(&self, by_bridge: bool, by_weft: bool) {
        let families = self.families.len();
        let expected = if self.masquerade {
            Masquerades { flanneld: 2 * families, bridge: 0, weft: 0 }
        } else {
            let (bridge, weft) = (usize::from(by_bridge) * families, usize::from(by_weft) * 2);
            Masquerades { flanneld: 0, bridge, weft }
        };
        assert_eq!(Masquerades::on(self.node()), expected);
    }

    /// A new container by the plugin `flannel` that is there, with the result of its ADD.
    fn pod(&self) -> ((Pod, Vec<IpAddr>), Value) {
        let pod = Pod::new();
        let result = self.plugins.call("ADD", self.node(), &pod).run().result();
        ((pod, ips(&result)), result)
    }

    fn delete(&self, pod: &Pod) {
        self.plugins.call("DEL", self.node(), pod).run().done();
        assert!(pod.link("eth0").is_none());
    }
}

#[test]
fn the_page_has_these_steps_and_commands() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrate-from-flannel.md");
    let page = std::fs::read_to_string(page).expect("docs/migrate-from-flannel.md");
    let others = [REMOVE_FLANNELS_TABLES, REMOVE_WEFTS_RULES, REMOVE_FLANNELS_BRIDGE];
    let routes = FLUSH_FLANNELS_ROUTES.into_iter().chain(FLUSH_WEFTS_ROUTES);
    for command in REMOVE_FLANNELS_RULES.into_iter().chain(others).chain(routes) {
        assert!(page.contains(command), "{command}");
    }
    let fate = "`FLANNEL-FWD` may stay until the next boot";
    assert!(page.contains(fate) && page.contains("| `FORWARD` drops by policy |"));
    // Each is done below; another one would not be.
    let steps = [
        "Write `/etc/weft/weftd.json`",
        "Stop flanneld",
        "`ip link delete flannel.1`",
        "Start `weftd`",
        "With `--ip-masq`",
        "Replace `/opt/cni/bin/flannel`",
    ];
    let numbered =
        |line: &&str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    let found: Vec<&str> = page.lines().filter(numbered).collect();
    for (number, step) in (1..).zip(steps) {
        let begins = format!("{number}. {step}");
        assert!(found.iter().any(|line| line.starts_with(&begins)), "{begins}: {found:#?}");
    }
    assert_eq!(found.len(), steps.len(), "{found:#?}");
}

fn there_and_back(config: &str, families: &[Family], masquerade: bool) {
    let (mut changing, [flanneld, _others]) = Changing::begin(config, families, masquerade);
    let ((one, result), other) = (changing.pod(), changing.fleet.pod(1));
    talk(&one, &other, BYTES);
    let begin = |outside| Conversation::begin(&one.0, changing.node(), outside);
    changing.conversations = changing.outside().into_iter().map(begin).collect();
    changing.assert_is_flannels(true, false);
    let file = changing.node().subnet_env();

    let third = Third::come(&changing);
    let weftd = changing.to_weft(&flanneld, &one.0, Some(&third));
    let now = changing.node().subnet_env();
    for key in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET", "FLANNEL_IPMASQ"] {
        assert_eq!(now.get(key), file.get(key), "{key}");
    }
    talk(&one, &other, BYTES);
    changing.plugins.replace();
    changing.plugins.check(changing.node(), &one.0, &result);
    let (late, late_result) = changing.pod();
    changing.assert_goes_on(&late.0);
    talk(&late, &other, BYTES);
    talk(&late, &one, BYTES);
    assert_eq!(
        changing.plugins.held_by_host_local(),
        2 * families.len(),
        "it goes on while it holds addresses"
    );

    let flanneld = changing.to_flannel(&weftd, &late.0);
    changing.assert_is_flannels(true, true);
    talk(&one, &other, BYTES);
    talk(&late, &other, BYTES);

    // And once more: what Weft had said of the address before does not count for flanneld's record.
    let _weftd = changing.to_weft(&flanneld, &late.0, None);
    talk(&late, &other, BYTES);
    changing.plugins.check(changing.node(), &late.0, &late_result);
    changing.conversations.clear();
    changing.delete(&one.0);
    assert_eq!(Masquerades::on(changing.node()), Masquerades { flanneld: 0, bridge: 0, weft: 2 });
    changing.delete(&late.0);
    let (last, _) = changing.pod();
    assert_eq!(changing.plugins.held_by_host_local(), 0, "Weft's own from here on");
    talk(&last, &other, BYTES);
    changing.delete(&last.0);
    // The end: the conflist names `weft`, on a host without containers.
    let mut weft = Weftd::network(&changing.fleet.etcd).with(&json!({ "name": "cbr0" }));
    let (pod, node) = (Pod::new(), changing.node());
    weft.add_call(&pod).on(node).run().error_code(103).assert_names(&["cni0", "on the same subnet"]);
    if masquerade {
        node.command(REMOVE_FLANNELS_BRIDGE);
    } else {
        weft = weft.with(&json!({ "bridge": "cni0" }));
    }
    let result = weft.add_call(&pod).on(node).run().result();
    let newest = (pod, ips(&result));
    talk(&newest, &other, BYTES);
    changing.fleet.call("DEL", 1, &other.0).run().done();
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
fn a_host_of_plain_routes_changes_over_and_back() {
    for (config, families) in [(V4, &[Family::V4][..]), (DUAL, &[Family::V4, Family::V6])] {
        there_and_back(&config.replace("vxlan", "host-gw"), families, false);
    }
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
