//! JSON as strictly as untrusted input needs it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::de::StrRead;
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::{Code, Error};

/// How deep lists and objects may be nested, the outermost included.
const LEVELS_MAX: usize = 128;

/// Reads one JSON object and nothing else: UTF-8, at most 128 levels, no key twice in an object.
///
/// # Errors
/// [`Code::Decode`], with the JSON path where one can be given. `source` names where the text is from.
pub(crate) fn parse_object(text: &[u8], source: &str) -> Result<Map<String, Value>, Error> {
    let refuse = |reason: String| Error::new(Code::Decode, format!("{source} {reason}"));
    let text = std::str::from_utf8(text)
        .map_err(|error| refuse(format!("is not UTF-8: byte {} is not valid", error.valid_up_to())))?;
    if text.trim_ascii().is_empty() {
        return Err(refuse("is empty: a JSON object is expected there".to_owned()));
    }
    let mut json = deserializer(text);
    // Tracking the path takes as long again as the reading: it is done only when there is an error to tell.
    let value = match (Level { depth: 0 }).deserialize(&mut json) {
        Ok(value) => value,
        Err(_) => {
            json = deserializer(text);
            tracked(&mut json).map_err(|reason| refuse(format!("cannot be decoded{reason}")))?
        }
    };
    json.end().map_err(|error| refuse(format!("has more than one JSON document: {error}")))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(refuse("is not a JSON object".to_owned())),
    }
}

/// A key whose value is null counts as absent, as it does for plugins in Go. The previous result is passed on as it came.
pub(crate) fn leave_out_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|key, value| {
        if key != "prevResult" {
            leave_out_inner_nulls(value);
        }
        !value.is_null()
    });
}

fn leave_out_inner_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(leave_out_inner_nulls),
        Value::Object(fields) => leave_out_nulls(fields),
        _ => {}
    }
}

fn deserializer(text: &str) -> serde_json::Deserializer<StrRead<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    // Its own limit is one level below this crate's.
    json.disable_recursion_limit();
    json
}

/// Reads a value; the error is where it is wrong and why.
fn tracked(json: &mut serde_json::Deserializer<StrRead<'_>>) -> Result<Value, String> {
    let mut track = serde_path_to_error::Track::new();
    let level = Level { depth: 0 };
    level.deserialize(serde_path_to_error::Deserializer::new(json, &mut track)).map_err(|error| {
        let path = track.path().to_string();
        let place = if path == "." { String::new() } else { format!(" at {path}") };
        format!("{place}: {error}")
    })
}

/// Reads any value that is nested this deep.
#[derive(Clone, Copy)]
struct Level {
    depth: usize,
}

impl Level {
    fn next<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == LEVELS_MAX {
            return Err(E::custom(format!("nested more than {LEVELS_MAX} levels deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.next()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.next()?;
        let mut map = Map::new();
        while let Some(key) = items.next_key::<String>()? {
            match map.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(items.next_value_seed(inner)?);
                }
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format!("the key {:?} is there twice", entry.key())));
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: impl AsRef<[u8]>) -> String {
        let error = parse_object(text.as_ref(), "stdin").unwrap_err();
        assert_eq!(error.code, Code::Decode);
        assert!(error.msg.starts_with("stdin "), "{error}");
        error.msg
    }

    fn nested(levels: usize) -> String {
        let inner = levels - 1;
        format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner))
    }

    #[test]
    fn one_object() {
        assert_eq!(parse_object(b" {\"a\": [1, -2, 1.5, null, true, \"x\"]}\n", "stdin").unwrap().len(), 1);
        assert!(refused("").contains("empty"));
        assert!(refused(" \n").contains("empty"));
        for text in ["[]", "1", "null", "\"x\""] {
            assert!(refused(text).contains("not a JSON object"), "{text}");
        }
        for text in ["{} {}", "{}x", "{},", "{}\0"] {
            assert!(refused(text).contains("more than one"), "{text}");
        }
        for text in [
            "{", "{\"a\"}", "{'a':1}", "{\"a\":1,}", "{\"a\":01}", "{\"a\":NaN}", "{a:1}", "\u{feff}{}",
            "{\"a\":1e999}",
        ] {
            assert!(refused(text).contains("cannot be decoded"), "{text}");
        }
        assert!(refused(b"{\"a\":\"\xff\"}").contains("not UTF-8: byte 6"));
        assert!(refused("{\"a\":\"\\ud800\"}").contains("cannot be decoded"));
    }

    #[test]
    fn no_key_twice() {
        assert!(refused(r#"{"a":1,"a":1}"#).contains("\"a\" is there twice"));
        let message = refused(r#"{"ipam":{"ranges":[[{"subnet":"x","\u0073ubnet":"y"}]]}}"#);
        assert!(
            message.contains("\"subnet\" is there twice") && message.contains("ipam.ranges[0][0]"),
            "{message}"
        );
        assert!(parse_object(br#"{"a":{"b":1},"b":{"b":1}}"#, "stdin").is_ok());
    }

    #[test]
    fn null_is_absent() {
        let mut conf = parse_object(
            br#"{"a":null,"b":{"c":null,"d":[{"e":null},null,1]},"prevResult":{"dns":null}}"#,
            "stdin",
        )
        .unwrap();
        leave_out_nulls(&mut conf);
        let left = serde_json::json!({ "b": { "d": [{}, null, 1] }, "prevResult": { "dns": null } });
        assert_eq!(Value::Object(conf), left);
    }

    #[test]
    fn levels() {
        assert!(parse_object(nested(128).as_bytes(), "stdin").is_ok());
        assert!(refused(nested(129)).contains("128 levels"));
        assert!(refused("[".repeat(1 << 20)).contains("128 levels"));
        assert!(refused("{\"a\":".repeat(100_000)).contains("128 levels"));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("\\PC*", inner, 0..5).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(map in prop::collection::btree_map("\\PC*", json(), 0..5)) {
            let value: Value = map.into_iter().collect();
            prop_assert_eq!(Value::Object(parse_object(value.to_string().as_bytes(), "stdin").unwrap()), value);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            if let Err(error) = parse_object(&bytes, "stdin") {
                prop_assert_eq!(error.code, Code::Decode);
            }
        }
    }
}
