//! The steps of an ADD, as their source has them: so that none can be forgotten here.

use std::collections::BTreeSet;

const SOURCE: &str = include_str!("../../../cni-plugin/src/step.rs");

/// What is seen of a step in errors: its text, at whose placeholders there is one word each.
struct Text {
    step: &'static str,
    literals: Vec<&'static str>,
}

impl Text {
    fn of(step: &'static str, template: &'static str) -> Self {
        let mut literals: Vec<_> = template.split('{').collect();
        for literal in &mut literals[1..] {
            *literal = literal.split_once('}').expect("a placeholder ends").1;
        }
        Self { step, literals }
    }

    fn begins(&self, message: &str) -> bool {
        let mut rest = message;
        self.literals.iter().enumerate().all(|(number, literal)| {
            if number > 0 {
                rest = rest.find(' ').map_or("", |end| &rest[end..]);
            }
            rest.strip_prefix(literal).map(|after| rest = after).is_some()
        })
    }

    /// Of several that fit the one that says most is meant: `lo` is an interface, too.
    fn says(&self) -> usize {
        self.literals.iter().map(|literal| literal.len()).sum()
    }
}

/// The part of the source from a line on to the closing brace at its margin.
fn block(head: &str) -> &'static str {
    let (_, block) = SOURCE.split_once(&format!("\n{head} {{\n")).unwrap_or_else(|| panic!("no {head}"));
    block.split_once("\n}\n").expect("a block ends").0
}

fn texts_of(type_name: &str) -> Vec<Text> {
    let variants = block(&format!("pub enum {type_name}")).lines().filter_map(|line| {
        let name = line.trim();
        let end = name.find(|c: char| !c.is_alphanumeric())?;
        (end > 0).then(|| &name[..end])
    });
    let arms: Vec<&str> =
        block(&format!("impl fmt::Display for {type_name}")).split("Self::").skip(1).collect();
    let mut texts = Vec::new();
    for step in variants {
        let is_its =
            |arm: &&&str| arm.strip_prefix(step).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
        let own: Vec<_> = arms.iter().filter(is_its).collect();
        assert!(!own.is_empty(), "{type_name}::{step} has no text of its own");
        let template = |arm: &&&'static str| arm.split('"').nth(1);
        // One that has steps of its own has no text.
        texts.extend(own.iter().filter_map(template).map(|template| Text::of(step, template)));
    }
    texts
}

fn texts() -> Vec<Text> {
    let (mut texts, shared) = (texts_of("Step"), texts_of("Shared"));
    assert!(!texts.iter().any(|text| text.step == "Shared"), "steps that are shared have texts of their own");
    texts.extend(shared);
    texts
}

/// The names of all steps.
pub(crate) fn all() -> BTreeSet<&'static str> {
    texts().iter().map(|text| text.step).collect()
}

/// The step that a text begins with.
pub(crate) fn named(message: &str) -> Option<&'static str> {
    let texts = texts();
    let fitting = texts.iter().filter(|text| text.begins(message));
    fitting.max_by_key(|text| text.says()).map(|text| text.step)
}

/// Those that an error's details say were taken back.
pub(crate) fn taken_back(details: &str) -> BTreeSet<&'static str> {
    let lists = details.lines().filter_map(|line| line.strip_prefix("taken back: "));
    lists.flat_map(|list| list.split("; ")).filter_map(named).collect()
}

#[test]
fn texts_of_steps_are_told_apart() {
    for (message, step) in [
        ("record the attachment: no space", "Record"),
        ("create veth weft012: exists", "Veth"),
        ("set lo up in the container: refused", "Loopback"),
        ("set eth0 up in the container: refused", "Up"),
        ("set net.core.somaxconn in the container: refused", "Sysctl"),
        ("add route ::/0 in the container", "Route"),
        ("add route ::/0 via fd00::1 in the container", "Route"),
        ("ensure bridge weft0: refused", "Bridge"),
        ("ensure the static rules", "Ruleset"),
        ("remove address 10.88.0.254/24 from bridge weft0", "ReplaceAddress"),
    ] {
        assert_eq!(named(message), Some(step), "{message}");
    }
    assert_eq!(named("lock /run/weft/net/lock: held"), None);
    for step in ["Record", "Neighbours", "Bridge", "RouteLocalnet"] {
        assert!(all().contains(step), "{:?}", all());
    }
}
