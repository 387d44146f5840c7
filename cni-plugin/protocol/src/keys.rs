//! Keys as those write them whose programs read either spelling: encoding/json of Go ignores case.

use serde_json::{Map, Value};

/// Gives fields whose keys differ from `keys` by ASCII case alone the spelling that they have there. Whoever gives both
/// means the one that is written right; the other is an unknown key then.
pub fn canonicalize_keys(fields: &mut Map<String, Value>, keys: &[&str]) {
    for key in keys {
        if fields.contains_key(*key) {
            continue;
        }
        let other = fields.keys().find(|other| other.eq_ignore_ascii_case(key)).cloned();
        if let Some(value) = other.and_then(|other| fields.remove(&other)) {
            fields.insert((*key).to_owned(), value);
        }
    }
}
