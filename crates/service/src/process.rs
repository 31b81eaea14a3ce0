//! The process of a service, as its parts know it: what runs, whether it is ready, and what it connects to.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use authz::Verifier;
use contracts::UserId;
use contracts::ids::IdError;
use http::HeaderValue;
use metrics::gauge;
use sqlx::PgPool;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::config::{Common, Database, Pages};
use crate::login::Login;
use crate::migrations::Migrations;
use crate::nats;
use crate::operators_router::Operators;
use crate::page::PageTokens;
use crate::readiness::Readiness;
use crate::secret::Secret;
use crate::tls::{Authorities, Certificate, Speaks};
use crate::{Db, Lifecycle, idempotency_sweep, retry};

/// How often to check that a dependency answers, and to count connections.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What runs in a process, and whether it is ready. Clones are the same process.
#[derive(Clone)]
pub struct Process {
    /// What runs in it, and how it ends.
    pub lifecycle: Lifecycle,
    /// The conditions for its readiness.
    pub readiness: Readiness,
    /// The service's name.
    pub name: &'static str,
    /// Its release.
    pub release: Arc<str>,
    /// The certificate that it shows, if it has one.
    pub certificate: Option<Certificate>,
    /// Whose certificates it trusts.
    pub authorities: Authorities,
    /// Its services for operators.
    pub(crate) operators: Operators,
}

impl Process {
    /// A process in which nothing runs yet.
    #[must_use]
    pub fn new(name: &'static str, release: &str) -> Self {
        Self {
            lifecycle: Lifecycle::default(),
            readiness: Readiness::default(),
            name,
            release: release.into(),
            certificate: None,
            authorities: Authorities::default(),
            operators: Operators::default(),
        }
    }

    /// The identity of the service when it acts by itself.
    ///
    /// # Errors
    /// Its name is no id.
    pub fn acts_as(&self) -> Result<UserId, IdError> {
        self.name.parse()
    }

    /// Name and release, as dead letters name the handler of an event.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{} {}", self.name, self.release)
    }

    /// The header that names the release, where answers are to have it.
    #[must_use]
    pub fn release_header(&self, common: &Common) -> Option<HeaderValue> {
        common.release_header.then(|| HeaderValue::try_from(&*self.release).ok()).flatten()
    }

    /// Verifies access tokens. The process is ready once it has the issuer's keys.
    ///
    /// # Errors
    /// The client for the keys cannot be made.
    pub fn verifier(&self, common: &Common) -> Result<Arc<Verifier>, anyhow::Error> {
        anyhow::ensure!(
            common.audience != common.issuer.operators_audience,
            "FLOTILLA_OPERATORS_AUDIENCE: must differ from FLOTILLA_AUDIENCE, or each tenant's token is an operator's"
        );
        let verifier = Arc::new(common.issuer.verifier(&common.audience)?);
        self.readiness.set("keys", false);
        let (ready, keys) = (self.readiness.clone(), Arc::clone(&verifier));
        self.lifecycle.run("keys", |stop| async move {
            let had = retry::retry_forever("the issuer's keys", || keys.refresh());
            if stop.run_until_cancelled(had).await.is_some() {
                ready.set("keys", true);
            }
            stop.cancelled().await;
        });
        Ok(verifier)
    }

    /// Opens the database of a service that serves callers. Watches it and its schema, counts its connections, and sweeps old
    /// idempotency records.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn database(&self, config: &Database, common: &Common, schema: &Migrations) -> Result<Db, anyhow::Error> {
        self.schema(config, schema);
        let at_work = u32::from(common.admission.tenant_at_work.get());
        if at_work >= config.connections {
            warn!(at_work, config.connections, "one tenant's calls at work can take all connections");
        }
        let db = Db::lazy(&config.url, self.name, config.connections)?;
        let db = if schema.tenants { db.knowing_tenants() } else { db };
        let counted = db.clone();
        self.count(self.name, config.connections, move || counted.in_use());
        let follows = db.clone();
        self.lifecycle.run("login at the database", |stop| async move { follows.follow(&stop).await });
        let asked = db.clone();
        self.watch("database", move || {
            let db = asked.clone();
            async move { db.ping().await }
        });
        self.lifecycle.run("sweep of idempotency records", |stop| idempotency_sweep::sweep(db.clone(), stop));
        Ok(db)
    }

    /// Waits until the schema is at least this release's; the process is ready from then on, whatever a newer release makes of it.
    pub fn schema(&self, config: &Database, schema: &Migrations) {
        self.readiness.set("schema", false);
        let (ready, name, url, schema) = (self.readiness.clone(), self.name, config.url.clone(), *schema);
        self.lifecycle.run("schema", |stop| async move {
            let met = retry::retry_forever("the schema", || async { schema.check(name, &url.get()).await });
            if stop.run_until_cancelled(met).await.is_some() {
                ready.set("schema", true);
            }
            stop.cancelled().await;
        });
    }

    /// The acceptor of a port's TLS connections, if the process has a certificate.
    ///
    /// # Errors
    /// The library of TLS cannot be set up.
    pub fn acceptor(&self, speaks: Speaks) -> Result<Option<TlsAcceptor>, anyhow::Error> {
        self.certificate.as_ref().map(|certificate| certificate.acceptor(speaks)).transpose()
    }

    /// Connects to NATS as this service.
    ///
    /// # Errors
    /// An address or the credentials cannot be read.
    pub async fn nats(&self, login: &nats::Login) -> Result<nats::Client, anyhow::Error> {
        self.nats_as(self.name, login).await
    }

    /// The same under another name. It logs in by what the credentials have become, and anew when they change.
    ///
    /// # Errors
    /// An address or the credentials cannot be read.
    pub async fn nats_as(&self, name: &str, login: &nats::Login) -> Result<nats::Client, anyhow::Error> {
        let client = nats::connect(name, login, &self.authorities).await?;
        let (follows, credentials) = (client.clone(), login.credentials.clone());
        self.lifecycle.run("login at NATS", |stop| async move { nats::follow(&follows, &credentials, &stop).await });
        Ok(client)
    }

    /// Makes and reads page tokens, by keys that may change.
    #[must_use]
    pub fn page_tokens(&self, config: &Pages) -> PageTokens {
        self.looks_at("keys of page tokens", &config.page_token_key);
        PageTokens::new(config.page_token_key.clone())
    }

    /// Looks whether a secret has changed, as long as the process runs.
    pub fn looks_at(&self, what: &'static str, secret: &Secret) {
        let looks = secret.clone();
        self.lifecycle.run(what, |stop| async move { looks.look_until(&stop).await });
    }

    /// Opens a pool of its own, and counts its connections. `name` is its label, and its `application_name` in the database.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn pool(&self, url: &Secret, name: &str, most: u32) -> Result<PgPool, sqlx::Error> {
        Ok(self.counted(name, most, Login::of_service(url, name, most)?))
    }

    /// Opens a pool for operators, whose statements may take minutes.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn operators_pool(&self, url: &Secret, most: u32) -> Result<PgPool, sqlx::Error> {
        let name = format!("{}-operators", self.name);
        Ok(self.counted(&name, most, Login::of_operators(url, &name, most)?))
    }

    fn counted(&self, name: &str, most: u32, login: Login) -> PgPool {
        let pool = login.pool().clone();
        self.lifecycle.run("login at the database", |stop| async move { login.follow(&stop).await });
        let counted = pool.clone();
        let in_use = move || counted.size().saturating_sub(u32::try_from(counted.num_idle()).unwrap_or(u32::MAX));
        self.count(name, most, in_use);
        pool
    }

    fn count(&self, pool: &str, most: u32, in_use: impl Fn() -> u32 + Send + 'static) {
        gauge!("database_connections_max", "pool" => pool.to_owned()).set(f64::from(most));
        let counted = gauge!("database_connections_in_use", "pool" => pool.to_owned());
        self.lifecycle.run("count of connections", |stop| async move {
            let mut tick = tokio::time::interval(ASK_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                counted.set(f64::from(in_use()));
            }
        });
    }

    /// Checks every second that a dependency answers; the process is ready while it does.
    pub fn watch<F, E>(&self, condition: &'static str, ask: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), E>> + Send,
        E: Display + Send,
    {
        self.readiness.set(condition, false);
        let ready = self.readiness.clone();
        self.lifecycle.run(condition, |stop| async move {
            let mut tick = tokio::time::interval(ASK_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                let answer = ask().await;
                if let Err(error) = &answer {
                    warn!(%error, "{condition} does not answer");
                }
                ready.set(condition, answer.is_ok());
            }
        });
    }
}
