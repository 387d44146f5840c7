//! Against the real kernel, each test in a network namespace of its own, and seen through the real nft.

mod races;
mod shared;
mod shown;

use weft_net::nft::{ChainKind, Table, Tuple};

use super::*;
use crate::real_nft::{fresh_host, nft, ruleset};

/// The objects of both tables, in one order whichever was made first.
fn objects() -> Vec<String> {
    let object = |text: &str| text.trim_matches(['\n', '}']).trim().to_owned();
    let tables = ["inet", "bridge"].map(|family| nft(&["list", "table", family, "weft"], ""));
    let inside = |table: &String| table.lines().skip(1).collect::<Vec<_>>().join("\n");
    let inside = tables.iter().map(inside).collect::<Vec<_>>().join("\n\n");
    let mut objects: Vec<String> = inside.split("\n\n").map(object).collect();
    objects.sort();
    objects
}

fn key(container: &str) -> AttachmentKey {
    key_in("net", container)
}

fn key_in(network: &str, container: &str) -> AttachmentKey {
    AttachmentKey::new(&network.parse().unwrap(), &container.parse().unwrap(), &"eth0".parse().unwrap())
}

/// An element of the last set of every group, so that all groups are needed.
fn some_of_all() -> Elements {
    let element = |group: &&Group| {
        let set = group.sets.iter().rfind(|set| set.data.is_empty()).unwrap();
        let tuple = set.key.iter().fold(Tuple::default(), |tuple, field| match field {
            Type::Ifname => tuple.ifname("weft0"),
            Type::Address(Family::V4) => tuple.address([10, 0, 0, 1].into()),
            Type::Address(Family::V6) => tuple.address([0; 16].into()),
            Type::Mac => tuple.mac([2, 0, 0, 0, 0, 1].into()),
            Type::Protocol => tuple.protocol(6),
            Type::Port => tuple.port(80),
            Type::Ifindex => tuple.ifindex(1),
            Type::Ifgroup | Type::Transport { .. } => unreachable!("no group's last set has it"),
        });
        let element = Element::new(set, tuple.clone(), "an element".into());
        if set.intervals { Element { end: Some(tuple), ..element } } else { element }
    };
    Elements { own: GROUPS.iter().map(element).collect(), ..Elements::default() }
}

/// One that has elements in every set.
fn a_guard() -> guard::Guard {
    let conf = serde_json::json!({
        "index": 1, "mac": "02:00:00:00:00:09", "dhcp": true, "off": ["mac", "ip", "arp", "nd", "rogue"],
        "addresses": ["10.88.0.9", "fd00:88::9"],
        "more": [["10.88.1.0", "10.88.1.6"], ["fd00:89::", "fd00:89::ffff"]],
    });
    serde_json::from_value(conf).unwrap()
}

fn ensure_all(kernel: &mut Nft) -> Vec<&'static Group> {
    let mut made = Vec::new();
    ensure(kernel, &some_of_all(), &mut made, &mut || Ok(Vec::new())).unwrap();
    made
}

#[test]
fn what_is_made_is_intact() {
    let mut kernel = fresh_host();
    assert_eq!(ensure_all(&mut kernel).len(), GROUPS.len());
    let handles = nft(&["-a", "list", "ruleset"], "");
    assert!(ensure_all(&mut kernel).is_empty());
    assert_eq!(nft(&["-a", "list", "ruleset"], ""), handles, "nothing is made anew");
    check(&mut kernel, &Elements::default()).unwrap();
}

/// By their number the rules are all there, which is what ADD looks at; the agent reads them.
#[test]
fn a_rule_that_was_altered_in_place_is_mended() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let made = objects();
    assert!(!mend(&mut kernel).unwrap(), "nothing to mend");
    let chain = nft(&["-a", "list", "chain", "inet", "weft", "isolation-host"], "");
    let rule = chain.lines().find(|line| line.contains("ct state")).unwrap();
    let handle = rule.rsplit(' ').next().unwrap();
    nft(&["replace", "rule", "inet", "weft", "isolation-host", "handle", handle, "accept"], "");
    let told = check(&mut kernel, &elements).unwrap_err();
    assert!(told.contains("rule 1 of chain isolation-host") && told.contains("nft flush chain"), "{told}");
    assert!(ensure_all(&mut kernel).is_empty());
    assert_ne!(objects(), made);
    assert!(mend(&mut kernel).unwrap());
    assert_eq!(objects(), made);
    check(&mut kernel, &elements).unwrap();
}

/// Everything is there, and no packet comes to it.
#[test]
fn a_table_that_was_put_to_sleep_is_woken() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let made = ruleset();
    for family in ["inet", "bridge"] {
        nft(&["-f", "-"], &format!("add table {family} weft {{ flags dormant; }}"));
        let told = check(&mut kernel, &elements).unwrap_err();
        assert!(told.contains(&format!("table {family} weft is dormant")), "{told}");
        assert!(mend(&mut kernel).unwrap());
        assert_eq!(ruleset(), made);
        check(&mut kernel, &elements).unwrap();
    }
    assert!(!mend(&mut kernel).unwrap());
}

#[test]
fn a_ruleset_that_was_saved_and_loaded_again_is_intact() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let mut elements = some_of_all();
    elements.own.retain(|element| element.set.table == Table::Inet);
    elements.extend(a_guard().elements("lo"));
    let elements = elements.of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let saved = ruleset();
    nft(&["flush", "ruleset"], "");
    nft(&["-f", "-"], &saved);
    assert_eq!(ruleset(), saved);
    assert!(ensure_all(&mut kernel).is_empty());
    check(&mut kernel, &a_guard().elements("lo").of(&key("a"))).unwrap();
}

#[test]
fn altered_rules_are_made_anew_and_elements_stay() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let whole = objects();
    for group in GROUPS {
        let family = group.table.to_string();
        for chain in group.chains {
            for tampering in [
                "flush chain FAMILY CHAIN",
                "add rule FAMILY CHAIN accept",
                "insert rule FAMILY CHAIN accept",
            ] {
                let tampering = tampering.replace("FAMILY", &family).replace("CHAIN", chain.name);
                nft(&["-f", "-"], &tampering);
                let told = check(&mut kernel, &elements).expect_err(&tampering);
                // ADD sees it by itself, or is told to look.
                if let Some((_, call)) = told.split_once("(call `nft ") {
                    assert_eq!(chain.kind, ChainKind::Regular, "{told}");
                    nft(&["-f", "-"], call.split('`').next().unwrap());
                }
                assert!(ensure_all(&mut kernel).is_empty(), "{tampering}: it was there");
                assert_eq!(objects(), whole, "{tampering}");
            }
        }
    }
}

#[test]
fn what_was_flushed_comes_back_with_the_elements_of_others() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    let whole = objects();
    for tampering in ["flush ruleset", "flush table inet weft", "delete table inet weft"] {
        nft(&["-f", "-"], tampering);
        assert!(check(&mut kernel, &elements).is_err(), "{tampering}");
        ensure(&mut kernel, &elements, &mut Vec::new(), &mut || Ok(vec![elements.clone()])).unwrap();
        check(&mut kernel, &elements).unwrap();
        assert_eq!(objects(), whole, "{tampering}");
    }
}

#[test]
fn elements_are_found_by_the_hash_alone() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let empty = ruleset();
    let elements = some_of_all().of(&key("a"));
    for known in [false, true] {
        let erase = |kernel: &mut Nft| match known {
            true => remove(kernel, &key("a"), &elements),
            false => sweep(kernel, |hash| hash == key("a").hash()).map(drop),
        };
        add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
        sweep(&mut kernel, |hash| hash == key("b").hash()).unwrap();
        check(&mut kernel, &elements).unwrap();
        erase(&mut kernel).unwrap();
        erase(&mut kernel).unwrap();
        assert_eq!(ruleset(), empty);
    }
}

#[test]
fn a_holder_gives_way_only_when_it_is_gone() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let (one, two) = (some_of_all().of(&key("one")), some_of_all().of(&key("two")));
    add(&mut kernel, &key("one"), &one, &|_| true).unwrap();
    let Err(Fault::Told(error)) = add(&mut kernel, &key("two"), &two, &|_| true) else {
        panic!("it was held");
    };
    assert_eq!(error.code, Code::Conflict);
    assert!(error.msg.contains("container one"), "{error}");
    add(&mut kernel, &key("two"), &two, &|_| false).unwrap();
    check(&mut kernel, &two).unwrap();
}

#[test]
fn a_new_group_is_taken_back_whole() {
    let mut kernel = fresh_host();
    let made = ensure_all(&mut kernel);
    undo(&mut kernel, &made).unwrap();
    undo(&mut kernel, &made).unwrap();
    assert_eq!(ruleset(), "");
}

fn of_network(name: &str, subnet: &str) -> Vec<Element> {
    of_network_on("weft0", name, subnet)
}

fn of_network_on(bridge: &str, name: &str, subnet: &str) -> Vec<Element> {
    let conf = serde_json::json!({"bridge": bridge, "ipam": {"type": "weft-ipam", "subnet": subnet}});
    let network = crate::conf::Network::parse(&name.parse().unwrap(), conf.as_object().unwrap()).unwrap();
    let ip = cni_protocol::IpConfig {
        address: subnet.replace(".0/", ".9/").parse().unwrap(),
        gateway: None,
        interface: None,
    };
    let plan = crate::plan::Plan::new(&network, &[ip], &[]).unwrap();
    let isolation =
        isolation::Isolation::new(&network.isolation, Some(bridge), &[], &[], &plan).unwrap().unwrap();
    let key = key_in(name, "a");
    isolation.elements(&key.network).of(&key).network
}

#[test]
fn a_networks_elements_are_replaced_when_it_changes() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let empty = objects();
    let (old, new, other) =
        (of_network("a", "10.1.0.0/16"), of_network("a", "10.1.0.0/24"), of_network("b", "10.2.0.0/16"));
    assert_eq!(network::ensure(&mut kernel, &old).unwrap(), Some(Vec::new()));
    let before = objects();
    assert_eq!(network::ensure(&mut kernel, &old).unwrap(), None);
    let replaced = network::ensure(&mut kernel, &new).unwrap().unwrap();
    assert_eq!(replaced.len(), old.len());
    assert_ne!(objects(), before);
    network::restore(&mut kernel, &"a".parse().unwrap(), &replaced).unwrap();
    assert_eq!(objects(), before);
    network::ensure(&mut kernel, &other).unwrap();
    // A network that had the subnet and is no more gives way.
    network::ensure(&mut kernel, &of_network("c", "10.1.0.0/16")).unwrap();
    for name in ["a", "b", "c"] {
        network::restore(&mut kernel, &name.parse().unwrap(), &[]).unwrap();
    }
    assert_eq!(objects(), empty);
}

/// Whether the two tables have chains of isolation.
fn has_chains() -> [bool; 2] {
    let text = ruleset();
    let table = |family| {
        text.split("\ntable ")
            .find(|table| table.trim_start_matches("table ").starts_with(family))
            .unwrap_or_default()
    };
    ["inet", "bridge"].map(|family| table(family).contains("chain isolation"))
}

#[test]
fn chains_of_isolation_come_when_there_is_something_to_decide() {
    let ensure_for = |kernel: &mut Nft, network: &[Element]| {
        let all = Elements { network: network.to_vec(), ..Elements::default() };
        ensure(kernel, &all, &mut Vec::new(), &mut || Ok(Vec::new())).unwrap();
    };
    let come = |kernel: &mut Nft, network: &[Element]| {
        ensure_for(kernel, network);
        network::ensure(kernel, network).unwrap();
        ensure_for(kernel, network);
    };
    let (a, b) = (of_network("a", "10.1.0.0/16"), of_network_on("weft1", "b", "10.2.0.0/16"));
    let same_bridge = of_network("c", "10.3.0.0/16");
    let mut kernel = fresh_host();
    come(&mut kernel, &a);
    let (alone, handles) = (has_chains(), nft(&["-a", "list", "ruleset"], ""));
    come(&mut kernel, &a);
    assert_eq!(nft(&["-a", "list", "ruleset"], ""), handles, "nothing is made anew");
    assert!(is_whole(&mut kernel).unwrap());
    let settled = ["a", "b"].map(|name| {
        isolation::GROUPS.map(|group| is_settled(&mut kernel, group, &name.parse().unwrap()).unwrap())
    });
    assert_eq!(settled, [[true; 2], [false; 2]]);
    come(&mut kernel, &b);
    let two = has_chains();
    come(&mut kernel, &same_bridge);
    assert_eq!((alone, two, has_chains()), ([false; 2], [true, false], [true; 2]));
    assert!(is_whole(&mut kernel).unwrap());
    // What is lost is missed where it is needed.
    let lost = Elements { network: a.clone(), ..Elements::default() };
    check(&mut kernel, &lost).unwrap();
    nft(&["-f", "-"], "flush chain bridge weft isolation; delete chain bridge weft isolation");
    assert!(!is_whole(&mut kernel).unwrap());
    assert!(
        check(&mut kernel, &lost).unwrap_err().contains("chain isolation of table bridge weft is missing")
    );
    come(&mut kernel, &a);
    assert_eq!(has_chains(), [true; 2]);
}

/// Two that come at the same time do not see each other at first.
#[test]
fn the_later_of_two_networks_sees_the_other() {
    let mut kernel = fresh_host();
    let networks = [of_network("a", "10.1.0.0/16"), of_network("b", "10.2.0.0/16")];
    let all = networks.clone().map(|network| Elements { network, ..Elements::default() });
    let ensure_for = |kernel: &mut Nft, elements| {
        ensure(kernel, elements, &mut Vec::new(), &mut || Ok(Vec::new())).unwrap();
    };
    all.iter().for_each(|elements| ensure_for(&mut kernel, elements));
    networks.iter().for_each(|network| drop(network::ensure(&mut kernel, network).unwrap()));
    assert_eq!(has_chains(), [false; 2]);
    ensure_for(&mut kernel, &all[1]);
    assert_eq!(has_chains(), [true; 2]);
}

/// A group that stayed damaged would have the agent read and lock all records at every look.
#[test]
fn what_nobody_needs_is_made_whole_and_keeps_what_fits() {
    let mut kernel = fresh_host();
    ensure_all(&mut kernel);
    let elements = some_of_all().of(&key("a"));
    add(&mut kernel, &key("a"), &elements, &|_| true).unwrap();
    undo(&mut kernel, &[&hostport::SOURCES_GROUP]).unwrap();
    let whole = objects();
    let of_another_type = "delete set inet weft hostport-addresses-v4
        add set inet weft hostport-addresses-v4 { type ipv4_addr . inet_service; }";
    for damage in [of_another_type, "flush chain inet weft hostport-in", "flush chain bridge weft guard"] {
        nft(&["-f", "-"], damage);
        assert!(!is_whole(&mut kernel).unwrap(), "{damage}");
        assert!(!renew_others(&mut kernel, &elements).unwrap(), "{damage}: somebody needs it");
        assert!(renew_others(&mut kernel, &Elements::default()).unwrap(), "{damage}");
        assert!(is_whole(&mut kernel).unwrap(), "{damage}");
        assert_eq!(objects(), whole, "{damage}");
        assert!(!renew_others(&mut kernel, &Elements::default()).unwrap(), "{damage}: it is whole");
    }
}
