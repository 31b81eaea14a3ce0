//! JSON in which no object names a member twice (RFC 8259, 4, leaves open which of them counts; readers differ). The number of
//! values is bounded too: in memory, a value takes many times the bytes of its text.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The most values in one text.
const MAX_VALUES: usize = 10_000;

/// Reads a JSON text.
///
/// # Errors
/// Fails when it is no JSON, an object names a member twice, or there are more than 10,000 values.
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { left: &Cell::new(MAX_VALUES) }.deserialize(&mut reader)?;
    reader.end().map(|()| value)
}

/// Turns field names into those of JSON: `due_time` becomes `dueTime`. Any other text stays as it is.
pub fn camel(names: &str) -> String {
    let mut text = String::with_capacity(names.len());
    let mut chars = names.chars().peekable();
    while let Some(c) = chars.next() {
        let inside = text.chars().last().is_some_and(|before| before.is_ascii_alphanumeric());
        match chars.peek() {
            Some(next) if c == '_' && inside && next.is_ascii_lowercase() => {
                text.push(next.to_ascii_uppercase());
                chars.next();
            }
            _ => text.push(c),
        }
    }
    text
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    /// How many more values are allowed.
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| de::Error::custom(format_args!("there are more than {MAX_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                let name: String = name.chars().take(100).collect();
                return Err(de::Error::custom(format_args!("an object names {name:?} twice")));
            }
            object.insert(name, members.next_value_seed(self)?);
        }
        Ok(Value::Object(object))
    }
}
