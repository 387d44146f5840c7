//! What a packet from container to container costs where many containers have many rules.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use weft_tests::{Network, Pod, ip};

use super::traffic::stay_on;
use super::{Host, Peers, Row, Target, interleave, process};

const CONTAINERS: u16 = 1000;
/// Of each container: to one port of another one, to ports of another one, and from a prefix.
const RULES: [(&str, u16); 3] = [("allow-port-v4", 6), ("allow-ports-v4", 2), ("allow-from-v4", 2)];
/// How many datagrams one measurement sends, and how many measurements there are.
const DATAGRAMS: u32 = 5_000;
const RUNS: usize = 60;
const ALLOWED: u16 = 80;

pub(super) fn rules(_peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("rules-many"), Host::new("rules-few")];
    let ways = hosts.each_ref().map(Way::new);
    hosts[0].inside(|| nft(&elements()));
    let rules = CONTAINERS * RULES.map(|(_, of_each)| of_each).iter().sum::<u16>();
    let peer = format!("the same without the others' {rules} rules");
    let row = |what: &str, target: fn(&Way) -> &UdpSocket| {
        let cost = |way| nanoseconds(target(way));
        // The first pair is not counted: neighbours are looked for.
        let pairs = interleave(RUNS + 1, |_| cost(&ways[0]), |_| cost(&ways[1]));
        let what = format!("{what}, {CONTAINERS} containers with rules");
        Row::new(&what, &peer, "ns", Target::Ratio(1.05), &pairs[1..])
    };
    let rows = vec![
        row("datagram of a flow that a rule allows", |way| &way.allowed),
        row("datagram that no rule allows", |way| &way.denied),
    ];
    ways.iter().for_each(Way::assert_told_apart);
    rows
}

/// Two containers that reach each other only by a rule.
struct Way {
    allowed: UdpSocket,
    denied: UdpSocket,
    /// What gets the one and would get the other.
    servers: [UdpSocket; 2],
}

impl Way {
    fn new(host: &Host) -> Self {
        let rule = json!({ "from": { "prefix": "10.88.0.0/16" }, "protocol": "udp", "port": ALLOWED });
        let network = Network::new("rules", &["10.88.0.0/16"]).with(&json!({
            "isDefaultGateway": true, "icc": false, "stateDir": host.state(), "ipam": { "dataDir": host.state() },
        }));
        let attach = |name: &str, network: Network| {
            host.inside(|| {
                let pod =
                    Pod::named(&format!("{name}-{}", host.state().file_name().expect("a name").display()));
                let address = ip(&network.add(&pod));
                (pod, address)
            })
        };
        let (client, _) = attach("client", network.clone());
        let server = network.with(&json!({ "args": { "weft": { "allow": [rule] } } }));
        let (server, address) = attach("server", server);
        let servers = [ALLOWED, ALLOWED + 1]
            .map(|port| server.inside(|| UdpSocket::bind((address, port)).expect("a socket")));
        let to = |port| client.inside(|| connected((address, port).into()));
        let way = Self { allowed: to(ALLOWED), denied: to(ALLOWED + 1), servers };
        way.answer();
        way
    }

    /// Conntrack takes a flow of UDP for a connection when it was answered.
    fn answer(&self) {
        let mut buffer = [0; 8];
        self.allowed.send(b"question").expect("send");
        let (_, client) = self.servers[0].recv_from(&mut buffer).expect("a question");
        self.servers[0].send_to(b"answer", client).expect("answer");
        self.allowed.recv(&mut buffer).expect("an answer");
    }

    /// What was measured was what it is called.
    fn assert_told_apart(&self) {
        let heard = self.servers.each_ref().map(|server| {
            server.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit");
            server.recv(&mut [0; 8]).is_ok()
        });
        assert_eq!(heard, [true, false]);
    }
}

fn connected(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    socket.connect(to).expect("a connected socket");
    socket
}

/// What a datagram costs its sender's thread, in which all of its way is gone. Nobody reads it, so the last ones are dropped where
/// they would wait.
fn nanoseconds(socket: &UdpSocket) -> f64 {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            stay_on(0);
            let start = processor_time();
            for _ in 0..DATAGRAMS {
                socket.send(b"datagram").expect("send");
            }
            (processor_time() - start).as_secs_f64() * 1e9 / f64::from(DATAGRAMS)
        });
        sending.join().expect("send")
    })
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread has a clock").into()
}

/// What other containers would have: the elements that their rules come to, and the guard's.
fn elements() -> String {
    let address = |number: u16| IpAddr::from([10, 88, (number >> 8) as u8 + 8, number as u8]);
    let mut text = String::new();
    for container in 0..CONTAINERS {
        let own = address(container);
        for (set, count) in RULES {
            for rule in 0..count {
                let other = address((container + rule + 1) % CONTAINERS);
                let (from, port) = match set {
                    "allow-port-v4" => (other.to_string(), "80".to_owned()),
                    "allow-ports-v4" => (other.to_string(), "8000-8099".to_owned()),
                    _ => (format!("192.0.{rule}.0-192.0.{rule}.255"), "443-444".to_owned()),
                };
                writeln!(text, "add element inet weft {set} {{ {from} . {own} . tcp . {port} }}")
                    .expect("write to text");
            }
        }
        let mac = format!("02:00:00:00:{:02x}:{:02x}", container >> 8, container & 0xff);
        writeln!(
            text,
            "add element bridge weft guard-v4 {{ {} . {mac} . {own} }}",
            100_000 + u32::from(container)
        )
        .expect("write to text");
    }
    text
}

fn nft(commands: &str) {
    let file = "/run/bench/rules.nft";
    std::fs::write(file, commands).expect("write the elements");
    process::measure(Command::new("nft").args(["-f", file]), &[]);
}
