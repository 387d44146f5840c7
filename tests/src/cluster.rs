//! Several hosts on one network between them.

use crate::etcd::{Access, Etcd, Place};
use crate::host::Host;
use crate::node::Node;
use crate::tools;

/// Hosts, each a [`Node`], and the network that joins them: the underlay. It has one or several L2 segments, each a
/// bridge, and a router between those, where the thread of the test stays. The kernel clears everything away.
///
/// Segment 0 is 172.30.0.0/24 and fd30::/64, segment 1 is 172.30.1.0/24 and fd30:0:0:1::/64, and so on. The router has
/// number 1 on each, etcd's members count from 2, hosts from 11, in both families alike: 172.30.0.11 is also
/// fd30::11. A cable can be cut; delay and loss are for a [`crate::Relay`], as the kernels that this runs on have no netem.
pub struct Cluster {
    nodes: Vec<Node>,
    router: Host,
}

impl Cluster {
    /// Some hosts on one segment.
    pub fn new(nodes: u8) -> Self {
        Self::segments(&[nodes])
    }

    /// As many segments as there are numbers, each with that many hosts.
    pub fn segments(counts: &[u8]) -> Self {
        let router = Host::new();
        router.set_sysctl("net/ipv4/ip_forward", "1");
        router.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        // Duplicate address detection would make the first packets wait.
        router.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
        let mut nodes = Vec::new();
        for (segment, count) in (0..).zip(counts) {
            make_segment(segment);
            for number in 0..*count {
                nodes.push(Node::connect(&format!("host{}", nodes.len()), segment, 11 + number));
            }
        }
        Self { nodes, router }
    }

    /// The hosts, those of segment 0 first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One host, counted from 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The machine between the segments, where the thread of the test is.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// An etcd on segment 0, each member on a machine of its own: 172.30.0.2 and fd30::2, and so on.
    pub fn etcd(&self, members: u8, access: Access) -> Etcd {
        let place = |number| {
            let machine = Node::connect(&format!("etcd{number}"), 0, 2 + number);
            let addresses = vec![machine.ipv4.into(), machine.ipv6.into()];
            Place { netns: machine.netns().clone(), addresses, cable: Some(machine.cable) }
        };
        Etcd::start((0..members).map(place).collect(), access)
    }
}

/// A bridge with the router's addresses.
fn make_segment(segment: u8) {
    // Without a querier, snooping would only cost.
    tools::command(&format!("ip link add wire{segment} up type bridge mcast_snooping 0"));
    tools::command(&format!("ip addr add 172.30.{segment}.1/24 dev wire{segment}"));
    tools::command(&format!("ip addr add fd30:0:0:{segment}::1/64 dev wire{segment} nodad"));
}
