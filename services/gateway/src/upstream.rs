//! Calls to the services, with messages that are known by their descriptors only.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use service::Lifecycle;
use service::client::{MAX_ANSWER_BYTES, Upstream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

/// The services behind the gateway.
#[derive(Debug, Clone)]
pub struct Upstreams(BTreeMap<String, Upstream>);

impl Upstreams {
    /// The services with their addresses; connections are made when they are needed.
    ///
    /// # Errors
    /// Fails when an address cannot be read.
    pub fn new(lifecycle: &Lifecycle, addresses: &BTreeMap<String, Vec<String>>) -> Result<Self, anyhow::Error> {
        let upstream =
            |(name, addresses): (&String, &Vec<String>)| Ok((name.clone(), Upstream::new(lifecycle, name, addresses)?));
        addresses.iter().map(upstream).collect::<Result<_, _>>().map(Self)
    }

    /// Calls an RPC.
    ///
    /// # Errors
    /// The status that the service, or the way to it, answers with.
    pub async fn call(
        &self,
        rpc: &MethodDescriptor,
        request: Request<DynamicMessage>,
    ) -> Result<tonic::Response<DynamicMessage>, Status> {
        let service = rpc.parent_service();
        let upstream =
            self.0.get(service.full_name()).ok_or_else(|| Status::unavailable("no address for the service"))?;
        let path = PathAndQuery::try_from(format!("/{}/{}", service.full_name(), rpc.name()))
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut client = tonic::client::Grpc::new(upstream.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        client.unary(request, path, Dynamic { output: rpc.output() }).await
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
