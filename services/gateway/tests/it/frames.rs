//! gRPC and gRPC-Web through the gateway, with a service that has a method for each option.

use std::num::NonZeroU16;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes};
use gateway::routes::Routes;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _};
use serde_json::{Value, json};
use service::config::Admission;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::probe::{self, Dynamic, NAME, POOL};
use crate::{Edge, behind};

impl Edge {
    fn channel(&self) -> Channel {
        Endpoint::from_shared(self.base.clone()).unwrap().connect_lazy()
    }

    /// A call of the probe's by ann, with these headers.
    fn call_of(
        &self,
        rpc: &str,
        message: Value,
        headers: &[(&'static str, &str)],
    ) -> (Request<DynamicMessage>, Dynamic, PathAndQuery) {
        let method = POOL.get_service_by_name(NAME).unwrap().methods().find(|method| method.name() == rpc).unwrap();
        let mut request = Request::new(DynamicMessage::deserialize(method.input(), message).unwrap());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.issuer.bearer("acme", "ann").parse().unwrap());
        for (name, value) in headers {
            metadata.append(*name, value.parse().unwrap());
        }
        (request, Dynamic(method.output()), format!("/{NAME}/{rpc}").try_into().unwrap())
    }

    async fn unary(
        &self,
        rpc: &str,
        message: Value,
        headers: &[(&'static str, &str)],
    ) -> Result<Response<DynamicMessage>, Status> {
        let (request, codec, path) = self.call_of(rpc, message, headers);
        let mut client = Grpc::new(self.channel());
        client.ready().await.unwrap();
        client.unary(request, path, codec).await
    }

    async fn streaming(&self, what: &str) -> Result<Streaming<DynamicMessage>, Status> {
        let (request, codec, path) = self.call_of("Watch", json!({"what": what}), &[]);
        let mut client = Grpc::new(self.channel());
        client.ready().await.unwrap();
        Ok(client.server_streaming(request, path, codec).await?.into_inner())
    }
}

fn reason<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.get_details_error_info().unwrap().reason)
}

fn json_of(message: &DynamicMessage) -> Value {
    serde_json::to_value(message).unwrap()
}

#[tokio::test]
async fn a_call_passes_with_what_its_options_let_through() {
    let edge = probe::start(Admission::wide()).await;
    let said = [("x-signature", "t=1"), ("x-other", "no"), ("idempotency-key", "theirs")];
    let hook = edge.unary("TakeWebhook", json!({"provider": "acme", "body": {"data": "eA=="}}), &said).await.unwrap();
    let received = json_of(hook.get_ref());
    assert_eq!(received["metadata"], json!({"x-signature": "t=1"}), "a public method without a key gets none");
    let upload = edge.unary("Upload", json!({"title": "x"}), &[("idempotency-key", "k1")]).await.unwrap();
    assert_eq!(json_of(upload.get_ref())["metadata"], json!({"idempotency-key": "k1"}));
    let pdf = edge.unary("GetInvoice", json!({"id": "7"}), &[]).await.unwrap();
    assert_eq!(json_of(pdf.get_ref())["contentType"], "application/pdf");
    assert_eq!(pdf.metadata().get("content-disposition").unwrap(), "attachment; filename=7.pdf");
    assert!(!pdf.metadata().contains_key("set-cookie"), "its option does not name it");
    assert_eq!(pdf.metadata().get("deprecation").unwrap(), "@1796083200");
    assert_eq!(pdf.metadata().get("sunset").unwrap(), "Wed, 30 Jun 2027 00:00:00 GMT");
    assert!(pdf.metadata().get("link").unwrap().to_str().unwrap().contains("successor-version"));
    assert!(pdf.metadata().get("ratelimit").unwrap().to_str().unwrap().starts_with("\"principal\";r="));
    // Byte by byte, and larger than a service takes by itself.
    let large = STANDARD.encode(vec![7; 900_000]);
    let back = edge.unary("SendBack", json!({"contentType": "x/y", "data": large}), &[]).await.unwrap();
    assert_eq!(json_of(back.get_ref())["data"], large);
}

#[tokio::test]
async fn what_is_refused_is_a_status_with_its_reason() {
    let edge = probe::start(Admission::wide()).await;
    let twice = [("authorization", "Bearer x")];
    let malformed = edge.unary("SendBack", json!({}), &twice).await;
    assert_eq!(reason(malformed), (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
    assert_eq!(
        reason(edge.unary("Upload", json!({}), &[]).await),
        (Code::InvalidArgument, "IDEMPOTENCY_KEY_REQUIRED".to_owned())
    );
    let keys = [("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(
        reason(edge.unary("Upload", json!({}), &keys).await),
        (Code::InvalidArgument, "IDEMPOTENCY_KEY_MALFORMED".to_owned())
    );
    let large = json!({"data": STANDARD.encode(vec![0; 1 << 21])});
    assert_eq!(reason(edge.unary("SendBack", large, &[]).await), (Code::ResourceExhausted, "TOO_LARGE".to_owned()));
    let gone = edge.streaming("refusal").await;
    let gone = gone.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "it is gone"));
    assert_eq!(gone.get_details_error_info().unwrap().reason, "THING_NOT_FOUND");
    assert!(!gone.metadata().contains_key("set-cookie"), "what is refused says no more than what is not");
    // What the edge knows of gRPC is not passed on as it comes.
    let compressed = edge.unary("SendBack", json!({}), &[("grpc-encoding", "gzip")]).await;
    assert_eq!(reason(compressed), (Code::Unimplemented, "UNSUPPORTED_MEDIA_TYPE".to_owned()));
    let many = "a".repeat(12_000);
    edge.unary("SendBack", json!({}), &[("grpc-accept-encoding", &many), ("grpc-encoding", "identity")]).await.unwrap();

    let (request, _, _) = edge.call_of("SendBack", json!({}), &[]);
    for path in ["/flotilla.probe.v1.ProbeService/Nothing", "/flotilla.ops.v1.OutboxService/Release", "/x/y"] {
        let mut client = Grpc::new(edge.channel());
        client.ready().await.unwrap();
        let mut again = Request::new(request.get_ref().clone());
        *again.metadata_mut() = request.metadata().clone();
        let answer = client.unary(again, path.try_into().unwrap(), Dynamic(request.get_ref().descriptor())).await;
        assert_eq!(
            reason(answer.map(|_: Response<DynamicMessage>| ())),
            (Code::Unimplemented, "NO_SUCH_METHOD".to_owned()),
            "{path}"
        );
    }
    // Nobody is behind this one.
    let edge = behind(Admission::wide()).await;
    let mut todos = proto::todo::todo_service_client::TodoServiceClient::new(edge.channel());
    let mut list = Request::new(proto::todo::ListTodosRequest::default());
    assert_eq!(
        reason(todos.list_todos(Request::new(proto::todo::ListTodosRequest::default())).await),
        (Code::Unauthenticated, "TOKEN_MISSING".to_owned())
    );
    list.metadata_mut().insert("authorization", edge.issuer.bearer("acme", "ann").parse().unwrap());
    let away = todos.list_todos(list).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    assert!(away.get_details_retry_info().is_some());
}

#[tokio::test]
async fn a_stream_passes_with_its_end() {
    let edge = probe::start(Admission::wide()).await;
    let mut some = edge.streaming("some").await.unwrap();
    let mut ids = Vec::new();
    while let Some(change) = some.message().await.unwrap() {
        ids.push(json_of(&change)["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids, ["1", "2"]);
    let mut failing = edge.streaming("failure").await.unwrap();
    assert!(failing.message().await.unwrap().is_some());
    let failed = failing.message().await.unwrap_err();
    assert!(!failed.metadata().contains_key("set-cookie"));
    assert_eq!(
        (failed.code(), failed.get_details_error_info().unwrap().reason.as_str()),
        (Code::NotFound, "THING_NOT_FOUND")
    );
    let mut silent = edge.streaming("silence").await.unwrap();
    assert!(silent.message().await.unwrap().is_some());
    let (died, ended) = futures::join!(edge.lifecycle.shut_down(), silent.message());
    assert_eq!(died, None, "a stream holds up no drain");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stream_has_a_place_until_it_ends() {
    let edge = probe::start(Admission { principal_streams: NonZeroU16::MIN, ..Admission::wide() }).await;
    let first = edge.streaming("silence").await.unwrap();
    assert_eq!(reason(edge.streaming("silence").await).0, Code::ResourceExhausted);
    drop(first);
    testkit::until("its place is free", || async { edge.streaming("some").await.is_ok() }).await;
}

/// The frames of an answer of gRPC-Web: whether each has the trailers, and its bytes.
fn web_frames(mut body: Bytes) -> Vec<(bool, Bytes)> {
    let mut frames = Vec::new();
    while body.has_remaining() {
        let (flags, length) = (body.get_u8(), body.get_u32());
        frames.push((flags & 0x80 != 0, body.split_to(usize::try_from(length).unwrap())));
    }
    frames
}

#[tokio::test]
async fn a_browser_calls_by_grpc_web_over_http_1() {
    let edge = probe::start(Admission::wide()).await;
    let message = |rpc: &str, message: Value| {
        let (request, _, _) = edge.call_of(rpc, message, &[]);
        let message = request.into_inner().encode_to_vec();
        [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
    };
    let send = |rpc: &str, media: &'static str, body: Vec<u8>| {
        let request =
            edge.http.post(format!("{}/{NAME}/{rpc}", edge.base)).header("content-type", media).header("accept", media);
        request.header("authorization", edge.issuer.bearer("acme", "ann")).body(body).send()
    };
    let watch = message("Watch", json!({"what": "some"}));
    let binary = send("Watch", "application/grpc-web+proto", watch.clone()).await.unwrap();
    assert_eq!(
        (binary.status().as_u16(), &binary.headers()["content-type"]),
        (200, &"application/grpc-web+proto".parse().unwrap())
    );
    let frames = web_frames(binary.bytes().await.unwrap());
    assert_eq!(frames.iter().map(|(trailers, _)| *trailers).collect::<Vec<_>>(), [false, false, true]);
    assert!(frames[2].1.starts_with(b"grpc-status:0"), "{:?}", frames[2]);
    let second = DynamicMessage::decode(probe::message("flotilla.probe.v1.Change"), frames[1].1.clone()).unwrap();
    assert_eq!(json_of(&second)["thing"]["text"], "line\nbreak");

    let text = STANDARD.encode(message("GetInvoice", json!({"id": "7"}))).into_bytes();
    let answer = send("GetInvoice", "application/grpc-web-text", text).await.unwrap();
    let body = answer.text().await.unwrap();
    // Each frame may be encoded by itself.
    let decoded: Vec<u8> = body.as_bytes().chunks(4).flat_map(|four| STANDARD.decode(four).unwrap()).collect();
    let frames = web_frames(decoded.into());
    assert!(!frames[0].0 && frames.last().unwrap().0, "{frames:?}");

    let refused =
        send("Watch", "application/grpc-web+proto", message("Watch", json!({"what": "refusal"}))).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "5");
    assert!(refused.headers().contains_key("grpc-status-details-bin"));
    // What is no gRPC-Web over HTTP/1.1.
    for media in ["application/grpc", "application/grpc+json"] {
        let wrong = send("Watch", media, watch.clone()).await.unwrap();
        assert_eq!(wrong.status(), 415);
        let problem: Value = wrong.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("application/grpc-web"), "{problem}");
    }
    let get =
        edge.http.get(format!("{}/{NAME}/Watch", edge.base)).header("content-type", "application/grpc-web").send();
    assert_eq!(get.await.unwrap().status(), 404);
    let late = edge.http.post(format!("{}/{NAME}/Watch", edge.base)).header("content-type", "application/grpc-web");
    let late = late.header("authorization", edge.issuer.bearer("acme", "ann")).header("grpc-timeout", "0S").body(watch);
    assert_eq!(late.send().await.unwrap().headers()["grpc-status"], "4");
}

#[tokio::test]
async fn descriptors_and_reflection_have_all_that_is_served() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    for reflection in [true, false] {
        let edge = behind(Admission { reflection, ..Admission::wide() }).await;
        let set =
            edge.http.get(format!("{}/descriptors.binpb", edge.base)).send().await.unwrap().bytes().await.unwrap();
        let pool = DescriptorPool::decode(set).unwrap();
        let create = pool.get_service_by_name("flotilla.todo.v1.TodoService").unwrap().methods().next().unwrap();
        let http = pool.get_extension_by_name("google.api.http").unwrap();
        assert!(create.options().has_extension(&http), "options are in it");
        assert!(pool.services().all(|service| !service.full_name().contains(".ops.")), "operators' are not");

        let mut health = tonic_health::pb::health_client::HealthClient::new(edge.channel());
        let status = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(status.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

        // Strangers take no memory by it.
        let large = tonic_health::pb::HealthCheckRequest { service: "x".repeat(5_000) };
        assert_ne!(health.check(large).await.unwrap_err().code(), Code::NotFound);
        let list = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new(edge.channel());
        let answer = client.server_reflection_info(futures::stream::iter([list])).await;
        if !reflection {
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
            continue;
        }
        let answer = answer.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
        let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        names.retain(|name| name.starts_with("flotilla."));
        names.sort();
        let mut served: Vec<_> = Routes::fleet().all().map(|route| route.service().to_owned()).collect();
        served.sort();
        served.dedup();
        assert_eq!(names, served);
        assert!(served.len() >= 3, "{served:?}");
    }
}
