//! From the configuration's JSON to a plugin's own types.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Code, Error, node};

/// Reads a configuration into a plugin's type.
///
/// # Errors
/// [`Code::InvalidConfig`] with the JSON path of the value that does not fit, and why.
pub fn decode<T: DeserializeOwned>(conf: &Map<String, Value>) -> Result<T, Error> {
    decode_at("the configuration", "'s ", conf)
}

/// The same for an object inside of the configuration, with this key.
///
/// # Errors
/// As [`decode`].
pub fn decode_part<T: DeserializeOwned>(key: &str, part: &Map<String, Value>) -> Result<T, Error> {
    decode_at(key, ".", part)
}

fn decode_at<T: DeserializeOwned>(place: &str, joint: &str, object: &Map<String, Value>) -> Result<T, Error> {
    // Tracking the path takes as long again as the decoding: it is done only when there is an error to tell.
    if let Ok(decoded) = T::deserialize(node::of_object(object)) {
        return Ok(decoded);
    }
    serde_path_to_error::deserialize(node::of_object(object)).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { place.to_owned() } else { format!("{place}{joint}{path}") };
        Error::new(Code::InvalidConfig, format!("{place} is not valid: {}", error.inner()))
    })
}

/// The known key that was probably meant by an unknown one: it differs in letters' case or in at most a
/// third of its letters.
#[must_use]
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let key = key.to_lowercase();
    let distances = known.iter().map(|candidate| (distance(&key, &candidate.to_lowercase()), *candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    let tolerance = key.chars().count().max(candidate.len()) / 3;
    (distance <= tolerance).then_some(candidate)
}

/// How many letters must be inserted, removed or replaced to turn one text into the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(&to) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Conf {
        #[serde(default)]
        ranges: Vec<Vec<Range>>,
    }

    #[derive(Debug, Deserialize)]
    struct Range {
        subnet: ipnetwork::IpNetwork,
    }

    fn decode_json(json: &Value) -> Result<Conf, Error> {
        decode(json.as_object().unwrap())
    }

    #[test]
    fn errors_name_the_path() {
        let conf = decode_json(&json!({"ranges": [[{"subnet": "10.0.0.0/8"}]], "other": null})).unwrap();
        assert_eq!(conf.ranges[0][0].subnet.prefix(), 8);
        for (json, path) in [
            (json!({"ranges": 7}), "ranges"),
            (json!({"ranges": [[], [{"subnet": "10.0.0.0/8"}, {"subnet": "x"}]]}), "ranges[1][1].subnet"),
            (json!({"ranges": [[{}]]}), "ranges[0][0]"),
            (json!({"ranges": [[["10.0.0.0/8"]]]}), "ranges[0][0]"),
        ] {
            let error = decode_json(&json).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(&format!("configuration's {path} ")), "{error}");
        }
    }

    #[test]
    fn errors_say_what_to_give() {
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        struct Kinds {
            mtu: i64,
            port: u16,
            on: bool,
            name: String,
            allow: Vec<Map<String, Value>>,
            part: Option<Box<Kinds>>,
        }
        for (json, told) in [
            (
                json!({"mtu": "1500"}),
                "mtu is not valid: \"1500\" is a text: give a whole number without quotes",
            ),
            (json!({"mtu": 1.5}), "mtu is not valid: it is 1.5: give a whole number"),
            (
                json!({"port": -1}),
                "port is not valid: it is -1: give a number without quotes, from 0 to 65535",
            ),
            (
                json!({"port": 70000}),
                "port is not valid: it is 70000: give a number without quotes, from 0 to 65535",
            ),
            (
                json!({"on": "true"}),
                "on is not valid: \"true\" is a text: give true or false, without quotes",
            ),
            (json!({"name": 7}), "name is not valid: it is 7: give a text in quotes"),
            (json!({"name": null}), "name is not valid: it is null: give a text in quotes"),
            (json!({"allow": {}}), "allow is not valid: it is an object: give a list, in brackets"),
            (json!({"allow": [[]]}), "allow[0] is not valid: it is a list: give an object, in braces"),
            (json!({"part": true}), "part is not valid: it is true: give an object, in braces"),
            (json!({"part": []}), "part is not valid: it is a list: give an object, in braces"),
        ] {
            let error = decode::<Kinds>(json.as_object().unwrap()).unwrap_err();
            assert!(error.msg.starts_with(&format!("the configuration's {told}")), "{error}");
        }
    }

    #[test]
    fn nearest_key() {
        let known = ["isGateway", "isDefaultGateway", "ipMasq", "mtu", "hairpinMode"];
        for (key, expected) in [
            ("isgateway", Some("isGateway")),
            ("ipmasq", Some("ipMasq")),
            ("ipMask", Some("ipMasq")),
            ("hairpin", None),
            ("hairpinMod", Some("hairpinMode")),
            ("mut", None),
            ("MTU", Some("mtu")),
            ("vlan", None),
            ("", None),
        ] {
            assert_eq!(nearest(key, &known), expected, "{key}");
        }
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn letters_to_change() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("é", "e", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
