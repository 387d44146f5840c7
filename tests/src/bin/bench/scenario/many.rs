//! An ADD beside a thousand containers, and on a machine without them.
//!
//! The two cannot take turns: what the thousand send each other, and that they are there at all, is work for the whole machine. So what
//! they are compared with is measured before they are made, and again when they are gone and the kernel has cleared them away. Every other
//! pair has one measured before, the rest one measured after, and a row says how far the two are apart: that is what the machine did
//! meanwhile.

use super::{
    Container, Cost, Host, Network, Pairs, Peers, Row, SLOW_RUNS, Shape, Suite, Target, at_once, process,
    settled, walls,
};
use crate::machine::wait_for_the_dead;
use crate::plugin::Attached;

/// Containers that are present already: near the 1,023 ports that a Linux bridge holds.
const MANY: usize = 1000;

/// What ADDs and DELs cost.
type Costs = (Vec<Cost>, Vec<Cost>);

pub(super) fn many(peers: &Peers) -> Vec<Row> {
    [("IPv4", false), ("dual stack", true)]
        .into_iter()
        .flat_map(|(name, dual_stack)| of_shape(peers, name, Shape { dual_stack, ..Shape::default() }))
        .collect()
}

fn of_shape(peers: &Peers, name: &str, shape: Shape) -> Vec<Row> {
    let hosts = [Host::new(&format!("many-full-{name}")), Host::new(&format!("many-empty-{name}"))];
    let full = peers.network(&hosts[0], Suite::Weft, shape);
    let empty = peers.network(&hosts[1], Suite::Weft, shape);
    let before = one_after_the_other(&empty);
    let present = Container::many(MANY);
    let attached = at_once(present.iter().collect(), |container| full.add(container));
    process::settle();
    let at_first = one_after_the_other(&full);
    let waited = hosts[0].quiet();
    eprintln!("bench: quiet after {:.0} s", waited.as_secs_f64());
    let later = one_after_the_other(&full);
    at_once(attached, Attached::del);
    process::settle();
    drop(present);
    let waited = wait_for_the_dead();
    eprintln!("bench: {MANY} containers cleared away after {:.0} s", waited.as_secs_f64());
    let after = one_after_the_other(&empty);

    let base = (mixed(&before.0, &after.0), mixed(&before.1, &after.1));
    let peer = format!("the same with none present, {name}");
    let row = |what: &str, costs: &[Cost], base: &[Cost], target: Option<Target>| {
        let pairs = walls(&pairs(costs, base));
        match target {
            Some(target) => Row::new(what, &peer, "ms", target, &pairs),
            None => Row::without_target(what, &peer, "ms", &pairs),
        }
    };
    let cpu = pairs(&later.0, &base.0)
        .into_iter()
        .map(|(ours, theirs)| (ours.cpu_milliseconds(), theirs.cpu_milliseconds()));
    let target = Some(Target::Ratio(1.5));
    vec![
        row("ADD right after 1,000 were added at once", &at_first.0, &base.0, target),
        row("ADD with 1,000 present", &later.0, &base.0, target),
        Row::without_target("CPU per ADD with 1,000 present", &peer, "ms", &cpu.collect::<Vec<_>>()),
        row("DEL with 1,000 present", &later.1, &base.1, None),
        Row::without_target(
            "ADD with none present, when the 1,000 are gone",
            &format!("before they came, {name}"),
            "ms",
            &walls(&pairs(&after.0, &before.0)),
        ),
    ]
}

/// ADD and then DEL of one container after the other. The first one is not counted.
fn one_after_the_other(network: &Network) -> Costs {
    let containers = Container::many(SLOW_RUNS + 1);
    let costs = containers.iter().map(|container| {
        let own = settled(|| network.add(container));
        (own.cost, settled(|| own.del()))
    });
    let costs = costs.skip(1).unzip();
    drop(containers);
    wait_for_the_dead();
    costs
}

fn pairs(ours: &[Cost], theirs: &[Cost]) -> Pairs<Cost> {
    ours.iter().copied().zip(theirs.iter().copied()).collect()
}

/// Every other one of each.
fn mixed(before: &[Cost], after: &[Cost]) -> Vec<Cost> {
    let both = before.iter().zip(after).enumerate();
    both.map(|(number, (before, after))| if number % 2 == 0 { *before } else { *after }).collect()
}
