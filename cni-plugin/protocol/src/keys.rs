//! Keys as users of programs that read either spelling write them: Go's encoding/json ignores case.

use serde_json::{Map, Value};

/// Gives fields whose keys differ from `keys` by ASCII case alone the spelling that `keys` has. Whoever gives both
/// means the one spelled right; the other is an unknown key then.
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
