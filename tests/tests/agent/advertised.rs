//! A host that has its way to the world from advertisements of routers.

use weft_tests::frames::advertise_router;

use super::*;

#[test]
fn a_host_keeps_its_way_when_the_agent_has_it_route() {
    let cluster = Cluster::new(1);
    let router = cluster.router().netns().clone();
    let advertise = |node: &Node| advertise_router(&router, "wire0", || has_route(node));
    advertise(cluster.node(0));
    let fleet = Fleet::on(cluster, DUAL, &json!({}));
    let node = fleet.node(0);
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "1");
    assert!(has_route(node));
    node.command("ip -6 route del default proto ra");
    advertise(node);
}

fn has_route(node: &Node) -> bool {
    node.command("ip -6 route show default").contains("via fe80::77 dev eth0 proto ra")
}
