//! The configuration of a service: the variables that its row asks for. The local stack and the manifests of Kubernetes both take it from
//! here.

use std::net::IpAddr;

use crate::{Service, upstreams};

/// The file of the public keys of services that carry callers along.
pub const SERVICE_KEYS: &str = "service-keys";
/// The file of the keys that sign the fleet's tokens.
pub const SIGNING_KEYS: &str = "issuer-key";

/// The variable of the file with the address of Redis, with its login.
pub const REDIS_URL: &str = "FLOTILLA_REDIS_URL_FILE";

/// Where a service is to find everything.
pub struct Surroundings<'a> {
    /// The address that servers bind.
    pub host: IpAddr,
    /// The port of a service for callers, if it has any, and its port for operations.
    pub ports: &'a dyn Fn(&Service) -> (Option<u16>, u16),
    /// The path of the file that holds this secret.
    pub secret: &'a dyn Fn(&str) -> String,
    /// The folder of the service's certificate (tls.crt, tls.key) and of the authorities (ca.crt); None: no TLS.
    pub tls: Option<&'a str>,
    /// The URL at which the edge reaches a service.
    pub upstream: &'a dyn Fn(&Service) -> Option<String>,
}

/// The variables that all services of a development fleet share: NATS; the issuer of the fleet's tokens and the people's OpenID provider, each with
/// its key set (of a provider None: where it says itself); the edge, where people take up invitations; that everybody may sign up, and that it is a
/// developer's.
#[must_use]
pub fn shared(
    nats: &str,
    (issuer, jwks): (&str, &str),
    (provider, keys): (&str, Option<&str>),
    edge: &str,
) -> Vec<(&'static str, String)> {
    let mut all = vec![("FLOTILLA_NATS_URL", nats), ("FLOTILLA_ISSUER", issuer), ("FLOTILLA_JWKS", jwks)];
    all.extend([("FLOTILLA_PROVIDER", provider), ("FLOTILLA_SIGN_UP", "open"), ("FLOTILLA_LOCAL", "true")]);
    all.extend(keys.map(|keys| ("FLOTILLA_PROVIDER_JWKS", keys)));
    let link = ("FLOTILLA_INVITATION_LINK", format!("{edge}/v1/invitations/{{id}}:accept"));
    all.into_iter().map(|(name, value)| (name, value.to_owned())).chain([link]).collect()
}

impl Service {
    /// The variables of its `serve`, beside [`shared`].
    #[must_use]
    pub fn variables(&self, around: &Surroundings<'_>) -> Vec<(&'static str, String)> {
        let (port, ops) = (around.ports)(self);
        let mut all = vec![("FLOTILLA_OPS_LISTEN", format!("{}:{ops}", around.host))];
        if let Some(port) = port {
            all.push(("FLOTILLA_LISTEN", format!("{}:{port}", around.host)));
        }
        if let Some(folder) = around.tls {
            let files = [
                ("FLOTILLA_TLS_CERTIFICATE", "tls.crt"),
                ("FLOTILLA_TLS_KEY", "tls.key"),
                ("FLOTILLA_TLS_AUTHORITIES", "ca.crt"),
            ];
            all.extend(files.map(|(variable, file)| (variable, format!("{folder}/{file}"))));
        }
        all.extend(self.secrets().into_iter().map(|(variable, file)| (variable, (around.secret)(&file))));
        if self.edge || !self.asks.is_empty() {
            let reached = |(grpc, service): (&str, &Service)| Some(format!("{grpc}={}", (around.upstream)(service)?));
            let called = upstreams().filter(|(grpc, _)| self.reaches(grpc));
            all.push(("FLOTILLA_UPSTREAMS", called.filter_map(reached).collect::<Vec<_>>().join(",")));
        }
        if self.edge {
            // It stands before several services: what waits for one must not be all that a tenant may have.
            all.push(("FLOTILLA_TENANT_AT_WORK", "32".to_owned()));
            all.push(("FLOTILLA_PRINCIPAL_AT_WORK", "24".to_owned()));
            all.push(("FLOTILLA_AT_WORK", "256".to_owned()));
        }
        all
    }

    /// The secrets that it reads: the variable that locates each, and the name of the file.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, String)> {
        let name = self.name;
        let mut all = Vec::new();
        let variable = |role| match role {
            "app" => Some("FLOTILLA_DATABASE_URL_FILE"),
            "relay" => Some("FLOTILLA_RELAY_DATABASE_URL_FILE"),
            _ => None,
        };
        all.extend(self.logins().into_iter().filter_map(|(role, file)| Some((variable(role)?, file))));
        if let Some(file) = self.page_token_key {
            all.push(("FLOTILLA_PAGE_TOKEN_KEY_FILE", file.to_owned()));
        }
        if self.signs {
            all.push(("FLOTILLA_SIGNING_KEYS_FILE", SIGNING_KEYS.to_owned()));
            all.push(("FLOTILLA_SERVICE_KEYS_FILE", SERVICE_KEYS.to_owned()));
        }
        all.extend(self.service_key().map(|file| ("FLOTILLA_SERVICE_KEY_FILE", file)));
        if self.logs_in() {
            all.push(("FLOTILLA_NATS_CREDS_FILE", format!("{name}.creds")));
        }
        if let Some(login) = self.reads_as().filter(|login| login != name) {
            all.push(("FLOTILLA_CONSUMER_NATS_CREDS_FILE", format!("{login}.creds")));
        }
        if self.search_engine {
            all.push(("FLOTILLA_OPENSEARCH_URL_FILE", "opensearch-url".to_owned()));
        }
        if self.shares_rates {
            all.push((REDIS_URL, "redis-url".to_owned()));
        }
        all
    }

    /// The roles that log in at its database, each with the name of the file that holds its login.
    #[must_use]
    pub fn logins(&self) -> Vec<(&'static str, String)> {
        let name = self.name;
        let mut all = Vec::new();
        if self.database.is_some() {
            all.push(("owner", format!("{name}-owner-database-url")));
            all.push(("app", format!("{name}-database-url")));
            if self.produces {
                all.push(("relay", format!("{name}-relay-database-url")));
            }
        }
        all
    }

    /// The secret of its `migrate`, likewise.
    #[must_use]
    pub fn owner_secret(&self) -> (&'static str, String) {
        ("FLOTILLA_OWNER_DATABASE_URL_FILE", format!("{}-owner-database-url", self.name))
    }
}
