//! Containers with a port of the host.

use super::{
    AT_ONCE, BURST, Backend, Container, Host, Peers, Row, SLOW_RUNS, Shape, Suite, Target, at_once,
    attach_and_detach, interleave, process, storm, walls,
};

/// Containers with a port that are present already.
const PRESENT: usize = 500;

pub(super) fn ports(peers: &Peers) -> Vec<Row> {
    let mut rows = Vec::new();
    for (backend, name) in [(Backend::Iptables, "iptables"), (Backend::Nftables, "nftables")] {
        let with_port = Shape { port: Some(backend), ..Shape::default() };
        let and_masquerade = Shape { masquerade: Some(backend), ..with_port };
        for (shape, what, add, del) in
            [(with_port, "1 host port", 0.08, 0.03), (and_masquerade, "1 host port, masquerade", 0.05, 0.02)]
        {
            let hosts = [Host::new(&format!("{name}-{what}-weft")), Host::new(&format!("{name}-{what}"))];
            let ours = peers.network(&hosts[0], Suite::Weft, shape);
            let theirs = peers.network(&hosts[1], Suite::Reference, shape);
            let (adds, dels) = attach_and_detach(&ours, &theirs, SLOW_RUNS);
            let peer = format!("bridge + host-local + portmap, {name}");
            rows.push(Row::new(&format!("ADD, {what}"), &peer, "ms", Target::Ratio(add), &walls(&adds)));
            rows.push(Row::new(&format!("DEL, {what}"), &peer, "ms", Target::Ratio(del), &walls(&dels)));
        }
    }
    rows.push(burst(peers));
    rows.push(many(peers));
    rows
}

fn burst(peers: &Peers) -> Row {
    let shape = Shape { port: Some(Backend::Iptables), ..Shape::default() };
    let hosts = [Host::new("ports-burst-weft"), Host::new("ports-burst")];
    let ours = peers.network(&hosts[0], Suite::Weft, shape);
    let theirs = peers.network(&hosts[1], Suite::Reference, shape);
    let containers = [Container::many(BURST), Container::many(BURST)];
    // One burst of the peers takes several seconds.
    let pairs = interleave(4, |_| storm(&ours, &containers[0]).0, |_| storm(&theirs, &containers[1]).0);
    let what = format!("{BURST} ADD with a host port, {AT_ONCE} at once");
    Row::new(&what, "bridge + host-local + portmap, iptables", "ms", Target::Ratio(0.06), &pairs[1..])
}

fn many(peers: &Peers) -> Row {
    let shape = Shape { port: Some(Backend::Iptables), ..Shape::default() };
    // Not dropped before the process ends, as the kernel would clear them away while other rows are measured.
    let hosts: &'static [Host; 2] =
        Box::leak(Box::new([Host::new("ports-many-full"), Host::new("ports-many-empty")]));
    let present: &'static [Container] = Box::leak(Container::many(PRESENT).into_boxed_slice());
    let full = peers.network(&hosts[0], Suite::Weft, shape);
    let empty = peers.network(&hosts[1], Suite::Weft, shape);
    at_once(present.iter().collect(), |container| full.add(container));
    process::settle();
    hosts[0].quiet();
    let (adds, _) = attach_and_detach(&full, &empty, SLOW_RUNS);
    let what = format!("ADD with a host port, {PRESENT} such present");
    Row::new(&what, "the same with none present", "ms", Target::Ratio(1.3), &walls(&adds))
}
