//! What was meant by a configuration that is wrong.

use std::fmt::Write as _;
use std::net::IpAddr;

use cni_protocol::canonicalize_keys;
use serde_json::{Map, Value, json};

use crate::NetworkConfig;
use crate::config::KEYS;

/// Nobody pastes a longer line.
const LONGEST: usize = 2000;

/// How comments begin and end. People know them from flannel's examples.
const COMMENTS: [(&str, &str); 3] = [("#", "\n"), ("//", "\n"), ("/*", "*/")];

/// The text of a configuration as it was meant, with all its other keys: comments are taken out, and what has one
/// remedy is corrected. `None` where a person has to choose.
///
/// One line of printable ASCII without apostrophes: it is to be pasted into a shell, and anybody may have written it.
#[must_use]
pub fn corrected(text: &str) -> Option<String> {
    let mut value: Value = serde_json::from_str(&without_comments(text).0).ok()?;
    let fields = value.as_object_mut()?;
    canonicalize_keys(fields, &KEYS);
    match fields.get_mut("Backend") {
        None | Some(Value::Null) => {
            fields.insert("Backend".to_owned(), json!({ "Type": "vxlan" }));
        }
        Some(Value::Object(backend)) => {
            backend.retain(|key, value| !key.eq_ignore_ascii_case("GBP") || *value != true);
        }
        Some(_) => {}
    }
    swap(fields, "SubnetMin", "SubnetMax");
    swap(fields, "IPv6SubnetMin", "IPv6SubnetMax");
    let text = in_ascii(&value.to_string());
    (text.len() <= LONGEST && NetworkConfig::parse(&text).is_ok()).then_some(text)
}

/// Puts two bounds in order.
fn swap(fields: &mut Map<String, Value>, min: &str, max: &str) {
    let bound = |key| fields.get(key)?.as_str()?.parse::<IpAddr>().ok();
    let (Some(first), Some(last)) = (bound(min), bound(max)) else { return };
    // An unspecified address is no bound.
    if first > last && !last.is_unspecified() {
        fields.insert(min.to_owned(), last.to_string().into());
        fields.insert(max.to_owned(), first.to_string().into());
    }
}

/// JSON has what is no ASCII, and apostrophes, in texts alone, which may have any character by its number.
fn in_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        if matches!(char, ' '..='~') && char != '\'' {
            ascii.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    ascii
}

/// A text without its comments, where JSON would have a key or a value, and how the first of them begins.
pub(crate) fn without_comments(text: &str) -> (String, Option<&'static str>) {
    let (mut kept, mut first) = (String::with_capacity(text.len()), None);
    let mut in_string = false;
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let comment = COMMENTS.into_iter().find(|(begin, _)| !in_string && rest.starts_with(begin));
        if let Some((begin, end)) = comment {
            first.get_or_insert(begin);
            rest = rest.split_once(end).map_or("", |(_, behind)| behind);
            kept.push(' ');
            continue;
        }
        let escaped = if in_string && char == '\\' { rest[1..].chars().next() } else { None };
        in_string ^= char == '"';
        let (taken, behind) = rest.split_at(char.len_utf8() + escaped.map_or(0, char::len_utf8));
        kept.push_str(taken);
        rest = behind;
    }
    (kept, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_one_remedy_is_corrected_and_the_rest_stays() {
        for (text, right) in [
            (r#"{"Network":"10.9.0.0/16"}"#, r#"{"Backend":{"Type":"vxlan"},"Network":"10.9.0.0/16"}"#),
            (
                "{ // all\n\"network\": \"10.9.0.0/16\", /* \"x\" */ \"Mine\": \"a//b\\\"#\" # own\n}",
                r##"{"Backend":{"Type":"vxlan"},"Mine":"a//b\"#","Network":"10.9.0.0/16"}"##,
            ),
            (
                r#"{"Network":"10.9.0.0/16","EnableIPv6":true,"IPv6Network":"fd09::/48","Backend":null}"#,
                r#"{"Backend":{"Type":"vxlan"},"EnableIPv6":true,"IPv6Network":"fd09::/48","Network":"10.9.0.0/16"}"#,
            ),
            (
                r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan","gbp":true,"VNI":7}}"#,
                r#"{"Backend":{"Type":"vxlan","VNI":7},"Network":"10.9.0.0/16"}"#,
            ),
            (
                r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.0","SubnetMax":"10.9.4.0","Backend":{"Type":"host-gw"}}"#,
                r#"{"Backend":{"Type":"host-gw"},"Network":"10.9.0.0/16","SubnetMax":"10.9.9.0","SubnetMin":"10.9.4.0"}"#,
            ),
        ] {
            assert_eq!(corrected(text).as_deref(), Some(right), "{text}");
        }
    }

    #[test]
    fn what_a_person_has_to_choose_is_not_guessed() {
        let vast = format!(r#"{{"Network":"10.9.0.0/16","x":"{}"}}"#, "x".repeat(LONGEST));
        for text in [
            "",
            "{",
            "\"x\"",
            "{}",
            "/*",
            r#"{"Network":"10.9.0.0/33"}"#,
            r#"{"Network":"10.9.0.0/16",}"#,
            r#"{"Network":"10.9.0.0/16","Backend":{"Type":"udp"}}"#,
            r#"{"Network":"10.9.0.0/16","Backend":7}"#,
            r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.7","SubnetMax":"0.0.0.0"}"#,
            r#"{"Network":"10.9.0.0/16","EnableIPv6":true}"#,
            &vast,
        ] {
            assert_eq!(corrected(text), None, "{text}");
        }
    }

    #[test]
    fn a_pasted_line_runs_and_hides_nothing() {
        let text = "{\"Network\":\"10.9.0.0/16\",\"it's\":\"\u{9b}2J\u{202e}😀'; reboot; '\\u001b\"}";
        let right = corrected(text).unwrap();
        assert!(right.chars().all(|char| matches!(char, ' '..='~') && char != '\''), "{right}");
        let (meant, found): (Value, Value) =
            (serde_json::from_str(text).unwrap(), serde_json::from_str(&right).unwrap());
        assert_eq!(found["it's"], meant["it's"]);
    }
}
