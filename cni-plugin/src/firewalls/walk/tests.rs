use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Pattern {
    Pattern { text: text.trim_end_matches('+').to_owned(), is_prefix: text.ends_with('+') }
}

fn from(text: &str) -> Condition {
    Condition::Input { name: name(text), is: true }
}

fn to(text: &str) -> Condition {
    Condition::Output { name: name(text), is: true }
}

fn not_to(text: &str) -> Condition {
    Condition::Output { name: name(text), is: false }
}

fn answers() -> Condition {
    Condition::State { bits: STATE_ESTABLISHED, is: true }
}

fn first() -> Condition {
    Condition::State { bits: STATE_NEW, is: true }
}

fn redirected(is: bool) -> Condition {
    Condition::Redirected { is }
}

fn rule(conditions: &[Condition], verdict: Verdict) -> Rule {
    Rule { conditions: conditions.to_vec(), verdict }
}

/// What becomes of packets of `weft0` every way in a chain that drops, on a host with the uplink `eth0`.
fn fates(chains: &[(&str, Vec<Rule>)]) -> [Fate; 3] {
    fates_by("eth0", [Way::Out, Way::Back, Way::In], chains)
}

fn fates_by<const N: usize>(by: &str, ways: [Way; N], chains: &[(&str, Vec<Rule>)]) -> [Fate; N] {
    let chains: BTreeMap<String, Vec<Rule>> =
        chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())).collect();
    let others = [by.to_owned()];
    ways.map(|way| {
        walk(
            Packet { bridge: "weft0", others: &others, way, family: Family::V4 },
            "FORWARD",
            &Verdict::Drop,
            &chains,
        )
    })
}

/// What dockerd puts there.
fn docker(user: Vec<Rule>) -> Vec<(&'static str, Vec<Rule>)> {
    let forward = vec![
        rule(&[], Verdict::Jump("DOCKER-USER".into())),
        rule(&[], Verdict::Jump("DOCKER-ISOLATION".into())),
        rule(&[to("docker0"), answers()], Verdict::Accept),
        rule(&[to("docker0")], Verdict::Jump("DOCKER".into())),
        rule(&[from("docker0"), not_to("docker0")], Verdict::Accept),
    ];
    let isolation =
        vec![rule(&[from("docker0"), not_to("docker0")], Verdict::Drop), rule(&[], Verdict::Return)];
    vec![("FORWARD", forward), ("DOCKER-USER", user), ("DOCKER-ISOLATION", isolation)]
}

#[test]
fn dockers_rules_are_about_its_own_bridge() {
    assert_eq!(fates(&docker(vec![])), [Fate::IsDropped; 3]);
    assert_eq!(fates(&docker(vec![rule(&[], Verdict::Return)])), [Fate::IsDropped; 3]);
    let let_through = vec![rule(&[from("weft0")], Verdict::Accept), rule(&[to("weft0")], Verdict::Accept)];
    assert_eq!(fates(&docker(let_through)), [Fate::Passes; 3]);
    let one_way = vec![rule(&[from("weft+")], Verdict::Accept)];
    assert_eq!(fates(&docker(one_way)), [Fate::Passes, Fate::IsDropped, Fate::IsDropped]);
    let and_answers = vec![rule(&[from("weft0")], Verdict::Accept), rule(&[answers()], Verdict::Accept)];
    assert_eq!(fates(&docker(and_answers)), [Fate::Passes, Fate::Passes, Fate::IsDropped]);
}

#[test]
fn between_hosts_both_begin() {
    let fates = |rules| fates_by("weft.1", [Way::ToHosts, Way::FromHosts], &docker(rules));
    assert_eq!(fates(vec![]), [Fate::IsDropped; 2]);
    let outward = rule(&[from("weft0")], Verdict::Accept);
    // Letting answers pass lets no other host's container begin.
    let with_answers = vec![outward.clone(), rule(&[answers()], Verdict::Accept)];
    assert_eq!(fates(with_answers), [Fate::Passes, Fate::IsDropped]);
    assert_eq!(fates(vec![outward.clone(), rule(&[from("weft.1")], Verdict::Accept)]), [Fate::Passes; 2]);
    assert_eq!(
        fates(vec![outward, rule(&[redirected(true)], Verdict::Accept)]),
        [Fate::Passes, Fate::IsDropped]
    );
}

#[test]
fn what_cannot_be_told_is_unknown() {
    let somewhere = vec![rule(&[from("weft0"), Condition::Other], Verdict::Accept)];
    assert_eq!(fates(&docker(somewhere)), [Fate::Unknown, Fate::IsDropped, Fate::IsDropped]);
    let elsewhere = vec![rule(&[], Verdict::Jump("NOT-READ".into()))];
    assert_eq!(fates(&docker(elsewhere)), [Fate::Unknown; 3]);
    let map = vec![rule(&[Condition::Other], Verdict::Unknown)];
    assert_eq!(fates(&docker(map)), [Fate::Unknown; 3]);
    assert_eq!(fates(&[("OTHER", vec![])]), [Fate::Unknown; 3]);
    // A drop that may apply before an accept that does.
    let both = vec![rule(&[Condition::Other], Verdict::Drop), rule(&[], Verdict::Accept)];
    assert_eq!(fates(&[("FORWARD", both)]), [Fate::Unknown; 3]);
    let circle = vec![rule(&[], Verdict::Jump("FORWARD".into()))];
    assert_eq!(fates(&[("FORWARD", circle)]), [Fate::Unknown; 3]);
}

#[test]
fn what_drops_some_of_the_others_lets_the_rest_pass() {
    let of = |family| Condition::Family { family, is: true };
    let to_some = || Condition::Address(End::Destination);
    let with = |first: Rule| fates(&[("FORWARD", vec![first, rule(&[], Verdict::Accept)])]);
    assert_eq!(with(rule(&[to_some()], Verdict::Drop)), [Fate::Passes, Fate::Unknown, Fate::Unknown]);
    assert_eq!(
        with(rule(&[Condition::Address(End::Source)], Verdict::Drop)),
        [Fate::Unknown, Fate::Passes, Fate::Passes]
    );
    assert_eq!(with(rule(&[of(Family::V6)], Verdict::Drop)), [Fate::Passes; 3]);
    assert_eq!(with(rule(&[of(Family::V4)], Verdict::Drop)), [Fate::IsDropped; 3]);
    // A rule that accepts only some cannot be meant for all.
    let accepted = [("FORWARD", vec![rule(&[to_some()], Verdict::Accept)])];
    assert_eq!(fates(&accepted), [Fate::Unknown; 3]);
}

#[test]
fn lists_uplinks_and_gotos() {
    let list = |is| Condition::Any { of: vec![from("br0"), from("weft0")], is };
    let accept = |condition: Condition| [("FORWARD", vec![rule(&[condition], Verdict::Accept)])];
    assert_eq!(fates(&accept(list(true))), [Fate::Passes, Fate::IsDropped, Fate::IsDropped]);
    assert_eq!(fates(&accept(list(false))), [Fate::IsDropped, Fate::Passes, Fate::Passes]);
    assert_eq!(fates(&accept(to("eth0"))), [Fate::Passes, Fate::IsDropped, Fate::IsDropped]);
    assert_eq!(fates(&accept(from("eth+"))), [Fate::IsDropped, Fate::Passes, Fate::Passes]);
    let goto = |to: &str| vec![rule(&[], Verdict::Goto(to.into())), rule(&[], Verdict::Accept)];
    assert_eq!(fates(&[("FORWARD", goto("X")), ("X", vec![])]), [Fate::IsDropped; 3]);
    assert_eq!(fates(&[("FORWARD", goto("X")), ("X", vec![rule(&[], Verdict::Accept)])]), [Fate::Passes; 3]);
}

#[test]
fn what_comes_to_host_ports_is_new_and_redirected() {
    let accept = |conditions: &[Condition]| [("FORWARD", vec![rule(conditions, Verdict::Accept)])];
    assert_eq!(fates(&accept(&[redirected(true)])), [Fate::IsDropped, Fate::IsDropped, Fate::Passes]);
    assert_eq!(fates(&accept(&[redirected(false)])), [Fate::Passes, Fate::Passes, Fate::IsDropped]);
    let as_iptables_has_it = Condition::State { bits: STATE_ESTABLISHED | STATE_REDIRECTED, is: true };
    assert_eq!(fates(&accept(&[as_iptables_has_it])), [Fate::IsDropped, Fate::Passes, Fate::Passes]);
    assert_eq!(fates(&accept(&[first()])), [Fate::Passes, Fate::IsDropped, Fate::Passes]);
    let by_the_uplink = [from("eth0"), to("weft0"), first(), redirected(true)];
    assert_eq!(fates(&accept(&by_the_uplink)), [Fate::IsDropped, Fate::IsDropped, Fate::Passes]);
    let some_ports = [to("weft0"), first(), Condition::Other];
    assert_eq!(fates(&accept(&some_ports)), [Fate::IsDropped, Fate::IsDropped, Fate::Unknown]);
}

#[test]
fn what_host_ports_answer_is_neither_new_nor_the_containers_own() {
    let answer = |rules: Vec<Rule>| fates_by("eth0", [Way::In, Way::Answer], &[("FORWARD", rules)]);
    let accept = |conditions: &[Condition]| rule(conditions, Verdict::Accept);
    assert_eq!(answer(vec![accept(&[to("weft0")])]), [Fate::Passes, Fate::IsDropped]);
    assert_eq!(
        answer(vec![accept(&[to("weft0")]), accept(&[from("weft0"), first()])]),
        [Fate::Passes, Fate::IsDropped]
    );
    for lets_answers in [from("weft0"), answers(), redirected(true)] {
        assert_eq!(answer(vec![accept(&[to("weft0")]), accept(&[lets_answers])]), [Fate::Passes; 2]);
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let condition = prop_oneof![
        Just(from("weft0")),
        Just(to("weft0")),
        Just(from("eth0")),
        Just(not_to("br0")),
        Just(answers()),
        Just(first()),
        any::<bool>().prop_map(redirected),
        Just(Condition::Other),
    ];
    let verdict = prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        Just(Verdict::Continue),
        Just(Verdict::Jump("A".into())),
        Just(Verdict::Goto("A".into())),
    ];
    (prop::collection::vec(condition, 0..3), verdict)
        .prop_map(|(conditions, verdict)| Rule { conditions, verdict })
}

proptest! {
    /// However the conditions that cannot be told turn out, a packet fares as was said.
    #[test]
    fn a_fate_that_is_told_holds(
        base in prop::collection::vec(any_rule(), 0..6),
        other in prop::collection::vec(any_rule().prop_filter("no circle", |rule| {
            !matches!(rule.verdict, Verdict::Jump(_) | Verdict::Goto(_))
        }), 0..5),
        turns_out in any::<bool>(),
    ) {
        let settle = |rules: &[Rule]| -> Vec<Rule> {
            let settled = |condition: &Condition| match condition {
                Condition::Other => Condition::Any { of: vec![], is: !turns_out },
                known => known.clone(),
            };
            rules.iter().map(|rule| Rule {
                conditions: rule.conditions.iter().map(settled).collect(), verdict: rule.verdict.clone(),
            }).collect()
        };
        let told = fates(&[("FORWARD", base.clone()), ("A", other.clone())]);
        let happens = fates(&[("FORWARD", settle(&base)), ("A", settle(&other))]);
        for (told, happens) in told.into_iter().zip(happens) {
            prop_assert_ne!(happens, Fate::Unknown);
            prop_assert!(told == Fate::Unknown || told == happens);
        }
    }
}
