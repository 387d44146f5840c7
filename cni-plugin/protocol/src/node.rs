//! Decoding JSON values into types, without serde's leniency.

use std::fmt::{self, Display};

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserializer, Error as _, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

/// A value to be decoded. Serde takes a list for a struct, its items for the fields in their order, so that
/// `"dns": []` would pass; here an object is required.
#[derive(Clone, Copy)]
pub(crate) struct Node<'de>(pub(crate) &'de Value);

/// Why a value does not fit, and what would, in words for people who write JSON.
#[derive(Debug)]
pub(crate) struct Misfit(Box<str>);

impl Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: Display>(why: T) -> Self {
        Self(why.to_string().into())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("{}: give {}", what(&found), wanted(expected)).into())
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

fn what(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(text) => format!("{text:?} is a text"),
        Unexpected::Seq => "it is a list".to_owned(),
        Unexpected::Map => "it is an object".to_owned(),
        Unexpected::Unit => "it is null".to_owned(),
        Unexpected::Bool(value) => format!("it is {value}"),
        Unexpected::Signed(value) => format!("it is {value}"),
        Unexpected::Unsigned(value) => format!("it is {value}"),
        Unexpected::Float(value) => format!("it is {value}"),
        other => format!("it is {other}"),
    }
}

/// Serde says it by the names of Rust's types.
fn wanted(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "u8" => "a number without quotes, from 0 to 255".to_owned(),
        "u16" => "a number without quotes, from 0 to 65535".to_owned(),
        "u32" => "a number without quotes, from 0 to 4294967295".to_owned(),
        "u64" | "u128" | "usize" => "a whole number without quotes, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number without quotes".to_owned(),
        "f32" | "f64" => "a number without quotes".to_owned(),
        "a boolean" => "true or false, without quotes".to_owned(),
        "a string" | "a borrowed string" => "a text in quotes".to_owned(),
        "a sequence" => "a list, in brackets".to_owned(),
        "a map" => "an object, in braces".to_owned(),
        name if name.starts_with("struct ") => "an object, in braces".to_owned(),
        other => other.to_owned(),
    }
}

/// An object to be decoded.
pub(crate) fn of_object(object: &Map<String, Value>) -> impl Deserializer<'_, Error = Misfit> {
    MapDeserializer::new(object.iter().map(|(key, value)| (key.as_str(), Node(value))))
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (_, Some(value)) => visitor.visit_i64(value),
                _ => visitor.visit_f64(value.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Node));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(object) => of_object(object).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if self.0.is_array() {
            return Err(Misfit::invalid_type(Unexpected::Seq, &"an object, in braces"));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.0.deserialize_enum(name, variants, visitor).map_err(Misfit::custom)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Misfit> for Node<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
