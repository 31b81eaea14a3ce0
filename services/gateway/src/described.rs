//! Messages as JSON Schemas (2020-12), from their descriptors, comments and `flotilla.edge.v1.field`.

use std::collections::BTreeMap;

use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::fields::{IMMUTABLE, INPUT_ONLY, OUTPUT_ONLY, REQUIRED, behaves, is_wrapper};

/// The comment of what is at this path of its file.
pub fn comment(file: &FileDescriptorProto, path: &[i32]) -> String {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let comment = locations.filter(|location| location.path == path).find_map(|at| at.leading_comments.as_deref());
    comment.unwrap_or_default().lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// The first sentence of a comment.
pub fn summary(comment: &str) -> &str {
    comment.split_once(". ").map_or(comment, |(first, _)| first).trim_end_matches('.')
}

/// Whether a caller must give a field.
pub fn is_required(field: &FieldDescriptor) -> bool {
    behaves(field, REQUIRED)
}

/// The schemas of a document's messages and enums, by their names there.
#[derive(Default)]
pub struct Schemas {
    all: BTreeMap<String, Value>,
    /// The full name of what has a name.
    names: BTreeMap<String, String>,
}

/// Which fields of a message its schema has, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All of them.
    Whole,
    /// Those that can be changed, none of which must be given.
    Changes,
}

impl Schemas {
    /// All of them.
    pub fn into_values(self) -> BTreeMap<String, Value> {
        self.all
    }

    /// A name that nothing else has.
    fn named(&mut self, full: &str, package: &str, short: &str) -> String {
        let taken = |names: &BTreeMap<String, String>, name: &str| names.get(name).is_some_and(|other| other != full);
        let name = if taken(&self.names, short) {
            // Another package has one of that name.
            let of: String = package.split('.').nth(1).unwrap_or_default().to_owned();
            let (first, rest) = of.split_at_checked(1).unwrap_or_default();
            format!("{}{rest}{short}", first.to_uppercase())
        } else {
            short.to_owned()
        };
        self.names.insert(name.clone(), full.to_owned());
        name
    }

    /// A reference to a message's schema.
    pub fn message(&mut self, message: &MessageDescriptor, form: Form) -> Value {
        if let Some(schema) = well_known(message) {
            return schema;
        }
        let package = message.package_name();
        let short = message.full_name().trim_start_matches(package).replace('.', "");
        let suffix = if form == Form::Changes { "Changes" } else { "" };
        let name = self.named(&format!("{}{suffix}", message.full_name()), package, &format!("{short}{suffix}"));
        if !self.all.contains_key(&name) {
            // A message may hold itself.
            self.all.insert(name.clone(), Value::Null);
            let fields = message
                .fields()
                .filter(|field| form == Form::Whole || !(behaves(field, OUTPUT_ONLY) || behaves(field, IMMUTABLE)));
            let mut schema = self.object(fields, form == Form::Whole);
            if form == Form::Changes {
                let properties = schema["properties"].as_object_mut().into_iter().flatten();
                let may_go =
                    |json: &str| message.get_field_by_json_name(json).is_some_and(|field| !is_required(&field));
                properties.filter(|(name, _)| may_go(name)).for_each(|(_, property)| or_null(property));
            }
            schema["description"] = comment(message.parent_file().file_descriptor_proto(), message.path()).into();
            if form == Form::Changes {
                schema["additionalProperties"] = false.into();
            }
            self.all.insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// The schema of an object of these fields.
    pub fn object(&mut self, fields: impl Iterator<Item = FieldDescriptor>, required: bool) -> Value {
        let (mut properties, mut must) = (Map::new(), Vec::new());
        for field in fields {
            if required && is_required(&field) {
                must.push(Value::from(field.json_name()));
            }
            properties.insert(field.json_name().to_owned(), self.field(&field));
        }
        let mut schema = json!({"type": "object", "properties": properties});
        if !must.is_empty() {
            schema["required"] = must.into();
        }
        schema
    }

    /// The schema of a field, with what is said about it.
    pub fn field(&mut self, field: &FieldDescriptor) -> Value {
        let limits = limits(field);
        let limit =
            |name: &str| limits.as_ref().and_then(|limits| limits.get_field_by_name(name).map(|v| v.into_owned()));
        let mut schema = if field.is_map() {
            let value = field.kind().as_message().map(|entry| entry.map_entry_value_field());
            json!({"type": "object", "additionalProperties": value.map_or(json!(true), |value| self.kind(&value))})
        } else {
            let mut item = self.kind(field);
            for (option, keyword) in [("min_length", "minLength"), ("max_length", "maxLength")] {
                if let Some(most) = limit(option).and_then(|value| value.as_u32()).filter(|most| *most > 0) {
                    item[keyword] = most.into();
                }
            }
            for keyword in ["minimum", "maximum"] {
                let given = limits.as_ref().is_some_and(|limits| limits.has_field_by_name(keyword));
                if let Some(bound) = limit(keyword).and_then(|value| value.as_i64()).filter(|_| given) {
                    item[keyword] = bound.into();
                }
            }
            for keyword in ["format", "pattern"] {
                if let Some(text) =
                    limit(keyword).and_then(|v| v.as_str().map(ToOwned::to_owned)).filter(|t| !t.is_empty())
                {
                    item[keyword] = text.into();
                }
            }
            if field.is_list() { json!({"type": "array", "items": item}) } else { item }
        };
        if let Some(most) = limit("max_items").and_then(|value| value.as_u32()).filter(|most| *most > 0) {
            schema["maxItems"] = most.into();
        }
        if let Some(example) = limit("example").and_then(|value| serde_json::from_str::<Value>(value.as_str()?).ok()) {
            schema["examples"] = json!([example]);
        }
        let said = comment(field.parent_message().parent_file().file_descriptor_proto(), field.path());
        if !said.is_empty() {
            schema["description"] = said.into();
        }
        if behaves(field, OUTPUT_ONLY) {
            schema["readOnly"] = true.into();
        }
        if behaves(field, INPUT_ONLY) {
            schema["writeOnly"] = true.into();
        }
        schema
    }

    fn kind(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "format": "int64", "minimum": 0}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "integer", "format": "int64"}),
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "integer", "minimum": 0}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Message(message) => self.message(&message, Form::Whole),
            Kind::Enum(of) => self.enumeration(&of),
        }
    }

    fn enumeration(&mut self, of: &EnumDescriptor) -> Value {
        let package = of.package_name();
        let short = of.full_name().trim_start_matches(package).replace('.', "");
        let name = self.named(of.full_name(), package, &short);
        let file = of.parent_file();
        let file = file.file_descriptor_proto();
        let values: Vec<_> = of.values().collect();
        let explained: Vec<String> =
            values.iter().map(|value| format!("- `{}`: {}", value.name(), comment(file, value.path()))).collect();
        let schema = json!({
            "type": "string",
            "enum": values.iter().map(prost_reflect::EnumValueDescriptor::name).collect::<Vec<_>>(),
            "description": format!("{}\n\n{}", comment(file, of.path()), explained.join("\n")),
        });
        self.all.insert(name.clone(), schema);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }
}

/// Lets a schema take null too, which clears the field.
fn or_null(schema: &mut Value) {
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.take(), "null"]);
    } else if let Some(reference) = schema.as_object_mut().and_then(|schema| schema.remove("$ref")) {
        schema["anyOf"] = json!([{"$ref": reference}, {"type": "null"}]);
    }
}

/// The option `flotilla.edge.v1.field`.
fn limits(field: &FieldDescriptor) -> Option<DynamicMessage> {
    let option = field.parent_message().parent_pool().get_extension_by_name("flotilla.edge.v1.field")?;
    let options = field.options();
    options.has_extension(&option).then(|| options.get_extension(&option).as_message().cloned()).flatten()
}

/// A message with JSON of its own.
fn well_known(message: &MessageDescriptor) -> Option<Value> {
    Some(match message.full_name() {
        "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
        "google.protobuf.Duration" => json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"}),
        "google.protobuf.FieldMask" => json!({"type": "string"}),
        "google.protobuf.Empty" => json!({"type": "object"}),
        "google.protobuf.BoolValue" => json!({"type": ["boolean", "null"]}),
        "google.protobuf.StringValue" => json!({"type": ["string", "null"]}),
        "google.protobuf.BytesValue" => json!({"type": ["string", "null"], "contentEncoding": "base64"}),
        "google.protobuf.DoubleValue" | "google.protobuf.FloatValue" => json!({"type": ["number", "null"]}),
        name if is_wrapper(name) => json!({"type": ["integer", "null"]}),
        _ => return None,
    })
}
