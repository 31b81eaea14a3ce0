//! Converts between HTTP/JSON and messages, by the rules of google/api/http.proto: path variables, then the body, and the rest
//! from the query. JSON is proto3 JSON. A whole request becomes one JSON object, read as the RPC's request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value, json};

use crate::fields::{OUTPUT_ONLY, behaves, escaped, field, insert, known_once, parameter, put};
use crate::form::{self, Field, pairs};
use crate::json as strict;
use crate::problem::Problem;
use crate::routes::{HTTP_BODY, Route, Takes};

/// The field that says which fields a change means.
const UPDATE_MASK: &str = "update_mask";
/// The field that says where a stream is to go on.
const LAST_EVENT_ID: &str = "last_event_id";

/// The parts of a request that fill the message.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The fields that the path sets.
    pub path: &'a [(String, String)],
    /// The query string.
    pub query: &'a str,
    /// The body.
    pub body: Content<'a>,
    /// The entity tag of `If-Match`, unquoted.
    pub if_match: Option<&'a str>,
    /// The id of the last event that the caller has had of a stream.
    pub last_event: Option<&'a str>,
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// JSON; empty for none.
    Json(&'a [u8]),
    /// A form.
    Form(&'a [Field]),
    /// Whatever it is.
    Raw {
        /// Its media type, as its sender says.
        media: &'a str,
        /// The body.
        bytes: &'a [u8],
    },
}

/// The RPC's request message.
///
/// # Errors
/// A problem of status 400, which names the part that is wrong.
pub fn request(route: &Route, parts: Parts<'_>) -> Result<DynamicMessage, Problem> {
    let input = route.rpc.input();
    let mut object = body(route, &input, parts.body)?;
    if route.body != "*" {
        let query = pairs(parts.query, "query")?;
        // A mask in the query replaces the mask of the body.
        let mask = |(name, _): &(String, String)| field(&input, name).is_some_and(|field| field.name() == UPDATE_MASK);
        if query.iter().any(mask) {
            object.remove("updateMask");
        }
        for (name, value) in query {
            let first = name.split('.').next().unwrap_or_default();
            if !route.body.is_empty() && field(&input, first).is_some_and(|field| field.name() == route.body) {
                let detail = format!("{name} is given by the body: send it there, not in the query");
                return Err(Problem::invalid_at(parameter(&name), detail));
            }
            insert(&mut object, &input, &name, &value, true)?;
        }
    } else if !parts.query.is_empty() {
        return Err(Problem::invalid("this method takes everything from its body: send no query"));
    }
    for (name, value) in parts.path {
        let named = field(&input, name).and_then(|field| object.get(field.json_name()).or(object.get(field.name())));
        if named.is_some_and(|named| named != value) {
            let detail = format!("{name} is given by the path: the body says something else");
            return Err(Problem::invalid_at(parameter(name), detail));
        }
        insert(&mut object, &input, name, value, false)?;
    }
    if let Some(etag) = parts.if_match {
        etag_into(route, &input, &mut object, etag);
    }
    // A reader that connects anew sends the address that it had, with the place where it is in the header.
    if let (Some(last), true) = (parts.last_event, input.get_field_by_name(LAST_EVENT_ID).is_some()) {
        object.insert("lastEventId".to_owned(), last.into());
    }
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(Value::Object(object), &mut track);
    let mut message = DynamicMessage::deserialize(input, tracked).map_err(|error| {
        let detail = format!("the request does not fit: {error}");
        match pointer(&track.path(), &route.body) {
            Some(pointer) => Problem::invalid_at(pointer, detail),
            None => Problem::invalid(detail),
        }
    })?;
    if let (Takes::Raw(field), Content::Raw { media, bytes }) = (&route.takes, parts.body) {
        raw_into(&mut message, field.as_ref(), media, bytes);
    }
    Ok(message)
}

/// Puts a body as it is where the request keeps it.
fn raw_into(message: &mut DynamicMessage, field: Option<&FieldDescriptor>, media: &str, bytes: &[u8]) {
    let whole = match field {
        None => message,
        Some(field) => match message.get_field_mut(field) {
            prost_reflect::Value::Message(body) => body,
            _ => return,
        },
    };
    whole.set_field_by_name("content_type", prost_reflect::Value::String(media.to_owned()));
    whole.set_field_by_name("data", prost_reflect::Value::Bytes(bytes.to_vec().into()));
}

/// The position of a value in the body or among the parameters (RFC 6901); None for the whole.
fn pointer(path: &serde_path_to_error::Path, body: &str) -> Option<String> {
    use serde_path_to_error::Segment;
    let parts = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(escaped(key)),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    // The body is this field: its sender does not know the field's name.
    let parts: Vec<String> =
        parts.enumerate().filter(|(at, part)| *at > 0 || part != body).map(|(_, part)| part).collect();
    (!parts.is_empty()).then(|| format!("#/{}", parts.join("/")))
}

fn body(route: &Route, input: &MessageDescriptor, content: Content<'_>) -> Result<Map<String, Value>, Problem> {
    let bytes = match content {
        Content::Form(fields) => return form(input, fields),
        Content::Raw { .. } => return Ok(Map::new()),
        Content::Json(bytes) => bytes,
    };
    if route.body.is_empty() {
        return match bytes {
            [] => Ok(Map::new()),
            _ => Err(Problem::invalid("this method takes no body")),
        };
    }
    let value: Value = match bytes {
        [] => Value::Object(Map::new()),
        bytes => {
            strict::read(bytes).map_err(|error| Problem::invalid(format!("the body is not valid JSON: {error}")))?
        }
    };
    let Value::Object(fields) = value else { return Err(Problem::invalid("the body must be a JSON object")) };
    if route.body == "*" {
        known_once(input, &fields, "#")?;
        return Ok(fields);
    }
    if let Some(Kind::Message(resource)) = input.get_field_by_name(&route.body).map(|field| field.kind()) {
        known_once(&resource, &fields, "#")?;
    }
    let mut object = Map::new();
    if route.verb == http::Method::PATCH
        && let Some(mask) = update_mask(route, input, &fields)
    {
        object.insert("updateMask".to_owned(), mask.into());
    }
    object.insert(route.body.clone(), Value::Object(fields));
    Ok(object)
}

/// The fields of a form, by their names in the proto. What is unknown or empty counts as absent (RFC 6749, 3.2).
fn form(input: &MessageDescriptor, fields: &[Field]) -> Result<Map<String, Value>, Problem> {
    let mut object = Map::new();
    for Field { name, value } in fields {
        let Some(field) = input.get_field_by_name(name) else { continue };
        match value {
            form::Value::Text(text) if text.is_empty() => {}
            form::Value::Text(text) => insert(&mut object, input, name, text, true)?,
            form::Value::File { media, bytes } => {
                let file = file(&field, media, bytes);
                let file = file.ok_or_else(|| Problem::invalid_at(parameter(name), format!("{name} takes no file")))?;
                put(&mut object, &field, name, file)?;
            }
        }
    }
    Ok(object)
}

/// A file as JSON of the field's kind: bytes, or a `google.api.HttpBody`.
fn file(field: &FieldDescriptor, media: &str, bytes: &[u8]) -> Option<Value> {
    let bytes = STANDARD.encode(bytes);
    match field.kind() {
        Kind::Bytes => Some(bytes.into()),
        Kind::Message(message) if message.full_name() == HTTP_BODY => {
            Some(json!({"contentType": media, "data": bytes}))
        }
        _ => None,
    }
}

/// A PATCH changes the fields it names. A client may send back what the service fills in; that counts as not named.
fn update_mask(route: &Route, input: &MessageDescriptor, fields: &Map<String, Value>) -> Option<String> {
    input.get_field_by_name(UPDATE_MASK)?;
    let Kind::Message(resource) = input.get_field_by_name(&route.body)?.kind() else { return None };
    let named: Vec<String> = fields
        .keys()
        .filter_map(|name| field(&resource, name))
        .filter(|field| field.name() != "etag" && !behaves(field, OUTPUT_ONLY))
        .map(|field| field.json_name().to_owned())
        .collect();
    // Without a field that can be changed there is no mask: then all fields that are set count, and none is.
    (!named.is_empty()).then(|| named.join(","))
}

/// Puts the etag where the request keeps it: in the resource that is the body, or beside it.
fn etag_into(route: &Route, input: &MessageDescriptor, object: &mut Map<String, Value>, etag: &str) {
    let resource = input.get_field_by_name(&route.body).and_then(|field| match field.kind() {
        Kind::Message(resource) => resource.get_field_by_name("etag"),
        _ => None,
    });
    if resource.is_some() {
        if let Some(Value::Object(resource)) = object.get_mut(&route.body) {
            resource.insert("etag".to_owned(), etag.into());
        }
    } else if input.get_field_by_name("etag").is_some() {
        object.insert("etag".to_owned(), etag.into());
    }
}

/// A message as JSON, with 64-bit numbers as numbers; and its `etag`, if it has one. Defaults are shown and names are JSON's, except in an
/// answer as OAuth has it.
///
/// # Errors
/// INTERNAL: what a service answers can always be written.
pub fn response(message: &DynamicMessage, oauth: bool) -> Result<(Vec<u8>, Option<String>), Problem> {
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let options = options.skip_default_fields(oauth).use_proto_field_name(oauth);
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &options).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        Problem::internal()
    })?;
    let etag = message.get_field_by_name("etag").and_then(|value| value.as_str().map(ToOwned::to_owned));
    Ok((json.into_inner(), etag.filter(|etag| !etag.is_empty())))
}

/// One field of an answer that was written as JSON.
///
/// # Errors
/// INTERNAL: it is there.
pub fn only(json: &[u8], field: &FieldDescriptor) -> Result<Vec<u8>, Problem> {
    let mut answer: Map<String, Value> = serde_json::from_slice(json).map_err(|_| Problem::internal())?;
    let value = answer.remove(field.json_name()).unwrap_or(Value::Null);
    serde_json::to_vec(&value).map_err(|_| Problem::internal())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::{Found, Routes};
    use proptest::prelude::*;

    fn transcode(method: http::Method, path: &str, body: &str) -> Result<Value, Problem> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let Found::Route(route, fields) = Routes::fleet().find(&method, path) else { panic!("no route for {path}") };
        let fields_of_form: Vec<Field> = match route.takes {
            Takes::OauthForm => {
                let field = |(name, value)| Field { name, value: form::Value::Text(value) };
                pairs(body, "form")?.into_iter().map(field).collect()
            }
            _ => Vec::new(),
        };
        let body = match route.takes {
            Takes::OauthForm => Content::Form(&fields_of_form),
            _ => Content::Json(body.as_bytes()),
        };
        let parts = Parts { path: &fields, query, body, if_match: Some("v7"), last_event: None };
        let message = request(route, parts)?;
        Ok(serde_json::to_value(&message).unwrap())
    }

    #[test]
    fn path_query_and_body_fill_the_request() {
        use http::Method;
        let value = transcode(Method::GET, "/v1/todos?pageSize=7&label=a%20b+c&status=OPEN", "").unwrap();
        assert_eq!(value, serde_json::json!({"pageSize": 7, "label": "a b c", "status": "OPEN"}));
        let value = transcode(Method::POST, "/v1/todos", r#"{"title": "x", "due_time": "2026-01-01T00:00:00Z"}"#);
        let todo = serde_json::json!({"title": "x", "dueTime": "2026-01-01T00:00:00Z", "etag": "v7"});
        assert_eq!(value.unwrap(), serde_json::json!({"todo": todo}));
        let value = transcode(Method::POST, "/v1/todos/1:complete", r#"{"id": "1", "etag": "v1"}"#).unwrap();
        assert_eq!(value, serde_json::json!({"id": "1", "etag": "v7"}), "If-Match wins");
        transcode(Method::POST, "/v1/todos/1:complete", "").unwrap();
    }

    #[test]
    fn a_form_is_read_as_oauth_has_it() {
        let form = |body: &str| transcode(http::Method::POST, "/v1/token", body);
        let value = form("grant_type=a%3Ab&subject_token=x+y&scope=&colour=red").unwrap();
        assert_eq!(value, serde_json::json!({"grantType": "a:b", "subjectToken": "x y"}));
        for (body, part) in [
            ("grant_type=a&grant_type=b", "twice"),
            ("grant_type=%ff", "UTF-8"),
            ("grant_type[]=a&grant_type=a&grant_type=b", "twice"),
        ] {
            assert!(form(body).is_err_and(|problem| problem.detail.contains(part)), "{body}");
        }
        // The names of JSON are other names, and what is unknown counts as absent.
        assert_eq!(form("grantType=a").unwrap(), serde_json::json!({}));
        assert!(transcode(http::Method::POST, "/v1/token?grant_type=a", "").is_err());
    }

    #[test]
    fn a_patch_means_the_fields_it_names() {
        let patch = |path: &str, body: &str| transcode(http::Method::PATCH, path, body).unwrap();
        let value = patch("/v1/todos/1", r#"{"notes": "", "dueTime": null, "version": 3, "etag": "v1"}"#);
        assert_eq!(value["updateMask"], "dueTime,notes");
        let value = patch("/v1/todos/1?updateMask=title", r#"{"notes": "", "title": "x"}"#);
        assert_eq!(value["updateMask"], "title");
        for mask in ["updateMask=due_time,title", "update_mask=dueTime,title", "updateMask=due_time,title"] {
            let path = format!("/v1/todos/1?{mask}");
            assert_eq!(patch(&path, "{}")["updateMask"], "dueTime,title", "{mask}");
        }
        assert_eq!(patch("/v1/todos/1?updateMask=*", "{}")["updateMask"], "*");
        for mask in ["title_", "_title", "due__time", "due_Time"] {
            let path = format!("/v1/todos/1?updateMask={mask}");
            let named = transcode(http::Method::PATCH, &path, "{}").map(|value| value["updateMask"].clone());
            assert!(
                named.is_err() || named.as_ref().is_ok_and(|named| named != "title" && named != "dueTime"),
                "{named:?}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        use http::Method;
        let many = format!(r#"{{"labels": [{}""]}}"#, r#""","#.repeat(10_000));
        for (method, path, body, part) in [
            (Method::GET, "/v1/todos?colour=red", "", "colour"),
            (Method::GET, "/v1/todos?pageSize=many", "", "does not fit"),
            (Method::GET, "/v1/todos?pageSize=1&pageSize=2", "", "twice"),
            (Method::GET, "/v1/todos?status=MAYBE", "", "MAYBE"),
            (Method::GET, "/v1/todos?label=%ff", "", "UTF-8"),
            (Method::GET, "/v1/todos", "{}", "no body"),
            (Method::POST, "/v1/todos", "{", "valid JSON"),
            (Method::POST, "/v1/todos", "[]", "JSON object"),
            (Method::POST, "/v1/todos", r#"{"colour": "red"}"#, "colour"),
            (Method::POST, "/v1/todos", r#"{"title": 7}"#, "does not fit"),
            (Method::POST, "/v1/todos/1:complete?x=1", "{}", "no query"),
            (Method::POST, "/v1/todos/1:complete", r#"{"id": "2"}"#, "given by the path"),
            (Method::POST, "/v1/todos/1:complete", r#"{"id": 1}"#, "given by the path"),
            (Method::POST, "/v1/todos", r#"{"title": "a", "title": "b"}"#, "\"title\" twice"),
            (Method::POST, "/v1/todos", r#"{"title": "a", "x": [{"y": {"z": 1, "z": 2}}]}"#, "\"z\" twice"),
            (Method::POST, "/v1/todos", r#"{"dueTime": null, "due_time": null}"#, "dueTime is given twice"),
            (Method::POST, "/v1/todos?todo.assignee=zed", r#"{"title": "a"}"#, "not in the query"),
            (Method::POST, "/v1/todos?todo=zed", r#"{"title": "a"}"#, "not in the query"),
            (Method::PATCH, "/v1/todos/1?updateMask=title&update_mask=notes", "{}", "given twice"),
            (Method::POST, "/v1/todos", many.as_str(), "10000 values"),
            (Method::PATCH, "/v1/todos/1?todo.title=a&updateMask=title", "{}", "not in the query"),
        ] {
            let problem = transcode(method, path, body).unwrap_err();
            assert_eq!(problem.status, http::StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(part), "{path} {body}: {}", problem.detail);
        }
    }

    #[test]
    fn what_does_not_fit_is_pointed_at() {
        use http::Method;
        for (method, path, body, pointer) in [
            (Method::POST, "/v1/todos", r#"{"title": true, "notes": "n"}"#, Some("#/title")),
            (Method::POST, "/v1/todos", r#"{"labels": ["a", 7]}"#, Some("#/labels/1")),
            (Method::POST, "/v1/todos", r#"{"labels": "a"}"#, Some("#/labels")),
            (Method::POST, "/v1/todos", r#"{"due_time": "tomorrow"}"#, Some("#/due_time")),
            (Method::POST, "/v1/todos", r#"{"dueTime": {"seconds": 1}}"#, Some("#/dueTime")),
            (Method::PATCH, "/v1/todos/1", r#"{"version": "x"}"#, Some("#/version")),
            (Method::POST, "/v1/todos/1:complete", r#"{"tag": 1}"#, Some("#/tag")),
            (Method::GET, "/v1/todos?pageSize=many", "", Some("#/pageSize")),
            (Method::GET, "/v1/todos?status=MAYBE", "", Some("#/status")),
            (Method::POST, "/v1/todos", r#"{"colour": "red"}"#, Some("#/colour")),
            (Method::POST, "/v1/todos", r#"{"a/b~": "red"}"#, Some("#/a~1b~0")),
            (Method::GET, "/v1/todos?colour=red", "", Some("#/colour")),
            (Method::GET, "/v1/todos?pageSize=1&page_size=2", "", Some("#/page_size")),
            (Method::POST, "/v1/todos?todo.title=x", "{}", Some("#/todo/title")),
            (Method::POST, "/v1/todos/1:complete", r#"{"id": "2"}"#, Some("#/id")),
            (Method::POST, "/v1/todos", "[]", None),
        ] {
            let problem = transcode(method, path, body).unwrap_err();
            let found = problem.errors.first().map(|error| error["pointer"].as_str().unwrap());
            assert_eq!(found, pointer, "{path} {body}: {}", problem.detail);
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_sends_is_worse_than_a_400(query in "[ -~]{0,30}", body in "[ -~]{0,40}") {
            for (method, path) in [(http::Method::GET, "/v1/todos"), (http::Method::PATCH, "/v1/todos/1")] {
                let Found::Route(route, fields) = Routes::fleet().find(&method, path) else { panic!() };
                let body = Content::Json(body.as_bytes());
                let parts = Parts { path: &fields, query: &query, body, if_match: None, last_event: None };
                if let Err(problem) = request(route, parts) {
                    prop_assert_eq!(problem.status, http::StatusCode::BAD_REQUEST);
                }
            }
        }
    }
}
