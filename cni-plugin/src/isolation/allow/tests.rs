use proptest::prelude::*;

use super::*;
use crate::conf::isolation::Service;
use crate::conf::ports::Protocol;

fn member(id: &str, address: [u8; 4], allow: Vec<Allow>) -> Member {
    Member { container_id: id.into(), names: Names::default(), addresses: vec![address.into()], allow }
}

fn tcp(first: u16, last: u16) -> Service {
    Service { protocol: Protocol::Tcp, ports: (first, last) }
}

fn grant(from: &str, to: &str, service: Option<Service>) -> Grant {
    let services = Services::new(service);
    Grant { from: from.parse().unwrap(), to: to.parse().unwrap(), services, prefix: None }
}

fn from(prefix: &str, to: &str, service: Option<Service>) -> Grant {
    Grant { prefix: Some(Side::From), ..grant(prefix, to, service) }
}

fn to(from: &str, prefix: &str, service: Option<Service>) -> Grant {
    Grant { prefix: Some(Side::To), ..grant(from, prefix, service) }
}

#[test]
fn the_second_of_two_containers_brings_what_is_allowed_between_them() {
    let rule = Allow {
        from: Peer::Container("web".into()),
        to: Peer::Container("db".into()),
        service: Some(tcp(5432, 5432)),
    };
    let own = Allow { from: Peer::Own, to: Peer::Label("role=cache".into()), service: None };
    let web = member("web", [10, 0, 0, 2], vec![rule.clone(), own]);
    let db = member("db", [10, 0, 0, 3], vec![rule]);
    let mut cache = member("c1", [10, 0, 0, 4], Vec::new());
    cache.names.labels.push("role=cache".into());
    assert_eq!(grants(&web, &[]), []);
    let expected = grant("10.0.0.2/32", "10.0.0.3/32", Some(tcp(5432, 5432)));
    assert_eq!(grants(&db, std::slice::from_ref(&web)), [expected]);
    assert_eq!(grants(&cache, &[web.clone(), db.clone()]), [grant("10.0.0.2/32", "10.0.0.4/32", None)]);
    assert_eq!(grants(&web, &[db, cache]).len(), 2);
}

#[test]
fn a_container_is_known_by_id_pod_and_alias() {
    let rule = |name: &str| Allow { from: Peer::Container(name.into()), to: Peer::Own, service: None };
    let mut web = member("0123", [10, 0, 0, 2], Vec::new());
    web.names.pod = Some("shop/web".into());
    web.names.aliases.push("www".into());
    for (name, count) in [("0123", 1), ("web", 1), ("shop/web", 1), ("www", 1), ("012", 0), ("shop", 0)] {
        let db = member("db", [10, 0, 0, 3], vec![rule(name)]);
        assert_eq!(grants(&web, &[db]).len(), count, "{name}");
    }
}

#[test]
fn a_prefix_is_allowed_without_names_either_way() {
    let rule = |from: &str, to: &str| Allow {
        from: Peer::Prefix(from.parse().unwrap()),
        to: Peer::Prefix(to.parse().unwrap()),
        service: Some(tcp(80, 90)),
    };
    let own = member(
        "a",
        [10, 0, 0, 2],
        vec![rule("192.0.2.0/24", "10.0.0.0/30"), rule("10.0.0.2/31", "10.9.0.0/16")],
    );
    assert_eq!(
        grants(&own, &[]),
        [
            from("192.0.2.0/24", "10.0.0.2/32", Some(tcp(80, 90))),
            to("10.0.0.2/32", "10.9.0.0/16", Some(tcp(80, 90))),
        ]
    );
}

/// On another host somebody with an address of the prefix may ask or be asked.
#[test]
fn who_is_meant_on_both_sides_may_ask_and_be_asked() {
    let prefix = Peer::Prefix("10.0.0.0/24".parse().unwrap());
    let rule = Allow { from: prefix.clone(), to: prefix, service: Some(tcp(80, 80)) };
    let own = member("a", [10, 0, 0, 2], vec![rule]);
    let both = [
        from("10.0.0.0/24", "10.0.0.2/32", Some(tcp(80, 80))),
        to("10.0.0.2/32", "10.0.0.0/24", Some(tcp(80, 80))),
    ];
    let mut found = grants(&own, &[]);
    found.sort_by_key(|grant| grant.to.prefix() < 32);
    assert_eq!(found, both);
}

/// Each holds its own side of what is open to addresses, and no two hold the same.
#[test]
fn single_addresses_are_prefixes_like_others() {
    let side = |last: u8| Peer::Prefix(IpAddr::from([10, 0, 0, last]).into());
    let rule = |from: Peer, to: Peer| Allow { from, to, service: Some(tcp(80, 80)) };
    let named = |name: &str| Peer::Container(name.into());
    let rules = vec![rule(side(2), side(3)), rule(named("web"), named("db"))];
    let web = member("web", [10, 0, 0, 2], rules.clone());
    let db = member("db", [10, 0, 0, 3], rules);
    let service = Some(tcp(80, 80));
    let open = [to("10.0.0.2/32", "10.0.0.3/32", service), from("10.0.0.2/32", "10.0.0.3/32", service)];
    for (own, other, at) in [(&web, &db, 0), (&db, &web, 1)] {
        assert_eq!(grants(own, &[]), open[at..=at]);
        assert_eq!(
            grants(own, std::slice::from_ref(other)),
            open[at..=at],
            "which lasts longer than the other"
        );
    }
    assert!(!element(&open[0]).overlaps(&element(&open[1])));
}

/// A container that held such a grant when records told it by the length alone holds the same.
#[test]
fn what_is_on_file_since_before_an_upgrade_is_read() {
    let mut file = serde_json::to_value(from("10.0.0.0/24", "10.0.0.2/32", None)).unwrap();
    file.as_object_mut().unwrap().remove("prefix").unwrap();
    let read: Grant = serde_json::from_value(file).unwrap();
    assert_eq!(element(&read), element(&from("10.0.0.0/24", "10.0.0.2/32", None)));
}

proptest! {
    /// Whatever rules there are, no two grants overlap, and what passes is what one of them lets pass.
    #[test]
    fn grants_never_overlap(rules in proptest::collection::vec((20..=32_u8, any::<bool>(), 1..50_u16, 0..20_u16), 1..12)) {
        let all: Vec<Grant> = rules
            .iter()
            .map(|(length, is_service, first, more)| Grant {
                from: crate::plan::prefix(IpNetwork::new([10, 0, 0, 7].into(), *length).unwrap()),
                to: "10.1.0.2/32".parse().unwrap(),
                services: Services::new(is_service.then(|| tcp(*first, first + more))),
                prefix: (more % 2 == 0).then_some(Side::From),
            })
            .collect();
        let kept = without_overlaps(all.clone());
        let elements: Vec<Element> = kept.iter().map(element).collect();
        for (at, element) in elements.iter().enumerate() {
            prop_assert!(!elements[at + 1..].iter().any(|other| other.overlaps(element)), "{kept:?}");
        }
        let passes = |grants: &[Grant], from: IpAddr, protocol: u16, port: u16| {
            grants.iter().any(|grant| {
                let Services { protocols, ports } = grant.services;
                grant.from.contains(from)
                    && (protocols.0..=protocols.1).contains(&protocol)
                    && (ports.0..=ports.1).contains(&port)
            })
        };
        for from in [[10, 0, 0, 7], [10, 0, 0, 6], [10, 0, 1, 1], [10, 0, 15, 1]] {
            for (protocol, port) in (0..75).flat_map(|port| [(6, port), (17, port)]) {
                let before = passes(&all, from.into(), protocol, port);
                prop_assert_eq!(before, passes(&kept, from.into(), protocol, port));
            }
        }
    }
}

/// A container with one of three names and maybe a label, and rules about them, from either side.
fn any_member(id: &'static str, last: u8) -> impl Strategy<Value = Member> {
    let side = prop_oneof![
        Just(Peer::Own),
        (0..3_u8).prop_map(|name| Peer::Container(format!("name{name}"))),
        (0..2_u8).prop_map(|label| Peer::Label(format!("label={label}"))),
        Just(Peer::Prefix("10.0.0.0/30".parse().unwrap())),
    ];
    let rule = (side.clone(), side).prop_map(|(from, to)| Allow { from, to, service: None });
    let rules = proptest::collection::vec(rule, 0..4);
    (0..3_u8, 0..3_u8, rules).prop_map(move |(name, label, allow)| {
        let mut member = member(id, [10, 0, 0, last], allow);
        member.names.pod = Some(format!("shop/name{name}"));
        member.names.labels.push(format!("label={label}"));
        member
    })
}

proptest! {
    /// Whoever something may be allowed with is found by what one of the two asks for and the other one has.
    #[test]
    fn those_between_which_something_is_allowed_ask_for_each_other(
        own in any_member("a", 1), other in any_member("b", 2), same_container in any::<bool>(),
    ) {
        let mut other = other;
        if same_container {
            other.container_id = own.container_id.clone();
        }
        let found = !own.asks().is_disjoint(&other.terms()) || !other.asks().is_disjoint(&own.terms());
        let alone = grants(&own, &[]);
        prop_assert!(found || grants(&own, std::slice::from_ref(&other)) == alone, "{:?} {:?}", own, other);
    }
}
