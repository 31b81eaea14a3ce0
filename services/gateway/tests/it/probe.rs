//! A service with a method for each option of `flotilla.edge.v1`, and the gateway in front of it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use gateway::routes::Routes;
use gateway::{Config, Program};
use http::{Request, Response};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};
use service::addresses::Addresses;
use service::config::{Admission, Common};
use service::revocations::Revocations;
use service::upstreams::Upstreams;
use service::{Failure, Process, Service as _};
use testkit::{TestIssuer, until};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};

use crate::Edge;

/// Who gets `held` waits for a permit of it.
pub static GATE: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(0);
pub const NAME: &str = "flotilla.probe.v1.ProbeService";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");

static DESCRIPTORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let contracts = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let mut compiler = protox::Compiler::new([SOURCE, contracts]).unwrap();
    compiler.include_imports(true).open_file("probe.proto").unwrap();
    compiler.encode_file_descriptor_set()
});
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS.as_slice()).unwrap());
static ROUTES: LazyLock<Routes> = LazyLock::new(|| Routes::of(&POOL).unwrap());

struct Source(String);

impl FileResolver for Source {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "one.proto" {
            Ok(File::from_source(name, &self.0)?)
        } else {
            Err(protox::Error::file_not_found(name))
        }
    }
}

/// A method with these options, which takes a `text` and answers with one.
pub fn method(options: &str) -> DescriptorPool {
    compiled(&format!(
        "message Text {{ string text = 1; }} service OneService {{ rpc One(Text) returns (Text) {{ {options} }} }}"
    ))
}

/// What this text declares, in the package `flotilla.one.v1`.
pub fn compiled(text: &str) -> DescriptorPool {
    let imports = [
        "flotilla/edge/v1/edge.proto",
        "google/api/annotations.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/field_mask.proto",
        "google/protobuf/timestamp.proto",
        "google/protobuf/wrappers.proto",
    ];
    let imports: String = imports.map(|file| format!("import \"{file}\"; ")).concat();
    let source = format!("syntax = \"proto3\"; package flotilla.one.v1; {imports}{text}");
    let contracts = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let mut resolver = ChainFileResolver::new();
    resolver.add(Source(source));
    resolver.add(IncludeFileResolver::new(contracts.into()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file("one.proto").unwrap();
    DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap()
}

/// The gateway and the probe, as they start in production.
pub async fn start(admission: Admission) -> Edge {
    start_for(admission, "").await
}

/// The same, for the pages of these origins.
pub async fn start_for(admission: Admission, origins: &str) -> Edge {
    let issuer = TestIssuer::new();
    let common = || Common {
        admission,
        ..Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE)
    };
    let process = Process::new(Program::NAME, "test");
    let served = (Probe, Revocations::default());
    let probe = service::grpc::serve(&process, &common(), DESCRIPTORS.as_slice(), served).await.unwrap();
    let addresses = [
        (NAME, format!("http://{probe}")),
        // Nobody is there: no credential is exchanged.
        ("flotilla.identity.v1.IdentityService", "http://127.0.0.1:1".to_owned()),
    ];
    let config = Config {
        common: common(),
        upstreams: Addresses(addresses.map(|(name, address)| (name.to_owned(), vec![address])).into()),
        provider: devstack::issuer::PROVIDER.to_owned(),
        proxies: 0,
        cors_origins: origins.parse().unwrap(),
        redis_url: None,
    };
    let upstreams = Upstreams::new(&process, &config.upstreams).unwrap();
    let address = gateway::http::serve(&process, &config, &ROUTES, upstreams).await.unwrap();
    until("the gateway is ready", || async { process.readiness.get().0 }).await;
    let http = crate::client();
    Edge { base: format!("http://{address}"), issuer, http, lifecycle: process.lifecycle }
}

pub fn message(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).unwrap()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).unwrap().as_str().unwrap().to_owned()
}

fn http_body(media: &str, data: &[u8]) -> DynamicMessage {
    let mut body = DynamicMessage::new(message("google.api.HttpBody"));
    body.set_field_by_name("content_type", Value::String(media.to_owned()));
    body.set_field_by_name("data", Value::Bytes(data.to_vec().into()));
    body
}

fn received(request: &DynamicMessage, metadata: &MetadataMap) -> DynamicMessage {
    let mut received = DynamicMessage::new(message("flotilla.probe.v1.Received"));
    received.set_field_by_name("request", Value::String(serde_json::to_string(request).unwrap()));
    let known = ["x-signature", "x-other", "idempotency-key"];
    let entries = metadata.iter().filter_map(|entry| match entry {
        KeyAndValueRef::Ascii(key, value) if known.contains(&key.as_str()) => {
            let value = Value::String(value.to_str().unwrap().to_owned());
            Some((prost_reflect::MapKey::String(key.to_string()), value))
        }
        _ => None,
    });
    received.set_field_by_name("metadata", Value::Map(entries.collect()));
    received
}

fn change(id: &str, text: &str) -> DynamicMessage {
    let mut thing = DynamicMessage::new(message("flotilla.probe.v1.Thing"));
    thing.set_field_by_name("text", Value::String(text.to_owned()));
    let mut change = DynamicMessage::new(message("flotilla.probe.v1.Change"));
    change.set_field_by_name("id", Value::String(id.to_owned()));
    change.set_field_by_name("thing", Value::Message(thing));
    change
}

/// The service, with messages known by their descriptors.
#[derive(Clone)]
struct Probe;

impl NamedService for Probe {
    const NAME: &'static str = NAME;
}

impl tower::Service<Request<Body>> for Probe {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let service = POOL.get_service_by_name(NAME).unwrap();
        let rpc = service.methods().find(|rpc| rpc.name() == name).unwrap();
        async move {
            let mut grpc = Grpc::new(Dynamic(rpc.input()));
            Ok(match rpc.is_server_streaming() {
                true => grpc.server_streaming(Watching, request).await,
                false => grpc.unary(Answering(rpc), request).await,
            })
        }
        .boxed()
    }
}

struct Answering(MethodDescriptor);

impl UnaryService<DynamicMessage> for Answering {
    type Response = DynamicMessage;
    type Future = BoxFuture<'static, Result<tonic::Response<DynamicMessage>, Status>>;

    fn call(&mut self, request: tonic::Request<DynamicMessage>) -> Self::Future {
        let name = self.0.name().to_owned();
        async move {
            let (metadata, _, request) = request.into_parts();
            let mut answer = tonic::Response::new(match name.as_str() {
                "TakeWebhook" | "Upload" => received(&request, &metadata),
                "SendBack" => request.clone(),
                "GetInvoice" => http_body("application/pdf", b"%PDF"),
                "GetPrices" => {
                    let few = request.get_field_by_name("few").unwrap().as_bool() == Some(true);
                    let prices = (0..if few { 3 } else { 1_000 }).map(|number| Value::String(format!("EUR {number}")));
                    let mut answer = DynamicMessage::new(message("flotilla.probe.v1.Prices"));
                    answer.set_field_by_name("price", Value::List(prices.collect()));
                    answer
                }
                "GetTagged" => {
                    if text(&request, "id") == "held" {
                        GATE.acquire().await.unwrap().forget();
                    }
                    let mut tagged = DynamicMessage::new(message("flotilla.probe.v1.Tagged"));
                    tagged.set_field_by_name("text", Value::String("x".repeat(5_000)));
                    tagged.set_field_by_name("etag", Value::String("v1".to_owned()));
                    tagged
                }
                _ => http_body("text/html", text(&request, "token").as_bytes()),
            });
            if name == "GetPrices" && request.get_field_by_name("degraded").unwrap().as_bool() == Some(true) {
                answer.metadata_mut().insert(service::DEGRADED, "rates".parse().unwrap());
            }
            if name == "GetInvoice" {
                let id = text(&request, "id");
                let disposition = format!("attachment; filename={id}.pdf").parse().unwrap();
                answer.metadata_mut().insert("content-disposition", disposition);
                answer.metadata_mut().insert("set-cookie", "a=1".parse().unwrap());
            }
            Ok(answer)
        }
        .boxed()
    }
}

struct Watching;

impl ServerStreamingService<DynamicMessage> for Watching {
    type Response = DynamicMessage;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<DynamicMessage, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<DynamicMessage>) -> Self::Future {
        async move {
            let request = request.into_inner();
            let last = text(&request, "last_event_id");
            let first = stream::iter([Ok(change("1", &format!("after {last}")))]);
            let mut lost = Status::from(Failure::new(service::Code::NotFound, "THING_NOT_FOUND", "it is gone"));
            lost.metadata_mut().insert("set-cookie", "a=1".parse().unwrap());
            let rest: Self::ResponseStream = match text(&request, "what").as_str() {
                "some" => Box::pin(stream::iter([Ok(change("2", "line\nbreak"))])),
                "reset" => {
                    let mut reset = DynamicMessage::new(message("flotilla.probe.v1.Change"));
                    reset.set_field_by_name("id", Value::String("2".to_owned()));
                    let nothing = DynamicMessage::new(message("flotilla.probe.v1.Reset"));
                    reset.set_field_by_name("reset", Value::Message(nothing));
                    Box::pin(stream::iter([Ok(reset)]))
                }
                "many" => {
                    let text = "x".repeat(1_024);
                    Box::pin(stream::iter((2..=1_000).map(move |number| Ok(change(&number.to_string(), &text)))))
                }
                "ever" => {
                    let large = "x".repeat(16 * 1_024);
                    Box::pin(stream::unfold(2, move |number| {
                        let next = change(&format!("{number}"), &large);
                        async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            Some((Ok(next), number + 1))
                        }
                    }))
                }
                "failure" => Box::pin(stream::iter([Err(lost)])),
                "refusal" => return Err(lost),
                _ => Box::pin(stream::pending()),
            };
            let all: Self::ResponseStream = Box::pin(first.chain(rest));
            Ok(tonic::Response::new(all))
        }
        .boxed()
    }
}

/// Messages of this type, and whatever is sent.
pub struct Dynamic(pub MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}
