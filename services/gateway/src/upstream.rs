//! Calls to the services, with messages known by their descriptors only.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::Context as _;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use service::Lifecycle;
use service::client::{MAX_ANSWER_BYTES, Upstream};
use service::tls::Authorities;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use crate::routes;

/// The addresses of each gRPC service, by its full name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(pub BTreeMap<String, Vec<String>>);

impl FromStr for Addresses {
    /// All errors, a sentence each.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut wrong = Vec::new();
        let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for upstream in text.split(',') {
            match upstream.split_once('=') {
                Some((name, address)) if proto::POOL.get_service_by_name(name).is_none() => {
                    wrong.push(format!("there is no service {name} (for {address})"));
                }
                Some((name, address)) if address.starts_with("http://") || address.starts_with("https://") => {
                    addresses.entry(name.to_owned()).or_default().push(address.to_owned());
                }
                _ => wrong.push(format!("{upstream} is not <service>=http://<host>:<port>, or with https://")),
            }
        }
        let wanted: BTreeSet<&str> = routes::all().iter().map(|route| route.service()).collect();
        let missing = wanted.into_iter().filter(|name| !addresses.contains_key(*name));
        wrong.extend(missing.map(|name| format!("names no address for {name}")));
        if wrong.is_empty() { Ok(Self(addresses)) } else { Err(wrong.join("; ")) }
    }
}

/// The services behind the gateway.
#[derive(Debug, Clone)]
pub struct Upstreams(BTreeMap<String, Upstream>);

impl Upstreams {
    /// The services with their addresses; connections open when they are needed.
    ///
    /// # Errors
    /// Fails when an address cannot be read, or one is `https://` and there are no authorities.
    pub fn new(lifecycle: &Lifecycle, addresses: &Addresses, authorities: &Authorities) -> Result<Self, anyhow::Error> {
        let upstream = |(name, addresses): (&String, &Vec<String>)| {
            Ok((name.clone(), Upstream::new(lifecycle, name, addresses, authorities)?))
        };
        addresses.0.iter().map(upstream).collect::<Result<_, _>>().map(Self)
    }

    /// The service of this full name.
    ///
    /// # Errors
    /// No address is known for it.
    pub fn of(&self, service: &str) -> Result<Upstream, anyhow::Error> {
        self.0.get(service).cloned().with_context(|| format!("no address for {service}"))
    }

    /// Calls an RPC.
    ///
    /// # Errors
    /// The status from the service, or from the way to it.
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
