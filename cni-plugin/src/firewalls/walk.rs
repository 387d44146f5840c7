//! What becomes of a packet in the chains of others. Pure.

use std::collections::BTreeMap;

use weft_net::Family;
use weft_net::foreign::{
    Condition, End, Pattern, RULES_MAX, Rule, STATE_ESTABLISHED, STATE_NEW, STATE_REDIRECTED, Verdict,
};

/// How deep chains jump to each other at most; the kernel allows 16.
const DEPTH_MAX: usize = 16;

/// A packet of a network by which it is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) bridge: &'a str,
    /// The interfaces by which the host reaches the others that it talks to.
    pub(super) others: &'a [String],
    pub(super) way: Way,
    pub(super) family: Family,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The first packet of a container's connection to others.
    Out,
    /// The answer to it.
    Back,
    /// The first packet of others' connection to a host port, redirected to its container.
    In,
    /// The answer to it.
    Answer,
    /// The first packet of a container's connection to one of another host.
    ToHosts,
    /// The first packet of the connection of another host's container to one of this host.
    FromHosts,
}

impl Way {
    fn is_from_bridge(self) -> bool {
        matches!(self, Self::Out | Self::Answer | Self::ToHosts)
    }

    /// Whether it belongs to a connection to a host port.
    pub(super) fn is_redirected(self) -> bool {
        matches!(self, Self::In | Self::Answer)
    }

    /// In words.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Out => "what containers send to other networks",
            Self::Back => "the answers that containers get from other networks",
            Self::In => "what comes from other networks to host ports",
            Self::Answer => "the answers of host ports to other networks",
            Self::ToHosts => "what containers send to those of other hosts",
            Self::FromHosts => "what other hosts' containers send to those of this host",
        }
    }
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    IsDropped,
    /// It depends on what this program cannot tell.
    Unknown,
}

/// Truth in three values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Maybe,
}

impl Truth {
    fn of(truth: bool) -> Self {
        if truth { Self::True } else { Self::False }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, Self::True) => Self::True,
            _ => Self::Maybe,
        }
    }

    fn is(self, wanted: bool) -> Self {
        match self {
            Self::True => Self::of(wanted),
            Self::False => Self::of(!wanted),
            Self::Maybe => Self::Maybe,
        }
    }
}

impl Packet<'_> {
    /// Whether a rule can apply to it.
    pub(super) fn can_meet(&self, rule: &Rule) -> bool {
        self.meets(rule) != Truth::False
    }

    fn meets(&self, rule: &Rule) -> Truth {
        rule.conditions.iter().map(|condition| self.fits(condition)).fold(Truth::True, Truth::and)
    }

    /// Whether a rule is about some of the others that it talks to. Dropping what is for these only is what a firewall
    /// is for, and says nothing of the rest.
    fn is_narrow(&self, rule: &Rule) -> bool {
        let others = if self.way.is_from_bridge() { End::Destination } else { End::Source };
        rule.conditions.contains(&Condition::Address(others))
    }

    fn fits(&self, condition: &Condition) -> Truth {
        match condition {
            Condition::Input { name, is } => self.goes_by(name, self.way.is_from_bridge()).is(*is),
            Condition::Output { name, is } => self.goes_by(name, !self.way.is_from_bridge()).is(*is),
            Condition::State { bits, is } => {
                let own = match self.way {
                    Way::Out | Way::ToHosts | Way::FromHosts => STATE_NEW,
                    Way::In => STATE_NEW | STATE_REDIRECTED,
                    Way::Back => STATE_ESTABLISHED,
                    Way::Answer => STATE_ESTABLISHED | STATE_REDIRECTED,
                };
                Truth::of((bits & own != 0) == *is)
            }
            Condition::Redirected { is } => Truth::of(self.way.is_redirected() == *is),
            Condition::Any { of, is } => {
                let none = of.iter().map(|one| self.fits(one).is(false)).fold(Truth::True, Truth::and);
                none.is(!*is)
            }
            Condition::Family { family, is } => Truth::of((*family == self.family) == *is),
            Condition::Address(_) | Condition::Other => Truth::Maybe,
        }
    }

    fn goes_by(&self, name: &Pattern, the_bridge: bool) -> Truth {
        if the_bridge {
            return Truth::of(name.fits(self.bridge));
        }
        match self.others.iter().filter(|other| name.fits(other)).count() {
            0 if !self.others.is_empty() || name.fits(self.bridge) => Truth::False,
            count if count == self.others.len() && count > 0 => Truth::True,
            _ => Truth::Maybe,
        }
    }
}

/// Goes through the chain `base`, and through those that it jumps to. What is not among `chains` is not known.
pub(super) fn walk(
    packet: Packet<'_>,
    base: &str,
    policy: &Verdict,
    chains: &BTreeMap<String, Vec<Rule>>,
) -> Fate {
    let mut walk = Walk { packet, chains, steps: 0, may_pass: false, may_drop: false };
    let Some(rules) = chains.get(base) else { return Fate::Unknown };
    let passes = walk.chain(rules, 0).unwrap_or(*policy == Verdict::Accept);
    match (passes, walk.may_pass, walk.may_drop) {
        (true, _, false) => Fate::Passes,
        (false, false, _) => Fate::IsDropped,
        _ => Fate::Unknown,
    }
}

struct Walk<'w> {
    packet: Packet<'w>,
    chains: &'w BTreeMap<String, Vec<Rule>>,
    steps: u32,
    may_pass: bool,
    may_drop: bool,
}

impl Walk<'_> {
    /// Whether the packet certainly passes or is dropped; `None` when it comes out at the chain's end.
    fn chain(&mut self, rules: &[Rule], depth: usize) -> Option<bool> {
        for rule in rules {
            self.steps += 1;
            if depth > DEPTH_MAX || self.steps > RULES_MAX {
                self.lose_sight();
                return None;
            }
            let meets = self.packet.meets(rule);
            if meets == Truth::False {
                continue;
            }
            let is_certain = meets == Truth::True;
            match &rule.verdict {
                Verdict::Continue => {}
                Verdict::Return if is_certain => return None,
                Verdict::Return | Verdict::Unknown => self.lose_sight(),
                verdict @ (Verdict::Accept | Verdict::Drop) => {
                    if let Some(decided) = self.decide(*verdict == Verdict::Accept, rule) {
                        return Some(decided);
                    }
                }
                Verdict::Jump(chain) | Verdict::Goto(chain) => {
                    let Some(rules) = self.chains.get(chain) else {
                        self.lose_sight();
                        continue;
                    };
                    if let Some(passes) = self.chain(rules, depth + 1)
                        && let Some(decided) = self.decide(passes, rule)
                    {
                        return Some(decided);
                    }
                    if matches!(rule.verdict, Verdict::Goto(_)) {
                        if is_certain {
                            return None;
                        }
                        self.lose_sight();
                    }
                }
            }
        }
        None
    }

    fn decide(&mut self, passes: bool, rule: &Rule) -> Option<bool> {
        if self.packet.meets(rule) == Truth::True {
            return Some(passes);
        }
        if !passes && self.packet.is_narrow(rule) {
            return None;
        }
        *(if passes { &mut self.may_pass } else { &mut self.may_drop }) = true;
        None
    }

    fn lose_sight(&mut self) {
        self.may_pass = true;
        self.may_drop = true;
    }
}

#[cfg(test)]
mod tests;
