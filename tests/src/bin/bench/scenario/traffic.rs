//! What containers' traffic has of a network: on one host, and between two.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use weft_tests::{Access, Cluster, Flanneld, NetNs, Node, Weftd, eventually, ips};

use super::{Container, Host, Network, Peers, Row, Shape, Suite, Target, interleave};

/// How long one measurement takes: of throughput, and of exchanges. Many short ones: what else the machine does meets both of a pair.
const FLOW: Duration = Duration::from_millis(50);
const FLOWS: usize = 240;
const TALK: Duration = Duration::from_millis(100);
const TALKS: usize = 120;
/// Then there is a new connection: one can have more luck than another with windows and caches, for as long as it lives.
const FLOWS_OF_CONNECTION: usize = 20;
/// In which TCP finds its pace.
const WARM_UP: Duration = Duration::from_millis(100);
const BLOCK: usize = 128 << 10;
/// How long two hosts may take to know each other.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn traffic(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("traffic-weft"), Host::new("traffic-reference")];
    let containers = Container::many(4);
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    let theirs = peers.network(&hosts[1], Suite::Reference, Shape::default());
    let connect = |network: &Network, from: &Container, to: &Container| {
        network.add(from);
        let address = network.add(to).address();
        Way { from: from.netns().clone(), to: to.netns().clone(), address }
    };
    let ours = connect(&ours, &containers[0], &containers[1]);
    let theirs = connect(&theirs, &containers[2], &containers[3]);
    compare(&ours, &theirs, "container → container", "bridge")
}

/// Weft with its agent, and flanneld with the reference plugins: each on two hosts of its own, at one etcd.
pub(super) fn vxlan(_peers: &Peers) -> Vec<Row> {
    const CONFIG: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;
    const FLANNEL: &str = "/flannel";
    let cluster = Cluster::new(4);
    let etcd = cluster.etcd(1, Access::Open);
    for prefix in [Weftd::PREFIX, FLANNEL] {
        etcd.put(&format!("{prefix}/config"), CONFIG);
    }
    let [one, two, three, four] = [0, 1, 2, 3].map(|index| cluster.node(index));
    let weftds = [one, two].map(|node| Weftd::up(node, &etcd));
    let flannelds = [three, four].map(|node| Flanneld::start(node, &etcd, FLANNEL, &[]));
    flannelds.iter().for_each(Flanneld::ready);
    let reference = |node: &Node| weft_tests::Network::leased(node, "bridge");
    let ours = between_hosts([one, two], |_| Weftd::network(&etcd));
    let theirs = between_hosts([three, four], reference);
    let what = "container → container of another host, vxlan";
    let peer = "bridge and flanneld";
    let mut rows = compare(&ours, &theirs, what, peer);
    // How far two of the same kind are apart is what can be told on this machine.
    let others = between_hosts([three, four], reference);
    rows.push(Row::without_target(
        &format!("{what}, TCP: bridge and flanneld once more"),
        peer,
        "Gbit/s",
        &throughput(&others, &theirs),
    ));
    drop((weftds, flannelds));
    rows
}

/// The way between containers of two hosts, each attached to a network.
fn between_hosts(nodes: [&Node; 2], network: impl Fn(&Node) -> weft_tests::Network) -> Way {
    let [(from, _), (to, result)] = nodes.map(|node| node.attach(&network(node)));
    let address = ips(&result)[0];
    // The hosts' agents may still be learning of each other.
    eventually(PATIENCE, "a packet passes", || from.ping(address).status.success().then_some(()));
    Way { from: from.netns().clone(), to: to.netns().clone(), address }
}

fn compare(ours: &Way, theirs: &Way, what: &str, peer: &str) -> Vec<Row> {
    let target = || Target::AtLeast(0.97);
    let throughput = throughput(ours, theirs);
    let (ours, theirs) = (ours.connect(), theirs.connect());
    // The first pair is not counted.
    let exchanges = interleave(TALKS + 1, |_| ours.exchanges(), |_| theirs.exchanges());
    vec![
        Row::new(&format!("{what}, TCP"), peer, "Gbit/s", target(), &throughput),
        Row::new(&format!("{what}, requests answered"), peer, "/s", target(), &exchanges[1..]),
    ]
}

fn throughput(ours: &Way, theirs: &Way) -> Vec<(f64, f64)> {
    let (mut ours, mut theirs) = (Flows::of(ours), Flows::of(theirs));
    interleave(FLOWS, |run| ours.gigabits(run), |run| theirs.gigabits(run))
}

/// From one container to the address of another one.
struct Way {
    from: NetNs,
    to: NetNs,
    address: IpAddr,
}

impl Way {
    fn connect(&self) -> Connection {
        Connection::open(&self.from, &self.to, self.address)
    }
}

/// Flows on one connection after the other.
struct Flows<'a> {
    way: &'a Way,
    connection: Connection,
}

impl<'a> Flows<'a> {
    fn of(way: &'a Way) -> Self {
        Self { way, connection: way.connect() }
    }

    fn gigabits(&mut self, run: usize) -> f64 {
        if run.is_multiple_of(FLOWS_OF_CONNECTION) {
            self.connection = self.way.connect();
            self.connection.gigabits(WARM_UP);
        }
        self.connection.gigabits(FLOW)
    }
}

/// A TCP connection between two containers of one network.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    /// From one network namespace to an address in another.
    fn open(from: &NetNs, to: &NetNs, address: IpAddr) -> Self {
        let listener = to.inside(|| TcpListener::bind((address, 0))).expect("listen");
        let target = listener.local_addr().expect("a listener has an address");
        let client = from.inside(|| TcpStream::connect(target)).expect("connect");
        let (server, _) = listener.accept().expect("accept a connection that was made");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("send at once");
        }
        Self { client, server }
    }

    /// What one end sends as fast as it can, as the other end receives it, both on one processor: then it is the work for each byte that
    /// counts. On two, a flow is five times as fast as the next one, as it happens that one end waits for the other or does not.
    fn gigabits(&self, time: Duration) -> f64 {
        let (mut client, mut server) = (&self.client, &self.server);
        let start = Instant::now();
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                stay_on(0);
                let block = vec![0; BLOCK];
                let mut sent = 0;
                while start.elapsed() < time {
                    client.write_all(&block).expect("send");
                    sent += block.len();
                }
                // The end: the only byte that is not zero.
                client.write_all(&[1]).expect("send");
                sent
            });
            let receiver = scope.spawn(move || {
                stay_on(0);
                let mut buffer = vec![0; BLOCK];
                loop {
                    let length = server.read(&mut buffer).expect("receive");
                    assert!(length > 0, "the connection ended");
                    if buffer[length - 1] == 1 {
                        break;
                    }
                }
            });
            receiver.join().expect("receive");
            sender.join().expect("send")
        });
        #[expect(clippy::cast_precision_loss, reason = "bytes of a moment are far below 2^52")]
        let bits = sent as f64 * 8.0;
        bits / start.elapsed().as_secs_f64() / 1e9
    }

    /// How many times a second a byte goes and comes back.
    fn exchanges(&self) -> f64 {
        let (mut client, mut server) = (&self.client, &self.server);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                stay_on(1);
                let mut byte = [0];
                while byte == [0] {
                    server.read_exact(&mut byte).expect("receive");
                    server.write_all(&byte).expect("answer");
                }
            });
            let asking = scope.spawn(move || {
                stay_on(0);
                let start = Instant::now();
                let mut count = 0_u32;
                let mut byte = [0];
                while byte == [0] {
                    byte = [u8::from(start.elapsed() >= TALK)];
                    client.write_all(&byte).expect("ask");
                    client.read_exact(&mut byte).expect("an answer");
                    count += 1;
                }
                f64::from(count) / start.elapsed().as_secs_f64()
            });
            asking.join().expect("ask")
        })
    }
}

/// Keeps this thread on one processor: where the two ends run is worth more than what is between them.
pub(super) fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).expect("a processor's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("the benchmark needs the first two processors");
}
