//! Host ports of another plugin's interface, in both families.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Host, Mirror, NetNs, Outside, Place, Pod, World, command, eventually};

use crate::chain::Chain;
use crate::port_alone;

const PATIENCE: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(50);

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn chain() -> Chain {
    Chain::new("one", "br1", 98)
}

/// ::1 is the host's own, as the kernel routes nothing from it to another link.
#[test]
fn who_reaches_them_in_both_families() {
    let host = Host::new();
    let outside = host.outside();
    let (web, neighbour) = (Pod::new(), Pod::new());
    let published = chain().on(&json!({ "hairpinMode": true })).with(&port_alone());
    published.add(&web);
    chain().add(&neighbour);
    let mirror = Mirror::on(&web, 80);
    let own: &NetNs = host.netns();
    for (family, gateway) in ["10.98.0.1", "fd00:98::1"].into_iter().enumerate() {
        let at = Outside::HOST[family];
        let seen = mirror.seen(&outside, (addr(at), 8080));
        assert_eq!(seen, Some(addr(Outside::PEER[family])), "the outside's address is kept, at {at}");
        for at in [at, gateway] {
            assert!(mirror.seen(own, (addr(at), 8080)).is_some(), "the host at {at}");
            for (who, pod) in [("a neighbour", &neighbour), ("itself", &web)] {
                assert_eq!(mirror.seen(pod, (addr(at), 8080)), Some(addr(gateway)), "{who} at {at}");
            }
        }
    }
    assert_eq!(mirror.seen(own, (addr("127.0.0.1"), 8080)), Some(addr("10.98.0.1")));
    assert!(mirror.is_closed_to(own, (addr("::1"), 8080)));
}

fn socket(place: &impl Place, at: (&str, u16)) -> UdpSocket {
    let socket = place.there(|| UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(PACE)).unwrap();
    socket
}

/// The container and its interface are there still; what a client sends to the port is the host's.
#[test]
fn udp_is_the_hosts_after_del() {
    let host = Host::new();
    let outside = host.outside();
    let mapping = json!({ "hostPort": 5353, "containerPort": 53, "protocol": "udp" });
    let published = chain().with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }));
    let pod = Pod::new();
    let previous = published.previous(&pod);
    let network = published.behind(&previous);
    for way in ["DEL", "DEL, no record", "GC"] {
        network.add(&pod);
        let server = socket(&pod, ("::", 53));
        let clients = Outside::HOST.map(addr).map(|at| {
            let client = socket(&outside, (if at.is_ipv4() { "0.0.0.0" } else { "::" }, 0));
            assert_heard(&server, &client, at, "the container");
            (at, client)
        });
        let hosts = socket(host.netns(), ("::", 5353));
        match way {
            "GC" => network.gc(&[]),
            _ => {
                if way != "DEL" {
                    command("find /run/weft -path */attachments/* -type f -delete");
                }
                network.del(&pod);
            }
        }
        for (at, client) in &clients {
            assert_heard(&hosts, client, *at, way);
        }
    }
}

#[track_caller]
fn assert_heard(server: &UdpSocket, client: &UdpSocket, at: IpAddr, what: &str) {
    eventually(PATIENCE, &format!("{what}: it is heard at {at}"), || {
        // What the one before met may come back.
        let _refused = client.send_to(b"?", (at, 5353));
        server.recv_from(&mut [0; 8]).ok()
    });
}

/// STATUS knows when an ADD with a port would fail.
#[test]
fn status_rehearses_them() {
    let host = Host::new();
    let pod = Pod::new();
    let capable = |keys: &Value| {
        let chain = chain().with(&json!({ "capabilities": { "portMappings": true } })).with(keys);
        chain.behind(&Value::Null).with(&json!({ "cniVersion": "1.1.0" }))
    };
    let sources = json!({ "sources": ["192.0.2.0/24"] });
    let chain = "table inet weft { chain hostport { }\n chain mine { jump hostport; }\n }\n";
    let set = "table inet weft { set hostport-sources-v4 { type ipv4_addr; }\n chain mine { ip saddr @hostport-sources-v4 drop; }\n }\n";
    for (theirs, keys) in [(chain, json!({})), (set, sources)] {
        host.nft(theirs);
        let before = World::of(&host, &[&pod]);
        capable(&keys).status().error_code(50).assert_names(&["hostport"]);
        before.assert_unchanged(&host, &[&pod], "STATUS");
        command("nft flush ruleset");
        capable(&keys).status().done();
        assert!(!host.ruleset().contains("hostport"), "STATUS changes nothing");
    }
}

/// By which bridge containers are reached shows when there is one.
#[test]
fn status_tells_of_a_firewall_that_drops_what_comes_to_them() {
    let host = Host::new();
    let outside = host.outside();
    let web = Pod::new();
    let published = chain().with(&port_alone()).with(&json!({ "capabilities": { "portMappings": true } }));
    let network = published.behind(&Value::Null).with(&json!({ "cniVersion": "1.1.0" }));
    published.add(&web);
    let mirror = Mirror::on(&web, 80);
    network.status().done();
    host.nft("table inet filter { chain forward { type filter hook forward priority 0; policy drop; }\n }\n");
    network.status().error_code(51).assert_names(&["br1", "host ports", "inet filter"]);
    for at in Outside::HOST.map(addr) {
        assert!(mirror.is_closed_to(&outside, (at, 8080)), "at {at}");
    }
    command("nft delete table inet filter");
    network.status().done();
    network.gc(&[]);
}
