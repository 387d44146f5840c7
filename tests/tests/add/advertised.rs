//! A host that has its way to the world from advertisements of routers.

use serde_json::json;
use weft_tests::frames::advertise_router;
use weft_tests::{Host, Network, Outside, Pod, World, command};

const ACCEPT_RA: &str = "net/ipv6/conf/up0/accept_ra";

fn has_route() -> bool {
    command("ip -6 route show default").contains("via fe80::77 dev up0 proto ra")
}

/// A router says that it is there, and the host takes it.
#[track_caller]
fn advertise(outside: &Outside) {
    advertise_router(outside.netns(), "eth0", has_route);
}

#[test]
fn it_keeps_that_when_containers_come() {
    let host = Host::new();
    let outside = host.outside();
    advertise(&outside);
    assert_eq!(host.sysctl(ACCEPT_RA), "1");
    for _ in 0..2 {
        Network::dual().add(&Pod::new());
        assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
        assert!(has_route());
        command("ip -6 route del default");
        advertise(&outside);
    }
}

/// A link by which no router is heard is left alone, and so is one whose owner listens to no router.
#[test]
fn other_links_keep_their_settings() {
    let host = Host::new();
    let outside = host.outside();
    advertise(&outside);
    command("ip link add other0 up type bridge");
    host.set_sysctl(ACCEPT_RA, "0");
    Network::dual().add(&Pod::new());
    assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(host.sysctl("net/ipv6/conf/other0/accept_ra"), "1");
    assert_eq!(host.sysctl(ACCEPT_RA), "0");
}

/// The host forwards, but not from the link by which it has its way, and new links get no forwarding.
#[test]
fn a_bridge_that_is_made_to_forward_takes_it_from_no_link() {
    let host = Host::new();
    let outside = host.outside();
    host.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    for link in ["up0", "default"] {
        host.set_sysctl(&format!("net/ipv6/conf/{link}/forwarding"), "0");
    }
    advertise(&outside);
    Network::dual().add(&Pod::new());
    assert_eq!(host.sysctl("net/ipv6/conf/weft0/forwarding"), "1");
    assert!(has_route());
}

#[test]
fn it_keeps_that_when_an_add_fails() {
    let host = Host::new();
    let outside = host.outside();
    advertise(&outside);
    let pod = Pod::new();
    let before = World::of(&host, &[&pod]);
    // The container cannot have it, which it finds when all else is done.
    let routed = json!({ "ipam": { "routes": [{ "dst": "fd01::/64", "gw": "fd00:99::1" }] } });
    let error = Network::dual().with(&routed).add_call(&pod).run().any_error();
    assert!(error.details.contains("keep the routes that routers advertise"), "{}", error.details);
    before.assert_unchanged(&host, &[&pod], "an ADD that failed");
    assert_eq!(host.sysctl(ACCEPT_RA), "1");
    assert!(has_route());
}

/// A container's advertisement is not to configure the host, whoever was killed when the bridge was there and its settings were not.
#[test]
fn a_bridge_whose_maker_was_killed() {
    let host = Host::new();
    let pod = Pod::new();
    let setting = "net/ipv6/conf/weft0/accept_ra";
    let (file, kill) = (format!("/proc/sys/{setting}"), "inject=open,openat:signal=SIGKILL:when=1");
    let strace = ["strace", "-qq", "-o", "/dev/null", "-P", &file, "-e", "trace=open,openat", "-e", kill];
    assert!(!Network::dual().add_call(&pod).through(strace).run().succeeded());
    assert_eq!(host.sysctl(setting), "1");
    Network::dual().add(&pod);
    assert_eq!(host.sysctl(setting), "0");
    pod.assert_reaches([10, 88, 0, 1]);
}
