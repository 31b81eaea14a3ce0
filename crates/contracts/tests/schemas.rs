//! `schemas/` is generated from the Rust types: this test fails when it differs, and `make schemas` (which sets
//! `UPDATE_SCHEMAS`) writes it anew. `schemas/released/` holds what consumers already rely on; a change that would
//! break one of them fails here.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use contracts::{envelope, events, subject};
use serde_json::{Map, Value, json};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas"))
}

#[test]
fn the_schemas_folder_is_what_the_types_say() {
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap() + "\n";
    let mut files = BTreeMap::from([(root().join("asyncapi.yaml"), asyncapi())]);
    // What is released, and a sample of it, are written once.
    let mut new = BTreeMap::new();
    for registered in events::all() {
        let (file, schema) = (format!("{}.json", registered.name), text(&(registered.schema)()));
        new.insert(root().join("released").join(&file), schema.clone());
        if let Some(sample) = registered.sample {
            new.insert(root().join("samples").join(&file), text(&sample()));
        }
        files.insert(root().join(file), schema);
    }
    new.retain(|path, _| !path.exists());
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        for (path, wanted) in files.iter().chain(&new) {
            std::fs::write(path, wanted).unwrap();
        }
    }
    assert!(new.keys().all(|path| path.exists()), "run `make schemas`: it writes {:?}", new.keys());
    for (path, wanted) in files {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} differs from the Rust types: run `make schemas`", path.display());
    }
}

#[test]
fn no_released_schema_is_broken() {
    let now: BTreeMap<_, _> = events::all().map(|one| (format!("{}.json", one.name), (one.schema)())).collect();
    let mut released = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("released")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let old: Value = serde_json::from_str(&std::fs::read_to_string(entry.path()).unwrap()).unwrap();
        let new = now.get(&name).unwrap_or_else(|| panic!("{name} is released and may not go away; a draft that never left this branch: delete its files in schemas/"));
        let breaks = breaking(&old, new);
        assert!(breaks.is_empty(), "{name}: publish a new version beside it instead of: {breaks:#?}");
        released.insert(name);
    }
    let new: Vec<_> = now.keys().filter(|name| !released.contains(*name)).collect();
    assert!(new.is_empty(), "run `make schemas`: it writes what is released of {new:?}");
}

/// What in `new` a consumer or a stored event of `old` could not bear. Knows the subset of JSON Schema that schemars
/// makes of our types.
fn breaking(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(old, old, new, new, "$", &mut found);
    found
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => root.pointer(path.trim_start_matches('#')).expect("a $ref within the schema"),
        None => schema,
    }
}

fn compare(old_root: &Value, old: &Value, new_root: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    let (old, new) = (resolve(old_root, old), resolve(new_root, new));
    for keyword in ["type", "format", "const", "pattern"] {
        if old[keyword] != new[keyword] {
            found.push(format!("{at}: {keyword} was {}, is {}", old[keyword], new[keyword]));
        }
    }
    for keyword in ["enum", "oneOf", "anyOf"] {
        let members = |schema: &Value| -> BTreeSet<String> {
            schema[keyword]
                .as_array()
                .into_iter()
                .flatten()
                .map(|member| {
                    let mut member = member.clone();
                    member.as_object_mut().map(|object| object.remove("description"));
                    member.to_string()
                })
                .collect()
        };
        if members(old) != members(new) {
            found.push(format!("{at}: the variants of {keyword} changed"));
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    for name in required(new).symmetric_difference(&required(old)) {
        found.push(format!("{at}.{name}: became required or optional"));
    }
    let empty = Map::new();
    let (was, is) = (old["properties"].as_object().unwrap_or(&empty), new["properties"].as_object().unwrap_or(&empty));
    for (name, property) in was {
        match is.get(name) {
            Some(now) => compare(old_root, property, new_root, now, &format!("{at}.{name}"), found),
            None => found.push(format!("{at}.{name}: is gone")),
        }
    }
    if !old["items"].is_null() {
        compare(old_root, &old["items"], new_root, &new["items"], &format!("{at}[]"), found);
    }
}

#[test]
fn the_compatibility_check_finds_each_kind_of_break() {
    let old = events::schema("todo.created.v1").unwrap();
    assert!(breaking(&old, &old).is_empty());
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        !breaking(&old, &new).is_empty()
    };
    assert!(broken(&|s| s["$defs"]["Todo"]["properties"]["title"]["type"] = json!("integer")), "retyped");
    assert!(broken(&|s| drop(s["$defs"]["Todo"]["properties"].as_object_mut().unwrap().remove("notes"))), "removed");
    assert!(
        broken(&|s| {
            s["$defs"]["Todo"]["properties"]["colour"] = json!({"type": "string"});
            s["$defs"]["Todo"]["required"].as_array_mut().unwrap().push(json!("colour"));
        }),
        "a new required field"
    );
    assert!(broken(&|s| s["$defs"]["Todo"]["required"] = json!([])), "a field that may now be missing");
    assert!(
        broken(&|s| s["$defs"]["Status"] = json!({"type": "string", "enum": ["OPEN"]})),
        "a variant that went away"
    );
    assert!(!broken(&|s| s["$defs"]["Todo"]["properties"]["colour"] = json!({"type": "string"})), "optional is fine");
}

/// The fleet's events as an AsyncAPI 3.0 document (<https://www.asyncapi.com/docs/reference/specification/v3.0.0>).
/// The NATS binding must be empty, so what JetStream needs is in `x-jetstream`.
fn asyncapi() -> String {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut messages = Map::new();
    for registered in events::all() {
        let (name, schema) = (registered.name, (registered.schema)());
        let key = name.replace('.', "-");
        channels.insert(
            key.clone(),
            json!({
                "address": format!("evt.{name}.{{tenant}}"),
                "description": schema["$defs"][&data_name(&schema)]["description"],
                "parameters": {"tenant": {"description": "The tenant's id: ^[a-z0-9][a-z0-9-]{0,35}$"}},
                "messages": {"event": {"$ref": format!("#/components/messages/{key}")}},
            }),
        );
        operations.insert(
            format!("send-{key}"),
            json!({
                "action": "send",
                "channel": {"$ref": format!("#/channels/{key}")},
                "x-jetstream": {"stream": subject::stream(registered.service)},
            }),
        );
        let mut message = json!({
            "name": name,
            "contentType": envelope::CONTENT_TYPE,
            "x-owner": registered.owner,
            "payload": {"$ref": format!("./{name}.json")},
        });
        if let Some(newer) = registered.superseded_by {
            message["deprecated"] = json!(true);
            message["summary"] = json!(format!(
                "In its sunset: {newer} tells the same change, in the event that `twinof` names. Take whichever of the two you \
                 understand first, and count the other as handled."
            ));
        }
        messages.insert(key, message);
    }
    let document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Flotilla events",
            "version": "1.0.0",
            "description": "CloudEvents 1.0 in structured JSON on NATS JetStream. Generated from crates/contracts.",
        },
        "defaultContentType": envelope::CONTENT_TYPE,
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "The local stack: see `flotilla status`."}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    });
    let mut text = String::from("# Generated from crates/contracts: run `make schemas`.\n");
    yaml(&document, 0, &mut text);
    text
}

fn data_name(schema: &Value) -> String {
    let reference = schema["properties"]["data"]["$ref"].as_str().unwrap_or_default();
    reference.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Block style for maps and lists; scalars as JSON, which YAML 1.2 takes as it is.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&format!("{pad}{}:", if key.starts_with('$') { format!("'{key}'") } else { key.clone() }));
                nested(value, indent, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                out.push_str(&format!("{pad}-"));
                nested(item, indent, out);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push_str(&format!("{pad}{value}\n")),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    if value.is_object() || value.is_array() {
        out.push('\n');
        yaml(value, indent + 1, out);
    } else {
        out.push_str(&format!(" {value}\n"));
    }
}
