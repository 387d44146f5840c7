//! On a link of the namespace that the test runs in: the runner of `.cargo/config.toml` gives it one.

use std::time::Duration;

use super::*;

#[test]
#[expect(clippy::disallowed_methods, reason = "the other thread is who the first one waits for")]
fn a_route_by_a_gateway_waits_for_that_to_its_subnet() {
    let deadline = Deadline::after(Duration::from_secs(20));
    let mut pod = Pod::open(Path::new("/proc/self/ns/net"), deadline).unwrap();
    let name = "late0";
    pod.netlink.add_bridge(name, "02:00:00:00:00:01".parse().unwrap(), None).unwrap();
    pod.netlink.set_up(name).unwrap();
    let index = pod.netlink.link(name).unwrap().unwrap().index;
    let address: IpNetwork = "fd00:77::2/64".parse().unwrap();
    pod.netlink.add_address_without_route(index, address, true).unwrap();
    let by = |gateway: &str| Route {
        gw: Some(gateway.parse().unwrap()),
        ..Route::to("2001:db8::/32".parse().unwrap())
    };
    // Nobody will make a route to where no address leads.
    let Err(Fault::Net(error)) = pod.add_route(index, &by("fd00:99::1"), &[address]) else { panic!("added") };
    assert_eq!(error.errno, Errno::EHOSTUNREACH);
    let late = std::thread::spawn(move || {
        // `RTNLGRP_IPV6_ROUTE` is the eleventh bit of a socket's groups.
        let is_waited_for = || {
            let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            sockets.lines().any(|socket| socket.split_whitespace().nth(3) == Some("00000400"))
        };
        while !is_waited_for() {
            assert!(!deadline.expired(), "nobody waits for the route");
            std::thread::yield_now();
        }
        Netlink::open(deadline)
            .unwrap()
            .add_route(index, &Route::to("fd00:77::/64".parse().unwrap()))
            .unwrap();
    });
    let refused = pod.netlink.add_route(index, &by("fd00:77::1")).unwrap_err();
    assert_eq!(refused.errno, Errno::EHOSTUNREACH);
    pod.add_route(index, &by("fd00:77::1"), &[address]).unwrap();
    late.join().unwrap();
    let routes = pod.netlink.routes(index).unwrap();
    assert!(routes.iter().any(|route| route.gateway == by("fd00:77::1").gw), "{routes:?}");
}
