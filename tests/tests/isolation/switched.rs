//! What a network says of its containers is what its last configuration says, also for those that are there.

use super::*;

/// Whether a datagram gets from one container to another, answered or not.
fn is_heard(from: &Pod, to: &Pod, address: IpAddr, is_open: bool) -> bool {
    let service = to.inside(|| UdpSocket::bind((address, PORT)).expect("a socket"));
    let time = if is_open { PATIENCE } else { Duration::from_millis(200) };
    service.set_read_timeout(Some(time)).expect("a limit");
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.inside(|| UdpSocket::bind(any).expect("a socket"));
    client.send_to(b"hello", (address, PORT)).expect("send");
    service.recv(&mut [0; 8]).is_ok()
}

#[test]
fn icc_is_for_containers_that_are_there_as_for_those_that_come() {
    let host = Host::new();
    host.set_br_netfilter(false);
    let says = |icc: bool| one().with(&json!({ "icc": icc }));
    let (first, second) = (Pod::new(), Pod::new());
    let [(at_first, of_first), (at_second, of_second)] = [&first, &second].map(|pod| serve(&says(true), pod));
    for icc in [true, false, true, false] {
        let (network, next) = (says(icc), Pod::new());
        let result = network.add(&next);
        let (at_next, of_next) = (Mirror::on(&next, PORT), ips(&result));
        for (from, to, mirror, addresses, who) in [
            (&first, &second, &at_second, &of_second, "between those that were there"),
            (&first, &next, &at_next, &of_next, "to one that came"),
            (&next, &first, &at_first, &of_first, "from one that came"),
        ] {
            for address in addresses {
                let what = format!("icc: {icc}, {who}");
                assert_way(icc, mirror, from, *address, &what);
                assert_eq!(is_heard(from, to, *address, icc), icc, "{what}, a datagram to {address}");
            }
        }
        network.check(&next, &result).done();
        network.del(&next);
    }
}

/// A network without addresses has only its ports.
#[test]
fn icc_is_for_ports_without_addresses_too() {
    let _host = Host::new();
    let (sender, receiver) = (Pod::new(), Pod::new());
    for (at, icc) in [true, true, false, true].into_iter().enumerate() {
        let network = Network::new("flat", &[]).with(&json!({ "icc": icc }));
        let next = Pod::new();
        let pod = [&sender, &receiver].get(at).copied().unwrap_or(&next);
        let result = network.add(pod);
        pod.command("ip link set eth0 up");
        network.check(pod, &result).done();
        if at > 0 {
            let (from, mut to) = (Wire::of(&sender), Wire::of(&receiver));
            let frame = Frame::new(to.mac, from.mac, 0x88b5, format!("frame {at}").as_bytes());
            from.send(&frame);
            let time = Duration::from_millis(if icc { 3000 } else { 200 });
            assert_eq!(to.receives(&frame, time), icc, "icc: {icc}, after {at} containers");
        }
    }
}

/// By the gateway's address and by the bridge's link-local one.
#[test]
fn host_access_is_for_containers_that_are_there_as_for_those_that_come() {
    let host = Host::new();
    let service = Mirror::on(host.netns(), PORT);
    let mut all = Vec::new();
    for has_access in [true, false, true] {
        let pod = Pod::new();
        one().with(&json!({ "hostAccess": has_access })).add(&pod);
        all.push(pod);
        for pod in &all {
            let what = format!("hostAccess: {has_access}, from {} of {}", pod.id, all.len());
            for gateway in ["10.88.0.1", "fd00:88::1"] {
                assert_way(has_access, &service, pod, gateway.parse().expect("an address"), &what);
            }
            assert_eq!(on_link_to_the_host(&host, pod), has_access, "{what}, by a link-local address");
        }
    }
}

/// As long as `icc` is true the host tells containers that send by it of the shorter way, on the link, which is closed when it is false again.
#[test]
fn the_ways_of_containers_that_are_there_stay_as_they_are() {
    let _host = Host::new();
    let whole = json!({ "prefix": "10.88.0.0/24" });
    let whole_v6 = json!({ "prefix": "fd00:88::/64" });
    let allow = json!([{ "from": whole, "to": whole }, { "from": whole_v6, "to": whole_v6 }]);
    let says =
        |icc: bool| one().with(&json!({ "icc": icc, "allow": if icc { json!([]) } else { allow.clone() } }));
    let (client, server) = (Pod::new(), Pod::new());
    says(false).add(&client);
    let (mirror, addresses) = serve(&says(false), &server);
    for icc in [true, false, true, false] {
        let next = Pod::new();
        says(icc).add(&next);
        for address in addresses.iter().cycle().take(8) {
            assert_way(true, &mirror, &client, *address, &format!("icc: {icc}"));
            // The host has answered as often as it tells of the way, and the neighbour is known.
            client.assert_reaches(*address);
        }
        for family in ["-4", "-6"] {
            let taken = client.command(&format!("ip {family} route show cache"));
            assert_eq!(taken, "", "icc: {icc}");
        }
        says(icc).del(&next);
    }
}
