//! The rules of google/api/http.proto, by tables: which part of a request fills which field.

use gateway::openapi;
use gateway::routes::{Found, Routes};
use gateway::transcode::{self, Content, Parts};
use http::Method;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value as Field};
use serde_json::{Value, json};

use crate::probe::compiled;

/// A service with a method for each kind of rule.
const RULES: &str = r#"
    message Request {
        message Sub { string subfield = 1; repeated int32 numbers = 2; }
        string message_id = 1; int64 revision = 2; Sub sub = 3; repeated string tag = 4; Colour colour = 5;
        google.protobuf.Timestamp at = 6; google.protobuf.Duration lasts = 7; google.protobuf.FieldMask mask = 8;
        google.protobuf.StringValue word = 9; google.protobuf.BoolValue flag = 10; google.protobuf.Int64Value count = 11;
        uint64 big = 12; bool yes = 13; double ratio = 14; bytes data = 15; map<string, int32> counts = 16; Named named = 17;
    }
    message Named { string name = 1; }
    enum Colour { COLOUR_UNSPECIFIED = 0; RED = 1; }
    service RulesService {
        rpc Get(Request) returns (Request) {
            option (google.api.http) = {
                get: "/v1/messages/{message_id}"
                additional_bindings {get: "/v1/users/{sub.subfield}/messages/{message_id}"}
            };
        }
        rpc Put(Request) returns (Request) { option (google.api.http) = {put: "/v1/messages/{message_id}" body: "sub"}; }
        rpc All(Request) returns (Request) { option (google.api.http) = {post: "/v1/messages/{message_id}:all" body: "*"}; }
        rpc Name(Request) returns (Request) { option (google.api.http) = {get: "/v1/{named.name=shelves/*/books/*}"}; }
        rpc Rest(Request) returns (Request) { option (google.api.http) = {get: "/v1/files/{message_id=**}"}; }
        rpc Only(Request) returns (Request) { option (google.api.http) = {get: "/v1/only" response_body: "sub"}; }
    }
"#;

/// The request as JSON, or why it is none.
fn request(routes: &Routes, method: &Method, target: &str, body: &str) -> Result<Value, String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Found::Route(route, fields) = routes.find(method, path) else { return Err("no route".to_owned()) };
    let parts = Parts { path: &fields, query, body: Content::Json(body.as_bytes()), if_match: None, last_event: None };
    let message = transcode::request(route, parts).map_err(|problem| problem.detail)?;
    Ok(serde_json::to_value(&message).unwrap())
}

#[test]
fn each_part_of_a_request_fills_its_fields() {
    let routes = Routes::of(&compiled(RULES)).unwrap();
    for (method, target, body, wanted) in [
        // Leaves of the query, of every kind; those of messages by a path.
        (
            Method::GET,
            "/v1/messages/7?revision=2&sub.subfield=foo",
            "",
            json!({"messageId": "7", "revision": "2", "sub": {"subfield": "foo"}}),
        ),
        (Method::GET, "/v1/users/me/messages/7", "", json!({"messageId": "7", "sub": {"subfield": "me"}})),
        (
            Method::GET,
            "/v1/messages/7?tag=a&tag=b&sub.numbers=1&sub.numbers=2",
            "",
            json!({"messageId": "7", "tag": ["a", "b"], "sub": {"numbers": [1, 2]}}),
        ),
        (Method::GET, "/v1/messages/7?colour=RED", "", json!({"messageId": "7", "colour": "RED"})),
        (Method::GET, "/v1/messages/7?colour=1", "", json!({"messageId": "7", "colour": "RED"})),
        (
            Method::GET,
            "/v1/messages/7?at=2026-12-24T18:00:00%2B01:00&lasts=1.5s",
            "",
            json!({"messageId": "7", "at": "2026-12-24T17:00:00Z", "lasts": "1.500s"}),
        ),
        (
            Method::GET,
            "/v1/messages/7?mask=message_id,sub.subfield",
            "",
            json!({"messageId": "7", "mask": "messageId,sub.subfield"}),
        ),
        (
            Method::GET,
            "/v1/messages/7?word=w&flag=true&count=9007199254740993",
            "",
            json!({"messageId": "7", "word": "w", "flag": true, "count": "9007199254740993"}),
        ),
        (
            Method::GET,
            "/v1/messages/7?big=18446744073709551615&yes=true&ratio=0.5&data=AQI%3D",
            "",
            json!({"messageId": "7", "big": "18446744073709551615", "yes": true, "ratio": 0.5, "data": "AQI="}),
        ),
        (
            Method::GET,
            "/v1/messages/7?revision=-9223372036854775808",
            "",
            json!({"messageId": "7", "revision": "-9223372036854775808"}),
        ),
        // Segments of a path.
        (Method::GET, "/v1/messages/a%20b%2Fc", "", json!({"messageId": "a b/c"})),
        (Method::GET, "/v1/shelves/1/books/a%20b%2Fc", "", json!({"named": {"name": "shelves/1/books/a b%2Fc"}})),
        (Method::GET, "/v1/files/a/b%2Fc/d", "", json!({"messageId": "a/b%2Fc/d"})),
        // A body fills its field, the query the rest; or it fills all but the path.
        (
            Method::PUT,
            "/v1/messages/7?revision=3",
            r#"{"subfield": "x", "numbers": [1]}"#,
            json!({"messageId": "7", "revision": "3", "sub": {"subfield": "x", "numbers": [1]}}),
        ),
        (
            Method::POST,
            "/v1/messages/7:all",
            r#"{"revision": 3, "tag": ["x"], "counts": {"a": 1}, "big": "5"}"#,
            json!({"messageId": "7", "revision": "3", "tag": ["x"], "counts": {"a": 1}, "big": "5"}),
        ),
        (
            Method::POST,
            "/v1/messages/7:all",
            r#"{"at": "2026-12-24T18:00:00.000000001Z", "mask": "messageId", "word": "", "count": 7}"#,
            json!({"messageId": "7", "at": "2026-12-24T18:00:00.000000001Z", "mask": "messageId", "word": "", "count": "7"}),
        ),
    ] {
        assert_eq!(request(&routes, &method, target, body), Ok(wanted), "{method} {target}");
    }
    for (method, target, body, wanted) in [
        (Method::GET, "/v1/messages/7?sub=x", "", "is not a value of sub"),
        (Method::GET, "/v1/messages/7?counts=x", "", "counts"),
        (Method::GET, "/v1/messages/7?revision=9223372036854775808", "", "does not fit"),
        (Method::GET, "/v1/messages/7?flag=maybe", "", "is not a value of flag"),
        (Method::GET, "/v1/messages/7?at=tomorrow", "", "does not fit"),
        (Method::GET, "/v1/messages/7?sub.other=x", "", "no parameter"),
        (Method::PUT, "/v1/messages/7?sub.subfield=x", "{}", "given by the body"),
        (Method::POST, "/v1/messages/7:all?revision=1", "{}", "no query"),
        (Method::GET, "/v1/shelves/1", "", "no route"),
    ] {
        let refused = request(&routes, &method, target, body).unwrap_err();
        assert!(refused.contains(wanted), "{method} {target}: {refused}");
    }
}

#[test]
fn bindings_and_patterns_are_described_as_openapi_has_them() {
    let document = openapi::document(&Routes::of(&compiled(RULES)).unwrap());
    let get = |path: &str| document["paths"][path]["get"].clone();
    assert_eq!(get("/v1/messages/{message_id}")["operationId"], "get");
    assert_eq!(get("/v1/users/{sub.subfield}/messages/{message_id}")["operationId"], "get2");
    let named = get("/v1/{named.name}");
    assert_eq!(
        (&named["parameters"][0]["name"], &named["parameters"][0]["in"]),
        (&json!("named.name"), &json!("path"))
    );
    let only = &get("/v1/only")["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(only["$ref"], "#/components/schemas/RequestSub");
}

#[test]
fn an_answer_of_which_one_field_is_sent_is_that_field() {
    let routes = Routes::of(&compiled(RULES)).unwrap();
    let Found::Route(route, _) = routes.find(&Method::GET, "/v1/only") else { panic!("no route") };
    let only = |answer: Value| {
        let message = DynamicMessage::deserialize(route.rpc.output(), answer).unwrap();
        let (json, _) = transcode::response(&message, false).unwrap();
        let only = transcode::only(&json, route.response_body.as_ref().unwrap()).unwrap();
        serde_json::from_slice::<Value>(&only).unwrap()
    };
    let sub = json!({"subfield": "x", "numbers": [1]});
    assert_eq!(only(json!({"messageId": "7", "sub": sub})), sub);
    assert_eq!(only(json!({"messageId": "7"})), Value::Null);
}

/// A message with something in every field that this number chooses.
fn filled(of: &MessageDescriptor, mut seed: u64, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    for field in of.fields() {
        if next() % 3 == 0
            || (field.containing_oneof().is_some_and(|of| of.fields().any(|one| message.has_field(&one))))
        {
            continue;
        }
        let mut value = || match field.kind() {
            Kind::Bool => Some(Field::Bool(next() % 2 == 0)),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Some(Field::I32(i32::try_from(next()).unwrap() - (1 << 30))),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Some(Field::I64((next() << 33 | next()).cast_signed())),
            Kind::Uint32 | Kind::Fixed32 => Some(Field::U32(u32::try_from(next()).unwrap())),
            Kind::Uint64 | Kind::Fixed64 => Some(Field::U64(next() << 33 | next())),
            Kind::Float => Some(Field::F32(next() as f32 / 8.0)),
            Kind::Double => Some(Field::F64(next() as f64 / 8.0)),
            Kind::String => Some(Field::String(format!("\u{1F6A2}\"\\\n{}", next()))),
            Kind::Bytes => Some(Field::Bytes(next().to_be_bytes().to_vec().into())),
            Kind::Enum(of) => of
                .values()
                .nth(usize::try_from(next()).unwrap() % of.values().len())
                .map(|value| Field::EnumNumber(value.number())),
            Kind::Message(of) => match of.full_name() {
                // Within the years that JSON has.
                "google.protobuf.Timestamp" | "google.protobuf.Duration" => {
                    let mut time = DynamicMessage::new(of.clone());
                    time.set_field_by_name("seconds", Field::I64(i64::try_from(next()).unwrap()));
                    time.set_field_by_name("nanos", Field::I32(i32::try_from(next() % 1_000_000_000).unwrap()));
                    Some(Field::Message(time))
                }
                "google.protobuf.FieldMask" => {
                    let mut mask = DynamicMessage::new(of.clone());
                    mask.set_field_by_name("paths", Field::List(vec![Field::String("due_time".to_owned())]));
                    Some(Field::Message(mask))
                }
                _ if depth == 0 => None,
                _ => Some(Field::Message(filled(&of, next(), depth - 1))),
            },
        };
        if field.is_map() {
            continue;
        }
        let value = if field.is_list() { value().zip(value()).map(|(a, b)| Field::List(vec![a, b])) } else { value() };
        if let Some(value) = value {
            message.set_field(&field, value);
        }
    }
    message
}

/// What a service answers is what a client that sends it back means.
#[test]
fn json_of_a_message_is_read_as_the_same_message() {
    let rules = compiled(RULES);
    let pools = [&*proto::POOL, &rules];
    let messages = pools.iter().flat_map(|pool| {
        pool.all_messages().filter(|one| one.full_name().starts_with("flotilla.") && !one.is_map_entry())
    });
    let mut read = 0;
    for of in messages {
        for seed in 0..20 {
            let message = filled(&of, seed, 3);
            let (json, _) = transcode::response(&message, false).unwrap();
            let back =
                DynamicMessage::deserialize(message.descriptor(), &mut serde_json::Deserializer::from_slice(&json));
            assert_eq!(back.unwrap().encode_to_vec(), message.encode_to_vec(), "{}", String::from_utf8_lossy(&json));
            read += 1;
        }
    }
    assert!(read > 1_000, "{read}");
}

/// The same by the way that a request takes, with its own reader of JSON.
#[test]
fn json_of_a_request_is_read_as_the_same_request() {
    let rules = compiled(RULES);
    let routes = Routes::of(&rules).unwrap();
    for seed in 0..200 {
        let mut message = filled(&rules.get_message_by_name("flotilla.one.v1.Request").unwrap(), seed, 3);
        message.set_field_by_name("message_id", Field::String("7".to_owned()));
        let counts = [(prost_reflect::MapKey::String("\u{1F6A2}".to_owned()), Field::I32(7))];
        message.set_field_by_name("counts", Field::Map(counts.into()));
        let (json, _) = transcode::response(&message, false).unwrap();
        let read = request(&routes, &Method::POST, "/v1/messages/7:all", &String::from_utf8(json).unwrap());
        assert_eq!(read, Ok(serde_json::to_value(&message).unwrap()));
    }
}
