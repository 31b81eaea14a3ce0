//! The fields of a request, as JSON: their names, and what path, query and forms put into them.

use std::collections::HashSet;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use crate::json::camel;
use crate::problem::Problem;

/// Values of `google.api.field_behavior`.
pub const REQUIRED: i32 = 2;
pub const OUTPUT_ONLY: i32 = 3;
pub const INPUT_ONLY: i32 = 4;
pub const IMMUTABLE: i32 = 5;

/// Whether a field has this `google.api.field_behavior`.
pub fn behaves(field: &FieldDescriptor, behaviour: i32) -> bool {
    let option = field.parent_message().parent_pool().get_extension_by_name("google.api.field_behavior");
    let options = field.options();
    option.is_some_and(|option| {
        let values = options.get_extension(&option);
        values.as_list().is_some_and(|all| all.iter().any(|one| one.as_enum_number() == Some(behaviour)))
    })
}

/// Refuses fields that the message does not have, and a field under both its names, `dueTime` and `due_time`:
/// such a request is ambiguous. `at` points at the message.
pub fn known_once(message: &MessageDescriptor, fields: &Map<String, Value>, at: &str) -> Result<(), Problem> {
    // These messages have JSON of their own.
    if message.full_name().starts_with("google.protobuf.") {
        return Ok(());
    }
    let mut seen = HashSet::new();
    for (name, value) in fields {
        let short: String = name.chars().take(100).collect();
        let at = format!("{at}/{}", escaped(&short));
        let wrong = |what: String| Problem::invalid_at(at.clone(), what);
        let Some(field) = field(message, name) else {
            return Err(wrong(format!("there is no field {short:?}")));
        };
        if !seen.insert(field.number()) {
            return Err(wrong(format!("{} is given twice, under both its names", field.json_name())));
        }
        if let (Kind::Message(inner), false) = (field.kind(), field.is_map()) {
            match value {
                Value::Object(fields) => known_once(&inner, fields, &at)?,
                Value::Array(list) => {
                    for (index, fields) in list.iter().enumerate() {
                        let Value::Object(fields) = fields else { continue };
                        known_once(&inner, fields, &format!("{at}/{index}"))?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The pointer to a parameter of the query or the path.
pub fn parameter(path: &str) -> String {
    let short: String = path.chars().take(100).collect();
    format!("#/{}", escaped(&short).replace('.', "/"))
}

/// Escapes a name for a JSON pointer (RFC 6901, 3).
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

pub fn field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_json_name(name).or_else(|| message.get_field_by_name(name))
}

/// Inserts a text at a field path (`todo.title`), as JSON of the field's kind.
pub fn insert(
    object: &mut Map<String, Value>,
    message: &MessageDescriptor,
    path: &str,
    text: &str,
    append: bool,
) -> Result<(), Problem> {
    let wrong = |detail: String| Problem::invalid_at(parameter(path), detail);
    let unknown = || wrong(format!("there is no parameter {:?}", path.chars().take(100).collect::<String>()));
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = field(message, name).ok_or_else(unknown)?;
    if let Some(rest) = rest {
        let Kind::Message(inner) = field.kind() else { return Err(unknown()) };
        if field.is_list() || field.is_map() {
            return Err(unknown());
        }
        let child = object.entry(field.json_name()).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(child) = child else { return Err(unknown()) };
        return insert(child, &inner, rest, text, append);
    }
    let value = leaf(&field, text).ok_or_else(|| wrong(format!("{text:?} is not a value of {path}")))?;
    if append {
        return put(object, &field, path, value);
    }
    object.remove(field.name());
    object.insert(field.json_name().to_owned(), value);
    Ok(())
}

/// Puts a parameter's value into its field, or behind those that are there.
pub fn put(object: &mut Map<String, Value>, field: &FieldDescriptor, path: &str, value: Value) -> Result<(), Problem> {
    if field.is_list() {
        if let Value::Array(list) = object.entry(field.json_name()).or_insert_with(|| Value::Array(Vec::new())) {
            list.push(value);
        }
    } else if object.insert(field.json_name().to_owned(), value).is_some() {
        return Err(Problem::invalid_at(parameter(path), format!("the parameter {path} is given twice")));
    }
    Ok(())
}

fn leaf(field: &FieldDescriptor, text: &str) -> Option<Value> {
    match field.kind() {
        Kind::Bool => text.parse().ok().map(Value::Bool),
        Kind::Enum(_) => Some(text.parse::<i32>().map_or_else(|_| text.into(), Value::from)),
        Kind::Message(message) => {
            // Take both spellings of a field's name, as everywhere.
            match message.full_name() {
                "google.protobuf.FieldMask" => Some(camel(text).into()),
                "google.protobuf.Timestamp" | "google.protobuf.Duration" => Some(text.into()),
                "google.protobuf.BoolValue" => text.parse().ok().map(Value::Bool),
                name if is_wrapper(name) => Some(text.into()),
                _ => None,
            }
        }
        // Numbers may be texts in proto3 JSON.
        _ => Some(text.into()),
    }
}

/// Whether a message is the wrapper of one value: its JSON is that value, or null.
pub fn is_wrapper(full_name: &str) -> bool {
    const OF: [&str; 9] = ["Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"];
    let name = full_name.strip_prefix("google.protobuf.").and_then(|name| name.strip_suffix("Value"));
    name.is_some_and(|of| OF.contains(&of))
}
