//! The processes of the fleet, as operators query them: by gRPC, at their operations ports.

use std::time::Duration;

use anyhow::Context as _;
use authz::OperatorRole;
use chrono::{DateTime, TimeDelta, Utc};
use prost::{Message, Name};
use prost_types::Timestamp;
use serde_json::Value;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::context::Context;

/// How long a process may take to accept a connection.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to begin an answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(900);
/// How long a process that is stopped in the middle of a call counts as alive.
const LIVES_WITHIN: Duration = Duration::from_secs(5);
/// The caller without a token of its own: a holder of the fleet's keys.
const ADMINISTRATION: &str = "administration";

/// The operations port of a process.
pub type Port = InterceptedService<Channel, Bearer>;

/// Puts the operator's token into each request.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Context {
    /// The operations port of a service, of its replicas the first that answers. A caller needs no token of its own if the issuer's key
    /// is in the stack's folder.
    pub async fn port(&self, service: &str) -> Result<Port, anyhow::Error> {
        let token = match self.operator_token()? {
            Some(token) => token,
            None => self.development_issuer()?.operator_token(
                ADMINISTRATION,
                OperatorRole::Operator,
                TimeDelta::hours(12),
            )?,
        };
        let bearer = format!("Bearer {token}").parse().context("the operator's token is no token")?;
        let mut why = anyhow::anyhow!("{service} is not up yet");
        for (_, address) in self.ops()?.iter().filter(|(name, _)| name == service) {
            match self.connected(address).await {
                Ok(channel) => return Ok(InterceptedService::new(channel, Bearer(bearer))),
                Err(error) => {
                    why = error.context(format!("{service} does not answer at its operations port {address}"))
                }
            }
        }
        Err(why)
    }

    async fn connected(&self, address: &str) -> Result<Channel, anyhow::Error> {
        let url = self.ops_url(address);
        let mut endpoint = Endpoint::from_shared(url.clone())?
            .connect_timeout(CONNECTS_WITHIN)
            .timeout(ANSWERS_WITHIN)
            .http2_keep_alive_interval(LIVES_WITHIN)
            .keep_alive_timeout(LIVES_WITHIN);
        if url.starts_with("https://") {
            let tls = match self.trusted()? {
                Some(authorities) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities)),
                None => ClientTlsConfig::new().with_enabled_roots(),
            };
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect().await?)
    }
}

/// The error that a process answered, as text for an operator.
pub fn said(status: Status) -> anyhow::Error {
    match status.code() {
        Code::Unauthenticated => anyhow::anyhow!("the operator's token was refused: {}", status.message()),
        // The error is from the connection, not from the process.
        _ if std::error::Error::source(&status).is_some() => {
            anyhow::Error::from(status).context("the process does not answer at its operations port")
        }
        Code::Unimplemented => anyhow::anyhow!("the process does not know that: is it of this release?"),
        _ if status.message().is_empty() => anyhow::Error::from(status),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// All messages of a stream.
pub async fn all<M>(answer: Result<tonic::Response<tonic::Streaming<M>>, Status>) -> Result<Vec<M>, anyhow::Error> {
    let (mut stream, mut all) = (answer.map_err(said)?.into_inner(), Vec::new());
    while let Some(message) = stream.message().await.map_err(said)? {
        all.push(message);
    }
    Ok(all)
}

/// A message as JSON.
pub fn json<M: Message + Name>(message: &M) -> Result<Value, anyhow::Error> {
    Ok(proto::to_json(message)?)
}

/// The same, with what one field holds as JSON.
pub fn json_with<M: Name>(message: &M, field: &str) -> Result<Value, anyhow::Error> {
    let mut value = json(message)?;
    let text = value[field].as_str().unwrap_or_default();
    value[field] = serde_json::from_str(text).with_context(|| format!("{field} is no JSON"))?;
    Ok(value)
}

/// The same of many.
pub fn print_json<M: Message + Name>(messages: &[M]) -> Result<(), anyhow::Error> {
    let all: Vec<_> = messages.iter().map(json).collect::<Result<_, _>>()?;
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

/// A time that a message must have.
pub fn time(at: Option<&Timestamp>) -> DateTime<Utc> {
    at.and_then(proto::time).unwrap_or_default()
}

/// A time, for a table.
pub fn clock(at: Option<&Timestamp>) -> String {
    time(at).format("%Y-%m-%d %H:%M:%S").to_string()
}
