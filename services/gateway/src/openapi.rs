//! The API's description, OpenAPI 3.1, from the descriptors: nothing of it is written by hand, and a new RPC is in it.

use std::collections::BTreeMap;

use http::Method;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};
use service::consistency;
use service::policy::Idempotency;

use crate::described::{Form, Schemas, comment, is_required, summary};
use crate::problem::PROBLEM_SCHEMA;
use crate::routes::{Answers, HTTP_BODY, Route, Routes, Takes};

/// What the description says of the API as a whole.
const ABOUT: &str = include_str!("openapi.md");

/// The description of these routes.
#[must_use]
pub fn document(routes: &Routes) -> Value {
    let (mut paths, mut tags) = (BTreeMap::<String, Map<String, Value>>::new(), BTreeMap::<String, Value>::new());
    let mut schemas = Schemas::default();
    for route in routes.all() {
        let service = route.rpc.parent_service();
        let tag = service.name().trim_end_matches("Service").to_owned();
        let about = comment(service.parent_file().file_descriptor_proto(), service.path());
        tags.entry(tag.clone()).or_insert_with(|| json!({"name": tag, "description": about}));
        let path = paths.entry(without_patterns(&route.pattern)).or_default();
        path.insert(route.verb.as_str().to_ascii_lowercase(), operation(route, &tag, &mut schemas));
    }
    let mut schemas = schemas.into_values();
    schemas.insert("Problem".to_owned(), serde_json::from_str(PROBLEM_SCHEMA).unwrap_or_default());
    schemas.insert("OAuthError".to_owned(), oauth_error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Flotilla", "version": "v1", "summary": "Todos of a tenant, found, watched and kept.", "description": ABOUT,
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "contact": {"name": "Whoever runs this fleet", "url": "https://flotilla.example", "email": "api@flotilla.example"},
        },
        "servers": [{"url": "/", "description": "This gateway"}],
        "security": [{"bearer": []}],
        "tags": tags.into_values().collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "Problem": {"description": "What went wrong, by its `code`.", "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
                "TryAgain": {
                    "description": "Not now: try again after the time in `Retry-After`.",
                    "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}},
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                },
                "OAuthError": {"description": "OAuth's error (RFC 6749, 5.2).", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OAuthError"}}}},
            },
            "securitySchemes": {"bearer": {
                "type": "http", "scheme": "bearer",
                "description": "A key (`flk_…`), a token of your OpenID provider, or a token of the fleet's from `POST /v1/token`.",
            }},
        },
    })
}

fn oauth_error() -> Value {
    json!({"type": "object", "description": "OAuth's error.", "required": ["error"], "properties": {
        "error": {"type": "string", "description": "Which one.", "examples": ["invalid_grant"]},
        "error_description": {"type": "string", "description": "What to do."},
    }})
}

fn operation(route: &Route, tag: &str, schemas: &mut Schemas) -> Value {
    let rpc = &route.rpc;
    let said = comment(rpc.parent_service().parent_file().file_descriptor_proto(), rpc.path());
    let (first, rest) = rpc.name().split_at_checked(1).unwrap_or_default();
    let mut operation = json!({
        "operationId": format!("{}{rest}{}", first.to_ascii_lowercase(), match route.binding {
            1 => String::new(),
            other => other.to_string(),
        }),
        "tags": [tag], "summary": summary(&said), "description": said,
        "parameters": parameters(route, schemas), "responses": responses(route, schemas),
    });
    if route.policy.public {
        // The method verifies what it takes: a token of the provider's, or nothing.
        operation["security"] = if route.policy.oauth { json!([]) } else { json!([{"bearer": []}, {}]) };
    }
    if let Some(body) = body(route, schemas) {
        operation["requestBody"] = body;
    }
    if let Some(deprecation) = &route.policy.deprecation {
        operation["deprecated"] = true.into();
        operation["x-sunset"] = deprecation.sunset.clone().into();
    }
    operation["x-cost"] = route.policy.cost.get().into();
    operation
}

/// A path template without what its variables match: `/v1/{name=shelves/*}` is `/v1/{name}`.
fn without_patterns(template: &str) -> String {
    let mut parts = template.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| {
        let (variable, rest) = part.split_once('}').unwrap_or((part, ""));
        path + "{" + variable.split('=').next().unwrap_or_default() + "}" + rest
    })
}

/// The field that a path of names leads to: `book.name`.
fn at(message: &MessageDescriptor, path: &str) -> Option<FieldDescriptor> {
    match path.split_once('.') {
        None => message.get_field_by_name(path),
        Some((name, rest)) => at(message.get_field_by_name(name)?.kind().as_message()?, rest),
    }
}

/// The fields that the path sets.
fn in_path(route: &Route) -> Vec<String> {
    let parts = route.pattern.split('{').skip(1);
    parts.filter_map(|part| Some(part.split(['}', '=']).next()?.to_owned())).collect()
}

fn parameters(route: &Route, schemas: &mut Schemas) -> Vec<Value> {
    let (input, path) = (route.rpc.input(), in_path(route));
    let mut all = Vec::new();
    for name in &path {
        let Some(field) = at(&input, name) else { continue };
        let (schema, about) = described(schemas.field(&field));
        all.push(json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema}));
    }
    let body_fills = |field: &FieldDescriptor| route.body == "*" || route.body == field.name();
    let mut query = Vec::new();
    for field in input.fields().filter(|field| !body_fills(field) && !path.iter().any(|name| name == field.name())) {
        // Headers say these.
        if field.name() == "last_event_id" || (field.name() == "etag" && route.verb != Method::GET) {
            continue;
        }
        leaves(&field, field.json_name(), &mut query);
    }
    for (name, field) in query {
        let (schema, about) = described(schemas.field(&field));
        let required = is_required(&field);
        all.push(json!({"name": name, "in": "query", "required": required, "description": about, "schema": schema}));
    }
    all.extend(headers(route));
    all
}

/// The fields that a query names, those of messages with a point between.
fn leaves(field: &FieldDescriptor, name: &str, all: &mut Vec<(String, FieldDescriptor)>) {
    match field.kind() {
        Kind::Message(message) if !message.full_name().starts_with("google.protobuf.") => {
            if !field.is_list() && !field.is_map() && name.matches('.').count() < 3 {
                for inner in message.fields() {
                    leaves(&inner, &format!("{name}.{}", inner.json_name()), all);
                }
            }
        }
        _ => all.push((name.to_owned(), field.clone())),
    }
}

/// A schema, and what it says, for where that stands beside it.
fn described(mut schema: Value) -> (Value, Value) {
    let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
    (schema, about.unwrap_or_else(|| "".into()))
}

fn headers(route: &Route) -> Vec<Value> {
    let header = |name: &str, required: bool, about: &str, example: &str| {
        json!({"name": name, "in": "header", "required": required, "description": about,
               "schema": {"type": "string", "examples": [example]}})
    };
    let mut all = Vec::new();
    let changes = route.verb != Method::GET && route.takes_key();
    if changes {
        let required = route.policy.idempotency == Idempotency::Required;
        let about = "A new one for each intent, the same for each retry of it: the change then happens once.";
        all.push(header("Idempotency-Key", required, about, "8e03978e-40d5-43e8-bc93-6894a57f9324"));
    }
    let has_etag = |message: &MessageDescriptor| message.get_field_by_name("etag").is_some();
    let input = route.rpc.input();
    let resource = input.get_field_by_name(&route.body).and_then(|field| field.kind().as_message().cloned());
    if changes
        && (has_etag(&input) || resource.is_some_and(|resource| route.verb != Method::POST && has_etag(&resource)))
    {
        let about = "The change happens only to a version with one of these entity tags.";
        all.push(header("If-Match", false, about, "\"v3\""));
    }
    if route.verb == Method::GET && has_etag(&route.rpc.output()) {
        let about = "Entity tags that the caller has: 304 where the version is one of them.";
        all.push(header("If-None-Match", false, about, "\"v3\""));
    }
    if input.get_field_by_name("last_event_id").is_some() {
        let about = "The id of the last event that the caller has had: the stream goes on behind it.";
        all.push(header("Last-Event-ID", false, about, ""));
    }
    for name in &route.policy.request_headers {
        if *name == consistency::TOKEN {
            let about = "That of a change's answer: the read waits up to two seconds until its copy has the change.";
            all.push(header("Consistency-Token", false, about, "dG9kbzo3"));
        } else {
            all.push(header(name.as_str(), false, "What the sender signs, or says.", ""));
        }
    }
    all
}

fn body(route: &Route, schemas: &mut Schemas) -> Option<Value> {
    if route.body.is_empty() {
        return None;
    }
    let (input, path) = (route.rpc.input(), in_path(route));
    let schema = match input.get_field_by_name(&route.body).and_then(|field| field.kind().as_message().cloned()) {
        Some(resource) if resource.full_name() == HTTP_BODY => json!({}),
        Some(resource) if route.verb == Method::PATCH => schemas.message(&resource, Form::Changes),
        Some(resource) => schemas.message(&resource, Form::Whole),
        None if input.full_name() == HTTP_BODY => json!({}),
        None => {
            let fields = input.fields().filter(|field| !path.iter().any(|name| name == field.name()));
            let mut schema = schemas.object(fields, true);
            if !route.policy.form {
                schema["additionalProperties"] = false.into();
            }
            if route.policy.form { in_proto_names(&input, schema) } else { schema }
        }
    };
    let media: &[&str] = match route.takes {
        Takes::Raw(_) => &["*/*"],
        _ => route.takes.names().get(..if route.policy.form { 2.min(route.takes.names().len()) } else { 1 })?,
    };
    let content: Map<String, Value> =
        media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
    let most = route.max_body_bytes();
    let must = schema["required"].is_array() || (route.verb == Method::POST && route.body != "*");
    Some(json!({"required": must, "description": format!("At most {most} bytes."), "content": content}))
}

/// The properties of an object by the names of the proto.
fn in_proto_names(message: &MessageDescriptor, mut schema: Value) -> Value {
    let Some(Value::Object(properties)) = schema.get_mut("properties").map(Value::take) else { return schema };
    let name =
        |json: &str| message.get_field_by_json_name(json).map_or_else(|| json.to_owned(), |f| f.name().to_owned());
    schema["properties"] = properties.into_iter().map(|(json, schema)| (name(&json), schema)).collect();
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        for must in required {
            *must = must.as_str().map_or(Value::Null, |json| name(json).into());
        }
    }
    schema
}

fn responses(route: &Route, schemas: &mut Schemas) -> Value {
    let mut all = Map::new();
    let output = route.rpc.output();
    let about = comment(output.parent_file().file_descriptor_proto(), output.path());
    let about = if about.is_empty() || about.starts_with("A generic empty") { "It is done." } else { &about };
    let content = match route.answers {
        Answers::Json => {
            let schema = match &route.response_body {
                Some(field) => schemas.field(field),
                None => schemas.message(&output, Form::Whole),
            };
            json!({"application/json": {"schema": schema}})
        }
        Answers::Oauth => {
            let schema = schemas.object(output.fields(), false);
            json!({"application/json": {"schema": in_proto_names(&output, schema)}})
        }
        Answers::Raw => json!({"*/*": {}}),
        // Each event's `data` is one of these; the last may be why the stream ends.
        Answers::Events => {
            let data =
                json!({"oneOf": [schemas.message(&output, Form::Whole), {"$ref": "#/components/schemas/Problem"}]});
            json!({"text/event-stream": {"schema": {"type": "string", "contentMediaType": "application/json", "contentSchema": data}}})
        }
    };
    let mut headers = Map::new();
    let mut header = |name: &str, about: &str| {
        headers.insert(name.to_owned(), json!({"description": about, "schema": {"type": "string"}}));
    };
    header("Trace-Id", "What to name when you ask for help.");
    header("Flotilla-Degraded", "The backing services that the answer was made without.");
    header("Cache-Control", "Who may keep the answer, and for how long.");
    header("RateLimit-Policy", "The caller's rates, in units of cost: `x-cost` of each method.");
    header("RateLimit", "What is left of them.");
    if output.get_field_by_name("etag").is_some() {
        header("ETag", "The version's entity tag.");
    }
    if route.verb != Method::GET && route.takes_key() {
        header("Idempotency-Replayed", "`true` where this is the answer of an earlier request with the same key.");
    }
    for name in &route.policy.response_headers {
        match name.as_str() {
            consistency::TOKEN => header("Consistency-Token", "Where the change stands: for a read that is to see it."),
            consistency::PENDING => {
                header("Consistency-Token-Pending", "`true` where the copy did not have the change in time.");
            }
            other => header(other, "What the method says of its answer."),
        }
    }
    all.insert("200".to_owned(), json!({"description": about, "headers": headers, "content": content}));
    if route.verb == Method::GET && output.get_field_by_name("etag").is_some() {
        all.insert("304".to_owned(), json!({"description": "The caller has this version."}));
    }
    let problem = json!({"$ref": "#/components/responses/Problem"});
    let again = json!({"$ref": "#/components/responses/TryAgain"});
    if route.policy.oauth {
        let error = json!({"$ref": "#/components/responses/OAuthError"});
        for status in ["400", "401", "408", "412", "413", "415", "429", "500", "503", "504"] {
            all.insert(status.to_owned(), error.clone());
        }
        return all.into();
    }
    // A body may come with every method, and is refused where there is none to be.
    let mut problems = vec!["400", "401", "403", "404", "408", "412", "413", "415", "500", "501", "504"];
    if route.verb != Method::GET {
        problems.extend(["409", "422"]);
    }
    if !route.policy.request_headers.is_empty() {
        problems.push("431");
    }
    for status in problems {
        all.insert(status.to_owned(), problem.clone());
    }
    all.insert("429".to_owned(), again.clone());
    all.insert("503".to_owned(), again);
    all.into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_description_is_as_it_was_reviewed() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let is = format!("{:#}\n", document(&Routes::fleet().described().unwrap()));
        let update = std::env::var_os("UPDATE_SCHEMAS").is_some();
        if update {
            std::fs::write(&file, &is).unwrap();
        }
        let reviewed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(is == reviewed, "openapi.json differs: `make schemas` writes it, read what changed");
    }

    #[test]
    fn everything_is_described() {
        let document = document(&Routes::fleet().described().unwrap());
        let mut bare = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let says = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
                let parameters = operation["parameters"].as_array().unwrap();
                let named = parameters.iter().filter(|parameter| !says(&parameter["description"]));
                bare.extend(named.map(|parameter| format!("{method} {path} {}", parameter["name"])));
                if !says(&operation["summary"]) {
                    bare.push(format!("{method} {path}"));
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let properties = schema["properties"].as_object().into_iter().flatten();
            let silent = properties.filter(|(_, property)| property["description"].as_str().is_none_or(str::is_empty));
            bare.extend(silent.map(|(property, _)| format!("{name}.{property}")));
        }
        assert_eq!(bare, Vec::<String>::new());
    }
}
