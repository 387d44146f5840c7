//! What host ports, isolation and limits cost, and what containers' traffic has of a network.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{
    Backend, Container, Features, Host, Network, Peers, RUNS, Row, SLOW_RUNS, Shape, Suite, Target,
    attach_and_detach, interleave, walls,
};

/// How long one measurement of traffic takes.
const TIME: Duration = Duration::from_millis(300);
const BLOCK: usize = 128 << 10;

pub(super) fn everything(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("everything-on"), Host::new("everything-off")];
    let all = Shape { port: Some(Backend::Nftables), features: Features::All, ..Shape::default() };
    let none = Shape { features: Features::None, ..Shape::default() };
    let on = peers.network(&hosts[0], Suite::Weft, all);
    let off = peers.network(&hosts[1], Suite::Weft, none);
    let (adds, dels) = attach_and_detach(&on, &off, RUNS);
    let what = "host port, limits, icc off";
    let peer = "weft with none of it";
    vec![
        Row::new(&format!("ADD, {what}"), peer, "ms", Target::Ratio(1.5), &walls(&adds)),
        Row::new(&format!("DEL, {what}"), peer, "ms", Target::Ratio(1.5), &walls(&dels)),
    ]
}

pub(super) fn traffic(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("traffic-weft"), Host::new("traffic-reference")];
    let ours = peers.network(&hosts[0], Suite::Weft, Shape::default());
    let theirs = peers.network(&hosts[1], Suite::Reference, Shape::default());
    let containers = Container::many(4);
    let (ours, theirs) = (
        Connection::between(&ours, &containers[0], &containers[1]),
        Connection::between(&theirs, &containers[2], &containers[3]),
    );
    let target = Target::AtLeast(0.97);
    // The first pair is not counted: TCP's windows grow in it.
    let rows = SLOW_RUNS + 1;
    let throughput = interleave(rows, |_| ours.gigabits(), |_| theirs.gigabits());
    let exchanges = interleave(rows, |_| ours.exchanges(), |_| theirs.exchanges());
    vec![
        Row::new("container → container, TCP", "bridge", "Gbit/s", target, &throughput[1..]),
        Row::new("container → container, requests answered", "bridge", "/s", target, &exchanges[1..]),
    ]
}

/// A TCP connection between two containers of one network.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn between(network: &Network, from: &Container, to: &Container) -> Self {
        network.add(from);
        let address: IpAddr = network.add(to).address();
        let listener = to.inside(|| TcpListener::bind((address, 0))).expect("listen");
        let target = listener.local_addr().expect("a listener has an address");
        let client = from.inside(|| TcpStream::connect(target)).expect("connect");
        let (server, _) = listener.accept().expect("accept a connection that was made");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("send at once");
        }
        Self { client, server }
    }

    /// What one end sends as fast as it can, as the other end receives it.
    fn gigabits(&self) -> f64 {
        let (mut client, mut server) = (&self.client, &self.server);
        let start = Instant::now();
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let block = vec![0; BLOCK];
                let mut sent = 0;
                while start.elapsed() < TIME {
                    client.write_all(&block).expect("send");
                    sent += block.len();
                }
                // The end: the only byte that is not zero.
                client.write_all(&[1]).expect("send");
                sent
            });
            let mut buffer = vec![0; BLOCK];
            loop {
                let length = server.read(&mut buffer).expect("receive");
                assert!(length > 0, "the connection ended");
                if buffer[length - 1] == 1 {
                    break sender.join().expect("send");
                }
            }
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
                let mut byte = [0];
                while byte == [0] {
                    server.read_exact(&mut byte).expect("receive");
                    server.write_all(&byte).expect("answer");
                }
            });
            let start = Instant::now();
            let mut count = 0_u32;
            let mut byte = [0];
            while byte == [0] {
                byte = [u8::from(start.elapsed() >= TIME)];
                client.write_all(&byte).expect("ask");
                client.read_exact(&mut byte).expect("an answer");
                count += 1;
            }
            f64::from(count) / start.elapsed().as_secs_f64()
        })
    }
}
