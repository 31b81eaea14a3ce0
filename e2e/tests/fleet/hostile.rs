//! What a client of gRPC may send to any method, found from the descriptors: no answer says that the fleet has failed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use e2e::Caller;
use futures::StreamExt as _;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value};
use reqwest::Method;
use serde_json::json;
use service::policy::Policy;
use tonic::Code;

use crate::with_fleet;

/// Characters that a store, a log or a header might not hold, and a text that is longer than any may be.
fn texts() -> Vec<Value> {
    let long = "x".repeat(70_000);
    ["", "\0", "a\0b", "\u{ffff}\u{10ffff}\u{feff}", "\r\nx: y", "'; --\\", "{\"$", "../%2e%00", "-1", long.as_str()]
        .map(|text| Value::String(text.to_owned()))
        .into()
}

/// What a field of this kind should not hold, or just still holds.
fn values(kind: &Kind, depth: usize) -> Vec<Value> {
    match kind {
        Kind::Bool => vec![Value::Bool(true)],
        Kind::String => texts(),
        Kind::Bytes => vec![Value::Bytes(vec![0; 70_000].into())],
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => [i32::MIN, -1, i32::MAX].map(Value::I32).into(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => [i64::MIN, -1, i64::MAX].map(Value::I64).into(),
        Kind::Uint32 | Kind::Fixed32 => vec![Value::U32(u32::MAX)],
        Kind::Uint64 | Kind::Fixed64 => vec![Value::U64(u64::MAX)],
        Kind::Float => [f32::NAN, f32::INFINITY].map(Value::F32).into(),
        Kind::Double => [f64::NAN, f64::INFINITY].map(Value::F64).into(),
        Kind::Enum(_) => [-1, 99, i32::MAX].map(Value::EnumNumber).into(),
        Kind::Message(of) if depth > 0 => {
            let empty = DynamicMessage::new(of.clone());
            let with = of.fields().flat_map(|field| {
                let empty = empty.clone();
                of_field(&field, depth - 1).into_iter().map(move |value| {
                    let mut message = empty.clone();
                    message.set_field(&field, value);
                    Value::Message(message)
                })
            });
            std::iter::once(Value::Message(empty.clone())).chain(with).collect()
        }
        Kind::Message(_) => Vec::new(),
    }
}

fn of_field(field: &FieldDescriptor, depth: usize) -> Vec<Value> {
    if field.is_map() {
        return Vec::new();
    }
    let values = values(&field.kind(), depth);
    if !field.is_list() {
        return values;
    }
    let many = values.first().map(|value| Value::List(vec![value.clone(); 5_000]));
    values.into_iter().map(|value| Value::List(vec![value])).chain(many).collect()
}

/// A request of this method with what its description has as examples; `id` is that of an object which is there.
fn example(rpc: &MethodDescriptor, id: &str) -> DynamicMessage {
    let described = proto::POOL.get_extension_by_name("flotilla.edge.v1.field").unwrap();
    let mut message = DynamicMessage::new(rpc.input());
    for field in rpc.input().fields() {
        let options = field.options();
        let said = options.get_extension(&described);
        let of = |name: &str| said.as_message()?.get_field_by_name(name)?.as_str().map(ToOwned::to_owned);
        let example = match (of("format").as_deref(), of("example")) {
            (Some("uuid"), _) => json!(id),
            (_, Some(example)) if !example.is_empty() => serde_json::from_str(&example).unwrap(),
            _ => continue,
        };
        let json = json!({ field.json_name(): example });
        if let Ok(one) = DynamicMessage::deserialize(rpc.input(), json) {
            message.set_field(&field, one.get_field(&field).into_owned());
        }
    }
    message
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// The code that a call of gRPC-Web ends with: its trailers are in the body, or in the head of what has no message.
async fn called(caller: &Caller, rpc: &MethodDescriptor, body: Vec<u8>) -> Code {
    let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
    let request = caller.request(Method::POST, &path).header("content-type", "application/grpc-web+proto").body(body);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    if let Some(status) = answer.headers().get("grpc-status") {
        let details = answer.headers().get("grpc-status-details-bin").map(|details| details.as_bytes().to_vec());
        let details = STANDARD_NO_PAD.decode(details.unwrap_or_default()).unwrap();
        let many = details.windows(17).any(|window| window == b"TOO_MANY_REQUESTS");
        assert!(!many, "{path} is refused for how many there are, and not for what it is");
        return Code::from_bytes(status.as_bytes());
    }
    if rpc.is_server_streaming() {
        return Code::Ok;
    }
    let body = answer.bytes().await.unwrap();
    let found = body.windows(12).rposition(|window| window == b"grpc-status:").unwrap();
    let digits = &body[found + 12..];
    Code::from_bytes(digits.split(|byte| !byte.is_ascii_digit()).next().unwrap())
}

fn is_ours(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::Internal | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded)
}

#[test]
fn no_message_and_no_frame_of_a_client_makes_a_method_fail() {
    with_fleet(|fleet, _| async {
        let person = fleet.person("hostile").await;
        person.sign_up("hostile-of-hers").await;
        // A public method takes her provider's token, the others the fleet's.
        let owner = person.in_tenant("hostile-of-hers").await;
        let id = owner.create(json!({"title": "Splice"})).await["id"].as_str().unwrap().to_owned();
        let served = proto::POOL.services().filter(|service| !service.full_name().contains(".ops."));
        let (mut failed, mut codes) = (Vec::new(), BTreeMap::<_, usize>::new());
        for rpc in served.flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let caller = if Policy::of(&rpc).public { &person } else { &owner };
            let base = example(&rpc, &id);
            let mut sent: Vec<_> = rpc
                .input()
                .fields()
                .flat_map(|field| {
                    let base = base.clone();
                    of_field(&field, 2).into_iter().map(move |value| {
                        let mut message = base.clone();
                        message.set_field(&field, value.clone());
                        (format!("{}: {:.60}", field.name(), format!("{value:?}")), framed(&message.encode_to_vec()))
                    })
                })
                .collect();
            let whole = framed(&base.encode_to_vec());
            let frames = [
                ("nothing", vec![]),
                ("half a prefix", vec![0, 0]),
                ("less than it says", framed(b"\x0a\x7fx")[..6].to_vec()),
                ("compressed", [&[1][..], &whole[1..]].concat()),
                ("an unknown flag", [&[0x7f][..], &whole[1..]].concat()),
                ("no UTF-8", framed(b"\x0a\x01\xff")),
                ("a field that ends early", framed(b"\x0a\x7fx")),
                ("a group", framed(b"\x0b\x0c")),
                ("a number of eleven bytes", framed(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1])),
                ("deep", framed(&[0x0a, 0x7e].repeat(60_000))),
                ("more than memory has", vec![0, 255, 255, 255, 255, 1]),
                ("two messages", whole.repeat(2)),
            ];
            sent.extend(frames.map(|(what, frame)| (what.to_owned(), frame)));
            let calls = sent.into_iter().map(|(what, body)| {
                let rpc = &rpc;
                async move { (what, called(caller, rpc, body).await) }
            });
            // No more at once than a principal may have at work.
            let mut calls = futures::stream::iter(calls).buffer_unordered(4);
            while let Some((what, code)) = calls.next().await {
                *codes.entry(format!("{code:?}")).or_default() += 1;
                if is_ours(code) {
                    failed.push(format!("{} {what}: {code:?}", rpc.name()));
                }
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
        // Most are refused for what they are, and none for how many they are.
        assert!(codes["InvalidArgument"] > 500 && codes["Ok"] > 100, "{codes:?}");
    });
}
