//! Calls to the services, with messages that are known by their descriptors only.

use std::collections::BTreeMap;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long a call may take from here.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The services behind the gateway.
#[derive(Debug, Clone)]
pub struct Upstreams(BTreeMap<String, Channel>);

impl Upstreams {
    /// Connects when a call is made, and again when the connection is lost.
    ///
    /// # Errors
    /// Fails when an address cannot be read.
    pub fn new(addresses: &BTreeMap<String, String>) -> Result<Self, tonic::transport::Error> {
        let channel = |(name, address): (&String, &String)| {
            let endpoint = Endpoint::from_shared(address.clone())?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(DEADLINE)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5));
            Ok((name.clone(), endpoint.connect_lazy()))
        };
        addresses.iter().map(channel).collect::<Result<_, _>>().map(Self)
    }

    /// Calls an RPC.
    ///
    /// # Errors
    /// The status that the service, or the way to it, answers with.
    pub async fn call(
        &self,
        rpc: &MethodDescriptor,
        mut request: Request<DynamicMessage>,
    ) -> Result<tonic::Response<DynamicMessage>, Status> {
        let service = rpc.parent_service();
        let channel =
            self.0.get(service.full_name()).ok_or_else(|| Status::unavailable("no address for the service"))?;
        let path = PathAndQuery::try_from(format!("/{}/{}", service.full_name(), rpc.name()))
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        request.set_timeout(DEADLINE);
        let codec = Dynamic { output: rpc.output() };
        client.unary(request, path, codec).await
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
