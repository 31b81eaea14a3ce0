//! The services that a process calls, by the full names of their gRPC services.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use proto::identity::identity_service_server::SERVICE_NAME;

use crate::Process;
use crate::addresses::Addresses;
use crate::carrier::Carrier;
use crate::client::{Carry, Upstream};
use crate::config::{Calls, Common};

/// The services that a process calls.
#[derive(Debug, Clone, Default)]
pub struct Upstreams(BTreeMap<String, Upstream>);

impl Upstreams {
    /// The services with their addresses; connections open when they are needed.
    ///
    /// # Errors
    /// Fails when an address cannot be read, or one is `https://` and there are no authorities.
    pub fn new(process: &Process, addresses: &Addresses) -> Result<Self, anyhow::Error> {
        let upstream = |(name, addresses): (&String, &Vec<String>)| {
            Ok((name.clone(), Upstream::new(&process.lifecycle, name, addresses, &process.authorities)?))
        };
        addresses.0.iter().map(upstream).collect::<Result<_, _>>().map(Self)
    }

    /// Those of a service that calls others on behalf of its own callers, within these scopes of theirs; none that it is not configured for.
    ///
    /// # Errors
    /// As those of [`new`](Self::new); no address is known for identity.
    pub fn on_behalf(
        process: &Process,
        config: &Calls,
        common: &Common,
        scope: &'static str,
    ) -> Result<Self, anyhow::Error> {
        let Some((addresses, key)) = config.upstreams.as_ref().zip(config.service_key.as_ref()) else {
            return Ok(Self::default());
        };
        process.looks_at("key of the service", key);
        let upstreams = Self::new(process, addresses)?;
        let identity = upstreams.of(SERVICE_NAME)?;
        let carrier = Arc::new(Carrier::new(identity, (process.acts_as()?, key), &common.issuer.name, scope));
        let carry: Carry = Arc::new(move |callers| {
            let carrier = Arc::clone(&carrier);
            async move { carrier.carry(&callers).await }.boxed()
        });
        let carrying = |(name, upstream): (String, Upstream)| (name, upstream.carrying(Arc::clone(&carry)));
        Ok(Self(upstreams.0.into_iter().map(carrying).collect()))
    }

    /// The service of this full name.
    ///
    /// # Errors
    /// No address is known for it.
    pub fn of(&self, service: &str) -> Result<Upstream, anyhow::Error> {
        self.get(service).cloned().with_context(|| format!("FLOTILLA_UPSTREAMS: no address for {service}"))
    }

    /// The same; none without an address.
    #[must_use]
    pub fn get(&self, service: &str) -> Option<&Upstream> {
        self.0.get(service)
    }
}
