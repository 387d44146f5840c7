//! Host ports of UDP: what the kernel knows of a client's flow does not outlive the container.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use weft_tests::{Host, Network, Outside, Place, Pod, command, eventually, ips};

use crate::{addr, network, with};

/// On a busy machine a first question for a neighbour may be lost, and the second one comes after a second. The kernel keeps
/// a flow for 30 s at least, also one that is not used.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a socket waits.
const PACE: Duration = Duration::from_millis(50);
const ANY: [&str; 2] = ["0.0.0.0", "::"];

fn published() -> Network {
    with(&network(), &[json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" })])
}

fn socket(place: &impl Place, at: (&str, u16)) -> UdpSocket {
    let socket = place.there(|| UdpSocket::bind(at).unwrap_or_else(|error| panic!("{at:?}: {error}")));
    socket.set_read_timeout(Some(PACE)).expect("a limit");
    socket
}

fn ask(client: &UdpSocket, at: IpAddr) {
    match client.send_to(b"?", (at, 5353)) {
        Ok(_) => {}
        // What the last one met.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => panic!("send to {at}: {error}"),
    }
}

/// Asks until the server hears it. Returns whom it heard.
fn heard(server: &UdpSocket, client: &UdpSocket, at: IpAddr, what: &str) -> SocketAddr {
    eventually(PATIENCE, what, || {
        ask(client, at);
        Some(server.recv_from(&mut [0; 8]).ok()?.1)
    })
}

/// A client that keeps sending reaches the new container within a second, and hears it: the kernel's record of the old one's flow
/// is gone. The second is counted in what it sends, as on a machine that stands still nobody sends.
#[test]
fn it_follows_the_container_in_both_families() {
    let host = Host::new();
    let outside = host.outside();
    for (family, at) in Outside::HOST.map(addr).into_iter().enumerate() {
        let client = socket(&outside, (ANY[family], 0));
        for text in [b"one".as_slice(), b"two", b"three"] {
            let pod = Pod::new();
            // A question for a neighbour that is lost is repeated after a second: that is not what is measured.
            for address in ips(&published().add(&pod)) {
                command(&format!("ping -n -c 1 -W 5 {address}"));
            }
            let server = socket(&pod, (ANY[family], 53));
            // Each that is in vain waits once for as long as sockets wait.
            let is_answered = (0..Duration::from_secs(1).as_millis() / PACE.as_millis()).any(|_| {
                ask(&client, at);
                let Ok((_, from)) = server.recv_from(&mut [0; 8]) else { return false };
                assert_eq!(from.ip(), addr(Outside::PEER[family]), "the client's address is kept");
                server.send_to(text, from).expect("answer");
                let mut buffer = [0; 8];
                let Ok((length, by)) = client.recv_from(&mut buffer) else { return false };
                assert_eq!(by, SocketAddr::new(at, 5353), "it comes from where the client sent to");
                &buffer[..length] == text
            });
            assert!(is_answered, "who asks for a second at {at} has no answer of {text:?}");
            published().del(&pod);
            // It also sends while nobody is there.
            ask(&client, at);
        }
    }
}

/// The container's end is the end of its flows: nobody need take the port before what comes there is the host's.
#[test]
fn after_del_the_port_is_the_hosts() {
    let host = Host::new();
    let outside = host.outside();
    let neighbour = Pod::new();
    network().add(&neighbour);
    for (family, any) in ANY.into_iter().enumerate() {
        let at = addr(Outside::HOST[family]);
        let pod = Pod::new();
        published().add(&pod);
        let server = socket(&pod, (any, 53));
        let clients =
            [socket(&outside, (any, 0)), socket(&neighbour, (any, 0)), socket(host.netns(), (any, 0))];
        for client in &clients {
            heard(&server, client, at, "the container hears it");
        }
        let hosts = socket(host.netns(), (any, 5353));
        published().del(&pod);
        for client in &clients {
            heard(&hosts, client, at, "the host hears it");
        }
    }
}

/// Also where nothing is on file of the container, and for single ports, ports of one address and ranges alike.
#[test]
fn flows_are_forgotten_without_a_record() {
    let host = Host::new();
    let outside = host.outside();
    let range =
        || (5350..5360).map(|port| json!({ "hostPort": port, "containerPort": port, "protocol": "udp" }));
    for (way, family, any) in ["DEL", "GC"].into_iter().flat_map(|way| [(way, 0, ANY[0]), (way, 1, ANY[1])]) {
        let at = addr(Outside::HOST[family]);
        let single = json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" });
        let of_one = json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": at });
        for (mappings, port) in [(vec![single], 53), (vec![of_one], 53), (range().collect(), 5353)] {
            let what = format!("{way} without a record, {at}, port {port}, {}", mappings.len());
            let network = with(&network(), &mappings);
            let pod = Pod::new();
            network.add(&pod);
            let (server, client) = (socket(&pod, (any, port)), socket(&outside, (any, 0)));
            heard(&server, &client, at, "the container hears it");
            command("find /run/weft -path */attachments/* -type f -delete");
            let hosts = socket(host.netns(), (any, 5353));
            match way {
                "DEL" => network.del(&pod),
                _ => network.gc(&[]),
            }
            heard(&hosts, &client, at, &format!("the host hears it after {what}"));
        }
    }
}

/// As above, where rules alone do not do it: a flow that is known goes to the container also when its mapping is gone.
#[test]
fn without_the_mapping_a_known_flow_goes_on_until_del() {
    let host = Host::new();
    let outside = host.outside();
    for (family, any) in ANY.into_iter().enumerate() {
        let at = addr(Outside::HOST[family]);
        let pod = Pod::new();
        published().add(&pod);
        let (server, hosts) = (socket(&pod, (any, 53)), socket(host.netns(), (any, 5353)));
        let client = socket(&outside, (any, 0));
        heard(&server, &client, at, "the container hears it");
        let map = ["hostport-v4", "hostport-v6"][family];
        command(&format!("nft delete element inet weft {map} {{ udp . 5353 }}"));
        heard(&server, &client, at, "the flow is still translated");
        assert!(hosts.recv_from(&mut [0; 8]).is_err(), "nothing came to the host");
        let stranger = socket(&outside, (any, 0));
        heard(&hosts, &stranger, at, "one without a flow comes to the host");
        published().del(&pod);
        heard(&hosts, &client, at, "the host hears it");
    }
}
