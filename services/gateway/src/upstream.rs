//! Calls to the services, with messages known by their descriptors only.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, HeaderValue, Method, Version};
use http_body_util::Full;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use service::addresses::Addresses;
use service::client::{MAX_ANSWER_BYTES, ReadsOnly, Streams, Upstream};
use service::upstreams::Upstreams;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status, Streaming};
use tower::Service as _;

use crate::routes::{Route, Routes};

/// The addresses of all services that the edge has routes to.
///
/// # Errors
/// One cannot be read, or is missing: a sentence for each.
pub fn addresses(text: &str) -> Result<Addresses, String> {
    let read: Result<Addresses, String> = text.parse();
    let addresses = read.as_ref().cloned().unwrap_or_default();
    let wanted: BTreeSet<&str> = Routes::fleet().all().map(Route::service).collect();
    let missing = wanted.into_iter().filter(|name| !addresses.0.contains_key(*name));
    let missing = missing.map(|name| format!("names no address for {name}"));
    let wrong: Vec<String> = read.err().into_iter().chain(missing).collect();
    if wrong.is_empty() { Ok(addresses) } else { Err(wrong.join("; ")) }
}

/// What an RPC answers.
#[derive(Debug)]
pub enum Answer {
    /// A message.
    Message(DynamicMessage),
    /// Messages, as they come.
    Stream(Streaming<DynamicMessage>),
}

/// Calls an RPC.
///
/// # Errors
/// The status from the service, or from the way to it.
pub async fn call(
    upstreams: &Upstreams,
    route: &Route,
    mut request: Request<DynamicMessage>,
) -> Result<tonic::Response<Answer>, Status> {
    let (upstream, path) = way(upstreams, route)?;
    let mut client = tonic::client::Grpc::new(upstream).max_decoding_message_size(MAX_ANSWER_BYTES);
    let codec = Dynamic { output: route.rpc.output() };
    mark(route, request.extensions_mut());
    if route.policy.streams {
        return client.server_streaming(request, path, codec).await.map(|answer| answer.map(Answer::Stream));
    }
    client.unary(request, path, codec).await.map(|answer| answer.map(Answer::Message))
}

/// Passes on the frames of a call, and those of its answer.
///
/// # Errors
/// The status from the service, or from the way to it.
pub async fn pass(
    upstreams: &Upstreams,
    route: &Route,
    metadata: HeaderMap,
    frames: Bytes,
) -> Result<http::Response<Body>, Status> {
    let (mut upstream, path) = way(upstreams, route)?;
    let mut request = http::Request::new(Body::new(Full::new(frames)));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = path.into();
    *request.headers_mut() = metadata;
    for (name, value) in [(CONTENT_TYPE, "application/grpc"), (TE, "trailers")] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    mark(route, request.extensions_mut());
    let response = upstream.call(request).await?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(response),
    }
}

/// The service of an RPC, and its path there.
fn way(upstreams: &Upstreams, route: &Route) -> Result<(Upstream, PathAndQuery), Status> {
    let upstream = upstreams.get(route.service()).cloned();
    let upstream = upstream.ok_or_else(|| Status::unavailable("no address for the service"))?;
    let path = PathAndQuery::try_from(format!("/{}/{}", route.service(), route.rpc.name()));
    Ok((upstream, path.map_err(|error| Status::internal(error.to_string()))?))
}

/// Says of a call what its method does.
fn mark(route: &Route, marks: &mut Extensions) {
    if route.verb == Method::GET {
        marks.insert(ReadsOnly);
    }
    if route.policy.streams {
        marks.insert(Streams);
    }
}

struct Dynamic {
    output: MessageDescriptor,
}

struct DynamicEncoder;

struct DynamicDecoder(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder(self.output.clone())
    }
}

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
