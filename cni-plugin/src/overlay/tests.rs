use proptest::prelude::*;

use super::*;

const VXLAN: &str = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}"#;

fn record(public: &str, mac: &str) -> String {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#)
}

fn lease(config: &str) -> HostLease {
    HostLease {
        prefix: "/n".into(),
        config: config.into(),
        key: "10.240.1.0-24".into(),
        value: record("192.0.2.1", "02:00:00:00:00:01"),
        lease_id: 1,
        pinned: false,
        ttl: 60,
        renewed: 0,
        local: Vec::new(),
        underlay: String::new(),
        holder: String::new(),
    }
}

fn peers(records: &[(&str, String)]) -> Peers {
    let records = records.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Peers { revision: 1, records, ..Peers::default() }
}

fn rejected(records: &[(&str, String)]) -> Vec<(String, &'static str)> {
    let (_, rejected) = Overlay::new(&lease(VXLAN), &peers(records)).unwrap();
    rejected.into_iter().map(|record| (record.key, record.kind)).collect()
}

#[test]
fn a_device_like_flannels_and_a_peer() {
    let other = ("10.240.2.0-24", record("192.0.2.2", "02:00:00:00:00:02"));
    let (overlay, rejected) = Overlay::new(&lease(VXLAN), &peers(&[other])).unwrap();
    assert!(rejected.is_empty());
    let side = &overlay.sides[0];
    let device = side.device.as_ref().unwrap();
    assert_eq!((device.name.as_str(), device.vni, device.port, device.learning), ("weft.1", 1, 8472, false));
    assert_eq!(device.address, "10.240.1.0/32".parse::<IpNetwork>().unwrap());
    assert_eq!(
        (side.local.to_string().as_str(), side.direct, overlay.peers(&[])),
        ("192.0.2.1", Direct::None, 1)
    );
}

/// flannel's key is about the packets between hosts (`MTU: devAttrs.MTU - 50` in pkg/backend/vxlan/device.go).
#[test]
fn the_networks_mtu_is_that_of_outer_packets() {
    let device = |outer_mtu, address: &str| Device {
        name: "weft.1".into(),
        owner: "weft:/n".into(),
        vni: 1,
        port: 8472,
        learning: false,
        mac: "02:00:00:00:00:01".parse().unwrap(),
        outer_mtu,
        address: address.parse().unwrap(),
    };
    for (outer, underlay, v4, v6) in [
        (None, 1500, 1450, 1430),
        (Some(1400), 1500, 1350, 1330),
        (Some(9000), 1500, 1450, 1430),
        (Some(1500), 1400, 1350, 1330),
        (None, 40, 0, 0),
    ] {
        let both = ["10.240.1.0/32", "fd00::/128"].map(|address| device(outer, address).mtu(underlay));
        assert_eq!(both, [v4, v6], "{outer:?} on {underlay}");
    }
    let config = r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan", "MTU": 1400}}"#;
    let (overlay, _) = Overlay::new(&lease(config), &Peers::default()).unwrap();
    assert_eq!(overlay.sides[0].device.as_ref().unwrap().mtu(1500), 1350);
}

#[test]
fn hosts_that_cannot_be_reached_are_counted_apart() {
    let other = |number: u8| record(&format!("192.0.2.{number}"), &format!("02:00:00:00:00:0{number}"));
    let two = [("10.240.2.0-24", other(2)), ("10.240.3.0-24", other(3))];
    let (overlay, _) = Overlay::new(&lease(VXLAN), &peers(&two)).unwrap();
    let subnet = "10.240.3.0/24".parse().unwrap();
    let lost = Unreached { subnet, kind: "not on the link", reason: "192.0.2.3".into() };
    assert_eq!((overlay.peers(&[]), overlay.peers(&[lost])), (2, 1));
}

#[test]
fn behind_a_router_packets_leave_with_the_interfaces_address() {
    let behind = HostLease { local: vec![[10, 0, 0, 5].into()], ..lease(VXLAN) };
    let (overlay, _) = Overlay::new(&behind, &Peers::default()).unwrap();
    assert_eq!(overlay.sides[0].local, IpAddr::from([10, 0, 0, 5]));
}

#[test]
fn nobody_takes_what_is_anothers() {
    let mac = "02:00:00:00:00:02";
    for (key, value, kind) in [
        ("10.240.2.0-24", "{]".to_owned(), "unreadable"),
        ("nonsense", record("192.0.2.2", mac), "unreadable"),
        ("10.240.2.0-24", record("192.0.2.2", "02:00:00:00:02"), "unreadable"),
        ("10.240.2.0-24", record("192.0.2.2", "01:00:00:00:00:02"), "unreadable"),
        ("10.240.2.0-24", record("0.0.0.0", mac), "unreadable"),
        ("10.240.2.0-24", record("127.0.0.1", mac), "unreadable"),
        ("10.240.2.0-24", record("224.0.0.1", mac), "unreadable"),
        ("10.240.2.0-24", record("192.0.2.2", mac).replace("\"VNI\":1", "\"VNI\":2"), "another backend"),
        ("10.96.2.0-24", record("192.0.2.2", mac), "outside of the network"),
        ("10.240.0.0-16", record("192.0.2.2", mac), "outside of the network"),
        ("10.240.1.0-24&fd00::-64", record("192.0.2.2", mac), "unreadable"),
        ("10.240.2.0-24", record("192.0.2.1", mac), "this host's address"),
        ("10.240.2.0-24", record("192.0.2.2", "02:00:00:00:00:01"), "this host's VTEP"),
    ] {
        assert_eq!(rejected(&[(key, value.clone())]), [(key.to_owned(), kind)], "{value}");
    }
    let both = format!(
        r#"{{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"vxlan","BackendData":{0},"BackendV6Data":{0}}}"#,
        r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}"#
    );
    assert_eq!(rejected(&[("10.240.1.0-24&fd00:0:0:1::-64", both)])[0].1, "this host's subnet");
    let two = [("10.240.2.0-24", record("192.0.2.2", mac)), ("10.240.3.0-24", record("192.0.2.3", mac))];
    assert_eq!(rejected(&two), [("10.240.3.0-24".to_owned(), "another host's VTEP")]);
    // Of one host that has moved: both lead to it.
    assert_eq!(rejected(&[two[0].clone(), ("10.240.3.0-24", record("192.0.2.2", mac))]), []);
}

const DUAL: &str = r#"{"Network": "10.240.0.0/12", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#;
const V6: &str =
    r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#;
const OF_BOTH: &str = "10.240.2.0-24&fd00:0:0:2::-64";

fn data(mac: &str) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)
}

fn dual_record(public: &str, v4: &str, public_v6: &str, v6: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":{public_v6},"BackendType":"vxlan","BackendData":{v4},"BackendV6Data":{v6}}}"#
    )
}

/// This host's in a network of both families, and in one of IPv6.
fn own_leases() -> [HostLease; 2] {
    let (own, public_v6) = (data("02:00:00:00:00:01"), r#""2001:db8::1""#);
    let both = dual_record("192.0.2.1", &own, public_v6, &own);
    let v6 = dual_record("0.0.0.0", "null", public_v6, &own);
    [
        HostLease { key: "10.240.1.0-24&fd00:0:0:1::-64".into(), value: both, ..lease(DUAL) },
        HostLease { key: "0.0.0.0-0&fd00:0:0:1::-64".into(), value: v6, ..lease(V6) },
    ]
}

/// Whether a host is followed, and why not.
fn verdict(lease: &HostLease, key: &str, value: &str) -> (Vec<&'static str>, usize) {
    let (overlay, rejected) = Overlay::new(lease, &peers(&[(key, value.to_owned())])).unwrap();
    (rejected.iter().map(|record| record.kind).collect(), overlay.peers(&[]))
}

/// Alone, and beside a good half: half a host is none.
#[test]
fn nobody_takes_what_is_anothers_in_ipv6() {
    let [dual, alone] = own_leases();
    let (subnet, public, good) = ("fd00:0:0:2::-64", r#""2001:db8::2""#, data("02:00:00:00:00:02"));
    for (subnet, public, bad, kind) in [
        (subnet, r#""::""#, good.clone(), "unreadable"),
        (subnet, r#""::1""#, good.clone(), "unreadable"),
        (subnet, r#""ff02::1""#, good.clone(), "unreadable"),
        (subnet, r#""192.0.2.2""#, good.clone(), "unreadable"),
        (subnet, "null", good.clone(), "unreadable"),
        (subnet, public, data("02:00:00:00:02"), "unreadable"),
        (subnet, public, "null".into(), "unreadable"),
        (subnet, public, data("33:33:00:00:00:01"), "unreadable"),
        (subnet, r#""2001:db8::1""#, good.clone(), "this host's address"),
        (subnet, public, data("02:00:00:00:00:01"), "this host's VTEP"),
        ("fd01:0:0:2::-64", public, good.clone(), "outside of the network"),
        ("fd00:0:0:2::-60", public, good.clone(), "unreadable"),
        ("fd00:0:0:100::-56", public, good.clone(), "outside of the network"),
        (subnet, public, good.replace(":1,", ":2,"), "another backend"),
    ] {
        let record = dual_record("0.0.0.0", "null", public, &bad);
        assert_eq!(verdict(&alone, &format!("0.0.0.0-0&{subnet}"), &record), (vec![kind], 0), "{record}");
        let record = dual_record("192.0.2.2", &good, public, &bad);
        // One VNI in both families is another one; two are no record.
        let kind = if kind == "another backend" { "unreadable" } else { kind };
        assert_eq!(verdict(&dual, &format!("10.240.2.0-24&{subnet}"), &record), (vec![kind], 0), "{record}");
    }
}

#[test]
fn nobody_takes_what_is_anothers_beside_a_good_half_of_ipv6() {
    let [dual, _] = own_leases();
    let (public, good) = ("192.0.2.2", data("02:00:00:00:00:02"));
    for (key, public, bad, kind) in [
        (OF_BOTH, "0.0.0.0", good.clone(), "unreadable"),
        (OF_BOTH, "192.0.2.1", good.clone(), "this host's address"),
        (OF_BOTH, public, data("02:00:00:00:02"), "unreadable"),
        (OF_BOTH, public, data("02:00:00:00:00:01"), "this host's VTEP"),
        ("10.96.2.0-24&fd00:0:0:2::-64", public, good.clone(), "outside of the network"),
        ("10.240.2.0-24&fd00:0:0:1::-64", public, good.clone(), "this host's subnet"),
    ] {
        let record = dual_record(public, &bad, r#""2001:db8::2""#, &good);
        assert_eq!(verdict(&dual, key, &record), (vec![kind], 0), "{record}");
    }
    let record = dual_record(public, &good, r#""2001:db8::2""#, &good);
    assert_eq!(verdict(&dual, OF_BOTH, &record), (Vec::new(), 1));
}

#[test]
fn who_comes_later_takes_nothing_from_who_is_there() {
    let both = |host: u8, mac: u8| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{mac}"}}"#);
        format!(
            r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":"2001:db8::{host}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
        )
    };
    let own = HostLease { key: "10.240.1.0-24&fd00:0:0:1::-64".into(), value: both(1, 1), ..lease(DUAL) };
    for (one, other, kind) in [
        (("10.240.2.0-24&fd00:0:0:2::-64", 2), ("10.240.3.0-24&fd00:0:0:3::-64", 2), "another host's VTEP"),
        (("10.240.2.0-24&fd00:0:0:2::-64", 2), ("10.240.2.0-24&fd00:0:0:3::-64", 3), "another host's subnet"),
        (("10.240.2.0-24&fd00:0:0:3::-64", 2), ("10.240.3.0-24&fd00:0:0:3::-64", 3), "another host's subnet"),
    ] {
        for (ages, later) in [((7, 8), other.0), ((8, 7), one.0)] {
            let mut peers = peers(&[(one.0, both(2, one.1)), (other.0, both(3, other.1))]);
            peers.created = BTreeMap::from([(one.0.to_owned(), ages.0), (other.0.to_owned(), ages.1)]);
            let (overlay, rejected) = Overlay::new(&own, &peers).unwrap();
            let found: Vec<_> = rejected.iter().map(|record| (record.key.as_str(), record.kind)).collect();
            assert_eq!(found, [(later, kind)]);
            assert_eq!(overlay.peers(&[]), 1);
        }
    }
}

/// The network was of IPv4 when this host leased its subnet, and got IPv6 since.
#[test]
fn of_a_host_with_a_family_more_this_hosts_own_is_followed() {
    let both = |public: &str| {
        record(public, "02:00:00:00:00:02")
            .replace("null", r#""2001:db8::2","BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#)
    };
    let others = [
        ("10.240.2.0-24&fd00:0:0:2::-64", both("192.0.2.2")),
        ("0.0.0.0-0&fd00:0:0:3::-64", both("0.0.0.0")),
    ];
    let (overlay, rejected) = Overlay::new(&lease(VXLAN), &peers(&others)).unwrap();
    let subnets: Vec<String> = overlay.sides[0].peers.keys().map(IpNetwork::to_string).collect();
    assert_eq!((overlay.sides.len(), subnets), (1, vec!["10.240.2.0/24".to_owned()]));
    let reasons: Vec<_> = rejected.iter().map(|record| (record.kind, record.reason.as_str())).collect();
    assert_eq!(reasons, [("outside of the network", "fd00:0:0:3::/64")]);
}

#[test]
fn a_lease_that_does_not_fit_its_network_is_an_error() {
    let damaged = HostLease { key: "x".into(), ..lease(VXLAN) };
    let other = lease(r#"{"Network": "10.240.0.0/12", "Backend": {"Type": "host-gw"}}"#);
    for lease in [damaged, other] {
        assert_eq!(Overlay::new(&lease, &Peers::default()).unwrap_err().code, Code::Decode);
    }
}

proptest! {
    /// Whatever stands in the store: no panic, and no two hosts share anything that must be one's own.
    #[test]
    fn any_records(records in proptest::collection::btree_map(
        prop_oneof!["[ -~]{0,30}", "10\\.24[0-9]\\.[0-9]{1,3}\\.0-24"],
        prop_oneof![
            "[ -~]{0,60}".boxed(),
            (0..6_u8, 0..6_u8)
                .prop_map(|(host, mac)| record(&format!("192.0.2.{host}"), &format!("02:00:00:00:00:0{mac}")))
                .boxed(),
        ],
        0..40,
    ), ages in proptest::collection::vec(0..5_i64, 40)) {
        let total = records.keys().filter(|key| *key != "10.240.1.0-24").count();
        let created = records.keys().zip(ages).map(|(key, age)| (key.clone(), age)).collect();
        let peers = Peers { revision: 1, records, created, lost: None };
        let (overlay, rejected) = Overlay::new(&lease(VXLAN), &peers).unwrap();
        let side = &overlay.sides[0];
        prop_assert_eq!(side.peers.len() + rejected.len(), total);
        let macs: HashSet<_> = side.peers.values().filter_map(|peer| peer.vtep).collect();
        let ways: HashSet<_> = side.peers.values().map(|peer| (peer.vtep, peer.public)).collect();
        prop_assert_eq!(macs.len(), ways.len());
        prop_assert!(!macs.contains(&"02:00:00:00:00:01".parse().unwrap()));
    }
}
